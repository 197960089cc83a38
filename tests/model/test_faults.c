/* Every allocation of the library fails in turn (jansson's: test_json_memory.c): the status is
 * NN_ERR_MEMORY, outputs are not written, what was there stays usable, nothing is lost (the
 * sanitizer build sees leaks), and the same call then succeeds. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "fixture.h"

enum { BATCH = 2, SEQ = 9, TOKENS = BATCH * SEQ, MOST_ALLOCATIONS = 20000 };

/* What the calls under test work on. */
typedef struct subject {
  nn_device_t *device;
  nn_model_config_t config;
  nn_model_t *model; /* prepared */
  nn_optim_t *optim;
  nn_session_t *session;
  int32_t tokens[TOKENS];
  char *folder, path[600]; /* a saved model, a saved optimizer */
  char *target;            /* a folder to save to */
} subject_t;

static void subject_open(subject_t *s, int family) {
  s->device = fixture_device(2, 0);
  s->config = family ? fixture_gpt2() : fixture_moe();
  s->model = fixture_model(s->device, &s->config, 1);
  fixture_prepare(s->model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK(nn_optim_create(s->model, NULL, &s->optim));
  CHECK(nn_session_create(s->model, NULL, &s->session));
  fixture_tokens(s->tokens, TOKENS, s->config.vocab_size, 1);
  s->folder = fixture_folder();
  s->target = fixture_folder();
  snprintf(s->path, sizeof s->path, "%s/optim.safetensors", s->folder);
  CHECK(nn_model_save(s->model, s->folder, NULL));
  CHECK(nn_optim_save(s->optim, s->path));
}

static void subject_close(subject_t *s) {
  nn_session_destroy(s->session);
  nn_optim_destroy(s->optim);
  nn_model_destroy(s->model);
  nn_device_destroy(s->device);
  fixture_folder_remove(s->folder);
  fixture_folder_remove(s->target);
}

/* One call; *made receives what it makes, if anything. */
typedef nn_status_t (*attempt_fn)(subject_t *s, void **made);
typedef void (*undo_fn)(void *made);

/* Fails the call's first allocation, its second, and so on, until five in a row are more than the
 * call makes (one alone might be an allocation that it can do without). */
static void fail_each(subject_t *s, const char *what, attempt_fn attempt, undo_fn undo) {
  nn_memory_t before = fixture_device_memory(s->device);
  int64_t i = 0;
  for (int successes = 0; successes < 5; i++) {
    void *made = NULL;
    assert_true(i < MOST_ALLOCATIONS);
    mem_fail_after(i);
    nn_status_t status = attempt(s, &made);
    mem_fail_after(-1);
    successes = status == NN_OK ? successes + 1 : 0;
    if (status == NN_OK && undo) undo(made);
    if (status != NN_OK && status != NN_ERR_MEMORY)
      fail_msg("%s, allocation %d: %s: %s", what, (int)i, nn_status_name(status), nn_last_error());
    if (status != NN_OK && made)
      fail_msg("%s, allocation %d: the output was written", what, (int)i);
    if (fixture_device_memory(s->device).current_bytes != before.current_bytes)
      fail_msg("%s, allocation %d: device memory was not given back", what, (int)i);
  }
  print_message("%s: %d allocations\n", what, (int)i - 5);
}

/* ---- the calls ---- */

static nn_status_t make_device(subject_t *s, void **made) {
  (void)s;
  nn_device_options_t options = STRUCT(nn_device_options_t);
  options.threads = 3;
  nn_device_t *device = NULL;
  nn_status_t status = nn_device_create("cpu", &options, &device);
  *made = device;
  return status;
}
static void undo_device(void *made) { nn_device_destroy(made); }

static nn_status_t make_tensor(subject_t *s, void **made) {
  nn_tensor_t *tensor = NULL;
  nn_status_t status = nn_tensor_create(s->device, NN_F32, 2, (const int64_t[]){3, 4}, &tensor);
  *made = tensor;
  return status;
}
static nn_status_t make_wrap(subject_t *s, void **made) {
  static float data[12];
  nn_tensor_t *tensor = NULL;
  nn_status_t status =
      nn_tensor_wrap(s->device, data, NN_F32, 2, (const int64_t[]){3, 4}, NULL, &tensor);
  *made = tensor;
  return status;
}
static nn_status_t make_parameter(subject_t *s, void **made) {
  nn_tensor_t *tensor = NULL;
  nn_status_t status =
      nn_model_parameter(s->model, nn_model_parameter_name(s->model, 0), &tensor);
  *made = tensor;
  return status;
}
static void undo_tensor(void *made) { nn_tensor_destroy(made); }

static nn_status_t make_model(subject_t *s, void **made) {
  nn_model_t *model = NULL;
  nn_status_t status = nn_model_create(s->device, &s->config, NN_F32, 1, &model);
  *made = model;
  return status;
}
static nn_status_t make_bf16_model(subject_t *s, void **made) {
  nn_model_t *model = NULL;
  nn_status_t status = nn_model_create(s->device, &s->config, NN_BF16, 1, &model);
  *made = model;
  return status;
}
static nn_status_t load_model(subject_t *s, void **made) {
  nn_model_t *model = NULL;
  nn_status_t status = nn_model_load(s->device, s->folder, -1, NULL, &model);
  *made = model;
  return status;
}
static void undo_model(void *made) { nn_model_destroy(made); }

static nn_status_t make_optim(subject_t *s, void **made) {
  nn_optim_t *optim = NULL;
  nn_status_t status = nn_optim_create(s->model, NULL, &optim);
  *made = optim;
  return status;
}
static void undo_optim(void *made) { nn_optim_destroy(made); }

/* All that training takes, of a model of bf16. */
static nn_status_t make_training(subject_t *s, void **made) {
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.batch = BATCH, options.seq_len = SEQ;
  nn_model_t *model = NULL;
  nn_optim_t *optim = NULL;
  nn_status_t status = nn_model_create(s->device, &s->config, NN_BF16, 1, &model);
  if (status == NN_OK) status = nn_model_prepare(model, &options);
  if (status == NN_OK) status = nn_optim_create(model, NULL, &optim);
  nn_model_destroy(model);
  *made = optim;
  return status;
}

static nn_status_t make_session(subject_t *s, void **made) {
  nn_session_t *session = NULL;
  nn_status_t status = nn_session_create(s->model, NULL, &session);
  *made = session;
  return status;
}
static void undo_session(void *made) { nn_session_destroy(made); }

/* The rest make nothing. */

static nn_status_t train_step(subject_t *s, void **made) {
  (void)made;
  nn_loss_t loss = STRUCT(nn_loss_t);
  nn_status_t status = nn_model_zero_grad(s->model);
  if (status == NN_OK)
    status = nn_model_backward(s->model, s->tokens, s->tokens, BATCH, SEQ, 1, &loss);
  return status == NN_OK ? nn_optim_step(s->optim, 1e-3f, NULL) : status;
}
static nn_status_t serve(subject_t *s, void **made) {
  (void)made;
  int32_t tokens[4];
  int64_t count;
  nn_status_t status = nn_session_truncate(s->session, 0, 0);
  return status == NN_OK
             ? nn_session_generate(s->session, 0, s->tokens, 3, NULL, tokens, 4, &count, NULL)
             : status;
}
static nn_status_t save_model(subject_t *s, void **made) {
  (void)made;
  return nn_model_save(s->model, s->target, NULL);
}
static nn_status_t save_shards(subject_t *s, void **made) {
  (void)made;
  nn_file_options_t options = STRUCT(nn_file_options_t);
  options.shard_bytes = 30000;
  return nn_model_save(s->model, s->target, &options);
}
static nn_status_t save_optim(subject_t *s, void **made) {
  (void)made;
  char path[600];
  snprintf(path, sizeof path, "%s/optim.safetensors", s->target);
  return nn_optim_save(s->optim, path);
}
static nn_status_t load_optim(subject_t *s, void **made) {
  (void)made;
  return nn_optim_load(s->optim, s->path);
}
static nn_status_t read_stats(subject_t *s, void **made) {
  (void)made;
  nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
  nn_status_t status = nn_model_expert_stats(s->model, 0, NULL, NULL, &stats);
  return status == NN_OK ? nn_session_expert_stats(s->session, 0, NULL, NULL, &stats) : status;
}
static nn_status_t write_config(subject_t *s, void **made) {
  (void)made;
  size_t required;
  char text[4096];
  nn_model_config_t config = STRUCT(nn_model_config_t);
  nn_status_t status = nn_config_to_json(&s->config, text, sizeof text, &required);
  return status == NN_OK ? nn_config_from_json(text, required - 1, &config) : status;
}

static void test_every_allocation(void **state) {
  (void)state;
  static const struct {
    const char *what;
    attempt_fn attempt;
    undo_fn undo;
  } calls[] = {
      {"device", make_device, undo_device},       {"tensor", make_tensor, undo_tensor},
      {"wrap", make_wrap, undo_tensor},           {"parameter", make_parameter, undo_tensor},
      {"model", make_model, undo_model},          {"bf16 model", make_bf16_model, undo_model},
      {"load", load_model, undo_model},           {"optimizer", make_optim, undo_optim},
      {"session", make_session, undo_session},    {"train", train_step, NULL},
      {"serve", serve, NULL},                     {"save", save_model, NULL},
      {"save shards", save_shards, NULL},         {"save optimizer", save_optim, NULL},
      {"load optimizer", load_optim, NULL},       {"stats", read_stats, NULL},
      {"config", write_config, NULL},
  };
  for (int family = 0; family < 2; family++) {
    subject_t s;
    subject_open(&s, family);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
      if (calls[i].attempt != read_stats || s.config.experts)
        fail_each(&s, calls[i].what, calls[i].attempt, calls[i].undo);
    subject_close(&s);
  }
}

/* What the bytes were for that a device could not give. */
static void test_messages_say_what_for(void **state) {
  (void)state;
  static const struct {
    attempt_fn attempt;
    undo_fn undo;
    const char *what;
  } calls[] = {{make_tensor, undo_tensor, "a tensor"},
               {make_model, undo_model, "parameters"},
               {make_training, undo_optim, "training activations"},
               {make_training, undo_optim, "training workspace"},
               {make_training, undo_optim, "gradients"},
               {make_training, undo_optim, "optimizer moments"},
               {make_training, undo_optim, "master weights"},
               {make_session, undo_session, "a key-value cache"},
               {make_session, undo_session, "a session's activations"},
               {make_session, undo_session, "a session's workspace"}};
  subject_t s;
  subject_open(&s, 0);
  for (size_t call = 0; call < sizeof calls / sizeof *calls; call++) {
    char words[96];
    snprintf(words, sizeof words, " bytes for %s could not be had; the device holds ",
             calls[call].what);
    int said = 0;
    nn_status_t status = NN_ERR_MEMORY;
    for (int64_t i = 0; status != NN_OK; i++) {
      void *made = NULL;
      assert_true(i < MOST_ALLOCATIONS);
      mem_fail_after(i);
      status = calls[call].attempt(&s, &made);
      mem_fail_after(-1);
      if (status == NN_OK)
        calls[call].undo(made);
      else
        said += !strncmp(nn_last_error(), "cpu: ", 5) && strstr(nn_last_error(), words);
    }
    if (said != 1) fail_msg("%d messages say \"%s\"", said, words);
  }
  subject_close(&s);
}

/* A preparation that fails leaves the model prepared as it was, or unprepared. */
static void test_prepare(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 1);
  int32_t tokens[TOKENS];
  fixture_tokens(tokens, TOKENS, 67, 1);
  for (int again = 0; again < 2; again++) {
    nn_train_options_t options = STRUCT(nn_train_options_t);
    options.batch = again ? 4 : BATCH;
    options.seq_len = SEQ;
    nn_status_t status = NN_ERR_MEMORY;
    int64_t held = fixture_device_memory(device).current_bytes;
    for (int64_t i = 0; status != NN_OK; i++) {
      assert_true(i < MOST_ALLOCATIONS);
      mem_fail_after(i);
      status = nn_model_prepare(model, &options);
      mem_fail_after(-1);
      if (status == NN_OK) break;
      CHECK_STATUS(NN_ERR_MEMORY, status);
      assert_int_equal(fixture_device_memory(device).current_bytes, held);
      nn_loss_t loss = STRUCT(nn_loss_t);
      CHECK_STATUS(again ? NN_OK : NN_ERR_STATE,
                   nn_model_backward(model, tokens, tokens, BATCH, SEQ, 1, &loss));
    }
  }
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* A save that ran out of memory leaves the model that was there, or, when it was already complete
 * and only tidying up failed, the new one, and says so. Never a mixture. */
static void test_failed_save_leaves_a_whole_model(void **state) {
  (void)state;
  subject_t s;
  subject_open(&s, 0);
  int64_t count;
  float *now = fixture_parameters(s.model, &count);
  nn_status_t status = NN_ERR_MEMORY;
  for (int64_t i = 0; status != NN_OK; i++) {
    assert_true(i < MOST_ALLOCATIONS);
    fixture_fill(s.model, "model.norm.weight", (float)(i + 2));
    fixture_fill(s.model, "lm_head.weight", (float)(i + 2));
    float *next = fixture_parameters(s.model, &count);
    mem_fail_after(i);
    status = nn_model_save(s.model, s.folder, NULL);
    mem_fail_after(-1);
    int is_saved = status == NN_OK || strstr(nn_last_error(), "the new model is saved") != NULL;
    free(is_saved ? now : next);
    now = is_saved ? next : now;
    nn_model_t *loaded;
    CHECK(nn_model_load(s.device, s.folder, -1, NULL, &loaded));
    float *got = fixture_parameters(loaded, &count);
    fixture_same(is_saved ? "the new model" : "the earlier model", got, now, count);
    free(got);
    nn_model_destroy(loaded);
  }
  free(now);
  subject_close(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_allocation),
      cmocka_unit_test(test_messages_say_what_for),
      cmocka_unit_test(test_prepare),
      cmocka_unit_test(test_failed_save_leaves_a_whole_model),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
