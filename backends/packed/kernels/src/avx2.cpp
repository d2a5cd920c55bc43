// AVX2, FMA and F16C: tables expand a tile, 256-bit registers multiply it.
#include "avx2_expand.h"

namespace {

// kLines lines of x against a float panel; kSets sets of sums hide the latency of few lines.
template <int kLines, int kSets> void floats_times(const float *w, const float *x, float *sums) {
  __m256 low[kSets][kLines], high[kSets][kLines];
  for (int m = 0; m < kLines; ++m) {
    for (int s = 0; s < kSets; ++s) low[s][m] = high[s][m] = _mm256_setzero_ps();
  }
  for (int k = 0; k < kCols; k += kSets)
    for (int s = 0; s < kSets; ++s) {
      const __m256 a = _mm256_load_ps(w + (k + s) * kRows);
      const __m256 b = _mm256_load_ps(w + (k + s) * kRows + 8);
      for (int m = 0; m < kLines; ++m) {
        const __m256 each = _mm256_broadcast_ss(x + m * kCols + k + s);
        low[s][m] = _mm256_fmadd_ps(a, each, low[s][m]);
        high[s][m] = _mm256_fmadd_ps(b, each, high[s][m]);
      }
    }
  for (int m = 0; m < kLines; ++m) {
    for (int s = 1; s < kSets; ++s) {
      low[0][m] = _mm256_add_ps(low[0][m], low[s][m]);
      high[0][m] = _mm256_add_ps(high[0][m], high[s][m]);
    }
    float *to = sums + m * kRows;
    _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), low[0][m]));
    _mm256_store_ps(to + 8, _mm256_add_ps(_mm256_load_ps(to + 8), high[0][m]));
  }
}

// The same for codes: pairs of columns, products of 16 bits, sums of 32.
template <int kLines, int kSets>
void codes_times(const int16_t *w, const int16_t *x, int32_t *sums) {
  __m256i low[kSets][kLines], high[kSets][kLines];
  for (int m = 0; m < kLines; ++m) {
    for (int s = 0; s < kSets; ++s) low[s][m] = high[s][m] = _mm256_setzero_si256();
  }
  for (int k = 0; k < kCols; k += 2 * kSets)
    for (int s = 0; s < kSets; ++s) {
      const __m256i *at = (const __m256i *)(w + (k + 2 * s) * kRows);
      const __m256i a = _mm256_load_si256(at), b = _mm256_load_si256(at + 1);
      for (int m = 0; m < kLines; ++m) {
        const __m256i each =
            _mm256_castps_si256(_mm256_broadcast_ss((const float *)(x + m * kCols + k + 2 * s)));
        low[s][m] = _mm256_add_epi32(low[s][m], _mm256_madd_epi16(a, each));
        high[s][m] = _mm256_add_epi32(high[s][m], _mm256_madd_epi16(b, each));
      }
    }
  for (int m = 0; m < kLines; ++m) {
    for (int s = 1; s < kSets; ++s) {
      low[0][m] = _mm256_add_epi32(low[0][m], low[s][m]);
      high[0][m] = _mm256_add_epi32(high[0][m], high[s][m]);
    }
    __m256i *to = (__m256i *)(sums + m * kRows);
    _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), low[0][m]));
    _mm256_store_si256(to + 1, _mm256_add_epi32(_mm256_load_si256(to + 1), high[0][m]));
  }
}

// One line of x straight from mask and values, without a panel: what decoding one token runs.
template <bool kDense>
const uint8_t *bf16_straight(const uint8_t *mask, const uint8_t *values, const float *x,
                             float *sums) {
  __m256 even[2], odd[2];
  for (int h = 0; h < 2; ++h) even[h] = odd[h] = _mm256_setzero_ps();
#pragma GCC unroll 2
  for (int s = 0; s < 32; ++s, mask += kDense ? 0 : 4) {
    const __m256 x0 = _mm256_broadcast_ss(x + 2 * s), x1 = _mm256_broadcast_ss(x + 2 * s + 1);
    for (int h = 0; h < 2; ++h) {
      const __m128i a = next_pairs<kDense>(mask + 2 * h, values);
      const __m128i b = next_pairs<kDense>(mask + 2 * h + 1, values);
      const __m256i rows = join(a, b);
      even[h] = _mm256_fmadd_ps(Bf16::even(rows), x0, even[h]);
      odd[h] = _mm256_fmadd_ps(Bf16::odd(rows), x1, odd[h]);
    }
  }
  for (int h = 0; h < 2; ++h) {
    float *to = sums + 8 * h;
    _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), _mm256_add_ps(even[h], odd[h])));
  }
  return values;
}

