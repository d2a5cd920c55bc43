// x into the form a kernel reads; compiled once for each instruction set, hence no linkage.
#pragma once
#ifdef __AVX2__
#include <immintrin.h>
#endif
#include <string.h>

#include "core.h"

namespace {
using namespace se;

inline uint32_t bits_of(float value) {
  uint32_t raw;
  memcpy(&raw, &value, 4);
  return raw;
}

inline float float_of(uint32_t raw) {
  float value;
  memcpy(&value, &raw, 4);
  return value;
}

inline uint32_t to_bf16(float value) { // to nearest, ties to even; NaN stays NaN
  const uint32_t raw = bits_of(value), rounded = (raw + 0x7fff + (raw >> 16 & 1)) >> 16;
  return (raw & 0x7fffffff) > 0x7f800000 ? raw >> 16 | 0x40 : rounded;
}

// Columns [64 c, 64 c + 64) of row m in float32, zeros beyond the last.
inline void columns(const Source &from, int64_t cols, int64_t m, int64_t c, float *out) {
  const int64_t left = cols - c * kCols, n = left < kCols ? left : kCols;
  const int64_t at = m * from.ld + c * kCols;
  if (n < kCols) memset(out, 0, kCols * sizeof(float));
  if (from.type == SE_X_F32) {
    memcpy(out, (const float *)from.x + at, (size_t)n * sizeof(float));
    return;
  }
  const uint16_t *x = (const uint16_t *)from.x + at;
  for (int64_t i = 0; i < n; ++i) out[i] = float_of((uint32_t)x[i] << 16);
}

inline float largest(const Source &from, int64_t cols, int64_t m) {
  uint32_t found = 0;
  alignas(64) float x[kCols];
  for (int64_t c = 0; c * kCols < cols; ++c) {
    columns(from, cols, m, c, x);
    for (int i = 0; i < kCols; ++i) {
      const uint32_t raw = bits_of(x[i]) & 0x7fffffff;
      found = raw > found ? raw : found;
    }
  }
  return float_of(found);
}

constexpr float kMagic = 12582912.f; // 1.5 * 2^23: what is added to it is rounded to an integer
constexpr int32_t kMagicBits = 0x4b400000;

// Codes to nearest, ties to even. Out of range is clamped.
inline void codes(const float *x, float inverse, int32_t most, int32_t *out) {
  for (int i = 0; i < kCols; ++i) {
    const int32_t code = (int32_t)bits_of(x[i] * inverse + kMagic) - kMagicBits;
    out[i] = code > most ? most : code < -most ? -most : code;
  }
}

inline void store_codes(const Prepared &to, const int32_t *q, int64_t at) {
  if (to.form == kInt16) { // columns 0 2 1 3 of each four: what shifts of 16-bit lanes give
    int16_t *out = (int16_t *)to.data + at;
    for (int i = 0; i < kCols; i += 4)
      for (int j = 0; j < 4; ++j) out[i + (j == 1 ? 2 : j == 2 ? 1 : j)] = (int16_t)q[i + j];
    return;
  }
  uint8_t *out = (uint8_t *)to.data;
  if (to.form == kByte) {
    for (int i = 0; i < kCols; ++i) out[at + i] = (uint8_t)(q[i] + 128);
    return;
  }
  for (int i = 0; i < kCols; ++i) {
    out[2 * at + i] = (uint8_t)((uint32_t)(q[i] + 32768) >> 8);
    out[2 * at + kCols + i] = (uint8_t)(q[i] + 32768);
  }
}

inline void store_floats(const Prepared &to, const float *x, int64_t at) {
  if (to.form == kBf16) {
    uint16_t *out = (uint16_t *)to.data + at;
    for (int i = 0; i < kCols; ++i) out[i] = (uint16_t)to_bf16(x[i]);
    return;
  }
  float *out = (float *)to.data + at;
  if (to.form == kFloat) {
    memcpy(out, x, kCols * sizeof(float));
    return;
  }
  for (int i = 0; i < kCols; ++i) out[i] = float_of(to_bf16(x[i]) << 16);
}

inline void round_all(const float *x, float *out) {
  for (int i = 0; i < kCols; ++i) out[i] = float_of(to_bf16(x[i]) << 16);
}

// 64 columns in planes of bytes: codes as kHighPlane times a high byte plus a low one, both of at
// most 127. Words first and bytes of them then: loops that a compiler makes registers of.
inline void store_planes(const Prepared &to, const float *x, const int32_t *q, int64_t at) {
  uint8_t *out = (uint8_t *)to.data + at;
  const int64_t plane = to.tiles * kCols, planes = to.form == kPlanesFloat ? 4 : 2;
  alignas(64) uint32_t words[kCols];
  for (int i = 0; to.form == kPlanesFloat && i < kCols; ++i) words[i] = bits_of(x[i]);
  for (int i = 0; to.form == kPlanesBf16 && i < kCols; ++i) words[i] = to_bf16(x[i]);
  for (int i = 0; to.form == kPlanesCodes && i < kCols; ++i) {
    const float near = (float)q[i] * (1.f / kHighPlane) + kMagic;
    const int32_t high = (int32_t)bits_of(near) - kMagicBits, low = q[i] - kHighPlane * high;
    words[i] = ((uint32_t)high & 255) << 8 | ((uint32_t)low & 255);
  }
  for (int64_t p = 0; p < planes; ++p, out += plane)
    for (int i = 0; i < kCols; ++i) out[i] = (uint8_t)(words[i] >> (8 * p));
}

// 64 columns in plain rows.
inline void store_row(const Prepared &to, const float *x, const int32_t *q, int64_t at) {
  if (to.form == kRowByte) {
    int8_t *out = (int8_t *)to.data + at;
    for (int i = 0; i < kCols; ++i) out[i] = (int8_t)q[i];
  } else if (to.form == kRowInt16) {
    int16_t *out = (int16_t *)to.data + at;
    for (int i = 0; i < kCols; ++i) out[i] = (int16_t)q[i];
  } else if (to.form == kRowFloat) {
    memcpy((float *)to.data + at, x, kCols * sizeof(float));
  } else {
    round_all(x, (float *)to.data + at);
  }
}

inline void store_columns(const Prepared &to, const float *x, const int32_t *q, int64_t m,
                          int64_t c) {
  if (to.form >= kPlanesCodes)
    store_planes(to, x, q, c * kCols);
  else if (to.form >= kRowFloat)
    store_row(to, x, q, (m * to.tiles + c) * kCols);
  else if (coded(to.form))
    store_codes(to, q, (c * to.m + m) * kCols);
  else
    store_floats(to, x, (c * to.m + m) * kCols);
}

inline void scale_of(const Source &from, const Prepared &to, int64_t m, float &inverse) {
  const float top = coded(to.form) ? largest(from, to.cols, m) : 0.f;
  inverse = top > 0.f ? to.most / top : 0.f;
  to.scale[m] = coded(to.form) ? top / to.most : 1.f;
}

// 64 columns of 16 rows, one after the other, to 16 rows side by side: `to_next` floats from a column
// to the next.
inline void stand_side_by_side(const float (*rows)[kCols], float *out, int64_t to_next) {
#ifdef __AVX2__
  for (int64_t half = 0; half < kLanes; half += 8)
    for (int64_t k = 0; k < kCols; k += 8) {
      __m256 a[8], b[8];
      for (int i = 0; i < 8; ++i) a[i] = _mm256_load_ps(rows[half + i] + k);
      for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
      }
      for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
          a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
          a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
      for (int i = 0; i < 4; ++i) {
        const __m256 low = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
        const __m256 high = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
        _mm256_store_ps(out + (k + i) * to_next + half, low);
        _mm256_store_ps(out + (k + i + 4) * to_next + half, high);
      }
    }
#else
  for (int64_t k = 0; k < kCols; ++k)
    for (int64_t i = 0; i < kLanes; ++i) out[k * to_next + i] = rows[i][k];
#endif
}

