// Slots: the order in which one row of x meets a sparse weight where no instruction expands a mask.
//
// A slot is 2 values for each row of half a row block, 8 rows, and 16 places of 4 bits, by which
// shuffles of bytes pick x from a window of 16 columns. Windows follow the columns: each begins at
// the first column that one of the rows has still to place, and every row takes its next 2 kept
// columns as far as they lie in it. What is left empty is zeros. No window crosses from one section
// of columns to the next: for codes those of one flush of sums (Weight::flush), so that their sums
// are the same integers as on every other way, otherwise 512.
// Slots stand in twos, one in each half of a register: 32 values, 32 places (16 bytes, the second
// slot's in the upper halves), and 2 bytes, columns from the window before. The last two of a
// section may have an empty slot, and so does a way of more than 255 columns.
// A half row block's bytes: how many twos each section has (16 bits each), then the twos. One
// stream, so that all of it is fetched ahead.
#pragma once
#include "core.h"

namespace se {

constexpr int64_t kHalf = 8, kWindow = 16, kEach = 2; // rows, columns, values of a row in a slot
constexpr int64_t kSlot = kHalf * kEach;              // values of a slot
constexpr int64_t kTwoTail = kSlot + 2;               // bytes of a two behind its values

inline int64_t two_bytes(int32_t value) { return bytes_of(value, 2 * kSlot) + kTwoTail; }
inline int64_t section_tiles(const Weight &w) { return integer(w.value) ? w.flush : kFlushTiles; }
inline int64_t sections(const Weight &w) {
  return (w.tiles + section_tiles(w) - 1) / section_tiles(w);
}

// Number in a two of what has a place in the first or second slot. Registers of pairs become floats
// by their upper and lower halves (bf16); what has an instruction of its own stands in that order.
// Place p is value p % 2 of row p / 2.
inline int64_t number_of(int32_t value, int64_t second, int64_t place) {
  if (integer(value)) return second * kSlot + place;
  const int64_t part = place / 8, pair = place % 8;
  if (value == SE_BF16) return part * kSlot + second * 8 + pair;
  return (2 * part + pair % 2) * 8 + second * 4 + pair / 2;
}

bool to_slots(const se_desc &d, Weight &w); // makes the copy where it pays; false without memory

inline bool by_slots(const Weight &w, int64_t m) { return w.slots.data && m == 1; }

} // namespace se
