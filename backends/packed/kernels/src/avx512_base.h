// Steps of the 512-bit units with AVX-512 F, BW, VL and DQ alone.
#pragma once
#include "avx2_expand.h"
#include "avx512_panel.h"

namespace {

inline uint16_t mask_16(const uint8_t *mask) {
  uint16_t word;
  memcpy(&word, mask, 2);
  return word;
}

// 8 rows by 2 columns of 16-bit values, one to a 32-bit word (row 0 column 0, row 0 column 1, ...).
template <bool kDense> inline I16x next_half_step(const uint8_t *mask, const uint8_t *&values) {
  const I16x from = widen_u16(values);
  if (kDense) {
    values += 32;
    return from;
  }
  const uint16_t k = mask_16(mask);
  values += 2 * __builtin_popcount(k);
  return expand_32(k, from);
}

template <bool kDense, bool kHalf>
const uint8_t *pairs_to_panel(const uint8_t *mask, const uint8_t *values, float *out) {
  for (int s = 0; s < 32; ++s, mask += kDense ? 0 : 4, out += 32) {
    const I16x a = next_half_step<kDense>(mask, values);
    const I16x b = next_half_step<kDense>(mask + 2, values);
    const F16x low = kHalf ? half_to_f(a) : as_f(shift_up_16(a));
    const F16x high = kHalf ? half_to_f(b) : as_f(shift_up_16(b));
    store_f(out, evens(low, high));
    store_f(out + 16, odds(low, high));
  }
  return values;
}

template <bool kDense> inline F16x next_fp32(const uint8_t *mask, const uint8_t *&values) {
  const I16x from = load_i(values);
  const uint16_t k = kDense ? 0xffff : mask_16(mask);
  values += 4 * __builtin_popcount(k);
  return as_f(kDense ? from : expand_32(k, from));
}

template <bool kDense>
const uint8_t *floats_to_panel(int32_t value, const uint8_t *mask, const uint8_t *values,
                               float *out) {
  if (value == SE_BF16) return pairs_to_panel<kDense, false>(mask, values, out);
  if (value == SE_FP16) return pairs_to_panel<kDense, true>(mask, values, out);
  if (value != SE_FP32) return tile_to_floats<kDense>(value, mask, values, out);
  for (int k = 0; k < kCols; ++k, mask += kDense ? 0 : 2)
    store_f(out + k * kRows, next_fp32<kDense>(mask, values));
  return values;
}

inline const uint8_t *wide_floats(int32_t value, const uint8_t *mask, const uint8_t *values,
                                  float *out) {
  return (mask ? floats_to_panel<false> : floats_to_panel<true>)(value, mask, values, out);
}

inline const uint8_t *wide_unpack(int32_t value, const uint8_t *mask, const uint8_t *values,
                                  float *out) {
  alignas(64) float panel[kTile];
  const uint8_t *next = wide_floats(value, mask, values, panel);
  memcpy(out, panel, sizeof panel);
  return next;
}

struct WideFloats : FloatSums {
  static constexpr int64_t kDirect = 0, kBeside = 2, kDeep = 1, kPanel = 4096;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return wide_floats(value, mask, values, (float *)panel);
  }
  static const uint8_t *direct(int32_t, const uint8_t *, const uint8_t *values, const float *,
                               int64_t, float *) {
    return values;
  }
  static void multiply(const void *panels, int64_t count, const Lines<float> &x,
                       float *const *sums) {
    panels_by_two<FloatDot, 64>(panels, count, x, sums);
  }
};

struct WideCodes : Int16Sums {
  static constexpr int64_t kDirect = 0, kBeside = 2, kDeep = 4, kPanel = 2048;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return avx2_int16(value, mask, values, (int16_t *)panel);
  }
  static const uint8_t *direct(int32_t, const uint8_t *, const uint8_t *values, const int16_t *,
                               int64_t, int32_t *) {
    return values;
  }
  static void multiply(const void *panels, int64_t count, const Lines<int16_t> &x,
                       int32_t *const *sums) {
    panels_by_two<WordDot, 32>(panels, count, x, sums);
  }
};

} // namespace
