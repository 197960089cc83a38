/* The cancel flag: set before a call, or by another thread or a callback in the middle of one. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "fixture.h"

/* The promise is 50 ms from flag to return. A test machine may be busy and the code slowed by a
 * sanitizer: ten times that still tells polling from running to the end, which takes seconds. */
static const double most_seconds = 0.5;

static void pause_for(double duration) {
  struct timespec time = {.tv_nsec = (long)(duration * 1e9)};
  nanosleep(&time, NULL);
}

/* `tiny` on the plain path with batches that take seconds. */
enum { BATCH = 16, SEQ = 512, TOKENS = BATCH * SEQ };

typedef struct job {
  nn_device_t *device;
  nn_model_t *model;
  nn_session_t *session;
  int32_t *tokens, *made;
  int64_t made_count;
  int what;
  atomic_int begun; /* the call is under way; generate: so many tokens were made */
  nn_status_t status;
  double started, returned;
} job_t;

static void job_open(job_t *job) {
  *job = (job_t){.device = fixture_device(2, NN_CPU_REFERENCE)};
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("tiny", &config));
  config.context = 100000;
  job->model = fixture_model(job->device, &config, 1);
  fixture_prepare(job->model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  nn_session_options_t options = STRUCT(nn_session_options_t);
  options.prefill_chunk = TOKENS; /* one chunk, so that it is the operations that must look */
  CHECK(nn_session_create(job->model, &options, &job->session));
  job->tokens = fixture_memory(TOKENS * sizeof(int32_t));
  job->made = fixture_memory(100000 * sizeof(int32_t));
  fixture_tokens(job->tokens, TOKENS, config.vocab_size, 1);
}

static void job_close(job_t *job) {
  nn_session_destroy(job->session);
  nn_model_destroy(job->model);
  nn_device_destroy(job->device);
  free(job->tokens);
  free(job->made);
}

enum { JOB_FORWARD, JOB_EVALUATE, JOB_BACKWARD, JOB_PREFILL, JOB_GENERATE, JOBS };

static int32_t job_made(int32_t token, int64_t index, void *user) {
  (void)token, (void)index;
  atomic_fetch_add(&((job_t *)user)->begun, 1);
  return 0;
}

static void *job_run(void *argument) {
  job_t *job = argument;
  nn_loss_t loss = STRUCT(nn_loss_t);
  nn_generate_options_t options = STRUCT(nn_generate_options_t);
  options.on_token = job_made;
  options.on_token_user = job;
  float *logits = job->what == JOB_FORWARD ? malloc(TOKENS * 1000 * sizeof *logits) : NULL;
  job->started = fixture_seconds();
  if (job->what != JOB_GENERATE) atomic_store(&job->begun, 3);
  if (job->what == JOB_FORWARD)
    job->status = nn_model_forward(job->model, job->tokens, BATCH, SEQ, logits);
  if (job->what == JOB_EVALUATE)
    job->status = nn_model_evaluate(job->model, job->tokens, job->tokens, BATCH, SEQ, &loss);
  if (job->what == JOB_BACKWARD)
    job->status = nn_model_backward(job->model, job->tokens, job->tokens, BATCH, SEQ, 1, &loss);
  if (job->what == JOB_PREFILL)
    job->status = nn_session_prefill(job->session, 0, job->tokens, TOKENS, NULL);
  if (job->what == JOB_GENERATE)
    job->status = nn_session_generate(job->session, 0, job->tokens, 1, &options, job->made, 90000,
                                      &job->made_count, NULL);
  job->returned = fixture_seconds();
  free(logits);
  return NULL;
}

