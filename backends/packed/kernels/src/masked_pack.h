// Copies of x and dy in the order in which tiles read them.
#pragma once
#include "masked.h"
#include "masked_tile.h"

namespace {
using namespace se;

constexpr int64_t kBlockRows = whole(kBlock, kRowsOfTile);
constexpr int64_t kTerms = whole(kChunk, kRowsOfTile); // of a sum over rows of the weight

void pack_lines(const float *x, int64_t lines, int64_t width, Panels to, int64_t part) {
  const int64_t l0 = part % to.panels * kWideTile, k0 = part / to.panels * kChunk;
  const int64_t steps = width - k0 < kChunk ? width - k0 : kChunk;
  float *panel = to.data + part * kChunk * kWideTile;
  constexpr int64_t kLine = 16; // floats of a line of the cache
  for (int64_t k = 0; k < steps; k += kLine) {
    const int64_t most = steps - k < kLine ? steps - k : kLine;
    for (int64_t l = 0; l < kWideTile; ++l) {
      const float *from = x + (l0 + l) * width + k0 + k;
      float *at = panel + k * kWideTile + l;
      if (l0 + l < lines)
        for (int64_t i = 0; i < most; ++i) at[i * kWideTile] = from[i];
      else
        for (int64_t i = 0; i < most; ++i) at[i * kWideTile] = 0.f;
    }
  }
}

void pack_columns(const float *x, int64_t lines, int64_t width, Panels to, int64_t part) {
  const int64_t k0 = part % to.panels * kWideTile, t0 = part / to.panels * kChunk;
  const int64_t steps = lines - t0 < kChunk ? lines - t0 : kChunk;
  const int64_t most = width - k0 < kWideTile ? width - k0 : kWideTile;
  float *panel = to.data + part * kChunk * kWideTile;
  for (int64_t t = 0; t < steps; ++t, panel += kWideTile) {
    memcpy(panel, x + (t0 + t) * width + k0, sizeof(float) * (size_t)most);
    for (int64_t i = most; i < kWideTile; ++i) panel[i] = 0.f;
  }
}

void pack_rows(const float *x, int64_t lines, int64_t width, float *to, int64_t part) {
  const int64_t k0 = part * kTerms, most = width - k0 < kTerms ? width - k0 : kTerms;
  to += part * up_to(lines, kRowsOfTile) * kChunk;
  for (int64_t t = 0; t < lines; ++t)
    memcpy(to + t * kChunk, x + t * width + k0, sizeof(float) * (size_t)most);
}

// to [tokens, ld] from what was summed line by line: [lines, padded].
void write_lines(const float *sums, int64_t padded, int64_t lines, int64_t tokens, float *to,
                 int64_t ld) {
  for (int64_t i = 0; i < lines; i += 16) // a line of the cache
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t j = i; j < lines && j < i + 16; ++j) to[t * ld + j] = sums[j * padded + t];
}

// Of dy [tokens, out] columns [n0, n0 + count), to be spread: [tiles, tokens, kRowsOfTile].
void pack_dy(const float *dy, int64_t out, int64_t tokens, int64_t n0, int64_t count, float *to) {
  for (int64_t i = 0; i < count; i += kRowsOfTile) {
    const int64_t most = count - i < kRowsOfTile ? count - i : kRowsOfTile;
    for (int64_t t = 0; t < tokens; ++t, to += kRowsOfTile) {
      const float *from = dy + t * out + n0 + i;
      if (most == kRowsOfTile) {
        memcpy(to, from, sizeof(float) * kRowsOfTile);
        continue;
      }
      memcpy(to, from, sizeof(float) * (size_t)most);
      for (int64_t j = most; j < kRowsOfTile; ++j) to[j] = 0.f;
    }
  }
}

} // namespace
