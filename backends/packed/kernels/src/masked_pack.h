// Copies of x and dy in the order in which tiles read them.
#pragma once
#include "masked.h"
#include "masked_turn.h"

namespace {
using namespace se;

constexpr int64_t kBlockRows = whole(kBlock, kRowsOfTile);
constexpr int64_t kTerms = whole(kChunk, kRowsOfTile); // of a sum over rows of the weight

// kLanesWide lines of as many columns, side by side; `lines` and `steps` of them are there, the
// others are zeros.
void turn_block(const float *from, int64_t width, int64_t lines, int64_t steps, float *to) {
  Lanes x[kLanesWide];
  if (lines >= kLanesWide && steps >= kLanesWide) {
    SE_UNROLL for (int i = 0; i < kLanesWide; ++i) x[i] = load(from + i * width);
  } else {
    SE_UNROLL for (int i = 0; i < kLanesWide; ++i) {
      float line[kLanesWide] = {};
      const int64_t most = steps < kLanesWide ? steps : kLanesWide;
      if (i < lines) memcpy(line, from + i * width, sizeof(float) * (size_t)most);
      x[i] = load(line);
    }
  }
  transpose(x);
  SE_UNROLL for (int i = 0; i < kLanesWide; ++i)
    if (i < steps) store(to + i * kWideTile, x[i]);
}

void pack_lines(const float *x, int64_t lines, int64_t width, Panels to, int64_t part) {
  const int64_t l0 = part % to.panels * kWideTile, k0 = part / to.panels * kChunk;
  const int64_t steps = width - k0 < kChunk ? width - k0 : kChunk;
  float *panel = to.data + part * kChunk * kWideTile;
  for (int64_t k = 0; k < steps; k += kLanesWide)
    for (int64_t l = 0; l < kWideTile; l += kLanesWide)
      turn_block(x + (l0 + l) * width + k0 + k, width, lines - l0 - l, steps - k,
                 panel + k * kWideTile + l);
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
  for (int64_t i = 0; i < lines; i += kLanesWide)
    for (int64_t t = 0; t < tokens; t += kLanesWide) {
      const float *from = sums + i * padded + t;
      float *at = to + t * ld + i;
      if (lines - i >= kLanesWide && tokens - t >= kLanesWide) {
        Lanes x[kLanesWide];
        SE_UNROLL for (int j = 0; j < kLanesWide; ++j) x[j] = load(from + j * padded);
        transpose(x);
        SE_UNROLL for (int j = 0; j < kLanesWide; ++j) store(at + j * ld, x[j]);
        continue;
      }
      for (int64_t u = 0; u < tokens - t && u < kLanesWide; ++u)
        for (int64_t j = 0; j < lines - i && j < kLanesWide; ++j)
          at[u * ld + j] = from[j * padded + u];
    }
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