template <bool kDense>
const uint8_t *fp32_straight(const uint8_t *mask, const uint8_t *values, const float *x,
                             float *sums) {
  __m256 all[4];
  for (int h = 0; h < 4; ++h) all[h] = _mm256_setzero_ps();
#pragma GCC unroll 2
  for (int k = 0; k < kCols; k += 2, mask += kDense ? 0 : 4)
    for (int h = 0; h < 4; ++h) {
      const __m256 w = next_words<kDense>(mask + h, values);
      all[h] = _mm256_fmadd_ps(w, _mm256_broadcast_ss(x + k + h / 2), all[h]);
    }
  for (int h = 0; h < 2; ++h) {
    float *to = sums + 8 * h;
    _mm256_store_ps(to, _mm256_add_ps(_mm256_load_ps(to), _mm256_add_ps(all[h], all[h + 2])));
  }
  return values;
}

template <bool kDense>
const uint8_t *int8_straight(const uint8_t *mask, const uint8_t *values, const int16_t *x,
                             int32_t *sums) {
  __m256i even[2], odd[2];
  for (int h = 0; h < 2; ++h) even[h] = odd[h] = _mm256_setzero_si256();
  for (int s = 0; s < 16; ++s, mask += kDense ? 0 : 8) {
    const __m256i x0 = _mm256_castps_si256(_mm256_broadcast_ss((const float *)(x + 4 * s)));
    const __m256i x1 = _mm256_castps_si256(_mm256_broadcast_ss((const float *)(x + 4 * s + 2)));
    for (int h = 0; h < 2; ++h) {
      const __m128i a = next_bytes<kDense>(mask + 4 * h, values);
      const __m128i b = next_bytes<kDense>(mask + 4 * h + 2, values);
      const __m256i rows = join(a, b);
      const __m256i w0 = _mm256_srai_epi16(_mm256_slli_epi16(rows, 8), 8);
      const __m256i w1 = _mm256_srai_epi16(rows, 8);
      even[h] = _mm256_add_epi32(even[h], _mm256_madd_epi16(w0, x0));
      odd[h] = _mm256_add_epi32(odd[h], _mm256_madd_epi16(w1, x1));
    }
  }
  for (int h = 0; h < 2; ++h) {
    __m256i *to = (__m256i *)sums + h;
    const __m256i found = _mm256_add_epi32(even[h], odd[h]);
    _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), found));
  }
  return values;
}

struct Floats : FloatSums {
  static constexpr int64_t kDirect = 1;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return avx2_floats(value, mask, values, (float *)panel);
  }
  static const uint8_t *direct(int32_t value, const uint8_t *mask, const uint8_t *values,
                               const float *x, int64_t, float *sums) {
    if (value == SE_BF16)
      return (mask ? bf16_straight<false> : bf16_straight<true>)(mask, values, x, sums);
    if (value == SE_FP32)
      return (mask ? fp32_straight<false> : fp32_straight<true>)(mask, values, x, sums);
    alignas(64) float panel[kTile];
    values = expand(value, mask, values, panel);
    floats_times<1, 4>(panel, x, sums);
    return values;
  }
  static void multiply(const void *panel, const float *x, int64_t lines, float *sums) {
    const float *w = (const float *)panel;
    for (; lines >= 6; lines -= 6, x += 6 * kCols, sums += 6 * kRows)
      floats_times<6, 1>(w, x, sums);
    if (lines == 5) return floats_times<5, 1>(w, x, sums);
    if (lines == 4) return floats_times<4, 1>(w, x, sums);
    if (lines == 3) return floats_times<3, 2>(w, x, sums);
    if (lines == 2) return floats_times<2, 2>(w, x, sums);
    if (lines == 1) return floats_times<1, 4>(w, x, sums);
  }
};

struct Codes : Int16Sums {
  static constexpr int64_t kDirect = 1;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return avx2_int16(value, mask, values, (int16_t *)panel);
  }
  static const uint8_t *direct(int32_t value, const uint8_t *mask, const uint8_t *values,
                               const int16_t *x, int64_t, int32_t *sums) {
    const auto straight = mask ? int8_straight<false> : int8_straight<true>;
    if (value == SE_INT8) return straight(mask, values, x, sums);
    uint8_t codes[kNibbleRoom];
    const uint8_t *next = widen_nibbles(values, kept(mask), codes);
    straight(mask, codes, x, sums);
    return next;
  }
  static void multiply(const void *panel, const int16_t *x, int64_t lines, int32_t *sums) {
    const int16_t *w = (const int16_t *)panel;
    for (; lines >= 5; lines -= 5, x += 5 * kCols, sums += 5 * kRows)
      codes_times<5, 1>(w, x, sums);
    if (lines == 4) return codes_times<4, 1>(w, x, sums);
    if (lines == 3) return codes_times<3, 1>(w, x, sums);
    if (lines == 2) return codes_times<2, 2>(w, x, sums);
    if (lines == 1) return codes_times<1, 4>(w, x, sums);
  }
};

void run(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
         int64_t b1) {
  (integer(w.value) ? run_blocks<Codes> : run_blocks<Floats>)(w, x, job, y_type, b0, b1);
}

} // namespace

const Kernels se::kAvx2 = {usual_form, prepare_rows, run, avx2_unpack};
