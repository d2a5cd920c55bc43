// The 512-bit operations in use. With SE_EMULATE they are loops, so that machines without AVX-512
// can run the units' logic in tests; the intrinsics themselves then stay untried.
#pragma once
#include <immintrin.h>
#include <string.h>

namespace {

#ifndef SE_EMULATE

typedef __m512 F16x;  // 16 float32
typedef __m512i I16x; // 16 int32, 32 int16 or 64 int8

inline F16x zero_f() { return _mm512_setzero_ps(); }
inline F16x load_f(const float *at) { return _mm512_loadu_ps(at); }
inline void store_f(float *at, F16x v) { _mm512_storeu_ps(at, v); }
inline F16x set1_f(float v) { return _mm512_set1_ps(v); }
inline F16x fma_f(F16x a, F16x b, F16x c) { return _mm512_fmadd_ps(a, b, c); }
inline F16x add_f(F16x a, F16x b) { return _mm512_add_ps(a, b); }
inline F16x as_f(I16x v) { return _mm512_castsi512_ps(v); }
inline I16x zero_i() { return _mm512_setzero_si512(); }
inline I16x load_i(const void *at) { return _mm512_loadu_si512(at); }
inline void store_i(void *at, I16x v) { _mm512_storeu_si512(at, v); }
inline I16x set1_i(int v) { return _mm512_set1_epi32(v); }
inline I16x add_i(I16x a, I16x b) { return _mm512_add_epi32(a, b); }
inline I16x madd_i16(I16x a, I16x b) { return _mm512_madd_epi16(a, b); }
inline I16x widen_u16(const void *at) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at));
}
inline I16x shift_up_16(I16x v) { return _mm512_slli_epi32(v, 16); }
inline F16x repeat_4(const float *at) { return _mm512_broadcast_f32x4(_mm_loadu_ps(at)); }
template <int kAt> inline F16x set1_of_4(F16x four) { return _mm512_permute_ps(four, kAt * 0x55); }
// The set bits of k in turn, as 16 bits each: first + kEach times the bit. May store up to 64, bits or not.
template <int kEach> inline void store_places(uint16_t *at, uint64_t k, int16_t first) {
#ifdef __AVX512VBMI2__
  alignas(64) static constexpr uint8_t kBits[64] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
      22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
      44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i bits = _mm512_maskz_compress_epi8(k, _mm512_load_si512(kBits));
  const auto store = [&](uint16_t *to, __m256i half) {
    const __m512i words = _mm512_mullo_epi16(_mm512_cvtepu8_epi16(half), _mm512_set1_epi16(kEach));
    _mm512_storeu_si512(to, _mm512_add_epi16(words, _mm512_set1_epi16(first)));
  };
  store(at, _mm512_castsi512_si256(bits));
  store(at + 32, _mm512_extracti64x4_epi64(bits, 1));
#else
  const __m512i bits = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i words = _mm512_mullo_epi32(bits, _mm512_set1_epi32(kEach));
  words = _mm512_add_epi32(words, _mm512_set1_epi32(first));
  for (int q = 0; q < 4; ++q, k >>= 16) {
    const __m512i kept = _mm512_maskz_compress_epi32((__mmask16)k, words);
    _mm256_storeu_si256((__m256i *)at, _mm512_cvtepi32_epi16(kept));
    at += _mm_popcnt_u64(k & 0xffff);
    words = _mm512_add_epi32(words, _mm512_set1_epi32(16 * kEach));
  }
#endif
}
inline F16x widen_i8(const void *at) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)at)));
}
inline I16x shift_down_16(I16x v) { return _mm512_srli_epi32(v, 16); }
inline I16x upper_16(I16x v) { return _mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000)); }
inline F16x half_to_f(I16x words) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)); }
inline F16x evens(F16x a, F16x b) {
  const __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(a, at, b);
}
inline F16x odds(F16x a, F16x b) {
  const __m512i at = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return _mm512_permutex2var_ps(a, at, b);
}

