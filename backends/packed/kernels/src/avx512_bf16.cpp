// AVX-512 with VBMI2, BF16 and VNNI (Zen 4, Sapphire Rapids): a step is one expand and one dot.
#include "avx512_vnni.h"

namespace {

struct Bf16Dot {
  typedef F16x Sum;
  typedef float Acc;
  static Sum zero() { return zero_f(); }
  static Sum dot(Sum sum, I16x w, I16x x) { return dot_bf16(sum, w, x); }
  static Sum add(Sum a, Sum b) { return add_f(a, b); }
  static void store(float *to, Sum sum) { store_f(to, add_f(load_f(to), sum)); }
};

struct Bf16s {
  typedef uint16_t X;
  typedef float Acc;
  static constexpr int64_t kPlanes = 1, kBeside = 2, kDirect = kDirectLines;
  static constexpr int64_t kStreams = kSideBySide, kDeep = 2, kPanel = 2048;
  static float total(const float *sums, int32_t) { return *sums; }
  static const uint8_t *expand(int32_t, const uint8_t *mask, const uint8_t *values, void *panel) {
    uint8_t *out = (uint8_t *)panel;
    return mask ? to_panel<Bf16Steps<false>>(mask, values, out)
                : to_panel<Bf16Steps<true>>(mask, values, out);
  }
  static void multiply(const void *panels, int64_t count, const Lines<uint16_t> &x,
                       float *const *sums) {
    panels_by_two<Bf16Dot, 32>(panels, count, x, sums);
  }
  static const uint8_t *direct(int32_t, const uint8_t *mask, const uint8_t *values,
                               const uint16_t *x, int64_t lines, float *sums) {
    const uint8_t *at = (const uint8_t *)x;
    return mask ? straight_lines<Bf16Steps<false>, Bf16Dot>(mask, values, at, lines, sums)
                : straight_lines<Bf16Steps<true>, Bf16Dot>(mask, values, at, lines, sums);
  }
};

Form form(const Weight &w, int64_t, int32_t flags) {
  if (integer(w.value)) return flags & SE_ACT16 ? kTwoBytes : kByte;
  return halves(w, flags) ? kBf16 : kFloat;
}

void run(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
         int64_t b1) {
  switch (x.form) {
  case kBf16:
    return run_blocks<Bf16s>(w, x, job, y_type, b0, b1);
  case kByte:
    return run_blocks<Vnni<1>>(w, x, job, y_type, b0, b1);
  case kTwoBytes:
    return run_blocks<Vnni<2>>(w, x, job, y_type, b0, b1);
  default:
    return run_blocks<WideFloats>(w, x, job, y_type, b0, b1);
  }
}

} // namespace

const Kernels se::kAvx512Bf16 = {kLanes, form, prepare_rows, run, wide_unpack};
