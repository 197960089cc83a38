/* Whatever goes wrong while a checkpoint of llm.c is saved leaves the earlier file, and while one
 * is loaded makes no model; memory that the host cannot touch is reached by copies. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/device.h"
#include "base/mem.h"
#include "llmc_files.h"

enum { MOST_ALLOCATIONS = 200 };

/* An earlier file and a model to save over it. */
typedef struct change {
  nn_model_t *old, *new;
  checkpoint_t old_file, new_file;
} change_t;

static change_t change_open(void) {
  change_t change = {.old = llmc_small_model(NN_F32, 1),
                     .new = llmc_model(llmc_config(150, 3, 8, 2), NN_BF16, 5)};
  change.old_file = checkpoint_make(change.old, 256, 0);
  change.new_file = checkpoint_make(change.new, 256, 0);
  CHECK(nn_model_save_llmc(change.old, llmc_path(), NULL));
  return change;
}

static void change_close(change_t *change) {
  nn_model_destroy(change->old);
  nn_model_destroy(change->new);
  free(change->old_file.bytes);
  free(change->new_file.bytes);
}

static void saving_needs_its_memory(void **state) {
  (void)state;
  change_t change = change_open();
  int64_t i = 0;
  for (;; i++) {
    assert_true(i < MOST_ALLOCATIONS);
    mem_fail_after(i);
    nn_status_t status = nn_model_save_llmc(change.new, llmc_path(), NULL);
    mem_fail_after(-1);
    if (status == NN_OK) break;
    CHECK_STATUS(NN_ERR_MEMORY, status);
    llmc_file_is(&change.old_file);
  }
  assert_int_equal(i, 4); /* three names and the padding */
  llmc_file_is(&change.new_file);
  change_close(&change);
}

static void loading_needs_its_memory(void **state) {
  (void)state;
  change_t change = change_open();
  nn_memory_t before = fixture_device_memory(llmc_device);
  nn_model_t *loaded = NULL;
  int64_t i = 0;
  for (;; i++) {
    assert_true(i < MOST_ALLOCATIONS);
    mem_fail_after(i);
    nn_status_t status = nn_model_load_llmc(llmc_device, llmc_path(), NN_BF16, NULL, &loaded);
    mem_fail_after(-1);
    if (status == NN_OK) break;
    CHECK_STATUS(NN_ERR_MEMORY, status);
    assert_null(loaded);
    assert_int_equal(fixture_device_memory(llmc_device).current_bytes, before.current_bytes);
  }
  assert_true(i >= 4); /* handle, table, buffer, pointers */
  llmc_same_model(loaded, change.old, NN_F32);
  nn_model_destroy(loaded);
  change_close(&change);
}

static void errors_leave_one_file(void **state) {
  (void)state;
  enum { LOCK = 1 }; /* the operation that may fail: some file systems have no locks */
  change_t change = change_open();
  files_tap_t tap;
  files_tap_begin(&tap, FILES_COUNT, 0);
  CHECK(nn_model_save_llmc(change.new, llmc_path(), NULL));
  files_tap_end();
  int64_t operations = tap.operations;
  assert_true(operations > 40);
  for (int64_t at = 0; at < operations; at++) {
    CHECK(nn_model_save_llmc(change.old, llmc_path(), NULL));
    files_tap_begin(&tap, FILES_FAIL, at);
    CHECK_STATUS(at == LOCK ? NN_OK : NN_ERR_IO, nn_model_save_llmc(change.new, llmc_path(), NULL));
    files_tap_end();
    /* the last two sync the folder, with the new file in place */
    int in_place = at == LOCK || at >= operations - 2;
    llmc_file_is(in_place ? &change.new_file : &change.old_file);
  }
  CHECK(nn_model_save_llmc(change.old, llmc_path(), NULL));
  for (int64_t room = 0; room < (int64_t)change.new_file.count; room += 1 + room) {
    files_tap_begin(&tap, FILES_FULL, room);
    CHECK_FAILS(NN_ERR_IO, "No space left", nn_model_save_llmc(change.new, llmc_path(), NULL));
    files_tap_end();
    llmc_file_is(&change.old_file);
  }
  change_close(&change);
}

static nn_file_options_t watched(files_watch_t *watch, int64_t stop_at) {
  nn_file_options_t options = STRUCT(nn_file_options_t);
  *watch = (files_watch_t){.stop_at = stop_at};
  options.progress = files_watch_progress;
  options.progress_user = watch;
  return options;
}

