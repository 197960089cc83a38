/* What goes wrong on a GPU: memory that cannot be had, cancelling, recordings that end early, and
 * an access that loses the device. Each is a status; the process lives on. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backend.h"
#include "base/device.h"
#include "fixture.h"

static nn_model_t *small_model(nn_device_t *device) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("small", &config));
  return fixture_model(device, &config, 1);
}

static void expect_bytes_for(const char *what) {
  char words[96];
  snprintf(words, sizeof words, " bytes for %s could not be had; the device holds ", what);
  if (strncmp(nn_last_error(), "cuda:0: ", 8) || !strstr(nn_last_error(), words))
    fail_msg("\"%s\" lacks \"%s\"", nn_last_error(), words);
}

static void test_memory(void **state) {
  (void)state;
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  nn_tensor_t *tensor = NULL;
  const int64_t shape[] = {1 << 20, 1 << 20, 16};
  CHECK_STATUS(NN_ERR_MEMORY, nn_tensor_create(device, NN_F32, 3, shape, &tensor));
  assert_null(tensor);
  expect_bytes_for("a tensor");
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("moe-6.9b", &config));
  config.layers = 3000;
  nn_model_t *model = NULL;
  CHECK_STATUS(NN_ERR_MEMORY, nn_model_create(device, &config, NN_BF16, 1, &model));
  assert_null(model);
  expect_bytes_for("parameters");
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  model = small_model(device); /* nothing was lost */
  nn_session_options_t options = STRUCT(nn_session_options_t);
  nn_session_t *session = NULL;
  options.batch = 1 << 20;
  CHECK_STATUS(NN_ERR_MEMORY, nn_session_create(model, &options, &session));
  assert_null(session);
  expect_bytes_for("a key-value cache");
  options.batch = 1;
  CHECK(nn_session_create(model, &options, &session));
  CHECK(nn_session_prefill(session, 0, (const int32_t[]){1, 2, 3}, 3, NULL));
  nn_session_destroy(session);
  nn_model_destroy(model);
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  nn_device_destroy(device);
}

enum { BATCH = 4, SEQ = 128, TOKENS = BATCH * SEQ };

/* What is done again and again until it is cancelled. */
typedef struct job {
  nn_status_t (*work)(struct job *job);
  nn_session_t *session;
  nn_model_t *model;
  nn_optim_t *optim;
  int32_t tokens[TOKENS];
  int64_t made; /* tokens or steps */
  nn_status_t status;
  double ended;
} job_t;

static nn_status_t generate(job_t *job) {
  nn_generate_options_t options = STRUCT(nn_generate_options_t);
  int64_t count;
  nn_session_truncate(job->session, 0, 0);
  options.max_tokens = 200;
  nn_status_t status = nn_session_generate(job->session, 0, (const int32_t[]){5}, 1, &options, NULL,
                                           0, &count, NULL);
  job->made += count;
  return status;
}

/* A step of three batches, of whose losses none is looked at. */
static nn_status_t train(job_t *job) {
  nn_status_t status = nn_model_zero_grad(job->model);
  for (int i = 0; i < 3 && status == NN_OK; i++)
    status = nn_model_backward(job->model, job->tokens, job->tokens, BATCH, SEQ, 1.0f / 3, NULL);
  if (status == NN_OK) status = nn_optim_step(job->optim, 1e-4f, NULL);
  job->made += status == NN_OK;
  return status;
}

static void *repeat(void *context) {
  job_t *job = context;
  while ((job->status = job->work(job)) == NN_OK) {
  }
  job->ended = fixture_seconds();
  return NULL;
}

/* Within one token or step, which take less than thirty milliseconds; a busy host is given a tenth
 * of a second. */
