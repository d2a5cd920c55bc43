// Steps of the 512-bit units with AVX-512 F, BW, VL and DQ alone.
#pragma once
#include "avx2_expand.h"
#include "vec512.h"

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

template <int kLines, int kSets>
__attribute__((noinline)) void wide_floats_times(const float *w, const float *x, float *to) {
  F16x sums[kSets][kLines];
#pragma GCC unroll 16
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 16
    for (int m = 0; m < kLines; ++m) sums[s][m] = zero_f();
#pragma GCC unroll 1
  for (int k = 0; k < kCols; k += kSets) {
#pragma GCC unroll 16
    for (int s = 0; s < kSets; ++s) {
      const F16x each = load_f(w + (k + s) * kRows);
#pragma GCC unroll 16
      for (int m = 0; m < kLines; ++m)
        sums[s][m] = fma_f(each, set1_f(x[m * kCols + k + s]), sums[s][m]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kLines; ++m) {
#pragma GCC unroll 16
    for (int s = 1; s < kSets; ++s) sums[0][m] = add_f(sums[0][m], sums[s][m]);
    store_f(to + m * kRows, add_f(load_f(to + m * kRows), sums[0][m]));
  }
}

inline int32_t word_at(const void *from) {
  int32_t word;
  memcpy(&word, from, 4);
  return word;
}

template <int kLines, int kSets>
__attribute__((noinline)) void wide_codes_times(const int16_t *w, const int16_t *x, int32_t *to) {
  I16x sums[kSets][kLines];
#pragma GCC unroll 16
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 16
    for (int m = 0; m < kLines; ++m) sums[s][m] = zero_i();
#pragma GCC unroll 1
  for (int k = 0; k < kCols; k += 2 * kSets) {
#pragma GCC unroll 16
    for (int s = 0; s < kSets; ++s) {
      const I16x each = load_i(w + (k + 2 * s) * kRows);
#pragma GCC unroll 16
      for (int m = 0; m < kLines; ++m) {
        const I16x pair = set1_i(word_at(x + m * kCols + k + 2 * s));
        sums[s][m] = add_i(sums[s][m], madd_i16(each, pair));
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kLines; ++m) {
#pragma GCC unroll 16
    for (int s = 1; s < kSets; ++s) sums[0][m] = add_i(sums[0][m], sums[s][m]);
    store_i(to + m * kRows, add_i(load_i(to + m * kRows), sums[0][m]));
  }
}

struct WideFloats : FloatSums {
  static constexpr int64_t kDirect = 0;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return wide_floats(value, mask, values, (float *)panel);
  }
  static const uint8_t *direct(int32_t, const uint8_t *, const uint8_t *values, const float *,
                               int64_t, float *) {
    return values;
  }
  static void multiply(const void *panel, const float *x, int64_t lines, float *sums) {
    const float *w = (const float *)panel;
    for (; lines >= 12; lines -= 12, x += 12 * kCols, sums += 12 * kRows)
      wide_floats_times<12, 1>(w, x, sums);
    for (; lines >= 4; lines -= 4, x += 4 * kCols, sums += 4 * kRows)
      wide_floats_times<4, 2>(w, x, sums);
    if (lines == 3) return wide_floats_times<3, 2>(w, x, sums);
    if (lines == 2) return wide_floats_times<2, 4>(w, x, sums);
    if (lines == 1) return wide_floats_times<1, 8>(w, x, sums);
  }
};

struct WideCodes : Int16Sums {
  static constexpr int64_t kDirect = 0;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return avx2_int16(value, mask, values, (int16_t *)panel);
  }
  static const uint8_t *direct(int32_t, const uint8_t *, const uint8_t *values, const int16_t *,
                               int64_t, int32_t *) {
    return values;
  }
  static void multiply(const void *panel, const int16_t *x, int64_t lines, int32_t *sums) {
    const int16_t *w = (const int16_t *)panel;
    for (; lines >= 12; lines -= 12, x += 12 * kCols, sums += 12 * kRows)
      wide_codes_times<12, 1>(w, x, sums);
    for (; lines >= 4; lines -= 4, x += 4 * kCols, sums += 4 * kRows)
      wide_codes_times<4, 1>(w, x, sums);
    if (lines == 3) return wide_codes_times<3, 2>(w, x, sums);
    if (lines == 2) return wide_codes_times<2, 4>(w, x, sums);
    if (lines == 1) return wide_codes_times<1, 4>(w, x, sums);
  }
};

} // namespace
