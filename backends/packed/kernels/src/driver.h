// The loop over row blocks, tiles and rows of x, around an instruction set's own steps.
//
// A step class K has:
//   X, Acc             types of prepared x and of sums
//   kPlanes            lines of x that make one row (2: high and low bytes)
//   kDirect            at most so many lines go straight from mask to sums
//   kStreams           row blocks whose tiles they then meet in turn: memory gives more to several
//                      streams than to one. More than 1: expand and direct fetch ahead themselves
//   kBeside            panels, of as many row blocks, that are multiplied at a time
//   kDeep, kPanel      of so many tiles each, and bytes of one: sums are then fetched less often
//   expand(value, mask, values, panel)            one tile; returns the next tile's values
//   multiply(panels, count, x, sums)              each sums [lines, 16] += its panels times x
//   direct(value, mask, values, x, lines, sums)   both at once
//   total(sums, codes)                            a row's sum from its planes
#pragma once
#include <memory>

#include "prepare.h"

namespace {

constexpr int64_t kPanelBytes = kTile * 4;
constexpr int64_t kAhead = 4096, kAheadOfStream = 2048; // bytes: of one stream, of several

// Lines of x for some tiles: [tiles, lines, 64], a tile's lines `apart` from the next tile's.
template <class X> struct Lines {
  const X *data;
  int64_t lines, tiles, apart;
};

inline void prefetch(const uint8_t *from, const uint8_t *to) {
  for (const uint8_t *at = from; at < to; at += 64) __builtin_prefetch(at);
}

constexpr int64_t kGroup = 8; // row blocks that meet a tile of many lines while it is in the caches

template <class K> struct Sums {
  alignas(64) typename K::Acc now[kMaxLines * kRows];
  alignas(64) float all[kMaxLines * kRows];
};

// Memory that a thread keeps: too large for the stacks that some programs give theirs.
template <class T> T &of_thread() {
  static thread_local std::unique_ptr<T> found;
  if (!found) found.reset(new T);
  return *found;
}

// Adds the sums since the last flush, scaled, and clears them.
template <class K>
void flush(Sums<K> &s, int64_t m, const float *scales, const int32_t *codes) {
  for (int64_t i = 0; i < m; ++i) {
    typename K::Acc *now = s.now + i * K::kPlanes * kRows;
    float *all = s.all + i * kRows;
    for (int64_t r = 0; r < kRows; ++r) {
      const float found = (float)K::total(now + r, codes ? codes[r] : 0);
      all[r] += scales ? found * scales[r] : found;
    }
  }
  memset(s.now, 0, sizeof(typename K::Acc) * (size_t)(m * K::kPlanes * kRows));
}

inline void store(const Prepared &x, const se_job &job, int32_t y_type, const Weight &w, int64_t b,
                  int64_t m, const float *sums) {
  const int64_t left = w.rows - b * kRows, n = left < kRows ? left : kRows;
  const int64_t at = m * job.ldy + b * kRows;
  const float scale = x.scale[m];
  for (int64_t r = 0; r < n; ++r) {
    const float scaled = sums[r] * scale;
    const float found = job.bias ? scaled + job.bias[b * kRows + r] : scaled;
    if (y_type == SE_X_F32)
      ((float *)job.y)[at + r] = found;
    else
      ((uint16_t *)job.y)[at + r] = (uint16_t)to_bf16(found);
  }
}

template <class K> struct Group {
  Sums<K> sums[kGroup];
};

struct Walk { // the next tile of a row block
  const uint8_t *mask, *values;
};

template <class K>
void run_tiles(int32_t value, Walk *at, int64_t count, const Lines<typename K::X> &x, Sums<K> *s,
               uint8_t *panels) {
  const bool straight = x.lines <= K::kDirect;
  typename K::Acc *sums[K::kBeside];
  for (int64_t i = 0; i < count; ++i) {
    sums[i] = s[i].now;
    for (int64_t d = 0; d < x.tiles; ++d) {
      const uint8_t *from = at[i].values;
      uint8_t *panel = panels + (d * count + i) * K::kPanel;
      at[i].values = straight ? K::direct(value, at[i].mask, from, x.data, x.lines, s[i].now)
                              : K::expand(value, at[i].mask, from, panel);
      if (K::kStreams == 1) prefetch(from + kAhead, at[i].values + kAhead);
      at[i].mask = at[i].mask ? at[i].mask + kMaskBytes : nullptr;
    }
  }
  if (!straight) K::multiply(panels, count, x, sums);
}

// Row blocks [b, b + blocks) of rows [m0, m0 + m) of x, a few tiles at a time.
template <class K>
void run_group(const Weight &w, const Prepared &x, int64_t b, int64_t blocks, int64_t m0, int64_t m,
               Sums<K> *s) {
  alignas(64) uint8_t panels[K::kBeside * K::kDeep * K::kPanel];
  Walk at[kGroup];
  for (int64_t i = 0; i < blocks; ++i)
    at[i] = {w.mask ? w.mask + (b + i) * w.tiles * kMaskBytes : nullptr, w.values + w.begins[b + i]};
  const int64_t apart = x.m * K::kPlanes * kCols;
  const typename K::X *data = (const typename K::X *)x.data + m0 * K::kPlanes * kCols;
  Lines<typename K::X> some = {data, m * K::kPlanes, 1, apart};
  const int64_t deep = some.lines <= K::kDirect ? 1 : K::kDeep;
  for (int64_t c = 0, since = 0; c < w.tiles; c += some.tiles, some.data += some.tiles * apart) {
    const int64_t left = w.tiles - c < w.flush - since ? w.tiles - c : w.flush - since;
    some.tiles = left < deep ? left : deep;
    for (int64_t i = 0; i < blocks; i += K::kBeside) {
      const int64_t count = blocks - i < K::kBeside ? blocks - i : K::kBeside;
      run_tiles<K>(w.value, at + i, count, some, s + i, panels);
    }
    since += some.tiles;
    if (since < w.flush && c + some.tiles < w.tiles) continue;
    since = 0;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t scale = ((b + i) * w.groups + c / w.group_tiles) * kRows;
      const int64_t sum = ((b + i) * w.flushes + c / w.flush) * kRows;
      flush<K>(s[i], m, w.scales ? w.scales + scale : nullptr, w.sums ? w.sums + sum : nullptr);
    }
  }
}

