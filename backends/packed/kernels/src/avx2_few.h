// Few rows of x against strips and slots: what the instruction sets without VBMI2 share.
#pragma once
#include "avx2_code_slots.h"
#include "avx2_float_slots.h"
#include "avx2_rows.h"

namespace {

// Whether x lies in plain rows or planes.
inline bool narrow(Form form) { return form >= kRowFloat && form <= kPlanesFloat; }

inline Form lists_form(const Weight &w, int32_t flags) {
  return integer(w.value) ? kLanesCodes : halves(w, flags) ? kLanesFromBf16 : kLanesFloat;
}

// One row of x by slots, few along the rows of strips, many by lists of columns.
inline Form sparse_form(const Weight &w, int64_t m, int32_t flags) {
  if (by_slots(w, m) && integer(w.value)) return flags & SE_ACT16 ? kPlanesCodes : kRowByte;
  if (by_slots(w, m)) return halves(w, flags) ? kPlanesBf16 : kPlanesFloat;
  if (m > kFewRows) return lists_form(w, flags);
  if (integer(w.value)) return flags & SE_ACT16 ? kRowInt16 : kRowByte;
  return halves(w, flags) ? kRowFromBf16 : kRowFloat;
}

template <template <int> class Row>
void few(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
         int64_t b1) {
  const auto run = w.fixed == 4   ? few_rows<Row<4>>
                   : w.fixed == 2 ? few_rows<Row<2>>
                                  : few_rows<Row<0>>;
  run(w, x, job, y_type, b0, b1);
}

// x in rows or planes.
inline void few_rows_of_x(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type,
                          int64_t b0, int64_t b1) {
  if (by_slots(w, x.m))
    return (integer(w.value) ? one_row_of_codes : one_row_of_floats)(w, x, job, y_type, b0, b1);
  if (x.form == kRowByte) return few<RowByte>(w, x, job, y_type, b0, b1);
  if (x.form == kRowInt16) return few_rows<RowInt16<0>>(w, x, job, y_type, b0, b1);
  if (w.value == SE_BF16) return few<RowBf16>(w, x, job, y_type, b0, b1);
  const auto run = w.value == SE_FP16 ? few_rows<RowFp16<0>> : few_rows<RowFp32<0>>;
  run(w, x, job, y_type, b0, b1);
}

} // namespace
