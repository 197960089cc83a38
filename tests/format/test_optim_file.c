/* Optimizer state files: both moments and the step come back bit for bit, a file of another model
 * or with anything missing changes nothing. */
#define _POSIX_C_SOURCE 200809L
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "format/optim_file.h"
#include "model_files.h"

typedef struct state {
  stamped_t model;
  int32_t dtype;
  float *m, *v, *masters; /* [table.elements]; masters are bits of any dtype's, or NULL */
} state_t;

static char *folder;
static state_t mixtral, gpt2;

static state_t state_make(nn_model_config_t config) {
  state_t made = {.model = stamped_make(config, 1)};
  int64_t count = made.model.table.elements;
  made.m = fixture_memory((size_t)count * sizeof(float));
  made.v = fixture_memory((size_t)count * sizeof(float));
  for (int64_t i = 0; i < count; i++) {
    made.m[i] = (float)(i - 100);
    made.v[i] = 1 / (float)(i + 1);
  }
  return made;
}

/* As a model of that dtype has it; until state_narrow(NN_F32) takes it back. */
static void state_narrow(state_t *made, int32_t dtype) {
  made->dtype = dtype;
  free(made->masters);
  made->masters = NULL;
  if (dtype == NN_F32) return;
  int64_t count = made->model.table.elements;
  made->masters = fixture_memory((size_t)count * sizeof(float));
  for (int64_t i = 0; i < count; i++) made->masters[i] = (float)(3 * i) - 0x1p20f;
}

static void state_free(state_t *made) {
  stamped_free(&made->model);
  free(made->m);
  free(made->v);
  free(made->masters);
}

static int setup(void **unused) {
  (void)unused;
  folder = fixture_folder();
  mixtral = state_make(files_mixtral());
  gpt2 = state_make(files_gpt2());
  return 0;
}

static int teardown(void **unused) {
  (void)unused;
  state_free(&mixtral);
  state_free(&gpt2);
  fixture_folder_remove(folder);
  return 0;
}

static optim_state_t state_of(const state_t *from, int64_t steps) {
  return (optim_state_t){.dtype = from->dtype, .m = from->m, .v = from->v, .masters = from->masters,
                         .steps = steps, .loss_scale = 512, .loss_scale_steps = steps / 2};
}

static nn_status_t save(const state_t *from, int64_t steps) {
  optim_state_t state = state_of(from, steps);
  return optim_file_save(files_path(folder, "optim"), &from->model.table, &state, NULL, NULL);
}

/* Zeros to load into. */
static optim_state_t state_empty(const state_t *like) {
  size_t count = (size_t)like->model.table.elements;
  return (optim_state_t){.dtype = like->dtype,
                         .m = fixture_memory(count * sizeof(float)),
                         .v = fixture_memory(count * sizeof(float)),
                         .masters = like->masters ? fixture_memory(count * sizeof(float)) : NULL,
                         .steps = -1, .loss_scale = -1, .loss_scale_steps = -1};
}

static void state_drop(optim_state_t *state) {
  free(state->m);
  free(state->v);
  free(state->masters);
}

static nn_status_t load(const state_t *like, optim_state_t *state) {
  return optim_file_load(files_path(folder, "optim"), &like->model.table, state, NULL, NULL);
}

/* Loads into fresh memory and expects exactly this state. */
static void check_loads(const state_t *expected, int64_t expected_steps) {
  size_t count = (size_t)expected->model.table.elements;
  optim_state_t got = state_empty(expected), want = state_of(expected, expected_steps);
  CHECK(load(expected, &got));
  assert_memory_equal(got.m, want.m, count * sizeof(float));
  assert_memory_equal(got.v, want.v, count * sizeof(float));
  if (want.masters)
    assert_memory_equal(got.masters, want.masters, count * (want.dtype == NN_F16 ? 4 : 2));
  assert_int_equal(got.steps, want.steps);
  assert_int_equal(got.loss_scale, want.dtype == NN_F16 ? want.loss_scale : -1);
  assert_int_equal(got.loss_scale_steps, want.dtype == NN_F16 ? want.loss_scale_steps : -1);
  state_drop(&got);
}

/* Loading fails in these words and writes nothing. */
static void check_refused(const state_t *into, nn_status_t status, const char *parts) {
  size_t bytes = (size_t)into->model.table.elements * sizeof(float);
  optim_state_t got = state_empty(into);
  float *zeros = fixture_memory(bytes);
  CHECK_FAILS(status, parts, load(into, &got));
  assert_memory_equal(got.m, zeros, bytes);
  assert_memory_equal(got.v, zeros, bytes);
  if (got.masters) assert_memory_equal(got.masters, zeros, bytes);
  assert_int_equal(got.steps, -1);
  assert_int_equal(got.loss_scale, -1);
  assert_int_equal(got.loss_scale_steps, -1);
  state_drop(&got);
  free(zeros);
}

static void states_come_back(void **unused) {
  (void)unused;
  CHECK(save(&mixtral, 0));
  check_loads(&mixtral, 0);
  CHECK(save(&gpt2, INT64_C(1) << 53));
  check_loads(&gpt2, INT64_C(1) << 53);
  assert_int_equal(files_count(folder), 1);
}