template <class K>
void run_blocks(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
                int64_t b1) {
  constexpr int64_t kMost = kMaxLines / K::kPlanes;
  const int64_t group = x.m * K::kPlanes <= K::kDirect ? K::kStreams : kGroup;
  Sums<K> *s = of_thread<Group<K>>().sums;
  for (int64_t b = b0; b < b1; b += group)
    for (int64_t m0 = 0; m0 < x.m; m0 += kMost) {
      const int64_t m = x.m - m0 < kMost ? x.m - m0 : kMost;
      const int64_t blocks = b1 - b < group ? b1 - b : group;
      for (int64_t i = 0; i < blocks; ++i) {
        memset(s[i].now, 0, sizeof(typename K::Acc) * (size_t)(m * K::kPlanes * kRows));
        memset(s[i].all, 0, sizeof(float) * (size_t)(m * kRows));
      }
      run_group<K>(w, x, b, blocks, m0, m, s);
      for (int64_t i = 0; i < blocks; ++i)
        for (int64_t line = 0; line < m; ++line)
          store(x, job, y_type, w, b + i, m0 + line, s[i].all + line * kRows);
    }
}

// The steps that most instruction sets share: floats, and 16-bit activations times codes.
struct FloatSums {
  typedef float X, Acc;
  static constexpr int64_t kPlanes = 1, kStreams = 1;
  static float total(const float *sums, int32_t) { return *sums; }
};

struct Int16Sums {
  typedef int16_t X;
  typedef int32_t Acc;
  static constexpr int64_t kPlanes = 1, kStreams = 1;
  static int32_t total(const int32_t *sums, int32_t) { return *sums; }
};

// Whether x is rounded to bfloat16.
inline bool halves(const Weight &w, int32_t flags) {
  return w.value == SE_BF16 && !(flags & SE_ACT32);
}

inline Form usual_form(const Weight &w, int64_t, int32_t flags) {
  return integer(w.value) ? kInt16 : halves(w, flags) ? kFloatFromBf16 : kFloat;
}

// Place in a float panel [64, 16] of element e of a tile in steps of g columns.
inline int64_t float_place(int64_t e, int64_t g) {
  return (e / (kRows * g) * g + e % g) * kRows + e / g % kRows;
}

// Place in an int16 panel [16 steps, 2, 16 rows, 2] of element e: columns 0 2, then 1 3.
inline int64_t int16_place(int64_t e) {
  const int64_t row = e / 4 % kRows, k = e % 4;
  return e / 64 * 64 + k % 2 * 32 + row * 2 + k / 2;
}

} // namespace
