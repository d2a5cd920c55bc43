// The parts of masked.h for the instruction set that this is compiled for.
#pragma once
#include "masked_skip.h"

namespace {
using namespace se;

void forward(const Formed &w, Panels x, int64_t tokens, int64_t n0, int64_t n1, float *y,
             float *room) {
  const int64_t count = n1 - n0, padded = x.panels * kWideTile;
  float *sums = room, *formed = sums + kBlockRows * padded, *a = formed + kBlockRows * kChunk;
  Piece p = {n0, count, 0, 0, a, a + w.rank * kChunk, formed, kChunk, kWideTile};
  copy_b(w, p);
  memset(formed + count * kChunk, 0, sizeof(float) * (size_t)((kBlockRows - count) * kChunk));
  for (p.k0 = 0; p.k0 < w.in; p.k0 += kChunk) {
    p.width = w.in - p.k0 < kChunk ? w.in - p.k0 : kChunk;
    copy_a(w, p);
    form(w, p);
    const float *panel = x.data + p.k0 * padded;
    Ahead ahead = next(w, n0, count, p.k0 + kChunk, kChunk);
    for (int64_t j = 0; j < x.panels; ++j, panel += kChunk * kWideTile)
      multiply<2, kChunk>({count, formed, 1, kRowsOfTile * kChunk}, {panel, kWideTile, p.width},
                          {sums + j * kWideTile, padded, p.k0 > 0}, ahead);
  }
  write_lines(sums, padded, count, tokens, y + n0, w.out);
}

void backward(const Formed &w, const float *dy, int64_t tokens, int64_t k0, int64_t k1, float *dx,
              float *room) {
  const int64_t width = k1 - k0, panels = (width + kWideTile - 1) / kWideTile;
  float *sums = room, *formed = sums + up_to(tokens, kRowsOfTile) * kChunk;
  float *a = formed + (kChunk + 1) * kChunk;
  Piece p = {0, 0, k0, width, a, a + w.rank * kChunk, formed, kWideTile, (kChunk + 1) * kWideTile};
  copy_a(w, p);
  for (p.n0 = 0; p.n0 < w.out; p.n0 += kTerms) {
    p.count = w.out - p.n0 < kTerms ? w.out - p.n0 : kTerms;
    copy_b(w, p);
    form(w, p);
    Ahead ahead = next(w, p.n0 + kTerms, kTerms, k0, width);
    const float *chunk = dy + p.n0 / kTerms * kChunk * up_to(tokens, kRowsOfTile);
    for (int64_t j = 0; j < panels; ++j)
      multiply<2, kChunk>({tokens, chunk, 1, kRowsOfTile * kChunk},
                          {formed + j * p.panel, kWideTile, p.count},
                          {sums + j * kWideTile, kChunk, p.n0 > 0}, ahead);
  }
  for (int64_t t = 0; t < tokens; ++t)
    memcpy(dx + t * w.in + k0, sums + t * kChunk, sizeof(float) * (size_t)width);
}

// G where the weight is kept, zero elsewhere.
void mask(const Formed &w, int64_t n0, int64_t count, int64_t k0, int64_t width, float *g) {
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t *kept = w.kept + (n0 + i) * w.in + k0;
    int64_t k = 0;
    for (; k + kLanesWide <= width; k += kLanesWide)
      store(g + i * kChunk + k, where(kept + k, load(g + i * kChunk + k)));
    for (; k < width; ++k) g[i * kChunk + k] = kept[k] ? g[i * kChunk + k] : 0.f;
  }
}

struct Gradients { // of one block of rows
  float *g;    // [rows, kChunk]
  float *b;    // [count, ranks]
  float *sums; // [rows, lanes]: of db
  int64_t lanes, ranks;
  int64_t apart; // of sums: row i, rank j at j / kPair * apart + i * lanes + j % kPair
};

// G of columns [k0, k0 + width).
void panel_gradients(const Formed &w, Panels x, int64_t tokens, int64_t n0, int64_t count,
                     int64_t k0, const float *dy, float *g) {
  const int64_t width = w.in - k0 < kChunk ? w.in - k0 : kChunk;
  const int64_t panels = (width + kWideTile - 1) / kWideTile;
  Ahead ahead = {(const char *)(w.kept + n0 * w.in + k0), w.in, width, count};
  for (int64_t t = 0; t < tokens; t += kChunk) {
    const int64_t steps = tokens - t < kChunk ? tokens - t : kChunk;
    for (int64_t j = 0; j < panels; ++j) {
      const int64_t at = t / kChunk * x.panels + k0 / kWideTile + j;
      multiply<2, 1>({count, dy + t * kRowsOfTile, kRowsOfTile, tokens * kRowsOfTile},
                     {x.data + at * kChunk * kWideTile, kWideTile, steps},
                     {g + j * kWideTile, kChunk, t > 0}, ahead);
    }
  }
  mask(w, n0, count, k0, width, g);
}

