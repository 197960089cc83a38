/* Several threads of an application: devices side by side, training and serving one model at once,
 * and each thread's own message. Most telling in the thread sanitizer's build. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

enum { BATCH = 2, SEQ = 9, TOKENS = BATCH * SEQ, STEPS = 8, VOCAB = 67 };

/* Assertions of cmocka belong to the main thread: others keep their first failure for it. */
typedef struct outcome {
  nn_status_t status;
  char message[256];
} outcome_t;

static void note(outcome_t *outcome, nn_status_t status) {
  if (status == NN_OK || outcome->status != NN_OK) return;
  outcome->status = status;
  snprintf(outcome->message, sizeof outcome->message, "%s", nn_last_error());
}

static void check_outcome(const outcome_t *outcome) {
  if (outcome->status != NN_OK)
    fail_msg("%s: %s", nn_status_name(outcome->status), outcome->message);
}

/* ---- devices side by side ---- */

typedef struct trainer {
  outcome_t outcome;
  nn_model_config_t config;
  nn_device_t *device;
  nn_model_t *model;
  double losses[STEPS];
} trainer_t;

static void train(trainer_t *t) {
  int32_t tokens[TOKENS];
  fixture_tokens(tokens, TOKENS, VOCAB, 1);
  nn_optim_t *optim = NULL;
  note(&t->outcome, nn_optim_create(t->model, NULL, &optim));
  for (int step = 0; step < STEPS && t->outcome.status == NN_OK; step++) {
    nn_loss_t loss = STRUCT(nn_loss_t);
    note(&t->outcome, nn_model_zero_grad(t->model));
    note(&t->outcome, nn_model_backward(t->model, tokens, tokens, BATCH, SEQ, 1, &loss));
    note(&t->outcome, nn_optim_step(optim, 1e-2f, NULL));
    t->losses[step] = loss.loss;
  }
  nn_optim_destroy(optim);
}

/* Opens everything itself, so that creation and destruction run side by side too. */
static void *train_alone(void *argument) {
  trainer_t *t = argument;
  nn_device_options_t options = STRUCT(nn_device_options_t);
  nn_train_options_t shape = STRUCT(nn_train_options_t);
  options.threads = 2;
  shape.batch = BATCH, shape.seq_len = SEQ;
  note(&t->outcome, nn_device_create("cpu", &options, &t->device));
  if (t->outcome.status == NN_OK)
    note(&t->outcome, nn_model_create(t->device, &t->config, NN_F32, 1, &t->model));
  if (t->outcome.status == NN_OK) note(&t->outcome, nn_model_prepare(t->model, &shape));
  if (t->outcome.status == NN_OK) train(t);
  nn_model_destroy(t->model);
  nn_device_destroy(t->device);
  return NULL;
}

static void test_two_devices(void **state) {
  (void)state;
  trainer_t alone[2] = {{.config = fixture_moe()}, {.config = fixture_gpt2()}}, together[4];
  pthread_t threads[4];
  for (int i = 0; i < 2; i++) train_alone(&alone[i]);
  for (int i = 0; i < 4; i++) {
    together[i] = (trainer_t){.config = alone[i % 2].config};
    assert_int_equal(pthread_create(&threads[i], NULL, train_alone, &together[i]), 0);
  }
  for (int i = 0; i < 4; i++) {
    assert_int_equal(pthread_join(threads[i], NULL), 0);
    check_outcome(&together[i].outcome);
    check_outcome(&alone[i % 2].outcome);
    assert_memory_equal(together[i].losses, alone[i % 2].losses, sizeof alone[0].losses);
  }
}

/* Two models on one device take turns. */
static void *train_on_shared_device(void *argument) {
  train(argument);
  return NULL;
}

