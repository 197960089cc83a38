/* Sessions serve what was trained: decode and chunked prefill give the logits and experts of a
 * forward pass; sequences are independent; limits, truncation, stretched RoPE. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "served.h"

/* ---- the same numbers ---- */

static void test_decode_is_forward(void **state) {
  (void)state;
  for (int i = 0; i < 6; i++) {
    nn_model_config_t config = served_config(i % 2);
    served_t s;
    served_open(&s, &config, 2);
    int64_t prompt = (const int64_t[]){1, 7, 23}[i / 2];
    nn_session_t *session = served_session(s.model, 1, 0, 0);
    float logits[VOCAB];
    CHECK(nn_session_prefill(session, 0, s.tokens, prompt, logits));
    served_near(&s, "prefill", logits, prompt - 1);
    for (int64_t t = prompt; t < CONTEXT; t++) {
      CHECK(nn_session_decode(session, &s.tokens[t], logits));
      served_near(&s, "decode", logits, t);
      assert_int_equal(nn_session_length(session, 0), t + 1);
    }
    /* and the experts that a forward pass chose */
    for (int64_t layer = 0; config.experts && layer < config.layers; layer++) {
      int64_t trained[5], served[5];
      double trained_prob[5], served_prob[5];
      nn_expert_stats_t a = STRUCT(nn_expert_stats_t), b = STRUCT(nn_expert_stats_t);
      CHECK(nn_model_expert_stats(s.model, layer, trained, trained_prob, &a));
      CHECK(nn_session_expert_stats(session, layer, served, served_prob, &b));
      assert_memory_equal(trained, served, sizeof trained);
      assert_int_equal(b.tokens, CONTEXT);
      assert_int_equal(b.dropped, 0);
      assert_true(a.entropy == b.entropy && a.max_load == b.max_load);
      for (int e = 0; e < 5; e++) assert_true(fabs(trained_prob[e] - served_prob[e]) < 1e-6);
    }
    nn_session_destroy(session);
    served_close(&s);
  }
}

static void test_prefill_in_chunks(void **state) {
  (void)state;
  static const int64_t chunks[] = {1, 2, 5, 24, 1000};
  for (int i = 0; i < 10; i++) {
    nn_model_config_t config = served_config(i % 2);
    served_t s;
    served_open(&s, &config, 2);
    nn_session_t *session = served_session(s.model, 1, 0, chunks[i / 2]);
    float logits[VOCAB];
    CHECK(nn_session_prefill(session, 0, s.tokens, CONTEXT, logits));
    served_near(&s, "all at once", logits, CONTEXT - 1);
    CHECK(nn_session_truncate(session, 0, 0));
    int64_t done = 0;
    static const int64_t parts[] = {3, 1, 11, 9};
    for (int part = 0; part < 4; part++) {
      CHECK(nn_session_prefill(session, 0, s.tokens + done, parts[part], logits));
      done += parts[part];
      served_near(&s, "in parts", logits, done - 1);
    }
    /* logits may be left where they are */
    CHECK(nn_session_truncate(session, 0, 4));
    CHECK(nn_session_prefill(session, 0, s.tokens + 4, 3, NULL));
    CHECK(nn_session_decode(session, &s.tokens[7], NULL));
    CHECK(nn_session_decode(session, &s.tokens[8], logits));
    served_near(&s, "after silence", logits, 8);
    nn_session_destroy(session);
    served_close(&s);
  }
}

/* Three sequences of different lengths side by side, some left alone in some steps. */
static void test_ragged_batch(void **state) {
  (void)state;
  for (int family = 0; family < 2; family++) {
    nn_model_config_t config = served_config(family);
    served_t s;
    served_open(&s, &config, 2);
    /* The same tokens at other offsets; what each sequence should give is its own forward pass. */
    static const int64_t offset[3] = {0, 5, 11};
    float *want[3];
    for (int q = 0; q < 3; q++) want[q] = served_logits(s.model, s.tokens + offset[q], 12);
    nn_session_t *session = served_session(s.model, 3, 13, 4);
    float logits[3 * VOCAB], before[3 * VOCAB];
    CHECK(nn_session_prefill(session, 0, s.tokens + offset[0], 2, NULL));
    CHECK(nn_session_prefill(session, 2, s.tokens + offset[2], 7, NULL));
    static const int alone[6][3] = {{1, 1, 1}, {1, 0, 1}, {0, 1, 0},
                                    {0, 0, 0}, {1, 1, 0}, {0, 1, 1}};
    int64_t length[3] = {2, 0, 7};
    for (int step = 0; step < 6; step++) {
      int32_t tokens[3];
      for (int q = 0; q < 3; q++)
        tokens[q] = alone[step][q] ? s.tokens[offset[q] + length[q]] : step % 2 ? -1 : INT32_MIN;
      for (int j = 0; j < 3 * VOCAB; j++) logits[j] = before[j] = -1000;
      CHECK(nn_session_decode(session, tokens, logits));
      for (int q = 0; q < 3; q++) {
        const float *got = logits + q * VOCAB;
        length[q] += alone[step][q];
        assert_int_equal(nn_session_length(session, q), length[q]);
        if (alone[step][q])
          fixture_near("ragged", got, want[q] + (length[q] - 1) * VOCAB, VOCAB, s.tolerance);
        else
          fixture_same("left alone", got, before, VOCAB);
      }
    }
    for (int q = 0; q < 3; q++) free(want[q]);
    nn_session_destroy(session);
    served_close(&s);
  }
}

