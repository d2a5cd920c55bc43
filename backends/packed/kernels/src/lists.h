// Many rows of x against strips: a row of the weight becomes a list of its kept columns, and each
// of them is one product with rows of x that stand side by side. Zeros cost nothing.
//
// A class Way has:
//   make(value)                 what makes lists of values of a type (MakeLists)
//   tiles(lanes)                tiles of a strip that a chunk meets at a time: what the L1 cache holds
//   times(lists, part, lanes, sums)
//                               sums [rows, lanes] += the products of the lists of `part`
#pragma once
#include "avx2_rows.h"

namespace {

constexpr int64_t kPanel = 16; // row blocks whose lists one piece of x meets
constexpr int64_t kHalf = 8;   // rows whose lists stay in the L1 cache beside a piece of x
constexpr int64_t kListed = kPanel * kRows;
constexpr int64_t kListRoom = kListed * (kStripTiles * kCols + 8) + 32; // and what a store may pass

// Kept columns (as bytes from column 0 of 16 rows of x) and values of tile t of row i of a strip of
// n tiles are [ends[i n + t], ends[i n + t + 1]).
struct Lists {
  int32_t ends[kListed * kStripTiles + 1];
  alignas(32) uint16_t places[kListRoom];
  alignas(32) float values[kListRoom];
};

// Lists of `rows` rows of a strip, of which `at` is the first; returns the values that follow.
typedef const uint8_t *MakeLists(const uint8_t *mask, const uint8_t *values, int64_t width,
                                 int64_t rows, Lists &lists, int64_t at);

// Chunks [first, end) of rows of x that stand side by side.
struct Chunks {
  int64_t m, side, first, end;
  int64_t lanes(int64_t j) const { return lanes_of(m, side, j); }
  int64_t sums(int64_t j) const { return (j - first) * side * kRows; }
  const float *at(const Prepared &x, int64_t j, int64_t column) const {
    return (const float *)x.data + j * side * x.tiles * kCols + column * lanes(j);
  }
};

// Tiles [from, to) of the lists of rows [first, first + rows); x is column 0 of the strip. `ahead` is
// what comes next of x, `each` floats of it for a row.
struct Part {
  const float *x;
  int64_t first, rows, tiles, from, to; // tiles: of the strip
  const float *ahead;
  int64_t each;
  int64_t begin(int64_t row) const { return (first + row) * tiles + from; }
  int64_t end(int64_t row) const { return (first + row) * tiles + to; }
  void fetch(int64_t row) const {
    for (int64_t i = 0; i < each; i += 16) __builtin_prefetch(ahead + row * each + i, 0, 2);
  }
};

// Memory of one thread: lists of a panel, and sums [blocks, chunks, 16 rows, lanes of the chunk]; with
// scales, `now` since the last of them.
typedef float Rows[kMaxLines * kRows];
struct Skip {
  Lists lists;
  alignas(64) Rows now[kPanel];
  alignas(64) Rows all[kPanel];
};

// One strip, at most 8 rows at a time: calls each(first row, rows, first list). Lists follow those
// of `at`; where `alone` each time from 0. Returns the next strip's values.
template <class Way, class Each>
const uint8_t *each_lists(const Weight &w, const uint8_t *mask, const uint8_t *values,
                          int64_t width, Lists &lists, int64_t at, bool alone, Each each) {
  alignas(64) uint8_t codes[kCodesRoom];
  const uint8_t *next = nullptr;
  const bool narrow = w.value == SE_INT4;
  if (narrow) next = strip_codes(mask, values, width, codes), values = codes;
  const auto make = Way::make(w.value);
  for (int64_t r = 0; r < kRows; r += kHalf, mask += kHalf * width / 8) {
    const int64_t first = alone ? 0 : at + r;
    values = make(mask, values, width, kHalf, lists, first);
    each(r, kHalf, first);
  }
  return narrow ? next : values;
}

inline void flush_lanes(Skip &s, int64_t blocks, const Chunks &chunks, const float *const *scales) {
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t j = chunks.first; j < chunks.end; ++j) {
      float *now = s.now[b] + chunks.sums(j), *all = s.all[b] + chunks.sums(j);
      for (int64_t r = 0, i = 0; r < kRows; ++r) {
        const __m256 scale = _mm256_set1_ps(scales[b][r]);
        for (const int64_t end = i + chunks.lanes(j); i < end; i += 8) {
          const __m256 found = _mm256_mul_ps(_mm256_load_ps(now + i), scale);
          _mm256_store_ps(all + i, plus(_mm256_load_ps(all + i), found));
          _mm256_store_ps(now + i, _mm256_setzero_ps());
        }
      }
    }
}

