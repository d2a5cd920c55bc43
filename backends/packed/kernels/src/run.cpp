// One call: prepare x once for each form that is asked for, then share the row blocks.
#include <string.h>

#include "memory.h"
#include "rows.h"

namespace se {
namespace {

constexpr int64_t kMostJobs = 16;
constexpr int64_t kPieces = 8; // parts for each thread: evens out what other processes take
constexpr int64_t kMany = 64;  // rows of x from which on half as many: a part reads all of x

struct Call {
  const se_job *jobs;
  int64_t count;
  Source x;
  int64_t m, lines;
  int32_t y_type;
  const Kernels *kernels;
  Prepared prepared[kForms];
  Form forms[kMostJobs];
  int64_t first[kMostJobs + 1]; // parts before each job
  int64_t each;                 // row blocks of one part
};

void run_part(void *context, int64_t part) {
  const Call &call = *(const Call *)context;
  int64_t job = 0;
  while (part >= call.first[job + 1]) ++job;
  const Weight &w = *(const Weight *)call.jobs[job].linear;
  const int64_t b0 = (part - call.first[job]) * call.each;
  const int64_t b1 = b0 + call.each < w.blocks ? b0 + call.each : w.blocks;
  call.kernels->run(w, call.prepared[call.forms[job]], call.jobs[job], call.y_type, b0, b1);
}

void prepare_part(void *context, int64_t part) {
  const Call &call = *(const Call *)context;
  const int64_t m0 = part * call.lines, m1 = m0 + call.lines < call.m ? m0 + call.lines : call.m;
  for (int form = 0; form < kForms; ++form)
    if (call.prepared[form].data) call.kernels->prepare(call.x, call.prepared[form], m0, m1);
}

// Which forms the jobs want, and memory for them; false without memory.
bool lay_out(Call &call, int32_t flags) {
  thread_local Scratch scratch;
  const Weight &w = *(const Weight *)call.jobs[0].linear;
  const size_t columns = (size_t)(w.tiles * kCols), whole = (size_t)(call.m + kLanes - 1) / kLanes;
  size_t offsets[kForms], elements[kForms], total = 0;
  bool wanted[kForms] = {};
  for (int64_t j = 0; j < call.count; ++j) {
    const Weight &each = *(const Weight *)call.jobs[j].linear;
    call.forms[j] = call.kernels->form(each, call.m, flags);
    wanted[call.forms[j]] = true;
  }
  for (int form = 0; form < kForms; ++form) {
    offsets[form] = total;
    elements[form] = columns * (lanes((Form)form) ? whole * kLanes : (size_t)call.m);
    if (wanted[form])
      total += (elements[form] * form_bytes((Form)form) + 63 + (size_t)call.m * 4 + 63) / 64 * 64;
  }
  uint8_t *at = (uint8_t *)scratch.need((int64_t)total);
  if (!at) return false;
  for (int form = 0; form < kForms; ++form) {
    Prepared &p = call.prepared[form];
    p = {(Form)form, call.m, w.tiles, w.cols, nullptr, nullptr, flags & SE_ACT16 ? kMostWord : kMostByte,
         call.kernels->side};
    if (!wanted[form]) continue;
    p.data = at + offsets[form];
    p.scale = (float *)(at + offsets[form] +
                        (elements[form] * form_bytes((Form)form) + 63) / 64 * 64);
  }
  return true;
}

void prepare(Call &call) {
  const Weight &w = *(const Weight *)call.jobs[0].linear;
  const bool shared = call.m * w.cols > 1 << 16;
  // Whole groups of lanes: two threads must not write one cache line.
  call.lines = shared ? (call.m + 16 * kLanes - 1) / (16 * kLanes) * kLanes : call.m;
  const int64_t parts = (call.m + call.lines - 1) / call.lines;
  if (shared)
    parallel(parts, prepare_part, &call);
  else
    prepare_part(&call, 0);
}

void run(Call &call) {
  int64_t blocks = 0;
  for (int64_t j = 0; j < call.count; ++j) blocks += ((const Weight *)call.jobs[j].linear)->blocks;
  const int64_t wanted = (call.m < kMany ? kPieces : kPieces / 2) * sharers();
  call.each = blocks > wanted ? blocks / wanted : 1;
  call.first[0] = 0;
  for (int64_t j = 0; j < call.count; ++j) {
    const int64_t own = ((const Weight *)call.jobs[j].linear)->blocks;
    call.first[j + 1] = call.first[j] + (own + call.each - 1) / call.each;
  }
  parallel(call.first[call.count], run_part, &call);
}

bool fits(const se_job *jobs, int64_t count, int64_t m, int64_t ldx) {
  if (count < 1 || count > kMostJobs || m < 0) return false;
  const Weight &first = *(const Weight *)jobs[0].linear;
  for (int64_t j = 0; j < count; ++j) {
    const Weight &w = *(const Weight *)jobs[j].linear;
    if (w.cols != first.cols || w.isa != first.isa) return false;
    if (m > 1 && jobs[j].ldy < w.rows) return false;
  }
  return m <= 1 || ldx >= first.cols;
}

// One tile of codes, scaled, into its place in the rows of its block.
void put(const Weight &w, const float *tile, int64_t b, int64_t c, float *rows) {
  const int64_t left = w.cols - c * kCols, columns = left < kCols ? left : kCols;
  const float *scales =
      w.scales ? w.scales + (b * w.groups + c / w.group_tiles) * kRows : nullptr;
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t k = 0; k < columns; ++k)
      rows[r * w.cols + c * kCols + k] = tile[k * kRows + r] * (scales ? scales[r] : 1.f);
}

struct Read {
  const uint8_t *data;
  int64_t bytes, streams;
  uint64_t sum;
};
constexpr int64_t kPiece = 1 << 22, kStreams = 8;

typedef uint64_t Words __attribute__((vector_size(16)));

inline Words words(const uint8_t *from) {
  Words found;
  memcpy(&found, from, sizeof found);
  return found;
}

// 64 bytes; named sums: arrays of them would live in memory.
inline Words line(const uint8_t *at) {
  return words(at) + words(at + 16) + words(at + 32) + words(at + 48);
}

Words one_stream(const uint8_t *from, int64_t bytes) {
  Words sum = {};
  for (int64_t i = 0; i + 64 <= bytes; i += 64) {
    __builtin_prefetch(from + i + 4096);
    sum += line(from + i);
  }
  return sum;
}

Words eight_streams(const uint8_t *from, int64_t bytes) {
  const int64_t each = bytes / kStreams / 64 * 64;
  Words sum = {};
  for (int64_t i = 0; i < each; i += 64)
#pragma GCC unroll 8
    for (int64_t s = 0; s < kStreams; ++s) sum += line(from + s * each + i);
  return sum + one_stream(from + kStreams * each, bytes - kStreams * each);
}

void read_part(void *context, int64_t part) {
  Read &read = *(Read *)context;
  const int64_t from = part * kPiece, left = read.bytes - from;
  const int64_t bytes = left < kPiece ? left : kPiece;
  const Words sum = (read.streams > 1 ? eight_streams : one_stream)(read.data + from, bytes);
  __atomic_fetch_add(&read.sum, sum[0] + sum[1], __ATOMIC_RELAXED);
}

} // namespace
} // namespace se

