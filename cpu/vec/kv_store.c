/* Copies key and value rows into a cache: row i goes to position[i] of sequence[i]. */
#include "vec/ops.h"

enum { KV_STORE_ROWS = 16 };

static void kv_store_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_kv_store_t *op = context;
  int32_t act = op->act_dtype;
  size_t bytes = (size_t)(op->width * vec_dtype_bytes(act));
  int64_t end = vec_min(op->n, (item + 1) * KV_STORE_ROWS);
  for (int64_t i = item * KV_STORE_ROWS; i < end; i++) {
    if (op->sequence[i] < 0) continue;
    int64_t at = op->sequence[i] * op->cache_batch + op->position[i] * op->width;
    memcpy(vec_to(op->k_cache, at, act), vec_at(op->k, i * op->ld, act), bytes);
    memcpy(vec_to(op->v_cache, at, act), vec_at(op->v, i * op->ld, act), bytes);
  }
}

VEC_OP(kv_store, op_kv_store_t) {
  (void)scratch;
  op_kv_store_t job = *op;
  return vec_run(device, vec_blocks(op->n, KV_STORE_ROWS), 2 * op->n * op->width, kv_store_rows,
                 &job);
}
