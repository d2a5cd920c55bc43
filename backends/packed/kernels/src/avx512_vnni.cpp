// AVX-512 with VBMI2 and VNNI, without BF16 (Ice Lake): 16-bit values become floats as they expand.
#include "avx512_vnni.h"
#include "avx2_few.h"
#include "avx512_lists.h"

namespace {

constexpr Most kCodeLists = {0, 15, 25}; // in floats, against products in fours

struct Halves { // 16 rows of one column each
  F16x even, odd;
};

struct Bf16Halves {
  static Halves of(I16x step) { return {as_f(shift_up_16(step)), as_f(upper_16(step))}; }
};
struct Fp16Halves {
  static Halves of(I16x step) { return {half_to_f(step), half_to_f(shift_down_16(step))}; }
};

// kLines lines of x [lines, 64] against a tile, straight from mask and values.
template <class Type, bool kDense, int kLines, int kSets>
__attribute__((noinline)) const uint8_t *
pairs_straight(const uint8_t *mask, const uint8_t *values, const float *x, float *to) {
  F16x sums[kSets][kLines];
#pragma GCC unroll 16
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 16
    for (int m = 0; m < kLines; ++m) sums[s][m] = zero_f();
#pragma GCC unroll 1
  for (int k = 0; k < kCols; k += kSets, mask += kDense ? 0 : 2 * kSets) {
#pragma GCC unroll 16
    for (int s = 0; s < kSets; s += 2) {
      const Halves w = Type::of(Bf16Steps<kDense>::next(kDense ? mask : mask + 2 * s, values));
#pragma GCC unroll 16
      for (int m = 0; m < kLines; ++m) {
        const float *at = x + m * kCols + k + s;
        sums[s][m] = fma_f(w.even, set1_f(at[0]), sums[s][m]);
        sums[s + 1][m] = fma_f(w.odd, set1_f(at[1]), sums[s + 1][m]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kLines; ++m) {
#pragma GCC unroll 16
    for (int s = 1; s < kSets; ++s) sums[0][m] = add_f(sums[0][m], sums[s][m]);
    store_f(to + m * kRows, add_f(load_f(to + m * kRows), sums[0][m]));
  }
  return values;
}

template <class Type, bool kDense>
const uint8_t *pairs_lines(const uint8_t *mask, const uint8_t *values, const float *x,
                           int64_t lines, float *to) {
  switch (lines) {
  case 1:
    return pairs_straight<Type, kDense, 1, 4>(mask, values, x, to);
  case 2:
    return pairs_straight<Type, kDense, 2, 4>(mask, values, x, to);
  case 3:
    return pairs_straight<Type, kDense, 3, 2>(mask, values, x, to);
  case 4:
    return pairs_straight<Type, kDense, 4, 2>(mask, values, x, to);
  case 5:
    return pairs_straight<Type, kDense, 5, 2>(mask, values, x, to);
  case 6:
    return pairs_straight<Type, kDense, 6, 2>(mask, values, x, to);
  case 7:
    return pairs_straight<Type, kDense, 7, 2>(mask, values, x, to);
  default:
    return pairs_straight<Type, kDense, 8, 2>(mask, values, x, to);
  }
}

template <class Type, bool kDense>
const uint8_t *pairs_panel(const uint8_t *mask, const uint8_t *values, float *out) {
  for (int s = 0; s < kCols; s += 2, mask += kDense ? 0 : 4) {
    const Halves w = Type::of(Bf16Steps<kDense>::next(mask, values));
    store_f(out + s * kRows, w.even);
    store_f(out + (s + 1) * kRows, w.odd);
  }
  return values;
}

// 16-bit values: straight for few lines, through a float panel for more.
template <class Type> struct Pairs : WideFloats {
  static constexpr int64_t kDirect = kDirectLines, kStreams = kSideBySide;
  static const uint8_t *expand(int32_t, const uint8_t *mask, const uint8_t *values, void *panel) {
    return (mask ? pairs_panel<Type, false> : pairs_panel<Type, true>)(mask, values,
                                                                       (float *)panel);
  }
  static const uint8_t *direct(int32_t, const uint8_t *mask, const uint8_t *values, const float *x,
                               int64_t lines, float *sums) {
    return (mask ? pairs_lines<Type, false> : pairs_lines<Type, true>)(mask, values, x, lines,
                                                                       sums);
  }
};

Form form(const Weight &w, int64_t m, int32_t flags) {
  if (by_slots(w, m)) return sparse_form(w, m, flags);
  // 8-bit x by panels takes less time than floats by lists, up to 90 % zeros and beyond.
  const bool bytes = integer(w.value) && !(flags & SE_ACT16);
  if (m > kDirectLines && !bytes && by_lists(w, m, integer(w.value) ? kCodeLists : kFloatLists))
    return lists_form(w, flags);
  if (!integer(w.value)) return usual_form(w, m, flags);
  return flags & SE_ACT16 ? kTwoBytes : kByte;
}

void run(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
         int64_t b1) {
  const auto way = lanes(x.form)         ? many_rows<ByWide>
                   : narrow(x.form)      ? few_rows_of_x
                   : x.form == kByte       ? run_blocks<Vnni<1>>
                   : x.form == kTwoBytes ? run_blocks<Vnni<2>>
                   : w.value == SE_BF16  ? run_blocks<Pairs<Bf16Halves>>
                   : w.value == SE_FP16  ? run_blocks<Pairs<Fp16Halves>>
                                         : run_blocks<WideFloats>;
  way(w, x, job, y_type, b0, b1);
}

} // namespace

const Kernels se::kAvx512Vnni = {kWideSide, form, prepare_rows, run, wide_unpack};