static void test_cancel(void **state) {
  (void)state;
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  job_t job = {.model = small_model(device)};
  fixture_prepare(job.model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  fixture_tokens(job.tokens, TOKENS, 200, 1);
  CHECK(nn_optim_create(job.model, NULL, &job.optim));
  CHECK(nn_session_create(job.model, NULL, &job.session));
  nn_status_t (*const works[])(job_t *) = {generate, train};
  for (int i = 0; i < 2; i++) {
    pthread_t thread;
    job.work = works[i], job.made = 0;
    assert_int_equal(pthread_create(&thread, NULL, repeat, &job), 0);
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    double asked = fixture_seconds();
    nn_device_cancel(device, 1);
    pthread_join(thread, NULL);
    assert_int_equal(job.status, NN_ERR_CANCELLED);
    assert_true(job.made > 0);
    if (job.ended - asked > 0.1) fail_msg("job %d took %.3f s", i, job.ended - asked);
    nn_device_cancel(device, 0);
  }
  CHECK(nn_session_truncate(job.session, 0, 0));
  CHECK(nn_session_prefill(job.session, 0, (const int32_t[]){1, 2, 3}, 3, NULL));
  CHECK(train(&job));
  nn_session_destroy(job.session);
  nn_optim_destroy(job.optim);
  nn_model_destroy(job.model);
  nn_device_destroy(device);
}

/* ---- recordings ------------------------------------------------------------------------------ */

enum { ROWS = 4, WIDTH = 64 };

/* Softmax of equal numbers in place. */
typedef struct recorded {
  nn_device_t *device;
  op_softmax_t op;
  void *data;
} recorded_t;

static nn_status_t recorded_call(const recorded_t *r) {
  return r->device->backend->softmax(r->device->place, &r->op, (backend_scratch_t){0});
}

static recorded_t recorded_open(void) {
  recorded_t r = {.device = fixture_device_named("cuda:0", 0, 0)};
  float rows[ROWS * WIDTH] = {0};
  CHECK(r.device->backend->alloc(r.device->place, sizeof rows, &r.data));
  r.op = (op_softmax_t){.n = ROWS, .width = WIDTH, .x = r.data, .y = r.data};
  CHECK(recorded_call(&r)); /* as replays are: called once before they are recorded */
  CHECK(r.device->backend->copy_in(r.device->place, r.data, rows, sizeof rows));
  return r;
}

/* The rows are what they become, and the device is closed. */
static void recorded_close(recorded_t *r) {
  float rows[ROWS * WIDTH];
  CHECK(r->device->backend->copy_out(r->device->place, rows, r->data, sizeof rows));
  for (int i = 0; i < ROWS * WIDTH; i++) assert_true(rows[i] > 0.015f && rows[i] < 0.016f);
  r->device->backend->free(r->device->place, r->data, sizeof rows);
  nn_device_destroy(r->device);
}

/* A recording that is broken off, here by a call that its thread may not make meanwhile, is told
 * apart from a failure; what it was to note down can be done at once, and recorded later. */
static void test_broken_recording(void **state) {
  (void)state;
  recorded_t r = recorded_open();
  const backend_t *table = r.device->backend;
  backend_graph_t *graph = (backend_graph_t *)&r;
  void *data = NULL;
  CHECK(table->record_begin(r.device->place));
  CHECK_STATUS(NN_ERR_DEVICE, table->alloc(r.device->place, 4096, &data));
  CHECK_STATUS(NN_ERR_DEVICE, recorded_call(&r));
  CHECK(table->record_end(r.device->place, &graph));
  assert_null(graph);
  CHECK(recorded_call(&r));
  CHECK(table->record_begin(r.device->place));
  CHECK(recorded_call(&r));
  CHECK(table->record_end(r.device->place, &graph));
  assert_non_null(graph);
  table->graph_free(r.device->place, graph);
  recorded_close(&r);
}

typedef struct beside {
  nn_device_t *device;
  nn_status_t status;
} beside_t;

static void *fail_to_alloc(void *context) {
  beside_t *beside = context;
  void *data = NULL;
  beside->status =
      beside->device->backend->alloc(beside->device->place, (size_t)1 << 46, &data);
  return NULL;
}

/* What fails in another thread while this one records is no failure of the recording. */
static void test_failure_beside_a_recording(void **state) {
  (void)state;
  recorded_t r = recorded_open();
  const backend_t *table = r.device->backend;
  beside_t beside = {.device = r.device};
  backend_graph_t *graph = NULL;
  pthread_t thread;
  CHECK(table->record_begin(r.device->place));
  assert_int_equal(pthread_create(&thread, NULL, fail_to_alloc, &beside), 0);
  nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
  CHECK(recorded_call(&r));
  CHECK(table->record_end(r.device->place, &graph));
  pthread_join(thread, NULL);
  assert_int_equal(beside.status, NN_ERR_MEMORY);
  assert_non_null(graph);
  CHECK(table->graph_run(r.device->place, graph));
  table->graph_free(r.device->place, graph);
  recorded_close(&r);
}

/* ---- a lost device --------------------------------------------------------------------------- */

/* An operation on memory that is not there loses the device: a call that need not wait may hear of
 * it, the first that waits does; from then on every call says so, handles can be destroyed, and the
 * CPU works. Another handle of that GPU hears of it by itself, from cuBLASLt. It comes last, for no
 * other device on that GPU can work either. */
static void test_lost_device(void **state) {
  (void)state;
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  nn_device_t *other = fixture_device_named("cuda:0", 0, 0);
  nn_model_t *model = small_model(device);
  nn_session_t *session;
  CHECK(nn_session_create(model, NULL, &session));
  CHECK(nn_session_prefill(session, 0, (const int32_t[]){1, 2, 3}, 3, NULL));
  job_t job = {.model = model};
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  fixture_tokens(job.tokens, TOKENS, 200, 1);
  CHECK(nn_optim_create(model, NULL, &job.optim));
  for (int i = 0; i < 2; i++) CHECK(train(&job)); /* after which a step is copies and graphs */
  float *nowhere = (float *)(uintptr_t)0x10000;
  op_softmax_t op = {.n = 4, .width = 64, .x = nowhere, .y = nowhere};
  const backend_t *table = device->backend;
  nn_status_t status = table->softmax(device->place, &op, (backend_scratch_t){0});
  if (status == NN_OK) status = train(&job);
  assert_int_equal(status, NN_ERR_DEVICE);
  assert_non_null(strstr(nn_last_error(), "lost"));
  /* which operation heard of it depends on when the GPU was at the first */
  const char *names[] = {"cuda:0: softmax: ", "cuda:0: zero: ", "cuda:0: copy_in: ",
                         "cuda:0: graph: ", "cuda:0: copy_out: "};
  int named = 0;
  for (int i = 0; i < 5; i++) named += !strncmp(nn_last_error(), names[i], strlen(names[i]));
  if (!named) fail_msg("the message names no operation: %s", nn_last_error());
  CHECK_STATUS(NN_ERR_DEVICE, nn_session_decode(session, (const int32_t[]){4}, NULL));
  assert_non_null(strstr(nn_last_error(), "lost by an earlier failure"));
  CHECK_STATUS(NN_ERR_DEVICE, nn_session_prefill(session, 0, (const int32_t[]){1}, 1, NULL));
  op_matmul_t product = {.m = 64, .n = 64, .k = 64, .a = nowhere, .lda = 64, .b = nowhere,
                         .ldb = 64, .d = nowhere, .ldd = 64};
  CHECK_STATUS(NN_ERR_DEVICE, table->matmul(other->place, &product, (backend_scratch_t){0}));
  if (strncmp(nn_last_error(), "cuda:0: matmul: ", 16) || !strstr(nn_last_error(), "is lost"))
    fail_msg("a lost device's product: %s", nn_last_error());
  nn_device_destroy(other);
  nn_optim_destroy(job.optim);
  nn_session_destroy(session);
  nn_model_destroy(model);
  nn_device_destroy(device);

  device = fixture_device_named("cpu", 1, 0);
  model = small_model(device);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_memory),
      cmocka_unit_test(test_cancel),
      cmocka_unit_test(test_broken_recording),
      cmocka_unit_test(test_failure_beside_a_recording),
      cmocka_unit_test(test_lost_device),
  };
  return cmocka_run_group_tests_name("errors on a GPU", tests, NULL, NULL);
}
