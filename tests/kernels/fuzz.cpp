// Random and hostile linears through the C interface, in a sanitised build: fuzz SECONDS SEED.
//
// Every array is a block of its own and of its exact length, so that a read past one is seen.
// A linear that is taken must give on each instruction set what the portable unit gives.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "abi.h"

static uint64_t state;

static uint32_t random32(void) { // xorshift64*
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return (uint32_t)(state * 2685821657736338717ull >> 32);
}

static int64_t below(int64_t n) { return n > 0 ? (int64_t)(random32() % (uint64_t)n) : 0; }

static uint8_t *block(int64_t bytes) { return (uint8_t *)malloc(bytes ? (size_t)bytes : 1); }

struct Linear {
  se_desc d;
  uint8_t *mask, *values;
  int64_t *starts;
  uint16_t *scales;
};

static int64_t value_bytes(int32_t type, int64_t n) {
  return type == SE_INT4 ? (n + 1) / 2 : n * (type == SE_FP32 ? 4 : type < SE_FP32 ? 2 : 1);
}

static void finite_values(const se_desc &d, uint8_t *at) {
  for (int64_t i = 0; i < d.values_bytes; ++i) at[i] = (uint8_t)random32();
  for (int64_t i = 0; i < d.values_bytes; ++i) {
    if (d.values_type == SE_INT8 && at[i] == 0x80) at[i] = 0;
    if (d.values_type == SE_INT4 && (at[i] >> 4 == 8 || (at[i] & 15) == 8)) at[i] = 0x11;
    if (d.values_type == SE_FP8 && (at[i] & 127) == 127) at[i] = 0;
    const int64_t size = d.values_type == SE_FP32 ? 4 : 2;
    if (d.values_type <= SE_FP32 && i % size == size - 1) at[i] = (at[i] & 0x83) | 0x38;
  }
}

static int popcounts(const uint8_t *at, int64_t n) {
  int found = 0;
  for (int64_t i = 0; i < n; ++i) found += __builtin_popcount(at[i]);
  return found;
}

static void ragged_mask(Linear &l, int64_t blocks, int64_t tiles) {
  const int density = (int)below(9);
  for (int64_t i = 0; i < l.d.mask_bytes; ++i) {
    l.mask[i] = density == 8 ? 255 : (uint8_t)random32();
    for (int j = density; j < 4; ++j) l.mask[i] &= (uint8_t)random32();
    if (below(64) == 0) l.mask[i] = 0;
  }
  l.d.starts_count = blocks + 1;
  l.starts = (int64_t *)block((blocks + 1) * 8);
  l.starts[0] = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t slots = 0;
    for (int64_t c = 0; c < tiles; ++c) {
      const int found = popcounts(l.mask + (b * tiles + c) * 128, 128);
      slots += l.d.values_type == SE_INT4 ? (found + 1) / 2 * 2 : found;
    }
    l.starts[b + 1] = l.starts[b] + slots;
  }
  l.d.values_bytes = value_bytes(l.d.values_type, l.starts[blocks]);
}

static Linear make(void) {
  Linear l = {};
  se_desc &d = l.d;
  d.kind = (int32_t)below(3), d.values_type = (int32_t)below(6);
  d.rows = 1 + below(70), d.cols = 1 + below(below(4) ? 200 : 1500);
  if (d.kind == SE_NM) d.m = 4 << below(3), d.n = 1 + (int32_t)below(d.m - 1);
  const int64_t blocks = (d.rows + 15) / 16, tiles = (d.cols + 63) / 64;
  if (d.values_type >= SE_INT8) {
    d.group = 64 * below(4);
    d.scales_count = d.rows * (d.group ? (d.cols + d.group - 1) / d.group : 1);
    l.scales = (uint16_t *)block(d.scales_count * 2);
    for (int64_t i = 0; i < d.scales_count; ++i) l.scales[i] = (uint16_t)(0x3c00 + below(512));
  }
  d.mask_bytes = d.kind == SE_DENSE ? 0 : blocks * tiles * 128;
  l.mask = block(d.mask_bytes);
  if (d.kind == SE_RAGGED) ragged_mask(l, blocks, tiles);
  if (d.kind == SE_NM) { // the library asks for the count of a tile alone
    const int64_t each = 1024 * d.n / d.m;
    memset(l.mask, 0, (size_t)d.mask_bytes);
    for (int64_t t = 0; t < blocks * tiles; ++t)
      for (int64_t left = each; left;) {
        const int64_t e = below(1024);
        uint8_t &byte = l.mask[t * 128 + e / 8];
        if (!(byte >> (e % 8) & 1)) byte |= (uint8_t)(1 << (e % 8)), --left;
      }
    d.values_bytes = blocks * tiles * value_bytes(d.values_type, each);
  }
  if (d.kind == SE_DENSE) d.values_bytes = d.rows * value_bytes(d.values_type, d.cols);
  l.values = block(d.values_bytes);
  finite_values(d, l.values);
  d.mask = l.mask, d.values = l.values, d.starts = l.starts, d.scales = l.scales;
  return l;
}

