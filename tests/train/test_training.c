/* Training as a whole: plans that equal what is taken, steps that allocate nothing, the same bits
 * on any number of threads, with recomputation, and after a resume; refused steps; convergence. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "fixture.h"

/* One model, its optimizer and one batch. */
typedef struct run {
  nn_device_t *device;
  nn_model_t *model;
  nn_optim_t *optim;
  nn_model_config_t config;
  int64_t batch, seq;
  int32_t *tokens, *targets;
} run_t;

static nn_optim_options_t adamw(void) {
  nn_optim_options_t options = STRUCT(nn_optim_options_t);
  options.weight_decay = 0.1f;
  options.grad_clip = 1;
  return options;
}

static void run_batch(run_t *run, int64_t batch, int64_t seq) {
  run->batch = batch;
  run->seq = seq;
  run->tokens = fixture_memory((size_t)(batch * seq) * sizeof(int32_t));
  run->targets = fixture_memory((size_t)(batch * seq) * sizeof(int32_t));
  fixture_tokens(run->tokens, batch * seq, run->config.vocab_size, 1);
  fixture_targets(run->targets, batch * seq, run->config.vocab_size, 2);
}

static void run_open(run_t *run, nn_device_t *device, const nn_model_config_t *config,
                     int64_t batch, int64_t seq, int32_t recompute) {
  run->device = device;
  run->config = *config;
  run->model = fixture_model(device, config, 1);
  fixture_prepare(run->model, batch, seq, recompute);
  nn_optim_options_t options = adamw();
  CHECK(nn_optim_create(run->model, &options, &run->optim));
  run_batch(run, batch, seq);
}

/* Everything but the device. */
static void run_close(run_t *run) {
  nn_optim_destroy(run->optim);
  nn_model_destroy(run->model);
  free(run->tokens);
  free(run->targets);
}

static nn_status_t run_backward(run_t *run, nn_loss_t *loss) {
  *loss = STRUCT(nn_loss_t);
  return nn_model_backward(run->model, run->tokens, run->targets, run->batch, run->seq, 1, loss);
}

/* One step; losses [4] receives the three losses and the norm. */
static void run_step(run_t *run, float lr, double *losses) {
  nn_loss_t loss;
  CHECK(nn_model_zero_grad(run->model));
  CHECK(run_backward(run, &loss));
  CHECK(nn_optim_step(run->optim, lr, &losses[3]));
  losses[0] = loss.loss, losses[1] = loss.aux_loss, losses[2] = loss.z_loss;
}

/* ---- bytes ---- */

static void check_plan(nn_device_t *device, const nn_model_config_t *config, int32_t recompute) {
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.batch = 3;
  options.seq_len = 11;
  options.recompute = recompute;
  nn_plan_t plan = STRUCT(nn_plan_t);
  CHECK(nn_plan_training(device, config, NN_F32, &options, &plan));
  int64_t begin = fixture_device_memory(device).current_bytes;

  nn_model_t *model = fixture_model(device, config, 1);
  int64_t created = fixture_device_memory(device).current_bytes;
  assert_int_equal(created - begin, plan.parameter_bytes + plan.master_bytes);
  CHECK(nn_model_prepare(model, &options));
  int64_t prepared = fixture_device_memory(device).current_bytes;
  assert_int_equal(prepared - created,
                   plan.gradient_bytes + plan.activation_bytes + plan.workspace_bytes);
  nn_optim_t *optim;
  CHECK(nn_optim_create(model, NULL, &optim));
  int64_t all = fixture_device_memory(device).current_bytes;
  assert_int_equal(all - prepared, plan.optimizer_bytes);
  assert_int_equal(all - begin, plan.total_bytes);
  assert_int_equal(plan.cache_bytes, 0);

  nn_optim_destroy(optim);
  CHECK(nn_model_prepare(model, NULL));
  assert_int_equal(fixture_device_memory(device).current_bytes, created);
  nn_model_destroy(model);
  assert_int_equal(fixture_device_memory(device).current_bytes, begin);
}

static void test_plan_is_what_training_takes(void **state) {
  (void)state;
  for (int p = 0; p < FIXTURE_PATHS; p++) {
    nn_device_t *device = fixture_device_of_path(3, fixture_path[p]);
    for (int i = 0; device && i < 4; i++) {
      nn_model_config_t config = i % 2 ? fixture_gpt2() : fixture_moe();
      check_plan(device, &config, i / 2 ? NN_RECOMPUTE_BLOCK : NN_RECOMPUTE_NONE);
    }
    nn_device_destroy(device);
  }
}

