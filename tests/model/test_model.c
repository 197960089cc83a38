/* nn_model_t: parameters by name, first weights, plans, saving and loading, shapes of batches. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "batch.h"

/* ---- parameters ---- */

static void test_names_and_shapes(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t configs[] = {fixture_moe(), fixture_gpt2()};
  static const struct {
    int model;
    const char *name;
    int64_t rows, columns; /* columns 0: a vector */
  } known[] = {
      {0, "model.embed_tokens.weight", 67, 22},
      {0, "model.layers.0.input_layernorm.weight", 22, 0},
      {0, "model.layers.1.self_attn.q_proj.weight", 24, 22},
      {0, "model.layers.1.self_attn.k_proj.weight", 12, 22},
      {0, "model.layers.1.self_attn.v_proj.weight", 12, 22},
      {0, "model.layers.0.self_attn.o_proj.weight", 22, 24},
      {0, "model.layers.0.post_attention_layernorm.weight", 22, 0},
      {0, "model.layers.1.block_sparse_moe.gate.weight", 5, 22},
      {0, "model.layers.1.block_sparse_moe.experts.4.w1.weight", 19, 22},
      {0, "model.layers.1.block_sparse_moe.experts.4.w2.weight", 22, 19},
      {0, "model.layers.1.block_sparse_moe.experts.4.w3.weight", 19, 22},
      {0, "model.norm.weight", 22, 0},
      {0, "lm_head.weight", 67, 22},
      {1, "transformer.wte.weight", 67, 21},
      {1, "transformer.wpe.weight", 24, 21},
      {1, "transformer.h.1.ln_1.weight", 21, 0},
      {1, "transformer.h.1.ln_1.bias", 21, 0},
      {1, "transformer.h.1.attn.c_attn.weight", 21, 63},
      {1, "transformer.h.1.attn.c_attn.bias", 63, 0},
      {1, "transformer.h.1.attn.c_proj.weight", 21, 21},
      {1, "transformer.h.0.mlp.c_fc.weight", 21, 35},
      {1, "transformer.h.0.mlp.c_fc.bias", 35, 0},
      {1, "transformer.h.0.mlp.c_proj.weight", 35, 21},
      {1, "transformer.ln_f.bias", 21, 0},
  };
  /* Per layer: 2 norms, 4 of attention, the router, 3 an expert; or 12. */
  static const int64_t counts[] = {3 + 2 * (7 + 3 * 5), 4 + 2 * 12};
  for (int m = 0; m < 2; m++) {
    nn_model_t *model = fixture_model(device, &configs[m], 1);
    assert_int_equal(nn_model_parameter_count(model), counts[m]);
    for (int64_t i = 0; i < counts[m]; i++) {
      const char *name = nn_model_parameter_name(model, i);
      assert_non_null(name);
      for (int64_t j = 0; j < i; j++)
        assert_string_not_equal(name, nn_model_parameter_name(model, j));
    }
    for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
      if (known[k].model != m) continue;
      nn_tensor_t *tensor;
      CHECK(nn_model_parameter(model, known[k].name, &tensor));
      nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
      CHECK(nn_tensor_info(tensor, &info));
      assert_int_equal(info.ndim, known[k].columns ? 2 : 1);
      assert_int_equal(info.shape[0], known[k].rows);
      if (known[k].columns) assert_int_equal(info.shape[1], known[k].columns);
      nn_tensor_destroy(tensor);
    }
    assert_null(nn_model_parameter_name(model, -1));
    assert_null(nn_model_parameter_name(model, counts[m]));
    nn_tensor_t *none = NULL;
    CHECK_STATUS(NN_ERR_NOT_FOUND, nn_model_parameter(model, "model.layers.2.norm", &none));
    CHECK_STATUS(NN_ERR_NOT_FOUND, nn_model_parameter(model, "", &none));
    assert_null(none);
    nn_model_destroy(model);
  }
  nn_device_destroy(device);
}

