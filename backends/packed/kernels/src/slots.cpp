// From the file's order to slots.
#include "slots.h"

#include <string.h>

namespace se {
namespace {

// Slots of 8 columns, in hundredths and on average, up to which one row of x gains: measured on Zen
// 3 at 50 to 90 % zeros against strips and the file's order. Wide values cost more of what slots
// have too many of, bytes; fp16 and codes cost more of what they save, moving values to columns.
int64_t most_slots(int32_t value) {
  return value == SE_BF16 ? 500 : value == SE_FP32 ? 440 : 560;
}

constexpr int64_t kMostCols = 1 << 17; // numbers and counts of windows have 16 bits


struct Making {
  const se_desc *d;
  const Weight *w;
  uint8_t *found; // [2 blocks, windows]: slots of each
  uint8_t *taken; // [blocks, 16, windows]: values that a row has in each
  uint8_t **spots; // [2 blocks, windows]: where each begins
  uint8_t *data;
  int64_t *begins;
};

// Calls put(row, column, values, number) for the kept values of a row block in the order of the
// file, which for each row is that of its columns; numbers count from `values`, those of the tile.
template <class Put> void each_kept(const Making &making, int64_t b, Put put) {
  const Weight &w = *making.w;
  const uint8_t *mask = making.d->mask + b * w.tiles * kMaskBytes;
  const uint8_t *values = making.d->values + w.begins[b];
  const int64_t g = step(w.value);
  for (int64_t c = 0; c < w.tiles; ++c, mask += kMaskBytes) {
    int64_t found = 0;
    for (int64_t byte = 0; byte < kMaskBytes; ++byte)
      for (uint32_t left = mask[byte]; left; left &= left - 1, ++found) {
        const int64_t e = byte * 8 + __builtin_ctz(left);
        put(e / g % kRows, c * kCols + e / (kRows * g) * g + e % g, values, found);
      }
    values += bytes_of(w.value, found);
  }
}

// Slots of the windows of one row block. A row with slots to spare takes values of the next window
// early, so that what rows keep in one place evens out.
void count_block(void *context, int64_t b) {
  const Making &making = *(const Making *)context;
  const Weight &w = *making.w;
  const int64_t all = windows_of(w);
  // What follows the last window, or has another scale, cannot come early.
  const int64_t group = w.groups > 1 ? w.group_tiles * kCols / w.slots.stride : all;
  uint8_t *taken = making.taken + b * kRows * all;
  each_kept(making, b, [&](int64_t row, int64_t column, const uint8_t *, int64_t) {
    ++taken[row * all + column / w.slots.stride];
  });
  for (int64_t half = 0; half < 2; ++half, taken += kHalf * all)
    for (int64_t i = 0; i < all; ++i) {
      uint8_t most = 0;
      for (int64_t r = 0; r < kHalf; ++r)
        most = taken[r * all + i] > most ? taken[r * all + i] : most;
      making.found[(2 * b + half) * all + i] = most;
      if (w.slots.stride == kWindow || (i + 1) % group == 0 || i + 1 == all) continue;
      for (int64_t r = 0; r < kHalf; ++r) {
        uint8_t &own = taken[r * all + i], &next = taken[r * all + i + 1];
        const uint8_t spare = (uint8_t)(most - own), early = spare < next ? spare : next;
        own = (uint8_t)(own + early), next = (uint8_t)(next - early);
      }
    }
}

// The head of a half row block, and where each of its windows goes.
void lay_out(const Making &making, int64_t h) {
  const Weight &w = *making.w;
  const int64_t all = windows_of(w), bytes = slot_bytes(w.value) + kPlaceBytes;
  uint8_t *data = making.data + making.begins[h];
  uint16_t *counts = (uint16_t *)data, *windows = counts + kCounts;
  const uint8_t *found = making.found + h * all;
  for (int64_t i = 0; i < all; ++i) ++counts[found[i]];
  data += head_bytes(w);
  for (int64_t s = 0; s < kCounts; ++s)
    for (int64_t i = 0; counts[s] && i < all; ++i) {
      if (found[i] != s) continue;
      making.spots[h * all + i] = data;
      *windows++ = (uint16_t)(first_column(w, i) / w.slots.stride);
      data += s * bytes;
    }
}

void fill_block(void *context, int64_t b) {
  const Making &making = *(const Making *)context;
  const Weight &w = *making.w;
  const int64_t all = windows_of(w), each = slot_bytes(w.value), size = each / kHalf;
  lay_out(making, 2 * b), lay_out(making, 2 * b + 1);
  int64_t at[kRows] = {}, slot[kRows] = {}; // the window and slot that a row has come to
  each_kept(making, b, [&](int64_t row, int64_t column, const uint8_t *values, int64_t number) {
    while (slot[row] == making.taken[(b * kRows + row) * all + at[row]]) ++at[row], slot[row] = 0;
    const int64_t window = (2 * b + row / kHalf) * all + at[row], lane = row % kHalf;
    uint8_t *to = making.spots[window] + slot[row] * each;
    if (w.value == SE_INT4)
      to[lane / 2] |= (uint8_t)((values[number / 2] >> (number % 2 * 4) & 15) << (lane % 2 * 4));
    else
      memcpy(to + lane * size, values + number * size, (size_t)size);
    uint8_t *places = making.spots[window] + making.found[window] * each + slot[row] * kPlaceBytes;
    uint32_t bits = 0; // of the slot's 8 rows
    memcpy(&bits, places, kPlaceBytes);
    bits |= (uint32_t)(column - first_column(w, at[row])) << (3 * lane);
    memcpy(places, &bits, kPlaceBytes);
    ++slot[row];
  });
}

int64_t up(int64_t value) { return (value + 63) / 64 * 64; }

} // namespace

bool to_slots(const se_desc &d, Weight &w, int32_t flags) {
  w.slots = {};
  if (d.kind == SE_DENSE || w.isa != SE_AVX2 || w.value == SE_FP8 || d.cols > kMostCols ||
      !slots_take(w, flags))
    return true;
  w.slots.stride = d.kind == SE_NM && d.m <= kWindow ? kWindow : kWindow / 2;
  const int64_t halves = 2 * w.blocks, all = windows_of(w), bytes = slot_bytes(w.value) + kPlaceBytes;
  const int64_t spots = halves * all * (int64_t)sizeof(uint8_t *), taken = w.blocks * kRows * all;
  uint8_t *room = (uint8_t *)take(spots + taken + halves * all);
  if (!room) return false;
  uint8_t *found = room + spots + taken;
  Making making = {&d, &w, found, room + spots, (uint8_t **)room, nullptr, nullptr};
  parallel(w.blocks, count_block, &making);
  int64_t slots = 0;
  for (int64_t i = 0; i < halves * all; ++i) slots += found[i];
  const bool pays = 100 * slots * kWindow <= most_slots(w.value) * halves * all * w.slots.stride;
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
  give(room, spots + taken + halves * all);
  return !pays || w.slots.arena;
}

} // namespace se
