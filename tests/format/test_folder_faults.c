/* Saving a folder when something goes wrong: an error in any file operation, a full disk, a kill at
 * any point, too little memory, a second save, a reader at the same time. After each the folder
 * holds exactly the earlier model or exactly the new one. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "model_files.h"

/* Every way of going from one form of folder to another: the same or another configuration, one
 * file, few shards or many. */
typedef struct change {
  const char *name;
  int from, to; /* models: 0 and 1 share a configuration, 2 has another, 3 is of another family */
  int64_t from_shard, to_shard;
} change_t;

static const change_t changes[] = {
    {"one file over one file", 0, 1, 0, 0},
    {"another configuration", 0, 2, 0, 0},
    {"another family", 0, 3, 0, 0},
    {"one file to shards", 0, 1, 0, 6000},
    {"shards to one file", 0, 1, 6000, 0},
    {"as many shards", 0, 1, 6000, 6000},
    {"more shards of another configuration", 0, 2, 6000, 4000},
    {"fewer shards of another family", 3, 0, 4000, 9000},
};
enum { CHANGES = sizeof changes / sizeof *changes, MODELS = 4 };

static stamped_t models[MODELS];
static char *folder;

static int setup(void **state) {
  (void)state;
  nn_model_config_t other = files_mixtral();
  other.vocab_size = 51, other.experts = 2;
  models[0] = stamped_make(files_mixtral(), 0);
  models[1] = stamped_make(files_mixtral(), 1);
  models[2] = stamped_make(other, 2);
  models[3] = stamped_make(files_gpt2(), 3);
  /* What counts is the order of operations. In memory, where there is such a place, a sync costs
   * nothing; a disk takes minutes for the tens of thousands of these tests. */
  if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 1);
  folder = fixture_folder();
  return 0;
}

static int teardown(void **state) {
  (void)state;
  for (int i = 0; i < MODELS; i++) stamped_free(&models[i]);
  fixture_folder_remove(folder);
  return 0;
}

static const stamped_t *before(const change_t *change) { return &models[change->from]; }
static const stamped_t *after(const change_t *change) { return &models[change->to]; }

static void save_before(const change_t *change) {
  CHECK(stamped_save(before(change), folder, change->from_shard));
}

static nn_status_t save_after(const change_t *change) {
  return stamped_save(after(change), folder, change->to_shard);
}

/* The message of a save that failed; looking at the folder may leave others. */
static int said_in_place(void) { return strstr(nn_last_error(), "the new model is saved") != NULL; }

/* 1: the new model, 0: the earlier; anything else fails. */
static int which_is_there(const change_t *change) {
  int old = stamped_is(before(change), folder), new = stamped_is(after(change), folder);
  if (old + new != 1) fail_msg("%s: the folder holds neither model", change->name);
  return new;
}

/* What a folder of a finished save holds, and no more. */
static void check_tidy(const change_t *change) {
  folder_t opened = {0};
  CHECK(folder_open(folder, &opened));
  int64_t files = opened.file_count + (opened.file_count > 1) + 2;
  folder_close(&opened);
  if (files_count(folder) != files) fail_msg("%s: the folder is not tidy", change->name);
}

static int64_t count_operations(const change_t *change) {
  files_tap_t tap;
  save_before(change);
  files_tap_begin(&tap, FILES_COUNT, 0);
  CHECK(save_after(change));
  files_tap_end();
  assert_true(which_is_there(change));
  check_tidy(change);
  return tap.operations;
}

/* The process ends at operation `at` of a save. */
static void save_killed(const change_t *change, int64_t at) {
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    files_tap_t tap;
    files_tap_begin(&tap, FILES_EXIT, at);
    save_after(change);
    _exit(0);
  }
  int result;
  assert_int_equal(waitpid(child, &result, 0), child);
  assert_true(WIFEXITED(result));
  assert_int_equal(WEXITSTATUS(result), FILES_EXIT_CODE);
}

static void a_kill_at_any_point_leaves_one_model(void **state) {
  (void)state;
  for (int i = 0; i < CHANGES; i++) {
    const change_t *change = &changes[i];
    int64_t operations = count_operations(change);
    int seen = 0;
    for (int64_t at = 0; at < operations; at++) {
      save_before(change); /* over whatever the last kill left */
      assert_false(which_is_there(change));
      check_tidy(change);
      save_killed(change, at);
      int new = which_is_there(change);
      if (new < seen)
        fail_msg("%s: killed at %lld, the earlier model is back", change->name, (long long)at);
      seen = new;
    }
    assert_true(seen);
  }
}

