/* nn_session_generate() against a loop of prefill, sample, decode; why it ends; what it leaves. */
#include <math.h>
#include <string.h>

#include "fixture.h"

enum { VOCAB = 67, CONTEXT = 24, PROMPT = 4, MOST = CONTEXT - PROMPT + 1 };

static const int32_t prompt[PROMPT] = {5, 6, 7, 8};

typedef struct generator {
  nn_device_t *device;
  nn_model_t *model;
  nn_session_t *session;
  nn_sample_options_t sampling;
  nn_generate_options_t options; /* samples with the above */
  int32_t whole[MOST];           /* what comes until the context is full */
} generator_t;

static void generator_open(generator_t *g) {
  g->device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  g->model = fixture_model(g->device, &config, 1);
  nn_session_options_t two = STRUCT(nn_session_options_t);
  two.batch = 2;
  CHECK(nn_session_create(g->model, &two, &g->session));
  g->sampling = STRUCT(nn_sample_options_t);
  g->sampling.temperature = 2;
  g->sampling.top_k = 40;
  g->sampling.repetition_penalty = 1.1f;
  g->sampling.seed = 5;
  g->options = STRUCT(nn_generate_options_t);
  g->options.sampling = &g->sampling;
  CHECK(nn_session_prefill(g->session, 1, prompt, PROMPT, NULL));
  for (int i = 0; i < MOST; i++) {
    CHECK(nn_session_sample(g->session, 1, &g->sampling, &g->whole[i]));
    if (i < MOST - 1) CHECK(nn_session_decode(g->session, (int32_t[]){-1, g->whole[i]}, NULL));
  }
}

static void generator_close(generator_t *g) {
  nn_session_destroy(g->session);
  nn_model_destroy(g->model);
  nn_device_destroy(g->device);
}

/* Generates after the prompt in an empty sequence 0 and compares with the loop's tokens. */
static void check_made(generator_t *g, int64_t capacity, int64_t want_count, int32_t want_reason) {
  int32_t made[MOST + 3], reason = 0;
  int64_t count = -1;
  memset(made, 0x77, sizeof made);
  CHECK(nn_session_truncate(g->session, 0, 0));
  CHECK(nn_session_generate(g->session, 0, prompt, PROMPT, &g->options, made, capacity, &count,
                            &reason));
  assert_int_equal(count, want_count);
  assert_int_equal(reason, want_reason);
  assert_memory_equal(made, g->whole, (size_t)count * sizeof *made);
  assert_int_equal(made[count], 0x77777777); /* not a token more is written */
  /* The last token made is in the sequence only where it was needed to choose the stop id. */
  int64_t last = want_reason == NN_STOP_ID ? count : count - 1;
  assert_int_equal(nn_session_length(g->session, 0), PROMPT + last);
}

static void test_length(void **state) {
  (void)state;
  generator_t g;
  generator_open(&g);
  check_made(&g, 6, 6, NN_STOP_LENGTH); /* the buffer is full */
  g.options.max_tokens = 5;
  check_made(&g, 6, 5, NN_STOP_LENGTH);
  g.options.max_tokens = 9;
  check_made(&g, 6, 6, NN_STOP_LENGTH);
  g.options.max_tokens = 1;
  check_made(&g, MOST, 1, NN_STOP_LENGTH);
  /* The last token needs no room: context less prompt, and one. */
  g.options.max_tokens = 0;
  check_made(&g, MOST + 2, MOST, NN_STOP_CONTEXT);
  generator_close(&g);
}

static void test_greedy_by_default(void **state) {
  (void)state;
  generator_t g;
  generator_open(&g);
  CHECK(nn_session_truncate(g.session, 1, 0));
  int32_t made[8], token;
  int64_t count;
  CHECK(nn_session_generate(g.session, 0, prompt, PROMPT, NULL, made, 8, &count, NULL));
  assert_int_equal(count, 8);
  CHECK(nn_session_prefill(g.session, 1, prompt, PROMPT, NULL));
  for (int i = 0; i < 8; i++) {
    CHECK(nn_session_sample(g.session, 1, NULL, &token));
    assert_int_equal(made[i], token);
    CHECK(nn_session_decode(g.session, (int32_t[]){-1, token}, NULL));
  }
  generator_close(&g);
}

