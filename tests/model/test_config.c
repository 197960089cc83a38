/* Presets, defaults and every bound of a configuration; the published parameter counts. */
#include <math.h>
#include <string.h>

#include "files.h"

static nn_model_config_t preset(const char *name) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset(name, &config));
  return config;
}

static void presets_have_their_published_sizes(void **state) {
  (void)state;
  /* moe-6.9b and tiny by the formula of their description; gpt2 as its authors count them */
  static const struct {
    const char *name;
    int64_t parameters, active;
  } known[] = {
      {"moe-6.9b", 6882678528, 1762023168},   {"gpt2-124m", 124439808, 124439808},
      {"gpt2-350m", 354823168, 354823168},    {"gpt2-774m", 774030080, 774030080},
      {"gpt2-1558m", 1557611200, 1557611200},
  };
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    nn_model_config_t config = preset(known[i].name);
    param_table_t counts;
    CHECK(param_table_count(&config, &counts));
    assert_int_equal(counts.elements, known[i].parameters);
    assert_int_equal(counts.active, known[i].active);
  }
}

static void presets_are_valid_and_whole(void **state) {
  (void)state;
  static const char *const names[] = {"tiny",      "small",     "moe-6.9b",  "gpt2-124m",
                                      "gpt2-350m", "gpt2-774m", "gpt2-1558m"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    nn_model_config_t config = preset(names[i]), again = config;
    CHECK(nn_config_validate(&again));
    assert_memory_equal(&config, &again, sizeof config);
  }
  nn_model_config_t tiny = preset("tiny");
  assert_int_equal(tiny.layers, 2);
  assert_int_equal(tiny.hidden, 64);
  assert_int_equal(tiny.kv_heads, 1);
  assert_int_equal(tiny.experts, 4);
  assert_int_equal(tiny.top_k, 2);
  assert_int_equal(tiny.context, 512);
  assert_int_equal(tiny.aux_loss, NN_AUX_SWITCH);
  assert_true(tiny.aux_loss_coef == 0.01f && tiny.rope_theta == 10000 && tiny.rope_ntk_alpha == 1);
  nn_model_config_t large = preset("moe-6.9b");
  assert_int_equal(large.context, 32768);
  assert_true(large.rope_ntk_alpha == 8);
}

static void unknown_presets_are_refused(void **state) {
  (void)state;
  nn_model_config_t config = STRUCT(nn_model_config_t), before = config;
  CHECK_FAILS(NN_ERR_NOT_FOUND, "\"gpt3\"|moe-6.9b|gpt2-1558m", nn_config_preset("gpt3", &config));
  assert_memory_equal(&config, &before, sizeof config);
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_config_preset(NULL, &config));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_config_preset("tiny", NULL));
  config.struct_size = 0;
  CHECK_FAILS(NN_ERR_STRUCT_SIZE, "set it to sizeof(nn_model_config_t)",
              nn_config_preset("tiny", &config));
}

static void older_and_newer_structs_are_served(void **state) {
  (void)state;
  struct {
    nn_model_config_t config;
    int64_t tail;
  } newer;
  memset(&newer, 0xff, sizeof newer);
  newer.config.struct_size = sizeof newer;
  CHECK(nn_config_preset("tiny", &newer.config));
  assert_int_equal(newer.config.struct_size, sizeof newer);
  assert_int_equal(newer.tail, 0);
  CHECK(nn_config_validate(&newer.config));
  newer.tail = 1;
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_config_validate(&newer.config));

  nn_model_config_t shorter = STRUCT(nn_model_config_t);
  shorter.struct_size = offsetof(nn_model_config_t, capacity_factor); /* no release had this size */
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, nn_config_preset("tiny", &shorter));

  /* the first release's struct: what it has room for, and nothing behind */
  shorter.struct_size = offsetof(nn_model_config_t, dense_ffn);
  memset(&shorter.dense_ffn, 0xff, sizeof shorter.dense_ffn);
  CHECK(nn_config_preset("tiny", &shorter));
  assert_int_equal(shorter.experts, 4);
  assert_int_equal(shorter.dense_ffn, -1);
  CHECK(nn_config_validate(&shorter));
}

