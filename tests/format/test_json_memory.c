/* Memory that jansson asks for and does not get, which it does not always report: reading is
 * NN_ERR_MEMORY and never the file's fault, and what is saved is whole. Reading fails from an
 * allocation on, for jansson 2.14 does not survive that one alone fails while an object grows;
 * writing fails at each alone. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "format/folder_carry.h"
#include "model_files.h"

/* Allocations to go until one fails, and how many fail then. */
static int64_t before, failing;

static void *give(size_t bytes) {
  if (before > 0) before--;
  else if (failing > 0) {
    failing--;
    errno = ENOMEM;
    return NULL;
  }
  return malloc(bytes);
}

static void fail_from(int64_t allocation, int64_t count) {
  before = allocation;
  failing = count;
}
static void fail_none(void) { before = failing = 0; }

static char optim_path[1000];

static int setup(void **state) {
  json_set_alloc_funcs(give, free);
  char *folder = fixture_folder();
  snprintf(optim_path, sizeof optim_path, "%s/optim", folder);
  *state = folder;
  return 0;
}

static int teardown(void **state) {
  fixture_folder_remove(*state);
  return 0;
}

/* ---- reading --------------------------------------------------------------------------------- */

typedef nn_status_t (*read_fn)(void *user);

/* Fails from the first allocation on, from the second, and so on, until all are there. */
static void read_each(const char *what, read_fn read, void *user) {
  enum { MOST = 100000 };
  nn_status_t status = NN_ERR_MEMORY;
  int64_t i = 0;
  for (; status != NN_OK && i < MOST; i++) {
    fail_from(i, INT64_MAX);
    status = read(user);
    fail_none();
    if (status != NN_OK && status != NN_ERR_MEMORY)
      fail_msg("%s, allocation %d: %s: %s", what, (int)i, nn_status_name(status), nn_last_error());
  }
  assert_int_equal(status, NN_OK);
  assert_true(i > 10);
}

static nn_status_t read_config(void *user) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  return nn_config_from_json(user, strlen(user), &config);
}

static nn_status_t read_model(void *user) {
  nn_device_t *device = fixture_device(1, 0);
  nn_model_t *model = NULL;
  nn_status_t status = nn_model_load(device, user, NN_DTYPE_FILE, NULL, &model);
  nn_model_destroy(model);
  nn_device_destroy(device);
  return status;
}

static nn_status_t read_tokenizer(void *user) {
  nn_tokenizer_t *tokenizer = NULL;
  nn_status_t status = nn_tokenizer_load(user, &tokenizer);
  nn_tokenizer_destroy(tokenizer);
  return status;
}

typedef struct trained {
  nn_device_t *device;
  nn_model_t *model;
  nn_optim_t *optim;
} trained_t;

static trained_t trained_make(void) {
  nn_model_config_t config = fixture_moe();
  trained_t made = {.device = fixture_device(1, 0)};
  made.model = fixture_model(made.device, &config, 1);
  fixture_prepare(made.model, 1, 8, NN_RECOMPUTE_NONE);
  CHECK(nn_optim_create(made.model, NULL, &made.optim));
  return made;
}

static void trained_free(trained_t *trained) {
  nn_optim_destroy(trained->optim);
  nn_model_destroy(trained->model);
  nn_device_destroy(trained->device);
}

/* Steps of 7 are in the file; what memory ends for leaves those of 3. */
static nn_status_t read_optim(void *user) {
  nn_optim_t *optim = ((trained_t *)user)->optim;
  CHECK(nn_optim_set_steps(optim, 3));
  nn_status_t status = nn_optim_load(optim, optim_path);
  assert_int_equal(nn_optim_steps(optim), status == NN_OK ? 7 : 3);
  return status;
}

static nn_status_t read_token_ids(void *user) {
  json_t *tokens = NULL;
  nn_status_t status = folder_carry_tokens(user, &tokens);
  if (status == NN_OK) assert_int_equal(json_object_size(tokens), 2);
  json_decref(tokens);
  return status;
}

static void reading_says_that_memory_ended(void **state) {
  const char *folder = *state;
  char text[4096];
  size_t bytes;
  nn_model_config_t config = files_mixtral();
  CHECK(nn_config_to_json(&config, text, sizeof text, &bytes));
  read_each("a configuration", read_config, text);

  stamped_t model = stamped_make(config, 0);
  CHECK(stamped_save(&model, folder, 6000));
  read_each("a folder with shards", read_model, (void *)(uintptr_t)folder);
  stamped_free(&model);

  files_write_text(folder, "config.json", "{\"bos_token_id\": 1, \"eos_token_id\": [2, 3]}");
  read_each("ids of tokens", read_token_ids, (void *)(uintptr_t)folder);

  trained_t trained = trained_make();
  CHECK(nn_optim_set_steps(trained.optim, 7));
  CHECK(nn_optim_save(trained.optim, optim_path));
  read_each("an optimizer's state", read_optim, &trained);
  trained_free(&trained);
}

