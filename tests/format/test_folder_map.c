/* Files that are a model's parameter buffer themselves: mapped where they can be, read where they
 * cannot, never written to; and what a folder holds beside its model, carried over when the model
 * is saved elsewhere. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "files.h"
#include "model/family.h"

static char *folder, *other;
static nn_device_t *device;

static int setup(void **state) {
  (void)state;
  folder = fixture_folder();
  other = fixture_folder();
  device = fixture_device_named("cpu", 2, 0);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  nn_device_destroy(device);
  fixture_folder_remove(folder);
  fixture_folder_remove(other);
  return 0;
}

static nn_model_t *load(const char *path, int32_t dtype) {
  nn_model_t *model;
  CHECK(nn_model_load(device, path, dtype, NULL, &model));
  return model;
}

static void save(const nn_model_config_t *config, int32_t dtype, int64_t shard_bytes) {
  nn_model_t *model;
  nn_file_options_t options = STRUCT(nn_file_options_t);
  options.shard_bytes = shard_bytes;
  CHECK(nn_model_create(device, config, dtype, 3, &model));
  CHECK(nn_model_save(model, folder, &options));
  nn_model_destroy(model);
}

/* Whether a load takes no memory for parameters, which count as held all the same. */
static int load_is_mapped(int32_t dtype) {
  nn_memory_t before = fixture_device_memory(device);
  nn_model_t *model = load(folder, dtype);
  nn_memory_t after = fixture_device_memory(device);
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_model_config(model, &config));
  nn_session_options_t options = STRUCT(nn_session_options_t);
  nn_plan_t plan = STRUCT(nn_plan_t);
  options.max_len = 4;
  CHECK(nn_plan_inference(device, &config, dtype, &options, &plan));
  assert_int_equal(after.current_bytes - before.current_bytes, plan.parameter_bytes);
  nn_model_destroy(model);
  assert_int_equal(fixture_device_memory(device).current_bytes, before.current_bytes);
  return after.allocations == before.allocations;
}

static void files_laid_out_as_the_buffer_are_mapped(void **state) {
  (void)state;
  for (int32_t family = 0; family < FAMILIES; family++) {
    if (!families[family].model_type) continue;
    nn_model_config_t config = files_family(family);
    nn_model_t *model;
    nn_status_t status = nn_model_create(device, &config, NN_F32, 1, &model);
    if (status == NN_ERR_UNSUPPORTED) continue; /* not computed */
    CHECK(status);
    nn_model_destroy(model);
    /* GPT-2's matrices are published turned, Granite's stacked, gpt-oss's both */
    int mapped = family != NN_FAMILY_GPT2 && family != NN_FAMILY_GRANITEMOE &&
                 family != NN_FAMILY_GPT_OSS;
    save(&config, NN_F32, 0);
    assert_int_equal(load_is_mapped(NN_F32), mapped);
    assert_int_equal(load_is_mapped(NN_BF16), 0);
    save(&config, NN_BF16, 0);
    assert_int_equal(load_is_mapped(NN_BF16), mapped);
    assert_int_equal(load_is_mapped(NN_F32), 0);
    save(&config, NN_F32, 2000);
    assert_int_equal(load_is_mapped(NN_F32), 0);
  }
}

static int refuse_own(void *user, const char *operation, const char *path, size_t *bytes) {
  (void)user, (void)path, (void)bytes;
  return strcmp(operation, "own") == 0 ? ENOMEM : 0;
}

static void what_cannot_be_mapped_is_read(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  save(&config, NN_F32, 0);
  nn_model_t *mapped = load(folder, NN_F32);
  file_tap(refuse_own, NULL);
  assert_int_equal(load_is_mapped(NN_F32), 0);
  nn_model_t *copied = load(folder, NN_F32);
  file_tap(NULL, NULL);
  int64_t count, same;
  float *a = fixture_parameters(mapped, &count), *b = fixture_parameters(copied, &same);
  assert_int_equal(count, same);
  fixture_same("parameters", a, b, count);
  free(a), free(b);
  nn_model_destroy(mapped), nn_model_destroy(copied);
}

/* Trains, and saves over the file that the model is mapped from. */
static void training_leaves_the_file_as_it_is(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  save(&config, NN_F32, 0);
  size_t bytes, again_bytes;
  char *data = files_read(folder, "model.safetensors", &bytes);
  nn_model_t *model = load(folder, NN_F32);
  fixture_prepare(model, 1, 4, NN_RECOMPUTE_NONE);
  nn_optim_t *optim;
  CHECK(nn_optim_create(model, NULL, &optim));
  int32_t tokens[4] = {1, 2, 3, 4}, targets[4] = {2, 3, 4, 5};
  CHECK(nn_model_zero_grad(model));
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_backward(model, tokens, targets, 1, 4, 1, &loss));
  CHECK(nn_optim_step(optim, 0.1f, NULL));
  char *again = files_read(folder, "model.safetensors", &again_bytes);
  assert_int_equal(bytes, again_bytes);
  assert_memory_equal(data, again, bytes);
  free(again);

  CHECK(nn_model_save(model, folder, NULL));
  again = files_read(folder, "model.safetensors", &again_bytes);
  assert_memory_not_equal(data, again, bytes);
  nn_model_t *reloaded = load(folder, NN_F32);
  int64_t count;
  float *a = fixture_parameters(model, &count), *b = fixture_parameters(reloaded, &count);
  fixture_same("parameters", a, b, count);
  free(a), free(b), free(data), free(again);
  nn_optim_destroy(optim);
  nn_model_destroy(model), nn_model_destroy(reloaded);
}

