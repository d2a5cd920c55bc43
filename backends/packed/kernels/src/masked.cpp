// A linear of training whose weight is formed while it is multiplied: W_ = M . (W + s B A).
//
// LoSA equation 1 in its merged form (Huang et al. 2025, arXiv 2502.14816): y = x W_^T, dx = dy W_,
// and with G = (dy^T x) . M: da = s B^T G, db = s G A^T. A fast product copies both sides to where
// its tiles find them; here that copy is where the low-rank product is added and the mask laid on,
// and G is masked and used up while it is in the cache. So neither W_ nor G is ever written to
// memory, and no pass over either is paid for.
//
// Where the mask leaves few weights, what is formed becomes lists (masked_lists.h), and the products
// (masked_skip.h) skip zeros; G is then made at kept places alone.
#include <string.h>

#include "masked.h"
#include "memory.h"

#ifndef SE_UNITS // bit i: the unit of instruction set i is linked
#define SE_UNITS 1
#endif

namespace se {
namespace {

constexpr int64_t kGroups = 16; // of rows: each adds up its own da, whatever the threads

struct Call {
  const MaskedSteps *steps;
  Formed w;
  const float *x, *dy;
  int64_t tokens, each; // rows or columns of a part
  bool first, lists;
  Panels columns, lines, a; // x by columns, x by lines, A by lines
  Panels dy_lines;
  float *rows; // dy by rows
  float *y, *dx, *da, *db, *da_of_all;
  int32_t failed; // of a part that found no memory
};

const MaskedSteps *steps_of(int32_t isa) {
  if (isa < 0 || isa >= SE_ISAS || !se_isa_runs(isa)) return nullptr;
  if (SE_UNITS >> SE_AVX512 & 1 && isa >= SE_AVX512) return &kMaskedAvx512;
  if (SE_UNITS >> SE_AVX2 & 1 && isa >= SE_AVX2) return &kMaskedAvx2;
  return &kMaskedPortable;
}

thread_local Scratch of_thread; // a part's
thread_local Scratch of_call;   // what all parts read

float *floats(Scratch &from, int64_t count) {
  return (float *)from.need((int64_t)sizeof(float) * count);
}

// What a part works in; null, and the call has failed, without memory.
float *room(Call &call) {
  float *found = floats(of_thread, masked_room(call.w));
  if (!found) __atomic_store_n(&call.failed, SE_NO_MEMORY, __ATOMIC_RELAXED);
  return found;
}

// Panels of [lines, width] side by side, and how many floats they take.
int64_t panels_of(const Call &call, int64_t lines) { return parts_of(lines, call.steps->wide); }
int64_t floats_of(const Call &call, int64_t panels, int64_t steps) {
  return parts_of(steps, kChunk) * panels * kChunk * call.steps->wide;
}

// Lines [count, width] that become panels.
struct Lines {
  const MaskedSteps *steps;
  const float *from;
  int64_t count, width;
  Panels to;
};

void pack_lines(void *context, int64_t part) {
  const Lines &l = *(const Lines *)context;
  l.steps->pack_lines(l.from, l.count, l.width, l.to, part);
}

void lay_lines(const Call &call, const float *from, int64_t count, int64_t width, Panels to) {
  Lines lines = {call.steps, from, count, width, to};
  parallel(parts_of(width, kChunk) * to.panels, pack_lines, &lines);
}

// The same in the call's own memory; without data where there is none.
Panels laid(const Call &call, const float *from, int64_t count, int64_t width) {
  Panels to = {};
  to.panels = panels_of(call, count);
  to.data = floats(of_call, floats_of(call, to.panels, width));
  if (to.data) lay_lines(call, from, count, width, to);
  return to;
}

void pack_columns(void *context, int64_t part) {
  const Call &c = *(const Call *)context;
  c.steps->pack_columns(c.x, c.tokens, c.w.in, c.columns, part);
}
void pack_rows(void *context, int64_t part) {
  const Call &c = *(const Call *)context;
  c.steps->pack_rows(c.dy, c.tokens, c.w.out, c.rows, part);
}

void forward_part(void *context, int64_t part) {
  Call &c = *(Call *)context;
  float *at = room(c);
  if (!at) return;
  const int64_t n0 = part * c.each, n1 = n0 + c.each < c.w.out ? n0 + c.each : c.w.out;
  (c.lists ? c.steps->forward_lists : c.steps->forward)(c.w, c.lines, c.tokens, n0, n1, c.y, at);
}

void backward_part(void *context, int64_t part) {
  Call &c = *(Call *)context;
  float *at = room(c);
  if (!at) return;
  const int64_t k0 = part * c.each, k1 = k0 + c.each < c.w.in ? k0 + c.each : c.w.in;
  if (c.lists) return c.steps->backward_lists(c.w, c.dy_lines, c.tokens, k0, k1, c.dx, at);
  c.steps->backward(c.w, c.rows, c.tokens, k0, k1, c.dx, at);
}

int64_t da_floats(const Call &c) {
  return up_to(c.w.rank, c.steps->rows) * up_to(c.w.in, c.steps->wide);
}

void factors_part(void *context, int64_t part) {
  Call &c = *(Call *)context;
  float *at = room(c);
  if (!at) return;
  const int64_t tiles = parts_of(c.w.out, c.steps->rows);
  const int64_t n0 = tiles * part / kGroups * c.steps->rows;
  const int64_t end = tiles * (part + 1) / kGroups * c.steps->rows;
  const int64_t n1 = end < c.w.out ? end : c.w.out;
  float *da = c.da + part * da_floats(c);
  if (c.first) memset(da, 0, sizeof(float) * (size_t)da_floats(c));
  if (c.lists)
    c.steps->factors_lists(c.w, c.lines, c.a, c.dy_lines, n0, n1, c.first, da, c.db, at);
  else
    c.steps->factors(c.w, c.columns, c.a, c.dy, c.tokens, n0, n1, c.first, da, c.db, at);
}

// Whether lists win where at most `most` of 100 weights are kept, by every 32nd row of the mask.
bool by_lists(const se_masked &w, int64_t most) {
  if (w.way != SE_BY_MASK) return w.way == SE_LISTS;
  int64_t kept = 0, seen = 0;
  for (int64_t n = 0; n < w.out; n += 32, seen += w.in) {
    uint32_t row = 0;
    for (int64_t k = 0; k < w.in; ++k) row += w.kept[n * w.in + k];
    kept += row;
  }
  return kept * 100 <= seen * most;
}

// Row `part` of da, of all groups.
void sum_groups(void *context, int64_t part) {
  const Call &c = *(const Call *)context;
  const float *from = c.da + part * up_to(c.w.in, c.steps->wide);
  float *to = c.da_of_all + part * c.w.in;
  memcpy(to, from, sizeof(float) * (size_t)c.w.in);
  for (int64_t g = 1; g < kGroups; ++g) {
    from += da_floats(c);
    for (int64_t k = 0; k < c.w.in; ++k) to[k] += from[k];
  }
}

bool valid(const se_masked *w, const void *x, int64_t tokens) {
  return w && x && tokens > 0 && w->out > 0 && w->in > 0 && w->rank > 0 && w->weight && w->kept &&
         w->a && w->b && w->way >= SE_BY_MASK && w->way <= SE_LISTS;
}

Call begin(const se_masked *w, bool gradient = false) {
  Call call = {};
  call.steps = steps_of(w->isa);
  call.w = {w->weight, w->kept, w->a, w->b, w->scale, w->out, w->in, w->rank};
  if (!call.steps) return call;
  const Listed most = call.steps->most;
  call.lists = by_lists(*w, gradient ? most.gradient : most.products);
  return call;
}

// Rows or columns of a part where parts are as many as keep all threads busy.
int64_t share_of(const Call &call, int64_t all) {
  const int64_t share = up_to(parts_of(all, 4 * sharers()), call.steps->wide);
  return share < kChunk ? share : kChunk;
}

bool lay_rows(Call &call) {
  const int64_t chunks = parts_of(call.w.out, whole(kChunk, call.steps->rows));
  call.rows = floats(of_call, chunks * up_to(call.tokens, call.steps->rows) * kChunk);
  if (!call.rows) return false;
  parallel(chunks, pack_rows, &call);
  return true;
}

// `run` for kTokens tokens at a time.
template <class Run> int32_t by_tokens(int64_t tokens, const Run &run) {
  for (int64_t t = 0; t < tokens; t += kTokens) {
    const int32_t found = run(t, tokens - t < kTokens ? tokens - t : kTokens);
    if (found != SE_OK) return found;
  }
  return SE_OK;
}

} // namespace
} // namespace se

