// Lists of kept columns against 16 rows of x, in registers of 8.
#pragma once
#include "lists.h"

namespace {

struct PlaceTable { // entry b: the columns of the set bits of b, times the bytes between columns
  alignas(64) uint16_t places[256][8];
  constexpr PlaceTable() : places() {
    for (int b = 0; b < 256; ++b)
      for (int i = 0, found = 0; i < 8; ++i)
        if (b >> i & 1) places[b][found++] = (uint16_t)(i * kLanes * 4);
  }
};
constexpr PlaceTable kPlaces;

inline __m256 eight_floats(int32_t value, const uint8_t *from) {
  const __m128i raw = _mm_loadu_si128((const __m128i *)from);
  if (value == SE_BF16)
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  if (value == SE_FP16) return _mm256_cvtph_ps(raw);
  if (value == SE_FP32) return _mm256_loadu_ps((const float *)from);
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(raw));
}

// As MakeLists has it. All places first and all values then: loops whose ends are known early, since
// one mistaken branch a row costs more than the row.
template <int32_t kValue>
const uint8_t *make_lists(const uint8_t *mask, const uint8_t *values, int64_t width, int64_t rows,
                          Lists &lists, int64_t at) {
  constexpr int64_t kSize = kValue == SE_FP32 ? 4 : kValue < SE_FP32 ? 2 : 1;
  const __m128i on = _mm_set1_epi16(8 * kLanes * 4);
  int32_t *ends = lists.ends + at * (width / kCols);
  const uint64_t first = (uint64_t)*ends;
  uint64_t found = first;
  for (int64_t r = 0; r < rows; ++r) {
    __m128i base = _mm_setzero_si128();
    for (int64_t i = 0; i < width; i += 64, mask += 8) {
      uint64_t word;
      memcpy(&word, mask, 8);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j, word >>= 8) {
        const __m128i places = _mm_load_si128((const __m128i *)kPlaces.places[word & 255]);
        _mm_storeu_si128((__m128i *)(lists.places + found), _mm_add_epi16(base, places));
        found += (uint64_t)_mm_popcnt_u64(word & 255);
        base = _mm_add_epi16(base, on);
      }
      *++ends = (int32_t)found;
    }
    __builtin_prefetch(mask + kRows * width / 8);
  }
  for (uint64_t i = first; i < found; i += 8, values += 8 * kSize) {
    _mm256_storeu_ps(lists.values + i, eight_floats(kValue, values));
    __builtin_prefetch(values + kAhead);
  }
  _mm_storel_epi64((__m128i *)(lists.places + found), _mm_setzero_si128());
  return values - (found - first + 7) / 8 * 8 * kSize + (found - first) * kSize;
}

template <int kLane> inline __m256 lane(__m256 four) {
  return _mm256_shuffle_ps(four, four, kLane * 0x55);
}

// Entry n: which of four values are the first n.
alignas(16) constexpr int32_t kFirst[4][4] = {{}, {-1}, {-1, -1}, {-1, -1, -1}};

template <int kHalves>
inline void four_places(const uint16_t *places, __m256 four, const float *x, __m256 (*now)[4]) {
  const __m256 each[4] = {lane<0>(four), lane<1>(four), lane<2>(four), lane<3>(four)};
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const float *at = (const float *)((const uint8_t *)x + places[j]);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h)
      now[h][j] = _mm256_fmadd_ps(each[j], _mm256_load_ps(at + 8 * h), now[h][j]);
  }
}

template <int kHalves> void lists_times(const Lists &lists, const Part &part, float *sums) {
  for (int64_t r = 0; r < part.rows; ++r, sums += kLanes) {
    part.fetch(r);
    __m256 now[kHalves][4];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) now[h][j] = _mm256_setzero_ps();
    int64_t i = lists.ends[part.begin(r)];
    const int64_t end = lists.ends[part.end(r)];
#pragma GCC unroll 1
    for (; i + 4 <= end; i += 4)
      four_places<kHalves>(lists.places + i,
                           _mm256_broadcast_ps((const __m128 *)(lists.values + i)), part.x, now);
    const __m128 left = _mm_and_ps(_mm_loadu_ps(lists.values + i),
                                   _mm_load_ps((const float *)kFirst[end - i]));
    four_places<kHalves>(lists.places + i, _mm256_set_m128(left, left), part.x, now);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const __m256 all = plus(plus(now[h][0], now[h][1]), plus(now[h][2], now[h][3]));
      _mm256_store_ps(sums + 8 * h, plus(_mm256_load_ps(sums + 8 * h), all));
    }
  }
}

// 8 rows of x or fewer leave the upper half of their 16 lanes empty.
template <int kHalves> struct ByHalves {
  static constexpr int64_t tiles(int64_t) { return kStripTiles; }
  static MakeLists *make(int32_t value) {
    return value == SE_BF16   ? make_lists<SE_BF16>
           : value == SE_FP16 ? make_lists<SE_FP16>
           : value == SE_FP32 ? make_lists<SE_FP32>
                              : make_lists<SE_INT8>;
  }
  static void times(const Lists &lists, const Part &part, int64_t, float *sums) {
    lists_times<kHalves>(lists, part, sums);
  }
};

} // namespace