/* Steps of the same sequences in a row, which a GPU records and replays, and by turns with steps of
 * others, which it does not: the same bits, and those that idle keep their logits. */
static void check_idle(int moe) {
  enum { BATCH = 3, STEPS = 6 };
  static const bool sets[2][BATCH] = {{true, false, true}, {false, true, false}};
  static float logits[2][2][STEPS][BATCH * VOCAB];
  int32_t chosen[2][BATCH];
  int64_t counts[2][5] = {{0}};
  nn_model_config_t config = served_config(moe);
  served_t s;
  served_open(&s, &config, 2);
  for (int turns = 0; turns < 2; turns++) {
    nn_session_t *session = served_session(s.model, BATCH, 0, 0);
    for (int64_t b = 0; b < BATCH; b++)
      CHECK(nn_session_prefill(session, b, s.tokens + b, b + 2, NULL));
    for (int i = 0; i < 2 * STEPS; i++) {
      int set = turns ? i % 2 : i / STEPS, step = turns ? i / 2 : i % STEPS;
      int32_t next[BATCH];
      for (int b = 0; b < BATCH; b++) next[b] = sets[set][b] ? s.tokens[b + step] : -1;
      CHECK(nn_session_decode(session, next, logits[turns][set][step]));
    }
    for (int64_t b = 0; b < BATCH; b++)
      CHECK(nn_session_sample(session, b, NULL, &chosen[turns][b]));
    nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
    if (config.experts)
      CHECK(nn_session_expert_stats(session, config.layers - 1, counts[turns], NULL, &stats));
    nn_session_destroy(session);
  }
  assert_memory_equal(logits[0], logits[1], sizeof logits[0]);
  assert_memory_equal(chosen[0], chosen[1], sizeof chosen[0]);
  assert_memory_equal(counts[0], counts[1], sizeof counts[0]);
  served_close(&s);
}

static void test_idle_sequences(void **state) {
  (void)state;
  for (int moe = 0; moe < 2; moe++) check_idle(moe);
}

static void test_truncate_and_go_on(void **state) {
  (void)state;
  nn_model_config_t config = served_config(0);
  served_t s;
  served_open(&s, &config, 2);
  nn_session_t *session = served_session(s.model, 2, 0, 0);
  float logits[VOCAB];
  int32_t token;
  CHECK(nn_session_prefill(session, 1, s.tokens, 9, NULL));
  /* a wrong turn, taken back */
  CHECK(nn_session_prefill(session, 1, (const int32_t[]){1, 1, 1, 1}, 4, NULL));
  CHECK(nn_session_truncate(session, 1, 9));
  assert_int_equal(nn_session_length(session, 1), 9);
  CHECK_STATUS(NN_ERR_STATE, nn_session_sample(session, 1, NULL, &token));
  CHECK(nn_session_decode(session, (const int32_t[]){-1, s.tokens[9]}, NULL));
  CHECK(nn_session_sample(session, 1, NULL, &token));
  CHECK(nn_session_prefill(session, 1, s.tokens + 10, 3, logits));
  served_near(&s, "after truncation", logits, 12);
  /* truncation to the present length takes nothing back */
  CHECK(nn_session_truncate(session, 1, 13));
  CHECK(nn_session_sample(session, 1, NULL, &token));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_truncate(session, 1, 14));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_truncate(session, 1, -1));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_truncate(session, 2, 0));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_truncate(NULL, 0, 0));
  assert_int_equal(nn_session_length(session, 1), 13);
  assert_int_equal(nn_session_length(session, 0), 0);
  nn_session_destroy(session);
  served_close(&s);
}

