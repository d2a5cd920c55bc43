// The parts of masked.h that skip what the mask has taken away: products of lists.
#pragma once
#include "masked_lists.h"

namespace {
using namespace se;

constexpr int64_t kFew = 2 * kRowsOfTile; // rows that are formed before their lists are made
constexpr int64_t kApart = kChunk * kWideTile; // floats from panel to panel of a chunk

// Lanes `v` of an entry: two of each panel.
template <int kVecs> inline Lanes lane(const float *x, int64_t place, int v) {
  return load((const float *)((const char *)x + place) + v / 2 * kApart + v % 2 * kLanesWide);
}

// One piece of panels, fetched whole before lists meet it in no order.
template <int kVecs> inline void fetch(const float *x, int64_t columns) {
  for (int64_t v = 0; v < kVecs; v += 2)
    for (int64_t i = 0; i < columns * kWideTile; i += 16)
      __builtin_prefetch(x + v / 2 * kApart + i);
}

struct Soon { // what is formed next, and the piece of x that is met next
  Ahead weight, kept, x = {nullptr, 0, 0, 0};
  void next() {
    for (int i = 0; i < 2; ++i) weight.next();
    kept.next();
    for (int i = 0; i < 2; ++i) x.next();
  }
};

constexpr int64_t kPair = 2 * kWideTile; // sums of a line and two panels

// sums [lines, kPair] of one half: += list i times its columns of x.
template <int kVecs>
__attribute__((noinline)) void lists_times(const Lists &lists, int64_t lines, int64_t half,
                                           const float *x, float *sums, bool add, Soon &soon) {
  for (int64_t i = 0; i < lines; ++i, sums += kPair) {
    soon.next();
    const float *values = lists.values[i][half];
    const uint16_t *places = lists.places[i][half];
    Lanes now[2][kVecs];
    SE_UNROLL for (int v = 0; v < kVecs; ++v) {
      now[0][v] = add ? load(sums + v * kLanesWide) : all(0.f);
      now[1][v] = all(0.f);
    }
    const int64_t count = lists.count[i][half];
    for (int64_t at = 0; at < count; at += kFour) {
      const Four four(values + at);
      uint64_t four_places;
      memcpy(&four_places, places + at, 8);
      const int64_t a = four_places & 0xffff, b = four_places >> 16 & 0xffff;
      const int64_t c = four_places >> 32 & 0xffff, d = (int64_t)(four_places >> 48);
      SE_UNROLL for (int v = 0; v < kVecs; ++v)
        now[0][v] = fma(four.get<0>(), lane<kVecs>(x, a, v), now[0][v]);
      SE_UNROLL for (int v = 0; v < kVecs; ++v)
        now[1][v] = fma(four.get<1>(), lane<kVecs>(x, b, v), now[1][v]);
      SE_UNROLL for (int v = 0; v < kVecs; ++v)
        now[0][v] = fma(four.get<2>(), lane<kVecs>(x, c, v), now[0][v]);
      SE_UNROLL for (int v = 0; v < kVecs; ++v)
        now[1][v] = fma(four.get<3>(), lane<kVecs>(x, d, v), now[1][v]);
    }
    SE_UNROLL for (int v = 0; v < kVecs; ++v) store(sums + v * kLanesWide, now[0][v] + now[1][v]);
  }
}

// Lines [i, end) of one half: values, or where `add` values +, the products of a line of y with the
// columns in its list.
template <int kVecs>
__attribute__((noinline)) void lists_dots(Lists &lists, int64_t i, int64_t end, int64_t half,
                                          const float *x, const float *y, bool add, Soon &soon) {
  for (; i < end; ++i, y += kWideTile) {
    soon.next();
    float *values = lists.values[i][half];
    const uint16_t *places = lists.places[i][half];
    Lanes line[kVecs];
    SE_UNROLL for (int v = 0; v < kVecs; ++v) line[v] = lane<kVecs>(y, 0, v);
    const int64_t count = lists.count[i][half];
    for (int64_t at = 0; at < count; at += kEight) {
      Lanes sums[kEight];
      uint64_t eight[2]; // by two loads
      memcpy(eight, places + at, 16);
      SE_UNROLL for (int e = 0; e < kEight; ++e) {
        const int64_t place = (int64_t)(eight[e / 4] >> (e % 4 * 16) & 0xffff);
        sums[e] = line[0] * lane<kVecs>(x, place, 0);
        SE_UNROLL for (int v = 1; v < kVecs; ++v)
          sums[e] = fma(line[v], lane<kVecs>(x, place, v), sums[e]);
      }
      store_sums(sums, values + at, add);
    }
  }
}

// Each half and pair of panels of chunk `c`; `narrow`: one panel, of which half is padding.
template <class Times>
void each_piece(Panels x, int64_t c, int64_t width, Soon &soon, const Times &times,
                bool narrow = false) {
  const float *chunk = x.data + c * x.panels * kApart;
  for (int64_t j = 0; j < x.panels; j += 2)
    for (int64_t half = 0; half * kHalf < width; ++half) {
      const float *piece = chunk + j * kApart + half * kHalf * kWideTile;
      const int64_t columns = width - half * kHalf < kHalf ? width - half * kHalf : kHalf;
      const bool last = (half + 1) * kHalf >= width;
      const float *then = last ? chunk + (j + 2) * kApart : piece + kHalf * kWideTile;
      const bool more = !last || j + 2 < x.panels;
      soon.x = {(const char *)then, kApart * 4, kHalf * kPlace, more ? 2 : 0};
      if (narrow)
        times.template run<1>(half, piece, columns, j);
      else if (j + 1 < x.panels)
        times.template run<4>(half, piece, columns, j);
      else
        times.template run<2>(half, piece, columns, j);
    }
}

struct IntoSums {
  const Lists &lists;
  int64_t lines;
  float *sums; // [pairs of panels, kChunk, kPair]
  bool add;
  Soon &soon;
  template <int kVecs>
  void run(int64_t half, const float *x, int64_t columns, int64_t panel) const {
    fetch<kVecs>(x, columns);
    lists_times<kVecs>(lists, lines, half, x, sums + panel / 2 * kChunk * kPair, add || half > 0,
                       soon);
  }
};

struct IntoDots {
  Lists &lists;
  int64_t first, end;
  const float *y; // line `first`, panel 0
  Soon &soon;
  template <int kVecs>
  void run(int64_t half, const float *x, int64_t columns, int64_t panel) const {
    fetch<kVecs>(x, columns);
    lists_dots<kVecs>(lists, first, end, half, x, y + panel * kApart, panel > 0, soon);
  }
};

struct Work { // of a part
  Lists *lists;
  float *sums, *formed, *a;
  Work(float *room, int64_t panels) {
    lists = (Lists *)room;
    sums = room + sizeof(Lists) / sizeof(float);
    formed = sums + parts_of(panels, 2) * kChunk * kPair;
    a = formed + (kChunk + kWideTile) * kChunk;
  }
};

// to [tokens, ld] from what was summed line by line.
void write_pairs(const float *sums, int64_t lines, int64_t tokens, float *to, int64_t ld) {
  for (int64_t t = 0; t < tokens; t += kPair, sums += kChunk * kPair)
    write_lines(sums, kPair, lines, tokens - t < kPair ? tokens - t : kPair, to + t * ld, ld);
}

void forward_lists(const Formed &w, Panels x, int64_t tokens, int64_t n0, int64_t n1, float *y,
                   float *room) {
  const int64_t count = n1 - n0;
  const Work at(room, x.panels);
  Piece p = {n0, count, 0, 0, at.a, at.a + w.rank * kChunk, at.formed, kChunk, kWideTile};
  copy_b(w, p);
  for (p.k0 = 0; p.k0 < w.in; p.k0 += kChunk) {
    p.width = w.in - p.k0 < kChunk ? w.in - p.k0 : kChunk;
    copy_a(w, p);
    for (int64_t i = 0; i < count; i += kFew) {
      const int64_t few = count - i < kFew ? count - i : kFew;
      form(w, {n0 + i, few, p.k0, p.width, p.a, p.b + i * w.rank, p.out, p.ld, p.panel});
      list_rows(i, few, p.width, *at.lists,
                [&](int64_t j, int64_t k) { return load(at.formed + j * kChunk + k); });
    }
    Soon soon = {next(w, n0, count, p.k0 + kChunk, kChunk),
                 next_kept(w, n0, count, p.k0 + kChunk, kChunk)};
    each_piece(x, p.k0 / kChunk, p.width, soon,
               IntoSums{*at.lists, count, at.sums, p.k0 > 0, soon});
  }
  write_pairs(at.sums, count, tokens, y + n0, w.out);
}

void backward_lists(const Formed &w, Panels dy, int64_t tokens, int64_t k0, int64_t k1, float *dx,
                    float *room) {
  const int64_t width = k1 - k0;
  const Work at(room, dy.panels);
  Piece p = {0, 0, k0, width, at.a, at.a + w.rank * kChunk, at.formed, kChunk, kWideTile};
  copy_a(w, p);
  for (p.n0 = 0; p.n0 < w.out; p.n0 += kChunk) {
    p.count = w.out - p.n0 < kChunk ? w.out - p.n0 : kChunk;
    copy_b(w, p);
    memset(at.formed + p.count * kChunk, 0, sizeof(float) * (size_t)(kLanesWide * kChunk));
    form(w, p);
    list_columns(at.formed, p.count, width, *at.lists);
    Soon soon = {next(w, p.n0 + kChunk, kChunk, k0, width),
                 next_kept(w, p.n0 + kChunk, kChunk, k0, width)};
    each_piece(dy, p.n0 / kChunk, p.count, soon,
               IntoSums{*at.lists, width, at.sums, p.n0 > 0, soon});
  }
  write_pairs(at.sums, width, tokens, dx + k0, w.in);
}

// G of `count` rows from n on, columns [k0, k0 + width), zero where the weight is not kept.
void list_gradients(const Formed &w, Panels x, Panels dy, int64_t n, int64_t count, int64_t k0,
                    Lists &lists, float *g) {
  const int64_t width = w.in - k0 < kChunk ? w.in - k0 : kChunk;
  list_mask(w.kept + n * w.in + k0, w.in, count, width, lists);
  const Ahead none = {nullptr, 0, 0, 0};
  Soon soon = {none, next_kept(w, n, count, k0 + kChunk, kChunk)};
  // Lines of dy that follow in memory are those of one chunk.
  for (int64_t i = 0, most; i < count; i += most) {
    most = kChunk - (n + i) % kChunk;
    if (most > count - i) most = count - i;
    const float *line =
        dy.data + ((n + i) / kChunk * dy.panels * kChunk + (n + i) % kChunk) * kWideTile;
    each_piece(x, k0 / kChunk, width, soon, IntoDots{lists, i, i + most, line, soon});
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t half = 0; half * kHalf < width; ++half) {
      const float *values = lists.values[i][half];
      const int64_t end = width < (half + 1) * kHalf ? width : (half + 1) * kHalf;
      const uint8_t *kept = w.kept + (n + i) * w.in + k0;
      float *to = g + i * kChunk;
      int64_t k = half * kHalf;
      for (; k + kLanesWide <= end; k += kLanesWide) values += spread(kept + k, values, to + k);
      spread(kept + k, end - k, values, to + k);
      // Dots with places that only fill up are not part of the list.
      memset(lists.values[i][half] + lists.count[i][half], 0, sizeof(float) * kFour);
    }
}

// What G in lists adds to db.
void list_db(const Formed &w, Panels a, int64_t count, int64_t k0, const Lists &lists,
             float *sums) {
  const int64_t width = w.in - k0 < kChunk ? w.in - k0 : kChunk;
  const Ahead none = {nullptr, 0, 0, 0};
  Soon soon = {none, none};
  each_piece(a, k0 / kChunk, width, soon, IntoSums{lists, count, sums, k0 > 0, soon},
             w.rank <= kLanesWide);
}

} // namespace