// Rows [m0, m1), m0 a multiple of 16. Lanes without a row of x of their own are zeros.
inline void prepare_lanes(const Source &from, const Prepared &to, int64_t m0, int64_t m1) {
  alignas(64) float x[kCols], rows[kLanes][kCols];
  alignas(64) int32_t q[kCols];
  for (; m0 < m1; m0 += kLanes) {
    const int64_t count = m1 - m0 < kLanes ? m1 - m0 : kLanes;
    const int64_t chunk = m0 / to.side, wide = lanes_of(to.m, to.side, chunk);
    float *out = (float *)to.data + chunk * to.side * to.tiles * kCols + m0 % to.side;
    float inverse[kLanes];
    for (int64_t i = 0; i < count; ++i) scale_of(from, to, m0 + i, inverse[i]);
    memset(rows, 0, sizeof rows);
    for (int64_t c = 0; c < to.tiles; ++c, out += kCols * wide) {
      for (int64_t i = 0; i < count; ++i) {
        columns(from, to.cols, m0 + i, c, to.form == kLanesFloat ? rows[i] : x);
        if (to.form == kLanesFromBf16) round_all(x, rows[i]);
        if (to.form != kLanesCodes) continue;
        codes(x, inverse[i], (int32_t)to.most, q);
        for (int k = 0; k < kCols; ++k) rows[i][k] = (float)q[k];
      }
      stand_side_by_side(rows, out, wide);
    }
  }
}

inline void prepare_rows(const Source &from, const Prepared &to, int64_t m0, int64_t m1) {
  if (lanes(to.form)) return prepare_lanes(from, to, m0, m1);
  alignas(64) float x[kCols];
  alignas(64) int32_t q[kCols];
  for (int64_t m = m0; m < m1; ++m) {
    float inverse;
    scale_of(from, to, m, inverse);
    for (int64_t c = 0; c < to.tiles; ++c) {
      columns(from, to.cols, m, c, x);
      if (coded(to.form)) codes(x, inverse, (int32_t)to.most, q);
      store_columns(to, x, q, m, c);
    }
  }
}

} // namespace
