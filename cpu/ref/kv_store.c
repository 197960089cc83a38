/* Key and value rows written into a cache, each at its sequence and position. */
#include "ref.h"

enum { KV_ROWS = 16 };

static void kv_store_rows(void *context, int64_t item, int32_t thread) {
  const op_kv_store_t *op = context;
  (void)thread;
  const float *k = op->k, *v = op->v;
  float *k_cache = op->k_cache, *v_cache = op->v_cache;
  size_t bytes = (size_t)op->width * sizeof(float);
  int64_t end = ref_min(op->n, (item + 1) * KV_ROWS);
  for (int64_t row = item * KV_ROWS; row < end; row++) {
    if (op->sequence[row] < 0) continue;
    int64_t at = op->sequence[row] * op->cache_batch + op->position[row] * op->width;
    memcpy(k_cache + at, k + row * op->ld, bytes);
    memcpy(v_cache + at, v + row * op->ld, bytes);
  }
}

nn_status_t ref_kv_store(backend_device_t *device, const op_kv_store_t *op,
                         backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, KV_ROWS), kv_store_rows, (void *)op);
}
