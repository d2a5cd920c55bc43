// Mask bytes to shuffles: 8 bits of mask move up to 8 values to their places (AVX2 and up).
#pragma once
#include <immintrin.h>

#include "driver.h"

namespace {

// Entry b: for each of 8 places the number of the value that belongs there, or 0x80: zero.
struct ByteTable {
  alignas(64) uint64_t low[256];  // values numbered from 0
  alignas(64) uint64_t high[256]; // from 8
  constexpr ByteTable() : low(), high() {
    for (int b = 0; b < 256; ++b)
      for (int i = 0, found = 0; i < 8; ++i) {
        const bool kept = b >> i & 1;
        low[b] |= (uint64_t)(kept ? found : 0x80) << (8 * i);
        high[b] |= (uint64_t)(kept ? found + 8 : 0x80) << (8 * i);
        found += kept;
      }
  }
};

struct PairTable { // the same for 16-bit values
  alignas(64) uint64_t pairs[256][2];
  constexpr PairTable() : pairs() {
    for (int b = 0; b < 256; ++b)
      for (int i = 0, found = 0; i < 8; ++i) {
        const bool kept = b >> i & 1;
        const uint64_t at = kept ? (uint64_t)(2 * found) | (uint64_t)(2 * found + 1) << 8 : 0x8080;
        pairs[b][i / 4] |= at << (16 * (i % 4));
        found += kept;
      }
  }
};

constexpr ByteTable kBytes;
constexpr PairTable kPairs;

// Where the next value of a step lies: values + `at` of them. Only the end of a step moves `values`
// on, so that one addition a step, not one a byte of mask, waits for the one before.

// 8 bits of mask, 16-bit values.
inline __m128i expand_pairs(const uint8_t *mask, const uint8_t *values, uint64_t &at) {
  const uint64_t byte = *mask;
  const __m128i from = _mm_loadu_si128((const __m128i *)(values + 2 * at));
  at += (uint64_t)_mm_popcnt_u64(byte);
  return _mm_shuffle_epi8(from, _mm_load_si128((const __m128i *)kPairs.pairs[byte]));
}

// 16 bits of mask, 8-bit values: two halves, since a table of 2^16 shuffles fits no cache.
inline __m128i expand_bytes(const uint8_t *mask, const uint8_t *values, uint64_t &at) {
  const uint64_t a = mask[0], b = mask[1];
  const uint64_t second = at + (uint64_t)_mm_popcnt_u64(a);
  __m128d from = _mm_castsi128_pd(_mm_loadl_epi64((const __m128i *)(values + at)));
  from = _mm_loadh_pd(from, (const double *)(values + second));
  __m128d moves = _mm_castsi128_pd(_mm_loadl_epi64((const __m128i *)&kBytes.low[a]));
  moves = _mm_loadh_pd(moves, (const double *)&kBytes.high[b]);
  at = second + (uint64_t)_mm_popcnt_u64(b);
  return _mm_shuffle_epi8(_mm_castpd_si128(from), _mm_castpd_si128(moves));
}

// 8 bits of mask, 32-bit values.
inline __m256 expand_words(const uint8_t *mask, const uint8_t *values, uint64_t &at) {
  const uint64_t byte = *mask;
  const __m256i to = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)&kBytes.low[byte]));
  const __m256i from = _mm256_loadu_si256((const __m256i *)(values + 4 * at));
  at += (uint64_t)_mm_popcnt_u64(byte);
  const __m256 moved = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(from, to));
  return _mm256_blendv_ps(moved, _mm256_setzero_ps(), _mm256_castsi256_ps(to));
}

inline int64_t kept(const uint8_t *mask) {
  if (!mask) return kTile;
  int64_t found = 0;
  for (int64_t i = 0; i < kMaskBytes; i += 8) {
    uint64_t word;
    memcpy(&word, mask + i, 8);
    found += __builtin_popcountll(word);
  }
  return found;
}

// Nibble to code: what a shuffle of bytes looks up.
inline __m128i codes_of_nibbles() {
  return _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
}

// 4-bit codes as bytes into `out`, which has room for whole registers; returns the next tile's.
inline const uint8_t *widen_nibbles(const uint8_t *values, int64_t count, uint8_t *out) {
  const __m128i low = _mm_set1_epi8(15);
  const __m128i wide = codes_of_nibbles();
  const int64_t bytes = (count + 1) / 2;
  for (int64_t i = 0; i < bytes; i += 16) {
    const __m128i both = _mm_loadu_si128((const __m128i *)(values + i));
    const __m128i even = _mm_shuffle_epi8(wide, _mm_and_si128(both, low));
    const __m128i odd = _mm_shuffle_epi8(wide, _mm_and_si128(_mm_srli_epi16(both, 4), low));
    _mm_storeu_si128((__m128i *)(out + 2 * i), _mm_unpacklo_epi8(even, odd));
    _mm_storeu_si128((__m128i *)(out + 2 * i + 16), _mm_unpackhi_epi8(even, odd));
  }
  return values + bytes;
}

// The next 16 8-bit values of a step, by 2 mask bytes; all of them where dense.
template <bool kDense>
inline __m128i next_bytes(const uint8_t *mask, const uint8_t *values, uint64_t &at) {
  if (!kDense) return expand_bytes(mask, values, at);
  at += 16;
  return _mm_loadu_si128((const __m128i *)(values + at - 16));
}

// The next 8 16-bit values, by one mask byte.
template <bool kDense>
inline __m128i next_pairs(const uint8_t *mask, const uint8_t *values, uint64_t &at) {
  if (!kDense) return expand_pairs(mask, values, at);
  at += 8;
  return _mm_loadu_si128((const __m128i *)(values + 2 * at - 16));
}

// The next 8 32-bit values, by one mask byte.
template <bool kDense>
inline __m256 next_words(const uint8_t *mask, const uint8_t *values, uint64_t &at) {
  if (!kDense) return expand_words(mask, values, at);
  at += 8;
  return _mm256_loadu_ps((const float *)(values + 4 * at - 32));
}

inline __m256i join(__m128i low, __m128i high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

} // namespace