/* One of each kind of model, with its normalizer, splitter, templates and decoder. */
static void reading_a_tokenizer_says_that_memory_ended(void **state) {
  const char *folder = *state;
  static const char *const models[] = {
      "\"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]",
      "\"Unigram\", \"vocab\": [[\"a\", -1.5], [\"b\", -2], [\"ab\", -3]], \"unk_id\": 0",
      "\"WordPiece\", \"vocab\": {\"a\": 0, \"##b\": 1, \"[UNK]\": 2}, \"unk_token\": \"[UNK]\","
      " \"continuing_subword_prefix\": \"##\", \"max_input_chars_per_word\": 100",
      "\"WordLevel\", \"vocab\": {\"a\": 0, \"b\": 1, \"?\": 2}, \"unk_token\": \"?\"",
  };
  static const char rest[] =
      "\"added_tokens\": [{\"id\": 3, \"content\": \"<a longer one>\", \"special\": true}],"
      "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"},"
      " {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": \"_\"}]},"
      "\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"x+\"},"
      " \"behavior\": \"Isolated\", \"invert\": false},"
      "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\":"
      " [{\"SpecialToken\": {\"id\": \"<a longer one>\", \"type_id\": 0}},"
      " {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}], \"pair\": [], \"special_tokens\":"
      " {\"<a longer one>\": {\"id\": \"<a longer one>\", \"ids\": [3],"
      " \"tokens\": [\"<a longer one>\"]}}},"
      "\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}]}";
  for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
    char text[4096];
    snprintf(text, sizeof text, "{\"model\": {\"type\": %s}, %s}", models[i], rest);
    files_write_text(folder, "tokenizer.json", text);
    read_each(models[i], read_tokenizer, (void *)(uintptr_t)folder);
  }
}

/* ---- writing --------------------------------------------------------------------------------- */

static void what_is_saved_is_whole(void **state) {
  const char *folder = *state;
  stamped_t old = stamped_make(files_mixtral(), 0), new = stamped_make(files_mixtral(), 1);
  for (int64_t shard = 0; shard <= 6000; shard += 6000) {
    nn_status_t status = NN_ERR_MEMORY;
    int64_t i = 0;
    CHECK(stamped_save(&old, folder, shard));
    for (; status != NN_OK; i++) {
      fail_from(i, 1);
      status = stamped_save(&new, folder, shard);
      fail_none();
      if (status != NN_OK && status != NN_ERR_MEMORY)
        fail_msg("allocation %d: %s: %s", (int)i, nn_status_name(status), nn_last_error());
      if (!stamped_is(status == NN_OK ? &new : &old, folder))
        fail_msg("allocation %d: the folder holds another model than %s says", (int)i,
                 nn_status_name(status));
    }
    assert_true(i > 100);
  }
  stamped_free(&old);
  stamped_free(&new);
}

static void what_is_saved_of_an_optimizer_is_whole(void **state) {
  (void)state;
  trained_t trained = trained_make();
  CHECK(nn_optim_set_steps(trained.optim, 3));
  CHECK(nn_optim_save(trained.optim, optim_path));
  nn_status_t status = NN_ERR_MEMORY;
  int64_t i = 0;
  for (; status != NN_OK; i++) {
    CHECK(nn_optim_set_steps(trained.optim, 7));
    fail_from(i, 1);
    status = nn_optim_save(trained.optim, optim_path);
    fail_none();
    if (status != NN_OK) CHECK_STATUS(NN_ERR_MEMORY, status);
    CHECK(nn_optim_load(trained.optim, optim_path));
    assert_int_equal(nn_optim_steps(trained.optim), status == NN_OK ? 7 : 3);
  }
  assert_true(i > 100);
  trained_free(&trained);
}

/* Given whole or not at all: a text without one of its keys would be another configuration. */
static void a_configuration_is_written_whole(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  char whole[4096], text[4096];
  size_t bytes, length;
  CHECK(nn_config_to_json(&config, whole, sizeof whole, &length));
  nn_status_t status = NN_ERR_MEMORY;
  int64_t i = 0;
  for (; status != NN_OK; i++) {
    fail_from(i, 1);
    status = nn_config_to_json(&config, text, sizeof text, &bytes);
    fail_none();
    if (status != NN_OK) CHECK_STATUS(NN_ERR_MEMORY, status);
  }
  assert_true(i > 20);
  assert_int_equal(bytes, length);
  assert_memory_equal(text, whole, length);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(reading_says_that_memory_ended),
      TEST(reading_a_tokenizer_says_that_memory_ended),
      TEST(what_is_saved_is_whole),
      TEST(what_is_saved_of_an_optimizer_is_whole),
      TEST(a_configuration_is_written_whole),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
