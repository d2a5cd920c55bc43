// From the file's order to strips and back to dense rows.
#include "rows.h"

#include <string.h>

#include "tile.h"
#include "values.h"

namespace se {
namespace {

struct Order {
  const se_desc *d;
  Weight *w;
  uint8_t *mask, *values;
};

// A strip with every value in its place, and which of them are kept.
struct Grid {
  uint8_t kept[kRows][kStripTiles * kCols / 8];
  uint8_t values[kRows][kStripTiles * kCols][4];
};

int64_t gcd(int64_t a, int64_t b) { return b ? gcd(b, a % b) : a; }

// One tile of the file into columns [64 t, 64 t + 64) of the grid; returns the next tile's values.
const uint8_t *scatter(const Weight &w, const uint8_t *mask, const uint8_t *from, int64_t t,
                       Grid &grid) {
  return each_kept(w.value, mask, from, [&](int64_t r, int64_t column) {
    const int64_t k = column + t * kCols;
    grid.kept[r][k / 8] |= (uint8_t)(1 << k % 8);
    return grid.values[r][k];
  });
}

// The grid's kept values in order; returns the place for the next strip's.
uint8_t *gather(const Weight &w, const Grid &grid, int64_t width, uint8_t *to) {
  const int64_t size = w.value == SE_INT4 ? 1 : 4 / step(w.value);
  int64_t found = 0;
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t byte = 0; byte < width / 8; ++byte)
      for (uint32_t left = grid.kept[r][byte]; left; left &= left - 1, ++found) {
        const uint8_t *value = grid.values[r][byte * 8 + __builtin_ctz(left)];
        if (w.value == SE_INT4)
          to[found / 2] = (uint8_t)(found % 2 ? to[found / 2] | *value << 4 : *value);
        else
          copy_value(to + found * size, value, size);
      }
  return to + bytes_of(w.value, found);
}

// begins[] holds for both orders: the file's int4 tiles are padded to bytes, strips never to more.
void order_block(void *context, int64_t b) {
  const Order &order = *(const Order *)context;
  const Weight &w = *order.w;
  const uint8_t *mask = order.d->mask + b * w.tiles * kMaskBytes;
  const uint8_t *from = order.d->values + w.begins[b];
  uint8_t *to = order.values + w.begins[b], *out = order.mask + b * w.tiles * kMaskBytes;
  Grid grid;
  for (int64_t c = 0; c < w.tiles; c += w.strip) {
    const int64_t width = strip_width(w, c);
    memset(grid.kept, 0, sizeof grid.kept);
    for (int64_t t = 0; t < width / kCols; ++t, mask += kMaskBytes)
      from = scatter(w, mask, from, t, grid);
    to = gather(w, grid, width, to);
    for (int64_t r = 0; r < kRows; ++r, out += width / 8)
      memcpy(out, grid.kept[r], (size_t)width / 8);
  }
}

int32_t fixed_count(const se_desc &d, const uint8_t *mask) {
  if (d.kind != SE_NM || d.m > 8) return 0;
  const int32_t count = 8 * d.n / d.m;
  for (int64_t i = 0; i < d.mask_bytes; ++i)
    if (__builtin_popcount(mask[i]) != count) return 0;
  return count;
}

} // namespace

// Measured on Zen 3, 16 rows of x at 50 to 90 % zeros: lists win once their products are fewer than
// what a dense tile takes, in floats from half of them on, in codes (twice as many products an
// instruction) from three quarters. One row of x is as fast either way, but faster in strips where
// every byte of the mask has as many bits. The 512-bit units keep the file's order beside strips, and
// choose anew for each number of rows of x (avx512_lists.h); with products of bfloat16, panels of it
// are twice as fast as lists of floats could be.
int64_t strip_tiles(const se_desc &d, const Weight &w) {
  const bool never = w.isa == SE_PORTABLE || w.isa == SE_AVX512_BF16 || w.value == SE_FP8;
  if (d.kind == SE_DENSE || never) return 0;
  const bool few = w.kept <= (integer(w.value) ? kMostCodes : kMostFloats);
  const bool fixed = w.isa == SE_AVX2 && d.kind == SE_NM && d.m <= 8 && d.n * 8 <= d.m * 4;
  if (!few && !fixed) return 0;
  return integer(w.value) ? gcd(w.flush, kStripTiles) : kStripTiles;
}

void to_strips(const se_desc &d, Weight &w, uint8_t *mask, uint8_t *values) {
  Order order = {&d, &w, mask, values};
  parallel(w.blocks, order_block, &order);
  w.fixed = fixed_count(d, mask);
  w.strips.mask = mask, w.strips.values = values;
}

void unpack_strips(const Weight &w, int64_t b, float *out) {
  const uint8_t *mask = w.strips.mask + b * w.tiles * kMaskBytes;
  const uint8_t *values = w.strips.values + w.begins[b];
  memset(out, 0, (size_t)(kRows * w.cols) * sizeof(float));
  for (int64_t c = 0; c < w.tiles; c += w.strip) {
    const int64_t width = strip_width(w, c);
    int64_t found = 0;
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t byte = 0; byte < width / 8; ++byte, ++mask)
        for (uint32_t left = *mask; left; left &= left - 1, ++found) {
          const int64_t k = c * kCols + byte * 8 + __builtin_ctz(left);
          if (k >= w.cols) continue; // a filler of N:M
          const float *scales =
              w.scales ? w.scales + (b * w.groups + k / kCols / w.group_tiles) * kRows : nullptr;
          out[r * w.cols + k] = value_at(w.value, values, found) * (scales ? scales[r] : 1.f);
        }
    values += bytes_of(w.value, found);
  }
}

} // namespace se
