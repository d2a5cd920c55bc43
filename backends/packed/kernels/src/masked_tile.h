// One tile of a product: rows that are spread over registers, times lanes of a panel.
#pragma once
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#include "masked.h"

#define SE_UNROLL _Pragma("GCC unroll 16")

namespace {

// Of 100 weights, how many may be kept for lists to win (masked_lists.h): for products with the
// weight, and for its gradient. Measured on Ice Lake, AVX2 too.
using se::Listed;

#if defined(__AVX512F__)
typedef __m512 Lanes;
constexpr int64_t kLanesWide = 16, kRowsOfTile = 14, kRowsOfRest = 4;
constexpr Listed kListed = {42, 36};
inline Lanes load(const float *from) { return _mm512_loadu_ps(from); }
inline void store(float *to, Lanes x) { _mm512_storeu_ps(to, x); }
inline Lanes all(float x) { return _mm512_set1_ps(x); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline Lanes where(const uint8_t *kept, Lanes x) {
  const __m128i bytes = _mm_loadu_si128((const __m128i *)kept);
  return _mm512_maskz_mov_ps(_mm_test_epi8_mask(bytes, bytes), x);
}
#elif defined(__AVX2__)
typedef __m256 Lanes;
constexpr int64_t kLanesWide = 8, kRowsOfTile = 6, kRowsOfRest = 2;
constexpr Listed kListed = {52, 24};
inline Lanes load(const float *from) { return _mm256_loadu_ps(from); }
inline void store(float *to, Lanes x) { _mm256_storeu_ps(to, x); }
inline Lanes all(float x) { return _mm256_set1_ps(x); }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
inline Lanes where(const uint8_t *kept, Lanes x) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)kept));
  const __m256i none = _mm256_cmpeq_epi32(bytes, _mm256_setzero_si256());
  return _mm256_andnot_ps(_mm256_castsi256_ps(none), x);
}
#else
typedef float Lanes __attribute__((vector_size(16)));
constexpr int64_t kLanesWide = 4, kRowsOfTile = 6, kRowsOfRest = 2;
constexpr Listed kListed = {0, 0};
inline Lanes load(const float *from) {
  Lanes found;
  memcpy(&found, from, sizeof found);
  return found;
}
inline void store(float *to, Lanes x) { memcpy(to, &x, sizeof x); }
inline Lanes all(float x) { return Lanes{x, x, x, x}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return a * b + c; }
inline Lanes where(const uint8_t *kept, Lanes x) {
  for (int i = 0; i < 4; ++i) x[i] = kept[i] ? x[i] : 0.f;
  return x;
}
#endif
constexpr int64_t kWideTile = 2 * kLanesWide;

// What is spread over registers: row i of step k at data[i / kRowsOfTile * next + i % kRowsOfTile *
// kApart + k * step]. Memory up to a whole tile can be read.
struct Spread {
  int64_t rows;
  const float *data;
  int64_t step, next;
};
struct Panel {
  const float *data;
  int64_t ld, steps;
};
struct Into { // [rows, lanes]; memory up to a whole tile can be written
  float *data;
  int64_t ld;
  bool add;
};

// Memory that will be read soon, asked for a line at a time beside the sums of the tiles: `width`
// bytes of each of `rows` rows.
struct Ahead {
  const char *data;
  int64_t ld, width, rows;
  int64_t row = 0, at = 0;
  void next() {
    if (row >= rows) return;
    __builtin_prefetch(data + row * ld + at, 0, 2);
    at += 64;
    if (at >= width) at = 0, ++row;
  }
};

constexpr int64_t kStride = 8; // steps of a tile from one line ahead to the next

template <int kRows, int kLanes, int kApart>
inline __attribute__((always_inline)) void steps(const float *&from, int64_t step, Panel &p,
                                                 int64_t count, Lanes (&sums)[kRows][kLanes]) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < count; ++k) {
    Lanes lanes[kLanes];
    SE_UNROLL for (int v = 0; v < kLanes; ++v) lanes[v] = load(p.data + v * kLanesWide);
    SE_UNROLL for (int i = 0; i < kRows; ++i) {
      const Lanes each = all(from[i * kApart]);
      SE_UNROLL for (int v = 0; v < kLanes; ++v) sums[i][v] = fma(each, lanes[v], sums[i][v]);
    }
    p.data += p.ld;
    from += step;
  }
}

template <int kRows, int kLanes, int kApart>
__attribute__((noinline)) void tile(const float *from, int64_t step, Panel p, Into to,
                                    Ahead &ahead) {
  Lanes sums[kRows][kLanes];
  SE_UNROLL for (int i = 0; i < kRows; ++i)
    SE_UNROLL for (int v = 0; v < kLanes; ++v)
      sums[i][v] = to.add ? load(to.data + i * to.ld + v * kLanesWide) : all(0.f);
  int64_t k = 0;
  for (; k + kStride <= p.steps; k += kStride) {
    ahead.next();
    steps<kRows, kLanes, kApart>(from, step, p, kStride, sums);
  }
  steps<kRows, kLanes, kApart>(from, step, p, p.steps - k, sums);
  SE_UNROLL for (int i = 0; i < kRows; ++i)
    SE_UNROLL for (int v = 0; v < kLanes; ++v)
      store(to.data + i * to.ld + v * kLanesWide, sums[i][v]);
}

// All rows by one panel.
template <int kLanes, int kApart>
void multiply(Spread from, Panel p, Into to, Ahead &ahead) {
  int64_t i = 0;
  const float *at = from.data;
  // A few rows that are left take small tiles; many, a whole one with rows of padding.
  for (; from.rows - i > kRowsOfTile - kRowsOfRest; i += kRowsOfTile, at += from.next) {
    tile<kRowsOfTile, kLanes, kApart>(at, from.step, p, to, ahead);
    to.data += kRowsOfTile * to.ld;
  }
  for (; i < from.rows; i += kRowsOfRest, at += kRowsOfRest * kApart) {
    tile<kRowsOfRest, kLanes, kApart>(at, from.step, p, to, ahead);
    to.data += kRowsOfRest * to.ld;
  }
}

} // namespace