static void defaults_take_the_place_of_zeros(void **state) {
  (void)state;
  nn_model_config_t config = STRUCT(nn_model_config_t);
  config.vocab_size = 10, config.context = 4, config.layers = 1, config.hidden = 24,
  config.heads = 4;
  config.ffn = 8, config.experts = 2, config.top_k = 1;
  CHECK(nn_config_validate(&config));
  assert_int_equal(config.kv_heads, 4);
  assert_int_equal(config.head_dim, 6);
  assert_true(config.norm_eps == 1e-5f && config.rope_theta == 10000 && config.rope_ntk_alpha == 1);
  assert_true(config.init_std == 0.02f && config.aux_loss_coef == 0 && config.capacity_factor == 0);
}

/* Sets one member of the small mixtral configuration and expects a refusal that names it. */
#define REFUSED(member, value, parts)                                              \
  do {                                                                             \
    nn_model_config_t config_ = files_mixtral(), before_;                          \
    config_.member = value;                                                        \
    before_ = config_;                                                             \
    CHECK_FAILS(NN_ERR_ARGUMENT, #member "|" parts, nn_config_validate(&config_)); \
    assert_memory_equal(&config_, &before_, sizeof config_);                       \
  } while (0)

static void sizes_are_bounded(void **state) {
  (void)state;
  REFUSED(family, 15, "is 15|from 0 to 14");
  REFUSED(norm, -1, "is -1");
  REFUSED(position, 2, "is 2");
  REFUSED(ffn_kind, 3, "is 3");
  REFUSED(biases, 32, "is 32");
  REFUSED(tied_head, -1, "is -1");
  REFUSED(aux_loss, 2, "is 2");
  REFUSED(vocab_size, 0, "is 0|from 1 to 2147483647");
  REFUSED(vocab_size, (int64_t)INT32_MAX + 1, "2147483648");
  REFUSED(vocab_size, INT64_MIN, "-9223372036854775808");
  REFUSED(context, -1, "is -1");
  REFUSED(layers, 0, "is 0");
  REFUSED(layers, 65537, "is 65537|from 1 to 65536");
  REFUSED(hidden, 0, "is 0");
  REFUSED(hidden, INT64_MAX, "9223372036854775807");
  REFUSED(heads, 0, "is 0");
  REFUSED(heads, -2, "is -2");
  REFUSED(kv_heads, -3, "is -3");
  REFUSED(kv_heads, 4, "divide heads|6");
  REFUSED(kv_heads, 12, "divide heads");
  REFUSED(head_dim, 257, "is 257|from 1 to 256");
  REFUSED(head_dim, 258, "is 258");
  REFUSED(head_dim, -4, "is -4");
  REFUSED(head_dim, 5, "is 5|even");
  REFUSED(ffn, 0, "is 0");
  REFUSED(experts, 1025, "is 1025|1024");
  REFUSED(experts, -1, "is -1");
  REFUSED(top_k, 0, "is 0|experts");
  REFUSED(top_k, 4, "is 4|experts, which is 3");
  REFUSED(top_k, 65, "is 65|from 0 to 64");
  nn_model_config_t config = files_mixtral();
  config.head_dim = 0; /* 10 / 6 heads */
  CHECK_FAILS(NN_ERR_ARGUMENT, "hidden|10|heads|6", nn_config_validate(&config));
  config = files_mixtral();
  config.head_dim = 256;
  CHECK(nn_config_validate(&config));
}

static void floats_are_bounded(void **state) {
  (void)state;
  float inf = INFINITY, nan = NAN;
  REFUSED(norm_eps, -1e-5f, "-1e-05");
  REFUSED(norm_eps, nan, "nan");
  REFUSED(norm_eps, 2, "is 2");
  REFUSED(rope_theta, inf, "inf");
  REFUSED(rope_theta, 0.5f, "0.5|at least 1");
  REFUSED(rope_theta, -1, "-1");
  REFUSED(rope_ntk_alpha, 0.5f, "0.5");
  REFUSED(rope_ntk_alpha, nan, "nan");
  REFUSED(rope_ntk_alpha, 1e9f, "1e+09");
  REFUSED(init_std, -0.02f, "-0.02");
  REFUSED(init_std, inf, "inf");
  REFUSED(aux_loss_coef, -1, "-1");
  REFUSED(aux_loss_coef, nan, "nan");
  REFUSED(z_loss_coef, -inf, "-inf");
  REFUSED(capacity_factor, -1, "-1");
  REFUSED(capacity_factor, 1025, "1025");
  nn_model_config_t config = files_mixtral();
  config.context = INT32_MAX, config.rope_ntk_alpha = 2;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_ntk_alpha|context|2147483647", nn_config_validate(&config));
  config = files_mixtral();
  config.head_dim = 2, config.rope_ntk_alpha = 2; /* alpha^(d / (d - 2)) has no value */
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_ntk_alpha|head_dim 2", nn_config_validate(&config));
}

static void sizes_may_not_overflow(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  config.layers = 1 << 16, config.hidden = INT32_MAX - 1, config.ffn = INT32_MAX;
  config.experts = 1024;
  CHECK_FAILS(NN_ERR_ARGUMENT, "more parameters|hidden 2147483646", nn_config_validate(&config));
  /* the count fits 64 bits, the bytes of an fp32 buffer do not */
  config = files_mixtral();
  config.vocab_size = INT32_MAX, config.hidden = (int64_t)1 << 30;
  CHECK_FAILS(NN_ERR_ARGUMENT, "more parameters", nn_config_validate(&config));
  /* the largest of these still fits */
  config.vocab_size = INT32_MAX, config.hidden = (int64_t)1 << 26;
  CHECK(nn_config_validate(&config));
}

static void members_of_routing_need_experts(void **state) {
  (void)state;
  nn_model_config_t config = files_gpt2();
  config.top_k = 1;
  CHECK_FAILS(NN_ERR_ARGUMENT, "top_k is 1|without experts", nn_config_validate(&config));
  config = files_gpt2(), config.aux_loss_coef = 0.5f;
  CHECK_FAILS(NN_ERR_ARGUMENT, "aux_loss_coef is 0.5", nn_config_validate(&config));
  config = files_gpt2(), config.z_loss_coef = 0.5f;
  CHECK_FAILS(NN_ERR_ARGUMENT, "z_loss_coef is 0.5", nn_config_validate(&config));
  config = files_gpt2(), config.capacity_factor = 1;
  CHECK_FAILS(NN_ERR_ARGUMENT, "capacity_factor is 1", nn_config_validate(&config));
  config = files_gpt2(), config.aux_loss = NN_AUX_JOINT;
  CHECK_FAILS(NN_ERR_ARGUMENT, "aux_loss is 1", nn_config_validate(&config));
  config = files_gpt2(), config.rope_theta = 10000;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_theta is 10000|learned", nn_config_validate(&config));
  config = files_gpt2(), config.rope_ntk_alpha = 2;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_ntk_alpha 2|learned", nn_config_validate(&config));
}

#define NO_FORM(base, member, value)                                                             \
  do {                                                                                           \
    nn_model_config_t config_ = base();                                                          \
    config_.member = value;                                                                      \
    CHECK_FAILS(NN_ERR_UNSUPPORTED, #member "|no published form", nn_config_validate(&config_)); \
  } while (0)

static void combinations_without_a_published_form_are_refused(void **state) {
  (void)state;
  NO_FORM(files_mixtral, norm, NN_NORM_LAYER);
  NO_FORM(files_mixtral, ffn_kind, NN_FFN_GELU_TANH);
  NO_FORM(files_mixtral, biases, 1);
  NO_FORM(files_gpt2, norm, NN_NORM_RMS);
  NO_FORM(files_gpt2, ffn_kind, NN_FFN_SWIGLU);
  NO_FORM(files_gpt2, biases, 0);
  NO_FORM(files_gpt2, tied_head, 0);
  NO_FORM(files_gpt2, kv_heads, 1);
  NO_FORM(files_gpt2, head_dim, 6);
  nn_model_config_t config = files_mixtral();
  config.position = NN_POSITION_LEARNED, config.rope_theta = 0;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "position|mixtral", nn_config_validate(&config));
  config = files_mixtral();
  config.experts = 0, config.top_k = 0, config.aux_loss_coef = 0;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "experts is 0|mixtral", nn_config_validate(&config));
  config = files_gpt2();
  config.position = NN_POSITION_ROPE;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "position|gpt2", nn_config_validate(&config));
  config = files_gpt2();
  config.experts = 2, config.top_k = 1;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "experts is 2|gpt2", nn_config_validate(&config));
  config = files_mixtral();
  config.tied_head = 1;
  CHECK(nn_config_validate(&config));
  NO_FORM(files_mixtral, qk_norm, NN_QK_NORM_HEAD);
  NO_FORM(files_mixtral, router_norm, NN_ROUTER_NORM_NONE);
  NO_FORM(files_mixtral, shared_ffn, 3);
  NO_FORM(files_mixtral, embedding_scale, 2);
  NO_FORM(files_mixtral, rotary_dim, 2);
  NO_FORM(files_mixtral, biases, NN_BIAS_ROUTER);
  NO_FORM(files_mixtral, dense_ffn, 5);
  config = files_mixtral();
  config.family = NN_FAMILY_OLMOE;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "qk_norm is 0|olmoe family: it needs 2",
              nn_config_validate(&config));
  config.qk_norm = NN_QK_NORM_FULL, config.biases = NN_BIAS_QKV;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "biases is 1|with or without 3", nn_config_validate(&config));
  config = files_mixtral();
  config.family = NN_FAMILY_QWEN2_MOE, config.shared_gate = 1;
  CHECK_FAILS(NN_ERR_ARGUMENT, "shared_gate is 1|shared_ffn", nn_config_validate(&config));
  config.shared_gate = 0;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "shared_ffn is 0|at least 1", nn_config_validate(&config));
  config = files_mixtral();
  config.family = NN_FAMILY_GLM4_MOE, config.layers = 3;
  config.router_score = NN_SCORE_SIGMOID, config.router_choice_bias = 1;
  config.router_group_score = NN_GROUP_TOP2, config.shared_ffn = 8;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "shared_ffn is 8|a multiple of ffn",
              nn_config_validate(&config));
  config.shared_ffn = 0, config.dense_layers[0] = 2;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "dense_layers lacks layer 0", nn_config_validate(&config));
  config.dense_layers[0] = 8;
  CHECK_FAILS(NN_ERR_ARGUMENT, "dense_layers has layer 3", nn_config_validate(&config));
  config.dense_layers[0] = 7;
  CHECK_FAILS(NN_ERR_ARGUMENT, "dense_layers has every layer", nn_config_validate(&config));
  config.dense_layers[0] = 0, config.family = NN_FAMILY_GPT_OSS;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "ffn_kind is 0|gpt_oss family: it needs 2",
              nn_config_validate(&config));
}

