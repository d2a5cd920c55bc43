// A decode step: embedding, layers, last norm and head, in one call.
#include <string.h>

#include "decoder.h"

namespace se {
namespace {

typedef void (*RowTask)(Step &step, int64_t row);

struct Rows {
  Step *step;
  RowTask task;
  int64_t each;
};

void rows_part(void *context, int64_t part) {
  const Rows &rows = *(const Rows *)context;
  const int64_t from = part * rows.each, end = from + rows.each, m = rows.step->asked->m;
  for (int64_t row = from; row < (end < m ? end : m); ++row) rows.task(*rows.step, row);
}

// A few rows are done before another thread would wake.
void each_row(Step &step, RowTask task) {
  const int64_t m = step.asked->m;
  Rows rows = {&step, task, m < 8 ? m : 4};
  if (m < 8)
    rows_part(&rows, 0);
  else
    parallel((m + rows.each - 1) / rows.each, rows_part, &rows);
}

int32_t rows_class(int64_t m) { return m == 1 ? SE_ONE : m <= 16 ? SE_FEW : SE_MANY; }

se_job job(const Step &step, int role, float *y, int64_t ldy) {
  const se_layer &layer = step.decoder->table[step.layer];
  return {layer.linears[role][rows_class(step.asked->m)], y, ldy, layer.biases[role]};
}

int32_t product(const Step &step, const se_job *jobs, int64_t count, const float *x, int64_t ldx) {
  const se_model &model = step.decoder->model;
  return se_run(jobs, count, x, SE_X_F32, step.asked->m, ldx, SE_X_F32, model.flags);
}

void add_norm(Step &step, int64_t row, const float *gain) {
  const se_model &model = step.decoder->model;
  const int64_t at = row * model.hidden;
  step.decoder->steps->norm(step.x + at, gain, model.eps, model.hidden, step.normed + at);
}

void input_norm(Step &step, int64_t row) {
  add_norm(step, row, step.decoder->table[step.layer].input_norm);
}

void post_norm(Step &step, int64_t row) {
  add_norm(step, row, step.decoder->table[step.layer].post_norm);
}

void add(Step &step, int64_t row) {
  const int64_t n = step.decoder->model.hidden;
  float *x = step.x + row * n;
  const float *more = step.made + row * n;
  for (int64_t i = 0; i < n; ++i) x[i] += more[i];
}

void add_then_post_norm(Step &step, int64_t row) {
  add(step, row);
  post_norm(step, row);
}

// One head of q or k: its norm where the family has one, then the rotation.
void turn(const Step &step, const float *from, const float *gain, int64_t position, float *to) {
  const se_model &model = step.decoder->model;
  const int64_t half = model.head_dim / 2;
  if (gain)
    step.decoder->steps->norm(from, gain, model.eps, model.head_dim, to);
  else
    memcpy(to, from, sizeof(float) * (size_t)model.head_dim);
  step.decoder->steps->rotate(to, model.cos + position * half, model.sin + position * half, half);
}

// q into its padded place, k and v into the cache.
void place_heads(Step &step, int64_t row) {
  const Decoder &d = *step.decoder;
  const se_model &model = d.model;
  const se_layer &layer = d.table[step.layer];
  const int64_t size = model.head_dim, position = step.asked->positions[row];
  const float *from = step.qkv + row * d.qkv_width;
  for (int64_t h = 0; h < model.heads; ++h)
    turn(step, from + h * size, layer.q_norm, position, step.q + (row * model.heads + h) * d.dim);
  from += model.heads * size;
  for (int64_t g = 0; g < model.kv_heads; ++g) {
    const Cached cached = d.cached(step.asked->slots[row], step.layer, g);
    turn(step, from + g * size, layer.k_norm, position, cached.k + position * d.dim);
    memcpy(cached.v + position * d.dim, from + (model.kv_heads + g) * size,
           sizeof(float) * (size_t)size);
  }
}

// Part: the query heads of one row that share one head of k and v.
void attend_part(void *context, int64_t part) {
  Step &step = *(Step *)context;
  const Decoder &d = *step.decoder;
  const se_model &model = d.model;
  const int64_t row = part / model.kv_heads, g = part % model.kv_heads;
  const int64_t group = model.heads / model.kv_heads, first = row * model.heads + g * group;
  const Cached cached = d.cached(step.asked->slots[row], step.layer, g);
  float *found = step.attended + first * d.dim;
  d.steps->attend(step.q + first * d.dim, group, cached.k, cached.v,
                  step.asked->positions[row] + 1, d.dim, d.scale, found);
  float *to = step.qkv + row * d.qkv_width + g * group * model.head_dim; // q is no longer needed
  for (int64_t h = 0; h < group; ++h)
    memcpy(to + h * model.head_dim, found + h * d.dim, sizeof(float) * (size_t)model.head_dim);
}

void gate_row(Step &step, int64_t row) {
  const int64_t n = step.decoder->model.intermediate;
  float *gate = step.wide + row * 2 * n;
  step.decoder->steps->gate(gate, gate + n, n, gate);
}

int32_t attention(Step &step) {
  const Decoder &d = *step.decoder;
  const int64_t q = d.model.heads * d.model.head_dim, k = d.model.kv_heads * d.model.head_dim;
  const se_job jobs[] = {job(step, SE_Q, step.qkv, d.qkv_width),
                         job(step, SE_K, step.qkv + q, d.qkv_width),
                         job(step, SE_V, step.qkv + q + k, d.qkv_width)};
  each_row(step, input_norm);
  if (int32_t status = product(step, jobs, 3, step.normed, d.model.hidden)) return status;
  each_row(step, place_heads);
  parallel(step.asked->m * d.model.kv_heads, attend_part, &step);
  const se_job out = job(step, SE_O, step.made, d.model.hidden);
  return product(step, &out, 1, step.qkv, d.qkv_width);
}

int32_t feed_forward(Step &step) {
  const int64_t n = step.decoder->model.intermediate;
  const se_job jobs[] = {job(step, SE_GATE, step.wide, 2 * n), job(step, SE_UP, step.wide + n, 2 * n)};
  each_row(step, add_then_post_norm);
  if (int32_t status = product(step, jobs, 2, step.normed, step.decoder->model.hidden)) return status;
  each_row(step, gate_row);
  const se_job down = job(step, SE_DOWN, step.made, step.decoder->model.hidden);
  if (int32_t status = product(step, &down, 1, step.wide, 2 * n)) return status;
  each_row(step, add);
  return SE_OK;
}

void show(const Step &step, int64_t place, const float *x) {
  const int64_t count = step.asked->m * step.decoder->model.hidden;
  if (step.asked->states)
    memcpy(step.asked->states + place * count, x, sizeof(float) * (size_t)count);
}

void find_best(void *context, int64_t row) {
  const Step &step = *(const Step *)context;
  const int64_t vocab = step.decoder->model.vocab;
  step.asked->best[row] = (int32_t)step.decoder->steps->best(step.logits + row * vocab, vocab);
}

int32_t last(Step &step) {
  const se_model &model = step.decoder->model;
  const int64_t m = step.asked->m, first = step.asked->first;
  for (int64_t row = 0; row < m; ++row) add_norm(step, row, model.final_norm);
  show(step, model.layers + 1, step.normed);
  if (first == m) return SE_OK;
  const se_job head = {model.head[rows_class(m - first)], step.logits, model.vocab, nullptr};
  const int32_t status = se_run(&head, 1, step.normed + first * model.hidden, SE_X_F32, m - first,
                                model.hidden, SE_X_F32, model.flags);
  if (!status && step.asked->best) parallel(m - first, find_best, &step);
  return status;
}

} // namespace

int32_t run_step(Step &step) {
  const se_model &model = step.decoder->model;
  for (int64_t row = 0; row < step.asked->m; ++row)
    embed(model, step.asked->tokens[row], step.x + row * model.hidden);
  show(step, 0, step.x);
  for (step.layer = 0; step.layer < model.layers; ++step.layer) {
    if (int32_t status = attention(step)) return status;
    if (int32_t status = feed_forward(step)) return status;
    show(step, step.layer + 1, step.x);
  }
  return last(step);
}

} // namespace se
