/* A decoder of Llama's form as a flat plan: one call runs one step of it over all layers.

   Beside abi.h: plain structures over pointers that the caller keeps alive. */
#ifndef SPARSE_EXPORT_DECODE_H
#define SPARSE_EXPORT_DECODE_H
#include "abi.h"

#ifdef __cplusplus
extern "C" {
#endif
enum { SE_Q, SE_K, SE_V, SE_O, SE_GATE, SE_UP, SE_DOWN, SE_ROLES };
enum { SE_ONE = 0, SE_FEW = 1, SE_MANY = 2, SE_CLASSES = 3 }; /* rows: 1, 2 to 16, more */
enum { SE_ROWS = 128 };                                       /* most rows of a step */

typedef struct {
  const float *input_norm, *post_norm;        /* [hidden] */
  const float *q_norm, *k_norm;               /* [head_dim], or null */
  const void *linears[SE_ROLES][SE_CLASSES];  /* of se_create; by the rows of a step */
  const float *biases[SE_ROLES];              /* or null */
} se_layer;

typedef struct {
  int64_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab;
  int64_t max_tokens, slots; /* of a sequence; sequences at once */
  int32_t isa, flags;        /* as for se_create and se_run */
  int32_t embedding_type;    /* SE_BF16, SE_FP16 or SE_FP32 */
  float eps;
  const void *embedding;             /* [vocab, hidden] */
  const float *final_norm;           /* [hidden] */
  const float *cos, *sin;            /* [max_tokens, head_dim / 2] */
  const void *head[SE_CLASSES];
  const se_layer *table; /* [layers], copied */
} se_model;

/* Rows of one or several sequences; what a row attends to must lie in its cache or before it. */
typedef struct {
  const int32_t *tokens, *slots, *positions; /* [m] */
  int64_t m, first;                          /* rows [first, m) get logits */
  float *logits;                             /* [m - first, vocab], or null */
  int32_t *best;                             /* [m - first]: the largest logit's place, or null */
  float *states; /* [layers + 2, m, hidden]: embedding, each layer, last norm; or null */
} se_step;

SE_API int32_t se_decoder_create(const se_model *model, void **decoder);
SE_API void se_decoder_destroy(void *decoder);
SE_API int32_t se_decoder_run(void *decoder, const se_step *step);
#ifdef __cplusplus
}
#endif
#endif
