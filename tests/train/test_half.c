/* Training with parameters of 16 bits on top of fp32 masters: it learns, the plan is what is held,
 * and a run that was saved and resumed goes on bit for bit; fp16 by dynamic loss scaling. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "files.h"
#include "fixture.h"

enum { BATCH = 4, SEQ = 16, TOKENS = BATCH * SEQ };

static const int32_t dtypes[] = {NN_BF16, NN_F16};

typedef struct run {
  nn_model_t *model;
  nn_optim_t *optim;
} run_t;

static void run_prepare(run_t *run) {
  nn_optim_options_t options = STRUCT(nn_optim_options_t);
  options.weight_decay = 0.1f, options.grad_clip = 1;
  fixture_prepare(run->model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK(nn_optim_create(run->model, &options, &run->optim));
}

static void run_close(run_t *run) {
  nn_optim_destroy(run->optim);
  nn_model_destroy(run->model);
}

static run_t run_create(nn_device_t *device, const nn_model_config_t *config, int32_t dtype) {
  run_t run;
  CHECK(nn_model_create(device, config, dtype, 1, &run.model));
  run_prepare(&run);
  return run;
}

/* The loss, and the gradients of a batch. */
static double run_backward(const run_t *run, uint64_t seed) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_model_config(run->model, &config));
  int32_t tokens[TOKENS], targets[TOKENS];
  fixture_tokens(tokens, TOKENS, config.vocab_size, seed);
  fixture_targets(targets, TOKENS, config.vocab_size, seed + 100);
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_zero_grad(run->model));
  CHECK(nn_model_backward(run->model, tokens, targets, BATCH, SEQ, 1, &loss));
  return loss.loss;
}

static double run_step(const run_t *run, uint64_t seed, float lr) {
  double loss = run_backward(run, seed);
  CHECK(nn_optim_step(run->optim, lr, NULL));
  return loss;
}

/* All parameters' bits. */
static uint16_t *run_bits(const run_t *run, int64_t *count) {
  *count = 0;
  uint16_t *bits = NULL;
  for (int64_t i = 0; i < nn_model_parameter_count(run->model); i++) {
    nn_tensor_t *tensor;
    CHECK(nn_model_parameter(run->model, nn_model_parameter_name(run->model, i), &tensor));
    nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
    CHECK(nn_tensor_info(tensor, &info));
    assert_true(info.dtype == NN_BF16 || info.dtype == NN_F16);
    bits = realloc(bits, (size_t)(*count + info.elements) * sizeof *bits);
    assert_non_null(bits);
    CHECK(nn_tensor_copy_out(tensor, bits + *count, (size_t)info.elements * sizeof *bits));
    *count += info.elements;
    nn_tensor_destroy(tensor);
  }
  return bits;
}

static nn_model_config_t config_of(int kind) { return kind ? fixture_gpt2() : fixture_moe(); }

/* One batch again and again, at a rate so small that 16 bits alone could not take most updates
 * in. */
static void check_learns(int kind, int32_t dtype) {
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = config_of(kind);
  run_t run = run_create(device, &config, dtype);
  double first = run_step(&run, 1, 3e-4f), last = 0;
  for (int i = 0; i < 150; i++) last = run_step(&run, 1, 3e-4f);
  if (!(last < 0.8 * first)) fail_msg("the loss went from %g to %g", first, last);
  run_close(&run);
  nn_device_destroy(device);
}

static void test_learns(void **state) {
  (void)state;
  for (int i = 0; i < 4; i++) check_learns(i / 2, dtypes[i % 2]);
}

static float *prefill_logits(const run_t *run, int64_t vocab) {
  nn_session_t *session;
  int32_t tokens[SEQ];
  fixture_tokens(tokens, SEQ, vocab, 9);
  float *logits = fixture_memory((size_t)vocab * sizeof *logits);
  CHECK(nn_session_create(run->model, NULL, &session));
  CHECK(nn_session_prefill(session, 0, tokens, SEQ - 1, NULL));
  CHECK(nn_session_decode(session, tokens + SEQ - 1, logits));
  nn_session_destroy(session);
  return logits;
}

/* On a CPU: fp16 parameters are widened exactly, and the loss scale is a power of two, so an fp32
 * model of the same numbers has the same logits and loss, and its gradients times the scale are the
 * same. */
static void check_widened(nn_device_t *device, int kind) {
  char *folder = fixture_folder();
  nn_model_config_t config = config_of(kind);
  run_t half = run_create(device, &config, NN_F16), wide;
  CHECK(nn_model_save(half.model, folder, NULL));
  CHECK(nn_model_load(device, folder, NN_F32, NULL, &wide.model));
  run_prepare(&wide);
  int64_t vocab = config.vocab_size;
  float *logits[] = {prefill_logits(&half, vocab), prefill_logits(&wide, vocab)};
  fixture_same("logits", logits[0], logits[1], vocab);
  free(logits[0]);
  free(logits[1]);
  assert_true(run_backward(&half, 1) == run_backward(&wide, 1));
  int64_t count, unused;
  float *got = fixture_gradients(half.model, &count);
  float *want = fixture_gradients(wide.model, &unused);
  for (int64_t i = 0; i < count; i++) want[i] *= 65536;
  fixture_same("gradients", got, want, count);
  double norm[2];
  CHECK(nn_optim_step(half.optim, 1e-3f, &norm[0]));
  CHECK(nn_optim_step(wide.optim, 1e-3f, &norm[1]));
  assert_true(norm[0] == norm[1]);
  free(got);
  free(want);
  run_close(&half);
  run_close(&wide);
  fixture_folder_remove(folder);
}

