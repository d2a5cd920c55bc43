// x into the form a kernel reads; compiled once for each instruction set, hence no linkage.
#pragma once
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

inline float half(uint32_t raw) {
  const uint32_t sign = (raw & 0x8000) << 16, exponent = raw >> 10 & 31, fraction = raw & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
  if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = (float)fraction * (1.f / 16777216);
  return sign ? -small : small;
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

// Codes to nearest, ties to even: 1.5 * 2^23 leaves no fraction bits. Out of range is clamped.
inline void codes(const float *x, float inverse, int32_t most, int32_t *out) {
  constexpr float kMagic = 12582912.f;
  for (int i = 0; i < kCols; ++i) {
    const int32_t code = (int32_t)bits_of(x[i] * inverse + kMagic) - 0x4b400000;
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

inline void prepare_rows(const Source &from, const Prepared &to, int64_t m0, int64_t m1) {
  const bool integers = to.form == kInt16 || to.form == kByte || to.form == kTwoBytes;
  alignas(64) float x[kCols];
  alignas(64) int32_t q[kCols];
  for (int64_t m = m0; m < m1; ++m) {
    const float top = integers ? largest(from, to.cols, m) : 0.f;
    const float inverse = top > 0.f ? to.most / top : 0.f;
    to.scale[m] = integers ? top / to.most : 1.f;
    for (int64_t c = 0; c < to.tiles; ++c) {
      columns(from, to.cols, m, c, x);
      if (integers) {
        codes(x, inverse, (int32_t)to.most, q);
        store_codes(to, q, (c * to.m + m) * kCols);
      } else {
        store_floats(to, x, (c * to.m + m) * kCols);
      }
    }
  }
}

} // namespace
