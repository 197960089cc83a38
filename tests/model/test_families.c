/* What holds for every family's models: the byte plan is what is taken, recomputation and threads
 * change no bit, paths agree, and what is decoded is what a forward pass gives. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "fixture.h"

enum { BATCH = 2, SEQ = 13, TOKENS = BATCH * SEQ, VOCAB = 67 };

/* The same sums in other groupings: 44 u of the largest logit, as in test_golden.c. */
#define TOLERANCE (44 * 0x1p-24)

typedef struct trained {
  nn_model_t *model;
  float *logits, *gradients; /* [TOKENS, VOCAB]; all parameters' */
  int64_t count;
  nn_loss_t loss;
} trained_t;

/* Norms that are not 1, biases that are not 0. */
static void move_parameters(nn_model_t *model) {
  int64_t before = 0;
  for (int64_t p = 0; p < nn_model_parameter_count(model); p++) {
    nn_tensor_t *tensor;
    CHECK(nn_model_parameter(model, nn_model_parameter_name(model, p), &tensor));
    nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
    CHECK(nn_tensor_info(tensor, &info));
    size_t bytes = (size_t)info.elements * nn_dtype_bytes(info.dtype);
    void *bits = fixture_memory(bytes);
    float *values = fixture_memory((size_t)info.elements * sizeof *values);
    CHECK(nn_tensor_copy_out(tensor, bits, bytes));
    dtype_convert(values, NN_F32, bits, info.dtype, info.elements);
    for (int64_t i = 0; i < info.elements; i++)
      values[i] += 0.05f * (float)sin(0.7 * (double)(before + i));
    dtype_convert(bits, info.dtype, values, NN_F32, info.elements);
    CHECK(nn_tensor_copy_in(tensor, bits, bytes));
    before += info.elements;
    free(values);
    free(bits);
    nn_tensor_destroy(tensor);
  }
}

/* A model of a dtype, and one backward pass. */
static trained_t trained_open(nn_device_t *device, const nn_model_config_t *config, int32_t dtype,
                              int32_t recompute) {
  trained_t t = {.loss = STRUCT(nn_loss_t)};
  CHECK(nn_model_create(device, config, dtype, 11, &t.model));
  move_parameters(t.model);
  int32_t tokens[TOKENS], targets[TOKENS];
  fixture_tokens(tokens, TOKENS, VOCAB, 5);
  fixture_targets(targets, TOKENS, VOCAB, 6);
  fixture_prepare(t.model, BATCH, SEQ, recompute);
  CHECK(nn_model_backward(t.model, tokens, targets, BATCH, SEQ, 1, &t.loss));
  t.gradients = fixture_gradients(t.model, &t.count);
  t.logits = fixture_memory(TOKENS * VOCAB * sizeof(float));
  CHECK(nn_model_forward(t.model, tokens, BATCH, SEQ, t.logits));
  return t;
}

static void trained_close(trained_t *t) {
  free(t->logits), free(t->gradients);
  nn_model_destroy(t->model);
}

static void check_same(const trained_t *a, const trained_t *b) {
  fixture_same("logits", a->logits, b->logits, TOKENS * VOCAB);
  fixture_same("gradients", a->gradients, b->gradients, a->count);
  assert_true(a->loss.loss == b->loss.loss && a->loss.aux_loss == b->loss.aux_loss);
}

static const int32_t dtypes[] = {NN_F32, NN_BF16};

static void test_recomputation_changes_no_bit(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  for (int32_t i = 0; i < 2 * FIXTURE_FAMILIES; i++) {
    nn_model_config_t config = fixture_family(i / 2);
    trained_t kept = trained_open(device, &config, dtypes[i % 2], NN_RECOMPUTE_NONE);
    static const int32_t ways[] = {NN_RECOMPUTE_BLOCK, NN_RECOMPUTE_FFN};
    for (int w = 0; w < 2; w++) {
      trained_t again = trained_open(device, &config, dtypes[i % 2], ways[w]);
      check_same(&kept, &again);
      trained_close(&again);
    }
    trained_close(&kept);
  }
  nn_device_destroy(device);
}