/* An id that the loop never made. */
static int32_t generator_unmade(const generator_t *g) {
  int32_t id = 0;
  for (int i = 0; i < MOST; i++)
    if (g->whole[i] == id) id++, i = -1;
  assert_true(id < VOCAB);
  return id;
}

static void test_parameters_that_are_not_numbers(void **state) {
  (void)state;
  generator_t g;
  generator_open(&g);
  fixture_fill(g.model, "lm_head.weight", NAN);
  int32_t made[4], token = 42;
  int64_t count = 9;
  CHECK(nn_session_truncate(g.session, 0, 0));
  CHECK_STATUS(NN_ERR_NONFINITE, nn_session_generate(g.session, 0, prompt, PROMPT, &g.options, made,
                                                     4, &count, NULL));
  assert_int_equal(count, 0);
  CHECK_STATUS(NN_ERR_NONFINITE, nn_session_sample(g.session, 0, NULL, &token));
  assert_int_equal(token, 42);
  generator_close(&g);
}

static void test_stop_ids(void **state) {
  (void)state;
  generator_t g;
  generator_open(&g);
  int32_t stops[2] = {generator_unmade(&g), g.whole[6]};
  int64_t first = 0;
  while (g.whole[first] != stops[1]) first++;
  g.options.stop_ids = stops;
  g.options.stop_count = 2;
  check_made(&g, MOST, first, NN_STOP_ID);
  /* in the first place: nothing is made */
  stops[0] = g.whole[0];
  check_made(&g, MOST, 0, NN_STOP_ID);
  /* the end of the buffer comes first */
  stops[0] = stops[1] = generator_unmade(&g);
  check_made(&g, 2, 2, NN_STOP_LENGTH);
  generator_close(&g);
}

typedef struct heard {
  int32_t tokens[MOST];
  int64_t count, stop_at;
} heard_t;

static int32_t hear(int32_t token, int64_t index, void *user) {
  heard_t *heard = user;
  assert_int_equal(index, heard->count);
  heard->tokens[heard->count++] = token;
  return heard->count == heard->stop_at;
}

static void test_callback(void **state) {
  (void)state;
  generator_t g;
  generator_open(&g);
  heard_t heard = {.stop_at = 7};
  g.options.on_token = hear;
  g.options.on_token_user = &heard;
  check_made(&g, MOST, 7, NN_STOP_CALLBACK);
  assert_int_equal(heard.count, 7);
  assert_memory_equal(heard.tokens, g.whole, 7 * sizeof *g.whole);
  /* without a buffer the callback alone hears them */
  heard = (heard_t){0};
  int64_t count;
  int32_t reason;
  CHECK(nn_session_truncate(g.session, 0, 0));
  CHECK(nn_session_generate(g.session, 0, prompt, PROMPT, &g.options, NULL, 0, &count, &reason));
  assert_int_equal(reason, NN_STOP_CONTEXT);
  assert_int_equal(count, MOST);
  assert_memory_equal(heard.tokens, g.whole, sizeof g.whole);
  /* a stop id is not heard */
  heard = (heard_t){0};
  g.options.stop_ids = &g.whole[0];
  g.options.stop_count = 1;
  check_made(&g, MOST, 0, NN_STOP_ID);
  assert_int_equal(heard.count, 0);
  generator_close(&g);
}