static void test_two_models_on_one_device(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  trainer_t alone = {.config = fixture_moe()}, both[2];
  train_alone(&alone);
  check_outcome(&alone.outcome);
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) {
    both[i] = (trainer_t){.config = fixture_moe(), .device = device};
    both[i].model = fixture_model(device, &both[i].config, 1);
    fixture_prepare(both[i].model, BATCH, SEQ, NN_RECOMPUTE_NONE);
    assert_int_equal(pthread_create(&threads[i], NULL, train_on_shared_device, &both[i]), 0);
  }
  for (int i = 0; i < 2; i++) {
    assert_int_equal(pthread_join(threads[i], NULL), 0);
    check_outcome(&both[i].outcome);
    assert_memory_equal(both[i].losses, alone.losses, sizeof alone.losses);
    nn_model_destroy(both[i].model);
  }
  nn_device_destroy(device);
}

/* ---- trained here, served there ---- */

/* A forward pass's logits of the prompt after each number of steps: what a session may see. */
enum { PROMPT = 6 };
static const int32_t prompt[PROMPT] = {3, 1, 4, 1, 5, 9};

static void *train_served_model(void *argument) {
  train(argument);
  return NULL;
}

static void test_train_and_serve(void **state) {
  (void)state;
  enum { ROUNDS = 60 };
  nn_model_config_t config = fixture_moe();
  nn_device_t *device = fixture_device(2, 0);

  /* What a session sees after each step of the same run, made in one thread. */
  static float seen[STEPS + 1][VOCAB], got[ROUNDS][VOCAB];
  nn_session_t *session;
  trainer_t trainer = {.config = config, .device = device};
  trainer.model = fixture_model(device, &config, 1);
  fixture_prepare(trainer.model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK(nn_session_create(trainer.model, NULL, &session));
  nn_optim_t *optim;
  CHECK(nn_optim_create(trainer.model, NULL, &optim));
  int32_t tokens[TOKENS];
  fixture_tokens(tokens, TOKENS, VOCAB, 1);
  for (int step = 0; step <= STEPS; step++) {
    CHECK(nn_session_truncate(session, 0, 0));
    CHECK(nn_session_prefill(session, 0, prompt, PROMPT, seen[step]));
    nn_loss_t loss = STRUCT(nn_loss_t);
    CHECK(nn_model_zero_grad(trainer.model));
    CHECK(nn_model_backward(trainer.model, tokens, tokens, BATCH, SEQ, 1, &loss));
    CHECK(nn_optim_step(optim, 1e-2f, NULL));
  }
  nn_optim_destroy(optim);
  nn_session_destroy(session);
  nn_model_destroy(trainer.model);

  /* Again, with the session in this thread and the training in another. */
  trainer.model = fixture_model(device, &config, 1);
  fixture_prepare(trainer.model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK(nn_session_create(trainer.model, NULL, &session));
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, train_served_model, &trainer), 0);
  nn_status_t status = NN_OK;
  for (int round = 0; round < ROUNDS && status == NN_OK; round++) {
    status = nn_session_truncate(session, 0, 0);
    if (status == NN_OK) status = nn_session_prefill(session, 0, prompt, PROMPT, got[round]);
  }
  assert_int_equal(pthread_join(thread, NULL), 0);
  CHECK_STATUS(NN_OK, status);
  check_outcome(&trainer.outcome);
  /* Each call saw the parameters as one step had left them, and time went forward. */
  int last = 0;
  for (int round = 0; round < ROUNDS; round++) {
    int step = last;
    while (step <= STEPS && memcmp(got[round], seen[step], sizeof seen[step]) != 0) step++;
    if (step > STEPS) fail_msg("round %d served parameters that no step had left", round);
    last = step;
  }
  print_message("served steps 0 to %d of %d\n", last, STEPS);
  nn_session_destroy(session);
  nn_model_destroy(trainer.model);
  nn_device_destroy(device);
}

/* Sessions of one model in several threads: each its own sequence. */
typedef struct server {
  outcome_t outcome;
  nn_session_t *session;
  int32_t made[12];
} server_t;

static void *serve(void *argument) {
  server_t *server = argument;
  for (int round = 0; round < 5; round++) {
    int64_t count;
    note(&server->outcome, nn_session_truncate(server->session, 0, 0));
    note(&server->outcome, nn_session_generate(server->session, 0, prompt, PROMPT, NULL,
                                               server->made, 12, &count, NULL));
  }
  return NULL;
}