static void test_parameters_are_views(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t configs[] = {fixture_moe(), fixture_gpt2()};
  static const char *const names[] = {"lm_head.weight", "transformer.h.0.mlp.c_fc.weight"};
  for (int m = 0; m < 2; m++) {
    nn_model_t *model = fixture_model(device, &configs[m], 1);
    fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
    batch_t batch = batch_of(configs[m].vocab_size);
    int64_t count = TOKENS * configs[m].vocab_size;
    float *before = batch_logits(model, batch.tokens, BATCH, SEQ);
    nn_tensor_t *tensor, *row, *again;
    CHECK(nn_model_parameter(model, names[m], &tensor));
    CHECK(nn_tensor_slice(tensor, 0, 3, 4, &row));
    nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
    CHECK(nn_tensor_info(row, &info));
    float *values = fixture_memory((size_t)info.elements * sizeof *values);
    CHECK(nn_tensor_copy_out(row, values, (size_t)info.elements * sizeof *values));
    float kept = values[2];
    values[2] += 1;
    CHECK(nn_tensor_copy_in(row, values, (size_t)info.elements * sizeof *values));
    /* another view of the same parameter sees it, and so does the model */
    CHECK(nn_model_parameter(model, names[m], &again));
    nn_tensor_t *same_row, *element;
    float seen = 0;
    CHECK(nn_tensor_slice(again, 0, 3, 4, &same_row));
    CHECK(nn_tensor_slice(same_row, 1, 2, 3, &element));
    CHECK(nn_tensor_copy_out(element, &seen, sizeof seen));
    assert_true(seen == kept + 1);
    nn_tensor_destroy(same_row);
    nn_tensor_destroy(element);
    float *after = batch_logits(model, batch.tokens, BATCH, SEQ);
    assert_memory_not_equal(before, after, (size_t)count * sizeof *before);
    values[2] = kept;
    CHECK(nn_tensor_copy_in(row, values, (size_t)info.elements * sizeof *values));
    free(after);
    after = batch_logits(model, batch.tokens, BATCH, SEQ);
    fixture_same("logits", before, after, count);
    /* the views keep the buffer alive */
    nn_model_destroy(model);
    nn_device_destroy(NULL);
    CHECK(nn_tensor_copy_out(row, values, (size_t)info.elements * sizeof *values));
    assert_true(values[2] == kept);
    nn_tensor_destroy(tensor);
    nn_tensor_destroy(again);
    nn_tensor_destroy(row);
    assert_int_equal(fixture_device_memory(device).current_bytes, 0);
    free(values);
    free(before);
    free(after);
  }
  nn_device_destroy(device);
}

static void test_gradients_are_views_of_the_same_shape(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_gpt2();
  nn_model_t *model = fixture_model(device, &config, 1);
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  for (int64_t i = 0; i < nn_model_parameter_count(model); i++) {
    nn_tensor_t *parameter, *gradient;
    CHECK(nn_model_parameter(model, nn_model_parameter_name(model, i), &parameter));
    CHECK(nn_model_gradient(model, nn_model_parameter_name(model, i), &gradient));
    nn_tensor_info_t p = STRUCT(nn_tensor_info_t), g = STRUCT(nn_tensor_info_t);
    CHECK(nn_tensor_info(parameter, &p));
    CHECK(nn_tensor_info(gradient, &g));
    assert_int_equal(g.dtype, NN_F32);
    assert_int_equal(p.ndim, g.ndim);
    assert_memory_equal(p.shape, g.shape, (size_t)p.ndim * sizeof *p.shape);
    assert_ptr_not_equal(p.data, g.data);
    nn_tensor_destroy(parameter);
    nn_tensor_destroy(gradient);
  }
  nn_model_destroy(model);
  nn_device_destroy(device);
}

