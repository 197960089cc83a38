/* The backend itself: paths, memory, copies, zeroing, and opening when memory is short. */
#include <string.h>

#include "base/mem.h"
#include "ops.h"

static void test_paths_follow_the_mask(void **state) {
  (void)state;
  atomic_int cancel = 0;
  for (int32_t mask = 1; mask < 8; mask++) {
    backend_options_t options = ops_options(1, mask, &cancel);
    const backend_t *table;
    backend_device_t *device;
    assert_int_equal(cpu_backend_open(&options, &table, &device), NN_OK);
    assert_int_equal(table->abi_version, BACKEND_ABI_VERSION);
    assert_int_equal(table->struct_size, sizeof *table);
    backend_info_t info = {.struct_size = sizeof info};
    table->describe(device, &info);
    assert_int_equal(info.threads, 1);
    assert_int_equal(info.cpu_paths & NN_CPU_REFERENCE, NN_CPU_REFERENCE);
    assert_int_equal(info.cpu_paths & ~(mask | NN_CPU_REFERENCE), 0);
    assert_int_equal(info.dlpack_device, 1); /* kDLCPU */
    assert_int_equal(info.dlpack_id, 0);
    assert_int_equal(info.act_dtype, NN_BF16);
    assert_int_equal(info.act_dtype_f16, NN_F32);
    size_t length = strlen(info.model);
    assert_true(length > 0 && info.model[0] != ' ' && info.model[length - 1] != ' ');
    assert_null(table->record_begin);
    assert_null(table->record_end);
    assert_null(table->graph_run);
    assert_null(table->graph_free);
    table->close(device);
  }
}

static void test_memory_and_copies(void **state) {
  (void)state;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){0});
  while (ops_next(&trial)) {
    const size_t sizes[] = {1, 63, 4096, (3 << 20) + 5}; /* the last takes several items to zero */
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
      void *data;
      ops_expect(&trial, "alloc", NN_OK, trial.table->alloc(trial.device, sizes[i], &data));
      assert_int_equal((uintptr_t)data % 64, 0);
      unsigned char *in = ops_memory((int64_t)sizes[i], 1), *out = ops_memory((int64_t)sizes[i], 1);
      for (size_t j = 0; j < sizes[i]; j++) in[j] = (unsigned char)(j * 7 + 1);
      ops_expect(&trial, "copy_in", NN_OK, trial.table->copy_in(trial.device, data, in, sizes[i]));
      ops_expect(&trial, "copy_out", NN_OK,
                 trial.table->copy_out(trial.device, out, data, sizes[i]));
      assert_memory_equal(in, out, sizes[i]);
      /* Zeroing is deaf to cancel, and ends where it is told to. */
      atomic_store(&trial.cancel, 1);
      ops_expect(&trial, "zero", NN_OK, trial.table->zero(trial.device, data, sizes[i] - 1));
      atomic_store(&trial.cancel, 0);
      memset(out, 0, sizes[i] - 1);
      assert_memory_equal(data, out, sizes[i]);
      trial.table->free(trial.device, data, sizes[i]);
    }
    assert_int_equal(trial.table->zero(trial.device, NULL, 0), NN_OK);
    ops_free();
  }
}

static void test_open_without_memory(void **state) {
  (void)state;
  atomic_int cancel = 0;
  backend_options_t options = ops_options(2, 7, &cancel);
  const backend_t *table = NULL;
  backend_device_t *device = NULL;
  nn_status_t status = NN_ERR_MEMORY;
  int64_t after = 0;
  for (; after < 20 && status == NN_ERR_MEMORY; after++) {
    mem_fail_after(after);
    status = cpu_backend_open(&options, &table, &device);
    if (status == NN_ERR_MEMORY) assert_null(device);
  }
  mem_fail_after(-1);
  assert_int_equal(status, NN_OK);
  assert_true(after > 1);
  void (*close)(backend_device_t *) = table->close; /* the table goes with the device */
  close(device);
  close(NULL);
}

static void test_alloc_without_memory(void **state) {
  (void)state;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){0});
  while (ops_next(&trial)) {
    void *data = &trial;
    ops_expect(&trial, "alloc", NN_ERR_MEMORY,
               trial.table->alloc(trial.device, SIZE_MAX - 100, &data));
    assert_ptr_equal(data, &trial);
  }
}

/* Limits whose products overflow must ask for more than any memory, not wrap around to little. */
static void test_hostile_limits_ask_for_too_much(void **state) {
  (void)state;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){0});
  while (ops_next(&trial)) {
    backend_limits_t limits = {
        .rows = INT64_MAX / 2, .batch = 1, .kv_len = INT64_MAX / 2, .training = 1};
    limits.hidden = limits.ffn = limits.vocab = INT64_MAX / 2;
    limits.heads = limits.kv_heads = limits.experts = limits.top_k = INT32_MAX;
    limits.head_dim = 256;
    assert_true(trial.table->workspace_bytes(trial.device, &limits) > (size_t)1 << 48);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_paths_follow_the_mask),
      cmocka_unit_test(test_memory_and_copies),
      cmocka_unit_test(test_open_without_memory),
      cmocka_unit_test(test_alloc_without_memory),
      cmocka_unit_test(test_hostile_limits_ask_for_too_much),
  };
  return cmocka_run_group_tests_name("backend", tests, NULL, NULL);
}