// What g adds to db.
void add_db(const Formed &w, Panels a, int64_t count, int64_t k0, const Gradients &r) {
  const int64_t width = w.in - k0 < kChunk ? w.in - k0 : kChunk;
  Ahead none = {nullptr, 0, 0, 0};
  for (int64_t j = 0; j < a.panels; ++j) {
    const float *panel = a.data + (k0 / kChunk * a.panels + j) * kChunk * kWideTile;
    const bool half = w.rank - j * kWideTile <= kLanesWide;
    const auto times = half ? multiply<1, kChunk> : multiply<2, kChunk>;
    times({count, r.g, 1, kRowsOfTile * kChunk}, {panel, kWideTile, width},
          {r.sums + j * kWideTile, r.lanes, k0 > 0}, none);
  }
}

// What g adds to da.
void add_da(const Formed &w, int64_t count, int64_t k0, const Gradients &r, float *da) {
  const int64_t width = w.in - k0 < kChunk ? w.in - k0 : kChunk;
  Ahead none = {nullptr, 0, 0, 0};
  for (int64_t j = 0; j * kWideTile < width; ++j)
    multiply<2, 1>({w.rank, r.b, r.ranks, kRowsOfTile}, {r.g + j * kWideTile, kChunk, count},
                   {da + k0 + j * kWideTile, up_to(w.in, kWideTile), true}, none);
}

// b of rows n .. n + count, with the scale, as products read it.
void lay_b(const Formed &w, int64_t n, int64_t count, const Gradients &r) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < r.ranks; ++j)
      r.b[i * r.ranks + j] = j < w.rank ? w.scale * w.b[(n + i) * w.rank + j] : 0.f;
}

void write_db(const Formed &w, int64_t n, int64_t count, const Gradients &r, bool first,
              float *db) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < w.rank; ++j) {
      float &to = db[(n + i) * w.rank + j];
      to = (first ? 0.f : to) + w.scale * r.sums[j / kPair * r.apart + i * r.lanes + j % kPair];
    }
}

Gradients gradients_in(const Formed &w, Panels a, int64_t rows, float *room) {
  Gradients r = {room, nullptr, nullptr, a.panels * kWideTile, up_to(w.rank, kRowsOfTile), kPair};
  const int64_t padded = up_to(rows, kRowsOfTile);
  r.b = r.g + padded * kChunk;
  r.sums = r.b + padded * r.ranks;
  memset(r.g, 0, sizeof(float) * (size_t)(padded * kChunk)); // products read whole tiles
  return r;
}

void factors(const Formed &w, Panels x, Panels a, const float *dy, int64_t tokens, int64_t n0,
             int64_t n1, bool first, float *da, float *db, float *room) {
  const Gradients r = gradients_in(w, a, kBlockRows, room);
  float *packed = r.sums + kBlockRows * r.lanes;
  for (int64_t n = n0; n < n1; n += kBlockRows) {
    const int64_t count = n1 - n < kBlockRows ? n1 - n : kBlockRows;
    pack_dy(dy, w.out, tokens, n, count, packed);
    lay_b(w, n, count, r);
    for (int64_t k = 0; k < w.in; k += kChunk) {
      panel_gradients(w, x, tokens, n, count, k, packed, r.g);
      add_db(w, a, count, k, r);
      add_da(w, count, k, r, da);
    }
    write_db(w, n, count, r, first, db);
  }
}

void factors_lists(const Formed &w, Panels x, Panels a, Panels dy, int64_t n0, int64_t n1,
                   bool first, float *da, float *db, float *room) {
  Lists &lists = *(Lists *)room;
  Gradients r = gradients_in(w, a, kChunk, room + sizeof(Lists) / sizeof(float));
  r.lanes = kPair, r.apart = kChunk * kPair;
  if (n0 >= n1) return;
  const int64_t most = parts_of(n1 - n0, parts_of(n1 - n0, kChunk)); // of even blocks
  for (int64_t n = n0; n < n1; n += most) {
    const int64_t count = n1 - n < most ? n1 - n : most;
    lay_b(w, n, count, r);
    for (int64_t k = 0; k < w.in; k += kChunk) {
      list_gradients(w, x, dy, n, count, k, lists, r.g);
      list_db(w, a, count, k, lists, r.sums);
      add_da(w, count, k, r, da);
    }
    write_db(w, n, count, r, first, db);
  }
}

constexpr MaskedSteps kSteps = {kRowsOfTile, kWideTile, kListed,       pack_lines,
                                pack_columns, pack_rows, forward,       backward,
                                factors,      forward_lists, backward_lists, factors_lists};

} // namespace