static void test_initial_weights(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("tiny", &config));
  nn_model_t *model = fixture_model(device, &config, 7), *same = fixture_model(device, &config, 7),
             *other = fixture_model(device, &config, 8);
  int64_t count;
  float *a = fixture_parameters(model, &count), *b = fixture_parameters(same, &count),
        *c = fixture_parameters(other, &count);
  fixture_same("same seed", a, b, count);
  assert_memory_not_equal(a, c, (size_t)count * sizeof *a);
  nn_tensor_t *tensor;
  CHECK(nn_model_parameter(model, "model.embed_tokens.weight", &tensor));
  enum { N = 64000 };
  float *values = fixture_memory(N * sizeof *values);
  CHECK(nn_tensor_copy_out(tensor, values, N * sizeof *values));
  double sum = 0, square = 0, fourth = 0;
  for (int i = 0; i < N; i++) {
    double x = (double)values[i] / 0.02;
    sum += x, square += x * x, fourth += x * x * x * x;
  }
  /* Five standard errors of the mean (1 / sqrt N), the variance (sqrt(2 / N)), the fourth moment
   * (sqrt(96 / N)) of a standard normal. */
  assert_true(fabs(sum / N) < 5 / sqrt(N));
  assert_true(fabs(square / N - 1) < 5 * sqrt(2.0 / N));
  assert_true(fabs(fourth / N - 3) < 5 * sqrt(96.0 / N));
  nn_tensor_destroy(tensor);
  CHECK(nn_model_parameter(model, "model.norm.weight", &tensor));
  CHECK(nn_tensor_copy_out(tensor, values, 64 * sizeof *values));
  for (int i = 0; i < 64; i++) assert_true(values[i] == 1);
  nn_tensor_destroy(tensor);
  free(values);
  free(a), free(b), free(c);
  nn_model_destroy(model);
  nn_model_destroy(same);
  nn_model_destroy(other);
  nn_device_destroy(device);
}

/* GPT-2: what adds to the residual stream begins 1 / sqrt(2 layers) smaller; biases are 0. */
static void test_initial_weights_gpt2(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_gpt2();
  config.layers = 8;
  config.hidden = 96;
  config.ffn = 384;
  config.init_std = 0;
  nn_model_t *model = fixture_model(device, &config, 7);
  static const struct {
    const char *name;
    int64_t elements;
    double std;
  } known[] = {{"transformer.h.3.attn.c_attn.weight", 96 * 288, 0.02},
               {"transformer.h.3.mlp.c_fc.weight", 96 * 384, 0.02},
               {"transformer.h.3.attn.c_proj.weight", 96 * 96, 0.005},
               {"transformer.h.3.mlp.c_proj.weight", 96 * 384, 0.005},
               {"transformer.wpe.weight", 24 * 96, 0.02},
               {"transformer.h.3.mlp.c_proj.bias", 96, 0}};
  for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
    nn_tensor_t *tensor;
    CHECK(nn_model_parameter(model, known[k].name, &tensor));
    size_t bytes = (size_t)known[k].elements * sizeof(float);
    float *values = fixture_memory(bytes);
    CHECK(nn_tensor_copy_out(tensor, values, bytes));
    double square = 0;
    for (int64_t i = 0; i < known[k].elements; i++) square += (double)values[i] * (double)values[i];
    double n = (double)known[k].elements, variance = known[k].std * known[k].std;
    /* five standard errors of a normal's variance */
    assert_true(fabs(square / n - variance) <= 5 * sqrt(2 / n) * variance);
    free(values);
    nn_tensor_destroy(tensor);
  }
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* ---- configurations and plans ---- */