static void test_cpu_widens_exactly(void **state) {
  (void)state;
  if (getenv("MOENN_TEST_DEVICE")) skip();
  for (int p = 0; p < FIXTURE_PATHS; p++) {
    nn_device_t *device = fixture_device_of_path(2, fixture_path[p]);
    if (!device) continue;
    for (int kind = 0; kind < 2; kind++) check_widened(device, kind);
    nn_device_destroy(device);
  }
}

static void check_plan(int32_t dtype, int64_t master_bytes) {
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.batch = BATCH, options.seq_len = SEQ;
  nn_plan_t plan = STRUCT(nn_plan_t);
  CHECK(nn_plan_training(device, &config, dtype, &options, &plan));
  assert_int_equal(plan.parameter_bytes, 2 * plan.parameters);
  assert_int_equal(plan.master_bytes, master_bytes * plan.parameters);
  assert_int_equal(plan.gradient_bytes, 4 * plan.parameters);
  run_t run = run_create(device, &config, dtype);
  assert_int_equal(fixture_device_memory(device).current_bytes, plan.total_bytes);
  run_close(&run);
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  nn_device_destroy(device);
}

static void test_plan_is_what_is_held(void **state) {
  (void)state;
  check_plan(NN_BF16, 2);
  check_plan(NN_F16, 4);
}

/* ---- overflow -------------------------------------------------------------------------------- */

/* Puts a number into the gradient of the first parameter. */
static void run_spoil(const run_t *run, float value) {
  nn_tensor_t *whole, *one;
  CHECK(nn_model_gradient(run->model, nn_model_parameter_name(run->model, 0), &whole));
  CHECK(nn_tensor_slice(whole, 0, 0, 1, &one));
  nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
  CHECK(nn_tensor_info(one, &info));
  float *row = malloc((size_t)info.elements * sizeof *row);
  assert_non_null(row);
  for (int64_t i = 0; i < info.elements; i++) row[i] = value;
  CHECK(nn_tensor_copy_in(one, row, (size_t)info.elements * sizeof *row));
  free(row);
  nn_tensor_destroy(one);
  nn_tensor_destroy(whole);
}

/* An update that does not take place; the scale of the next gradients. */
static void run_overflow(const run_t *run, uint64_t seed, double next) {
  int64_t count, moments, steps = nn_optim_steps(run->optim);
  uint16_t *before = run_bits(run, &count);
  float *moments_before = fixture_moments(run->model, run->optim, &moments);
  double scale = nn_model_loss_scale(run->model), norm = 0;
  run_backward(run, seed);
  run_spoil(run, INFINITY);
  assert_true(nn_model_loss_scale(run->model) == scale);
  CHECK(nn_optim_step(run->optim, 1e-3f, &norm));
  assert_true(isinf(norm));
  assert_true(nn_model_loss_scale(run->model) == scale); /* of the gradients that are there */
  CHECK(nn_model_zero_grad(run->model));
  assert_true(nn_model_loss_scale(run->model) == next);
  assert_int_equal(nn_optim_steps(run->optim), steps);
  uint16_t *after = run_bits(run, &count);
  float *moments_after = fixture_moments(run->model, run->optim, &moments);
  assert_memory_equal(after, before, (size_t)count * sizeof *after);
  fixture_same("moments", moments_after, moments_before, moments);
  free(before);
  free(after);
  free(moments_before);
  free(moments_after);
}

static void test_overflow_is_skipped(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  run_t run = run_create(device, &config, NN_F16);
  assert_true(nn_model_loss_scale(run.model) == 65536);
  run_step(&run, 1, 1e-3f);
  for (double next = 32768; next >= 1; next /= 2) run_overflow(&run, 2, next);
  double loss = run_step(&run, 3, 1e-3f), norm = 7; /* unscaled, this model's are in range */
  assert_true(isfinite(loss));
  assert_int_equal(nn_optim_steps(run.optim), 2);
  run_backward(&run, 4);
  run_spoil(&run, NAN);
  CHECK_FAILS(NN_ERR_NONFINITE, "loss scale of 1", nn_optim_step(run.optim, 1e-3f, &norm));
  assert_true(norm == 7 && nn_model_loss_scale(run.model) == 1);
  run_close(&run);
  run = run_create(device, &config, NN_BF16); /* which has no scale that could help */
  assert_true(nn_model_loss_scale(run.model) == 1);
  run_backward(&run, 4);
  run_spoil(&run, INFINITY);
  CHECK_STATUS(NN_ERR_NONFINITE, nn_optim_step(run.optim, 1e-3f, &norm));
  run_close(&run);
  nn_device_destroy(device);
}

