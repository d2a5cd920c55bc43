// Many lines of x against panels of 16 rows: 64 bytes a step, each 32-bit word a row. Two panels at a
// time share what is read of x, for reading, not multiplying, is what would bound them.
#pragma once
#include "driver.h"
#include "vec512.h"

namespace {

inline int32_t word_at(const void *from) {
  int32_t word;
  memcpy(&word, from, 4);
  return word;
}

// Products of a step of a panel with one 32-bit word of each line: a float, or 2 or 4 codes.
struct FloatDot {
  typedef F16x Sum;
  typedef float Acc;
  static Sum zero() { return zero_f(); }
  static Sum dot(Sum sum, I16x w, I16x x) { return fma_f(as_f(w), as_f(x), sum); }
  static Sum add(Sum a, Sum b) { return add_f(a, b); }
  static void store(float *to, Sum sum) { store_f(to, add_f(load_f(to), sum)); }
};

struct WordDot {
  typedef I16x Sum;
  typedef int32_t Acc;
  static Sum zero() { return zero_i(); }
  static Sum dot(Sum sum, I16x w, I16x x) { return add_i(sum, madd_i16(w, x)); }
  static Sum add(Sum a, Sum b) { return add_i(a, b); }
  static void store(int32_t *to, Sum sum) { store_i(to, add_i(load_i(to), sum)); }
};

// kLines lines of x [lines, kSteps] of 32-bit words against kBeside panels of each tile; kSets sets
// of sums hide the latency of few lines. Asks for the lines that follow: they come from the L2 cache.
template <class Dot, int kSteps, int kLines, int kSets, int kBeside>
__attribute__((noinline)) void panel_times(const uint8_t *w, const uint8_t *x, int64_t tiles,
                                           int64_t apart, typename Dot::Acc *const *to) {
  typename Dot::Sum sums[kSets][kBeside][kLines];
#pragma GCC unroll 16
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 2
    for (int b = 0; b < kBeside; ++b)
#pragma GCC unroll 16
      for (int m = 0; m < kLines; ++m) sums[s][b][m] = Dot::zero();
#pragma GCC unroll 1
  for (int64_t d = 0; d < tiles; ++d, w += kBeside * kSteps * 64, x += apart)
#pragma GCC unroll 1
  for (int k = 0; k < kSteps; k += kSets) {
    __builtin_prefetch(x + kLines * (kSteps + k) * 4);
#pragma GCC unroll 16
    for (int s = 0; s < kSets; ++s) {
      I16x each[kBeside];
#pragma GCC unroll 2
      for (int b = 0; b < kBeside; ++b) each[b] = load_i(w + (b * kSteps + k + s) * 64);
#pragma GCC unroll 16
      for (int m = 0; m < kLines; ++m) {
        const I16x word = set1_i(word_at(x + (m * kSteps + k + s) * 4));
#pragma GCC unroll 2
        for (int b = 0; b < kBeside; ++b) {
          sums[s][b][m] = Dot::dot(sums[s][b][m], each[b], word);
          pin(sums[s][b][m]);
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < kBeside; ++b)
#pragma GCC unroll 16
    for (int m = 0; m < kLines; ++m) {
#pragma GCC unroll 16
      for (int s = 1; s < kSets; ++s) sums[0][b][m] = Dot::add(sums[0][b][m], sums[s][b][m]);
      Dot::store(to[b] + m * kRows, sums[0][b][m]);
    }
}

// Any number of lines.
template <class Dot, int kSteps, int kBeside, class X>
void panels_times(const void *panels, const Lines<X> &from, typename Dot::Acc *const *sums) {
  const uint8_t *w = (const uint8_t *)panels, *x = (const uint8_t *)from.data;
  const int64_t apart = from.apart * (int64_t)sizeof(X);
  int64_t count = from.lines;
  typename Dot::Acc *to[kBeside];
  for (int b = 0; b < kBeside; ++b) to[b] = sums[b];
  const auto some = [&](auto times, int64_t n) {
    for (; count >= n; count -= n, x += n * kSteps * 4) {
      times(w, x, from.tiles, apart, to);
      for (int b = 0; b < kBeside; ++b) to[b] += n * kRows;
    }
  };
  some(panel_times<Dot, kSteps, 12, 1, kBeside>, 12);
  some(panel_times<Dot, kSteps, 4, 2, kBeside>, 4);
  some(panel_times<Dot, kSteps, 1, 4, kBeside>, 1);
}

// `count` panels, one for each sum.
template <class Dot, int kSteps, class X>
void panels_by_two(const void *panels, int64_t count, const Lines<X> &x,
                   typename Dot::Acc *const *sums) {
  (count == 2 ? panels_times<Dot, kSteps, 2, X> : panels_times<Dot, kSteps, 1, X>)(panels, x, sums);
}

} // namespace
