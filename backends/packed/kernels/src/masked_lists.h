// Lists of what is kept of a formed piece, for masks of mostly zeros: one line of the weight (a
// row, or for the gradient of x a column) becomes values and the places in x that they meet.
#pragma once
#include "masked_form.h"

namespace {
using namespace se;

constexpr int64_t kHalf = kChunk / 2; // columns of a list: of two panels, what the L1 cache holds
constexpr int64_t kPlace = kWideTile * sizeof(float); // bytes from column to column of a panel
constexpr int64_t kFour = 4, kEight = 8;              // entries that are met at a time
constexpr int64_t kEntries = kHalf + 16;              // and what a store may pass

struct Lists { // of one chunk of up to kChunk lines; kEight entries of zeros end each, but for dots
  int64_t count[kChunk][2];
  uint16_t places[kChunk][2][kEntries];
  float values[kChunk][2][kEntries];
};

// `count` lanes, those kept of values one after the other; how many.
inline int64_t spread(const uint8_t *kept, int64_t count, const float *values, float *to) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    to[i] = kept[i] ? values[found] : 0.f;
    found += kept[i] != 0;
  }
  return found;
}

#if defined(__AVX512F__)
// Appends the places of the lanes that are kept, the first being `column` of its half; how many.
inline int64_t keep_places(__mmask16 kept, int64_t column, uint16_t *places) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i each = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(kPlace));
  const __m512i at = _mm512_add_epi32(each, _mm512_set1_epi32((int)(column * kPlace)));
  const __m512i found = _mm512_maskz_compress_epi32(kept, at);
  _mm256_storeu_si256((__m256i *)places, _mm512_cvtepi32_epi16(found));
  return __builtin_popcount(kept);
}
inline int64_t keep_places(const uint8_t *kept, int64_t column, uint16_t *places) {
  const __m128i bytes = _mm_loadu_si128((const __m128i *)kept);
  return keep_places(_mm_test_epi8_mask(bytes, bytes), column, places);
}
// The same of lanes that are not zero, and their values.
inline int64_t keep(Lanes x, int64_t column, float *values, uint16_t *places) {
  const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  _mm512_storeu_ps(values, _mm512_maskz_compress_ps(kept, x));
  return keep_places(kept, column, places);
}
// The lanes that are kept, of values one after the other; how many.
inline int64_t spread(const uint8_t *kept, const float *values, float *to) {
  const __m128i bytes = _mm_loadu_si128((const __m128i *)kept);
  const __mmask16 mask = _mm_test_epi8_mask(bytes, bytes);
  store(to, _mm512_maskz_expandloadu_ps(mask, values));
  return __builtin_popcount(mask);
}
// Four values, each in all lanes, by one load: loads are what bounds lists here.
struct Four {
  Lanes all;
  explicit Four(const float *from) : all(_mm512_broadcast_f32x4(_mm_loadu_ps(from))) {}
  template <int kAt> Lanes get() const { return _mm512_permute_ps(all, kAt * 0x55); }
};
inline Lanes pair_sums(Lanes a, Lanes b) { // of lanes (0, 2) and (1, 3): a, b, a, b
  return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
inline Lanes quad_sums(Lanes a, Lanes b) {
  const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}
inline Lanes wide_sums(Lanes a, Lanes b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
// to[i], or where `add` to[i] +, the lanes of x[i].
inline void store_sums(const Lanes (&x)[kEight], float *to, bool add) {
  const Lanes low = quad_sums(pair_sums(x[0], x[1]), pair_sums(x[2], x[3]));
  const Lanes high = quad_sums(pair_sums(x[4], x[5]), pair_sums(x[6], x[7]));
  const Lanes two = wide_sums(low, high);
  const __m256 found = _mm512_castps512_ps256(wide_sums(two, two));
  _mm256_storeu_ps(to, add ? _mm256_add_ps(_mm256_loadu_ps(to), found) : found);
}
#elif defined(__AVX2__)
struct Compact { // entry b: the numbers of the bits of b, in order
  alignas(64) uint64_t lanes[256];
  constexpr Compact() : lanes() {
    for (int b = 0; b < 256; ++b)
      for (int i = 0, found = 0; i < 8; ++i)
        if (b >> i & 1) lanes[b] |= (uint64_t)i << (8 * found++);
  }
};
constexpr Compact kCompact;

inline int64_t store_places(int kept, int64_t column, uint16_t *places) {
  const __m128i lanes = _mm_loadl_epi64((const __m128i *)&kCompact.lanes[kept]);
  const __m128i at = _mm_add_epi16(_mm_cvtepu8_epi16(lanes), _mm_set1_epi16((int16_t)column));
  _mm_storeu_si128((__m128i *)places, _mm_mullo_epi16(at, _mm_set1_epi16(kPlace)));
  return __builtin_popcount((unsigned)kept);
}
inline int64_t keep_places(const uint8_t *kept, int64_t column, uint16_t *places) {
  const __m128i bytes = _mm_loadl_epi64((const __m128i *)kept);
  const int none = _mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()));
  return store_places(~none & 0xff, column, places);
}
inline int64_t keep(Lanes x, int64_t column, float *values, uint16_t *places) {
  const int kept = _mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NEQ_UQ));
  const __m128i lanes = _mm_loadl_epi64((const __m128i *)&kCompact.lanes[kept]);
  _mm256_storeu_ps(values, _mm256_permutevar8x32_ps(x, _mm256_cvtepu8_epi32(lanes)));
  return store_places(kept, column, places);
}
inline int64_t spread(const uint8_t *kept, const float *values, float *to) {
  return spread(kept, kLanesWide, values, to);
}
struct Four {
  Lanes all;
  explicit Four(const float *from) : all(_mm256_broadcast_ps((const __m128 *)from)) {}
  template <int kAt> Lanes get() const { return _mm256_permute_ps(all, kAt * 0x55); }
};
inline void store_sums(const Lanes (&x)[kEight], float *to, bool add) {
  Lanes four[2];
  for (int i = 0; i < 2; ++i) {
    const Lanes a = _mm256_hadd_ps(x[4 * i], x[4 * i + 1]);
    four[i] = _mm256_hadd_ps(a, _mm256_hadd_ps(x[4 * i + 2], x[4 * i + 3]));
  }
  const Lanes found = _mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20),
                                    _mm256_permute2f128_ps(four[0], four[1], 0x31));
  store(to, add ? _mm256_add_ps(load(to), found) : found);
}
#else
inline int64_t keep_places(const uint8_t *kept, int64_t column, uint16_t *places) {
  int64_t found = 0;
  for (int64_t i = 0; i < kLanesWide; ++i) {
    places[found] = (uint16_t)((column + i) * kPlace);
    found += kept[i] != 0;
  }
  return found;
}
inline int64_t keep(Lanes x, int64_t column, float *values, uint16_t *places) {
  int64_t found = 0;
  for (int64_t i = 0; i < kLanesWide; ++i) {
    values[found] = x[i];
    places[found] = (uint16_t)((column + i) * kPlace);
    found += x[i] != 0.f;
  }
  return found;
}
struct Four {
  const float *from;
  explicit Four(const float *at) : from(at) {}
  template <int kAt> Lanes get() const { return all(from[kAt]); }
};
inline int64_t spread(const uint8_t *kept, const float *values, float *to) {
  return spread(kept, kLanesWide, values, to);
}
inline void store_sums(const Lanes (&x)[kEight], float *to, bool add) {
  for (int i = 0; i < kEight; ++i)
    to[i] = (add ? to[i] : 0.f) + (x[i][0] + x[i][2]) + (x[i][1] + x[i][3]);
}
#endif

