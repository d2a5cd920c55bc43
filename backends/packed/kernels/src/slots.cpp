// From the file's order to slots.
#include "slots.h"

#include <string.h>

#include "memory.h"
#include "tile.h"

namespace se {
namespace {

constexpr int64_t kMostColumns = kFlushTiles * kCols; // of a section

// Values of slots, empty ones too, for 100 weights, up to which one row of x gains. Measured on Zen 3
// from 30 % zeros on, where they are 75: all types gain over strips and the file's order. With VBMI2,
// measured on Ice Lake, 16-bit values and int8 are faster in the file's order until zeros are so many
// that expanding them costs more than bytes (slots gain at 80 %, 27, and not at 70 %, 36); fp32 has no
// straight way there, and int4 would be widened first: they gain as with AVX2, and from half zeros on.
int64_t most_values(int32_t isa, int32_t value) {
  constexpr int64_t kUsual = 80, kInt4 = 60, kExpanded = 30;
  if (isa == SE_AVX2 || isa == SE_AVX512) return kUsual;
  if (isa != SE_AVX512_VNNI) return 0;
  return value == SE_FP32 ? kUsual : value == SE_INT4 ? kInt4 : kExpanded;
}

constexpr uint16_t kNone = 0xffff;

// The kept columns of a section, row by row; kEach times kNone behind the last.
struct Section {
  int64_t columns; // the section's width
  int64_t count[kRows];
  uint16_t column[kRows][kMostColumns + kEach];
  uint8_t value[kRows][kMostColumns][4]; // as stored; a 4-bit code in a byte
};

struct Making {
  const se_desc *d;
  const Weight *w;
  int64_t *twos; // [2 blocks]: of each half row block
  uint8_t *data;
  int64_t *begins;
};

// Calls slot(first column, from [8], count [8]) for each slot of 8 rows of a section: row r has its
// kept columns [from, from + count) in it. Without branches: rows differ in what they have left.
template <class Slot> void each_slot(const Section &section, int64_t row0, Slot slot) {
  const int64_t last = section.columns - kWindow;
  int64_t from[kHalf] = {}, count[kHalf];
  for (;;) {
    int64_t first = kNone;
    for (int64_t r = 0; r < kHalf; ++r) {
      const int64_t next = section.column[row0 + r][from[r]];
      first = next < first ? next : first;
    }
    if (first == kNone) return;
    first = first < last ? first : last;
    for (int64_t r = 0; r < kHalf; ++r) {
      const uint16_t *next = section.column[row0 + r] + from[r];
      count[r] = 0;
      for (int64_t i = 0; i < kEach; ++i) count[r] += next[i] < first + kWindow;
    }
    slot(first, from, count);
    for (int64_t r = 0; r < kHalf; ++r) from[r] += count[r];
  }
}

// Slots of 8 rows of a section, one after the other.
struct Writer {
  const Weight *w;
  const Section *section;
  int64_t row0;
  uint8_t *data; // of the section; null: only counted
  int64_t slots, window;

