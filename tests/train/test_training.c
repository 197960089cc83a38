/* Steps of the optimizer: refused ones, arguments, the first update, files, and convergence. */
#include <math.h>
#include <stdio.h>

#include "run.h"

static void check_unchanged(run_t *run, const float *parameters, const float *moments,
                            int64_t count) {
  int64_t again, moment_count;
  float *p = fixture_parameters(run->model, &again);
  float *m = fixture_moments(run->model, run->optim, &moment_count);
  fixture_same("parameters", p, parameters, count);
  fixture_same("moments", m, moments, moment_count);
  free(p), free(m);
}

static void test_nonfinite_is_refused(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  static const char *const names[] = {
      "lm_head.weight", "model.layers.0.block_sparse_moe.gate.weight",
      "model.layers.1.self_attn.k_proj.weight", "model.embed_tokens.weight"};
  static const float values[] = {NAN, INFINITY, -INFINITY};
  nn_model_config_t config = fixture_moe();
  for (int i = 0; i < 12; i++) {
    run_t run;
    run_open(&run, device, &config, 2, 9, NN_RECOMPUTE_NONE);
    double losses[4];
    run_step(&run, 1e-3f, losses);
    int64_t count, moment_count;
    float *kept = fixture_parameters(run.model, &count);
    fixture_fill(run.model, names[i / 3], values[i % 3]);
    float *parameters = fixture_parameters(run.model, &count);
    float *moments = fixture_moments(run.model, run.optim, &moment_count);
    nn_loss_t loss = STRUCT(nn_loss_t);
    loss.loss = 42;
    CHECK(nn_model_zero_grad(run.model));
    CHECK_STATUS(NN_ERR_NONFINITE,
                 nn_model_backward(run.model, run.tokens, run.targets, 2, 9, 1, &loss));
    CHECK_STATUS(NN_ERR_NONFINITE,
                 nn_model_evaluate(run.model, run.tokens, run.targets, 2, 9, &loss));
    assert_true(loss.loss == 42); /* outputs are written only on success */
    /* What the failed backward left is refused until it is zeroed. */
    CHECK_STATUS(NN_ERR_STATE, nn_optim_step(run.optim, 1e-3f, NULL));
    CHECK_STATUS(NN_ERR_STATE,
                 nn_model_backward(run.model, run.tokens, run.targets, 2, 9, 1, &loss));
    /* A caller that steps all the same: with a gradient that is not finite the step is refused. */
    CHECK(nn_model_zero_grad(run.model));
    nn_tensor_t *gradient;
    CHECK(nn_model_gradient(run.model, "model.norm.weight", &gradient));
    float bad[22] = {0};
    bad[21] = values[i % 3];
    CHECK(nn_tensor_copy_in(gradient, bad, sizeof bad));
    nn_tensor_destroy(gradient);
    double norm = 42;
    CHECK_STATUS(NN_ERR_NONFINITE, nn_optim_step(run.optim, 1e-3f, &norm));
    assert_true(norm == 42);
    assert_int_equal(nn_optim_steps(run.optim), 1);
    check_unchanged(&run, parameters, moments, count);
    /* With the weights of before, training goes on. */
    fixture_set_parameters(run.model, kept);
    run_step(&run, 1e-3f, losses);
    assert_true(isfinite(losses[0]) && isfinite(losses[3]));
    free(kept), free(parameters), free(moments);
    run_close(&run);
  }
  nn_device_destroy(device);
}

/* With loss NULL nobody looks at the losses: the step does, also when a batch that is sound came
 * behind. The masked token's own gradients would be finite. */
static void test_infinite_loss_is_refused_by_the_step(void **state) {
  (void)state;
  enum { BATCH = 2, SEQ = 9, MASKED = 5 };
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_family(12);
  assert_int_equal(config.family, NN_FAMILY_PHIMOE); /* whose head has a bias */
  run_t run;
  run_open(&run, device, &config, BATCH, SEQ, NN_RECOMPUTE_NONE);
  for (int i = 0; i < BATCH * SEQ; i++) run.targets[i] = i % 4;
  double losses[4];
  run_step(&run, 1e-3f, losses);
  nn_tensor_t *biases, *bias;
  float before, mask = -INFINITY;
  CHECK(nn_model_parameter(run.model, "lm_head.bias", &biases));
  CHECK(nn_tensor_slice(biases, 0, MASKED, MASKED + 1, &bias));
  CHECK(nn_tensor_copy_out(bias, &before, sizeof before));
  CHECK(nn_tensor_copy_in(bias, &mask, sizeof mask));
  int64_t count, moment_count;
  float *parameters = fixture_parameters(run.model, &count);
  float *moments = fixture_moments(run.model, run.optim, &moment_count);
  CHECK(nn_model_zero_grad(run.model));
  for (int asked = 1; asked >= 0; asked--) {
    run.targets[3] = asked ? MASKED : -1;
    CHECK(nn_model_backward(run.model, run.tokens, run.targets, BATCH, SEQ, 0.5f, NULL));
  }
  CHECK_STATUS(NN_ERR_NONFINITE, nn_optim_step(run.optim, 1e-3f, NULL));
  check_unchanged(&run, parameters, moments, count);
  CHECK(nn_tensor_copy_in(bias, &before, sizeof before));
  run_step(&run, 1e-3f, losses);
  assert_true(isfinite(losses[0]) && isfinite(losses[3]));
  free(parameters), free(moments);
  nn_tensor_destroy(bias);
  nn_tensor_destroy(biases);
  run_close(&run);
  nn_device_destroy(device);
}