// Changes what the library must not trust; memory stays as long as the description says.
static void spoil(Linear &l) {
  se_desc &d = l.d;
  const int64_t any = below(4) ? below(100) - 20 : (int64_t)random32() << 31;
  switch (below(10)) {
  case 0: d.rows = any; break;
  case 1: d.cols = any; break;
  case 2: d.values_bytes = below(d.values_bytes + 1); break;
  case 3: d.mask_bytes = below(d.mask_bytes + 1); break;
  case 4: if (l.starts) l.starts[below(d.starts_count)] = any; break;
  case 5: if (l.starts) d.starts_count = below(d.starts_count + 1); break;
  case 6: d.scales_count = below(d.scales_count + 1); break;
  case 7: if (d.mask_bytes) l.mask[below(d.mask_bytes)] ^= (uint8_t)(1 << below(8)); break;
  case 8: d.kind = (int32_t)below(5) - 1, d.values_type = (int32_t)below(8) - 1; break;
  default: d.group = any, d.n = (int32_t)below(20) - 2, d.m = (int32_t)below(20) - 2;
  }
}

static void fail(const Linear &l, int isa, const char *what) {
  fprintf(stderr, "%s: isa %d, kind %d, values %d, [%ld, %ld], group %ld\n", what, isa, l.d.kind,
          l.d.values_type, (long)l.d.rows, (long)l.d.cols, (long)l.d.group);
  abort();
}

// `w` is what the weights unpack to: an error is measured by the products that went into a sum,
// since the sum itself may be next to nothing.
static void compare(const Linear &l, void *const *all, const float *w, int64_t m, int hostile) {
  const int64_t rows = l.d.rows, cols = l.d.cols;
  float *x = (float *)block(m * cols * 4), *want = (float *)block(m * rows * 4);
  float *y = (float *)block(m * rows * 4);
  for (int64_t i = 0; i < m * cols; ++i) x[i] = (float)(int32_t)random32() / 2147483648.f;
  const int flags = (int)below(2);
  for (int isa = 0; isa < SE_ISAS; ++isa) {
    if (!all[isa]) continue;
    const se_job job = {all[isa], isa ? y : want, rows, nullptr};
    if (se_run(&job, 1, x, SE_X_F32, m, cols, SE_X_F32, flags) != SE_OK) fail(l, isa, "run");
    for (int64_t i = 0; isa && i < m * rows; ++i) {
      // Bytes taken for another 16- or 32-bit type may be NaN, infinity or huge, and whether sums
      // of those are finite depends on their order.
      if (hostile && (!isfinite(want[i]) || !isfinite(y[i]))) continue;
      double size = 1e-30;
      for (int64_t k = 0; k < cols; ++k)
        size += fabs((double)w[i % rows * cols + k] * x[i / rows * cols + k]);
      if (!(fabs((double)y[i] - want[i]) <= 1e-6 * size)) fail(l, isa, "differs from portable");
    }
  }
  free(x), free(y), free(want);
}

static int one(int hostile) {
  Linear l = make();
  if (hostile) spoil(l);
  void *all[SE_ISAS] = {};
  int taken = 0;
  for (int isa = 0; isa < SE_ISAS; ++isa) {
    if (!se_isa_runs(isa)) continue;
    const int status = se_create(&l.d, isa, &all[isa]);
    if (status != SE_OK && !hostile) fail(l, isa, "refused");
    if ((status == SE_OK) != (all[0] != nullptr)) fail(l, isa, "taken by some only");
    taken = status == SE_OK;
  }
  if (taken) {
    const int64_t blocks = (l.d.rows + 15) / 16;
    float *out = (float *)block(blocks * 16 * l.d.cols * 4);
    for (int isa = 0; isa < SE_ISAS; ++isa)
      if (all[isa] && se_unpack(all[isa], 0, blocks, out) != SE_OK) fail(l, isa, "unpack");
    compare(l, all, out, below(3) ? 1 + below(20) : 1, hostile); // one row has ways of its own
    free(out);
  }
  for (int isa = 0; isa < SE_ISAS; ++isa) se_destroy(all[isa]);
  free(l.mask), free(l.values), free(l.starts), free(l.scales);
  return taken;
}

