// Few rows of x against strips: each row of a strip expands 16 or 32 columns at a time.
#pragma once
#include "rows.h"
#include "table.h"

namespace {

constexpr int64_t kFewRows = 4; // rows of x that go this way
constexpr int64_t kAcross = 8;  // sums of one row of the weight, added up at the end

template <int kFixed> inline uint64_t count(uint64_t bits) {
  return kFixed ? kFixed : (uint64_t)_mm_popcnt_u64(bits);
}

// 16 columns of 16-bit values by 2 bytes of mask.
template <int kFixed>
inline __m256i expand_16_pairs(const uint8_t *mask, const uint8_t *values, uint64_t &at) {
  const uint64_t a = mask[0], b = mask[1];
  const __m128i low = _mm_loadu_si128((const __m128i *)(values + 2 * at));
  at += count<kFixed>(a);
  const __m128i high = _mm_loadu_si128((const __m128i *)(values + 2 * at));
  at += count<kFixed>(b);
  const __m128i *table = (const __m128i *)kPairs.pairs;
  return join(_mm_shuffle_epi8(low, _mm_load_si128(table + a)),
              _mm_shuffle_epi8(high, _mm_load_si128(table + b)));
}

struct RaiseTable { // entry n adds n to the numbers of the values of the high half; zeros stay zeros
  alignas(64) uint64_t by[9][2];
  constexpr RaiseTable() : by() {
    for (uint64_t n = 0; n < 9; ++n) by[n][1] = n * 0x0101010101010101ull;
  }
};
constexpr RaiseTable kRaise;

// 16 columns of 8-bit values by 2 bytes of mask: one load, since they are 16 values at most.
template <int kFixed>
inline __m128i expand_16_bytes(const uint8_t *mask, const uint8_t *values, uint64_t &at) {
  const uint64_t a = mask[0], b = mask[1];
  const __m128i from = _mm_loadu_si128((const __m128i *)(values + at));
  const __m128d low = _mm_castsi128_pd(_mm_loadl_epi64((const __m128i *)&kBytes.low[a]));
  __m128i moves = _mm_castpd_si128(_mm_loadh_pd(low, (const double *)&kBytes.low[b]));
  const uint64_t first = count<kFixed>(a);
  moves = _mm_add_epi8(moves, _mm_load_si128((const __m128i *)kRaise.by[first]));
  at += first + count<kFixed>(b);
  return _mm_shuffle_epi8(from, moves);
}

// A way of multiplying: types of x and sums, columns of a step, and the step itself, which adds to
// sums [lines, 2] the products with x at the same columns of each line.
// Entry b: shuffles that put 8 columns of 16-bit values, present in both halves of a register, into
// the upper halves of 32-bit words: floats at once.
struct FloatTable {
  alignas(64) uint64_t words[256][4];
  constexpr FloatTable() : words() {
    for (int b = 0; b < 256; ++b)
      for (int i = 0, found = 0; i < 8; ++i) {
        const bool kept = b >> i & 1;
        const uint64_t at =
            kept ? 0x8080u | (uint64_t)(2 * found) << 16 | (uint64_t)(2 * found + 1) << 24
                 : 0x80808080u;
        words[b][i / 2] |= at << (32 * (i % 2));
        found += kept;
      }
  }
};
constexpr FloatTable kFloats;

template <int kFixed>
inline __m256 expand_8_bf16(const uint8_t *mask, const uint8_t *values, uint64_t &at) {
  const uint64_t byte = *mask;
  const __m128i both = _mm_loadu_si128((const __m128i *)(values + 2 * at));
  const __m256i from = _mm256_broadcastsi128_si256(both);
  at += count<kFixed>(byte);
  const __m256i moves = _mm256_load_si256((const __m256i *)kFloats.words[byte]);
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(from, moves));
}

template <int kFixed> struct RowBf16 {
  typedef float X;
  typedef __m256 Acc;
  static constexpr int kStep = 16, kSize = 2;
  template <int kLines>
  static void add(const uint8_t *mask, const uint8_t *values, uint64_t &at, const float *x,
                  int64_t ld, __m256 (*sums)[2]) {
    const __m256 low = expand_8_bf16<kFixed>(mask, values, at);
    const __m256 high = expand_8_bf16<kFixed>(mask + 1, values, at);
#pragma GCC unroll 4
    for (int m = 0; m < kLines; ++m) {
      sums[m][0] = _mm256_fmadd_ps(low, _mm256_loadu_ps(x + m * ld), sums[m][0]);
      sums[m][1] = _mm256_fmadd_ps(high, _mm256_loadu_ps(x + m * ld + 8), sums[m][1]);
    }
  }
};

