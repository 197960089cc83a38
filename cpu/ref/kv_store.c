/* Key and value rows written into a cache, each at its sequence and position. */
#include "ref.h"

enum { KV_ROWS = 16 };

static void kv_store_rows(void *context, int64_t item, int32_t thread) {
  const op_kv_store_t *op = context;
  (void)thread;
  const char *k = op->k, *v = op->v;
  char *k_cache = op->k_cache, *v_cache = op->v_cache;
  int64_t element = op->act_dtype == NN_F32 ? 4 : 2;
  size_t bytes = (size_t)(op->width * element);
  int64_t end = ref_min(op->n, (item + 1) * KV_ROWS);
  for (int64_t row = item * KV_ROWS; row < end; row++) {
    if (op->sequence[row] < 0) continue;
    int64_t at = op->sequence[row] * op->cache_batch + op->position[row] * op->width;
    memcpy(k_cache + at * element, k + row * op->ld * element, bytes);
    memcpy(v_cache + at * element, v + row * op->ld * element, bytes);
  }
}

nn_status_t ref_kv_store(backend_device_t *device, const op_kv_store_t *op,
                         backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, KV_ROWS), kv_store_rows, (void *)op);
}