  void put(int64_t first, const int64_t *from, const int64_t *count) {
    for (; first - window > 255; ++slots, window += 255)
      if (data) *step_to() = 255;
    if (data) {
      *step_to() = (uint8_t)(first - window);
      for (int64_t r = 0; r < kHalf; ++r)
        for (int64_t i = 0; i < count[r]; ++i) fill(first, r, i, from[r] + i);
    }
    ++slots, window = first;
  }
  uint8_t *tail() const { // of the two at hand
    return data + slots / 2 * two_bytes(w->value) + bytes_of(w->value, 2 * kSlot);
  }
  uint8_t *step_to() const { return tail() + kSlot + slots % 2; }
  void fill(int64_t first, int64_t r, int64_t i, int64_t at) const {
    const int64_t second = slots % 2, place = kEach * r + i, size = 4 / step(w->value);
    const uint8_t *value = section->value[row0 + r][at];
    const int64_t column = section->column[row0 + r][at] - first;
    uint8_t *places = tail(), *values = places - bytes_of(w->value, 2 * kSlot);
    if (w->value == SE_INT4)
      values[place] |= (uint8_t)(*value << (4 * second));
    else
      copy_value(values + number_of(w->value, second, place) * size, value, size);
    places[place] |= (uint8_t)(column << (4 * second));
  }
};

// The sections of a row block in order: each(number, section).
template <class Each> void each_section(const Making &making, int64_t b, Each each) {
  const Weight &w = *making.w;
  const uint8_t *mask = making.d->mask + b * w.tiles * kMaskBytes;
  const uint8_t *values = making.d->values + w.begins[b];
  Section section;
  for (int64_t c = 0, s = 0; c < w.tiles; ++s) {
    const int64_t after = c + section_tiles(w), end = after < w.tiles ? after : w.tiles;
    section.columns = (end - c) * kCols;
    memset(section.count, 0, sizeof section.count);
    for (int64_t first = 0; c < end; ++c, first += kCols, mask += kMaskBytes)
      values = each_kept(w.value, mask, values, [&](int64_t row, int64_t column) {
        const int64_t next = section.count[row]++;
        section.column[row][next] = (uint16_t)(first + column);
        return section.value[row][next];
      });
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t i = 0; i < kEach; ++i) section.column[r][section.count[r] + i] = kNone;
    each(s, section);
  }
}

int64_t write(const Making &making, const Section &section, int64_t half, uint8_t *data) {
  Writer writer = {making.w, &section, half * kHalf, data, 0, 0};
  each_slot(section, half * kHalf, [&](int64_t first, const int64_t *from, const int64_t *count) {
    writer.put(first, from, count);
  });
  return (writer.slots + 1) / 2;
}

void count_block(void *context, int64_t b) {
  const Making &making = *(const Making *)context;
  each_section(making, b, [&](int64_t, const Section &section) {
    for (int64_t half = 0; half < 2; ++half)
      making.twos[2 * b + half] += write(making, section, half, nullptr);
  });
}

void fill_block(void *context, int64_t b) {
  const Making &making = *(const Making *)context;
  const Weight &w = *making.w;
  uint8_t *heads[2], *at[2];
  for (int64_t half = 0; half < 2; ++half) {
    heads[half] = making.data + making.begins[2 * b + half];
    at[half] = heads[half] + 2 * sections(w);
  }
  each_section(making, b, [&](int64_t s, const Section &section) {
    for (int64_t half = 0; half < 2; ++half) {
      const uint16_t twos = (uint16_t)write(making, section, half, at[half]);
      memcpy(heads[half] + 2 * s, &twos, 2);
      at[half] += twos * two_bytes(w.value);
    }
  });
}

// Memory for all twos, and where each half row block begins.
void lay_out(Making &making, Weight &w, int64_t all) {
  const int64_t halves = 2 * w.blocks, head = 2 * sections(w);
  const int64_t stream = (all * two_bytes(w.value) + halves * head + kPad + 63) / 64 * 64;
  w.slots.bytes = stream + halves * (int64_t)sizeof(int64_t);
  w.slots.arena = take(w.slots.bytes);
  if (!w.slots.arena) return;
  making.data = (uint8_t *)w.slots.arena;
  making.begins = (int64_t *)(making.data + stream);
  int64_t begin = 0;
  for (int64_t h = 0; h < halves; ++h) {
    making.begins[h] = begin;
    begin += head + making.twos[h] * two_bytes(w.value);
  }
}

} // namespace

bool to_slots(const se_desc &d, Weight &w) {
  w.slots = {};
  const int64_t most = most_values(w.isa, w.value);
  if (d.kind == SE_DENSE || !most || w.value == SE_FP8) return true;
  const int64_t halves = 2 * w.blocks, room = halves * (int64_t)sizeof(int64_t);
  int64_t *twos = (int64_t *)take(room);
  if (!twos) return false;
  Making making = {&d, &w, twos, nullptr, nullptr};
  parallel(w.blocks, count_block, &making);
  int64_t all = 0;
  for (int64_t h = 0; h < halves; ++h) all += twos[h];
  const bool pays = all * 2 * kSlot * 100 <= most * w.blocks * w.tiles * kTile;
  if (pays) lay_out(making, w, all);
  if (w.slots.arena) {
    parallel(w.blocks, fill_block, &making);
    w.slots.data = making.data, w.slots.begins = making.begins;
  }
  give(twos, room);
  return !pays || w.slots.arena;
}

} // namespace se