/* The kill of the save that cleans up after a kill. */
static void a_second_kill_leaves_one_model(void **state) {
  (void)state;
  const change_t *change = &changes[CHANGES - 1];
  const change_t back = {"back", change->to, change->from, change->to_shard, change->from_shard};
  int64_t operations = count_operations(change);
  for (int64_t first = 0; first < operations; first += 3) {
    for (int64_t second = 0; second < 24; second++) {
      save_before(change);
      save_killed(change, first);
      int new = which_is_there(change);
      save_killed(&back, second);
      /* the second save has not come to its own step by then: it only finishes the first */
      assert_int_equal(which_is_there(change), new);
    }
  }
}

static void an_error_in_any_operation_leaves_one_model(void **state) {
  (void)state;
  for (int i = 0; i < CHANGES; i++) {
    const change_t *change = &changes[i];
    int64_t operations = count_operations(change);
    for (int64_t at = 0; at < operations; at++) {
      files_tap_t tap;
      save_before(change);
      files_tap_begin(&tap, FILES_FAIL, at);
      nn_status_t status = save_after(change);
      files_tap_end();
      if (status != NN_OK) CHECK_STATUS(NN_ERR_IO, status);
      int in_place = status == NN_OK || said_in_place(), new = which_is_there(change);
      assert_int_equal(new, in_place);
      if (!new) check_tidy(change);
    }
  }
}

/* A first save that fails leaves nothing behind, at whichever operation, and a folder that was
 * there before stays. */
static void a_failed_first_save_leaves_no_folder(void **state) {
  (void)state;
  files_tap_t tap;
  char path[600];
  snprintf(path, sizeof path, "%s", files_path(folder, "new"));
  files_tap_begin(&tap, FILES_COUNT, 0);
  CHECK(stamped_save(&models[0], path, 6000));
  files_tap_end();
  fixture_folder_remove(strdup(path));
  int64_t operations = tap.operations;
  int failures = 0;
  for (int64_t at = 0; at < operations; at++) {
    files_tap_begin(&tap, FILES_FAIL, at);
    nn_status_t status = stamped_save(&models[0], path, 6000);
    files_tap_end();
    int stays = status == NN_OK || said_in_place();
    failures += !stays;
    assert_int_equal(files_exists(folder, "new"), stays);
    if (stays) fixture_folder_remove(strdup(path));
  }
  assert_true(failures > 20);
  assert_int_equal(mkdir(path, 0700), 0);
  files_tap_begin(&tap, FILES_FULL, 100);
  CHECK_STATUS(NN_ERR_IO, stamped_save(&models[0], path, 0));
  files_tap_end();
  assert_true(files_exists(folder, "new"));
  assert_int_equal(files_count(path), 0);
}

/* Every operation that would change something fails from the first on, those that clean up too. */
static int read_only(void *user, const char *operation, const char *path, size_t *bytes) {
  static const char *const changing[] = {"create", "truncate", "write",  "rename",
                                         "mkdir",  "remove",   "rmdir"};
  int64_t *allowed = user;
  (void)path, (void)bytes;
  for (size_t i = 0; i < sizeof changing / sizeof *changing; i++)
    if (strcmp(operation, changing[i]) == 0 && --*allowed < 0) return EROFS;
  return 0;
}

static void the_first_failure_is_the_one_reported(void **state) {
  (void)state;
  const change_t *change = &changes[0];
  static const char *const words[] = {".moenn-saving: the folder cannot be made",
                                      "model.safetensors.tmp: cannot be created"};
  for (int64_t allowed = 0; allowed < 2; allowed++) {
    save_before(change);
    int64_t left = allowed;
    file_tap(read_only, &left);
    CHECK_FAILS(NN_ERR_IO, words[allowed], save_after(change));
    file_tap(NULL, NULL);
    files_check_message("Read-only file system", __FILE__, __LINE__);
    assert_false(which_is_there(change));
  }
}

