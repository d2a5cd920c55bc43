// M . (W + s B A), formed where tiles read it.
#pragma once
#include "masked_pack.h"

namespace {
using namespace se;

// A part of the weight, columns [k0, k0 + width) of rows [n0, n0 + count), about to be formed.
struct Piece {
  int64_t n0, count, k0, width;
  float *a;       // [rank, kChunk]: copied, for rows of A lie a power of two apart
  float *b;       // [count in tiles, rank, kRowsOfTile]: with the scale
  float *out;     // row n, column k: out[k / kWideTile * panel + n * ld + k % kWideTile]
  int64_t ld, panel;
};

void copy_a(const Formed &w, const Piece &p) {
  for (int64_t r = 0; r < w.rank; ++r) {
    float *to = p.a + r * kChunk;
    memcpy(to, w.a + r * w.in + p.k0, sizeof(float) * (size_t)p.width);
    for (int64_t i = p.width; i < up_to(p.width, kWideTile); ++i) to[i] = 0.f;
  }
}

void copy_b(const Formed &w, const Piece &p) {
  float *to = p.b;
  for (int64_t i = 0; i < p.count; i += kRowsOfTile)
    for (int64_t r = 0; r < w.rank; ++r)
      for (int64_t j = i; j < i + kRowsOfTile; ++j)
        *to++ = j < p.count ? w.scale * w.b[(p.n0 + j) * w.rank + r] : 0.f;
}

// One tile; `weight` and `kept` lie `ld` apart.
inline void form_tile(const float *weight, const uint8_t *kept, int64_t ld, const float *a,
                      const float *b, int64_t rank, float *out, int64_t ld_out) {
  Lanes sums[kRowsOfTile][2];
  SE_UNROLL for (int i = 0; i < kRowsOfTile; ++i)
    SE_UNROLL for (int v = 0; v < 2; ++v) sums[i][v] = load(weight + i * ld + v * kLanesWide);
  for (int64_t r = 0; r < rank; ++r, b += kRowsOfTile) {
    const Lanes low = load(a + r * kChunk), high = load(a + r * kChunk + kLanesWide);
    SE_UNROLL for (int i = 0; i < kRowsOfTile; ++i) {
      const Lanes each = all(b[i]);
      sums[i][0] = fma(each, low, sums[i][0]);
      sums[i][1] = fma(each, high, sums[i][1]);
    }
  }
  SE_UNROLL for (int i = 0; i < kRowsOfTile; ++i)
    SE_UNROLL for (int v = 0; v < 2; ++v)
      store(out + i * ld_out + v * kLanesWide,
            where(kept + i * ld + v * kLanesWide, sums[i][v]));
}

// The same at an edge: rows and columns that are not there are zeros.
void form_edge(const Formed &w, const Piece &p, int64_t i, int64_t k) {
  float weight[kRowsOfTile * kWideTile] = {}, out[kRowsOfTile * kWideTile];
  uint8_t kept[kRowsOfTile * kWideTile] = {};
  const int64_t rows = p.count - i < kRowsOfTile ? p.count - i : kRowsOfTile;
  const int64_t width = p.width - k < kWideTile ? p.width - k : kWideTile;
  for (int64_t j = 0; j < rows; ++j) {
    const int64_t at = (p.n0 + i + j) * w.in + p.k0 + k;
    memcpy(weight + j * kWideTile, w.weight + at, sizeof(float) * (size_t)width);
    memcpy(kept + j * kWideTile, w.kept + at, (size_t)width);
  }
  form_tile(weight, kept, kWideTile, p.a + k, p.b + i * w.rank, w.rank, out, kWideTile);
  for (int64_t j = 0; j < rows; ++j)
    memcpy(p.out + k / kWideTile * p.panel + (i + j) * p.ld, out + j * kWideTile,
           sizeof(float) * (size_t)kWideTile);
}

void form(const Formed &w, const Piece &p) {
  for (int64_t i = 0; i < p.count; i += kRowsOfTile)
    for (int64_t k = 0; k < p.width; k += kWideTile) {
      if (i + kRowsOfTile > p.count || k + kWideTile > p.width) {
        form_edge(w, p, i, k);
        continue;
      }
      const int64_t at = (p.n0 + i) * w.in + p.k0 + k;
      form_tile(w.weight + at, w.kept + at, w.in, p.a + k, p.b + i * w.rank, w.rank,
                p.out + k / kWideTile * p.panel + i * p.ld, p.ld);
    }
}

// What is formed next, in memory.
Ahead next(const Formed &w, int64_t n0, int64_t count, int64_t k0, int64_t width) {
  const int64_t rows = k0 >= w.in ? 0 : w.out - n0 < count ? w.out - n0 : count;
  const int64_t most = w.in - k0 < width ? w.in - k0 : width;
  return {(const char *)(w.weight + n0 * w.in + k0), w.in * 4, most * 4, rows};
}
Ahead next_kept(const Formed &w, int64_t n0, int64_t count, int64_t k0, int64_t width) {
  const Ahead all = next(w, n0, count, k0, width);
  return {(const char *)(w.kept + n0 * w.in + k0), w.in, all.width / 4, all.rows};
}

} // namespace
