/* Sessions of models with bf16 weights: what a forward pass gives, within what bf16 may be off. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "served.h"

static void test_bf16_model(void **state) {
  (void)state;
  for (int i = 0; i < 2 * FIXTURE_PATHS; i++) {
    nn_device_t *device = fixture_device_of_path(2, fixture_path[i / 2]);
    if (!device) continue;
    nn_model_config_t config = served_config(i % 2);
    config.top_k = config.experts; /* rounding may have a token choose others, but not of all */
    nn_model_t *model = fixture_model(device, &config, 1), *half;
    char *folder = fixture_folder();
    CHECK(nn_model_save(model, folder, NULL));
    CHECK(nn_model_load(device, folder, NN_BF16, NULL, &half));
    fixture_folder_remove(folder);
    nn_tensor_t *tensor;
    CHECK(nn_model_parameter(half, nn_model_parameter_name(half, 0), &tensor));
    nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
    CHECK(nn_tensor_info(tensor, &info));
    assert_int_equal(info.dtype, NN_BF16);
    nn_tensor_destroy(tensor);

    int32_t tokens[CONTEXT];
    fixture_tokens(tokens, CONTEXT, VOCAB, 3);
    float *full = served_logits(model, tokens, CONTEXT), logits[VOCAB];
    double largest = fixture_largest(full, CONTEXT * VOCAB);
    nn_session_t *session = served_session(half, 1, 0, 5);
    CHECK(nn_session_prefill(session, 0, tokens, 10, NULL));
    for (int64_t t = 10; t < CONTEXT; t++) {
      CHECK(nn_session_decode(session, tokens + t, logits));
      /* A weight, and each activation on the way, is off by up to 2^-8 of itself, and a logit
       * passes through a dozen products: a few per cent at most. */
      fixture_near("bf16 against fp32", logits, full + t * VOCAB, VOCAB, 0.03 * largest);
    }
    free(full);
    nn_session_destroy(session);
    nn_model_destroy(half);
    nn_model_destroy(model);
    nn_device_destroy(device);
  }
}

/* The largest distance of a bf16 session's logits, prompts of some lengths and the tokens behind
 * them, from those of a forward pass of the same model; of the largest logit. */
static double bf16_distance(nn_device_t *device, const nn_model_config_t *config, uint64_t seed) {
  static const int64_t prompts[] = {1, 10, 23};
  nn_model_t *model;
  CHECK(nn_model_create(device, config, NN_BF16, seed, &model));
  int32_t tokens[CONTEXT];
  fixture_tokens(tokens, CONTEXT, VOCAB, (uint32_t)seed);
  float *full = served_logits(model, tokens, CONTEXT), logits[VOCAB];
  double distance = 0;
  for (int i = 0; i < 3; i++) {
    nn_session_t *session = served_session(model, 1, 0, 7);
    CHECK(nn_session_prefill(session, 0, tokens, prompts[i], logits));
    for (int64_t t = prompts[i] - 1; t < CONTEXT; t++) {
      if (t >= prompts[i]) CHECK(nn_session_decode(session, tokens + t, logits));
      for (int v = 0; v < VOCAB; v++)
        distance = fmax(distance, fabs((double)logits[v] - (double)full[t * VOCAB + v]));
    }
    nn_session_destroy(session);
  }
  double largest = fixture_largest(full, CONTEXT * VOCAB);
  free(full);
  nn_model_destroy(model);
  return distance / largest;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Half of the models have wide rows, which take other products. */
static nn_model_config_t bf16_config(int family, bool wide) {
  nn_model_config_t config = served_config(family);
  config.top_k = config.experts; /* rounding may have a token choose others, but not of all */
  if (wide) {
    config.hidden = 128, config.ffn = 192, config.heads = 8;
    if (config.head_dim) config.head_dim = 16;
  }
  return config;
}

/* A session rounds the numbers to bf16 that a forward pass rounds. On the reference path their sums
 * have the same order, so logits have the same bits. Elsewhere sums differ as in fp32, and a
 * rounding at times goes the other way: where a sum's error, some 2^-24 of it, is met by the
 * middle of two bf16 numbers, which lie 2^-7 of it apart at most, so once in 10^5 numbers or more.
 * Narrow models have 12,500: the median of eight has no such number and is as near as fp32. Wide
 * ones have ten times as many; one number that is off by 2^-7 of itself moves no logit by more than
 * 2^-7 of the largest, and another may come upon it. On a GPU kernels round elsewhere:
 * tests/cuda/test_against_cpu.c. */
static void test_bf16_session_is_forward(void **state) {
  (void)state;
  enum { MODELS = 8 };
  if (getenv("MOENN_TEST_DEVICE")) skip();
  for (int path = 0; path < FIXTURE_PATHS; path++) {
    nn_device_t *device = fixture_device_of_path(2, fixture_path[path]);
    if (!device) continue;
    bool reference = fixture_path[path] == NN_CPU_REFERENCE;
    double distance[2][MODELS];
    for (int i = 0; i < 2 * MODELS; i++) {
      bool wide = i >= MODELS;
      nn_model_config_t config = bf16_config(i % 2, wide);
      double found = distance[wide][i % MODELS] = bf16_distance(device, &config, 1 + (uint64_t)i);
      if (!(found <= (reference ? 0 : 0x1p-6)))
        fail_msg("%s, model %d: %g of the largest logit", fixture_path_name(fixture_path[path]), i,
                 found);
    }
    for (int wide = 0; wide < 2; wide++) {
      qsort(distance[wide], MODELS, sizeof(double), ascending);
      print_message("%s, %s: median %.2g, most %.2g\n", fixture_path_name(fixture_path[path]),
                    wide ? "wide" : "narrow", distance[wide][MODELS / 2],
                    distance[wide][MODELS - 1]);
    }
    assert_true(distance[0][MODELS / 2] <= SERVED_TOLERANCE);
    nn_device_destroy(device);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_bf16_model),
      cmocka_unit_test(test_bf16_session_is_forward),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
