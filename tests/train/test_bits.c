/* Training gives the same bits on any number of threads, with recomputation, in another shape, and
 * after a resume. */
#include <stdio.h>
#include <string.h>

#include "run.h"

enum { STEPS = 5 };

/* What five steps leave: parameters, gradients of the last, moments, and the losses of each. */
typedef struct trace {
  double losses[STEPS][4];
  float *parameters, *gradients, *moments;
  int64_t count, moment_count;
} trace_t;

static trace_t trace_of(nn_device_t *device, const nn_model_config_t *config, int64_t batch,
                        int64_t seq, int32_t recompute) {
  run_t run;
  run_open(&run, device, config, batch, seq, recompute);
  trace_t trace;
  for (int step = 0; step < STEPS; step++) run_step(&run, 1e-2f, trace.losses[step]);
  trace.parameters = fixture_parameters(run.model, &trace.count);
  trace.gradients = fixture_gradients(run.model, &trace.count);
  trace.moments = fixture_moments(run.model, run.optim, &trace.moment_count);
  run_close(&run);
  return trace;
}

static void trace_same(const trace_t *a, const trace_t *b) {
  for (int step = 0; step < STEPS; step++)
    for (int i = 0; i < 4; i++)
      if (a->losses[step][i] != b->losses[step][i])
        fail_msg("step %d, number %d: %.17g and %.17g", step, i, a->losses[step][i],
                 b->losses[step][i]);
  fixture_same("gradients", a->gradients, b->gradients, a->count);
  fixture_same("moments", a->moments, b->moments, a->moment_count);
  fixture_same("parameters", a->parameters, b->parameters, a->count);
}

static void trace_free(trace_t *trace) {
  free(trace->parameters);
  free(trace->gradients);
  free(trace->moments);
}

/* Models wide and batches long enough that work is split over threads in many ways. */
static void bits_config(int family, nn_model_config_t *config) {
  *config = family ? fixture_gpt2() : fixture_moe();
  config->hidden = 48;
  config->ffn = 67;
  config->vocab_size = 151;
  config->context = 70;
  config->heads = 6;
  config->kv_heads = family ? 6 : 2;
  config->head_dim = 8;
  config->init_std = 0.05f;
}

static void test_same_bits_on_any_threads(void **state) {
  (void)state;
  for (int p = 0; p < FIXTURE_PATHS; p++) {
    nn_device_t *one = fixture_device_of_path(1, fixture_path[p]);
    if (!one) continue;
    for (int family = 0; family < 2; family++) {
      nn_model_config_t config;
      bits_config(family, &config);
      int64_t batch = family ? 2 : 1, seq = family ? 35 : 67;
      trace_t want = trace_of(one, &config, batch, seq, NN_RECOMPUTE_NONE);
      for (int32_t threads = 1; threads <= 3; threads++) {
        nn_device_t *device = fixture_device(threads, fixture_path[p]);
        trace_t got = trace_of(device, &config, batch, seq, NN_RECOMPUTE_NONE);
        trace_same(&got, &want);
        trace_free(&got);
        nn_device_destroy(device);
      }
      trace_free(&want);
    }
    nn_device_destroy(one);
  }
}

static void test_same_bits_with_recomputation(void **state) {
  (void)state;
  for (int p = 0; p < FIXTURE_PATHS; p++) {
    nn_device_t *device = fixture_device_of_path(2, fixture_path[p]);
    for (int i = 0; device && i < 3; i++) {
      nn_model_config_t config;
      bits_config(i == 1, &config);
      if (i == 2) config.capacity_factor = 0.9f, config.aux_loss = NN_AUX_JOINT;
      trace_t kept = trace_of(device, &config, 2, 19, NN_RECOMPUTE_NONE);
      trace_t block = trace_of(device, &config, 2, 19, NN_RECOMPUTE_BLOCK);
      trace_t ffn = trace_of(device, &config, 2, 19, NN_RECOMPUTE_FFN);
      trace_same(&kept, &block);
      trace_same(&kept, &ffn);
      trace_free(&kept);
      trace_free(&block);
      trace_free(&ffn);
    }
    nn_device_destroy(device);
  }
}

/* A batch smaller than what was prepared, or another call in between, changes nothing. */
static void test_same_bits_in_a_larger_shape(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  nn_loss_t a = STRUCT(nn_loss_t), b = STRUCT(nn_loss_t);
  run_t run;
  run_open(&run, device, &config, 2, 9, NN_RECOMPUTE_NONE);
  CHECK(run_backward(&run, &a));
  int64_t count;
  float *want = fixture_gradients(run.model, &count);
  fixture_prepare(run.model, 5, 24, NN_RECOMPUTE_NONE);
  CHECK(nn_model_zero_grad(run.model));
  float *logits = fixture_memory(18 * 67 * sizeof *logits);
  CHECK(nn_model_forward(run.model, run.targets + 2, 1, 1, logits));
  CHECK(nn_model_evaluate(run.model, run.tokens, run.targets, 1, 18, &b));
  CHECK(run_backward(&run, &b));
  float *got = fixture_gradients(run.model, &count);
  fixture_same("gradients", got, want, count);
  assert_true(a.loss == b.loss && a.aux_loss == b.aux_loss && a.z_loss == b.z_loss);
  /* evaluate is the same pass */
  CHECK(nn_model_evaluate(run.model, run.tokens, run.targets, run.batch, run.seq, &b));
  assert_true(a.loss == b.loss && a.aux_loss == b.aux_loss && a.z_loss == b.z_loss);
  free(logits);
  free(want);
  free(got);
  run_close(&run);
  nn_device_destroy(device);
}