static void test_plan_is_what_serving_takes(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  static const int32_t dtypes[] = {NN_F32, NN_BF16};
  for (int i = 0; i < 8; i++) {
    nn_model_config_t config = i % 2 ? fixture_gpt2() : fixture_moe();
    if (!(i % 2)) config.rope_ntk_alpha = 4;
    int32_t dtype = dtypes[i / 2 % 2];
    nn_session_options_t options = STRUCT(nn_session_options_t);
    if (i / 4) options.batch = 3, options.prefill_chunk = 5, options.max_len = i % 2 ? 17 : 90;
    nn_plan_t plan = STRUCT(nn_plan_t);
    CHECK(nn_plan_inference(device, &config, dtype, &options, &plan));
    nn_model_t *model;
    CHECK(nn_model_create(device, &config, dtype, 1, &model));
    int64_t created = fixture_device_memory(device).current_bytes;
    assert_int_equal(created, plan.parameter_bytes);
    nn_session_t *session;
    CHECK(nn_session_create(model, &options, &session));
    int64_t all = fixture_device_memory(device).current_bytes;
    assert_int_equal(all - created,
                     plan.activation_bytes + plan.workspace_bytes + plan.cache_bytes);
    assert_int_equal(all, plan.total_bytes);
    /* layers x sequences x positions x 2 x key-value width, in the dtype of activations, which is
     * that of the parameters; keys and values each aligned */
    int64_t width = i % 2 ? 21 : 12, length = i / 4 ? (i % 2 ? 17 : 90) : 24;
    int64_t element = dtype == NN_BF16 ? 2 : 4;
    int64_t exact = 2 * (i / 4 ? 3 : 1) * length * 2 * width * element;
    assert_in_range(plan.cache_bytes, exact, exact + 2 * 255);
    nn_session_destroy(session);
    nn_model_destroy(model);
    assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  }
  nn_device_destroy(device);
}

static void test_recomputation_keeps_less(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  config.layers = 12;
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.batch = 8;
  nn_plan_t all = STRUCT(nn_plan_t), least = STRUCT(nn_plan_t), less = STRUCT(nn_plan_t);
  CHECK(nn_plan_training(device, &config, NN_F32, &options, &all));
  options.recompute = NN_RECOMPUTE_FFN;
  CHECK(nn_plan_training(device, &config, NN_F32, &options, &less));
  options.recompute = NN_RECOMPUTE_BLOCK;
  CHECK(nn_plan_training(device, &config, NN_F32, &options, &least));
  /* Twelve blocks' activations against one's and twelve inputs. */
  assert_true(3 * least.activation_bytes < all.activation_bytes);
  /* One FFN's inside instead of twelve: 8 x 24 tokens' two rows of 2 x 19 floats, each aligned. */
  int64_t inside = (8 * 24 * 2 * 2 * 19 * 4 + 255) / 256 * 256;
  assert_int_equal(all.activation_bytes - less.activation_bytes, 11 * inside);
  assert_int_equal(least.gradient_bytes, all.gradient_bytes);
  nn_device_destroy(device);
}

static void test_steady_steps_allocate_nothing(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  for (int i = 0; i < 4; i++) {
    nn_model_config_t config = i % 2 ? fixture_gpt2() : fixture_moe();
    run_t run;
    run_open(&run, device, &config, 2, 9, i / 2);
    double losses[4];
    run_step(&run, 1e-3f, losses);
    nn_memory_t before = fixture_device_memory(device);
    for (int step = 0; step < 3; step++) run_step(&run, 1e-3f, losses);
    nn_loss_t loss = STRUCT(nn_loss_t);
    CHECK(nn_model_evaluate(run.model, run.tokens, run.targets, 2, 9, &loss));
    nn_memory_t after = fixture_device_memory(device);
    assert_int_equal(before.allocations, after.allocations);
    assert_int_equal(before.current_bytes, after.current_bytes);
    assert_int_equal(before.peak_bytes, after.peak_bytes);
    run_close(&run);
  }
  nn_device_destroy(device);
}

/* Nor on the host: the first allocation would fail. */
static void test_steady_steps_allocate_nothing_on_the_host(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  for (int i = 0; i < 4; i++) {
    nn_model_config_t config = i % 2 ? fixture_gpt2() : fixture_moe();
    run_t run;
    run_open(&run, device, &config, 2, 9, i / 2);
    double losses[4], norm = 0;
    run_step(&run, 1e-3f, losses);
    nn_loss_t loss;
    mem_fail_after(0);
    nn_status_t zero = nn_model_zero_grad(run.model), back = run_backward(&run, &loss),
                step = nn_optim_step(run.optim, 1e-3f, &norm);
    mem_fail_after(-1);
    CHECK_STATUS(NN_OK, zero);
    CHECK_STATUS(NN_OK, back);
    CHECK_STATUS(NN_OK, step);
    run_close(&run);
  }
  nn_device_destroy(device);
}

/* ---- the same bits ---- */

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
  nn_optim_options_t options = adamw();
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

/* ---- refused steps ---- */

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

static void test_optimizer_arguments(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  run_t run;
  run_open(&run, device, &config, 2, 9, NN_RECOMPUTE_NONE);
  nn_optim_t *optim = NULL;
  for (int i = 0; i < 9; i++) {
    nn_optim_options_t options = adamw();
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
      cmocka_unit_test(test_plan_is_what_training_takes),
      cmocka_unit_test(test_plan_is_what_serving_takes),
      cmocka_unit_test(test_recomputation_keeps_less),
      cmocka_unit_test(test_steady_steps_allocate_nothing),
      cmocka_unit_test(test_steady_steps_allocate_nothing_on_the_host),
      cmocka_unit_test(test_same_bits_on_any_threads),
      cmocka_unit_test(test_same_bits_with_recomputation),
      cmocka_unit_test(test_same_bits_in_a_larger_shape),
      cmocka_unit_test(test_same_bits_with_other_targets),
      cmocka_unit_test(test_resume_bit_for_bit),
      cmocka_unit_test(test_nonfinite_is_refused),
      cmocka_unit_test(test_optimizer_arguments),
      cmocka_unit_test(test_first_update_and_moments),
      cmocka_unit_test(test_optimizer_file_of_another_model),
      cmocka_unit_test(test_tiny_converges),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