static float *numbers(int64_t n) {
  float *found = (float *)block(n * 4);
  for (int64_t i = 0; i < n; ++i) found[i] = (float)(int32_t)random32() / 2147483648.f;
  return found;
}

// `whole`: the same product of absolute values. Sums may cancel: one rounding (2^-24) of their terms
// is then more than the norm allows. Two orders of summing were seen 0.57 of it apart.
static void near(const float *got, const float *want, const float *whole, int64_t n, int isa) {
  double off = 0, size = 0, terms = 0;
  bool each = true;
  for (int64_t i = 0; i < n; ++i) {
    const double apart = fabs((double)got[i] - want[i]);
    each = each && apart <= 4e-7 * whole[i];
    off += apart * apart, size += want[i] * want[i], terms += (double)whole[i] * whole[i];
  }
  if (each && (off <= 1e-11 * size || off <= 3.6e-15 * terms)) return;
  fprintf(stderr, "formed weight: isa %d differs from portable: %g of %g, terms %g, %ld numbers\n",
          isa, sqrt(off), sqrt(size), sqrt(terms), (long)n);
  abort();
}

static float *absolute(const float *from, int64_t n) {
  float *found = (float *)block(n * 4);
  for (int64_t i = 0; i < n; ++i) found[i] = fabsf(from[i]);
  return found;
}

static void multiply(const se_masked &w, const float *x, const float *dy, int64_t tokens,
                     float *const *to) {
  if (se_masked_forward(&w, x, tokens, to[0]) != SE_OK ||
      se_masked_backward(&w, dy, tokens, to[1]) != SE_OK ||
      se_masked_factors(&w, x, dy, tokens, to[2], to[3]) != SE_OK)
    abort();
}

// Products with a weight formed under its mask, of any sizes.
static void formed(void) {
  const int64_t out = 1 + below(below(3) ? 60 : 400), in = 1 + below(below(3) ? 90 : 600);
  const int64_t rank = 1 + below(40), tokens = 1 + below(below(4) ? 50 : 600);
  se_masked w = {0, SE_BY_MASK, 0.5f, out, in, rank, numbers(out * in), block(out * in),
                 numbers(rank * in), numbers(out * rank)};
  const int64_t density = below(11);
  for (int64_t i = 0; i < out * in; ++i) ((uint8_t *)w.kept)[i] = below(10) < density;
  float *x = numbers(tokens * in), *dy = numbers(tokens * out);
  const int64_t sizes[4] = {tokens * out, tokens * in, rank * in, out * rank};
  float *want[4] = {}, *whole[4], *got[4];
  float *ax = absolute(x, tokens * in), *ady = absolute(dy, tokens * out);
  se_masked aw = w;
  aw.weight = absolute(w.weight, out * in);
  aw.a = absolute(w.a, rank * in), aw.b = absolute(w.b, out * rank);
  for (int i = 0; i < 4; ++i) whole[i] = (float *)block(sizes[i] * 4);
  multiply(aw, ax, ady, tokens, whole);
  for (int each = 0; each < 2 * SE_ISAS; ++each) {
    w.isa = each / 2, w.way = each % 2 ? SE_LISTS : SE_WHOLE;
    if (!se_isa_runs(w.isa)) continue;
    for (int i = 0; i < 4; ++i) got[i] = (float *)block(sizes[i] * 4);
    multiply(w, x, dy, tokens, got);
    for (int i = 0; i < 4; ++i) {
      if (each) near(got[i], want[i], whole[i], sizes[i], w.isa), free(got[i]);
      else want[i] = got[i];
    }
  }
  for (int i = 0; i < 4; ++i) free(want[i]), free(whole[i]);
  free((void *)aw.weight), free((void *)aw.a), free((void *)aw.b), free(ax), free(ady);
  free((void *)w.weight), free((void *)w.kept), free((void *)w.a), free((void *)w.b);
  free(x), free(dy);
}

int main(int argc, char **argv) {
  const double seconds = argc > 1 ? atof(argv[1]) : 5;
  state = argc > 2 ? strtoull(argv[2], nullptr, 10) * 2 + 1 : 1;
  const time_t end = time(nullptr) + (time_t)seconds;
  long made = 0, taken = 0;
  for (; time(nullptr) < end || made < 50; ++made) {
    taken += one(made % 3 != 0);
    if (made % 8 == 0) formed();
  }
  int isas = 0;
  for (int isa = 0; isa < SE_ISAS; ++isa) isas |= se_isa_runs(isa) << isa;
  printf("%ld linears, %ld taken, instruction sets %d\n", made, taken, isas);
  return taken == 0 || taken == made;
}