/* A file is of one dtype's parameters. */
static void masters_come_back(void **unused) {
  (void)unused;
  static const int32_t dtypes[] = {NN_F32, NN_BF16, NN_F16};
  static const char *const lacks[] = {"tensors|state", "master_low|missing", "loss_scale"};
  for (int i = 0; i < 3; i++) {
    state_narrow(&mixtral, dtypes[i]);
    CHECK(save(&mixtral, 7));
    check_loads(&mixtral, 7);
    for (int j = 0; j < 3; j++) {
      if (j == i) continue;
      state_narrow(&mixtral, dtypes[j]);
      check_refused(&mixtral, NN_ERR_FORMAT, lacks[j]);
    }
  }
  state_narrow(&mixtral, NN_F32);
}

/* In the shape that the parameter is published in, so that other tools pair them. */
static void moments_have_published_shapes(void **unused) {
  (void)unused;
  CHECK(save(&gpt2, 3));
  safetensors_t file = {0};
  CHECK(safetensors_open(files_path(folder, "optim"), &file));
  assert_string_equal(safetensors_metadata(&file, "step"), "3");
  const param_t *param = param_find(&gpt2.model.table, "transformer.h.0.mlp.c_fc.weight");
  int found = 0;
  for (int64_t i = 0; i < file.count; i++) {
    const safetensors_tensor_t *tensor = &file.tensors[i];
    if (strcmp(tensor->name, "transformer.h.0.mlp.c_fc.weight.exp_avg_sq") != 0) continue;
    found = 1;
    assert_int_equal(tensor->shape[0], 12);
    assert_int_equal(tensor->shape[1], 50);
    float value;
    memcpy(&value, tensor->data + (3 * 50 + 7) * sizeof value, sizeof value);
    assert_true(value == gpt2.v[param->offset + 3 * param->stride[0] + 7 * param->stride[1]]);
  }
  assert_true(found);
  safetensors_close(&file);
}

static void other_files_are_refused(void **unused) {
  (void)unused;
  check_refused(&mixtral, NN_ERR_NOT_FOUND, "/optim");
  files_write_text(folder, "optim", "text");
  check_refused(&mixtral, NN_ERR_FORMAT, "/optim");
  CHECK(save(&gpt2, 3));
  check_refused(&mixtral, NN_ERR_FORMAT, "model.embed_tokens.weight.exp_avg|missing");
  stamped_write(&mixtral.model, folder, "optim", (oddity_t){0});
  check_refused(&mixtral, NN_ERR_FORMAT, "\"step\"");

  /* one layer more, one less, another width */
  nn_model_config_t config = files_mixtral();
  config.layers = 3;
  state_t other = state_make(config);
  CHECK(save(&other, 3));
  check_refused(&mixtral, NN_ERR_FORMAT, "tensors|state");
  CHECK(save(&mixtral, 3));
  check_refused(&other, NN_ERR_FORMAT, "model.layers.2|missing");
  state_free(&other);
  config = files_mixtral();
  config.ffn = 8;
  other = state_make(config);
  check_refused(&other, NN_ERR_FORMAT, "w1.weight.exp_avg|shape");
  state_free(&other);
}

/* The file's header with another text for a number in __metadata__, its length and padding put
 * right. */
static void write_changed(const char *file, size_t bytes, const char *pair, const char *number) {
  uint64_t length;
  memcpy(&length, file, sizeof length);
  char *header = fixture_memory((size_t)length + 64), *found = strstr(file + 8, pair);
  assert_non_null(found);
  size_t key = (size_t)(strchr(pair, ':') - pair) + 2, old = strlen(pair) - key - 1;
  size_t before = (size_t)(found - file) - 8 + key;
  snprintf(header, (size_t)length + 64, "%.*s%s%.*s", (int)before, file + 8, number,
           (int)(length - before - old), file + 8 + before + old);
  size_t changed_bytes, data = bytes - 8 - (size_t)length;
  unsigned char *changed = files_safetensors(header, data, &changed_bytes);
  files_write(folder, "optim", changed, changed_bytes);
  free(changed);
  free(header);
}

static void check_numbers(const char *pair, const char *const *bad, const char *words) {
  size_t bytes;
  CHECK(save(&mixtral, 7));
  char *file = files_read(folder, "optim", &bytes);
  for (; *bad; bad++) {
    write_changed(file, bytes, pair, *bad);
    check_refused(&mixtral, NN_ERR_FORMAT, words);
  }
  free(file);
}

static void numbers_are_checked(void **unused) {
  (void)unused;
  static const char *const steps[] = {"", "-1", "1x", " 1", "9223372036854775808", "1.0",
                                      "9007199254740993", NULL};
  check_numbers("\"step\":\"7\"", steps, "\"step\" is");
  state_narrow(&mixtral, NN_F16);
  check_numbers("\"loss_scale_steps\":\"3\"", steps, "\"loss_scale_steps\" is");
  static const char *const scales[] = {"", "0", "-2", "0.5", "33554432", NULL};
  static const char *const odd[] = {"3", NULL};
  check_numbers("\"loss_scale\":\"512\"", scales, "\"loss_scale\" is|from 1 to 16777216");
  check_numbers("\"loss_scale\":\"512\"", odd, "\"loss_scale\" is 3|power of two");
  state_narrow(&mixtral, NN_F32);
}

