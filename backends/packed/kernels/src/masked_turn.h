// Square blocks of registers, turned: lane j of register i becomes lane i of register j.
#pragma once
#include "masked_tile.h"

namespace {

#if defined(__AVX512F__)
inline Lanes low_lanes(Lanes a, Lanes b) { return _mm512_unpacklo_ps(a, b); }
inline Lanes high_lanes(Lanes a, Lanes b) { return _mm512_unpackhi_ps(a, b); }
inline Lanes low_pairs(Lanes a, Lanes b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline Lanes high_pairs(Lanes a, Lanes b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
#elif defined(__AVX2__)
inline Lanes low_lanes(Lanes a, Lanes b) { return _mm256_unpacklo_ps(a, b); }
inline Lanes high_lanes(Lanes a, Lanes b) { return _mm256_unpackhi_ps(a, b); }
inline Lanes low_pairs(Lanes a, Lanes b) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
inline Lanes high_pairs(Lanes a, Lanes b) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
#endif

#if defined(__AVX2__)
// Four registers at a time, turned within each 128 bits: to[i + j] has lane 4q + j of x[i .. i + 3].
inline void turn_fours(const Lanes (&x)[kLanesWide], Lanes (&to)[kLanesWide]) {
  SE_UNROLL for (int i = 0; i < kLanesWide; i += 4) {
    const Lanes a = low_lanes(x[i], x[i + 1]), b = high_lanes(x[i], x[i + 1]);
    const Lanes c = low_lanes(x[i + 2], x[i + 3]), d = high_lanes(x[i + 2], x[i + 3]);
    to[i] = low_pairs(a, c), to[i + 1] = high_pairs(a, c);
    to[i + 2] = low_pairs(b, d), to[i + 3] = high_pairs(b, d);
  }
}
#endif

#if defined(__AVX512F__)
inline void transpose(Lanes (&x)[kLanesWide]) {
  Lanes r[kLanesWide];
  turn_fours(x, r);
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
  Lanes r[kLanesWide];
  turn_fours(x, r);
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