static void test_optimizer_arguments(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  run_t run;
  run_open(&run, device, &config, 2, 9, NN_RECOMPUTE_NONE);
  nn_optim_t *optim = NULL;
  for (int i = 0; i < 9; i++) {
    nn_optim_options_t options = run_options();
    if (i == 0) options.beta1 = 1;
    if (i == 1) options.beta1 = -0.1f;
    if (i == 2) options.beta2 = NAN;
    if (i == 3) options.beta2 = 1.5f;
    if (i == 4) options.eps = -1e-8f;
    if (i == 5) options.eps = INFINITY;
    if (i == 6) options.weight_decay = -1;
    if (i == 7) options.grad_clip = NAN;
    if (i == 8) options.grad_clip = -1;
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_create(run.model, &options, &optim));
  }
  nn_optim_options_t sizeless = {0};
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_optim_create(run.model, &sizeless, &optim));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_create(NULL, NULL, &optim));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_create(run.model, NULL, NULL));
  assert_null(optim);
  nn_loss_t loss;
  CHECK(run_backward(&run, &loss));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_step(NULL, 1e-3f, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_step(run.optim, NAN, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_step(run.optim, INFINITY, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_step(run.optim, -1e-3f, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT,
               nn_model_backward(run.model, run.tokens, run.targets, 2, 9, NAN, &loss));
  assert_int_equal(nn_optim_steps(run.optim), 0);
  nn_tensor_t *tensor = NULL;
  CHECK_STATUS(NN_ERR_NOT_FOUND, nn_optim_moment(run.optim, "nothing", NN_MOMENT_FIRST, &tensor));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_moment(run.optim, "lm_head.weight", 2, &tensor));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_moment(run.optim, NULL, 0, &tensor));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_moment(NULL, "lm_head.weight", 0, &tensor));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_set_steps(run.optim, -1));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_set_steps(NULL, 1));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_set_steps(run.optim, ((int64_t)1 << 53) + 1));
  CHECK(nn_optim_set_steps(run.optim, (int64_t)1 << 53));
  CHECK_STATUS(NN_ERR_CAPACITY, nn_optim_step(run.optim, 1e-3f, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_save(NULL, "x"));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_save(run.optim, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_load(NULL, "x"));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_optim_load(run.optim, NULL));
  assert_int_equal(nn_optim_steps(NULL), 0);
  nn_optim_destroy(NULL);
  run_close(&run);
  nn_device_destroy(device);
}

/* The first update from a gradient g moves by lr g / (|g| + eps), whatever the clip; moments are
 * (1 - beta) of g and of its square; a second optimizer of the same model is its own. */
