// One tile from mask and values to a float or int16 panel, by tables (AVX2, FMA, F16C).
#pragma once
#include "table.h"

namespace {

// 8 rows by 2 columns as 16-bit values (row r in word r) to two rows of a float panel.
struct Bf16 {
  static __m256 even(__m256i rows) { return _mm256_castsi256_ps(_mm256_slli_epi32(rows, 16)); }
  static __m256 odd(__m256i rows) {
    return _mm256_castsi256_ps(_mm256_and_si256(rows, _mm256_set1_epi32((int)0xffff0000)));
  }
};

struct Fp16 {
  static __m256 low_halves(__m256i rows) {
    const __m256i packed = _mm256_packus_epi32(rows, rows);
    const __m256i ordered = _mm256_permute4x64_epi64(packed, 0x88);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(ordered));
  }
  static __m256 even(__m256i rows) {
    return low_halves(_mm256_and_si256(rows, _mm256_set1_epi32(0xffff)));
  }
  static __m256 odd(__m256i rows) { return low_halves(_mm256_srli_epi32(rows, 16)); }
};

template <class Type, bool kDense>
const uint8_t *pairs_to_floats(const uint8_t *mask, const uint8_t *values, float *out) {
  for (int s = 0; s < 32; ++s, mask += kDense ? 0 : 4, out += 32) {
    uint64_t at = 0;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m128i a = next_pairs<kDense>(mask + 2 * h, values, at);
      const __m128i b = next_pairs<kDense>(mask + 2 * h + 1, values, at);
      const __m256i rows = join(a, b);
      _mm256_store_ps(out + 8 * h, Type::even(rows));
      _mm256_store_ps(out + 8 * h + 16, Type::odd(rows));
    }
    values += 2 * at;
  }
  return values;
}

template <bool kDense>
const uint8_t *words_to_floats(const uint8_t *mask, const uint8_t *values, float *out) {
  for (int s = 0; s < 32; ++s, mask += kDense ? 0 : 4, out += 32) {
    uint64_t at = 0;
#pragma GCC unroll 4
    for (int h = 0; h < 4; ++h)
      _mm256_store_ps(out + 8 * h, next_words<kDense>(mask + h, values, at));
    values += 4 * at;
  }
  return values;
}

// e4m3 in the low byte of each 32-bit word: as a half but for the exponent's bias, 2^8 apart.
inline __m256 fp8_to_float(__m256i word) {
  const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(word, _mm256_set1_epi32(128)), 8);
  const __m256i rest = _mm256_slli_epi32(_mm256_and_si256(word, _mm256_set1_epi32(127)), 7);
  const __m256 half = Fp16::low_halves(_mm256_or_si256(sign, rest));
  return _mm256_mul_ps(half, _mm256_set1_ps(256.f));
}

template <class Widen> inline void quads_to_floats(__m256i rows, float *out, Widen widen) {
  _mm256_store_ps(out, widen(rows)); // 8 rows by 4 columns: column k of a row is byte k
  _mm256_store_ps(out + 16, widen(_mm256_srli_epi32(rows, 8)));
  _mm256_store_ps(out + 32, widen(_mm256_srli_epi32(rows, 16)));
  _mm256_store_ps(out + 48, widen(_mm256_srli_epi32(rows, 24)));
}

template <bool kDense, class Widen>
const uint8_t *bytes_to_floats(const uint8_t *mask, const uint8_t *values, float *out,
                               Widen widen) {
  for (int s = 0; s < 16; ++s, mask += kDense ? 0 : 8, out += 64) {
    uint64_t at = 0;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m128i a = next_bytes<kDense>(mask + 4 * h, values, at);
      const __m128i b = next_bytes<kDense>(mask + 4 * h + 2, values, at);
      quads_to_floats(join(a, b), out + 8 * h, widen);
    }
    values += at;
  }
  return values;
}

template <bool kDense>
const uint8_t *bytes_to_int16(const uint8_t *mask, const uint8_t *values, int16_t *out) {
  for (int s = 0; s < 16; ++s, mask += kDense ? 0 : 8, out += 64) {
    uint64_t at = 0;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m128i a = next_bytes<kDense>(mask + 4 * h, values, at);
      const __m128i b = next_bytes<kDense>(mask + 4 * h + 2, values, at);
      const __m256i rows = join(a, b);
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(rows, 8), 8);
      _mm256_store_si256((__m256i *)(out + 16 * h), even);
      _mm256_store_si256((__m256i *)(out + 16 * h + 32), _mm256_srai_epi16(rows, 8));
    }
    values += at;
  }
  return values;
}

inline __m256 code_to_float(__m256i word) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(word, 24), 24));
}

constexpr int64_t kNibbleRoom = kTile + 64;

template <bool kDense>
const uint8_t *tile_to_floats(int32_t value, const uint8_t *mask, const uint8_t *values,
                              float *out) {
  if (value == SE_BF16) return pairs_to_floats<Bf16, kDense>(mask, values, out);
  if (value == SE_FP16) return pairs_to_floats<Fp16, kDense>(mask, values, out);
  if (value == SE_FP32) return words_to_floats<kDense>(mask, values, out);
  if (value == SE_FP8) return bytes_to_floats<kDense>(mask, values, out, fp8_to_float);
  if (value == SE_INT8) return bytes_to_floats<kDense>(mask, values, out, code_to_float);
  uint8_t codes[kNibbleRoom];
  const uint8_t *next = widen_nibbles(values, kept(mask), codes);
  bytes_to_floats<kDense>(mask, codes, out, code_to_float);
  return next;
}

template <bool kDense>
const uint8_t *tile_to_int16(int32_t value, const uint8_t *mask, const uint8_t *values,
                             int16_t *out) {
  if (value == SE_INT8) return bytes_to_int16<kDense>(mask, values, out);
  uint8_t codes[kNibbleRoom];
  const uint8_t *next = widen_nibbles(values, kept(mask), codes);
  bytes_to_int16<kDense>(mask, codes, out);
  return next;
}

inline const uint8_t *avx2_floats(int32_t value, const uint8_t *mask, const uint8_t *values,
                                  float *out) {
  return mask ? tile_to_floats<false>(value, mask, values, out)
              : tile_to_floats<true>(value, mask, values, out);
}

inline const uint8_t *avx2_int16(int32_t value, const uint8_t *mask, const uint8_t *values,
                                 int16_t *out) {
  return mask ? tile_to_int16<false>(value, mask, values, out)
              : tile_to_int16<true>(value, mask, values, out);
}

inline const uint8_t *avx2_unpack(int32_t value, const uint8_t *mask, const uint8_t *values,
                                  float *out) {
  alignas(64) float panel[kTile];
  const uint8_t *next = avx2_floats(value, mask, values, panel);
  memcpy(out, panel, sizeof panel);
  return next;
}

} // namespace