static void test_cancel_from_another_thread(void **state) {
  (void)state;
  job_t job;
  job_open(&job);
  for (job.what = 0; job.what < JOBS; job.what++) {
    pthread_t thread;
    atomic_store(&job.begun, 0);
    assert_int_equal(pthread_create(&thread, NULL, job_run, &job), 0);
    while (atomic_load(&job.begun) < 3) pause_for(0.001);
    pause_for(0.1);
    double asked = fixture_seconds();
    nn_device_cancel(job.device, 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    if (job.status != NN_ERR_CANCELLED)
      fail_msg("job %d ended with %s after %.3f s", job.what, nn_status_name(job.status),
               job.returned - job.started);
    print_message("job %d returned %.1f ms after the flag\n", job.what,
                  1e3 * (job.returned - asked));
    assert_true(job.returned - asked < most_seconds);
    nn_device_cancel(job.device, 0);
    if (job.what == JOB_PREFILL) assert_int_equal(nn_session_length(job.session, 0), 0);
  }
  /* What was made before the flag is there, and in the sequence but for the last token. */
  assert_true(job.made_count >= 3);
  assert_int_equal(job.made_count, atomic_load(&job.begun));
  int64_t length = nn_session_length(job.session, 0);
  assert_in_range(length, job.made_count, job.made_count + 1);
  job_close(&job);
}

static void test_cancel_before(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 1), *loaded = NULL;
  fixture_prepare(model, 2, 9, NN_RECOMPUTE_NONE);
  nn_optim_t *optim;
  CHECK(nn_optim_create(model, NULL, &optim));
  nn_session_t *session;
  CHECK(nn_session_create(model, NULL, &session));
  int32_t tokens[18], made[4];
  fixture_tokens(tokens, 18, 67, 1);
  float *logits = fixture_memory(18 * 67 * sizeof *logits);
  CHECK(nn_session_prefill(session, 0, tokens, 3, logits));
  char *folder = fixture_folder(), path[600];
  snprintf(path, sizeof path, "%s/optim.safetensors", folder);
  nn_loss_t loss = STRUCT(nn_loss_t);
  int64_t count = 42;

  nn_device_cancel(device, 1);
  CHECK_STATUS(NN_ERR_CANCELLED, nn_model_forward(model, tokens, 2, 9, logits));
  CHECK_STATUS(NN_ERR_CANCELLED, nn_model_evaluate(model, tokens, tokens, 2, 9, &loss));
  CHECK_STATUS(NN_ERR_CANCELLED, nn_model_backward(model, tokens, tokens, 2, 9, 1, &loss));
  CHECK_STATUS(NN_ERR_CANCELLED, nn_session_prefill(session, 0, tokens, 3, logits));
  CHECK_STATUS(NN_ERR_CANCELLED, nn_session_decode(session, tokens, logits));
  CHECK_STATUS(NN_ERR_CANCELLED,
               nn_session_generate(session, 0, tokens, 1, NULL, made, 4, &count, NULL));
  assert_int_equal(count, 0);
  CHECK_STATUS(NN_ERR_CANCELLED, nn_model_save(model, folder, NULL));
  CHECK_STATUS(NN_ERR_CANCELLED, nn_model_load(device, folder, -1, NULL, &loaded));
  CHECK_STATUS(NN_ERR_CANCELLED, nn_optim_save(optim, path));
  CHECK_STATUS(NN_ERR_CANCELLED, nn_optim_load(optim, path));
  assert_int_equal(nn_session_length(session, 0), 3);
  /* Handles are made and destroyed all the same. */
  nn_model_t *other = fixture_model(device, &config, 2);
  nn_model_destroy(other);
  nn_device_cancel(device, 0);
  nn_device_cancel(NULL, 1);

  /* A cancelled call leaves nothing behind that changes the next one's bits. */
  CHECK(nn_model_zero_grad(model));
  CHECK(nn_model_backward(model, tokens, tokens, 2, 9, 1, &loss));
  nn_model_t *fresh = fixture_model(device, &config, 1);
  fixture_prepare(fresh, 2, 9, NN_RECOMPUTE_NONE);
  nn_loss_t want = STRUCT(nn_loss_t);
  CHECK(nn_model_backward(fresh, tokens, tokens, 2, 9, 1, &want));
  assert_true(loss.loss == want.loss);
  int64_t elements;
  float *a = fixture_gradients(model, &elements), *b = fixture_gradients(fresh, &elements);
  fixture_same("gradients", a, b, elements);
  free(a), free(b), free(logits);
  nn_model_destroy(fresh);
  nn_session_destroy(session);
  nn_optim_destroy(optim);
  nn_model_destroy(model);
  fixture_folder_remove(folder);
  nn_device_destroy(device);
}

typedef struct stopper {
  nn_device_t *device;
  int64_t at, calls;
  int32_t seen[64];
} stopper_t;

static int32_t stop_at(int32_t token, int64_t index, void *user) {
  stopper_t *stopper = user;
  assert_int_equal(index, stopper->calls);
  stopper->seen[stopper->calls++] = token;
  if (stopper->calls == stopper->at) nn_device_cancel(stopper->device, 1);
  return 0;
}

/* Cancelled in the middle, generate keeps what was made; going on gives what an uninterrupted call
 * gives. */
static void test_cancelled_generate_keeps_tokens(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 1);
  nn_session_t *session;
  CHECK(nn_session_create(model, NULL, &session));
  static const int32_t prompt[4] = {5, 6, 7, 8};
  nn_sample_options_t sampling = STRUCT(nn_sample_options_t);
  sampling.temperature = 1;
  sampling.seed = 9;
  nn_generate_options_t options = STRUCT(nn_generate_options_t);
  options.sampling = &sampling;
  int32_t whole[12], part[12] = {0}, reason = 0;
  int64_t count;
  CHECK(nn_session_generate(session, 0, prompt, 4, &options, whole, 12, &count, &reason));
  assert_int_equal(count, 12);
  assert_int_equal(reason, NN_STOP_LENGTH);

  stopper_t stopper = {.device = device, .at = 5};
  options.on_token = stop_at;
  options.on_token_user = &stopper;
  CHECK(nn_session_truncate(session, 0, 0));
  CHECK_STATUS(NN_ERR_CANCELLED,
               nn_session_generate(session, 0, prompt, 4, &options, part, 12, &count, &reason));
  assert_int_equal(count, 5);
  assert_memory_equal(part, whole, 5 * sizeof *part);
  assert_memory_equal(stopper.seen, whole, 5 * sizeof *part);
  /* all but the last token made are in the sequence */
  assert_int_equal(nn_session_length(session, 0), 4 + 4);
  nn_device_cancel(device, 0);
  options.on_token = NULL;
  CHECK(nn_session_generate(session, 0, part + 4, 1, &options, part + 5, 7, &count, &reason));
  assert_memory_equal(part, whole, sizeof part);
  nn_session_destroy(session);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_cancel_before),
      cmocka_unit_test(test_cancel_from_another_thread),
      cmocka_unit_test(test_cancelled_generate_keeps_tokens),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
