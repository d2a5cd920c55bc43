// AVX-512 F, BW, VL, DQ (Skylake-X and later): 32-bit expands, 512-bit products.
#include "avx512_base.h"

namespace {

void run(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
         int64_t b1) {
  (integer(w.value) ? run_blocks<WideCodes> : run_blocks<WideFloats>)(w, x, job, y_type, b0, b1);
}

} // namespace

const Kernels se::kAvx512 = {usual_form, prepare_rows, run, wide_unpack};