template <int kFixed> struct RowFp16 {
  typedef float X;
  typedef __m256 Acc;
  static constexpr int kStep = 16, kSize = 2;
  template <int kLines>
  static void add(const uint8_t *mask, const uint8_t *values, uint64_t &at, const float *x,
                  int64_t ld, __m256 (*sums)[2]) {
    const __m256i row = expand_16_pairs<kFixed>(mask, values, at);
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(row));
    const __m256 high = _mm256_cvtph_ps(_mm256_extracti128_si256(row, 1));
#pragma GCC unroll 4
    for (int m = 0; m < kLines; ++m) {
      sums[m][0] = _mm256_fmadd_ps(low, _mm256_loadu_ps(x + m * ld), sums[m][0]);
      sums[m][1] = _mm256_fmadd_ps(high, _mm256_loadu_ps(x + m * ld + 8), sums[m][1]);
    }
  }
};

template <int kFixed> struct RowFp32 {
  typedef float X;
  typedef __m256 Acc;
  static constexpr int kStep = 16, kSize = 4;
  template <int kLines>
  static void add(const uint8_t *mask, const uint8_t *values, uint64_t &at, const float *x,
                  int64_t ld, __m256 (*sums)[2]) {
    const __m256 low = expand_words(mask, values, at), high = expand_words(mask + 1, values, at);
#pragma GCC unroll 4
    for (int m = 0; m < kLines; ++m) {
      sums[m][0] = _mm256_fmadd_ps(low, _mm256_loadu_ps(x + m * ld), sums[m][0]);
      sums[m][1] = _mm256_fmadd_ps(high, _mm256_loadu_ps(x + m * ld + 8), sums[m][1]);
    }
  }
};

// 8-bit codes and activations: sizes times signed x are pairs of at most 2 * 127^2, which fit.
template <int kFixed> struct RowByte {
  typedef int8_t X;
  typedef __m256i Acc;
  static constexpr int kStep = 32, kSize = 1;
  template <int kLines>
  static void add(const uint8_t *mask, const uint8_t *values, uint64_t &at, const int8_t *x,
                  int64_t ld, __m256i (*sums)[2]) {
    const __m128i low = expand_16_bytes<kFixed>(mask, values, at);
    const __m256i row = join(low, expand_16_bytes<kFixed>(mask + 2, values, at));
    const __m256i size = _mm256_abs_epi8(row);
#pragma GCC unroll 4
    for (int m = 0; m < kLines; ++m) {
      const __m256i signs =
          _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)(x + m * ld)), row);
      const __m256i pairs = _mm256_maddubs_epi16(size, signs);
      sums[m][0] =
          _mm256_add_epi32(sums[m][0], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
  }
};

template <int kFixed> struct RowInt16 {
  typedef int16_t X;
  typedef __m256i Acc;
  static constexpr int kStep = 16, kSize = 1;
  template <int kLines>
  static void add(const uint8_t *mask, const uint8_t *values, uint64_t &at, const int16_t *x,
                  int64_t ld, __m256i (*sums)[2]) {
    const __m256i row = _mm256_cvtepi8_epi16(expand_16_bytes<kFixed>(mask, values, at));
#pragma GCC unroll 4
    for (int m = 0; m < kLines; ++m) {
      const __m256i each = _mm256_loadu_si256((const __m256i *)(x + m * ld));
      sums[m][0] = _mm256_add_epi32(sums[m][0], _mm256_madd_epi16(row, each));
    }
  }
};