/* ---- limits and arguments ---- */

static void test_limits(void **state) {
  (void)state;
  nn_model_config_t config = served_config(0);
  served_t s;
  served_open(&s, &config, 1);
  nn_session_t *session = served_session(s.model, 2, 10, 0);
  float logits[2 * VOCAB] = {42};
  CHECK_STATUS(NN_ERR_CAPACITY, nn_session_prefill(session, 0, s.tokens, 11, logits));
  assert_int_equal(nn_session_length(session, 0), 0);
  CHECK(nn_session_prefill(session, 0, s.tokens, 10, logits));
  logits[0] = 42;
  CHECK_STATUS(NN_ERR_CAPACITY, nn_session_prefill(session, 0, s.tokens, 1, logits));
  CHECK_STATUS(NN_ERR_CAPACITY, nn_session_decode(session, (const int32_t[]){1, 2}, logits));
  /* refused as a whole: the other sequence did not move either */
  assert_int_equal(nn_session_length(session, 0), 10);
  assert_int_equal(nn_session_length(session, 1), 0);
  assert_true(logits[0] == 42);
  CHECK(nn_session_decode(session, (const int32_t[]){-1, 2}, logits));
  assert_int_equal(nn_session_length(session, 1), 1);
  nn_session_destroy(session);
  served_close(&s);
}