static void test_threads_change_no_bit(void **state) {
  (void)state;
  for (int p = 0; p < FIXTURE_PATHS; p++)
    for (int32_t i = 0; i < 2 * FIXTURE_FAMILIES; i++) {
      nn_model_config_t config = fixture_family(i / 2);
      nn_device_t *one = fixture_device_of_path(1, fixture_path[p]);
      nn_device_t *three = fixture_device_of_path(3, fixture_path[p]);
      if (one && three) {
        trained_t a = trained_open(one, &config, dtypes[i % 2], NN_RECOMPUTE_NONE);
        trained_t b = trained_open(three, &config, dtypes[i % 2], NN_RECOMPUTE_NONE);
        check_same(&a, &b);
        trained_close(&a), trained_close(&b);
      }
      nn_device_destroy(one), nn_device_destroy(three);
    }
}

/* Gradients pass through twice as many layers as logits, some of them with factors above 1: four
 * times their tolerance, of the largest. */
static void test_paths_agree(void **state) {
  (void)state;
  for (int32_t i = 0; i < FIXTURE_FAMILIES; i++) {
    nn_model_config_t config = fixture_family(i);
    nn_device_t *plain = fixture_device_of_path(1, fixture_path[0]);
    trained_t a = trained_open(plain, &config, NN_F32, NN_RECOMPUTE_NONE);
    double logits = TOLERANCE * fixture_largest(a.logits, TOKENS * VOCAB);
    double gradients = 4 * TOLERANCE * fixture_largest(a.gradients, a.count);
    for (int p = 1; p < FIXTURE_PATHS; p++) {
      nn_device_t *device = fixture_device_of_path(1, fixture_path[p]);
      if (!device) continue;
      trained_t b = trained_open(device, &config, NN_F32, NN_RECOMPUTE_NONE);
      fixture_near("logits", b.logits, a.logits, TOKENS * VOCAB, logits);
      fixture_near("gradients", b.gradients, a.gradients, a.count, gradients);
      trained_close(&b);
      nn_device_destroy(device);
    }
    trained_close(&a);
    nn_device_destroy(plain);
  }
}

static void test_a_clamp_that_nothing_reaches_changes_no_bit(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_family(4);
  assert_int_equal(config.family, NN_FAMILY_OLMOE);
  trained_t near = trained_open(device, &config, NN_F32, NN_RECOMPUTE_NONE);
  config.qkv_clip = 0;
  trained_t without = trained_open(device, &config, NN_F32, NN_RECOMPUTE_NONE);
  config.qkv_clip = 1e6f;
  trained_t far = trained_open(device, &config, NN_F32, NN_RECOMPUTE_NONE);
  check_same(&without, &far);
  assert_memory_not_equal(without.logits, near.logits, TOKENS * VOCAB * sizeof(float));
  trained_close(&near), trained_close(&without), trained_close(&far);
  nn_device_destroy(device);
}

/* ---- serving ---- */

static void check_decode(nn_device_t *device, const nn_model_config_t *config) {
  nn_model_t *model = fixture_model(device, config, 3);
  int32_t tokens[24];
  float all[24 * VOCAB], logits[VOCAB];
  fixture_tokens(tokens, 24, VOCAB, 8);
  fixture_prepare(model, 1, 24, NN_RECOMPUTE_NONE);
  CHECK(nn_model_forward(model, tokens, 1, 24, all));
  double tolerance = TOLERANCE * fixture_largest(all, 24 * VOCAB);
  static const int64_t prompts[] = {1, 5, 16};
  for (int i = 0; i < 3; i++) {
    nn_session_options_t options = STRUCT(nn_session_options_t);
    options.prefill_chunk = 3;
    nn_session_t *session;
    CHECK(nn_session_create(model, &options, &session));
    CHECK(nn_session_prefill(session, 0, tokens, prompts[i], logits));
    fixture_near("prefill", logits, all + (prompts[i] - 1) * VOCAB, VOCAB, tolerance);
    for (int64_t t = prompts[i]; t < 24; t++) {
      CHECK(nn_session_decode(session, &tokens[t], logits));
      fixture_near("decode", logits, all + t * VOCAB, VOCAB, tolerance);
    }
    for (int64_t layer = 0; config->experts && layer < config->layers; layer++) {
      int64_t forward[8], served[8];
      nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
      CHECK(nn_model_expert_stats(model, layer, forward, NULL, &stats));
      CHECK(nn_session_expert_stats(session, layer, served, NULL, &stats));
      assert_memory_equal(forward, served, (size_t)config->experts * sizeof *served);
    }
    nn_session_destroy(session);
  }
  nn_model_destroy(model);
}