static void test_first_update_and_moments(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  run_t run;
  run_open(&run, device, &config, 2, 9, NN_RECOMPUTE_NONE);
  nn_optim_t *other;
  CHECK(nn_optim_create(run.model, NULL, &other));
  enum { N = 22 };
  float g[N], before[N], after[N], first[N], second[N];
  for (int i = 0; i < N; i++) g[i] = (i % 2 ? -0.1f : 0.1f) * (float)(i + 1);
  nn_tensor_t *gradient, *parameter, *moment;
  CHECK(nn_model_gradient(run.model, "model.norm.weight", &gradient));
  CHECK(nn_tensor_copy_in(gradient, g, sizeof g));
  CHECK(nn_model_parameter(run.model, "model.norm.weight", &parameter));
  CHECK(nn_tensor_copy_out(parameter, before, sizeof before));
  double norm, want_norm = 0;
  CHECK(nn_optim_step(run.optim, 0.01f, &norm));
  for (int i = 0; i < N; i++) want_norm += (double)g[i] * (double)g[i];
  want_norm = sqrt(want_norm);
  assert_true(fabs(norm - want_norm) < 1e-6 * want_norm);
  CHECK(nn_tensor_copy_out(parameter, after, sizeof after));
  CHECK(nn_optim_moment(run.optim, "model.norm.weight", NN_MOMENT_FIRST, &moment));
  CHECK(nn_tensor_copy_out(moment, first, sizeof first));
  nn_tensor_destroy(moment);
  CHECK(nn_optim_moment(run.optim, "model.norm.weight", NN_MOMENT_SECOND, &moment));
  CHECK(nn_tensor_copy_out(moment, second, sizeof second));
  nn_tensor_destroy(moment);
  for (int i = 0; i < N; i++) {
    double clipped = (double)g[i] / fmax(1, want_norm);
    double update = 0.01 * clipped / (fabs(clipped) + 1e-8);
    /* weights near 1: half a unit of the last place is 6e-8; betas and moments carry a few
     * roundings */
    assert_true(fabs((double)before[i] - (double)after[i] - update) < 2e-7);
    assert_true(fabs((double)first[i] - 0.1 * clipped) < 1e-6 * fabs(clipped));
    assert_true(fabs((double)second[i] - 0.05 * clipped * clipped) < 1e-6 * clipped * clipped);
  }
  CHECK(nn_optim_moment(other, "model.norm.weight", NN_MOMENT_FIRST, &moment));
  CHECK(nn_tensor_copy_out(moment, first, sizeof first));
  assert_true(fixture_largest(first, N) == 0);
  assert_int_equal(nn_optim_steps(other), 0);
  nn_tensor_destroy(moment);
  nn_tensor_destroy(gradient);
  nn_tensor_destroy(parameter);
  nn_optim_destroy(other);
  run_close(&run);
  nn_device_destroy(device);
}

/* A file of another model, or none, leaves the state as it was. */
static void test_optimizer_file_of_another_model(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe(), wider = fixture_moe();
  wider.ffn = 20;
  char *folder = fixture_folder(), path[600];
  snprintf(path, sizeof path, "%s/optim.safetensors", folder);
  run_t run, other;
  run_open(&run, device, &config, 2, 9, NN_RECOMPUTE_NONE);
  run_open(&other, device, &wider, 2, 9, NN_RECOMPUTE_NONE);
  double losses[4];
  run_step(&run, 1e-3f, losses);
  int64_t count, moment_count;
  float *parameters = fixture_parameters(run.model, &count);
  float *moments = fixture_moments(run.model, run.optim, &moment_count);
  nn_status_t status = nn_optim_load(run.optim, path);
  assert_true(status == NN_ERR_NOT_FOUND || status == NN_ERR_IO);
  CHECK(nn_optim_save(other.optim, path));
  CHECK_STATUS(NN_ERR_FORMAT, nn_optim_load(run.optim, path));
  CHECK(nn_model_save(run.model, folder, NULL));
  snprintf(path, sizeof path, "%s/model.safetensors", folder);
  CHECK_STATUS(NN_ERR_FORMAT, nn_optim_load(run.optim, path));
  check_unchanged(&run, parameters, moments, count);
  assert_int_equal(nn_optim_steps(run.optim), 1);
  free(parameters), free(moments);
  run_close(&run);
  run_close(&other);
  fixture_folder_remove(folder);
  nn_device_destroy(device);
}

/* ---- learning ---- */

/* The convergence check: one repeated batch of random tokens, from about ln(1000) to 0.025. */
static void test_tiny_converges(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("tiny", &config));
  run_t run = {.device = device, .config = config, .model = fixture_model(device, &config, 1)};
  fixture_prepare(run.model, 2, 32, NN_RECOMPUTE_NONE);
  nn_optim_options_t options = STRUCT(nn_optim_options_t);
  options.grad_clip = 1;
  CHECK(nn_optim_create(run.model, &options, &run.optim));
  run_batch(&run, 2, 32);
  double losses[4] = {0}, first = 0;
  int step = 0;
  for (; step < 300; step++) {
    run_step(&run, 3e-3f, losses);
    if (!step) first = losses[0];
    if (losses[0] < 0.025) break;
  }
  /* Logits of first weights are small: the loss begins within a percent of ln(1000) = 6.908. */
  assert_true(fabs(first - log(1000)) < 0.07);
  if (losses[0] >= 0.025) fail_msg("after %d steps the loss is still %g", step, losses[0]);
  print_message("tiny: %.3f to %.4f in %d steps\n", first, losses[0], step);
  run_close(&run);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_nonfinite_is_refused),
      cmocka_unit_test(test_infinite_loss_is_refused_by_the_step),
      cmocka_unit_test(test_optimizer_arguments),
      cmocka_unit_test(test_first_update_and_moments),
      cmocka_unit_test(test_optimizer_file_of_another_model),
      cmocka_unit_test(test_tiny_converges),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