static void test_arguments_of_steps(void **state) {
  (void)state;
  nn_model_config_t config = served_config(0);
  served_t s;
  served_open(&s, &config, 1);
  nn_session_t *session = served_session(s.model, 2, 10, 0);
  CHECK(nn_session_prefill(session, 1, s.tokens, 1, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_decode(session, (const int32_t[]){-1, VOCAB}, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_prefill(session, 1, (const int32_t[]){1, -1}, 2, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_prefill(session, 1, (const int32_t[]){VOCAB}, 1, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_prefill(session, 1, s.tokens, 0, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_prefill(session, 1, s.tokens, -1, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_prefill(session, 2, s.tokens, 1, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_prefill(session, -1, s.tokens, 1, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_prefill(session, 1, NULL, 1, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_prefill(NULL, 0, s.tokens, 1, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_decode(session, NULL, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_decode(NULL, s.tokens, NULL));
  assert_int_equal(nn_session_length(session, 1), 1);
  assert_int_equal(nn_session_length(session, 2), 0);
  assert_int_equal(nn_session_length(session, -1), 0);
  assert_int_equal(nn_session_length(NULL, 0), 0);
  nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_expert_stats(session, 2, NULL, NULL, &stats));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_expert_stats(session, -1, NULL, NULL, &stats));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_expert_stats(NULL, 0, NULL, NULL, &stats));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_expert_stats(session, 0, NULL, NULL, NULL));
  nn_session_destroy(NULL);
  nn_session_destroy(session);
  served_close(&s);
}

static void test_arguments_of_sessions(void **state) {
  (void)state;
  nn_model_config_t config = served_config(0);
  served_t s;
  served_open(&s, &config, 1);
  nn_session_t *none = NULL;
  for (int i = 0; i < 6; i++) {
    nn_session_options_t options = STRUCT(nn_session_options_t);
    if (i == 0) options.batch = -1;
    if (i == 1) options.max_len = -1;
    if (i == 2) options.max_len = CONTEXT + 1; /* alpha is 1 */
    if (i == 3) options.prefill_chunk = -1;
    if (i == 4) options.batch = INT64_MAX;
    if (i == 5) options.prefill_chunk = INT64_MIN;
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_create(s.model, &options, &none));
  }
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_session_create(s.model, &(nn_session_options_t){0}, &none));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_create(NULL, NULL, &none));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_create(s.model, NULL, NULL));
  assert_null(none);
  served_close(&s);

  config = served_config(1);
  served_open(&s, &config, 1);
  nn_session_options_t options = STRUCT(nn_session_options_t);
  options.max_len = CONTEXT + 1; /* there are no learned positions past the context */
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_create(s.model, &options, &none));
  nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
  nn_session_t *session = served_session(s.model, 1, 0, 0);
  CHECK_STATUS(NN_ERR_UNSUPPORTED, nn_session_expert_stats(session, 0, NULL, NULL, &stats));
  nn_session_destroy(session);
  served_close(&s);
}

/* ---- what a session sees ---- */

/* A capacity factor is for training batches: serving drops nothing. */
static void test_serving_drops_nothing(void **state) {
  (void)state;
  nn_model_config_t config = served_config(0);
  served_t s;
  served_open(&s, &config, 2);
  config.capacity_factor = 0.1f;
  nn_model_t *strict = fixture_model(s.device, &config, 1);
  nn_session_t *session = served_session(strict, 1, 0, 0);
  float logits[VOCAB];
  CHECK(nn_session_prefill(session, 0, s.tokens, CONTEXT, logits));
  served_near(&s, "without capacity", logits, CONTEXT - 1);
  nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
  CHECK(nn_session_expert_stats(session, 0, NULL, NULL, &stats));
  assert_int_equal(stats.dropped, 0);
  assert_int_equal(stats.tokens, CONTEXT);
  nn_session_destroy(session);
  nn_model_destroy(strict);
  served_close(&s);
}

/* Sessions share a model, keep their own sequences and counters, and see what an optimizer step
 * did. */
static void test_sessions_share_a_model(void **state) {
  (void)state;
  nn_model_config_t config = served_config(0);
  served_t s;
  served_open(&s, &config, 2);
  nn_session_t *a = served_session(s.model, 1, 0, 0), *b = served_session(s.model, 1, 12, 3);
  float logits[VOCAB], after[VOCAB];
  CHECK(nn_session_prefill(a, 0, s.tokens, 6, NULL));
  CHECK(nn_session_prefill(b, 0, s.tokens + 1, 2, NULL));
  CHECK(nn_session_decode(a, s.tokens + 6, logits));
  served_near(&s, "beside another session", logits, 6);
  nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
  CHECK(nn_session_expert_stats(b, 1, NULL, NULL, &stats));
  assert_int_equal(stats.tokens, 2);

  nn_optim_t *optim;
  CHECK(nn_optim_create(s.model, NULL, &optim));
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_backward(s.model, s.tokens, s.tokens, 1, CONTEXT, 1, &loss));
  CHECK(nn_optim_step(optim, 1e-2f, NULL));
  CHECK(nn_session_truncate(b, 0, 0));
  CHECK(nn_session_prefill(b, 0, s.tokens, 7, after));
  assert_memory_not_equal(logits, after, sizeof logits);
  float *trained = served_logits(s.model, s.tokens, 7);
  fixture_near("after a step", after, trained + 6 * VOCAB, VOCAB, s.tolerance);
  free(trained);
  nn_optim_destroy(optim);
  /* a session keeps its model */
  nn_model_destroy(s.model);
  CHECK(nn_session_prefill(a, 0, s.tokens + 7, 1, NULL));
  s.model = NULL;
  nn_session_destroy(a);
  nn_session_destroy(b);
  served_close(&s);
}

/* Serving needs no preparation for training. */
static void test_session_without_prepare(void **state) {
  (void)state;
  nn_model_config_t config = served_config(0);
  served_t s;
  served_open(&s, &config, 2);
  CHECK(nn_model_prepare(s.model, NULL));
  nn_session_t *session = served_session(s.model, 1, 0, 0);
  float logits[VOCAB];
  CHECK(nn_session_prefill(session, 0, s.tokens, 4, logits));
  served_near(&s, "unprepared", logits, 3);
  nn_session_destroy(session);
  served_close(&s);
}

/* ---- stretched positions ---- */

/* A model whose RoPE base is what base * alpha^(d / (d - 2)) gives, 10000 * 4^(6 / 4) = 80000, with
 * a context that long, is the independent computation of a stretched session. */
static void test_ntk_stretch(void **state) {
  (void)state;
  enum { LONG = 4 * CONTEXT };
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe(), wide = fixture_moe();
  config.rope_ntk_alpha = 4;
  wide.rope_theta = 80000;
  wide.context = LONG;
  nn_model_t *model = fixture_model(device, &config, 1), *other = fixture_model(device, &wide, 1);
  int32_t tokens[LONG];
  fixture_tokens(tokens, LONG, VOCAB, 3);
  float *want = served_logits(other, tokens, LONG), logits[VOCAB];
  double tolerance = SERVED_TOLERANCE * fixture_largest(want, LONG * VOCAB);
  nn_session_t *session = served_session(model, 1, LONG, 7);
  CHECK(nn_session_prefill(session, 0, tokens, LONG - 2, logits));
  fixture_near("stretched", logits, want + (LONG - 3) * VOCAB, VOCAB, tolerance);
  CHECK(nn_session_decode(session, tokens + LONG - 2, logits));
  CHECK(nn_session_decode(session, tokens + LONG - 1, logits));
  fixture_near("stretched", logits, want + (LONG - 1) * VOCAB, VOCAB, tolerance);
  CHECK_STATUS(NN_ERR_CAPACITY, nn_session_decode(session, tokens, logits));
  nn_session_destroy(session);
  free(want);
  /* One token past the context is stretched by the whole alpha; the context alone not at all. */
  want = served_logits(other, tokens, CONTEXT + 1);
  session = served_session(model, 1, CONTEXT + 1, 0);
  CHECK(nn_session_prefill(session, 0, tokens, CONTEXT + 1, logits));
  fixture_near("just stretched", logits, want + CONTEXT * VOCAB, VOCAB, tolerance);
  nn_session_destroy(session);
  free(want);
  want = served_logits(model, tokens, CONTEXT);
  session = served_session(model, 1, CONTEXT, 0);
  CHECK(nn_session_prefill(session, 0, tokens, CONTEXT, logits));
  fixture_near("not stretched", logits, want + (CONTEXT - 1) * VOCAB, VOCAB, tolerance);
  nn_session_destroy(session);
  free(want);
  nn_model_destroy(model);
  nn_model_destroy(other);
  nn_device_destroy(device);
}

/* ---- steady state, threads ---- */

static void test_decode_allocates_nothing(void **state) {
  (void)state;
  for (int family = 0; family < 2; family++) {
    nn_model_config_t config = served_config(family);
    served_t s;
    served_open(&s, &config, 2);
    nn_session_t *session = served_session(s.model, 2, 0, 4);
    nn_memory_t before = fixture_device_memory(s.device);
    float logits[2 * VOCAB];
    int32_t token;
    nn_sample_options_t sampling = STRUCT(nn_sample_options_t);
    sampling.temperature = 1, sampling.top_k = 20, sampling.top_p = 0.9f;
    sampling.repetition_penalty = 1.1f;
    mem_fail_after(0); /* on the host neither: the first allocation would fail */
    nn_status_t prefill = nn_session_prefill(session, 0, s.tokens, 9, logits),
                decode = nn_session_decode(session, s.tokens, logits),
                sample = nn_session_sample(session, 1, &sampling, &token);
    mem_fail_after(-1);
    CHECK_STATUS(NN_OK, prefill);
    CHECK_STATUS(NN_OK, decode);
    CHECK_STATUS(NN_OK, sample);
    nn_memory_t after = fixture_device_memory(s.device);
    assert_int_equal(before.allocations, after.allocations);
    assert_int_equal(before.current_bytes, after.current_bytes);
    nn_session_destroy(session);
    served_close(&s);
  }
}

static void test_same_bits_on_any_threads(void **state) {
  (void)state;
  for (int i = 0; i < 2 * FIXTURE_PATHS; i++) {
    float first[CONTEXT][VOCAB];
    for (int32_t threads = 1; threads <= 3; threads++) {
      nn_device_t *device = fixture_device_of_path(threads, fixture_path[i / 2]);
      if (!device) continue;
      nn_model_config_t config = served_config(i % 2);
      config.hidden = 72, config.ffn = 100, config.heads = 6, config.kv_heads = i % 2 ? 6 : 2;
      config.head_dim = 12;
      nn_model_t *model = fixture_model(device, &config, 1);
      int32_t tokens[CONTEXT];
      fixture_tokens(tokens, CONTEXT, VOCAB, 3);
      nn_session_t *session = served_session(model, 1, 0, 0);
      float logits[VOCAB];
      CHECK(nn_session_prefill(session, 0, tokens, 15, logits));
      for (int64_t t = 15; t < CONTEXT; t++) {
        if (threads == 1)
          memcpy(first[t], logits, sizeof logits);
        else
          fixture_same("logits", logits, first[t], VOCAB);
        CHECK(nn_session_decode(session, tokens + t, logits));
      }
      nn_session_destroy(session);
      nn_model_destroy(model);
      nn_device_destroy(device);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_decode_is_forward),
      cmocka_unit_test(test_prefill_in_chunks),
      cmocka_unit_test(test_ragged_batch),
      cmocka_unit_test(test_idle_sequences),
      cmocka_unit_test(test_truncate_and_go_on),
      cmocka_unit_test(test_limits),
      cmocka_unit_test(test_arguments_of_steps),
      cmocka_unit_test(test_arguments_of_sessions),
      cmocka_unit_test(test_serving_drops_nothing),
      cmocka_unit_test(test_sessions_share_a_model),
      cmocka_unit_test(test_session_without_prepare),
      cmocka_unit_test(test_ntk_stretch),
      cmocka_unit_test(test_decode_allocates_nothing),
      cmocka_unit_test(test_same_bits_on_any_threads),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