static void test_presets_have_their_parameters(void **state) {
  (void)state;
  static const struct {
    const char *name;
    int64_t parameters, active;
  } presets[] = {{"moe-6.9b", 6882678528, 1762023168}, {"gpt2-124m", 124439808, 124439808},
                 {"gpt2-350m", 354823168, 354823168},  {"gpt2-774m", 774030080, 774030080},
                 {"gpt2-1558m", 1557611200, 1557611200}};
  nn_device_t *device = fixture_device(2, 0);
  for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
    nn_model_config_t config = STRUCT(nn_model_config_t);
    CHECK(nn_config_preset(presets[i].name, &config));
    nn_plan_t plan = STRUCT(nn_plan_t);
    CHECK(nn_plan_inference(device, &config, NN_BF16, NULL, &plan));
    assert_int_equal(plan.parameters, presets[i].parameters);
    assert_int_equal(plan.active_parameters, presets[i].active);
    assert_in_range(plan.parameter_bytes, 2 * presets[i].parameters,
                    2 * presets[i].parameters + 64);
    assert_int_equal(plan.gradient_bytes, 0);
    assert_int_equal(plan.optimizer_bytes, 0);
    nn_train_options_t options = STRUCT(nn_train_options_t);
    options.seq_len = 128;
    options.recompute = NN_RECOMPUTE_BLOCK;
    CHECK(nn_plan_training(device, &config, NN_F32, &options, &plan));
    assert_in_range(plan.parameter_bytes, 4 * presets[i].parameters,
                    4 * presets[i].parameters + 64);
    assert_in_range(plan.gradient_bytes, 4 * presets[i].parameters, 4 * presets[i].parameters + 64);
    assert_in_range(plan.optimizer_bytes, 8 * presets[i].parameters,
                    8 * presets[i].parameters + 128);
  }
  nn_memory_t memory = fixture_device_memory(device);
  assert_int_equal(memory.allocations, 0);
  assert_int_equal(memory.peak_bytes, 0);
  nn_device_destroy(device);
}

/* The big model serves its whole context from 15 GB; stretched eight times it is the cache that
 * grows. */
static void test_big_model_fits(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("moe-6.9b", &config));
  nn_plan_t plan = STRUCT(nn_plan_t);
  CHECK(nn_plan_inference(device, &config, NN_BF16, NULL, &plan));
  assert_true(plan.total_bytes < 15000000000);
  assert_int_equal(plan.total_bytes, plan.parameter_bytes + plan.master_bytes +
                                         plan.gradient_bytes + plan.optimizer_bytes +
                                         plan.activation_bytes + plan.workspace_bytes +
                                         plan.cache_bytes);
  nn_session_options_t options = STRUCT(nn_session_options_t);
  options.max_len = 262144;
  nn_plan_t stretched = STRUCT(nn_plan_t);
  CHECK(nn_plan_inference(device, &config, NN_BF16, &options, &stretched));
  assert_int_equal(stretched.cache_bytes, 8 * plan.cache_bytes);
  options.max_len = 262145;
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_plan_inference(device, &config, NN_BF16, &options, &plan));
  nn_device_destroy(device);
}

static void test_sizes_that_overflow(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_plan_t plan = STRUCT(nn_plan_t);
  nn_model_t *model = NULL;
  for (int i = 0; i < 6; i++) {
    nn_model_config_t config = fixture_moe();
    config.head_dim = 2;
    if (i == 0) config.hidden = config.ffn = INT32_MAX;
    if (i == 1) config.layers = 1 << 16, config.hidden = 1 << 22, config.ffn = 1 << 22;
    if (i == 2) config.vocab_size = (int64_t)1 << 40;
    if (i == 3) config.heads = config.kv_heads = INT64_MAX;
    if (i == 4) config.layers = INT64_MIN;
    if (i == 5) config.ffn = INT64_MAX;
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_config_validate(&config));
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_plan_training(device, &config, NN_F32, NULL, &plan));
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_plan_inference(device, &config, NN_F32, NULL, &plan));
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_model_create(device, &config, NN_F32, 1, &model));
  }
  /* batches and sessions beyond any memory */
  nn_model_config_t config = fixture_moe();
  nn_train_options_t train = STRUCT(nn_train_options_t);
  nn_session_options_t serve = STRUCT(nn_session_options_t);
  static const int64_t sizes[] = {-1, (int64_t)1 << 40, INT64_MAX};
  for (int i = 0; i < 3; i++) {
    train.batch = sizes[i];
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_plan_training(device, &config, NN_F32, &train, &plan));
    serve = STRUCT(nn_session_options_t);
    serve.batch = sizes[i];
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_plan_inference(device, &config, NN_F32, &serve, &plan));
    serve = STRUCT(nn_session_options_t);
    serve.max_len = sizes[i];
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_plan_inference(device, &config, NN_F32, &serve, &plan));
  }
  assert_null(model);
  assert_int_equal(fixture_device_memory(device).allocations, 0);
  nn_device_destroy(device);
}