static void values_are_no_wider_than_keys(void **state) {
  (void)state;
  nn_model_config_t config = files_family(NN_FAMILY_DEEPSEEK_V3);
  CHECK(nn_config_validate(&config));
  config.value_head_dim = config.head_dim;
  CHECK(nn_config_validate(&config));
  config.value_head_dim++;
  CHECK_FAILS(NN_ERR_ARGUMENT, "value_head_dim is|at most head_dim", nn_config_validate(&config));
}

static void members_of_rope_must_fit_each_other(void **state) {
  (void)state;
  REFUSED(rope_factor, 2, "is 2|rope_scaling 0");
  REFUSED(rope_beta_fast, 2, "is 2|rope_scaling 0");
  REFUSED(rotary_dim, 3, "is 3|even");
  REFUSED(rotary_dim, 6, "is 6|head_dim, which is 4");
  REFUSED(rope_scaling, 6, "is 6");
  REFUSED(rope_short_factors[1], 2, "[1] is 2|rope_scaling 0");
  REFUSED(q_rank, 4, "is 4|without kv_rank");
  nn_model_config_t config = files_mixtral();
  config.rope_scaling = NN_ROPE_LINEAR, config.rope_factor = 0.5f;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_factor is 0.5|at least 1", nn_config_validate(&config));
  config.rope_factor = 2, config.rope_ntk_alpha = 2;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_ntk_alpha is 2|rope_scaling", nn_config_validate(&config));
  config = files_mixtral();
  config.rope_scaling = NN_ROPE_LLAMA3, config.rope_factor = 8, config.rope_low_freq = 4;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_low_freq is 4|below rope_high_freq",
              nn_config_validate(&config));
  config = files_gpt2();
  config.rope_scaling = NN_ROPE_LINEAR;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_scaling 1|learned", nn_config_validate(&config));
  config = files_gpt2(), config.rope_long_factors[0] = 1;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "rope_long_factors|no published form",
              nn_config_validate(&config));
  config = files_mixtral();
  config.family = NN_FAMILY_QWEN2, config.window_layers[0] = 1;
  CHECK_FAILS(NN_ERR_ARGUMENT, "window_layers is set|without a window",
              nn_config_validate(&config));
}

