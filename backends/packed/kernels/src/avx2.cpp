// AVX2, FMA and F16C: tables expand a tile, 256-bit registers multiply it.
#include "avx2_expand.h"
#include "avx2_few.h"
#include "avx2_lists.h"

namespace {

// kLines lines of x against a float panel; kSets sets of sums hide the latency of few lines.
template <int kLines, int kSets>
__attribute__((noinline)) void floats_times(const float *w, const float *x, float *sums) {
  __m256 low[kSets][kLines], high[kSets][kLines];
#pragma GCC unroll 8
  for (int m = 0; m < kLines; ++m) {
#pragma GCC unroll 8
    for (int s = 0; s < kSets; ++s) low[s][m] = high[s][m] = _mm256_setzero_ps();
  }
#pragma GCC unroll 1
  for (int k = 0; k < kCols; k += kSets) {
#pragma GCC unroll 8
    for (int s = 0; s < kSets; ++s) {
      const __m256 a = _mm256_load_ps(w + (k + s) * kRows);
      const __m256 b = _mm256_load_ps(w + (k + s) * kRows + 8);
#pragma GCC unroll 8
      for (int m = 0; m < kLines; ++m) {
        const __m256 each = _mm256_broadcast_ss(x + m * kCols + k + s);
        low[s][m] = _mm256_fmadd_ps(a, each, low[s][m]);
        high[s][m] = _mm256_fmadd_ps(b, each, high[s][m]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kLines; ++m) {
#pragma GCC unroll 8
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
__attribute__((noinline)) void codes_times(const int16_t *w, const int16_t *x, int32_t *sums) {
  __m256i low[kSets][kLines], high[kSets][kLines];
#pragma GCC unroll 8
  for (int m = 0; m < kLines; ++m) {
#pragma GCC unroll 8
    for (int s = 0; s < kSets; ++s) low[s][m] = high[s][m] = _mm256_setzero_si256();
  }
#pragma GCC unroll 1
  for (int k = 0; k < kCols; k += 2 * kSets) {
#pragma GCC unroll 8
    for (int s = 0; s < kSets; ++s) {
      const __m256i *at = (const __m256i *)(w + (k + 2 * s) * kRows);
      const __m256i a = _mm256_load_si256(at), b = _mm256_load_si256(at + 1);
#pragma GCC unroll 8
      for (int m = 0; m < kLines; ++m) {
        const __m256i each =
            _mm256_castps_si256(_mm256_broadcast_ss((const float *)(x + m * kCols + k + 2 * s)));
        low[s][m] = _mm256_add_epi32(low[s][m], _mm256_madd_epi16(a, each));
        high[s][m] = _mm256_add_epi32(high[s][m], _mm256_madd_epi16(b, each));
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kLines; ++m) {
#pragma GCC unroll 8
    for (int s = 1; s < kSets; ++s) {
      low[0][m] = _mm256_add_epi32(low[0][m], low[s][m]);
      high[0][m] = _mm256_add_epi32(high[0][m], high[s][m]);
    }
    __m256i *to = (__m256i *)(sums + m * kRows);
    _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), low[0][m]));
    _mm256_store_si256(to + 1, _mm256_add_epi32(_mm256_load_si256(to + 1), high[0][m]));
  }
}

// Few lines of x straight from mask and values, without a panel: what decoding a token runs. One
// line has sums of its own for odd columns, which hides the latency of its products.
template <bool kDense, int kLines>
const uint8_t *bf16_straight(const uint8_t *mask, const uint8_t *values, const float *x,
                             float *to) {
  __m256 sums[kLines + 1][2];
#pragma GCC unroll 8
  for (int m = 0; m <= kLines; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_ps();
#pragma GCC unroll 1
  for (int s = 0; s < 32; ++s, mask += kDense ? 0 : 4) {
    uint64_t at = 0;
    __m256 even[2], odd[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m128i a = next_pairs<kDense>(mask + 2 * h, values, at);
      const __m128i b = next_pairs<kDense>(mask + 2 * h + 1, values, at);
      even[h] = Bf16::even(join(a, b)), odd[h] = Bf16::odd(join(a, b));
    }
#pragma GCC unroll 8
    for (int m = 0; m < kLines; ++m) {
      const __m256 x0 = _mm256_broadcast_ss(x + m * kCols + 2 * s);
      const __m256 x1 = _mm256_broadcast_ss(x + m * kCols + 2 * s + 1);
      constexpr int kOther = kLines == 1;
      sums[m][0] = _mm256_fmadd_ps(even[0], x0, sums[m][0]);
      sums[m][1] = _mm256_fmadd_ps(even[1], x0, sums[m][1]);
      sums[m + kOther][0] = _mm256_fmadd_ps(odd[0], x1, sums[m + kOther][0]);
      sums[m + kOther][1] = _mm256_fmadd_ps(odd[1], x1, sums[m + kOther][1]);
    }
    values += 2 * at;
  }
  for (int h = 0; h < 2; ++h) {
    if (kLines == 1) sums[0][h] = _mm256_add_ps(sums[0][h], sums[1][h]);
#pragma GCC unroll 8
    for (int m = 0; m < kLines; ++m) {
      float *out = to + m * kRows + 8 * h;
      _mm256_store_ps(out, _mm256_add_ps(_mm256_load_ps(out), sums[m][h]));
    }
  }
  return values;
}

template <bool kDense, int kLines>
const uint8_t *fp32_straight(const uint8_t *mask, const uint8_t *values, const float *x,
                             float *to) {
  __m256 sums[kLines + 1][2];
#pragma GCC unroll 8
  for (int m = 0; m <= kLines; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_ps();
#pragma GCC unroll 1
  for (int k = 0; k < kCols; k += 2, mask += kDense ? 0 : 4) {
    uint64_t at = 0;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m256 low = next_words<kDense>(mask + 2 * i, values, at);
      const __m256 high = next_words<kDense>(mask + 2 * i + 1, values, at);
#pragma GCC unroll 8
      for (int m = 0; m < kLines; ++m) {
        const __m256 each = _mm256_broadcast_ss(x + m * kCols + k + i);
        const int other = kLines == 1 ? i : m;
        sums[other][0] = _mm256_fmadd_ps(low, each, sums[other][0]);
        sums[other][1] = _mm256_fmadd_ps(high, each, sums[other][1]);
      }
    }
    values += 4 * at;
  }
  for (int h = 0; h < 2; ++h) {
    if (kLines == 1) sums[0][h] = _mm256_add_ps(sums[0][h], sums[1][h]);
#pragma GCC unroll 8
    for (int m = 0; m < kLines; ++m) {
      float *out = to + m * kRows + 8 * h;
      _mm256_store_ps(out, _mm256_add_ps(_mm256_load_ps(out), sums[m][h]));
    }
  }
  return values;
}

inline __m256i broadcast_pair(const int16_t *x) {
  return _mm256_castps_si256(_mm256_broadcast_ss((const float *)x));
}

template <bool kDense, int kLines>
const uint8_t *int8_straight(const uint8_t *mask, const uint8_t *values, const int16_t *x,
                             int32_t *to) {
  __m256i sums[kLines][2];
#pragma GCC unroll 8
  for (int m = 0; m < kLines; ++m) sums[m][0] = sums[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
  for (int s = 0; s < 16; ++s, mask += kDense ? 0 : 8) {
    uint64_t at = 0;
    __m256i even[2], odd[2];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m128i a = next_bytes<kDense>(mask + 4 * h, values, at);
      const __m128i b = next_bytes<kDense>(mask + 4 * h + 2, values, at);
      const __m256i rows = join(a, b);
      even[h] = _mm256_srai_epi16(_mm256_slli_epi16(rows, 8), 8);
      odd[h] = _mm256_srai_epi16(rows, 8);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kLines; ++m) {
      const __m256i x0 = broadcast_pair(x + m * kCols + 4 * s);
      const __m256i x1 = broadcast_pair(x + m * kCols + 4 * s + 2);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m256i low = _mm256_madd_epi16(even[h], x0), high = _mm256_madd_epi16(odd[h], x1);
        sums[m][h] = _mm256_add_epi32(sums[m][h], _mm256_add_epi32(low, high));
      }
    }
    values += at;
  }
#pragma GCC unroll 8
  for (int m = 0; m < kLines; ++m)
    for (int h = 0; h < 2; ++h) {
      __m256i *out = (__m256i *)(to + m * kRows) + h;
      _mm256_store_si256(out, _mm256_add_epi32(_mm256_load_si256(out), sums[m][h]));
    }
  return values;
}

constexpr int64_t kFew = 4; // lines that go straight

#define SE_STRAIGHT(name, X, Sum)                                                                  \
  template <bool kDense>                                                                           \
  const uint8_t *name##_lines(const uint8_t *mask, const uint8_t *values, const X *x,              \
                              int64_t lines, Sum *sums) {                                          \
    if (lines == 1) return name##_straight<kDense, 1>(mask, values, x, sums);                      \
    if (lines == 2) return name##_straight<kDense, 2>(mask, values, x, sums);                      \
    if (lines == 3) return name##_straight<kDense, 3>(mask, values, x, sums);                      \
    return name##_straight<kDense, 4>(mask, values, x, sums);                                      \
  }
SE_STRAIGHT(bf16, float, float)
SE_STRAIGHT(fp32, float, float)
SE_STRAIGHT(int8, int16_t, int32_t)

struct Floats : FloatSums {
  static constexpr int64_t kDirect = kFew, kBeside = 1, kDeep = 1, kPanel = kPanelBytes;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return avx2_floats(value, mask, values, (float *)panel);
  }
  static const uint8_t *direct(int32_t value, const uint8_t *mask, const uint8_t *values,
                               const float *x, int64_t lines, float *sums) {
    const auto bf16 = mask ? bf16_lines<false> : bf16_lines<true>;
    const auto fp32 = mask ? fp32_lines<false> : fp32_lines<true>;
    if (value == SE_BF16) return bf16(mask, values, x, lines, sums);
    if (value == SE_FP32) return fp32(mask, values, x, lines, sums);
    alignas(64) float panel[kTile];
    values = expand(value, mask, values, panel);
    multiply(panel, 1, {x, lines, 1, 0}, &sums);
    return values;
  }
  static void multiply(const void *panel, int64_t, const Lines<float> &from, float *const *to) {
    const float *w = (const float *)panel, *x = from.data;
    float *sums = *to;
    int64_t lines = from.lines;
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
  static constexpr int64_t kDirect = kFew, kBeside = 1, kDeep = 1, kPanel = kPanelBytes;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return avx2_int16(value, mask, values, (int16_t *)panel);
  }
  static const uint8_t *direct(int32_t value, const uint8_t *mask, const uint8_t *values,
                               const int16_t *x, int64_t lines, int32_t *sums) {
    const auto straight = mask ? int8_lines<false> : int8_lines<true>;
    if (value == SE_INT8) return straight(mask, values, x, lines, sums);
    uint8_t codes[kNibbleRoom];
    const uint8_t *next = widen_nibbles(values, kept(mask), codes);
    straight(mask, codes, x, lines, sums);
    return next;
  }
  static void multiply(const void *panel, int64_t, const Lines<int16_t> &from,
                       int32_t *const *to) {
    const int16_t *w = (const int16_t *)panel, *x = from.data;
    int32_t *sums = *to;
    int64_t lines = from.lines;
    for (; lines >= 4; lines -= 4, x += 4 * kCols, sums += 4 * kRows)
      codes_times<4, 1>(w, x, sums);
    if (lines == 3) return codes_times<3, 1>(w, x, sums);
    if (lines == 2) return codes_times<2, 2>(w, x, sums);
    if (lines == 1) return codes_times<1, 4>(w, x, sums);
  }
};

// Dense weights and those of nearly no zeros go by panels.
Form form(const Weight &w, int64_t m, int32_t flags) {
  return w.strip || by_slots(w, m) ? sparse_form(w, m, flags) : usual_form(w, m, flags);
}

void run(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
         int64_t b1) {
  const auto lists = x.m <= 8 ? many_rows<ByHalves<1>> : many_rows<ByHalves<2>>;
  const auto way = lanes(x.form)       ? lists
                   : narrow(x.form)    ? few_rows_of_x
                   : integer(w.value) ? run_blocks<Codes>
                                      : run_blocks<Floats>;
  way(w, x, job, y_type, b0, b1);
}

} // namespace

const Kernels se::kAvx2 = {kLanes, form, prepare_rows, run, avx2_unpack};
