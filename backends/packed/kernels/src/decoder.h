// A decoder in memory: the plan, its cache, and the buffers of a step.
#pragma once
#include "decode.h"
#include "steps.h"

namespace se {

struct Cached { // of one slot, layer and head: [max_tokens, dim]
  float *k, *v;
};

struct Decoder {
  se_model model;
  se_layer *table;
  const Steps *steps;
  int64_t dim;       // head_dim, padded
  int64_t qkv_width; // of q, k and v side by side, not padded
  float scale;       // of scores
  float **slots;     // [slots]: a cache each, null before its first use
  uint8_t *scratch;  // for SE_ROWS rows; pages that no step touches take no memory
  int64_t scratch_bytes;

  int64_t head_floats() const { return model.max_tokens * dim; }
  int64_t slot_bytes() const { return model.layers * 2 * model.kv_heads * head_floats() * 4; }
  Cached cached(int64_t slot, int64_t layer, int64_t head) const {
    float *k = slots[slot] + (layer * 2 * model.kv_heads + head) * head_floats();
    return {k, k + model.kv_heads * head_floats()};
  }
};

struct Step {
  Decoder *decoder;
  const se_step *asked;
  int64_t layer;
  float *x, *normed, *made;     // [m, hidden]
  float *qkv;                   // [m, qkv_width]; then attention's result in place of q
  float *q, *attended;          // [m, heads, dim]
  float *wide;                  // [m, 2, intermediate]
  float *logits;                // [m - first, vocab]
};

void embed(const se_model &model, int64_t token, float *x);
int32_t run_step(Step &step); // decode.cpp

} // namespace se
