// From the file's order to slots.
#include "slots.h"

#include "grid.h"

namespace se {
namespace {

// Slots of a window, in hundredths and on average, up to which one row of x gains: measured on Zen
// 3 at 50 to 90 % zeros against strips and the file's order. Wider values cost more of what slots
// have too many of, bytes; fp16 and codes cost more of what they save, moving values to columns.
int64_t most_slots(int32_t value) {
  return value == SE_BF16 ? 525 : value == SE_FP32 ? 430 : 650;
}

constexpr int64_t kMostCols = 1 << 18; // numbers and counts of windows have 16 bits

struct Making {
  const se_desc *d;
  Weight *w;
  uint8_t *found; // [2 blocks, windows]: slots of each
  uint8_t *data;
  int64_t *begins;
};

uint32_t kept_in(const Grid &grid, int64_t row, int64_t window) {
  return grid.kept[row][window];
}

// Slots of the windows of one row block.
void count_block(void *context, int64_t b) {
  const Making &making = *(const Making *)context;
  const Weight &w = *making.w;
  const uint8_t *mask = making.d->mask + b * w.tiles * kMaskBytes;
  const int64_t g = step(w.value);
  for (int64_t c = 0; c < w.tiles; ++c, mask += kMaskBytes) {
    uint8_t kept[kRows][kWindows] = {};
    for (int64_t byte = 0; byte < kMaskBytes; ++byte)
      for (uint32_t left = mask[byte]; left; left &= left - 1) {
        const int64_t e = byte * 8 + __builtin_ctz(left);
        ++kept[e / g % kRows][(e / (kRows * g) * g + e % g) / kWindow];
      }
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t i = 0; i < kWindows; ++i) {
        uint8_t &most = making.found[(2 * b + r / kHalf) * windows_of(w) + c * kWindows + i];
        most = kept[r][i] > most ? kept[r][i] : most;
      }
  }
}

// A window of 8 rows into its place.
void put_window(const Weight &w, const Grid &grid, int64_t half, int64_t window, int64_t slots,
                uint8_t *to) {
  const int64_t each = slot_bytes(w.value), size = each / kHalf;
  uint8_t *places = to + slots * each;
  for (int64_t lane = 0; lane < kHalf; ++lane) {
    const int64_t row = half * kHalf + lane;
    int64_t slot = 0;
    for (uint32_t left = kept_in(grid, row, window); left; left &= left - 1, ++slot) {
      const int64_t place = __builtin_ctz(left);
      const uint8_t *value = grid.values[row][window * kWindow + place];
      if (w.value == SE_INT4)
        to[slot * 4 + lane / 2] |= (uint8_t)(*value << (lane % 2 * 4));
      else
        memcpy(to + slot * each + lane * size, value, (size_t)size);
      uint32_t all = 0; // of the slot's 8 rows
      memcpy(&all, places + slot * kPlaceBytes, kPlaceBytes);
      all |= (uint32_t)place << (3 * lane);
      memcpy(places + slot * kPlaceBytes, &all, kPlaceBytes);
    }
  }
}

// Where the windows of a half row block go, by slots.
struct Places {
  uint8_t *data[kCounts];
  uint16_t *windows[kCounts];
};

Places head(const Making &making, int64_t h) {
  const Weight &w = *making.w;
  const int64_t all = windows_of(w), bytes = slot_bytes(w.value) + kPlaceBytes;
  uint8_t *data = making.data + making.begins[h];
  uint16_t *counts = (uint16_t *)data, *windows = counts + kCounts;
  for (int64_t i = 0; i < all; ++i) ++counts[making.found[h * all + i]];
  Places places;
  data += head_bytes(w);
  for (int64_t s = 0; s < kCounts; ++s) {
    places.data[s] = data, places.windows[s] = windows;
    data += counts[s] * s * bytes, windows += counts[s];
  }
  return places;
}

void fill_block(void *context, int64_t b) {
  const Making &making = *(const Making *)context;
  const Weight &w = *making.w;
  const int64_t all = windows_of(w), bytes = slot_bytes(w.value) + kPlaceBytes;
  Places places[2] = {head(making, 2 * b), head(making, 2 * b + 1)};
  const uint8_t *mask = making.d->mask + b * w.tiles * kMaskBytes;
  const uint8_t *from = making.d->values + w.begins[b];
  Grid grid;
  for (int64_t c = 0; c < w.tiles; ++c, mask += kMaskBytes) {
    memset(grid.kept, 0, sizeof grid.kept);
    from = scatter(w, mask, from, 0, grid);
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t i = 0; i < kWindows; ++i) {
        const int64_t s = making.found[(2 * b + half) * all + c * kWindows + i];
        *places[half].windows[s]++ = (uint16_t)(c * kWindows + i);
        put_window(w, grid, half, i, s, places[half].data[s]);
        places[half].data[s] += s * bytes;
      }
  }
}

int64_t up(int64_t value) { return (value + 63) / 64 * 64; }

} // namespace

bool to_slots(const se_desc &d, Weight &w, int32_t flags) {
  w.slots = {};
  if (d.kind == SE_DENSE || w.isa != SE_AVX2 || w.value == SE_FP8 || d.cols > kMostCols ||
      !slots_take(w, flags))
    return true;
  const int64_t halves = 2 * w.blocks, all = windows_of(w), bytes = slot_bytes(w.value) + kPlaceBytes;
  uint8_t *found = (uint8_t *)take(halves * all);
  if (!found) return false;
  Making making = {&d, &w, found, nullptr, nullptr};
  parallel(w.blocks, count_block, &making);
  int64_t slots = 0;
  for (int64_t i = 0; i < halves * all; ++i) slots += found[i];
  const bool pays = 100 * slots <= most_slots(w.value) * halves * all;
  if (pays) {
    const int64_t stream = up(slots * bytes + halves * (head_bytes(w) + 1) + kPad);
    w.slots.bytes = stream + halves * (int64_t)sizeof(int64_t);
    w.slots.arena = take(w.slots.bytes);
  }
  if (w.slots.arena) {
    making.data = (uint8_t *)w.slots.arena;
    making.begins = (int64_t *)(making.data + w.slots.bytes) - halves;
    int64_t begin = 0;
    for (int64_t h = 0; h < halves; ++h) {
      making.begins[h] = begin += begin & 1; // the heads are of 16 bits
      begin += head_bytes(w);
      for (int64_t i = 0; i < all; ++i) begin += found[h * all + i] * bytes;
    }
    parallel(w.blocks, fill_block, &making);
    w.slots.data = making.data, w.slots.begins = making.begins;
  }
  give(found, halves * all);
  return !pays || w.slots.arena;
}

} // namespace se
