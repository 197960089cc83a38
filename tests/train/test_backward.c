/* Gradients over many batches: the same bits whether or not losses are looked at, and what a batch
 * without a look leaves to others: waiting, failing; and zeros that are there in name alone until
 * the first batch is assigned, or until somebody reads them. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"
#include "model/training.h"
#include "select.h"

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

/* ---- zeros in name alone --------------------------------------------------------------------- */

/* NaN where zeros need not be: whoever reads it shows it. */
static void poison(const nn_model_t *model) {
  const nn_device_t *device = model->device;
  assert_true(model->training->fresh);
  for (int64_t i = 0; i < model->params.count; i++) {
    const param_t *param = &model->params.items[i];
    if (!param_is_assigned(&model->params, param, model->config.tied_head)) continue;
    int64_t run = param->elements / param->runs;
    float *gradient = (float *)model->training->gradients->data + param->offset;
    float *values = fixture_memory((size_t)run * sizeof *values);
    for (int64_t j = 0; j < run; j++) values[j] = NAN;
    for (int64_t r = 0; r < param->runs; r++)
      CHECK(device->backend->copy_in(device->place, gradient + r * param->run_stride, values,
                                     (size_t)run * sizeof *values));
    free(values);
  }
}

/* A view of some gradient, which makes zeros be written at once while it is there. */
static nn_tensor_t *view_of(const nn_model_t *model) {
  nn_tensor_t *view;
  CHECK(nn_model_gradient(model, nn_model_parameter_name(model, 0), &view));
  assert_false(model->training->fresh);
  return view;
}

/* Equal but for the sign of a zero: -0 that is assigned stays, added to 0 it is 0. */
static void check_equal(const char *what, const float *got, const float *want, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!(got[i] == want[i]))
      fail_msg("%s [%lld]: %.9g and %.9g", what, (long long)i, (double)got[i], (double)want[i]);
}

/* Rounds of zeroing and some batches of other lengths; returns the gradients of the last. */
static float *rounds_of(nn_model_t *model, int lazy, int64_t seq, int64_t *count) {
  float *gradients = NULL;
  for (uint64_t round = 0; round < ROUNDS; round++) {
    nn_tensor_t *view = lazy ? NULL : view_of(model);
    CHECK(nn_model_zero_grad(model));
    assert_int_equal(model->training->fresh, lazy);
    if (lazy) poison(model);
    for (uint64_t i = 0; i < round % 3 + 1; i++) {
      int32_t tokens[TOKENS], targets[TOKENS];
      fixture_tokens(tokens, TOKENS, 60, 10 * round + i);
      fixture_targets(targets, TOKENS, 60, 10 * round + i + 100);
      CHECK(nn_model_backward(model, tokens, targets, seq == 1 ? 1 : BATCH, seq, 0.5f, NULL));
      assert_false(model->training->fresh);
    }
    nn_tensor_destroy(view);
    free(gradients);
    gradients = fixture_gradients(model, count);
  }
  return gradients;
}

static void check_assigned(nn_device_t *device, const nn_model_config_t *config, int32_t dtype,
                           int32_t recompute, int64_t seq) {
  if (!select_case(0)) return;
  float *gradients[2];
  int64_t count;
  for (int lazy = 0; lazy < 2; lazy++) {
    nn_model_t *model;
    CHECK(nn_model_create(device, config, dtype, 1, &model));
    fixture_prepare(model, BATCH, SEQ, recompute);
    gradients[lazy] = rounds_of(model, lazy, seq, &count);
    nn_model_destroy(model);
  }
  char what[100];
  snprintf(what, sizeof what, "family %d, dtype %d, %lld tokens", config->family, dtype,
           (long long)seq);
  check_equal(what, gradients[1], gradients[0], count);
  assert_true(fixture_largest(gradients[0], count) > 0);
  free(gradients[0]), free(gradients[1]);
}

/* Every family, on every path; with one token, which leaves most experts empty; in 16 bits. */
static void test_assigned_as_added(void **state) {
  (void)state;
  for (int p = 0; p < FIXTURE_PATHS; p++) {
    nn_device_t *device = fixture_device_of_path(2, fixture_path[p]);
    for (int32_t i = -2; device && i < FIXTURE_FAMILIES; i++) {
      nn_model_config_t config = i < 0 ? config_of(-1 - i) : fixture_family(i);
      for (int32_t recompute = NN_RECOMPUTE_NONE; recompute <= NN_RECOMPUTE_FFN; recompute++)
        check_assigned(device, &config, NN_F32, recompute, SEQ);
      check_assigned(device, &config, NN_F32, NN_RECOMPUTE_NONE, 1);
      check_assigned(device, &config, NN_BF16, NN_RECOMPUTE_NONE, SEQ);
    }
    nn_device_destroy(device);
  }
}

/* Weights so large that paths of their own are taken, experts whose rows come in several chunks,
 * and a head's gradient that is made in several; the head tied, and its own. */
