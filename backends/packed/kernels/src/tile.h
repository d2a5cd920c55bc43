// One tile of the file, value by value, for what puts a weight in another order.
#pragma once
#include <string.h>

#include "core.h"

namespace se {

// One value of 1, 2 or 4 bytes: a length that the compiler knows saves a call for each.
inline void copy_value(uint8_t *to, const uint8_t *from, int64_t size) {
  if (size == 2)
    memcpy(to, from, 2);
  else if (size == 1)
    *to = *from;
  else
    memcpy(to, from, 4);
}

// The kept values in the order of the file, which for each row is that of its columns: each goes to
// the bytes that put(row, column) gives for it, as it is stored, a 4-bit code in a byte of its own.
// Returns the next tile's values.
template <class Put>
const uint8_t *each_kept(int32_t value, const uint8_t *mask, const uint8_t *values, Put put) {
  const int64_t g = step(value), size = 4 / g;
  int64_t found = 0;
  for (int64_t at = 0; at < kTile; at += 64) {
    uint64_t left;
    memcpy(&left, mask + at / 8, 8);
    for (; left; left &= left - 1, ++found) {
      const int64_t e = at + __builtin_ctzll(left);
      uint8_t *to = put(e / g % kRows, e / (kRows * g) * g + e % g);
      if (value == SE_INT4)
        *to = values[found / 2] >> (found % 2 * 4) & 15;
      else
        copy_value(to, values + found * size, size);
    }
  }
  return values + bytes_of(value, found);
}

} // namespace se
