// From the parts of a file to the memory the kernels stream: lengths checked, padded, huge pages.
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "rows.h"
#include "slots.h"

namespace se {
namespace {

constexpr int64_t kMostExtent = 1 << 24;

int64_t up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

int64_t bits(const uint8_t *mask) {
  int64_t found = 0;
  for (int64_t i = 0; i < kMaskBytes; i += 8) {
    uint64_t word;
    memcpy(&word, mask + i, 8);
    found += __builtin_popcountll(word);
  }
  return found;
}

bool shape_ok(const se_desc &d) {
  const bool extents =
      d.rows > 0 && d.cols > 0 && d.rows <= kMostExtent && d.cols <= kMostExtent;
  if (!extents || d.kind < SE_RAGGED || d.kind > SE_DENSE) return false;
  if (d.values_type < SE_BF16 || d.values_type > SE_FP8 || !d.values) return false;
  if (d.kind == SE_NM && !((d.m == 4 || d.m == 8 || d.m == 16) && d.n > 0 && d.n < d.m))
    return false;
  return d.group >= 0 && d.group % kCols == 0 && d.group <= kMostExtent &&
         (d.group == 0 || quantised(d.values_type));
}

// -128 (int8) and -8 (int4) are no codes and would overflow sums; an fp8 NaN would be a number to
// some instruction sets and none to others.
bool codes_ok(const se_desc &d, const uint8_t *values, int64_t count) {
  if (d.values_type == SE_INT8) return !memchr(values, 0x80, (size_t)count);
  bool bad = false;
  if (d.values_type == SE_FP8)
    for (int64_t i = 0; i < count; ++i) bad |= (values[i] & 127) == 127;
  if (d.values_type == SE_INT4)
    for (int64_t i = 0; i < count; ++i) bad |= (values[i] & 15) == 8 || values[i] >> 4 == 8;
  return !bad;
}

bool ragged_ok(const se_desc &d, int64_t blocks, int64_t tiles) {
  if (!d.starts || d.starts_count != blocks + 1 || d.starts[0] != 0) return false;
  int64_t slot = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t c = 0; c < tiles; ++c) {
      const int64_t found = bits(d.mask + (b * tiles + c) * kMaskBytes);
      slot += d.values_type == SE_INT4 ? found + (found & 1) : found;
    }
    if (d.starts[b + 1] != slot) return false;
  }
  return d.values_bytes == bytes_of(d.values_type, slot);
}

bool nm_ok(const se_desc &d, int64_t blocks, int64_t tiles) {
  const int64_t each = kTile * d.n / d.m;
  for (int64_t t = 0; t < blocks * tiles; ++t)
    if (bits(d.mask + t * kMaskBytes) != each) return false;
  return d.values_bytes == blocks * tiles * bytes_of(d.values_type, each);
}

bool lengths_ok(const se_desc &d, int64_t blocks, int64_t tiles, int64_t groups) {
  if (quantised(d.values_type) && (!d.scales || d.scales_count != d.rows * groups)) return false;
  if (d.kind == SE_DENSE) return d.values_bytes == d.rows * bytes_of(d.values_type, d.cols);
  if (!d.mask || d.mask_bytes != blocks * tiles * kMaskBytes) return false;
  return d.kind == SE_RAGGED ? ragged_ok(d, blocks, tiles) : nm_ok(d, blocks, tiles);
}

struct Dense {
  const se_desc *d;
  const Weight *w;
  uint8_t *out;
};

// The rows of one row block, row-major, in tile order, so that one loop reads all kinds.
void tile_block(void *context, int64_t b) {
  const Dense &dense = *(const Dense *)context;
  const se_desc &d = *dense.d;
  const int64_t g = step(d.values_type), each = 4 / g, row_bytes = bytes_of(d.values_type, d.cols);
  uint8_t *block = dense.out + dense.w->begins[b];
  for (int64_t r = b * kRows; r < d.rows && r < (b + 1) * kRows; ++r) {
    const uint8_t *row = d.values + r * row_bytes;
    for (int64_t k = 0; k < d.cols; ++k) {
      const int64_t inner = k % kCols, e = inner / g * kRows * g + r % kRows * g + inner % g;
      const int64_t at = k / kCols * kTile + e;
      if (d.values_type == SE_INT4) {
        const int code = row[k / 2] >> (k % 2 * 4) & 15;
        block[at / 2] |= (uint8_t)(code << (at % 2 * 4));
      } else {
        memcpy(block + at * each, row + k * each, (size_t)each);
      }
    }
  }
}

float from_bf16(uint16_t raw) {
  const uint32_t wide = (uint32_t)raw << 16;
  float found;
  memcpy(&found, &wide, 4);
  return found;
}

void fill_scales(const se_desc &d, const Weight &w, float *out) {
  for (int64_t r = 0; r < d.rows; ++r)
    for (int64_t g = 0; g < w.groups; ++g)
      out[(r / kRows * w.groups + g) * kRows + r % kRows] = from_bf16(d.scales[r * w.groups + g]);
}

void fill_sums(const Weight &w) {
  float tile[kTile];
  for (int64_t b = 0; b < w.blocks; ++b) {
    const uint8_t *at = w.values + w.begins[b];
    for (int64_t c = 0; c < w.tiles; ++c) {
      const uint8_t *mask = w.mask ? w.mask + (b * w.tiles + c) * kMaskBytes : nullptr;
      at = kPortable.unpack(w.value, mask, at, tile);
      int32_t *sums = w.sums + (b * w.flushes + c / w.flush) * kRows;
      for (int64_t e = 0; e < kTile; ++e) sums[e % kRows] += (int32_t)tile[e];
    }
  }
}

