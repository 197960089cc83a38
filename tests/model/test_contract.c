/* What nn_model_t refuses: calls out of order, bad batches, NULL, structs of another size; and that
 * handles may be destroyed in any order. */
#include <string.h>

#include "batch.h"

static void test_before_prepare(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 1);
  batch_t batch = batch_of(config.vocab_size);
  float *logits = fixture_memory(TOKENS * 67 * sizeof *logits);
  nn_loss_t loss = STRUCT(nn_loss_t);
  nn_tensor_t *tensor = NULL;
  nn_optim_t *optim = NULL;
  for (int round = 0; round < 2; round++) {
    CHECK_STATUS(NN_ERR_STATE, nn_model_forward(model, batch.tokens, BATCH, SEQ, logits));
    CHECK_STATUS(NN_ERR_STATE,
                 nn_model_evaluate(model, batch.tokens, batch.targets, BATCH, SEQ, &loss));
    CHECK_STATUS(NN_ERR_STATE, batch_backward(model, &batch));
    CHECK_STATUS(NN_ERR_STATE, nn_model_zero_grad(model));
    CHECK_STATUS(NN_ERR_STATE, nn_model_gradient(model, "lm_head.weight", &tensor));
    CHECK_STATUS(NN_ERR_STATE, nn_optim_create(model, NULL, &optim));
    assert_null(tensor);
    assert_null(optim);
    /* and the same again after what was prepared was given back */
    int64_t held = fixture_device_memory(device).current_bytes;
    fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
    CHECK(batch_backward(model, &batch));
    CHECK(nn_model_prepare(model, NULL));
    assert_int_equal(fixture_device_memory(device).current_bytes, held);
  }
  /* An optimizer outlives the preparation, but has no gradients to step along. */
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK(nn_optim_create(model, NULL, &optim));
  CHECK(nn_model_prepare(model, NULL));
  CHECK_STATUS(NN_ERR_STATE, nn_optim_step(optim, 1e-3f, NULL));
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK(batch_backward(model, &batch));
  CHECK(nn_optim_step(optim, 1e-3f, NULL));
  nn_optim_destroy(optim);
  free(logits);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

static void test_preparing_again_keeps_gradients(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 1);
  batch_t batch = batch_of(config.vocab_size);
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK(batch_backward(model, &batch));
  int64_t count;
  float *before = fixture_gradients(model, &count);
  fixture_prepare(model, 1, 24, NN_RECOMPUTE_BLOCK);
  float *after = fixture_gradients(model, &count);
  fixture_same("gradients", before, after, count);
  /* A shape that cannot be leaves all as it was. */
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.seq_len = 25;
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_model_prepare(model, &options));
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_backward(model, batch.tokens, batch.targets, 1, TOKENS, 1, &loss));
  free(before);
  free(after);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

static void test_batches_refused(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 1);
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  batch_t batch = batch_of(config.vocab_size);
  static const struct {
    int64_t batch, seq;
  } shapes[] = {{0, SEQ}, {BATCH, 0}, {-1, SEQ}, {BATCH, -1}, {BATCH + 1, SEQ}, {BATCH, SEQ + 1},
                {INT64_MAX, SEQ}, {INT64_MAX / 2, 4}};
  float *logits = fixture_memory(TOKENS * 67 * sizeof *logits);
  nn_loss_t loss = STRUCT(nn_loss_t);
  loss.loss = 42;
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    int64_t b = shapes[i].batch, s = shapes[i].seq;
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_model_forward(model, batch.tokens, b, s, logits));
    CHECK_STATUS(NN_ERR_ARGUMENT,
                 nn_model_evaluate(model, batch.tokens, batch.targets, b, s, &loss));
    CHECK_STATUS(NN_ERR_ARGUMENT,
                 nn_model_backward(model, batch.tokens, batch.targets, b, s, 1, &loss));
  }
  for (int i = 0; i < 3; i++) {
    batch_t bad = batch;
    bad.tokens[TOKENS - 1] = i == 0 ? -1 : i == 1 ? 67 : INT32_MAX;
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_model_forward(model, bad.tokens, BATCH, SEQ, logits));
    CHECK_STATUS(NN_ERR_ARGUMENT,
                 nn_model_evaluate(model, bad.tokens, bad.targets, BATCH, SEQ, &loss));
    CHECK_STATUS(NN_ERR_ARGUMENT, batch_backward(model, &bad));
  }
  for (int i = 0; i < 2; i++) {
    batch_t bad = batch;
    bad.targets[4] = i == 0 ? 67 : INT32_MAX;
    CHECK_STATUS(NN_ERR_ARGUMENT,
                 nn_model_evaluate(model, bad.tokens, bad.targets, BATCH, SEQ, &loss));
    CHECK_STATUS(NN_ERR_ARGUMENT, batch_backward(model, &bad));
  }
  assert_true(loss.loss == 42);
  /* a message says what was found */
  assert_non_null(strstr(nn_last_error(), "2147483647"));
  /* none of this left a trace in the gradients */
  int64_t count;
  float *gradients = fixture_gradients(model, &count);
  assert_true(fixture_largest(gradients, count) == 0);
  free(gradients);
  free(logits);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