inline void end_list(Lists &lists, int64_t line, int64_t half, int64_t count) {
  lists.count[line][half] = count;
  memset(lists.values[line][half] + count, 0, kEight * sizeof(float));
  memset(lists.places[line][half] + count, 0, kEight * sizeof(uint16_t));
}

// Lists of what the mask keeps, without values; rows lie `ld` apart.
void list_mask(const uint8_t *kept, int64_t ld, int64_t rows, int64_t width, Lists &lists) {
  for (int64_t i = 0; i < rows; ++i, kept += ld)
    for (int64_t half = 0; half * kHalf < width; ++half) {
      uint16_t *places = lists.places[i][half];
      const int64_t end = width < (half + 1) * kHalf ? width : (half + 1) * kHalf;
      int64_t found = 0, k = half * kHalf;
      for (; k + kLanesWide <= end; k += kLanesWide)
        found += keep_places(kept + k, k - half * kHalf, places + found);
      if (k < end) {
        uint8_t rest[kLanesWide] = {};
        memcpy(rest, kept + k, (size_t)(end - k));
        found += keep_places(rest, k - half * kHalf, places + found);
      }
      lists.count[i][half] = found;
      memset(places + found, 0, kEight * sizeof(uint16_t));
    }
}

// Lists of rows, from line `first` on: at(i, k) are the lanes of row i from column k on, zeros
// after `width`.
template <class At>
void list_rows(int64_t first, int64_t rows, int64_t width, Lists &lists, const At &at) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t half = 0; half * kHalf < width; ++half) {
      int64_t found = 0;
      for (int64_t k = 0; k < kHalf && half * kHalf + k < width; k += kLanesWide)
        found += keep(at(i, half * kHalf + k), k, lists.values[first + i][half] + found,
                      lists.places[first + i][half] + found);
      end_list(lists, first + i, half, found);
    }
}

// Lists of the columns of formed [rows, kChunk]; zeros follow the last row and column.
void list_columns(const float *formed, int64_t rows, int64_t width, Lists &lists) {
  for (int64_t k = 0; k < width; k += kLanesWide)
    for (int64_t half = 0; half * kHalf < rows; ++half) {
      int64_t found[kLanesWide] = {};
      for (int64_t n = 0; n < kHalf && half * kHalf + n < rows; n += kLanesWide) {
        Lanes x[kLanesWide];
        SE_UNROLL for (int i = 0; i < kLanesWide; ++i)
          x[i] = load(formed + (half * kHalf + n + i) * kChunk + k);
        transpose(x);
        SE_UNROLL for (int i = 0; i < kLanesWide; ++i)
          found[i] += keep(x[i], n, lists.values[k + i][half] + found[i],
                           lists.places[k + i][half] + found[i]);
      }
      for (int64_t i = 0; i < kLanesWide; ++i) end_list(lists, k + i, half, found[i]);
    }
}

} // namespace
