// AVX-512 F, BW, VL, DQ (Skylake-X and later): 512-bit products; few rows of x as with AVX2, which
// has the same tables, for what moves 16-bit and 8-bit values came later.
#include "avx2_few.h"
#include "avx512_base.h"
#include "avx512_lists.h"

namespace {

constexpr Most kCodeLists = {25, 25, kMostCodes}; // in floats, against pairs of products

Form form(const Weight &w, int64_t m, int32_t flags) {
  if (by_slots(w, m) || (w.strip && m <= kFewRows)) return sparse_form(w, m, flags);
  const bool lists = by_lists(w, m, integer(w.value) ? kCodeLists : kFloatLists);
  return lists ? lists_form(w, flags) : usual_form(w, m, flags);
}

void run(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
         int64_t b1) {
  const auto way = lanes(x.form)       ? many_rows<ByWide>
                   : narrow(x.form)    ? few_rows_of_x
                   : integer(w.value) ? run_blocks<WideCodes>
                                      : run_blocks<WideFloats>;
  way(w, x, job, y_type, b0, b1);
}

} // namespace

const Kernels se::kAvx512 = {kWideSide, form, prepare_rows, run, wide_unpack};