/* A sequence that is not empty goes on without a prompt, or with the token that was left out. */
static void test_going_on(void **state) {
  (void)state;
  generator_t g;
  generator_open(&g);
  int32_t made[MOST];
  int64_t count;
  CHECK(nn_session_prefill(g.session, 0, prompt, PROMPT, NULL));
  CHECK(nn_session_generate(g.session, 0, NULL, 0, &g.options, made, 5, &count, NULL));
  assert_int_equal(count, 5);
  CHECK(nn_session_generate(g.session, 0, made + 4, 1, &g.options, made + 5, MOST - 5, &count,
                            NULL));
  assert_int_equal(count, MOST - 5);
  assert_memory_equal(made, g.whole, sizeof made);
  generator_close(&g);
}

static void test_refused(void **state) {
  (void)state;
  generator_t g;
  generator_open(&g);
  int32_t made[MOST], reason = 42;
  int64_t count = 42; /* which each call sets to none made */
  nn_session_t *s = g.session;
  static const int32_t bad[2] = {1, VOCAB};
  int32_t long_prompt[CONTEXT + 1] = {0};
  nn_generate_options_t options = STRUCT(nn_generate_options_t), sizeless = {0};
  nn_sample_options_t cold = STRUCT(nn_sample_options_t);
  CHECK_STATUS(NN_ERR_STATE, nn_session_generate(s, 0, NULL, 0, NULL, made, 4, &count, &reason));
  CHECK_STATUS(NN_ERR_ARGUMENT,
               nn_session_generate(NULL, 0, prompt, 4, NULL, made, 4, &count, NULL));
  assert_int_equal(count, 0);
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_generate(s, 2, prompt, 4, NULL, made, 4, &count, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_generate(s, 0, NULL, 4, NULL, made, 4, &count, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_generate(s, 0, prompt, -1, NULL, made, 4, &count, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_generate(s, 0, prompt, 4, NULL, NULL, 4, &count, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_generate(s, 0, prompt, 4, NULL, made, -1, &count, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_generate(s, 0, prompt, 4, NULL, made, 4, NULL, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_generate(s, 0, bad, 2, NULL, made, 4, &count, NULL));
  CHECK_STATUS(NN_ERR_CAPACITY,
               nn_session_generate(s, 0, long_prompt, CONTEXT + 1, NULL, made, 4, &count, NULL));
  CHECK_STATUS(NN_ERR_STRUCT_SIZE,
               nn_session_generate(s, 0, prompt, 4, &sizeless, made, 4, &count, NULL));
  options.max_tokens = -1;
  CHECK_STATUS(NN_ERR_ARGUMENT,
               nn_session_generate(s, 0, prompt, 4, &options, made, 4, &count, NULL));
  options.max_tokens = 0;
  options.stop_count = 1;
  CHECK_STATUS(NN_ERR_ARGUMENT,
               nn_session_generate(s, 0, prompt, 4, &options, made, 4, &count, NULL));
  for (int32_t id = -1; id <= VOCAB; id += VOCAB + 1) {
    options.stop_ids = &id;
    CHECK_STATUS(NN_ERR_ARGUMENT,
                 nn_session_generate(s, 0, prompt, 4, &options, made, 4, &count, NULL));
  }
  options.stop_count = 0;
  options.sampling = &cold;
  cold.temperature = -1;
  CHECK_STATUS(NN_ERR_ARGUMENT,
               nn_session_generate(s, 0, prompt, 4, &options, made, 4, &count, NULL));
  assert_int_equal(nn_session_length(s, 0), 0);
  assert_int_equal(count, 0);
  assert_int_equal(reason, 42);
  /* A prompt that fills the context still has one token after it. */
  CHECK(nn_session_generate(s, 0, long_prompt, CONTEXT, NULL, made, 4, &count, &reason));
  assert_int_equal(count, 1);
  assert_int_equal(reason, NN_STOP_CONTEXT);
  generator_close(&g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_length),
      cmocka_unit_test(test_greedy_by_default),
      cmocka_unit_test(test_stop_ids),
      cmocka_unit_test(test_parameters_that_are_not_numbers),
      cmocka_unit_test(test_callback),
      cmocka_unit_test(test_going_on),
      cmocka_unit_test(test_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
