/* Training steps of many batches on a GPU: nobody waits inside them, however small or large the
 * batches are, and their gradients are those of batches whose losses were waited for. */
#include "fixture.h"

static nn_model_t *model_of(nn_device_t *device, int64_t batch, int64_t seq) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("small", &config));
  nn_model_t *model = fixture_model(device, &config, 1);
  fixture_prepare(model, batch, seq, NN_RECOMPUTE_NONE);
  return model;
}

/* The calls of a step return before half of its time, the update, which waits, apart: the GPU works
 * for milliseconds, a call takes a tenth of one. The best of some rounds counts, for the host may
 * be busy. */
static void test_nobody_waits(void **state) {
  (void)state;
  enum { BATCH = 16, SEQ = 256, TOKENS = BATCH * SEQ, MICRO = 5, ROUNDS = 10 };
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  nn_model_t *model = model_of(device, BATCH, SEQ);
  nn_optim_t *optim;
  CHECK(nn_optim_create(model, NULL, &optim));
  int32_t tokens[TOKENS];
  fixture_tokens(tokens, TOKENS, 200, 1);
  double least = 1;
  for (int round = 0; round < ROUNDS; round++) {
    double begin = fixture_seconds();
    CHECK(nn_model_zero_grad(model));
    for (int i = 0; i < MICRO; i++)
      CHECK(nn_model_backward(model, tokens, tokens, BATCH, SEQ, 1.0f / MICRO, NULL));
    double called = fixture_seconds() - begin;
    CHECK(nn_optim_step(optim, 1e-4f, NULL));
    double share = called / (fixture_seconds() - begin);
    if (share < least) least = share;
  }
  print_message("the calls took %.1f %% of a step\n", 100 * least);
  assert_true(least < 0.5);
  nn_optim_destroy(optim);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* Gradients of `count` batches, each with other tokens in the same array. */
static float *gradients_of(nn_model_t *model, int count, int64_t batch, int64_t seq, int looks,
                           int64_t *elements) {
  int32_t *tokens = fixture_memory((size_t)(batch * seq) * sizeof *tokens);
  CHECK(nn_model_zero_grad(model));
  for (int i = 0; i < count; i++) {
    nn_loss_t loss = STRUCT(nn_loss_t);
    fixture_tokens(tokens, batch * seq, 200, (uint64_t)i);
    CHECK(nn_model_backward(model, tokens, tokens, batch, seq, 1.0f / (float)count,
                            looks ? &loss : NULL));
  }
  free(tokens);
  return fixture_gradients(model, elements);
}

/* So many small batches that what they are copied through is used up, and large ones whose arrays
 * are written again while the GPU has yet to read them. */
static void test_batches_ahead(void **state) {
  (void)state;
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  static const struct {
    int count;
    int64_t batch, seq;
  } cases[] = {{200, 1, 16}, {30, 16, 256}};
  for (int i = 0; i < 2; i++) {
    nn_model_t *model = model_of(device, cases[i].batch, cases[i].seq);
    int64_t count;
    float *want = gradients_of(model, cases[i].count, cases[i].batch, cases[i].seq, 1, &count);
    float *got = gradients_of(model, cases[i].count, cases[i].batch, cases[i].seq, 0, &count);
    fixture_same("gradients", got, want, count);
    free(want), free(got);
    nn_model_destroy(model);
  }
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_nobody_waits),
      cmocka_unit_test(test_batches_ahead),
  };
  return cmocka_run_group_tests_name("steps on a GPU", tests, NULL, NULL);
}
