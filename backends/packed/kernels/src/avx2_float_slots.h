// Slots of floats against one row of x.
#pragma once
#include "avx2_expand.h"
#include "avx2_slots.h"

namespace {

struct Apart { // 8 values each: rows 0 to 3 or 4 to 7, of the first slot and of the second
  __m256 even, odd;
};

inline Apart apart(__m256i pairs) { // bf16
  return {Bf16::even(pairs), Bf16::odd(pairs)};
}

// 16 values of a two: rows 0 to 3 (part 0) or 4 to 7.
struct TwoBf16 {
  static constexpr int kBytes = 64;
  static Apart load(const uint8_t *at, int part) {
    return apart(_mm256_loadu_si256((const __m256i *)at + part));
  }
};
struct TwoFp16 {
  static constexpr int kBytes = 64;
  static Apart load(const uint8_t *at, int part) {
    const __m128i *from = (const __m128i *)at + 2 * part;
    return {_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))};
  }
};
struct TwoFp32 {
  static constexpr int kBytes = 128;
  static Apart load(const uint8_t *at, int part) {
    const float *from = (const float *)at + 16 * part;
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
};

// Bytes of 8 columns of each slot, those of one plane below those of the other.
template <int kPart> inline __m256i pairs(__m256i low, __m256i high) {
  return kPart ? _mm256_unpackhi_epi8(low, high) : _mm256_unpacklo_epi8(low, high);
}

// x of one window and part. Two planes: the upper halves of floats, which are bf16; four: all of it.
template <int kPlanes> struct Picked {
  __m256i planes[kPlanes]; // from the lowest bytes up

  Picked(const Windows &at, int64_t plane, __m256i places) {
#pragma GCC unroll 4
    for (int p = 0; p < kPlanes; ++p) planes[p] = picked(at, p * plane, places);
  }
  template <int kPart> Apart part() const {
    const __m256i high = pairs<kPart>(planes[kPlanes - 2], planes[kPlanes - 1]);
    if (kPlanes == 2) return apart(high);
    const __m256i low = pairs<kPart>(planes[0], planes[1]);
    const __m256i even = _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
    const __m256i odd = _mm256_blend_epi16(_mm256_srli_epi32(low, 16), high, 0xaa);
    return {_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)};
  }
};

template <class V, int kPlanes> struct SlotSums {
  static constexpr int kBytes = V::kBytes;
  int64_t plane; // bytes from one plane to the next
  __m256 even[2], odd[2];

  void add(const uint8_t *values, const Windows &at, __m256i places) {
    const Picked<kPlanes> x(at, plane, places);
    add(V::load(values, 0), x.template part<0>(), 0);
    add(V::load(values, 1), x.template part<1>(), 1);
  }
  void add(const Apart &values, const Apart &x, int part) {
    even[part] = _mm256_fmadd_ps(values.even, x.even, even[part]);
    odd[part] = _mm256_fmadd_ps(values.odd, x.odd, odd[part]);
  }
};

template <class V, int kPlanes>
__m256 half_of_floats(const Weight &w, int64_t h, const uint8_t *x, const float *) {
  const int64_t all = sections(w);
  const uint8_t *head = w.slots.data + w.slots.begins[h], *data = head + 2 * all;
  SlotSums<V, kPlanes> way;
  way.plane = w.tiles * kCols;
  for (int part = 0; part < 2; ++part) way.even[part] = way.odd[part] = _mm256_setzero_ps();
  for (int64_t s = 0; s < all; ++s, x += section_tiles(w) * kCols) {
    const uint8_t *at = x;
    data = each_two(data, count_at(head, s), at, way);
  }
  return rows_of(_mm256_add_ps(way.even[0], way.odd[0]), _mm256_add_ps(way.even[1], way.odd[1]));
}

inline void one_row_of_floats(const Weight &w, const Prepared &x, const se_job &job,
                              int32_t y_type, int64_t b0, int64_t b1) {
  const auto run = w.value == SE_FP16      ? slot_blocks<half_of_floats<TwoFp16, 4>>
                   : w.value == SE_FP32    ? slot_blocks<half_of_floats<TwoFp32, 4>>
                   : x.form == kPlanesBf16 ? slot_blocks<half_of_floats<TwoBf16, 2>>
                                           : slot_blocks<half_of_floats<TwoBf16, 4>>;
  run(w, x, job, y_type, b0, b1);
}

} // namespace