using namespace se;

extern "C" {

int32_t se_masked_forward(const se_masked *w, const float *x, int64_t tokens, float *y) {
  if (!valid(w, x, tokens) || !y) return SE_INVALID;
  Call call = begin(w);
  if (!call.steps) return SE_NO_ISA;
  return by_tokens(tokens, [&](int64_t t, int64_t count) -> int32_t {
    call.y = y + t * w->out;
    call.tokens = count;
    call.lines = laid(call, x + t * w->in, count, w->in);
    if (!call.lines.data) return SE_NO_MEMORY;
    call.each = call.lists ? share_of(call, w->out) : whole(kBlock, call.steps->rows);
    parallel(parts_of(w->out, call.each), forward_part, &call);
    return call.failed;
  });
}

int32_t se_masked_backward(const se_masked *w, const float *dy, int64_t tokens, float *dx) {
  if (!valid(w, dy, tokens) || !dx) return SE_INVALID;
  Call call = begin(w);
  if (!call.steps) return SE_NO_ISA;
  return by_tokens(tokens, [&](int64_t t, int64_t count) -> int32_t {
    call.dy = dy + t * w->out;
    call.dx = dx + t * w->in;
    call.tokens = count;
    if (call.lists) call.dy_lines = laid(call, call.dy, count, w->out);
    if (!(call.lists ? call.dy_lines.data != nullptr : lay_rows(call))) return SE_NO_MEMORY;
    call.each = share_of(call, w->in);
    parallel(parts_of(w->in, call.each), backward_part, &call);
    return call.failed;
  });
}

int32_t se_masked_factors(const se_masked *w, const float *x, const float *dy, int64_t tokens,
                          float *da, float *db) {
  if (!valid(w, x, tokens) || !dy || !da || !db) return SE_INVALID;
  Call call = begin(w, true);
  if (!call.steps) return SE_NO_ISA;
  call.db = db;
  call.a.panels = panels_of(call, w->rank);
  call.columns.panels = panels_of(call, w->in);
  const int64_t longest = tokens < kTokens ? tokens : kTokens, wide = panels_of(call, longest);
  const int64_t for_a = floats_of(call, call.a.panels, w->in), sums = da_floats(call);
  const int64_t for_x = call.lists ? floats_of(call, wide, w->in)
                                   : floats_of(call, call.columns.panels, longest);
  const int64_t for_dy = call.lists ? floats_of(call, wide, w->out) : 0;
  call.da = floats(of_call, kGroups * sums + for_a + for_x + for_dy);
  if (!call.da) return SE_NO_MEMORY;
  call.a.data = call.da + kGroups * sums;
  call.columns.data = call.lines.data = call.a.data + for_a;
  call.dy_lines.data = call.lines.data + for_x;
  lay_lines(call, w->a, w->rank, w->in, call.a);
  const int32_t found = by_tokens(tokens, [&](int64_t t, int64_t count) -> int32_t {
    call.x = x + t * w->in;
    call.dy = dy + t * w->out;
    call.tokens = count;
    call.first = t == 0;
    call.lines.panels = call.dy_lines.panels = panels_of(call, count);
    if (call.lists) {
      lay_lines(call, call.x, count, w->in, call.lines);
      lay_lines(call, call.dy, count, w->out, call.dy_lines);
    } else {
      parallel(parts_of(count, kChunk) * call.columns.panels, pack_columns, &call);
    }
    parallel(kGroups, factors_part, &call);
    return call.failed;
  });
  if (found != SE_OK) return found;
  call.da_of_all = da;
  parallel(w->rank, sum_groups, &call);
  return SE_OK;
}
}
