// Slots of codes against one row of x: exact integer sums.
#pragma once
#include "avx2_slots.h"

namespace {

// Pairs of products have 16 bits; kFit of them add up without overflow.
struct TwoInt8 {
  static constexpr int kBytes = 32, kFit = 1;
  static __m256i load(const uint8_t *at) { return _mm256_loadu_si256((const __m256i *)at); }
};
struct TwoInt4 {
  static constexpr int kBytes = 16, kFit = 32767 / (2 * 7 * 127);
  static __m256i load(const uint8_t *at) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(codes_of_nibbles()), nibbles(at));
  }
};

// Sums of a section with x of 8 bits, one plane, or of 16 in two.
template <class V, int kPlanes> struct CodeSums {
  static constexpr int kBytes = V::kBytes, kFit = V::kFit;
  int64_t plane;     // bytes from one plane of x to the next
  __m256i pairs[2];  // of each plane, since the last widening
  __m256i low, high; // one plane: even and odd rows; two: rows 0 to 3 and 4 to 7

  void clear() { low = high = pairs[0] = pairs[1] = _mm256_setzero_si256(); }
  void add(const uint8_t *values, const Windows &at, __m256i places) {
    const __m256i codes = V::load(values), sizes = _mm256_abs_epi8(codes);
#pragma GCC unroll 2
    for (int p = 0; p < kPlanes; ++p) { // sizes times signed x
      const __m256i x = _mm256_sign_epi8(picked(at, p * plane, places), codes);
      const __m256i products = _mm256_maddubs_epi16(sizes, x);
      pairs[p] = kFit == 1 ? products : _mm256_add_epi16(pairs[p], products);
    }
    if (kFit == 1) widen();
  }
  void widen() {
    const __m256i one = _mm256_set1_epi32(1), other = _mm256_set1_epi32(1 << 16);
    const __m256i planes = _mm256_set1_epi32(kHighPlane << 16 | 1);
    const __m256i first = kPlanes == 1 ? pairs[0] : _mm256_unpacklo_epi16(pairs[0], pairs[1]);
    const __m256i second = kPlanes == 1 ? pairs[0] : _mm256_unpackhi_epi16(pairs[0], pairs[1]);
    low = _mm256_add_epi32(low, _mm256_madd_epi16(first, kPlanes == 1 ? one : planes));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(second, kPlanes == 1 ? other : planes));
    pairs[0] = pairs[1] = _mm256_setzero_si256();
  }
  __m256i total() const { // of 8 rows in order
    if (kPlanes == 2) return rows_of(low, high);
    return rows_of(_mm256_unpacklo_epi32(low, high), _mm256_unpackhi_epi32(low, high));
  }
};

template <class Way>
inline const uint8_t *section_times(const uint8_t *data, int64_t count, const uint8_t *x, Way &way) {
  if (Way::kFit == 1) return each_two(data, count, x, way);
  for (; count > 0; count -= Way::kFit) {
    data = each_two(data, count < Way::kFit ? count : Way::kFit, x, way);
    way.widen();
  }
  return data;
}

template <class Way>
__m256 half_of_codes(const Weight &w, int64_t h, const uint8_t *x, const float *scales) {
  const uint8_t *head = w.slots.data + w.slots.begins[h], *data = head + 2 * w.flushes;
  const int64_t group = w.groups > 1 ? w.group_tiles / w.flush : w.flushes; // sections of a scale
  Way way;
  way.plane = w.tiles * kCols;
  __m256 sums = _mm256_setzero_ps();
  for (int64_t s = 0, of = 0; s < w.flushes; ++s, x += w.flush * kCols) {
    way.clear();
    data = section_times(data, count_at(head, s), x, way);
    const __m256 found = _mm256_cvtepi32_ps(way.total());
    sums = _mm256_add_ps(sums, _mm256_mul_ps(found, _mm256_loadu_ps(scales)));
    if (++of == group) of = 0, scales += kRows;
  }
  return sums;
}

inline void one_row_of_codes(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type,
                             int64_t b0, int64_t b1) {
  const bool wide = x.form == kPlanesCodes;
  const auto run = w.value == SE_INT4 ? wide ? slot_blocks<half_of_codes<CodeSums<TwoInt4, 2>>>
                                             : slot_blocks<half_of_codes<CodeSums<TwoInt4, 1>>>
                   : wide             ? slot_blocks<half_of_codes<CodeSums<TwoInt8, 2>>>
                                      : slot_blocks<half_of_codes<CodeSums<TwoInt8, 1>>>;
  run(w, x, job, y_type, b0, b1);
}

} // namespace
