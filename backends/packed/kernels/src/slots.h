// Slots: the order in which one row of x meets a sparse weight where no instruction expands a mask.
//
// Half a row block, 8 rows, has a window of 8 columns every 4 columns, or every 8 where N:M fixes how
// many values stand in 8, and each kept value stands in a window: one a slot and row. A slot is 8
// values, a lane for each row, and 8 places of 3 bits, by which one shuffle picks x from the window.
// A window has as many slots as the fullest of its rows has values left in the columns up to the
// next window; a row that has fewer takes values of that one early, where they are in both, and what
// is left empty is zeros. Windows of equally many slots stand together: no branch is guessed.
// A half row block's bytes: how many windows have 0, 1, ... 8 slots (16 bits each), the windows'
// first columns over the stride in that order (16 bits; the last window ends where x does), then
// window by window its slots' values and its slots' places (24 bits each, row r in bits 3 r). One
// stream, so that all of it is fetched ahead.
#pragma once
#include "core.h"

namespace se {

constexpr int64_t kHalf = 8, kWindow = 8;                  // rows, columns
constexpr int64_t kCounts = kWindow + 1, kPlaceBytes = 3; // bytes of places in a slot

inline int64_t windows_of(const Weight &w) { return w.tiles * kCols / w.slots.stride; }
inline int64_t first_column(const Weight &w, int64_t window) {
  const int64_t last = w.tiles * kCols - kWindow, first = window * w.slots.stride;
  return first < last ? first : last;
}
inline int64_t head_bytes(const Weight &w) { return 2 * (kCounts + windows_of(w)); }

void *take(int64_t bytes); // weight.cpp: zeros in huge pages, null without memory
void give(void *arena, int64_t bytes);

// Makes the copy where it pays; false without memory.
bool to_slots(const se_desc &d, Weight &w, int32_t flags);

// Codes meet x of 16 bits only: those of 8 bits have sums that are equal on all instruction sets,
// and floats would add them up in another order.
inline bool slots_take(const Weight &w, int32_t flags) {
  return !integer(w.value) || flags & SE_ACT16;
}

inline bool by_slots(const Weight &w, int64_t m, int32_t flags) {
  return w.slots.data && m == 1 && slots_take(w, flags);
}

inline int64_t slot_bytes(int32_t value) { // of 8 values
  return value == SE_INT4 ? 4 : kHalf * (4 / step(value));
}

} // namespace se