static void test_model_keeps_its_configuration(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe(), found = STRUCT(nn_model_config_t);
  nn_model_t *model = fixture_model(device, &config, 1);
  CHECK(nn_model_config(model, &found));
  CHECK(nn_config_validate(&config));
  assert_memory_equal(&found, &config, sizeof config);
  assert_true(found.norm_eps == 1e-5f && found.rope_theta == 10000 && found.rope_ntk_alpha == 1);
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* ---- save and load ---- */

static void check_saved(nn_device_t *device, const nn_model_config_t *config, int64_t shard_bytes) {
  nn_model_t *model = fixture_model(device, config, 3), *loaded;
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  batch_t batch = batch_of(config->vocab_size);
  char *folder = fixture_folder();
  nn_file_options_t options = STRUCT(nn_file_options_t);
  options.shard_bytes = shard_bytes;
  CHECK(nn_model_save(model, folder, &options));
  CHECK(nn_model_load(device, folder, -1, NULL, &loaded));
  fixture_prepare(loaded, BATCH, SEQ, NN_RECOMPUTE_NONE);
  nn_model_config_t before = STRUCT(nn_model_config_t), after = STRUCT(nn_model_config_t);
  CHECK(nn_model_config(model, &before));
  CHECK(nn_model_config(loaded, &after));
  assert_memory_equal(&before, &after, sizeof before);
  int64_t count;
  float *a = fixture_parameters(model, &count), *b = fixture_parameters(loaded, &count);
  fixture_same("parameters", a, b, count);
  free(a), free(b);
  a = batch_logits(model, batch.tokens, BATCH, SEQ);
  b = batch_logits(loaded, batch.tokens, BATCH, SEQ);
  fixture_same("logits", a, b, TOKENS * config->vocab_size);
  free(a), free(b);
  nn_model_destroy(model);
  nn_model_destroy(loaded);
  fixture_folder_remove(folder);
}

static void test_save_and_load(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  for (int i = 0; i < 4; i++) {
    nn_model_config_t config = i < 3 ? fixture_moe() : fixture_gpt2();
    if (i == 1) config.tied_head = 1, config.rope_theta = 12345, config.rope_ntk_alpha = 3;
    if (i == 2) config.aux_loss = NN_AUX_JOINT, config.capacity_factor = 1.25f;
    check_saved(device, &config, 0);
    check_saved(device, &config, 5000);
  }
  nn_device_destroy(device);
}

typedef struct watch {
  int64_t calls, stop_at, last, total;
} watch_t;

static int32_t watch_progress(int64_t done, int64_t total, void *user) {
  watch_t *watch = user;
  assert_true(done >= watch->last && done <= total);
  watch->last = done;
  watch->total = total;
  return ++watch->calls == watch->stop_at;
}

static void test_progress_and_cancelled_save(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 3), *other = fixture_model(device, &config, 4);
  char *folder = fixture_folder();
  watch_t watch = {0};
  nn_file_options_t options = STRUCT(nn_file_options_t);
  options.progress = watch_progress;
  options.progress_user = &watch;
  CHECK(nn_model_save(model, folder, &options));
  assert_true(watch.calls > 0 && watch.last == watch.total && watch.total > 0);
  nn_model_t *loaded = NULL;
  watch = (watch_t){0};
  CHECK(nn_model_load(device, folder, -1, &options, &loaded));
  assert_true(watch.calls > 0 && watch.last == watch.total && watch.total > 0);
  nn_model_destroy(loaded);
  loaded = NULL;
  /* Stopped by the callback or the flag, a save leaves the earlier model, a load leaves nothing. */
  int64_t held = fixture_device_memory(device).current_bytes;
  for (int flag = 0; flag < 2; flag++) {
    watch = (watch_t){.stop_at = flag ? 0 : 1};
    nn_device_cancel(device, flag);
    CHECK_STATUS(NN_ERR_CANCELLED, nn_model_save(other, folder, &options));
    watch = (watch_t){.stop_at = flag ? 0 : 1};
    CHECK_STATUS(NN_ERR_CANCELLED, nn_model_load(device, folder, -1, &options, &loaded));
    assert_null(loaded);
    assert_int_equal(fixture_device_memory(device).current_bytes, held);
  }
  nn_device_cancel(device, 0);
  CHECK(nn_model_load(device, folder, -1, NULL, &loaded));
  int64_t count;
  float *a = fixture_parameters(model, &count), *b = fixture_parameters(loaded, &count);
  fixture_same("parameters", a, b, count);
  free(a), free(b);
  nn_model_destroy(model);
  nn_model_destroy(other);
  nn_model_destroy(loaded);
  fixture_folder_remove(folder);
  nn_device_destroy(device);
}