static void test_nulls(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 1), *other = NULL;
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  batch_t batch = batch_of(config.vocab_size);
  float *logits = fixture_memory(TOKENS * 67 * sizeof *logits);
  nn_loss_t loss = STRUCT(nn_loss_t);
  nn_plan_t plan = STRUCT(nn_plan_t);
  nn_tensor_t *tensor = NULL;
  nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
  nn_train_options_t options = STRUCT(nn_train_options_t);
  options.seq_len = SEQ;
#define REFUSED(call) CHECK_STATUS(NN_ERR_ARGUMENT, call)
  REFUSED(nn_model_create(NULL, &config, NN_F32, 1, &other));
  REFUSED(nn_model_create(device, NULL, NN_F32, 1, &other));
  REFUSED(nn_model_create(device, &config, NN_F32, 1, NULL));
  REFUSED(nn_model_load(NULL, "x", -1, NULL, &other));
  REFUSED(nn_model_load(device, NULL, -1, NULL, &other));
  REFUSED(nn_model_load(device, "x", -1, NULL, NULL));
  REFUSED(nn_model_save(NULL, "x", NULL));
  REFUSED(nn_model_save(model, NULL, NULL));
  REFUSED(nn_model_config(NULL, &config));
  REFUSED(nn_model_config(model, NULL));
  REFUSED(nn_model_parameter(NULL, "lm_head.weight", &tensor));
  REFUSED(nn_model_parameter(model, NULL, &tensor));
  REFUSED(nn_model_parameter(model, "lm_head.weight", NULL));
  REFUSED(nn_model_gradient(NULL, "lm_head.weight", &tensor));
  REFUSED(nn_model_gradient(model, NULL, &tensor));
  REFUSED(nn_model_gradient(model, "lm_head.weight", NULL));
  REFUSED(nn_model_prepare(NULL, &options));
  REFUSED(nn_model_forward(NULL, batch.tokens, BATCH, SEQ, logits));
  REFUSED(nn_model_forward(model, NULL, BATCH, SEQ, logits));
  REFUSED(nn_model_forward(model, batch.tokens, BATCH, SEQ, NULL));
  REFUSED(nn_model_evaluate(NULL, batch.tokens, batch.targets, BATCH, SEQ, &loss));
  REFUSED(nn_model_evaluate(model, NULL, batch.targets, BATCH, SEQ, &loss));
  REFUSED(nn_model_evaluate(model, batch.tokens, NULL, BATCH, SEQ, &loss));
  REFUSED(nn_model_evaluate(model, batch.tokens, batch.targets, BATCH, SEQ, NULL));
  REFUSED(nn_model_backward(NULL, batch.tokens, batch.targets, BATCH, SEQ, 1, &loss));
  REFUSED(nn_model_backward(model, NULL, batch.targets, BATCH, SEQ, 1, &loss));
  REFUSED(nn_model_backward(model, batch.tokens, NULL, BATCH, SEQ, 1, &loss));
  REFUSED(nn_model_zero_grad(NULL));
  REFUSED(nn_model_expert_stats(NULL, 0, NULL, NULL, &stats));
  REFUSED(nn_model_expert_stats(model, 0, NULL, NULL, NULL));
  REFUSED(nn_model_expert_stats(model, -1, NULL, NULL, &stats));
  REFUSED(nn_model_expert_stats(model, 2, NULL, NULL, &stats));
  REFUSED(nn_model_expert_stats_reset(NULL));
  REFUSED(nn_plan_training(NULL, &config, NN_F32, &options, &plan));
  REFUSED(nn_plan_training(device, NULL, NN_F32, &options, &plan));
  REFUSED(nn_plan_training(device, &config, NN_F32, &options, NULL));
  REFUSED(nn_plan_inference(NULL, &config, NN_F32, NULL, &plan));
  REFUSED(nn_plan_inference(device, NULL, NN_F32, NULL, &plan));
  REFUSED(nn_plan_inference(device, &config, NN_F32, NULL, NULL));
