/* Gradients over many batches: the same bits whether or not losses are looked at, and what a batch
 * without a look leaves to others: waiting, failing. */
#include <math.h>
#include <string.h>

#include "base/device.h"
#include "fixture.h"

enum { BATCH = 3, SEQ = 24, TOKENS = BATCH * SEQ, MICRO = 3, ROUNDS = 4 };

static nn_model_config_t config_of(int kind) { return kind ? fixture_gpt2() : fixture_moe(); }

static nn_model_t *model_of(nn_device_t *device, int kind) {
  nn_model_config_t config = config_of(kind);
  nn_model_t *model = fixture_model(device, &config, 1);
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  return model;
}

/* Gradients of some batches; their arrays are written over as soon as a call returns. */
static void run_batches(nn_model_t *model, uint64_t seed, int looks) {
  int32_t tokens[TOKENS], targets[TOKENS];
  for (uint64_t i = 0; i < MICRO; i++) {
    nn_loss_t loss = STRUCT(nn_loss_t);
    fixture_tokens(tokens, TOKENS, 67, seed + i);
    fixture_targets(targets, TOKENS, 67, seed + i + 100);
    CHECK(nn_model_backward(model, tokens, targets, BATCH, SEQ, 1.0f / MICRO,
                            looks ? &loss : NULL));
    if (looks) assert_true(loss.loss > 0 && loss.targets > 0);
    memset(tokens, 0xff, sizeof tokens);
    memset(targets, 0xff, sizeof targets);
  }
}

/* Parameters, moments and norms of some steps. */
static void check_looks(nn_device_t *device, int kind) {
  nn_model_t *models[2];
  nn_optim_t *optims[2];
  for (int looks = 0; looks < 2; looks++) {
    models[looks] = model_of(device, kind);
    CHECK(nn_optim_create(models[looks], NULL, &optims[looks]));
  }
  for (uint64_t round = 0; round < ROUNDS; round++) {
    double norm[2];
    int64_t count;
    float *gradients[2];
    for (int looks = 0; looks < 2; looks++) {
      CHECK(nn_model_zero_grad(models[looks]));
      run_batches(models[looks], 10 * round, looks);
      gradients[looks] = fixture_gradients(models[looks], &count);
      CHECK(nn_optim_step(optims[looks], 1e-3f, &norm[looks]));
    }
    fixture_same("gradients", gradients[0], gradients[1], count);
    assert_true(norm[0] == norm[1] && norm[0] > 0);
    free(gradients[0]), free(gradients[1]);
  }
  for (int looks = 0; looks < 2; looks++) {
    nn_optim_destroy(optims[looks]);
    nn_model_destroy(models[looks]);
  }
}

static void test_losses_change_nothing(void **state) {
  (void)state;
  for (int p = 0; p < FIXTURE_PATHS; p++) {
    nn_device_t *device = fixture_device_of_path(2, fixture_path[p]);
    for (int kind = 0; device && kind < 2; kind++) check_looks(device, kind);
    nn_device_destroy(device);
  }
}

/* ---- waiting --------------------------------------------------------------------------------- */

static const backend_t *counted_table;
static int copies_out;

static nn_status_t counted_copy_out(backend_device_t *device, void *host, const void *data,
                                    size_t bytes) {
  copies_out++;
  return counted_table->copy_out(device, host, data, bytes);
}

/* Copies out of the device are what waits for it. */
static void test_one_look_a_step(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_t *model = model_of(device, 0);
  nn_optim_t *optim;
  CHECK(nn_optim_create(model, NULL, &optim));
  backend_t counting = *device->backend;
  counted_table = device->backend;
  counting.copy_out = counted_copy_out;
  device->backend = &counting;
  for (uint64_t round = 0; round < ROUNDS; round++) {
    copies_out = 0;
    CHECK(nn_model_zero_grad(model));
    run_batches(model, round, 0);
    assert_int_equal(copies_out, 0);
    CHECK(nn_optim_step(optim, 1e-3f, NULL));
    assert_int_equal(copies_out, 1);
  }
  run_batches(model, 9, 1);
  assert_int_equal(copies_out, 1 + MICRO);
  device->backend = counted_table;
  nn_optim_destroy(optim);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* ---- what is not finite ---------------------------------------------------------------------- */

/* Nobody looks at the loss, so the calls succeed; the update is refused and changes nothing, and
 * the gradients are of use again once they are zeroed. */
static void test_not_finite(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = config_of(0);
  nn_model_t *model = model_of(device, 0);
  nn_optim_t *optim;
  CHECK(nn_optim_create(model, NULL, &optim));
  int64_t count;
  float *good = fixture_parameters(model, &count), *bad = fixture_parameters(model, &count);
  for (int64_t i = 0; i < config.hidden; i++) bad[i] = NAN; /* a row of the embedding */
  fixture_set_parameters(model, bad);
  CHECK(nn_model_zero_grad(model));
  int32_t tokens[TOKENS] = {0};
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK_STATUS(NN_ERR_NONFINITE, nn_model_evaluate(model, tokens, tokens, BATCH, SEQ, &loss));
  CHECK(nn_model_backward(model, tokens, tokens, BATCH, SEQ, 1, NULL));
  CHECK_STATUS(NN_ERR_NONFINITE, nn_optim_step(optim, 1e-3f, NULL));
  assert_int_equal(nn_optim_steps(optim), 0);
  int64_t moment_count;
  float *moments = fixture_moments(model, optim, &moment_count);
  assert_true(fixture_largest(moments, moment_count) == 0);
  float *after = fixture_parameters(model, &count);
  fixture_same("parameters", after, bad, count);

  fixture_set_parameters(model, good);
  CHECK(nn_model_zero_grad(model));
  run_batches(model, 1, 0);
  CHECK(nn_optim_step(optim, 1e-3f, NULL));
  assert_int_equal(nn_optim_steps(optim), 1);
  free(good), free(bad), free(after), free(moments);
  nn_optim_destroy(optim);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_losses_change_nothing),
      cmocka_unit_test(test_one_look_a_step),
      cmocka_unit_test(test_not_finite),
  };
  return cmocka_run_group_tests_name("backward", tests, NULL, NULL);
}
