// Strips: the order in which table-driven kernels read a sparse weight in place of the file's.
//
// A strip is 16 rows by `strip` tiles of columns (the last one of a row block may be narrower).
// Its mask is [16, width / 8], bit k % 8 of byte k / 8 for column k, and its values are those of
// the set bits row by row. So one stream serves both ways through it: along a row for few rows of
// x, and as a list of a row's columns for many. int4: a strip's values begin at a byte.
#pragma once
#include "core.h"

namespace se {

constexpr int64_t kMostFloats = 60, kMostCodes = 27; // of 100 weights, that make strips pay

int64_t strip_tiles(const se_desc &d, const Weight &w); // 0: no strips
void to_strips(const se_desc &d, Weight &w, uint8_t *mask, uint8_t *values);
void unpack_strips(const Weight &w, int64_t b, float *out); // a row block, as se_unpack has it

// Whether strips take the place of the file's order: AVX2 has no use for that.
inline bool strips_alone(const Weight &w) { return w.strip && w.isa == SE_AVX2; }

inline int64_t strip_width(const Weight &w, int64_t c) { // columns of the strip from tile c on
  return (w.tiles - c < w.strip ? w.tiles - c : w.strip) * kCols;
}

} // namespace se