/* A pass that is replayed, on a GPU from the third on, takes up how many targets count. */
static void test_same_bits_with_other_targets(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  for (int family = 0; family < 2; family++) {
    nn_model_config_t config = family ? fixture_gpt2() : fixture_moe();
    run_t run, fresh;
    run_open(&run, device, &config, 2, 9, NN_RECOMPUTE_NONE);
    for (int64_t pass = 0; pass < 5; pass++) {
      nn_loss_t got, want;
      for (int64_t i = 0; i < 3 * pass; i++) run.targets[i] = -1;
      CHECK(nn_model_zero_grad(run.model));
      CHECK(run_backward(&run, &got));
      run_open(&fresh, device, &config, 2, 9, NN_RECOMPUTE_NONE);
      memcpy(fresh.targets, run.targets, 2 * 9 * sizeof *run.targets);
      CHECK(run_backward(&fresh, &want));
      assert_int_equal(got.targets, want.targets);
      assert_true(got.loss == want.loss);
      int64_t count;
      float *a = fixture_gradients(run.model, &count);
      float *b = fixture_gradients(fresh.model, &count);
      fixture_same("gradients", a, b, count);
      free(a), free(b);
      run_close(&fresh);
    }
    run_close(&run);
  }
  nn_device_destroy(device);
}

/* Ten steps, or five, everything saved and forgotten, and five more. */
static void check_resume(const nn_model_config_t *config, int32_t threads) {
  double straight[10][4], resumed[10][4];
  int64_t count, moments;
  nn_device_t *device = fixture_device(2, 0);
  run_t run;
  run_open(&run, device, config, 2, 9, NN_RECOMPUTE_NONE);
  for (int step = 0; step < 10; step++) run_step(&run, 1e-2f, straight[step]);
  float *want = fixture_parameters(run.model, &count);
  float *want_moments = fixture_moments(run.model, run.optim, &moments);
  run_close(&run);

  char *folder = fixture_folder(), path[600];
  snprintf(path, sizeof path, "%s/optim.safetensors", folder);
  run_open(&run, device, config, 2, 9, NN_RECOMPUTE_NONE);
  for (int step = 0; step < 5; step++) run_step(&run, 1e-2f, resumed[step]);
  CHECK(nn_model_save(run.model, folder, NULL));
  CHECK(nn_optim_save(run.optim, path));
  run_close(&run);
  nn_device_destroy(device);

  device = fixture_device(threads, 0);
  run = (run_t){.device = device, .config = *config};
  CHECK(nn_model_load(device, folder, -1, NULL, &run.model));
  fixture_prepare(run.model, 2, 9, NN_RECOMPUTE_NONE);
  nn_optim_options_t options = run_options();
  CHECK(nn_optim_create(run.model, &options, &run.optim));
  CHECK(nn_optim_load(run.optim, path));
  assert_int_equal(nn_optim_steps(run.optim), 5);
  run_batch(&run, 2, 9);
  for (int step = 5; step < 10; step++) run_step(&run, 1e-2f, resumed[step]);
  for (int step = 0; step < 10; step++)
    for (int i = 0; i < 4; i++) assert_true(straight[step][i] == resumed[step][i]);
  float *got = fixture_parameters(run.model, &count);
  float *got_moments = fixture_moments(run.model, run.optim, &moments);
  fixture_same("parameters", got, want, count);
  fixture_same("moments", got_moments, want_moments, moments);
  free(got), free(want), free(got_moments), free(want_moments);
  run_close(&run);
  nn_device_destroy(device);
  fixture_folder_remove(folder);
}

static void test_resume_bit_for_bit(void **state) {
  (void)state;
  nn_model_config_t moe = fixture_moe(), gpt2 = fixture_gpt2();
  check_resume(&moe, 2);
  check_resume(&gpt2, 1);
  moe.tied_head = 1;
  moe.aux_loss = NN_AUX_JOINT;
  moe.capacity_factor = 1;
  check_resume(&moe, 3);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_same_bits_on_any_threads),
      cmocka_unit_test(test_same_bits_with_recomputation),
      cmocka_unit_test(test_same_bits_in_a_larger_shape),
      cmocka_unit_test(test_same_bits_with_other_targets),
      cmocka_unit_test(test_resume_bit_for_bit),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