// All chunks against the lists of a strip of `blocks` row blocks, from `column` on. Each piece of x is
// fetched whole before lists meet it in no order, and from farther away while the one before is met.
template <class Way>
void chunks_times(const Lists &lists, int64_t blocks, const Chunks &chunks, const Prepared &x,
                  int64_t column, int64_t tiles, Rows *sums) {
  const int64_t rest = x.tiles * kCols - column - tiles * kCols;
  for (int64_t j = chunks.first; j < chunks.end; ++j) {
    const int64_t lanes = chunks.lanes(j), step = Way::tiles(lanes);
    const float *at = chunks.at(x, j, column);
    for (int64_t t = 0, to; t < tiles; t = to) {
      to = t + step < tiles ? t + step : tiles;
      const float *piece = at + t * kCols * lanes, *next = at + to * kCols * lanes;
      for (const float *line = piece; line < next; line += 16) __builtin_prefetch(line);
      if (to == tiles) // of the next chunk, or else of the next strip
        next = j + 1 < chunks.end ? chunks.at(x, j + 1, column)
               : rest             ? chunks.at(x, chunks.first, column + tiles * kCols)
                                  : piece;
      const int64_t each = (to - t) * kCols * lanes / (blocks * kRows) / 16 * 16;
      for (int64_t i = 0; i < blocks; ++i) {
        const Part part = {at, i * kRows, kRows, tiles, t, to, next + i * kRows * each, each};
        Way::times(lists, part, lanes, sums[i] + chunks.sums(j));
      }
    }
  }
}

// Row blocks [b, b + blocks) of some chunks of x.
template <class Way>
void lists_panel(const Weight &w, const Prepared &x, int64_t b, int64_t blocks,
                 const Chunks &chunks, Skip &s) {
  const uint8_t *mask[kPanel], *values[kPanel];
  const float *scales[kPanel];
  for (int64_t i = 0; i < blocks; ++i) {
    mask[i] = w.strips.mask + (b + i) * w.tiles * kMaskBytes;
    values[i] = w.strips.values + w.begins[b + i];
    memset(s.all[i], 0, sizeof(float) * (size_t)chunks.sums(chunks.end));
    if (w.scales) memset(s.now[i], 0, sizeof(float) * (size_t)chunks.sums(chunks.end));
  }
  Rows *sums = w.scales ? s.now : s.all;
  const int64_t lanes = chunks.lanes(chunks.first);
  const bool alone = chunks.end == chunks.first + 1 && Way::tiles(lanes) >= w.strip;
  s.lists.ends[0] = 0;
  for (int64_t c = 0; c < w.tiles; c += w.strip) {
    const int64_t width = strip_width(w, c), tiles = width / kCols, next = c + tiles;
    for (int64_t i = 0; i < blocks; ++i, mask[i - 1] += kRows * width / 8)
      values[i] = each_lists<Way>(w, mask[i], values[i], width, s.lists, i * kRows, alone,
                             [&](int64_t r, int64_t rows, int64_t list) {
                               if (!alone) return;
                               const float *at = chunks.at(x, chunks.first, c * kCols);
                               const Part part = {at, list, rows, tiles, 0, tiles, at, 0};
                               Way::times(s.lists, part, lanes, sums[i] + r * lanes);
                             });
    if (!alone) chunks_times<Way>(s.lists, blocks, chunks, x, c * kCols, tiles, sums);
    if (!w.scales || (next % w.flush && next < w.tiles)) continue;
    for (int64_t i = 0; i < blocks; ++i)
      scales[i] = w.scales + ((b + i) * w.groups + c / w.group_tiles) * kRows;
    flush_lanes(s, blocks, chunks, scales);
  }
}

template <class Way>
void many_rows(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
               int64_t b1) {
  Skip &s = of_thread<Skip>();
  const int64_t all = (x.m + x.side - 1) / x.side, most = kMaxLines / x.side;
  for (int64_t b = b0; b < b1; b += kPanel) {
    const int64_t blocks = b1 - b < kPanel ? b1 - b : kPanel;
    for (int64_t first = 0; first < all; first += most) {
      const Chunks chunks = {x.m, x.side, first, first + most < all ? first + most : all};
      lists_panel<Way>(w, x, b, blocks, chunks, s);
      for (int64_t i = 0; i < blocks; ++i)
        for (int64_t j = chunks.first; j < chunks.end; ++j)
          for (int64_t m = j * x.side; m < (j + 1) * x.side && m < x.m; ++m) {
            float row[kRows];
            const float *from = s.all[i] + chunks.sums(j) + m % x.side;
            for (int64_t r = 0; r < kRows; ++r) row[r] = from[r * chunks.lanes(j)];
            store(x, job, y_type, w, b + i, m, row);
          }
    }
  }
}

} // namespace