extern "C" {

int32_t se_run(const se_job *jobs, int64_t count, const void *x, int32_t x_type, int64_t m,
               int64_t ldx, int32_t y_type, int32_t flags) {
  using namespace se;
  const bool types = (x_type | 1) == 1 && (y_type | 1) == 1;
  if (!types || !fits(jobs, count, m, ldx)) return SE_INVALID;
  if (m == 0) return SE_OK;
  Call call = {};
  call.jobs = jobs, call.count = count, call.x = {x, x_type, ldx}, call.m = m;
  call.y_type = y_type;
  call.kernels = kernels(((const Weight *)jobs[0].linear)->isa);
  if (!lay_out(call, flags)) return SE_NO_MEMORY;
  prepare(call);
  run(call);
  return SE_OK;
}

int32_t se_run_one(const void *linear, const float *bias, const void *x, int32_t x_type, int64_t m,
                   int64_t ldx, void *y, int64_t ldy, int32_t y_type, int32_t flags) {
  const se_job job = {linear, y, ldy, bias};
  return se_run(&job, 1, x, x_type, m, ldx, y_type, flags);
}

int32_t se_unpack(const void *linear, int64_t b0, int64_t b1, float *out) {
  using namespace se;
  const Weight &w = *(const Weight *)linear;
  if (b0 < 0 || b1 > w.blocks || b0 > b1) return SE_INVALID;
  float tile[kTile];
  if (w.strips.mask) {
    for (int64_t b = b0; b < b1; ++b) unpack_strips(w, b, out + (b - b0) * kRows * w.cols);
    return SE_OK;
  }
  for (int64_t b = b0; b < b1; ++b) {
    const uint8_t *at = w.values + w.begins[b];
    for (int64_t c = 0; c < w.tiles; ++c) {
      const uint8_t *mask = w.mask ? w.mask + (b * w.tiles + c) * kMaskBytes : nullptr;
      at = kernels(w.isa)->unpack(w.value, mask, at, tile);
      put(w, tile, b, c, out + (b - b0) * kRows * w.cols);
    }
  }
  return SE_OK;
}

uint64_t se_read(const void *data, int64_t bytes, int64_t streams) {
  se::Read read = {(const uint8_t *)data, bytes, streams, 0};
  se::parallel((bytes + se::kPiece - 1) / se::kPiece, se::read_part, &read);
  return read.sum;
}
}
