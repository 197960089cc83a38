/* Rows written into a key-value cache: exact copies, and nothing else touched. */
#include <string.h>

#include "ops.h"

enum { SEQUENCES = 4, POSITIONS = 50 };

static void check_kv_store(int64_t n, int64_t width, int64_t pad) {
  int64_t cache_batch = POSITIONS * width + 3, count = SEQUENCES * cache_batch;
  int32_t *sequence = ops_ints(n), *position = ops_ints(n);
  op_kv_store_t op = {.n = n, .width = width, .ld = 2 * width + pad, .cache_batch = cache_batch};
  float *rows = ops_uniform(n * op.ld, 1, 1);
  op.k = rows, op.v = rows + width; /* adjacent in a row, as the projection leaves them */
  float *cache = ops_uniform(count, 1, 2);
  float *want_k = ops_copy(cache, count), *want_v = ops_copy(cache, count);
  for (int64_t i = 0; i < n; i++) {
    sequence[i] = i % 5 == 4 ? -1 : (int32_t)(i % SEQUENCES);
    position[i] = (int32_t)(i / SEQUENCES); /* no place twice */
    if (sequence[i] < 0) continue;
    int64_t at = sequence[i] * cache_batch + position[i] * width;
    memcpy(want_k + at, rows + i * op.ld, (size_t)width * sizeof(float));
    memcpy(want_v + at, rows + width + i * op.ld, (size_t)width * sizeof(float));
  }
  op.sequence = sequence, op.position = position;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = n,
                                       .batch = SEQUENCES,
                                       .kv_len = POSITIONS,
                                       .heads = 1,
                                       .kv_heads = 1,
                                       .head_dim = width,
                                       .hidden = width});
  while (ops_next(&trial)) {
    op.k_cache = ops_copy(cache, count), op.v_cache = ops_copy(cache, count);
    OPS_RUN(&trial, kv_store, &op);
    assert_memory_equal(op.k_cache, want_k, (size_t)count * sizeof(float));
    assert_memory_equal(op.v_cache, want_v, (size_t)count * sizeof(float));
    if (n * width >= 1 << 16) OPS_RUN_CANCELLED(&trial, kv_store, &op);
  }
  ops_free();
}

static void test_kv_store(void **state) {
  (void)state;
  check_kv_store(1, 1, 0);
  check_kv_store(5, 16, 0);
  check_kv_store(17, 65, 7);
  check_kv_store(130, 64, 0);
  check_kv_store(200, 768, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_kv_store)};
  return cmocka_run_group_tests_name("kv_store", tests, NULL, NULL);
}
