/* Threads that share a GPU: one trains, one generates, one copies tensors, passes and steps being
 * recorded meanwhile; and some that make and destroy what holds recordings while others record.
 * Each gets the bits that it gets alone. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "fixture.h"

enum { BATCH = 2, SEQ = 32, TOKENS = BATCH * SEQ, STEPS = 20, MADE = 100 };
enum { ROUNDS = 10, FEW = 6 /* called, recorded, launched */ };

typedef struct job {
  nn_device_t *device;
  double losses[STEPS];
  int32_t made[MADE];
  int64_t count, copies;
  volatile int done;
} job_t;

static nn_model_t *model_of(nn_device_t *device, uint64_t seed) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("small", &config));
  return fixture_model(device, &config, seed);
}

static void *train(void *context) {
  job_t *job = context;
  nn_model_t *model = model_of(job->device, 1);
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  nn_optim_t *optim;
  CHECK(nn_optim_create(model, NULL, &optim));
  int32_t tokens[TOKENS];
  fixture_tokens(tokens, TOKENS, 200, 1);
  for (int i = 0; i < STEPS; i++) {
    nn_loss_t loss = STRUCT(nn_loss_t);
    CHECK(nn_model_zero_grad(model));
    CHECK(nn_model_backward(model, tokens, tokens, BATCH, SEQ, 1, &loss));
    CHECK(nn_optim_step(optim, 1e-3f, NULL));
    job->losses[i] = loss.loss;
  }
  nn_optim_destroy(optim);
  nn_model_destroy(model);
  return NULL;
}

static void *generate(void *context) {
  job_t *job = context;
  nn_model_t *model = model_of(job->device, 2);
  nn_session_t *session;
  CHECK(nn_session_create(model, NULL, &session));
  nn_generate_options_t options = STRUCT(nn_generate_options_t);
  options.max_tokens = MADE;
  CHECK(nn_session_generate(session, 0, (const int32_t[]){65, 66}, 2, &options, job->made, MADE,
                            &job->count, NULL));
  nn_session_destroy(session);
  nn_model_destroy(model);
  return NULL;
}

static void *copy(void *context) {
  job_t *job = context;
  enum { N = 5000 };
  static float sent[N], back[N];
  nn_tensor_t *tensor;
  const int64_t shape[] = {N};
  CHECK(nn_tensor_create(job->device, NN_F32, 1, shape, &tensor));
  while (!job->done) {
    for (int i = 0; i < N; i++) sent[i] = (float)(i + job->copies);
    CHECK(nn_tensor_copy_in(tensor, sent, sizeof sent));
    CHECK(nn_tensor_copy_out(tensor, back, sizeof back));
    assert_memory_equal(sent, back, sizeof sent);
    job->copies++;
  }
  nn_tensor_destroy(tensor);
  return NULL;
}

static void test_together_as_alone(void **state) {
  (void)state;
  job_t alone = {.device = fixture_device_named("cuda:0", 0, 0)};
  train(&alone);
  generate(&alone);
  for (int round = 0; round < 5; round++) {
    job_t job = {.device = alone.device};
    pthread_t threads[3];
    void *(*const works[])(void *) = {train, generate, copy};
    for (int i = 0; i < 3; i++)
      assert_int_equal(pthread_create(&threads[i], NULL, works[i], &job), 0);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    job.done = 1;
    pthread_join(threads[2], NULL);
    assert_true(job.copies > 0);
    assert_int_equal(job.count, alone.count);
    assert_memory_equal(job.made, alone.made, sizeof job.made);
    assert_memory_equal(job.losses, alone.losses, sizeof job.losses);
  }
  assert_int_equal(fixture_device_memory(alone.device).current_bytes, 0);
  nn_device_destroy(alone.device);
}

/* What comes and goes: each thread's own, and what its last round gave. */
typedef struct coming {
  nn_device_t *device;
  int32_t rounds, made[FEW];
  double losses[FEW];
  volatile int *done; /* no round is begun any more */
} coming_t;

/* A session for each round. */
static void *serve(void *context) {
  coming_t *coming = context;
  nn_model_t *model = model_of(coming->device, 3);
  nn_generate_options_t options = STRUCT(nn_generate_options_t);
  options.max_tokens = FEW;
  for (int32_t round = 0; round < coming->rounds; round++) {
    nn_session_t *session;
    int32_t made[FEW];
    int64_t count;
    CHECK(nn_session_create(model, NULL, &session));
    CHECK(nn_session_generate(session, 0, (const int32_t[]){65, 66}, 2, &options, made, FEW, &count,
                              NULL));
    nn_session_destroy(session);
    assert_int_equal(count, FEW);
    if (round) assert_memory_equal(made, coming->made, sizeof made);
    memcpy(coming->made, made, sizeof made);
  }
  nn_model_destroy(model);
  return NULL;
}

/* What training needs, and an optimizer, for each round. */
static void *prepare(void *context) {
  coming_t *coming = context;
  nn_model_t *model = model_of(coming->device, 4);
  int32_t tokens[TOKENS];
  fixture_tokens(tokens, TOKENS, 200, 2);
  for (int32_t round = 0; round < coming->rounds; round++) {
    double losses[FEW];
    nn_optim_t *optim;
    fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
    CHECK(nn_optim_create(model, NULL, &optim));
    for (int i = 0; i < FEW; i++) {
      nn_loss_t loss = STRUCT(nn_loss_t);
      CHECK(nn_model_zero_grad(model));
      CHECK(nn_model_backward(model, tokens, tokens, BATCH, SEQ, 1, &loss));
      CHECK(nn_optim_step(optim, 0, NULL));
      losses[i] = loss.loss;
    }
    nn_optim_destroy(optim);
    if (round) assert_memory_equal(losses, coming->losses, sizeof losses);
    memcpy(coming->losses, losses, sizeof losses);
  }
  nn_model_destroy(model);
  return NULL;
}

/* Memory that is had and memory that is not; a driver takes long over the latter. */
static void *allocate(void *context) {
  coming_t *coming = context;
  const int64_t little[] = {1000}, much[] = {1 << 20, 1 << 20, 16};
  while (!*coming->done) {
    nn_tensor_t *tensor;
    CHECK(nn_tensor_create(coming->device, NN_F32, 1, little, &tensor));
    nn_tensor_destroy(tensor);
    CHECK_STATUS(NN_ERR_MEMORY, nn_tensor_create(coming->device, NN_F32, 3, much, &tensor));
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
  }
  return NULL;
}

static void test_what_comes_and_goes(void **state) {
  (void)state;
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  volatile int done = 0;
  coming_t alone = {.device = device, .rounds = 1};
  serve(&alone);
  prepare(&alone);
  void *(*const works[])(void *) = {serve, serve, prepare, prepare, allocate};
  enum { THREADS = sizeof works / sizeof *works };
  coming_t coming[THREADS];
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++) {
    coming[i] = (coming_t){.device = device, .rounds = ROUNDS, .done = &done};
    assert_int_equal(pthread_create(&threads[i], NULL, works[i], &coming[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) {
    done = i == THREADS - 1;
    pthread_join(threads[i], NULL);
    if (works[i] == serve) assert_memory_equal(coming[i].made, alone.made, sizeof alone.made);
    if (works[i] == prepare)
      assert_memory_equal(coming[i].losses, alone.losses, sizeof alone.losses);
  }
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_together_as_alone),
                                     cmocka_unit_test(test_what_comes_and_goes)};
  return cmocka_run_group_tests_name("threads on a GPU", tests, NULL, NULL);
}
