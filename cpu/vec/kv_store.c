/* Copies key and value rows into a cache: row i goes to position[i] of sequence[i]. */
#include "vec/ops.h"

enum { KV_STORE_ROWS = 16 };

static void kv_store_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_kv_store_t *op = context;
  const float *k = op->k, *v = op->v;
  float *k_cache = op->k_cache, *v_cache = op->v_cache;
  int64_t end = vec_min(op->n, (item + 1) * KV_STORE_ROWS);
  for (int64_t i = item * KV_STORE_ROWS; i < end; i++) {
    if (op->sequence[i] < 0) continue;
    int64_t at = op->sequence[i] * op->cache_batch + op->position[i] * op->width;
    memcpy(k_cache + at, k + i * op->ld, (size_t)op->width * sizeof(float));
    memcpy(v_cache + at, v + i * op->ld, (size_t)op->width * sizeof(float));
  }
}

VEC_OP(kv_store, op_kv_store_t) {
  (void)scratch;
  op_kv_store_t job = *op;
  return vec_run(device, vec_blocks(op->n, KV_STORE_ROWS), 2 * op->n * op->width, kv_store_rows,
                 &job);
}