static void test_load_of_nothing(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(1, 0);
  nn_model_t *model = NULL;
  char *folder = fixture_folder();
  nn_status_t status = nn_model_load(device, folder, -1, NULL, &model);
  assert_true(status == NN_ERR_NOT_FOUND || status == NN_ERR_IO);
  assert_null(model);
  assert_non_null(strstr(nn_last_error(), "config.json"));
  fixture_folder_remove(folder);
  nn_device_destroy(device);
}

/* ---- shapes ---- */

/* Each row of a batch is computed alone, so shapes down to one token agree with the largest. Rows
 * of a product may be summed in another order in another shape: the tolerance is that of the golden
 * files. */
static void test_shapes_agree(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t configs[] = {fixture_moe(), fixture_gpt2()};
  for (int m = 0; m < 2; m++) {
    nn_model_t *model = fixture_model(device, &configs[m], 1);
    fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
    batch_t batch = batch_of(67);
    float *all = batch_logits(model, batch.tokens, BATCH, SEQ);
    double tolerance = 44 * 0x1p-24 * fixture_largest(all, TOKENS * 67);
    for (int64_t b = 0; b < BATCH; b++)
      for (int64_t seq = 1; seq <= SEQ; seq++) {
        float *part = batch_logits(model, batch.tokens + b * SEQ, 1, seq);
        fixture_near("logits of a prefix", part, all + b * SEQ * 67, seq * 67, tolerance);
        free(part);
      }
    free(all);
    nn_model_destroy(model);
  }
  nn_device_destroy(device);
}

/* Sizes of one: vocabulary, width, heads, experts, length. */
static void test_smallest_models(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  for (int i = 0; i < 2; i++) {
    nn_model_config_t config = i ? fixture_gpt2() : fixture_moe();
    config.vocab_size = 2;
    config.context = 1;
    config.layers = 1;
    config.hidden = 1;
    config.heads = 1;
    config.kv_heads = 1;
    config.head_dim = i ? 1 : 2;
    config.ffn = 1;
    if (!i) config.experts = config.top_k = 1;
    nn_model_t *model = fixture_model(device, &config, 1);
    fixture_prepare(model, 1, 1, NN_RECOMPUTE_NONE);
    nn_loss_t loss = STRUCT(nn_loss_t);
    CHECK(nn_model_backward(model, (const int32_t[]){1}, (const int32_t[]){0}, 1, 1, 1, &loss));
    assert_true(isfinite(loss.loss) && loss.loss > 0);
    nn_model_destroy(model);
  }
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_names_and_shapes),
      cmocka_unit_test(test_parameters_are_views),
      cmocka_unit_test(test_gradients_are_views_of_the_same_shape),
      cmocka_unit_test(test_initial_weights),
      cmocka_unit_test(test_initial_weights_gpt2),
      cmocka_unit_test(test_presets_have_their_parameters),
      cmocka_unit_test(test_big_model_fits),
      cmocka_unit_test(test_sizes_that_overflow),
      cmocka_unit_test(test_model_keeps_its_configuration),
      cmocka_unit_test(test_save_and_load),
      cmocka_unit_test(test_progress_and_cancelled_save),
      cmocka_unit_test(test_load_of_nothing),
      cmocka_unit_test(test_shapes_agree),
      cmocka_unit_test(test_smallest_models),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