// Sums of integers end where the scale changes, and before they could overflow.
int64_t flush_tiles(const se_desc &d, const Weight &w) {
  if (!integer(d.values_type) || w.group_tiles <= kFlushTiles) return w.group_tiles;
  int64_t found = kFlushTiles;
  while (d.group && w.group_tiles % found) --found;
  return found;
}

struct Sizes {
  int64_t mask, values, begins, scales, sums, total;
};

Sizes sizes(const se_desc &d, const Weight &w, bool with_sums) {
  const bool dense = d.kind == SE_DENSE;
  Sizes s;
  s.mask = dense ? 0 : d.mask_bytes + kPad;
  s.values = (dense ? w.blocks * w.tiles * bytes_of(d.values_type, kTile) : d.values_bytes) + kPad;
  s.begins = w.blocks * (int64_t)sizeof(int64_t);
  s.scales = quantised(d.values_type) ? w.blocks * w.groups * kRows * 4 : 0;
  s.sums = with_sums ? w.blocks * w.flushes * kRows * 4 : 0;
  s.total = up(s.mask, 64) + up(s.values, 64) + up(s.begins, 64) + up(s.scales, 64) + s.sums;
  return s;
}

void fill(const se_desc &d, Weight &w, const Sizes &s) {
  uint8_t *at = (uint8_t *)w.arena;
  uint8_t *mask = at;
  w.mask = s.mask ? at : nullptr;
  uint8_t *values = at += up(s.mask, 64);
  w.values = values;
  int64_t *begins = (int64_t *)(at += up(s.values, 64));
  w.begins = begins;
  const int64_t each =
      bytes_of(d.values_type, kTile * (d.kind == SE_NM ? d.n : 1) / (d.kind == SE_NM ? d.m : 1));
  for (int64_t b = 0; b < w.blocks; ++b)
    begins[b] = d.kind == SE_RAGGED ? bytes_of(d.values_type, d.starts[b]) : b * w.tiles * each;
  if (strips_alone(w)) {
    to_strips(d, w, mask, values);
  } else if (w.mask) {
    memcpy(mask, d.mask, (size_t)d.mask_bytes);
    memcpy(values, d.values, (size_t)d.values_bytes);
  } else {
    Dense dense = {&d, &w, values};
    parallel(w.blocks, tile_block, &dense);
  }
  float *scales = (float *)(at += up(s.begins, 64));
  if (s.scales) fill_scales(d, w, scales);
  w.scales = s.scales ? scales : nullptr;
  w.sums = s.sums ? (int32_t *)(at + up(s.scales, 64)) : nullptr;
  if (w.sums) fill_sums(w);
}

// Strips beside the file's order, which the instruction set reads as well; false without memory.
bool second_strips(const se_desc &d, Weight &w, const Sizes &s) {
  if (!w.strip || strips_alone(w)) return true;
  const int64_t mask = up(s.mask, 64);
  w.strips.bytes = mask + up(s.values, 64);
  w.strips.arena = take(w.strips.bytes);
  if (!w.strips.arena) return false;
  uint8_t *at = (uint8_t *)w.strips.arena;
  to_strips(d, w, at, at + mask);
  return true;
}

} // namespace
} // namespace se

extern "C" {

int32_t se_create(const se_desc *desc, int32_t isa, void **linear) {
  using namespace se;
  *linear = nullptr;
  const se_desc &d = *desc;
  if (!kernels(isa)) return SE_NO_ISA;
  if (!shape_ok(d)) return SE_INVALID;
  Weight w = {};
  w.kind = d.kind, w.value = d.values_type, w.isa = isa, w.rows = d.rows, w.cols = d.cols;
  w.blocks = divide_up(d.rows, kRows), w.tiles = divide_up(d.cols, kCols);
  w.groups = d.group ? divide_up(d.cols, d.group) : 1;
  if (!lengths_ok(d, w.blocks, w.tiles, w.groups) || !codes_ok(d, d.values, d.values_bytes))
    return SE_INVALID;
  w.group_tiles = d.group ? d.group / kCols : w.tiles;
  w.flush = flush_tiles(d, w);
  w.flushes = divide_up(w.tiles, w.flush);
  const int64_t all = bytes_of(w.value, w.blocks * w.tiles * kTile);
  w.kept = divide_up(d.values_bytes * 100, all);
  w.strip = strip_tiles(d, w);
  const bool with_sums = isa >= SE_AVX512_VNNI && integer(d.values_type);
  const Sizes s = sizes(d, w, with_sums);
  Weight *made = (Weight *)malloc(sizeof(Weight));
  w.bytes = s.total;
  w.arena = made ? take(s.total) : nullptr;
  if (!w.arena) {
    free(made);
    return SE_NO_MEMORY;
  }
  fill(d, w, s);
  *made = w;
  if (!second_strips(d, *made, s) || !to_slots(d, *made)) {
    se_destroy(made);
    return SE_NO_MEMORY;
  }
  *linear = made;
  return SE_OK;
}

void se_destroy(void *linear) {
  if (!linear) return;
  const se::Weight &w = *(const se::Weight *)linear;
  se::give(w.arena, w.bytes);
  if (w.slots.arena) se::give(w.slots.arena, w.slots.bytes);
  if (w.strips.arena) se::give(w.strips.arena, w.strips.bytes);
  free(linear);
}

int64_t se_bytes(const void *linear) {
  const se::Weight &w = *(const se::Weight *)linear;
  return w.bytes + w.slots.bytes + w.strips.bytes;
}

int64_t se_row_bytes(const void *linear) {
  const se::Weight &w = *(const se::Weight *)linear;
  return se::by_slots(w, 1) ? w.slots.bytes : w.bytes;
}
}
