/* Training with bf16 parameters on top of fp32 masters: it learns, the plan is what is held, and a run
 * that was saved and resumed goes on bit for bit. */
#include <stdio.h>
#include <string.h>

#include "fixture.h"

enum { BATCH = 4, SEQ = 16, TOKENS = BATCH * SEQ };

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

static double run_step(const run_t *run, uint64_t seed, float lr) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_model_config(run->model, &config));
  int32_t tokens[TOKENS], targets[TOKENS];
  fixture_tokens(tokens, TOKENS, config.vocab_size, seed);
  fixture_targets(targets, TOKENS, config.vocab_size, seed + 100);
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_zero_grad(run->model));
  CHECK(nn_model_backward(run->model, tokens, targets, BATCH, SEQ, 1, &loss));
  CHECK(nn_optim_step(run->optim, lr, NULL));
  return loss.loss;
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
    assert_int_equal(info.dtype, NN_BF16);
    bits = realloc(bits, (size_t)(*count + info.elements) * sizeof *bits);
    assert_non_null(bits);
    CHECK(nn_tensor_copy_out(tensor, bits + *count, (size_t)info.elements * sizeof *bits));
    *count += info.elements;
    nn_tensor_destroy(tensor);
  }
  return bits;
}

static nn_model_config_t config_of(int kind) { return kind ? fixture_gpt2() : fixture_moe(); }

/* One batch again and again, at a rate so small that bf16 alone could not take most updates in. */
static void test_learns(void **state) {
  (void)state;
  for (int kind = 0; kind < 2; kind++) {
    nn_device_t *device = fixture_device(2, 0);
    nn_model_config_t config = config_of(kind);
    run_t run;
    CHECK(nn_model_create(device, &config, NN_BF16, 1, &run.model));
    run_prepare(&run);
    double first = run_step(&run, 1, 3e-4f), last = 0;
    for (int i = 0; i < 150; i++) last = run_step(&run, 1, 3e-4f);
    if (!(last < 0.8 * first)) fail_msg("the loss went from %g to %g", first, last);
    run_close(&run);
    nn_device_destroy(device);
  }
}

static void test_plan_is_what_is_held(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.batch = BATCH, options.seq_len = SEQ;
  nn_plan_t plan = STRUCT(nn_plan_t);
  CHECK(nn_plan_training(device, &config, NN_BF16, &options, &plan));
  assert_int_equal(plan.parameter_bytes, 2 * plan.parameters);
  assert_int_equal(plan.master_bytes, 2 * plan.parameters);
  assert_int_equal(plan.gradient_bytes, 4 * plan.parameters);
  run_t run;
  CHECK(nn_model_create(device, &config, NN_BF16, 1, &run.model));
  run_prepare(&run);
  assert_int_equal(fixture_device_memory(device).current_bytes, plan.total_bytes);
  run_close(&run);
  assert_int_equal(fixture_device_memory(device).current_bytes, 0);
  nn_device_destroy(device);
}

/* Another one for each step: an update that is replayed takes it up. */
static float rate(uint64_t step) { return 1e-3f / (float)(step + 1); }

static void test_resumes(void **state) {
  (void)state;
  for (int kind = 0; kind < 2; kind++) {
    char *folder = fixture_folder(), path[512];
    snprintf(path, sizeof path, "%s/optim.safetensors", folder);
    nn_device_t *device = fixture_device(2, 0);
    nn_model_config_t config = config_of(kind);
    run_t whole, again;
    CHECK(nn_model_create(device, &config, NN_BF16, 1, &whole.model));
    run_prepare(&whole);
    for (uint64_t i = 0; i < 5; i++) run_step(&whole, i, rate(i));
    CHECK(nn_model_save(whole.model, folder, NULL));
    CHECK(nn_optim_save(whole.optim, path));
    CHECK(nn_model_load(device, folder, NN_BF16, NULL, &again.model));
    run_prepare(&again);
    CHECK(nn_optim_load(again.optim, path));
    for (uint64_t i = 5; i < 10; i++) {
      double expected = run_step(&whole, i, rate(i));
      assert_true(run_step(&again, i, rate(i)) == expected);
    }
    int64_t count, unused;
    uint16_t *want = run_bits(&whole, &count), *got = run_bits(&again, &unused);
    assert_memory_equal(got, want, (size_t)count * sizeof *got);
    /* the file of a bf16 run is no state of an fp32 model */
    nn_model_t *wide;
    CHECK(nn_model_load(device, folder, NN_F32, NULL, &wide));
    run_t other = {wide, NULL};
    run_prepare(&other);
    CHECK_STATUS(NN_ERR_FORMAT, nn_optim_load(other.optim, path));
    run_close(&other);
    free(want);
    free(got);
    run_close(&whole);
    run_close(&again);
    nn_device_destroy(device);
    fixture_folder_remove(folder);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_learns),
      cmocka_unit_test(test_plan_is_what_is_held),
      cmocka_unit_test(test_resumes),
  };
  return cmocka_run_group_tests_name("bf16 training", tests, NULL, NULL);
}
