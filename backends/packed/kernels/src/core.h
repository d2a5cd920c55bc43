// What the translation units share: the weight in memory, prepared activations, a table per ISA.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "abi.h"

namespace se {

constexpr int64_t kRows = 16, kCols = 64, kTile = kRows * kCols, kMaskBytes = kTile / 8;
constexpr int64_t kPad = 64;       // bytes behind a stream that a full register may read
constexpr int64_t kFlushTiles = 8; // 512 columns of 16-bit times 8-bit products fit 32 bits
// Codes of x. The largest of 16 bits is 255 * 127 + 127, two bytes that a product takes with sign.
constexpr float kMostByte = 127.f, kMostWord = 32512.f;
constexpr int32_t kHighPlane = 255;
constexpr int64_t kMaxLines = 192; // lines of x (rows, or planes of rows) a pass keeps sums of
constexpr int64_t kLanes = 16;     // rows of x that stand side by side, or several times as many
constexpr int64_t kStripTiles = 4; // of a strip, at most: see rows.h

// A second copy of a sparse weight, for one row of x: see slots.h. Empty where `data` is null.
struct Slots {
  const uint8_t *data;
  const int64_t *begins; // [2 blocks]: first byte of each half row block in `data`
  void *arena;
  int64_t bytes; // of the arena
};

// A sparse weight in strips: see rows.h.
struct Strips {
  const uint8_t *mask, *values;
  void *arena; // null where the weight's own holds them
  int64_t bytes;
};

struct Weight {
  int32_t kind, value, isa;
  int64_t rows, cols, blocks, tiles;
  int64_t groups, group_tiles; // groups of scales a row; tiles of one
  int64_t flush;           // tiles from one flush of sums to the next
  int64_t flushes;         // flushes of a row block
  int64_t strip;           // tiles of a strip; 0: no strips
  int64_t kept;            // of 100 weights, rounded up
  int32_t fixed;           // strips: values of every 8 columns of a row; 0: not all alike
  Strips strips;
  const uint8_t *mask;     // [blocks, tiles, 128], the file's; null where dense or not kept
  const uint8_t *values;   // streams of the row blocks; dense ones in tile order
  const int64_t *begins;   // [blocks]: first byte of each row block, in strips too
  const float *scales;     // [blocks, groups, 16]; null without
  int32_t *sums;           // [blocks, flushes, 16]: sums of codes, for unsigned activations
  void *arena;
  int64_t bytes;
  Slots slots;
};

// How a kernel wants x. Blocked by tile: [tiles, m, 64] (planes: [tiles, m, 2, 64]). For strips in
// plain rows [m, 64 tiles], or with rows of x side by side, in chunks of `side` of them, the last one
// of fewer lanes: [chunks, 64 tiles, lanes]. For slots one row, byte by byte: [bytes of a value, 64 tiles] from the lowest one up.
enum Form {
  kFloat, kFloatFromBf16, kInt16, kBf16, kByte, kTwoBytes,
  kRowFloat, kRowFromBf16, kRowByte, kRowInt16,
  kPlanesCodes, kPlanesBf16, kPlanesFloat,
  kLanesFloat, kLanesFromBf16, kLanesCodes,
  kForms
};

struct Prepared {
  Form form;
  int64_t m, tiles, cols;
  void *data;
  float *scale; // [m], integer forms: x = code * scale
  float most;   // largest code: kMostByte or kMostWord
  int64_t side; // rows side by side in a chunk
};

struct Source {
  const void *x;
  int32_t type;
  int64_t ld;
};

struct Kernels {
  int64_t side; // rows of x in a chunk, where they stand side by side
  Form (*form)(const Weight &w, int64_t m, int32_t flags);
  // Rows [m0, m1) of x into `to`.
  void (*prepare)(const Source &from, const Prepared &to, int64_t m0, int64_t m1);
  // Row blocks [b0, b1) of one job.
  void (*run)(const Weight &w, const Prepared &x, const se_job &job, int32_t y_type, int64_t b0,
              int64_t b1);
  // One tile in float32 [64, 16] (codes of quantised values); returns the next tile's values.
  const uint8_t *(*unpack)(int32_t value, const uint8_t *mask, const uint8_t *values, float *out);
};

extern const Kernels kPortable;
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kAvx512Vnni;
extern const Kernels kAvx512Bf16;
const Kernels *kernels(int32_t isa); // null where it does not run

inline bool quantised(int32_t value) { return value >= SE_INT8; }
inline bool integer(int32_t value) { return value == SE_INT8 || value == SE_INT4; }
inline int64_t step(int32_t value) { return value == SE_FP32 ? 1 : value < SE_FP32 ? 2 : 4; }
inline int64_t bytes_of(int32_t value, int64_t count) {
  return value == SE_INT4 ? (count + 1) / 2 : count * (4 / step(value));
}
inline size_t form_bytes(Form form) {
  if (form == kByte || form == kRowByte) return 1;
  const bool two = form == kInt16 || form == kBf16 || form == kTwoBytes || form == kRowInt16 ||
                   form == kPlanesCodes || form == kPlanesBf16;
  return two ? 2 : 4;
}
// Lanes of chunk j of m rows of x: a multiple of 16.
inline int64_t lanes_of(int64_t m, int64_t side, int64_t j) {
  const int64_t left = (m - j * side + kLanes - 1) / kLanes * kLanes;
  return left < side ? left : side;
}
inline bool lanes(Form form) { return form >= kLanesFloat; }
inline bool coded(Form form) {
  return form == kInt16 || form == kByte || form == kTwoBytes || form == kRowByte ||
         form == kRowInt16 || form == kPlanesCodes || form == kLanesCodes;
}

typedef void (*Task)(void *context, int64_t part);
void parallel(int64_t parts, Task task, void *context); // pool.cpp

// Threads of somebody else that share the parts of a call.
struct Threads {
  void (*share)(void *self, int64_t parts, Task task, void *context);
  void *self;
};
const Threads *borrow(const Threads *threads); // for calls of this thread; gives those before
int64_t sharers();                             // threads that a call may have, for its parts

} // namespace se
