// Plain C++: the reference for every other instruction set, and what other machines run.
#include "driver.h"
#include "values.h"

namespace {

// Calls put(e, value) for the kept elements in order.
template <class Put>
const uint8_t *each(int32_t value, const uint8_t *mask, const uint8_t *values, Put put) {
  int64_t found = 0;
  for (int64_t byte = 0; byte < kMaskBytes; ++byte)
    for (uint32_t left = mask ? mask[byte] : 255; left; left &= left - 1)
      put(byte * 8 + __builtin_ctz(left), value_at(value, values, found++));
  return values + bytes_of(value, found);
}

const uint8_t *unpack_tile(int32_t value, const uint8_t *mask, const uint8_t *values, float *out) {
  const int64_t g = step(value);
  memset(out, 0, kTile * sizeof(float));
  return each(value, mask, values, [&](int64_t e, float v) { out[float_place(e, g)] = v; });
}

struct Floats : FloatSums {
  static constexpr int64_t kDirect = 0, kBeside = 1, kDeep = 1, kPanel = kPanelBytes;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    return unpack_tile(value, mask, values, (float *)panel);
  }
  static const uint8_t *direct(int32_t, const uint8_t *, const uint8_t *v, const float *, int64_t,
                               float *) {
    return v;
  }
  static void multiply(const void *panel, int64_t, const Lines<float> &from, float *const *to) {
    float *sums = *to;
    const float *w = (const float *)panel, *x = from.data;
    for (int64_t m = 0; m < from.lines; ++m, x += kCols, sums += kRows) {
      float tile[kRows] = {}; // a tile's own sums first: the long sum rounds less often
      for (int64_t k = 0; k < kCols; ++k)
        for (int64_t r = 0; r < kRows; ++r) tile[r] += w[k * kRows + r] * x[k];
      for (int64_t r = 0; r < kRows; ++r) sums[r] += tile[r];
    }
  }
};

struct Codes : Int16Sums {
  static constexpr int64_t kDirect = 0, kBeside = 1, kDeep = 1, kPanel = kPanelBytes;
  static const uint8_t *expand(int32_t value, const uint8_t *mask, const uint8_t *values,
                               void *panel) {
    int16_t *out = (int16_t *)panel;
    memset(out, 0, kTile * sizeof(int16_t));
    return each(value, mask, values,
                [&](int64_t e, float v) { out[int16_place(e)] = (int16_t)v; });
  }
  static const uint8_t *direct(int32_t, const uint8_t *, const uint8_t *v, const int16_t *,
                               int64_t, int32_t *) {
    return v;
  }
  static void multiply(const void *panel, int64_t, const Lines<int16_t> &from,
                       int32_t *const *to) {
    int32_t *sums = *to;
    const int16_t *x = from.data;
    for (int64_t m = 0; m < from.lines; ++m, x += kCols, sums += kRows) {
      const int16_t *w = (const int16_t *)panel;
      for (int64_t pair = 0; pair < kCols; pair += 2, w += 2 * kRows)
        for (int64_t r = 0; r < kRows; ++r)
          sums[r] += w[2 * r] * x[pair] + w[2 * r + 1] * x[pair + 1];
    }
  }
};

void run(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
         int64_t b1) {
  (integer(w.value) ? run_blocks<Codes> : run_blocks<Floats>)(w, x, job, y_type, b0, b1);
}

} // namespace

const Kernels se::kPortable = {kLanes, usual_form, prepare_rows, run, unpack_tile};
