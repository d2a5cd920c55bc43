// What stands between the linears of a decoder: norms, rotation, attention, gating.
//
// Written once over the compiler's own vectors; each unit that includes it is compiled for its
// instruction set. All in float32.
#pragma once
#include <string.h>

#include "core.h"

namespace se {

constexpr int64_t kPadded = 8; // rows of the cache are padded to so many floats

struct Steps {
  // y = x / sqrt(mean(x^2) + eps) * gain
  void (*norm)(const float *x, const float *gain, float eps, int64_t n, float *y);
  // Halves of x turned by the angles of one position.
  void (*rotate)(float *x, const float *cos, const float *sin, int64_t half);
  // y = silu(gate) * up
  void (*gate)(const float *gate, const float *up, int64_t n, float *y);
  // Softmax of q [heads, dim] against k [length, dim] times v [length, dim], into y [heads, dim].
  void (*attend)(const float *q, int64_t heads, const float *k, const float *v, int64_t length,
                 int64_t dim, float scale, float *y);
  // Place of the largest; the first of several.
  int64_t (*best)(const float *x, int64_t n);
};

extern const Steps kStepsPortable;
extern const Steps kStepsAvx2;

} // namespace se

#ifdef SE_STEPS
namespace {
using namespace se;

#ifdef __AVX2__
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kWide)));
typedef int32_t Ints __attribute__((vector_size(4 * kWide)));

inline Floats load(const float *from) {
  Floats found;
  memcpy(&found, from, sizeof found);
  return found;
}
inline void store(float *to, Floats x) { memcpy(to, &x, sizeof x); }
inline Floats all(float x) { return Floats{} + x; }
inline Floats larger(Floats a, Floats b) {
  const Ints more = a > b;
  return (Floats)((more & (Ints)a) | (~more & (Ints)b));
}
inline float sum(Floats x) {
  float found = 0.f;
  for (int i = 0; i < kWide; ++i) found += x[i];
  return found;
}

// e^x, within 2 units in the last place: 2^n times a polynomial of degree 6 (Cephes, expf).
inline Floats exponential(Floats x) {
  constexpr float kMagic = 12582912.f; // 1.5 * 2^23: adding it leaves a whole number
  x = -larger(-larger(x, all(-87.f)), all(-88.f));
  const Floats shifted = x * 1.44269504f + kMagic;
  const Floats n = shifted - kMagic;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  const Ints power = ((Ints)shifted - 0x4b400000 + 127) << 23;
  return p * (Floats)power;
}

float exponential(float x) { return exponential(all(x))[0]; }

float dot(const float *a, const float *b, int64_t n) { // n: a multiple of kPadded
  Floats found[2] = {};
  int64_t i = 0;
  for (; i + 2 * kWide <= n; i += 2 * kWide) {
    found[0] += load(a + i) * load(b + i);
    found[1] += load(a + i + kWide) * load(b + i + kWide);
  }
  if (i < n) found[0] += load(a + i) * load(b + i);
  return sum(found[0] + found[1]);
}

void norm(const float *x, const float *gain, float eps, int64_t n, float *y) {
  Floats lanes[2] = {};
  int64_t i = 0;
  for (; i + 2 * kWide <= n; i += 2 * kWide) {
    lanes[0] += load(x + i) * load(x + i);
    lanes[1] += load(x + i + kWide) * load(x + i + kWide);
  }
  float squares = sum(lanes[0] + lanes[1]);
  for (; i < n; ++i) squares += x[i] * x[i];
  const float scale = 1.f / __builtin_sqrtf(squares / (float)n + eps);
  for (i = 0; i < n; ++i) y[i] = x[i] * scale * gain[i];
}

void rotate(float *x, const float *cos, const float *sin, int64_t half) {
  float *second = x + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = second[i];
    x[i] = a * cos[i] - b * sin[i];
    second[i] = b * cos[i] + a * sin[i];
  }
}

void gate(const float *g, const float *up, int64_t n, float *y) {
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) {
    const Floats x = load(g + i);
    store(y + i, x / (exponential(-x) + 1.f) * load(up + i));
  }
  for (; i < n; ++i) y[i] = g[i] / (exponential(-g[i]) + 1.f) * up[i];
}

constexpr int64_t kKeys = 64;

// One head over keys of one block: sums so far are brought to the new largest score.
struct Running {
  float most, total;
};

void weigh(const float *q, const float *k, const float *v, int64_t keys, int64_t dim, float scale,
           Running &state, float *y) {
  alignas(32) float scores[kKeys];
  float most = state.most;
  for (int64_t t = 0; t < keys; ++t) {
    scores[t] = dot(q, k + t * dim, dim) * scale;
    most = scores[t] > most ? scores[t] : most;
  }
  for (int64_t t = keys; t < kKeys; ++t) scores[t] = -1e30f; // weigh less than any sum's last bit
  Floats total = {};
  for (int64_t t = 0; t < keys; t += kWide) {
    const Floats weight = exponential(load(scores + t) - most);
    total += weight;
    store(scores + t, weight);
  }
  const float fade = exponential(state.most - most);
  for (int64_t i = 0; i < dim; i += kWide) {
    Floats found = load(y + i) * fade;
    for (int64_t t = 0; t < keys; ++t) found += load(v + t * dim + i) * scores[t];
    store(y + i, found);
  }
  state = {most, state.total * fade + sum(total)};
}

void attend(const float *q, int64_t heads, const float *k, const float *v, int64_t length,
            int64_t dim, float scale, float *y) {
  constexpr int64_t kHeads = 16; // that share what a block of keys brings into the cache
  for (int64_t h0 = 0; h0 < heads; h0 += kHeads) {
    const int64_t count = heads - h0 < kHeads ? heads - h0 : kHeads;
    Running states[kHeads];
    for (int64_t h = 0; h < count; ++h) states[h] = {-1e30f, 0.f};
    memset(y + h0 * dim, 0, sizeof(float) * (size_t)(count * dim));
    for (int64_t t = 0; t < length; t += kKeys) {
      const int64_t keys = length - t < kKeys ? length - t : kKeys;
      for (int64_t h = 0; h < count; ++h)
        weigh(q + (h0 + h) * dim, k + t * dim, v + t * dim, keys, dim, scale, states[h],
              y + (h0 + h) * dim);
    }
    for (int64_t h = 0; h < count; ++h)
      for (int64_t i = 0; i < dim; ++i) y[(h0 + h) * dim + i] /= states[h].total;
  }
}

int64_t best(const float *x, int64_t n) {
  Floats lanes = all(-__builtin_inff());
  int64_t i = 0;
  for (; i + kWide <= n; i += kWide) lanes = larger(load(x + i), lanes);
  float most = -__builtin_inff();
  for (int j = 0; j < kWide; ++j) most = lanes[j] > most ? lanes[j] : most;
  for (; i < n; ++i) most = x[i] > most ? x[i] : most;
  for (i = 0; i < n && x[i] != most;) ++i;
  return i < n ? i : 0;
}

} // namespace
#endif