static void test_assigned_as_added_in_parts(void **state) {
  (void)state;
  enum { PARTS = 5000 }; /* tokens: more than experts take at once, which is 8192 slots */
  nn_device_t *device = fixture_device(2, 0);
  for (int tied = 0; tied < 2; tied++) {
    if (!select_case(0)) continue;
    nn_model_config_t config = fixture_moe();
    config.vocab_size = 5000, config.hidden = 128, config.heads = 4, config.kv_heads = 2;
    config.head_dim = 32, config.ffn = 192, config.layers = 1, config.tied_head = tied;
    config.context = PARTS / 4, config.experts = 8, config.top_k = 2;
    float *gradients[2];
    int64_t count;
    int32_t *tokens = fixture_memory(PARTS * sizeof *tokens);
    fixture_tokens(tokens, PARTS, config.vocab_size, 1);
    for (int lazy = 0; lazy < 2; lazy++) {
      nn_model_t *model = fixture_model(device, &config, 1);
      fixture_prepare(model, 4, PARTS / 4, NN_RECOMPUTE_NONE);
      nn_tensor_t *view = lazy ? NULL : view_of(model);
      CHECK(nn_model_zero_grad(model));
      if (lazy) poison(model);
      CHECK(nn_model_backward(model, tokens, tokens, 4, PARTS / 4, 1, NULL));
      gradients[lazy] = fixture_gradients(model, &count);
      nn_tensor_destroy(view);
      nn_model_destroy(model);
    }
    check_equal("gradients", gradients[1], gradients[0], count);
    free(gradients[0]), free(gradients[1]), free(tokens);
  }
  nn_device_destroy(device);
}

/* A view shows zeros as soon as they are asked for, and what is written through it is added to. */
static void test_views(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_t *model = model_of(device, 0);
  const char *name = "model.layers.0.self_attn.o_proj.weight";
  int64_t count;
  run_batches(model, 1, 0);
  float *once = fixture_gradients(model, &count);
  free(once);
  CHECK(nn_model_zero_grad(model));
  poison(model);
  nn_tensor_t *view;
  CHECK(nn_model_gradient(model, name, &view)); /* after zeroing, before a batch */
  float *zeros = fixture_gradients(model, &count);
  assert_true(fixture_largest(zeros, count) == 0);
  run_batches(model, 1, 0);
  CHECK(nn_model_zero_grad(model)); /* with the view there */
  nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
  CHECK(nn_tensor_info(view, &info));
  size_t bytes = (size_t)info.elements * sizeof(float);
  float *values = fixture_memory(bytes), *sum = fixture_memory(bytes);
  CHECK(nn_tensor_copy_out(view, values, bytes));
  assert_true(fixture_largest(values, info.elements) == 0);
  run_batches(model, 1, 0);
  CHECK(nn_tensor_copy_out(view, values, bytes));
  assert_true(fixture_largest(values, info.elements) > 0);
  CHECK(nn_model_zero_grad(model));
  for (int64_t i = 0; i < info.elements; i++) sum[i] = 1024;
  CHECK(nn_tensor_copy_in(view, sum, bytes));
  nn_tensor_destroy(view); /* what was written stays the gradient */
  run_batches(model, 1, 0);
  CHECK(nn_model_gradient(model, name, &view));
  CHECK(nn_tensor_copy_out(view, sum, bytes));
  /* three batches are added, each sum near 1024 rounded to 2^-14 */
  for (int64_t i = 0; i < info.elements; i++)
    assert_true(fabsf(sum[i] - (1024 + values[i])) <= 3 * 0x1p-14f);
  nn_tensor_destroy(view);
  free(zeros), free(values), free(sum);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* An update, and preparing for another shape, between zeroing and the first batch. */
static void test_zeros_are_read(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  for (int kind = 0; kind < 2; kind++) {
    int64_t count;
    float *gradients[2];
    for (int lazy = 0; lazy < 2; lazy++) {
      nn_model_t *model = model_of(device, kind);
      nn_optim_t *optim;
      CHECK(nn_optim_create(model, NULL, &optim));
      nn_tensor_t *view = lazy ? NULL : view_of(model);
      run_batches(model, 1, 0);
      CHECK(nn_optim_step(optim, 1e-3f, NULL));
      CHECK(nn_model_zero_grad(model));
      if (lazy) poison(model);
      double norm = -1;
      CHECK(nn_optim_step(optim, 1e-3f, &norm)); /* by the moments of the first */
      assert_true(norm == 0);
      CHECK(nn_model_zero_grad(model));
      if (lazy) poison(model);
      fixture_prepare(model, BATCH + 1, SEQ, NN_RECOMPUTE_BLOCK);
      assert_int_equal(model->training->fresh, lazy);
      run_batches(model, 2, 0);
      gradients[lazy] = fixture_gradients(model, &count);
      nn_tensor_destroy(view);
      nn_optim_destroy(optim);
      nn_model_destroy(model);
    }
    check_equal("gradients", gradients[1], gradients[0], count);
    free(gradients[0]), free(gradients[1]);
  }
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_losses_change_nothing),
      cmocka_unit_test(test_one_look_a_step),
      cmocka_unit_test(test_not_finite),
      cmocka_unit_test(test_assigned_as_added),
      cmocka_unit_test(test_assigned_as_added_in_parts),
      cmocka_unit_test(test_views),
      cmocka_unit_test(test_zeros_are_read),
  };
  select_tests();
  return cmocka_run_group_tests_name("backward", tests, NULL, NULL);
}