static void long_rope_needs_its_factors(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral(); /* two pairs in a head */
  config.rope_scaling = NN_ROPE_LONG, config.rope_original_context = 4;
  float *factors[] = {config.rope_short_factors, config.rope_long_factors};
  for (int i = 0; i < 2; i++) factors[i][0] = factors[i][1] = 1.5f;
  CHECK(nn_config_validate(&config));
  config.rope_short_factors[1] = 0;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_short_factors[1] is 0|2 factors",
              nn_config_validate(&config));
  config.rope_short_factors[1] = NAN;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_short_factors[1] is|2 factors", nn_config_validate(&config));
  config.rope_short_factors[1] = 1, config.rope_long_factors[2] = 1;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_long_factors[2] is 1|4 rotated elements|2 factors",
              nn_config_validate(&config));
  config.rope_long_factors[2] = 0, config.rope_original_context = 1;
  CHECK_FAILS(NN_ERR_ARGUMENT, "rope_original_context|is 1|at least 2",
              nn_config_validate(&config));
  config.rope_original_context = 4, config.rope_long_mscale = 1.2f;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "rope_long_mscale is 1.2|mixtral", nn_config_validate(&config));
  nn_model_config_t phi = files_family(NN_FAMILY_PHIMOE);
  assert_int_equal(phi.rope_scaling, NN_ROPE_LONG);
  phi.rope_short_mscale = 0;
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "rope_short_mscale is 0|phimoe|above 0",
              nn_config_validate(&phi));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(presets_have_their_published_sizes),
      cmocka_unit_test(presets_are_valid_and_whole),
      cmocka_unit_test(unknown_presets_are_refused),
      cmocka_unit_test(older_and_newer_structs_are_served),
      cmocka_unit_test(defaults_take_the_place_of_zeros),
      cmocka_unit_test(sizes_are_bounded),
      cmocka_unit_test(floats_are_bounded),
      cmocka_unit_test(sizes_may_not_overflow),
      cmocka_unit_test(members_of_routing_need_experts),
      cmocka_unit_test(combinations_without_a_published_form_are_refused),
      cmocka_unit_test(long_rope_needs_its_factors),
      cmocka_unit_test(members_of_rope_must_fit_each_other),
      cmocka_unit_test(values_are_no_wider_than_keys),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
