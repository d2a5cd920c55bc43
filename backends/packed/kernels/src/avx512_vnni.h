// Steps of the 512-bit units with VBMI2 and VNNI: one expand makes a step of a tile, and codes meet x
// in one instruction of four products.
#pragma once
#include "avx512_base.h"

namespace {

constexpr int64_t kDirectLines = 8;
constexpr int64_t kSideBySide = 4; // streams: two are slower on Ice Lake, eight not faster

// A step of a tile as one register: 16 rows by 2 columns of bfloat16, or by 4 columns of codes.
// Fetched ahead step by step: all lines of a tile at once wait for one another.
template <bool kDense> struct Bf16Steps {
  static constexpr int kSteps = 32, kMask = 4;
  static I16x next(const uint8_t *mask, const uint8_t *&values) {
    const I16x from = load_i(values);
    __builtin_prefetch(values + kAheadOfStream);
    uint32_t k = 0xffffffff;
    if (!kDense) memcpy(&k, mask, 4);
    values += 2 * __builtin_popcount(k);
    return kDense ? from : expand_16(k, from);
  }
};

template <bool kDense> struct CodeSteps {
  static constexpr int kSteps = 16, kMask = 8;
  static I16x next(const uint8_t *mask, const uint8_t *&values) {
    const I16x from = load_i(values);
    __builtin_prefetch(values + kAheadOfStream);
    uint64_t k = ~(uint64_t)0;
    if (!kDense) memcpy(&k, mask, 8);
    values += __builtin_popcountll(k);
    return kDense ? from : expand_8(k, from);
  }
};

struct CodeDot {
  typedef I16x Sum;
  typedef int32_t Acc;
  static Sum zero() { return zero_i(); }
  static Sum dot(Sum sum, I16x w, I16x x) { return dot_u8_i8(sum, x, w); }
  static Sum add(Sum a, Sum b) { return add_i(a, b); }
  static void store(int32_t *to, Sum sum) { store_i(to, add_i(load_i(to), sum)); }
};

// kLines lines of x [lines, kSteps] of 32-bit words, with weights from `next(step)`.
template <class Dot, int kSteps, int kLines, int kSets, class Next>
inline void times(Next next, const uint8_t *x, typename Dot::Acc *to) {
  typename Dot::Sum sums[kSets][kLines];
#pragma GCC unroll 16
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 16
    for (int m = 0; m < kLines; ++m) sums[s][m] = Dot::zero();
#pragma GCC unroll 1
  for (int k = 0; k < kSteps; k += kSets) {
#pragma GCC unroll 16
    for (int s = 0; s < kSets; ++s) {
      const I16x w = next(k + s);
#pragma GCC unroll 16
      for (int m = 0; m < kLines; ++m) {
        const int32_t word = word_at(x + (m * kSteps + k + s) * 4);
        sums[s][m] = Dot::dot(sums[s][m], w, kLines < 3 ? set1_apart(word) : set1_i(word));
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kLines; ++m) {
#pragma GCC unroll 16
    for (int s = 1; s < kSets; ++s) sums[0][m] = Dot::add(sums[0][m], sums[s][m]);
    Dot::store(to + m * kRows, sums[0][m]);
  }
}

template <class Steps, class Dot, int kLines, int kSets>
__attribute__((noinline)) const uint8_t *straight(const uint8_t *mask, const uint8_t *values,
                                                  const uint8_t *x, typename Dot::Acc *to) {
  const auto next = [&](int) {
    const I16x found = Steps::next(mask, values);
    mask += mask ? Steps::kMask : 0;
    return found;
  };
  times<Dot, Steps::kSteps, kLines, kSets>(next, x, to);
  return values;
}

template <class Steps, class Dot>
const uint8_t *straight_lines(const uint8_t *mask, const uint8_t *values, const uint8_t *x,
                              int64_t lines, typename Dot::Acc *to) {
  switch (lines) {
  case 1:
    return straight<Steps, Dot, 1, 4>(mask, values, x, to);
  case 2:
    return straight<Steps, Dot, 2, 2>(mask, values, x, to);
  case 3:
    return straight<Steps, Dot, 3, 2>(mask, values, x, to);
  case 4:
    return straight<Steps, Dot, 4, 1>(mask, values, x, to);
  case 5:
    return straight<Steps, Dot, 5, 1>(mask, values, x, to);
  case 6:
    return straight<Steps, Dot, 6, 1>(mask, values, x, to);
  case 7:
    return straight<Steps, Dot, 7, 1>(mask, values, x, to);
  default:
    return straight<Steps, Dot, 8, 1>(mask, values, x, to);
  }
}

template <class Steps>
const uint8_t *to_panel(const uint8_t *mask, const uint8_t *values, uint8_t *out) {
  for (int s = 0; s < Steps::kSteps; ++s, mask += mask ? Steps::kMask : 0)
    store_i(out + 64 * s, Steps::next(mask, values));
  return values;
}

// A tile's codes as bytes to `use`, which returns what follows them; returns the next tile's values.
template <class Use>
inline const uint8_t *codes_of(int32_t value, const uint8_t *mask, const uint8_t *values, Use use) {
  if (value != SE_INT4) return use(values);
  uint8_t codes[kNibbleRoom];
  const uint8_t *next = widen_nibbles(values, kept(mask), codes);
  prefetch(values + kAheadOfStream, next + kAheadOfStream);
  use(codes); // what this fetches ahead is stack
  return next;
}

// Activations are unsigned (vpdpbusd wants them so): 128 or 32768 above their codes, which the
// sums of the weight's codes take back. Arithmetic modulo 2^32; what is meant fits 31 bits.
template <int kOfRow> struct Vnni {
  typedef uint8_t X;
  typedef int32_t Acc;
  static constexpr int64_t kPlanes = kOfRow, kBeside = 2, kDirect = kDirectLines;
  static constexpr int64_t kStreams = kSideBySide, kDeep = 4, kPanel = 1024;
  static int32_t total(const int32_t *sums, int32_t codes) {
    if (kPlanes == 1) return (int32_t)((uint32_t)sums[0] - 128u * (uint32_t)codes);
    const uint32_t both = ((uint32_t)sums[0] << 8) + (uint32_t)sums[kRows];
    return (int32_t)(both - 32768u * (uint32_t)codes);
  }
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return codes_of(value, mask, values, [&](const uint8_t *codes) {
      return (mask ? to_panel<CodeSteps<false>> : to_panel<CodeSteps<true>>)(mask, codes,
                                                                             (uint8_t *)panel);
    });
  }
  static void multiply(const void *panels, int64_t count, const Lines<uint8_t> &x,
                       int32_t *const *sums) {
    panels_by_two<CodeDot, 16>(panels, count, x, sums);
  }
  static const uint8_t *direct(int32_t value, const uint8_t *mask, const uint8_t *values,
                               const uint8_t *x, int64_t lines, int32_t *sums) {
    return codes_of(value, mask, values, [&](const uint8_t *codes) {
      return (mask ? straight_lines<CodeSteps<false>, CodeDot>
                   : straight_lines<CodeSteps<true>, CodeDot>)(mask, codes, x, lines, sums);
    });
  }
};

} // namespace
