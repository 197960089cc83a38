/* What a GPU's driver says is taken, against the byte plan: memory that the library or its plugin
 * took outside the plan, and counted nowhere, is seen here. Nothing else may use the GPU meanwhile.
 *
 * Beside the plan there is what the driver rounds each allocation up to, 2 MiB, and what it keeps
 * of graphs, for which GRAPHS is room; and once, when kernels are first called, their code,
 * cuBLASLt's among it, and their local memory: FIRST. */
#include <dlfcn.h>
#include <string.h>

#include "fixture.h"

enum { BATCH = 2, SEQ = 256, TOKENS = BATCH * SEQ, STEPS = 4 };
static const double ROUNDED = 2 << 20, GRAPHS = 32 << 20, FIRST = 512 << 20;

/* Bytes of the GPU that are free, by the driver, whose context the device made current. */
static double gpu_free(void) {
  int (*info)(size_t *left, size_t *all) = NULL;
  void *driver = dlopen("libcuda.so.1", RTLD_NOW);
  void *found = driver ? dlsym(driver, "cuMemGetInfo_v2") : NULL;
  assert_non_null(found);
  memcpy(&info, &found, sizeof info);
  size_t left = 0, all = 0;
  assert_int_equal(info(&left, &all), 0);
  dlclose(driver);
  return (double)left;
}

/* 130 million parameters, most of them in the experts of two layers. */
static nn_model_config_t config_of(void) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("moe-6.9b", &config));
  config.layers = 2, config.experts = 8, config.top_k = 2;
  config.vocab_size = 4096, config.context = 1024;
  return config;
}

/* Trains and generates; returns what is taken meanwhile beyond `planned`, the driver's 2 MiB taken
 * off for each allocation. */
static double taken_beyond(nn_device_t *device, int32_t dtype, double planned, double *after) {
  const nn_model_config_t config = config_of();
  double before = gpu_free();
  int64_t allocations = fixture_device_memory(device).allocations, count;
  nn_model_t *model;
  nn_optim_t *optim;
  nn_session_t *session;
  CHECK(nn_model_create(device, &config, dtype, 1, &model));
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK(nn_optim_create(model, NULL, &optim));
  CHECK(nn_session_create(model, NULL, &session));
  assert_true((double)fixture_device_memory(device).current_bytes == planned);
  allocations = fixture_device_memory(device).allocations - allocations;
  static int32_t tokens[TOKENS];
  fixture_tokens(tokens, TOKENS, config.vocab_size, 1);
  for (int step = 0; step < STEPS; step++) {
    CHECK(nn_model_zero_grad(model));
    CHECK(nn_model_backward(model, tokens, tokens, BATCH, SEQ, 1, NULL));
    CHECK(nn_optim_step(optim, 1e-4f, NULL));
  }
  nn_generate_options_t options = STRUCT(nn_generate_options_t);
  options.max_tokens = STEPS;
  CHECK(nn_session_generate(session, 0, tokens, SEQ, &options, NULL, 0, &count, NULL));
  double beyond = before - gpu_free() - planned;
  nn_session_destroy(session);
  nn_optim_destroy(optim);
  nn_model_destroy(model);
  *after = before - gpu_free();
  return beyond - ROUNDED * (double)allocations;
}

static double planned_bytes(nn_device_t *device, int32_t dtype) {
  const nn_model_config_t config = config_of();
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.batch = BATCH, options.seq_len = SEQ;
  nn_plan_t training = STRUCT(nn_plan_t), serving = STRUCT(nn_plan_t);
  CHECK(nn_plan_training(device, &config, dtype, &options, &training));
  CHECK(nn_plan_inference(device, &config, dtype, NULL, &serving));
  return (double)(training.total_bytes + serving.total_bytes - serving.parameter_bytes);
}

static void test_nothing_beside_the_plan(void **state) {
  (void)state;
  static const int32_t dtypes[] = {NN_F32, NN_BF16, NN_F16};
  nn_device_t *device = fixture_device_named("cuda:0", 0, 0);
  for (int i = 0; i < 3; i++) {
    double planned = planned_bytes(device, dtypes[i]), left[2], beyond[2];
    for (int turn = 0; turn < 2; turn++) {
      beyond[turn] = taken_beyond(device, dtypes[i], planned, &left[turn]);
      print_message("%s, planned %.1f MiB: %.1f beyond it, %.1f afterwards\n",
                    turn ? "again" : "first", planned / 0x1p20, beyond[turn] / 0x1p20,
                    left[turn] / 0x1p20);
    }
    assert_true(beyond[0] <= FIRST);
    assert_true(beyond[1] <= GRAPHS);
    assert_true(left[1] <= GRAPHS);
  }
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_nothing_beside_the_plan)};
  return cmocka_run_group_tests_name("bytes of a GPU", tests, NULL, NULL);
}