#undef REFUSED
  assert_null(other);
  assert_null(tensor);
  assert_int_equal(nn_model_parameter_count(NULL), 0);
  assert_null(nn_model_parameter_name(NULL, 0));
  nn_model_destroy(NULL);
  free(logits);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* Option structs: no size, a known tail that is not zero, an unknown one that is. */
static void test_struct_sizes(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  struct {
    nn_model_config_t config;
    char tail[16];
  } longer = {.config = fixture_moe()};
  nn_model_t *model;
  longer.config.struct_size = sizeof longer;
  CHECK(nn_model_create(device, &longer.config, NN_F32, 1, &model));
  /* results of the same age: what this library does not know becomes zero */
  memset(longer.tail, 1, sizeof longer.tail);
  CHECK(nn_model_config(model, &longer.config));
  for (size_t i = 0; i < sizeof longer.tail; i++) assert_int_equal(longer.tail[i], 0);
  assert_int_equal(longer.config.struct_size, sizeof longer);
  nn_model_t *other = NULL;
  longer.tail[5] = 1;
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_model_create(device, &longer.config, NN_F32, 1, &other));
  longer.config.struct_size = 0;
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_model_create(device, &longer.config, NN_F32, 1, &other));
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_model_config(model, &(nn_model_config_t){0}));
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_model_prepare(model, &(nn_train_options_t){0}));
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  batch_t batch = batch_of(67);
  nn_loss_t loss = {0};
  CHECK_STATUS(NN_ERR_STRUCT_SIZE,
               nn_model_evaluate(model, batch.tokens, batch.targets, BATCH, SEQ, &loss));
  loss.struct_size = offsetof(nn_loss_t, targets); /* no release had this size */
  CHECK_STATUS(NN_ERR_STRUCT_SIZE,
               nn_model_evaluate(model, batch.tokens, batch.targets, BATCH, SEQ, &loss));
  assert_null(other);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

static void test_dtypes(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = NULL;
  static const int32_t refused[] = {NN_I64, NN_F64, NN_I32, -1, 99};
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
    nn_status_t status = nn_model_create(device, &config, refused[i], 1, &model);
    assert_true(status == NN_ERR_UNSUPPORTED || status == NN_ERR_ARGUMENT);
    assert_null(model);
  }
  CHECK(nn_model_create(device, &config, NN_BF16, 1, &model));
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* Any order of destruction; a handle keeps what it depends on. */
static void test_destroy_in_any_order(void **state) {
  (void)state;
  for (int order = 0; order < 24; order++) {
    nn_device_t *device = fixture_device(2, 0);
    nn_model_config_t config = fixture_moe();
    nn_model_t *model = fixture_model(device, &config, 1);
    fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
    nn_optim_t *optim;
    CHECK(nn_optim_create(model, NULL, &optim));
    nn_session_t *session;
    CHECK(nn_session_create(model, NULL, &session));
    nn_tensor_t *gradient;
    CHECK(nn_model_gradient(model, "lm_head.weight", &gradient));
    int left[4] = {0, 1, 2, 3}, code = order;
    for (int n = 4; n > 0; n--) {
      int pick = code % n, what = left[pick];
      code /= n;
      for (int i = pick; i < n - 1; i++) left[i] = left[i + 1];
      if (what == 0) nn_device_destroy(device);
      if (what == 1) nn_model_destroy(model);
      if (what == 2) nn_optim_destroy(optim);
      if (what == 3) {
        float logits[67];
        CHECK(nn_session_prefill(session, 0, (const int32_t[]){1, 2, 3}, 3, logits));
        nn_session_destroy(session);
      }
    }
    float value[67 * 22];
    CHECK(nn_tensor_copy_out(gradient, value, sizeof value));
    nn_tensor_destroy(gradient);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_before_prepare),
      cmocka_unit_test(test_preparing_again_keeps_gradients),
      cmocka_unit_test(test_batches_refused),
      cmocka_unit_test(test_nulls),
      cmocka_unit_test(test_struct_sizes),
      cmocka_unit_test(test_dtypes),
      cmocka_unit_test(test_destroy_in_any_order),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
