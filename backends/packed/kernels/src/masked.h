// Products of training with a weight that is formed under its mask, `M . (W + s B A)`, while it is
// multiplied: see masked.cpp for what is computed. Here are its parts: what one thread does.
//
// Written once over each instruction set's registers (masked_unit.h and what it includes); every
// unit is compiled for its own. All in float32. The tiles are those of any fast product (Goto and
// van de Geijn, "Anatomy of high-performance matrix multiplication", 2008); what is packed, and
// when, is ours.
#pragma once
#include "core.h"

namespace se {

constexpr int64_t kChunk = 256;  // columns of the weight, or tokens, that are packed at a time
constexpr int64_t kTokens = 512; // tokens of a call of the parts, at most
constexpr int64_t kBlock = 112;  // rows of the weight that are formed at a time, at most

// M . (W + s B A): W and M [out, in] row by row, A [rank, in], B [out, rank].
struct Formed {
  const float *weight;
  const uint8_t *kept;
  const float *a, *b;
  float scale;
  int64_t out, in, rank;
};

// Packed for tiles: [chunks, panels, kChunk, wide], where `wide` numbers lie side by side.
struct Panels {
  float *data;
  int64_t panels;
};

struct Listed {
  int64_t products, gradient;
};

struct MaskedSteps {
  int64_t rows, wide; // of a tile: numbers that are spread over registers, numbers in registers
  Listed most;        // of 100 weights, how many may be kept for the lists to win
  // One panel of one chunk of x [lines, width]: lines side by side, or columns.
  void (*pack_lines)(const float *x, int64_t lines, int64_t width, Panels to, int64_t part);
  void (*pack_columns)(const float *x, int64_t lines, int64_t width, Panels to, int64_t part);
  // Chunk `part` of whole(kChunk, rows) columns: [chunks, lines up to `rows`, kChunk].
  void (*pack_rows)(const float *x, int64_t lines, int64_t width, float *to, int64_t part);
  // y [tokens, n0 .. n1) of x, packed by lines; n1 - n0 at most kBlock, in whole tiles.
  void (*forward)(const Formed &w, Panels x, int64_t tokens, int64_t n0, int64_t n1, float *y,
                  float *room);
  // dx [tokens, k0 .. k1) of dy, packed by rows; k1 - k0 at most kChunk.
  void (*backward)(const Formed &w, const float *dy, int64_t tokens, int64_t k0, int64_t k1,
                   float *dx, float *room);
  // Of rows [n0, n1): db [n, rank] and the sum da [rank, padded in]; `first`: not yet begun.
  // x is packed by columns, A by lines.
  void (*factors)(const Formed &w, Panels x, Panels a, const float *dy, int64_t tokens, int64_t n0,
                  int64_t n1, bool first, float *da, float *db, float *room);
  // The same three by lists of what is kept, of at most kChunk rows or columns (`factors`: any):
  // zeros cost nothing. x and dy are packed by lines.
  void (*forward_lists)(const Formed &w, Panels x, int64_t tokens, int64_t n0, int64_t n1, float *y,
                        float *room);
  void (*backward_lists)(const Formed &w, Panels dy, int64_t tokens, int64_t k0, int64_t k1,
                         float *dx, float *room);
  void (*factors_lists)(const Formed &w, Panels x, Panels a, Panels dy, int64_t n0, int64_t n1,
                        bool first, float *da, float *db, float *room);
};

constexpr int64_t parts_of(int64_t n, int64_t each) { return (n + each - 1) / each; }
constexpr int64_t up_to(int64_t n, int64_t step) { return parts_of(n, step) * step; }
// Whole tiles of `rows` that are at most `most`.
constexpr int64_t whole(int64_t most, int64_t rows) { return most / rows * rows; }
// Floats that a part needs to work in: lists, sums, what is formed, factors.
inline int64_t masked_room(const Formed &w) {
  return 4 * kChunk * kChunk + (kChunk + 64) * (kTokens + 64) +
         3 * kChunk * (kChunk + up_to(w.rank, 64));
}

extern const MaskedSteps kMaskedPortable;
extern const MaskedSteps kMaskedAvx2;
extern const MaskedSteps kMaskedAvx512;

} // namespace se
