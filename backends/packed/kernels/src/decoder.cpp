// Making a decoder from a plan, every size and pointer checked; its memory.
#include "decoder.h"

#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "prepare.h"
#include "values.h"

namespace se {
namespace {

int64_t up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Zeros that take memory once they are written to.
void *reserve(int64_t bytes) {
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
  flags |= MAP_NORESERVE;
#endif
  void *found = mmap(nullptr, (size_t)bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  return found == MAP_FAILED ? nullptr : found;
}

const Steps *steps_of(int32_t isa) {
#if defined(SE_UNITS) && (SE_UNITS & 2)
  if (isa >= SE_AVX2) return &kStepsAvx2;
#else
  (void)isa;
#endif
  return &kStepsPortable;
}

bool fits(const void *linear, int64_t rows, int64_t cols, int32_t isa) {
  const Weight *w = (const Weight *)linear;
  return w && w->rows == rows && w->cols == cols && w->isa == isa;
}

bool layer_fits(const se_model &model, const se_layer &layer) {
  const int64_t q = model.heads * model.head_dim, k = model.kv_heads * model.head_dim;
  const int64_t rows[SE_ROLES] = {q, k, k, model.hidden, model.intermediate, model.intermediate,
                                  model.hidden};
  for (int role = 0; role < SE_ROLES; ++role)
    for (int many = 0; many < SE_CLASSES; ++many) {
      const int64_t cols =
          role == SE_O ? q : role == SE_DOWN ? model.intermediate : model.hidden;
      if (!fits(layer.linears[role][many], rows[role], cols, model.isa)) return false;
    }
  return layer.input_norm && layer.post_norm && !layer.q_norm == !layer.k_norm;
}

bool fits(const se_model &model) {
  const int64_t sizes[] = {model.layers,   model.hidden, model.intermediate, model.heads,
                           model.kv_heads, model.head_dim, model.vocab,      model.max_tokens,
                           model.slots};
  for (int64_t each : sizes)
    if (each < 1 || each > 1 << 24) return false;
  if (model.heads % model.kv_heads || model.head_dim % 2 || !kernels(model.isa)) return false;
  if (model.embedding_type < SE_BF16 || model.embedding_type > SE_FP32) return false;
  if (!model.embedding || !model.final_norm || !model.cos || !model.sin || !model.table)
    return false;
  for (int many = 0; many < SE_CLASSES; ++many)
    if (!fits(model.head[many], model.vocab, model.hidden, model.isa)) return false;
  for (int64_t i = 0; i < model.layers; ++i)
    if (!layer_fits(model, model.table[i])) return false;
  return true;
}

// Places of the buffers of `m` rows from `at`; the bytes they take.
int64_t lay_out(const Decoder &d, Step &step, uint8_t *at, int64_t m) {
  const int64_t padded = d.model.heads * d.dim;
  const int64_t widths[] = {d.model.hidden, d.model.hidden, d.model.hidden,           d.qkv_width,
                            padded,         padded,         2 * d.model.intermediate, d.model.vocab};
  float **places[] = {&step.x, &step.normed,   &step.made, &step.qkv,
                      &step.q, &step.attended, &step.wide, &step.logits};
  int64_t total = 0;
  for (int i = 0; i < 8; ++i) {
    *places[i] = (float *)(at + total);
    total += up(m * widths[i] * 4, 64);
  }
  return total;
}

bool take(Decoder &d, const se_model &model) {
  d.model = model;
  d.steps = steps_of(model.isa);
  d.dim = up(model.head_dim, kPadded);
  d.qkv_width = (model.heads + 2 * model.kv_heads) * model.head_dim;
  d.scale = 1.f / sqrtf((float)model.head_dim);
  d.slots = (float **)calloc((size_t)model.slots, sizeof(float *));
  d.table = (se_layer *)malloc(sizeof(se_layer) * (size_t)model.layers);
  Step none;
  d.scratch_bytes = lay_out(d, none, nullptr, SE_ROWS);
  d.scratch = (uint8_t *)reserve(d.scratch_bytes);
  if (!d.slots || !d.table || !d.scratch) return false;
  memcpy(d.table, model.table, sizeof(se_layer) * (size_t)model.layers);
  d.model.table = d.table;
  return true;
}

bool row_fits(Decoder &d, const se_step &step, int64_t row) {
  const int64_t slot = step.slots[row];
  if (step.tokens[row] < 0 || step.tokens[row] >= d.model.vocab) return false;
  return step.positions[row] >= 0 && step.positions[row] < d.model.max_tokens && slot >= 0 &&
         slot < d.model.slots;
}

bool have_cache(Decoder &d, int64_t slot) {
  if (!d.slots[slot]) d.slots[slot] = (float *)reserve(d.slot_bytes());
  return d.slots[slot] != nullptr;
}

} // namespace

void embed(const se_model &model, int64_t token, float *x) {
  const int64_t n = model.hidden, at = token * n;
  if (model.embedding_type == SE_FP32) {
    memcpy(x, (const uint8_t *)model.embedding + at * 4, sizeof(float) * (size_t)n);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    uint16_t raw;
    memcpy(&raw, (const uint8_t *)model.embedding + (at + i) * 2, 2);
    x[i] = model.embedding_type == SE_BF16 ? float_of((uint32_t)raw << 16) : half(raw);
  }
}

} // namespace se

extern "C" {

int32_t se_decoder_create(const se_model *model, void **decoder) {
  using namespace se;
  *decoder = nullptr;
  if (!fits(*model)) return SE_INVALID;
  Decoder *made = (Decoder *)calloc(1, sizeof(Decoder));
  if (!made) return SE_NO_MEMORY;
  if (!take(*made, *model)) {
    se_decoder_destroy(made);
    return SE_NO_MEMORY;
  }
  *decoder = made;
  return SE_OK;
}

void se_decoder_destroy(void *decoder) {
  using namespace se;
  if (!decoder) return;
  Decoder *d = (Decoder *)decoder;
  for (int64_t i = 0; d->slots && i < d->model.slots; ++i)
    if (d->slots[i]) munmap(d->slots[i], (size_t)d->slot_bytes());
  if (d->scratch) munmap(d->scratch, (size_t)d->scratch_bytes);
  free(d->slots);
  free(d->table);
  free(d);
}

int32_t se_decoder_run(void *decoder, const se_step *step) {
  using namespace se;
  Decoder &d = *(Decoder *)decoder;
  if (step->m < 1 || step->m > SE_ROWS || step->first < 0 || step->first > step->m)
    return SE_INVALID;
  for (int64_t row = 0; row < step->m; ++row)
    if (!row_fits(d, *step, row)) return SE_INVALID;
  for (int64_t row = 0; row < step->m; ++row)
    if (!have_cache(d, step->slots[row])) return SE_NO_MEMORY;
  Step run = {};
  run.decoder = &d;
  run.asked = step;
  lay_out(d, run, d.scratch, SE_ROWS);
  if (step->logits) run.logits = step->logits;
  return run_step(run);
}
}
