/* Files large enough for several threads to read: the same bits, progress, cancelling and failures
 * whatever their number, into host memory and into memory that only copies reach. */
#include <string.h>

#include "base/device.h"
#include "base/dtype.h"
#include "files.h"
#include "format/folder.h"

static char *folder;
static folder_t opened;

static int setup(void **state) {
  (void)state;
  folder = fixture_folder();
  return 0;
}

static int teardown(void **state) {
  (void)state;
  folder_close(&opened);
  fixture_folder_remove(folder);
  return 0;
}

/* Some 40 MB of fp32 in the folder, opened. */
static void save(int32_t family, int64_t shard_bytes) {
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = files_family(family);
  config.hidden = 515, config.heads = 5, config.kv_heads = 5, config.layers = 2;
  config.head_dim = 103, config.ffn = 3300;
  if (config.experts) config.head_dim = 12, config.ffn = 670, config.experts = 5;
  nn_file_options_t options = STRUCT(nn_file_options_t);
  options.shard_bytes = shard_bytes;
  nn_model_t *model;
  CHECK(nn_model_create(device, &config, NN_F32, 3, &model));
  CHECK(nn_model_save(model, folder, &options));
  nn_model_destroy(model);
  nn_device_destroy(device);
  folder_close(&opened);
  CHECK(folder_open(folder, &opened));
}

/* A CPU's device of so many threads; far: as if its memory were not the host's. */
static nn_device_t *open_device(int32_t threads, bool far) {
  nn_device_t *device = fixture_device_named("cpu", threads, 0);
  if (far) device->host_memory = false;
  return device;
}

static unsigned char *read_all(int32_t dtype, nn_device_t *device, files_watch_t *watch) {
  unsigned char *values =
      fixture_memory((size_t)opened.table.elements * nn_dtype_bytes(dtype));
  CHECK(folder_read(&opened, dtype, values, watch ? files_watch_progress : NULL, watch, NULL,
                    device));
  return values;
}

static void check_family(int32_t family, int64_t shard_bytes) {
  save(family, shard_bytes);
  assert_true(opened.table.elements * 4 > 32 << 20); /* worth four threads */
  assert_true((opened.file_count > 1) == (shard_bytes > 0));
  static const int32_t dtypes[] = {NN_F32, NN_BF16};
  for (int d = 0; d < 2; d++) {
    size_t bytes = (size_t)opened.table.elements * nn_dtype_bytes(dtypes[d]);
    unsigned char *wanted = read_all(dtypes[d], NULL, NULL);
    for (int far = 0; far < 2; far++)
      for (int32_t threads = 1; threads <= 4; threads += 3) {
        nn_device_t *device = open_device(threads, far);
        files_watch_t watch = {0};
        unsigned char *found = read_all(dtypes[d], device, &watch);
        assert_memory_equal(found, wanted, bytes);
        assert_int_equal(watch.done, opened.table.elements * 4);
        assert_int_equal(watch.total, watch.done);
        free(found);
        nn_device_destroy(device);
      }
    free(wanted);
  }
}

static void any_number_of_threads_reads_the_same(void **state) {
  (void)state;
  check_family(NN_FAMILY_MIXTRAL, 9000000);
  check_family(NN_FAMILY_GPT2, 0); /* transposes */
}

static void shared_reading_is_cancelled(void **state) {
  (void)state;
  save(NN_FAMILY_MIXTRAL, 0);
  float *values = fixture_memory((size_t)opened.table.elements * sizeof *values);
  nn_device_t *device = open_device(4, false);
  files_watch_t watch = {.stop_at = 2};
  CHECK_FAILS(NN_ERR_CANCELLED, "the progress callback cancelled after",
              folder_read(&opened, NN_F32, values, files_watch_progress, &watch, NULL, device));
  assert_int_equal(watch.calls, 2);
  assert_true(watch.done < watch.total);
  atomic_int cancel = 1;
  CHECK_FAILS(NN_ERR_CANCELLED, "cancelled after",
              folder_read(&opened, NN_F32, values, NULL, NULL, &cancel, device));
  free(values);
  nn_device_destroy(device);
}

static atomic_int copies;

static nn_status_t copy_fails(backend_device_t *device, void *data, const void *host,
                              size_t bytes) {
  (void)device;
  if (atomic_fetch_add(&copies, 1) == 7)
    return status_fail(NN_ERR_DEVICE, "copy_in: the device is lost");
  memcpy(data, host, bytes);
  return NN_OK;
}

static void a_failure_of_any_thread_is_the_calls(void **state) {
  (void)state;
  save(NN_FAMILY_MIXTRAL, 0);
  float *values = fixture_memory((size_t)opened.table.elements * sizeof *values);
  nn_device_t *device = open_device(4, true);
  const backend_t *whole = device->backend;
  backend_t failing = *whole;
  failing.copy_in = copy_fails;
  device->backend = &failing;
  CHECK_FAILS(NN_ERR_DEVICE, "copy_in: the device is lost",
              folder_read(&opened, NN_F32, values, NULL, NULL, NULL, device));
  assert_true(copies < 20); /* of some forty: the others stop */
  device->backend = whole;
  free(values);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(any_number_of_threads_reads_the_same, setup, teardown),
      cmocka_unit_test_setup_teardown(shared_reading_is_cancelled, setup, teardown),
      cmocka_unit_test_setup_teardown(a_failure_of_any_thread_is_the_calls, setup, teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
