/* The bytes of training and serving: plans that equal what is taken, and steps that allocate
 * nothing. */
#include "base/mem.h"
#include "run.h"

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

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_plan_is_what_training_takes),
      cmocka_unit_test(test_plan_is_what_serving_takes),
      cmocka_unit_test(test_recomputation_keeps_less),
      cmocka_unit_test(test_steady_steps_allocate_nothing),
      cmocka_unit_test(test_steady_steps_allocate_nothing_on_the_host),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