/* Gradients that were begun with a scale are gone on with and divided by it, whatever comes
 * next. */
static void test_gradients_keep_their_scale(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  run_t run = run_create(device, &config, NN_F16);
  run_backward(&run, 1);
  double norm[2];
  CHECK(nn_optim_step(run.optim, 0, &norm[0]));
  run_overflow(&run, 1, 32768);
  run_backward(&run, 1);
  CHECK(nn_optim_step(run.optim, 0, &norm[1]));
  /* The scale changes exponents alone. On a GPU, numbers below fp16's smallest normal one keep
   * fewer bits under the smaller scale: those below 2^-14 / 32768, a millionth of the largest. */
  if (!(fabs(norm[1] / norm[0] - 1) < 1e-3)) fail_msg("norms %g and %g", norm[0], norm[1]);
  run_spoil(&run, INFINITY);
  CHECK(nn_optim_step(run.optim, 0, NULL));
  fixture_prepare(run.model, BATCH, SEQ + 4, NN_RECOMPUTE_NONE); /* which keeps gradients */
  assert_true(nn_model_loss_scale(run.model) == 32768);
  CHECK(nn_model_zero_grad(run.model));
  assert_true(nn_model_loss_scale(run.model) == 16384);
  run_close(&run);
  nn_device_destroy(device);
}

/* After 2000 updates in a row, up to 2^24. The gradients are zeros: it is the counting that is
 * meant. */
static void test_scale_grows(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  run_t run = run_create(device, &config, NN_F16);
  for (int i = 0; i < 1999; i++) CHECK(nn_optim_step(run.optim, 0, NULL));
  assert_true(nn_model_loss_scale(run.model) == 65536);
  run_overflow(&run, 1, 32768);
  for (double scale = 32768; scale <= 0x1p24; scale *= 2) {
    for (int i = 0; i < 1999; i++) CHECK(nn_optim_step(run.optim, 0, NULL));
    assert_true(nn_model_loss_scale(run.model) == scale);
    CHECK(nn_optim_step(run.optim, 0, NULL));
    assert_true(nn_model_loss_scale(run.model) == (scale < 0x1p24 ? 2 * scale : scale));
  }
  run_close(&run);
  nn_device_destroy(device);
}

/* ---- resuming -------------------------------------------------------------------------------- */

/* Another one for each step: an update that is replayed takes it up. */
static float rate(uint64_t step) { return 1e-3f / (float)(step + 1); }

static void check_resumes(int kind, int32_t dtype) {
  char *folder = fixture_folder(), path[512];
  snprintf(path, sizeof path, "%s/optim.safetensors", folder);
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = config_of(kind);
  run_t whole = run_create(device, &config, dtype), again;
  for (uint64_t i = 0; i < 5; i++) run_step(&whole, i, rate(i));
  if (dtype == NN_F16) run_overflow(&whole, 5, 32768);
  CHECK(nn_model_save(whole.model, folder, NULL));
  CHECK(nn_optim_save(whole.optim, path));
  CHECK(nn_model_load(device, folder, NN_DTYPE_FILE, NULL, &again.model));
  run_prepare(&again);
  CHECK(nn_optim_load(again.optim, path));
  assert_true(nn_model_loss_scale(again.model) == nn_model_loss_scale(whole.model));
  for (uint64_t i = 5; i < 10; i++) {
    double expected = run_step(&whole, i, rate(i));
    assert_true(run_step(&again, i, rate(i)) == expected);
  }
  int64_t count, unused;
  uint16_t *want = run_bits(&whole, &count), *got = run_bits(&again, &unused);
  assert_memory_equal(got, want, (size_t)count * sizeof *got);
  /* the file is no state of a model of another dtype */
  for (int i = 0; i < 3; i++) {
    static const int32_t others[] = {NN_F32, NN_BF16, NN_F16};
    if (others[i] == dtype) continue;
    run_t other;
    CHECK(nn_model_load(device, folder, others[i], NULL, &other.model));
    run_prepare(&other);
    CHECK_STATUS(NN_ERR_FORMAT, nn_optim_load(other.optim, path));
    run_close(&other);
  }
  free(want);
  free(got);
  run_close(&whole);
  run_close(&again);
  nn_device_destroy(device);
  fixture_folder_remove(folder);
}

static void test_resumes(void **state) {
  (void)state;
  for (int i = 0; i < 4; i++) check_resumes(i / 2, dtypes[i % 2]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_learns),
      cmocka_unit_test(test_cpu_widens_exactly),
      cmocka_unit_test(test_plan_is_what_is_held),
      cmocka_unit_test(test_overflow_is_skipped),
      cmocka_unit_test(test_gradients_keep_their_scale),
      cmocka_unit_test(test_scale_grows),
      cmocka_unit_test(test_resumes),
  };
  return cmocka_run_group_tests_name("training in 16 bits", tests, NULL, NULL);
}