static void moments_are_f32(void **unused) {
  (void)unused;
  CHECK(save(&mixtral, 7));
  size_t bytes;
  char *file = files_read(folder, "optim", &bytes);
  char *dtype = strstr(file + 8, "\"F32\"");
  memcpy(dtype, "\"I32\"", 5);
  files_write(folder, "optim", file, bytes);
  check_refused(&mixtral, NN_ERR_FORMAT, "exp_avg|F32");
  free(file);
}

/* Values that no training leaves, in the first, the last or some other element. */
static void moments_have_values_that_can_be(void **unused) {
  (void)unused;
  static const struct {
    float value;
    int in_first, in_second; /* refused there */
  } cases[] = {{NAN, 1, 1}, {-NAN, 1, 1},    {INFINITY, 1, 1},  {-INFINITY, 1, 1}, {-1, 0, 1},
               {-0x1p-149f, 0, 1}, {-0.0f, 0, 0}, {FLT_MAX, 0, 0}, {0x1p-149f, 0, 0}};
  state_t *state = &gpt2;
  const int64_t count = state->model.table.elements, places[] = {0, count / 3, count - 1};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    for (int place = 0; place < 3; place++)
      for (int second = 0; second < 2; second++) {
        float *value = (second ? state->v : state->m) + places[place], kept = *value;
        *value = cases[i].value;
        CHECK(save(state, 3));
        if (second ? cases[i].in_second : cases[i].in_first)
          check_refused(state, NN_ERR_FORMAT,
                        second ? ".exp_avg_sq|negative, infinite or NaN" : "exp_avg\"|or NaN");
        else
          check_loads(state, 3);
        *value = kept;
      }
}

static void bad_paths_are_refused(void **unused) {
  (void)unused;
  const param_table_t *table = &mixtral.model.table;
  optim_state_t state = state_of(&mixtral, 1);
  char before[1000];
  assert_non_null(getcwd(before, sizeof before));
  assert_int_equal(chdir(folder), 0);
  CHECK_FAILS(NN_ERR_ARGUMENT, "path is empty",
              optim_file_save("", table, &state, NULL, NULL));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path is empty",
              optim_file_load("", table, &state, NULL, NULL));
  CHECK_FAILS(NN_ERR_IO, "is a folder",
              optim_file_save(folder, table, &state, NULL, NULL));
  assert_int_equal(chdir(before), 0);
  assert_int_equal(files_count(folder), 0);
}

static void faults_leave_the_earlier_file(void **unused) {
  (void)unused;
  CHECK(save(&mixtral, 1));
  int64_t bytes = mixtral.model.table.elements * 8, allocation = 0;
  for (int64_t room = 0; room < bytes; room += bytes / 20) {
    files_tap_t tap;
    files_tap_begin(&tap, FILES_FULL, room);
    CHECK_FAILS(NN_ERR_IO, "No space left", save(&mixtral, 2));
    files_tap_end();
    check_loads(&mixtral, 1);
    assert_int_equal(files_count(folder), 1);
  }
  for (nn_status_t status = NN_ERR_MEMORY; status != NN_OK; allocation++) {
    check_loads(&mixtral, 1);
    mem_fail_after(allocation);
    status = save(&mixtral, 2);
    mem_fail_after(-1);
    if (status != NN_OK) CHECK_STATUS(NN_ERR_MEMORY, status);
  }
  assert_true(allocation > 4);
  check_loads(&mixtral, 2);
  for (allocation = 0; allocation < 2; allocation++) {
    mem_fail_after(allocation);
    check_refused(&mixtral, NN_ERR_MEMORY, "memory"); /* its own memory is not counted */
    mem_fail_after(-1);
  }
}

static void cancelling_leaves_the_earlier_file(void **unused) {
  (void)unused;
  atomic_int cancel = 1;
  CHECK(save(&mixtral, 1));
  optim_state_t state = state_of(&mixtral, 2);
  const param_table_t *table = &mixtral.model.table;
  const char *path = files_path(folder, "optim");
  CHECK_STATUS(NN_ERR_CANCELLED, optim_file_save(path, table, &state, &cancel, NULL));
  check_loads(&mixtral, 1);
  CHECK_STATUS(NN_ERR_CANCELLED, optim_file_load(path, table, &state, &cancel, NULL));
  assert_int_equal(state.steps, 2);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(states_come_back),
      TEST(masters_come_back),
      TEST(moments_have_published_shapes),
      TEST(other_files_are_refused),
      TEST(numbers_are_checked),
      TEST(moments_are_f32),
      TEST(moments_have_values_that_can_be),
      TEST(bad_paths_are_refused),
      TEST(faults_leave_the_earlier_file),
      TEST(cancelling_leaves_the_earlier_file),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