inline __m256 zero(__m256) { return _mm256_setzero_ps(); }
inline __m256i zero(__m256i) { return _mm256_setzero_si256(); }
inline __m256 plus(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
inline __m256i plus(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }

// One strip: sums [kLines, 16] of 8 numbers each += its rows times x. Two steps at once for one
// line, which hides the latency of its products. Returns the next strip's values.
template <class Row, int kLines>
const uint8_t *strip_times(const uint8_t *mask, const uint8_t *values, int64_t width,
                           const typename Row::X *x, int64_t ld, typename Row::Acc *sums) {
  typedef typename Row::Acc Acc;
  constexpr int kSets = kLines == 1 ? 2 : 1;
  for (int64_t r = 0; r < kRows; ++r) {
    Acc now[kSets][kLines][2];
#pragma GCC unroll 2
    for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 4
      for (int m = 0; m < kLines; ++m) now[s][m][0] = now[s][m][1] = zero(Acc());
#pragma GCC unroll 1
    for (int64_t k = 0; k < width; k += kCols) {
      uint64_t at = 0;
#pragma GCC unroll 4
      for (int s = 0; s < kCols / Row::kStep; ++s)
        Row::template add<kLines>(mask + s * Row::kStep / 8, values, at, x + k + s * Row::kStep,
                                  ld, now[s % kSets]);
      mask += kCols / 8;
      values += Row::kSize * at;
      // Without a condition: how many lines a row takes differs, and no branch foresees it.
      __builtin_prefetch(values + kAhead);
    }
#pragma GCC unroll 4
    for (int m = 0; m < kLines; ++m) {
      Acc found = plus(now[0][m][0], now[0][m][1]);
      if (kSets == 2) found = plus(found, plus(now[kSets - 1][m][0], now[kSets - 1][m][1]));
      sums[m * kRows + r] = plus(sums[m * kRows + r], found);
    }
  }
  return values;
}

template <class Row>
const uint8_t *strip_lines(const uint8_t *mask, const uint8_t *values, int64_t width,
                           const typename Row::X *x, int64_t ld, int64_t lines,
                           typename Row::Acc *sums) {
  if (lines == 1) return strip_times<Row, 1>(mask, values, width, x, ld, sums);
  if (lines == 2) return strip_times<Row, 2>(mask, values, width, x, ld, sums);
  if (lines == 3) return strip_times<Row, 3>(mask, values, width, x, ld, sums);
  return strip_times<Row, 4>(mask, values, width, x, ld, sums);
}

// Adds the 8 numbers of each sum to `all` [lines, 16], scaled, and clears them.
inline void flush_rows(__m256 *sums, int64_t lines, const float *, float *all) {
  for (int64_t i = 0; i < lines * kRows; ++i) {
    const float *each = (const float *)(sums + i);
    all[i] += ((each[0] + each[4]) + (each[2] + each[6])) + ((each[1] + each[5]) + (each[3] + each[7]));
    sums[i] = _mm256_setzero_ps();
  }
}

inline void flush_rows(__m256i *sums, int64_t lines, const float *scales, float *all) {
  for (int64_t i = 0; i < lines * kRows; ++i) {
    const int32_t *each = (const int32_t *)(sums + i);
    int32_t total = 0;
    for (int j = 0; j < kAcross; ++j) total += each[j];
    all[i] += (float)total * scales[i % kRows];
    sums[i] = _mm256_setzero_si256();
  }
}

// int4 codes of a strip as bytes; returns the next strip's values.
inline const uint8_t *strip_codes(const uint8_t *mask, const uint8_t *values, int64_t width,
                                  uint8_t *codes) {
  int64_t found = 0;
  for (int64_t i = 0; i < kRows * width / 8; i += 8) {
    uint64_t word;
    memcpy(&word, mask + i, 8);
    found += _mm_popcnt_u64(word);
  }
  return widen_nibbles(values, found, codes);
}

constexpr int64_t kCodesRoom = kRows * 4 * kCols + 64;

template <class Row>
void few_rows(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
              int64_t b1) {
  typedef typename Row::Acc Acc;
  const int64_t lines = x.m, ld = x.tiles * kCols;
  alignas(64) Acc sums[kFewRows * kRows];
  alignas(64) float all[kFewRows * kRows];
  alignas(64) uint8_t codes[kCodesRoom];
  for (int64_t i = 0; i < lines * kRows; ++i) sums[i] = zero(Acc());
  for (int64_t b = b0; b < b1; ++b) {
    const uint8_t *mask = w.strips.mask + b * w.tiles * kMaskBytes;
    const uint8_t *values = w.strips.values + w.begins[b];
    memset(all, 0, sizeof(float) * (size_t)(lines * kRows));
    for (int64_t c = 0; c < w.tiles; c += w.strip) {
      const int64_t width = strip_width(w, c), next = c + width / kCols;
      const typename Row::X *at = (const typename Row::X *)x.data + c * kCols;
      if (w.value == SE_INT4) {
        values = strip_codes(mask, values, width, codes);
        strip_lines<Row>(mask, codes, width, at, ld, lines, sums);
      } else {
        values = strip_lines<Row>(mask, values, width, at, ld, lines, sums);
      }
      mask += kRows * width / 8;
      if (next % w.flush && next < w.tiles) continue;
      const float *scales = w.scales ? w.scales + (b * w.groups + c / w.group_tiles) * kRows : nullptr;
      flush_rows(sums, lines, scales, all);
    }
    for (int64_t m = 0; m < lines; ++m) store(x, job, y_type, w, b, m, all + m * kRows);
  }
}

} // namespace
