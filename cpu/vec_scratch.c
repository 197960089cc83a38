/* The scratch of the vector paths: the most that one operation needs. */
#include "vec/vec_scratch.h"

#include "vec/ops_scratch.h"

/* As experts.c takes it: see experts_lay_out there. */
static size_t experts_scratch(const backend_limits_t *limits) {
  int64_t rows = experts_chunk_tokens(limits->rows, limits->top_k) * limits->top_k;
  size_t bytes = ops_bytes(limits->experts, EXPERTS_GROUP_BYTES, 1, 1) + ops_bytes(rows, 1, 1, 4) +
                 ops_bytes(rows, limits->ffn, 1, limits->act_dtype == NN_F32 ? 4 : 2) +
                 ops_bytes(rows, limits->hidden, 1, 4);
  if (limits->training)
    bytes += ops_bytes(rows, limits->ffn / EXPERTS_DOT_COLUMNS + 1, 1, 4);
  return bytes + 8 * 64; /* each part begins at a multiple of 64 */
}

static size_t head_scratch(const backend_limits_t *limits) {
  return ops_bytes(head_chunk_rows(limits->rows, limits->vocab), limits->vocab, 1, 4);
}

size_t vec_scratch(const backend_limits_t *limits, int32_t threads) {
  size_t panels = ops_bytes(threads, GEMM_THREAD_BYTES, 1, 1);
  size_t experts = limits->experts && limits->top_k ? experts_scratch(limits) : 0;
  size_t head = limits->vocab ? head_scratch(limits) : 0;
  size_t products = panels + (experts > head ? experts : head);
  size_t others = ops_scratch(limits, threads);
  return products > others ? products : others;
}