static void test_decode_is_forward(void **state) {
  (void)state;
  for (int p = 0; p < FIXTURE_PATHS; p++) {
    nn_device_t *device = fixture_device_of_path(2, fixture_path[p]);
    for (int32_t i = 0; device && i < FIXTURE_FAMILIES; i++) {
      nn_model_config_t config = fixture_family(i);
      check_decode(device, &config);
    }
    nn_device_destroy(device);
  }
}

/* Logits behind the first `length` tokens, from a session for as many. */
static void check_length(nn_model_t *model, const int32_t *tokens, int64_t length,
                         const float *forward) {
  nn_session_options_t options = STRUCT(nn_session_options_t);
  options.max_len = length;
  nn_session_t *session;
  float logits[VOCAB];
  CHECK(nn_session_create(model, &options, &session));
  CHECK(nn_session_prefill(session, 0, tokens, length, logits));
  const float *last = forward + (length - 1) * VOCAB;
  fixture_near("prefill", logits, last, VOCAB, TOLERANCE * fixture_largest(last, VOCAB));
  nn_session_destroy(session);
}

/* LongRoPE: a batch is rotated by its own length, also where the one before had other factors. */
static void test_long_rope_goes_by_the_length(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_family(12);
  assert_int_equal(config.rope_scaling, NN_ROPE_LONG);
  nn_model_t *model = fixture_model(device, &config, 3);
  int32_t tokens[24];
  float forward[24 * VOCAB], first[16 * VOCAB];
  fixture_tokens(tokens, 24, VOCAB, 8);
  fixture_prepare(model, 1, 24, NN_RECOMPUTE_NONE);
  static const int64_t lengths[] = {16, 17, 24, 5, 16};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    CHECK(nn_model_forward(model, tokens, 1, lengths[i], forward));
    check_length(model, tokens, lengths[i], forward);
    if (!i) memcpy(first, forward, sizeof first);
    if (lengths[i] > 16) assert_memory_not_equal(first, forward, sizeof first);
  }
  assert_memory_equal(first, forward, sizeof first);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* ---- bytes ---- */

static void check_plans(nn_device_t *device, const nn_model_config_t *config, int32_t recompute) {
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.batch = 3, options.seq_len = 11, options.recompute = recompute;
  nn_plan_t plan = STRUCT(nn_plan_t);
  CHECK(nn_plan_training(device, config, NN_F32, &options, &plan));
  nn_model_t *model = fixture_model(device, config, 1);
  CHECK(nn_model_prepare(model, &options));
  nn_optim_t *optim;
  CHECK(nn_optim_create(model, NULL, &optim));
  assert_int_equal(fixture_device_memory(device).current_bytes, plan.total_bytes);
  nn_optim_destroy(optim);
  CHECK(nn_model_prepare(model, NULL));
  nn_session_t *session;
  CHECK(nn_session_create(model, NULL, &session));
  CHECK(nn_plan_inference(device, config, NN_F32, NULL, &plan));
  assert_int_equal(fixture_device_memory(device).current_bytes, plan.total_bytes);
  nn_session_destroy(session);
  nn_model_destroy(model);
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
}

static void test_plans_are_what_is_taken(void **state) {
  (void)state;
  for (int p = 0; p < FIXTURE_PATHS; p++) {
    nn_device_t *device = fixture_device_of_path(3, fixture_path[p]);
    for (int32_t i = 0; device && i < FIXTURE_FAMILIES; i++) {
      nn_model_config_t config = fixture_family(i);
      check_plans(device, &config, NN_RECOMPUTE_NONE);
      check_plans(device, &config, NN_RECOMPUTE_BLOCK);
      check_plans(device, &config, NN_RECOMPUTE_FFN);
    }
    nn_device_destroy(device);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_recomputation_changes_no_bit),
      cmocka_unit_test(test_threads_change_no_bit),
      cmocka_unit_test(test_paths_agree),
      cmocka_unit_test(test_a_clamp_that_nothing_reaches_changes_no_bit),
      cmocka_unit_test(test_decode_is_forward),
      cmocka_unit_test(test_long_rope_goes_by_the_length),
      cmocka_unit_test(test_plans_are_what_is_taken),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