static void a_full_disk_leaves_the_earlier_model(void **state) {
  (void)state;
  for (int i = 0; i < CHANGES; i++) {
    const change_t *change = &changes[i];
    int64_t bytes = after(change)->table.elements * 4;
    save_before(change);
    for (int64_t room = 0; room < bytes; room += 1 + bytes / 40) {
      files_tap_t tap;
      files_tap_begin(&tap, FILES_FULL, room);
      CHECK_FAILS(NN_ERR_IO, "No space left", save_after(change));
      files_tap_end();
      assert_false(which_is_there(change));
      check_tidy(change);
    }
  }
}

static void short_writes_are_continued(void **state) {
  (void)state;
  files_tap_t tap;
  files_tap_begin(&tap, FILES_SHORT_WRITE, 100);
  CHECK(save_after(&changes[3]));
  files_tap_end();
  assert_true(stamped_is(after(&changes[3]), folder));
}

static void saving_needs_its_memory(void **state) {
  (void)state;
  const change_t *change = &changes[6];
  save_before(change);
  int64_t allocation = 0, failures = 0;
  for (nn_status_t status = NN_ERR_MEMORY; status != NN_OK; allocation++) {
    mem_fail_after(allocation);
    status = save_after(change);
    mem_fail_after(-1);
    if (status == NN_OK) break;
    failures++;
    CHECK_STATUS(NN_ERR_MEMORY, status);
    int in_place = said_in_place(), new = which_is_there(change);
    assert_int_equal(new, in_place);
    if (new) save_before(change);
  }
  assert_true(failures > 20);
  assert_true(which_is_there(change));
}

static void a_second_save_waits_for_its_turn(void **state) {
  (void)state;
  int lock = -1;
  save_before(&changes[0]);
  CHECK(file_lock_folder(folder, &lock));
  CHECK_FAILS(NN_ERR_IO, "another save", save_after(&changes[0]));
  file_unlock_folder(lock);
  assert_false(which_is_there(&changes[0]));
  CHECK(save_after(&changes[0]));
}

/* A process saves one model after the other while this one reads. */
static void readers_see_one_model_at_any_time(void **state) {
  (void)state;
  for (int i = 0; i < CHANGES; i++) {
    const change_t *change = &changes[i];
    save_before(change);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
      nn_status_t status = NN_OK;
      for (int round = 0; round < 20 && status == NN_OK; round++) {
        status = save_after(change);
        if (status == NN_OK) status = stamped_save(before(change), folder, change->from_shard);
      }
      _exit(status == NN_OK ? 0 : 1);
    }
    int result, old = 0, new = 0;
    while (waitpid(child, &result, WNOHANG) == 0) {
      folder_t opened = {0};
      nn_status_t status = folder_open(folder, &opened);
      /* a reader slower than the saves gives up with a message of its own, and reads no mixture */
      if (status != NN_OK) {
        files_check_message("were replaced each of", __FILE__, __LINE__);
        continue;
      }
      const stamped_t *model =
          memcmp(&opened.config, &before(change)->config, sizeof opened.config) == 0
              ? before(change)
              : after(change);
      assert_memory_equal(&opened.config, &model->config, sizeof opened.config);
      size_t bytes = (size_t)opened.table.elements * sizeof(float);
      float *values = fixture_memory(bytes);
      CHECK(folder_read(&opened, NN_F32, values, NULL, NULL, NULL, NULL));
      int is_old = opened.table.elements == before(change)->table.elements &&
                   memcmp(values, before(change)->values, bytes) == 0;
      int is_new = opened.table.elements == after(change)->table.elements &&
                   memcmp(values, after(change)->values, bytes) == 0;
      if (is_old + is_new != 1) fail_msg("%s: a mixture was read", change->name);
      old += is_old;
      new += is_new;
      free(values);
      folder_close(&opened);
    }
    assert_true(WIFEXITED(result) && WEXITSTATUS(result) == 0);
    if (old + new < 2)
      print_message("%s: only %d reads came in between\n", change->name, old + new);
  }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_kill_at_any_point_leaves_one_model),
      TEST(a_second_kill_leaves_one_model),
      TEST(an_error_in_any_operation_leaves_one_model),
      TEST(a_failed_first_save_leaves_no_folder),
      TEST(the_first_failure_is_the_one_reported),
      TEST(a_full_disk_leaves_the_earlier_model),
      TEST(short_writes_are_continued),
      TEST(saving_needs_its_memory),
      TEST(a_second_save_waits_for_its_turn),
      TEST(readers_see_one_model_at_any_time),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