// On Zen 4 vpexpand* waits for its destination's last value, even where it zeroes: 6.1 cycles a
// step in place of 3.3. A zero idiom on the same register before it breaks that.
#if defined(__clang__)
#define SE_EXPAND(name, suffix, Mask)                                                              \
  inline I16x name(Mask k, I16x v) {                                                               \
    I16x out;                                                                                      \
    __asm__("vpxord %0, %0, %0\n\t" suffix " %2, %0 {%1} {z}" : "=&v"(out) : "Yk"(k), "v"(v));     \
    return out;                                                                                    \
  }
#else
#define SE_EXPAND(name, suffix, Mask)                                                              \
  inline I16x name(Mask k, I16x v) {                                                               \
    I16x out;                                                                                      \
    __asm__("vpxor %x0, %x0, %x0\n\t" suffix " %2, %0%{%1%}%{z%}"                                  \
            : "=&x"(out)                                                                           \
            : "Yk"(k), "v"(v));                                                                    \
    return out;                                                                                    \
  }
#endif
SE_EXPAND(expand_32, "vpexpandd", __mmask16)
#ifdef __AVX512VBMI2__
SE_EXPAND(expand_16, "vpexpandw", __mmask32)
SE_EXPAND(expand_8, "vpexpandb", __mmask64)
inline I16x dot_u8_i8(I16x sum, I16x a, I16x b) { return _mm512_dpbusd_epi32(sum, a, b); }
#endif
#ifdef __AVX512BF16__
inline F16x dot_bf16(F16x sum, I16x a, I16x b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#endif
// A broadcast that stays an instruction of its own: the embedded form is slower for one line of x.
inline I16x set1_apart(int v) {
  I16x out = _mm512_set1_epi32(v);
  __asm__("" : "+v"(out));
  return out;
}

// Keeps a sum in its register and before whatever is pinned after it: compilers gather products of
// many lines first and sum them up then, for which there are not registers enough.
inline void pin(I16x &v) { __asm__ volatile("" : "+v"(v)); }
inline void pin(F16x &v) { __asm__ volatile("" : "+v"(v)); }

#else // SE_EMULATE

struct F16x {
  float v[16];
};
struct I16x {
  uint8_t v[64];
};

template <class To, class From> inline To recast(const From &from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
struct Words {
  int32_t v[16];
};
struct Shorts {
  int16_t v[32];
};

inline void pin(I16x &) {}
inline void pin(F16x &) {}
inline F16x zero_f() { return {}; }
inline F16x load_f(const float *at) {
  F16x out;
  memcpy(&out, at, 64);
  return out;
}
inline void store_f(float *at, F16x v) { memcpy(at, &v, 64); }
inline F16x set1_f(float v) {
  F16x out;
  for (float &each : out.v) each = v;
  return out;
}
inline F16x fma_f(F16x a, F16x b, F16x c) {
  for (int i = 0; i < 16; ++i) c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return c;
}
inline F16x add_f(F16x a, F16x b) {
  for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
  return a;
}
inline F16x as_f(I16x v) { return recast<F16x>(v); }
inline I16x zero_i() { return {}; }
inline I16x load_i(const void *at) {
  I16x out;
  memcpy(&out, at, 64);
  return out;
}
inline void store_i(void *at, I16x v) { memcpy(at, &v, 64); }
inline I16x set1_i(int v) {
  Words out;
  for (int32_t &each : out.v) each = v;
  return recast<I16x>(out);
}
inline I16x set1_apart(int v) { return set1_i(v); }
inline I16x add_i(I16x a, I16x b) {
  Words x = recast<Words>(a), y = recast<Words>(b);
  for (int i = 0; i < 16; ++i) x.v[i] = (int32_t)((uint32_t)x.v[i] + (uint32_t)y.v[i]);
  return recast<I16x>(x);
}
inline I16x madd_i16(I16x a, I16x b) {
  const Shorts x = recast<Shorts>(a), y = recast<Shorts>(b);
  Words out;
  for (int i = 0; i < 16; ++i)
    out.v[i] = x.v[2 * i] * y.v[2 * i] + x.v[2 * i + 1] * y.v[2 * i + 1];
  return recast<I16x>(out);
}
inline I16x widen_u16(const void *at) {
  uint16_t from[16];
  memcpy(from, at, 32);
  Words out;
  for (int i = 0; i < 16; ++i) out.v[i] = from[i];
  return recast<I16x>(out);
}
inline F16x repeat_4(const float *at) {
  F16x out;
  for (int i = 0; i < 16; ++i) out.v[i] = at[i % 4];
  return out;
}
template <int kAt> inline F16x set1_of_4(F16x four) { return set1_f(four.v[kAt]); }
template <int kEach> inline void store_places(uint16_t *at, uint64_t k, int16_t first) {
  uint16_t found[64] = {};
  for (int i = 0, n = 0; i < 64; ++i)
    if (k >> i & 1) found[n++] = (uint16_t)(first + kEach * i);
  memcpy(at, found, sizeof found);
}
inline F16x widen_i8(const void *at) {
  F16x out;
  for (int i = 0; i < 16; ++i) out.v[i] = ((const int8_t *)at)[i];
  return out;
}
inline I16x shift_up_16(I16x v) {
  Words out = recast<Words>(v);
  for (int32_t &each : out.v) each = (int32_t)((uint32_t)each << 16);
  return recast<I16x>(out);
}
inline F16x half_to_f(I16x words) {
  const Words from = recast<Words>(words);
  F16x out;
  for (int i = 0; i < 16; ++i) out.v[i] = _cvtsh_ss((uint16_t)from.v[i]);
  return out;
}
inline I16x shift_down_16(I16x v) {
  Words out = recast<Words>(v);
  for (int32_t &each : out.v) each = (int32_t)((uint32_t)each >> 16);
  return recast<I16x>(out);
}
inline I16x upper_16(I16x v) { return shift_up_16(shift_down_16(v)); }
inline F16x pick(F16x a, F16x b, int first) {
  F16x out;
  for (int i = 0; i < 8; ++i) out.v[i] = a.v[2 * i + first], out.v[8 + i] = b.v[2 * i + first];
  return out;
}
inline F16x evens(F16x a, F16x b) { return pick(a, b, 0); }
inline F16x odds(F16x a, F16x b) { return pick(a, b, 1); }

template <int kBytes> inline I16x expand(uint64_t k, const I16x &from) {
  I16x out = {};
  for (int i = 0, at = 0; i < 64 / kBytes; ++i)
    if (k >> i & 1) memcpy(out.v + i * kBytes, from.v + kBytes * at++, kBytes);
  return out;
}
inline I16x expand_32(uint16_t k, I16x v) { return expand<4>(k, v); }
inline I16x expand_16(uint32_t k, I16x v) { return expand<2>(k, v); }
inline I16x expand_8(uint64_t k, I16x v) { return expand<1>(k, v); }
inline F16x dot_bf16(F16x sum, I16x a, I16x b) {
  const Words x = recast<Words>(a), y = recast<Words>(b);
  for (int i = 0; i < 16; ++i)
    for (int high = 1; high >= 0; --high) {
      float p[2];
      const int32_t raw[2] = {x.v[i], y.v[i]};
      for (int j = 0; j < 2; ++j) {
        const uint32_t one = high ? (uint32_t)raw[j] & 0xffff0000u : (uint32_t)raw[j] << 16;
        memcpy(&p[j], &one, 4);
      }
      sum.v[i] = __builtin_fmaf(p[0], p[1], sum.v[i]);
    }
  return sum;
}
inline I16x dot_u8_i8(I16x sum, I16x a, I16x b) {
  Words out = recast<Words>(sum);
  for (int i = 0; i < 64; ++i)
    out.v[i / 4] = (int32_t)((uint32_t)out.v[i / 4] + (uint32_t)(a.v[i] * (int8_t)b.v[i]));
  return recast<I16x>(out);
}

#endif

} // namespace
