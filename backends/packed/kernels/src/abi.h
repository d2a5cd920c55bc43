/* The C interface of the packed kernels: plain functions over pointers, loaded by ctypes. */
#ifndef SPARSE_EXPORT_ABI_H
#define SPARSE_EXPORT_ABI_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#define SE_API __attribute__((visibility("default")))
#define SE_ABI_VERSION 10
#define SE_OPERATORS 1 /* version of the ONNX domain "sparse_export" (onnx_op.cpp) */

enum { SE_RAGGED = 0, SE_NM = 1, SE_DENSE = 2 };                              /* kind */
enum { SE_BF16 = 0, SE_FP16 = 1, SE_FP32 = 2, SE_INT8 = 3, SE_INT4 = 4, SE_FP8 = 5 };
enum { SE_X_F32 = 0, SE_X_BF16 = 1 };                                         /* type of x and y */
enum {
  SE_PORTABLE = 0, SE_AVX2 = 1, SE_AVX512 = 2, SE_AVX512_VNNI = 3, SE_AVX512_BF16 = 4, SE_ISAS = 5
};
enum { SE_OK = 0, SE_INVALID = 1, SE_NO_MEMORY = 2, SE_NO_ISA = 3 };
/* Flags: 16-bit activations for int8 and int4 values, otherwise 8-bit; float32 activations for
   bfloat16 values, otherwise rounded to bfloat16. */
enum { SE_ACT16 = 1, SE_ACT32 = 2 };

/* One packed linear as docs/formats/packed.md has it. Lengths are checked against the mask. */
typedef struct {
  int32_t kind, values_type, n, m; /* n, m: kind nm only */
  int64_t rows, cols, group;       /* group 0: one scale a row */
  const uint8_t *mask;             /* [R, C, 128]; unused where dense */
  int64_t mask_bytes;
  const uint8_t *values;
  int64_t values_bytes;
  const int64_t *starts; /* [R + 1], ragged only */
  int64_t starts_count;
  const uint16_t *scales; /* bfloat16 [rows, G], quantised only */
  int64_t scales_count;
} se_desc;

/* y [m, rows] = x [m, cols] times the weight transposed, plus bias [rows] (may be null). */
typedef struct {
  const void *linear;
  void *y;
  int64_t ldy; /* elements from one row of y to the next */
  const float *bias;
} se_job;

SE_API int32_t se_abi_version(void);
SE_API int32_t se_operators(void); /* SE_OPERATORS */
SE_API int32_t se_isa_runs(int32_t isa); /* whether this build has it and this machine runs it */
SE_API int32_t se_create(const se_desc *desc, int32_t isa, void **linear);
SE_API void se_destroy(void *linear);
SE_API int64_t se_bytes(const void *linear);
SE_API int64_t se_row_bytes(const void *linear); /* of these, what one row of x reads */
/* All jobs take the same x (so the same cols) and share one pass of the threads. */
SE_API int32_t se_run(const se_job *jobs, int64_t count, const void *x, int32_t x_type, int64_t m,
                      int64_t ldx, int32_t y_type, int32_t flags);
/* One job by plain arguments: a call from Python builds no structure. */
SE_API int32_t se_run_one(const void *linear, const float *bias, const void *x, int32_t x_type,
                          int64_t m, int64_t ldx, void *y, int64_t ldy, int32_t y_type,
                          int32_t flags);
/* Weight rows [16 b0, 16 b1) in float32, scales applied: [16 (b1 - b0), cols]. */
SE_API int32_t se_unpack(const void *linear, int64_t b0, int64_t b1, float *out);
SE_API int32_t se_threads(void);
SE_API void se_set_threads(int32_t count); /* bounded by the affinity of the process */
/* Let the process's OpenMP run the parts of a call, in place of the own pool: the address of its
   GOMP_parallel and how many threads that starts, or null for the pool again. */
SE_API void se_share_threads(void *gomp_parallel, int32_t count);
/* How to multiply with it: by what the mask leaves, whole, or by lists that skip zeros. */
enum { SE_BY_MASK, SE_WHOLE, SE_LISTS };
/* M . (W + s B A), for training: float32 [out, in], [rank, in] and [out, rank]; `kept` is M in
   bytes 0 and 1. `isa` as se_create has it; `way`: one of the above. */
typedef struct {
  int32_t isa, way;
  float scale;
  int64_t out, in, rank;
  const float *weight;
  const uint8_t *kept;
  const float *a, *b;
} se_masked;
/* y [tokens, out] = x [tokens, in] times the formed weight transposed. */
SE_API int32_t se_masked_forward(const se_masked *w, const float *x, int64_t tokens, float *y);
/* dx [tokens, in] = dy [tokens, out] times the formed weight. */
SE_API int32_t se_masked_backward(const se_masked *w, const float *dy, int64_t tokens, float *dx);
/* With G = (dy^T x) . M: da [rank, in] = s B^T G, db [out, rank] = s G A^T. The same bits for any
   number of threads. */
SE_API int32_t se_masked_factors(const se_masked *w, const float *x, const float *dy,
                                 int64_t tokens, float *da, float *db);
/* Sums bytes, in pieces of 4 MiB over the pool, each from its beginning on, or where `streams` is more
   than 1 from eight places at once; the faster way is the read ceiling of this machine. */
SE_API uint64_t se_read(const void *data, int64_t bytes, int64_t streams);
#ifdef __cplusplus
}
#endif
#endif