static void test_sessions_in_threads(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 1);
  server_t servers[4] = {{.outcome = {0}}};
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) CHECK(nn_session_create(model, NULL, &servers[i].session));
  serve(&servers[3]);
  for (int i = 0; i < 3; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, serve, &servers[i]), 0);
  for (int i = 0; i < 3; i++) {
    assert_int_equal(pthread_join(threads[i], NULL), 0);
    check_outcome(&servers[i].outcome);
    assert_memory_equal(servers[i].made, servers[3].made, sizeof servers[3].made);
  }
  for (int i = 0; i < 4; i++) nn_session_destroy(servers[i].session);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* ---- messages ---- */

static void *fail_elsewhere(void *argument) {
  char *message = argument;
  snprintf(message, 256, "%s|", nn_last_error()); /* a new thread has none */
  nn_model_config_t config = STRUCT(nn_model_config_t);
  nn_config_preset("colossal", &config);
  strncat(message, nn_last_error(), 200);
  return NULL;
}

/* ---- turns ---- */

typedef struct busy {
  outcome_t outcome;
  nn_model_t *model;
  atomic_int rounds, stop;
} busy_t;

static void *keep_busy(void *argument) {
  busy_t *busy = argument;
  int32_t tokens[TOKENS];
  fixture_tokens(tokens, TOKENS, VOCAB, 2);
  while (!atomic_load(&busy->stop) && busy->outcome.status == NN_OK) {
    nn_loss_t loss = STRUCT(nn_loss_t);
    note(&busy->outcome, nn_model_evaluate(busy->model, tokens, tokens, BATCH, SEQ, &loss));
    atomic_fetch_add(&busy->rounds, 1);
  }
  return NULL;
}

/* A thread that never pauses between its calls does not keep others from theirs. While a decode
 * waits, the other thread can end the call that it is in and one more that was queued before. */
static void test_calls_take_turns(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  nn_session_t *session;
  busy_t busy = {.model = fixture_model(device, &config, 1)};
  fixture_prepare(busy.model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK(nn_session_create(busy.model, NULL, &session));
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, keep_busy, &busy), 0);
  while (atomic_load(&busy.rounds) == 0) {
  }
  enum { DECODES = 200 };
  int before = atomic_load(&busy.rounds);
  for (int32_t i = 0; i < DECODES; i++) {
    const int32_t token = i % VOCAB;
    CHECK(nn_session_truncate(session, 0, 0));
    CHECK(nn_session_decode(session, &token, NULL));
  }
  int passed = atomic_load(&busy.rounds) - before;
  atomic_store(&busy.stop, 1);
  pthread_join(thread, NULL);
  check_outcome(&busy.outcome);
  nn_session_destroy(session);
  nn_model_destroy(busy.model);
  nn_device_destroy(device);
  print_message("%d calls of the other thread beside %d decodes\n", passed, DECODES);
  assert_true(passed <= 8 * DECODES); /* 2 each by turns; the rest for a busy machine */
}

static void test_each_thread_has_its_message(void **state) {
  (void)state;
  nn_device_t *device = NULL;
  CHECK_STATUS(NN_ERR_NOT_FOUND, nn_device_create("abacus", NULL, &device));
  assert_non_null(strstr(nn_last_error(), "abacus"));
  char other[256];
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, other), 0);
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_int_equal(other[0], '|');
  assert_non_null(strstr(other, "colossal"));
  assert_non_null(strstr(nn_last_error(), "abacus"));
  /* a success does not clear it */
  device = fixture_device(1, 0);
  assert_non_null(strstr(nn_last_error(), "abacus"));
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_two_devices),
      cmocka_unit_test(test_two_models_on_one_device),
      cmocka_unit_test(test_train_and_serve),
      cmocka_unit_test(test_calls_take_turns),
      cmocka_unit_test(test_sessions_in_threads),
      cmocka_unit_test(test_each_thread_has_its_message),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
