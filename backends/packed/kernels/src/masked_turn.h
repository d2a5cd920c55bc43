// Square blocks of registers, turned: lane j of register i becomes lane i of register j.
#pragma once
#include "masked_tile.h"

namespace {

#if defined(__AVX512F__)
inline void transpose(Lanes (&x)[kLanesWide]) {
  Lanes t[16], r[16];
  SE_UNROLL for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  SE_UNROLL for (int i = 0; i < 16; i += 4) SE_UNROLL for (int j = 0; j < 2; ++j) {
    const __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
    r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
    r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  }
  SE_UNROLL for (int i = 0; i < 4; ++i) {
    const Lanes a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    const Lanes b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    const Lanes c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    const Lanes d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    x[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    x[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    x[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    x[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}
#elif defined(__AVX2__)
inline void transpose(Lanes (&x)[kLanesWide]) {
  Lanes t[8], r[8];
  SE_UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  SE_UNROLL for (int i = 0; i < 8; i += 4) SE_UNROLL for (int j = 0; j < 2; ++j) {
    const __m256d a = _mm256_castps_pd(t[i + j]), b = _mm256_castps_pd(t[i + j + 2]);
    r[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
    r[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
  }
  SE_UNROLL for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
}
#else
inline void transpose(Lanes (&x)[kLanesWide]) {
  for (int i = 0; i < kLanesWide; ++i)
    for (int j = 0; j < i; ++j) {
      const float other = x[i][j];
      x[i][j] = x[j][i];
      x[j][i] = other;
    }
}
#endif

} // namespace
