/* How much scratch the vector paths need, and the chunks that keep it bounded. Knows no instruction
 * set, so that it can be asked on any machine and covers both paths. */
#ifndef NN_CPU_VEC_SCRATCH_H
#define NN_CPU_VEC_SCRATCH_H

#include "backend.h"

enum {
  GEMM_THREAD_BYTES = 11 << 18,  /* panels and sums of one thread; gemm.c holds itself to it */
  EXPERTS_CHUNK_ROWS = 8192,     /* slots that the experts treat at a time, in whole tokens */
  EXPERTS_GROUP_BYTES = 256,     /* what is noted for each expert; experts.c holds itself to it */
  EXPERTS_DOT_COLUMNS = 16,      /* least columns of a part of dweight */
  HEAD_CHUNK_ELEMENTS = 16 << 20, /* logits that exist at a time, */
  HEAD_CHUNK_MIN_ROWS = 64,      /* but for these bounds */
  HEAD_CHUNK_MAX_ROWS = 1024
};

/* Bytes of scratch that suffice for any operation of the vector paths within the limits. */
size_t vec_scratch(const backend_limits_t *limits, int32_t threads);

/* Tokens that op_experts and op_experts_bwd treat at a time. */
static inline int64_t experts_chunk_tokens(int64_t n, int64_t top_k) {
  int64_t most = EXPERTS_CHUNK_ROWS / top_k;
  if (most < 1) most = 1;
  return n < most ? n : most;
}

/* Most rows whose logits op_head_loss holds at a time. */
static inline int64_t head_chunk_rows(int64_t n, int64_t vocab) {
  int64_t rows = HEAD_CHUNK_ELEMENTS / vocab;
  if (rows < HEAD_CHUNK_MIN_ROWS) rows = HEAD_CHUNK_MIN_ROWS;
  if (rows > HEAD_CHUNK_MAX_ROWS) rows = HEAD_CHUNK_MAX_ROWS;
  return n < rows ? n : rows;
}

#endif
