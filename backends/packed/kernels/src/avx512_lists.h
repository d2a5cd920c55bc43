// Lists of kept columns against up to 64 rows of x, in registers of 16.
#pragma once
#include "lists.h"
#include "vec512.h"

namespace {

constexpr int64_t kWideSide = 64;

// Of 100 weights, how many may be kept for lists to win over panels: from 1, 32 and 64 rows of x on.
// Measured on Ice Lake. Strips are not made beyond kMostFloats and kMostCodes.
struct Most {
  int64_t few, some, many;
};
constexpr Most kFloatLists = {28, 42, kMostFloats};

inline bool by_lists(const Weight &w, int64_t m, const Most &most) {
  return w.strip && w.kept <= (m < 32 ? most.few : m < 64 ? most.some : most.many);
}

template <int32_t kValue> inline F16x sixteen_floats(const uint8_t *from) {
  if (kValue == SE_BF16) return as_f(shift_up_16(widen_u16(from)));
  if (kValue == SE_FP16) return half_to_f(widen_u16(from));
  if (kValue == SE_FP32) return load_f((const float *)from);
  return widen_i8(from);
}

// As MakeLists has it. Two tiles have a multiple of four places, the last of them of zeros: one branch
// less to mistake for each row.
template <int32_t kValue>
const uint8_t *wide_lists(const uint8_t *mask, const uint8_t *values, int64_t width, int64_t rows,
                          Lists &lists, int64_t at) {
  constexpr int64_t kSize = kValue == SE_FP32 ? 4 : kValue < SE_FP32 ? 2 : 1;
  constexpr int kEach = kLanes * 4; // bytes of 16 rows of x
  const int64_t tiles = width / kCols;
  int32_t *ends = lists.ends + at * tiles;
  int64_t found = *ends;
  for (int64_t r = 0; r < rows; ++r, __builtin_prefetch(mask + kRows * width / 8)) {
    for (int64_t t = 0; t < tiles; ++t, mask += 8) {
      uint64_t word;
      memcpy(&word, mask, 8);
      const int64_t count = (int64_t)_mm_popcnt_u64(word), end = found + count;
      for (int64_t i = 0; i < count; i += 16)
        store_f(lists.values + found + i, sixteen_floats<kValue>(values + i * kSize));
      values += count * kSize;
      __builtin_prefetch(values + kAhead);
      store_places<kEach>(lists.places + found, word, (int16_t)(t * kCols * kEach));
      found = end;
      if (t % 2 || t + 1 == tiles) {
        memset(lists.places + found, 0, 8);
        memset(lists.values + found, 0, 16);
        found = (found + 3) & ~(int64_t)3;
      }
      *++ends = (int32_t)found;
    }
  }
  return values;
}

template <int kWide> inline void one_place(F16x value, const float *x, uint64_t place, F16x *sums) {
  const float *at = (const float *)((const uint8_t *)x + place * kWide);
#pragma GCC unroll 4
  for (int j = 0; j < kWide; ++j) sums[j] = fma_f(value, load_f(at + 16 * j), sums[j]);
}

// sums [rows, 16 kWide] += the products of a part's lists. Four places and values a load: loads are
// what bounds this. kSets sets of sums hide the latency.
template <int kWide, int kSets>
__attribute__((noinline)) void wide_lists_times(const Lists &lists, const Part &part, float *sums) {
  for (int64_t r = 0; r < part.rows; ++r, sums += 16 * kWide) {
    part.fetch(r);
    F16x now[kSets][kWide];
#pragma GCC unroll 4
    for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 4
      for (int j = 0; j < kWide; ++j) now[s][j] = zero_f();
    const int64_t end = lists.ends[part.end(r)];
#pragma GCC unroll 1
    for (int64_t i = lists.ends[part.begin(r)]; i < end; i += 4) {
      const F16x four = repeat_4(lists.values + i);
      uint64_t places;
      memcpy(&places, lists.places + i, 8);
      one_place<kWide>(set1_of_4<0>(four), part.x, places & 0xffff, now[0]);
      one_place<kWide>(set1_of_4<1>(four), part.x, places >> 16 & 0xffff, now[1 % kSets]);
      one_place<kWide>(set1_of_4<2>(four), part.x, places >> 32 & 0xffff, now[2 % kSets]);
      one_place<kWide>(set1_of_4<3>(four), part.x, places >> 48, now[3 % kSets]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kWide; ++j) {
#pragma GCC unroll 4
      for (int s = 1; s < kSets; ++s) now[0][j] = add_f(now[0][j], now[s][j]);
      store_f(sums + 16 * j, add_f(load_f(sums + 16 * j), now[0][j]));
    }
  }
}

struct ByWide {
  static MakeLists *make(int32_t value) {
    return value == SE_BF16   ? wide_lists<SE_BF16>
           : value == SE_FP16 ? wide_lists<SE_FP16>
           : value == SE_FP32 ? wide_lists<SE_FP32>
                              : wide_lists<SE_INT8>;
  }
  static int64_t tiles(int64_t lanes) { return lanes <= 32 ? kStripTiles : kStripTiles / 2; }
  static void times(const Lists &lists, const Part &part, int64_t lanes, float *sums) {
    if (lanes == 16) return wide_lists_times<1, 4>(lists, part, sums);
    if (lanes == 32) return wide_lists_times<2, 4>(lists, part, sums);
    if (lanes == 48) return wide_lists_times<3, 2>(lists, part, sums);
    wide_lists_times<4, 2>(lists, part, sums);
  }
};

} // namespace
