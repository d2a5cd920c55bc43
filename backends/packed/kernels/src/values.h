// One stored value as a float, in plain C++.
#pragma once
#include "prepare.h"

namespace {

inline float half(uint32_t raw) {
  const uint32_t sign = (raw & 0x8000) << 16, exponent = raw >> 10 & 31, fraction = raw & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
  if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = (float)fraction * (1.f / 16777216);
  return sign ? -small : small;
}

inline float e4m3(uint32_t raw) { // the 7 low bits are those of a half with another bias: 2^8 apart
  if ((raw & 127) == 127) return float_of(0x7fc00000);
  return half((raw & 128) << 8 | (raw & 127) << 7) * 256.f;
}

inline int32_t nibble(uint32_t code) { return (int32_t)(code ^ 8) - 8; }

// Value number i of a tile's stream.
inline float value_at(int32_t value, const uint8_t *values, int64_t i) {
  uint16_t two;
  uint32_t four;
  switch (value) {
  case SE_BF16:
    memcpy(&two, values + 2 * i, 2);
    return float_of((uint32_t)two << 16);
  case SE_FP16:
    memcpy(&two, values + 2 * i, 2);
    return half(two);
  case SE_FP32:
    memcpy(&four, values + 4 * i, 4);
    return float_of(four);
  case SE_INT8:
    return (float)(int8_t)values[i];
  case SE_INT4:
    return (float)nibble(values[i / 2] >> (i % 2 * 4) & 15u);
  default:
    return e4m3(values[i]);
  }
}

} // namespace