static void a_view_of_a_parameter_keeps_the_file_mapped(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  save(&config, NN_F32, 0);
  nn_model_t *model = load(folder, NN_F32);
  nn_tensor_t *tensor;
  CHECK(nn_model_parameter(model, "model.norm.weight", &tensor));
  nn_model_destroy(model);
  float values[10];
  CHECK(nn_tensor_copy_out(tensor, values, sizeof values));
  assert_true(values[0] == 1 && values[9] == 1);
  nn_tensor_destroy(tensor);
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
}

static void memory_that_runs_out_leaves_nothing(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  save(&config, NN_F32, 0);
  nn_status_t status = NN_ERR_MEMORY;
  for (int64_t after = 0; status != NN_OK; after++) {
    nn_model_t *model = NULL;
    mem_fail_after(after);
    status = nn_model_load(device, folder, NN_F32, NULL, &model);
    mem_fail_after(-1);
    if (status == NN_OK)
      nn_model_destroy(model);
    else
      assert_int_equal(status, NN_ERR_MEMORY);
    assert_int_equal(fixture_device_memory(device).current_bytes, 0);
    assert_in_range(after, 0, 200);
  }
}

/* ---- what is beside the model ---------------------------------------------------------------- */

static void check_text(const char *path, const char *name, const char *text) {
  size_t bytes;
  char *found = files_read(path, name, &bytes);
  assert_non_null(found);
  assert_int_equal(bytes, strlen(text));
  assert_memory_equal(found, text, bytes);
  free(found);
}

static void files_beside_the_model_are_carried_over(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  save(&config, NN_F32, 0);
  files_write_text(folder, "tokenizer.json", "{\"model\":7}");
  files_write_text(folder, "chat_template.jinja", "{{ messages }}");
  files_write_text(folder, "generation_config.json", "{\"eos_token_id\":5}");
  files_write_text(folder, "notes.txt", "mine");
  files_write_text(other, "chat_template.jinja", "theirs");
  nn_model_t *model = load(folder, NN_F32);
  CHECK(nn_model_save(model, other, NULL));
  check_text(other, "tokenizer.json", "{\"model\":7}");
  check_text(other, "chat_template.jinja", "theirs");
  check_text(other, "generation_config.json", "{\"eos_token_id\":5}");
  assert_false(files_exists(other, "notes.txt"));
  assert_int_equal(files_count(other), 5); /* with config.json and model.safetensors */

  /* into its own folder: nothing changes */
  CHECK(nn_model_save(model, folder, NULL));
  check_text(folder, "chat_template.jinja", "{{ messages }}");
  assert_int_equal(files_count(folder), 6);
  nn_model_destroy(model);
}

static void ids_of_tokens_are_carried_over(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  save(&config, NN_F32, 0);
  size_t bytes;
  char *text = files_read(folder, "config.json", &bytes);
  char *edited = fixture_memory(bytes + 100), *place = strstr(text, "\"eos_token_id\": null");
  assert_non_null(place);
  snprintf(edited, bytes + 100, "%.*s\"eos_token_id\": [5, 6]%s", (int)(place - text), text,
           place + strlen("\"eos_token_id\": null"));
  files_write_text(folder, "config.json", edited);
  free(text), free(edited);
  nn_model_t *model = load(folder, NN_F32);
  CHECK(nn_model_save(model, other, NULL));
  text = files_read(other, "config.json", &bytes);
  assert_non_null(strstr(text, "\"eos_token_id\": [\n    5,\n    6\n  ]"));
  assert_non_null(strstr(text, "\"bos_token_id\": null"));
  free(text);
  nn_model_destroy(model);
}

static void a_source_that_is_gone_is_no_failure(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  save(&config, NN_F32, 0);
  files_write_text(folder, "tokenizer.json", "{}");
  nn_model_t *model = load(folder, NN_F32);
  fixture_folder_remove(folder);
  folder = fixture_folder();
  CHECK(nn_model_save(model, other, NULL));
  assert_int_equal(files_count(other), 3);
  nn_model_destroy(model);
}

static void a_carry_that_fails_leaves_the_earlier_model(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  save(&config, NN_F32, 0);
  files_write_text(folder, "tokenizer.json", "{\"a\":1}");
  nn_model_t *model = load(folder, NN_F32);
  nn_status_t status = NN_ERR_IO;
  for (int64_t at = 0; status != NN_OK; at++) {
    files_tap_t tap;
    files_tap_begin(&tap, FILES_FAIL, at);
    status = nn_model_save(model, other, NULL);
    files_tap_end();
    assert_in_range(at, 0, 300);
    /* a later step may fail after the new model took its place */
    if (status != NN_OK && files_exists(other, "config.json"))
      nn_model_destroy(load(other, NN_F32));
  }
  check_text(other, "tokenizer.json", "{\"a\":1}");
  nn_model_destroy(model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
      TEST(files_laid_out_as_the_buffer_are_mapped),
      TEST(what_cannot_be_mapped_is_read),
      TEST(training_leaves_the_file_as_it_is),
      TEST(a_view_of_a_parameter_keeps_the_file_mapped),
      TEST(memory_that_runs_out_leaves_nothing),
      TEST(files_beside_the_model_are_carried_over),
      TEST(ids_of_tokens_are_carried_over),
      TEST(a_source_that_is_gone_is_no_failure),
      TEST(a_carry_that_fails_leaves_the_earlier_model),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
