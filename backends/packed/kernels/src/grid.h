// Tiles of the file with every value in its place: what other orders are made from.
#pragma once
#include <string.h>

#include "core.h"

namespace {
using namespace se;

constexpr int64_t kMostStrip = 4; // 256 columns of 16 rows of x in float32 are half an L1 cache

// A strip with every value in its place, and which of them are kept.
struct Grid {
  uint8_t kept[kRows][kMostStrip * kCols / 8];
  uint8_t values[kRows][kMostStrip * kCols][4];
};

// One tile of the file into columns [64 t, 64 t + 64) of the grid; returns the next tile's values.
inline const uint8_t *scatter(const Weight &w, const uint8_t *mask, const uint8_t *from, int64_t t,
                       Grid &grid) {
  const int64_t g = step(w.value), size = w.value == SE_INT4 ? 1 : 4 / g;
  int64_t found = 0;
  for (int64_t byte = 0; byte < kMaskBytes; ++byte)
    for (uint32_t left = mask[byte]; left; left &= left - 1, ++found) {
      const int64_t e = byte * 8 + __builtin_ctz(left);
      const int64_t r = e / g % kRows, k = e / (kRows * g) * g + e % g + t * kCols;
      grid.kept[r][k / 8] |= (uint8_t)(1 << k % 8);
      uint8_t *to = grid.values[r][k];
      if (w.value == SE_INT4)
        *to = from[found / 2] >> (found % 2 * 4) & 15;
      else
        memcpy(to, from + found * size, (size_t)size);
    }
  return from + bytes_of(w.value, found);
}

} // namespace