static void a_cancelled_save_leaves_the_earlier_file(void **state) {
  (void)state;
  change_t change = change_open();
  files_watch_t watch;
  nn_file_options_t options = watched(&watch, 0);
  nn_device_cancel(llmc_device, 1);
  CHECK_STATUS(NN_ERR_CANCELLED, nn_model_save_llmc(change.new, llmc_path(), NULL));
  nn_device_cancel(llmc_device, 0);
  llmc_file_is(&change.old_file);
  CHECK(nn_model_save_llmc(change.new, llmc_path(), &options));
  assert_int_equal(watch.done, watch.total);
  assert_int_equal(watch.total, change.new_file.count - LLMC_HEADER);
  int64_t calls = watch.calls;
  CHECK(nn_model_save_llmc(change.old, llmc_path(), NULL));
  for (int64_t stop = 1; stop <= calls; stop++) {
    options = watched(&watch, stop);
    CHECK_FAILS(NN_ERR_CANCELLED, "callback cancelled",
                nn_model_save_llmc(change.new, llmc_path(), &options));
    assert_int_equal(watch.calls, stop);
    llmc_file_is(&change.old_file);
  }
  atomic_int flag = 1; /* raised while the first tensor is written */
  CHECK_STATUS(NN_ERR_CANCELLED,
               llmc_save(llmc_path(), &change.new->config, &change.new->params, NN_BF16,
                         change.new->buffer->data, NULL, NULL, &flag, NULL));
  llmc_file_is(&change.old_file);
  change_close(&change);
}

static void a_cancelled_load_makes_no_model(void **state) {
  (void)state;
  change_t change = change_open();
  nn_memory_t before = fixture_device_memory(llmc_device);
  nn_model_t *loaded = NULL;
  files_watch_t watch;
  nn_file_options_t options = watched(&watch, 0);
  CHECK(nn_model_load_llmc(llmc_device, llmc_path(), NN_BF16, &options, &loaded));
  assert_int_equal(watch.done, change.old_file.count - LLMC_HEADER);
  nn_model_destroy(loaded);
  loaded = NULL;
  for (int64_t calls = watch.calls, stop = 1; stop <= calls; stop++) {
    options = watched(&watch, stop);
    CHECK_STATUS(NN_ERR_CANCELLED,
                 nn_model_load_llmc(llmc_device, llmc_path(), NN_BF16, &options, &loaded));
    assert_null(loaded);
  }
  nn_device_cancel(llmc_device, 1);
  CHECK_STATUS(NN_ERR_CANCELLED, nn_model_load_llmc(llmc_device,
               llmc_path(), NN_BF16, NULL, &loaded));
  nn_device_cancel(llmc_device, 0);
  assert_null(loaded);
  assert_int_equal(fixture_device_memory(llmc_device).current_bytes, before.current_bytes);
  change_close(&change);
}

/* ---- memory that only copies reach ----------------------------------------------------------- */

/* Stands for a device whose memory the host cannot touch: addresses of pages without access, and
 * what they hold. */
static struct {
  unsigned char *address, *content;
  size_t bytes;
  int fails;
} away;

static size_t away_offset(const void *data, size_t bytes) {
  size_t offset = (size_t)((const unsigned char *)data - away.address);
  assert_true(offset <= away.bytes && bytes <= away.bytes - offset);
  return offset;
}

static nn_status_t away_in(backend_device_t *place, void *data, const void *host, size_t bytes) {
  (void)place;
  memcpy(away.content + away_offset(data, bytes), host, bytes);
  return away.fails ? NN_ERR_DEVICE : NN_OK;
}

static nn_status_t away_out(backend_device_t *place, void *host, const void *data, size_t bytes) {
  (void)place;
  memcpy(host, away.content + away_offset(data, bytes), bytes);
  return away.fails ? NN_ERR_DEVICE : NN_OK;
}

static void device_memory_is_reached_by_copies(void **state) {
  (void)state;
  const backend_t backend = {.copy_in = away_in, .copy_out = away_out};
  nn_device_t gpu = {.backend = &backend};
  nn_model_t *model = llmc_small_model(NN_F32, 4);
  const param_table_t *table = &model->params;
  checkpoint_t want = checkpoint_make(model, 256, 0);
  away.bytes = (size_t)table->elements * sizeof(float);
  away.content = fixture_memory(away.bytes);
  away.address =
      mmap(NULL, away.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  assert_true(away.address != MAP_FAILED);

  files_write(llmc_folder, "model.bin", want.bytes, want.count);
  llmc_t file;
  CHECK(llmc_open(llmc_path(), &file));
  CHECK(llmc_read(&file, table, NN_F32, away.address, NULL, NULL, NULL, &gpu));
  assert_memory_equal(away.content, model->buffer->data, away.bytes);
  assert_int_equal(unlink(llmc_path()), 0);
  CHECK(llmc_save(llmc_path(), &model->config, table, NN_F32, away.address, NULL, NULL, NULL,
                  &gpu));
  llmc_file_is(&want);

  away.fails = 1;
  CHECK_STATUS(NN_ERR_DEVICE,
               llmc_read(&file, table, NN_F32, away.address, NULL, NULL, NULL, &gpu));
  CHECK_STATUS(NN_ERR_DEVICE,
               llmc_save(llmc_path(), &model->config, table, NN_F32, away.address, NULL, NULL, NULL,
                         &gpu));
  llmc_file_is(&want);
  llmc_close(&file);
  away.fails = 0;
  munmap(away.address, away.bytes);
  free(away.content);
  free(want.bytes);
  nn_model_destroy(model);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, llmc_setup, llmc_teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(saving_needs_its_memory),
      TEST(loading_needs_its_memory),
      TEST(errors_leave_one_file),
      TEST(a_cancelled_save_leaves_the_earlier_file),
      TEST(a_cancelled_load_makes_no_model),
      TEST(device_memory_is_reached_by_copies),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
