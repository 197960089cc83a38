/* config.json: what transformers writes is understood, what would change the numbers is refused by
 * name, and what is written is read again as the same configuration, in any locale. */
#define _POSIX_C_SOURCE 200809L
#include <jansson.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "files.h"

static nn_model_config_t read_text(const char *text) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK(nn_config_from_json(text, strlen(text), &config));
  return config;
}

static void refuse(nn_status_t status, const char *parts, const char *text) {
  nn_model_config_t config = STRUCT(nn_model_config_t), before = config;
  CHECK_FAILS(status, parts, nn_config_from_json(text, strlen(text), &config));
  assert_memory_equal(&config, &before, sizeof config);
}

#define MIXTRAL "{\"model_type\":\"mixtral\","
#define GPT2 "{\"model_type\":\"gpt2\","

static void absent_keys_have_the_defaults_of_transformers(void **state) {
  (void)state;
  nn_model_config_t m = read_text("{\"model_type\":\"mixtral\"}");
  assert_int_equal(m.family, NN_FAMILY_MIXTRAL);
  assert_int_equal(m.vocab_size, 32000);
  assert_int_equal(m.hidden, 4096);
  assert_int_equal(m.ffn, 14336);
  assert_int_equal(m.layers, 32);
  assert_int_equal(m.kv_heads, 8);
  assert_int_equal(m.head_dim, 128);
  assert_int_equal(m.experts, 8);
  assert_int_equal(m.top_k, 2);
  assert_true(m.rope_theta == 1e6f && m.norm_eps == 1e-5f && m.aux_loss_coef == 0);
  assert_int_equal(m.aux_loss, NN_AUX_JOINT);
  nn_model_config_t g = read_text("{\"model_type\":\"gpt2\"}");
  nn_model_config_t preset = STRUCT(nn_model_config_t);
  CHECK(nn_config_preset("gpt2-124m", &preset));
  assert_memory_equal(&g, &preset, sizeof g);
}

static void rope_is_understood_in_both_spellings(void **state) {
  (void)state;
  assert_true(read_text(MIXTRAL "\"rope_theta\":5000.5}").rope_theta == 5000.5f);
  assert_true(read_text(MIXTRAL "\"rope_theta\":5000,\"rope_scaling\":null}").rope_theta == 5000);
  assert_true(
      read_text(MIXTRAL "\"rope_theta\":7,\"rope_scaling\":{\"type\":\"default\"}}").rope_theta ==
      7);
  assert_true(read_text(MIXTRAL "\"rope_parameters\":{\"rope_theta\":9,\"rope_type\":\"default\","
                                "\"partial_rotary_factor\":1.0}}")
                  .rope_theta == 9);
  assert_true(
      read_text(MIXTRAL "\"rope_theta\":9,\"rope_parameters\":{\"rope_theta\":9.0}}").rope_theta ==
      9);
  refuse(NN_ERR_FORMAT, "rope_theta|7|9",
         MIXTRAL "\"rope_theta\":7,\"rope_parameters\":{\"rope_theta\":9}}");
  refuse(NN_ERR_FORMAT, "rope_scaling", MIXTRAL "\"rope_scaling\":3}");
  refuse(NN_ERR_FORMAT, "rope_theta", MIXTRAL "\"rope_theta\":0}");
  refuse(NN_ERR_FORMAT, "rope_scaling has no factor|\"linear\"",
         MIXTRAL "\"rope_scaling\":{\"type\":\"linear\"}}");
  refuse(NN_ERR_UNSUPPORTED, "rope_parameters.rope_type|\"mrope\"|\"longrope\"",
         MIXTRAL "\"rope_parameters\":{\"rope_type\":\"mrope\",\"factor\":2}}");
  refuse(NN_ERR_UNSUPPORTED, "rope_scaling.beta_fast|\"linear\"",
         MIXTRAL "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"beta_fast\":32}}");
  refuse(NN_ERR_FORMAT, "rope_parameters.rope_type is \"yarn\"|other object",
         MIXTRAL "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},"
                 "\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":2}}");
  refuse(NN_ERR_UNSUPPORTED, "rope_parameters.factor|\"default\"",
         MIXTRAL "\"rope_parameters\":{\"factor\":2}}");
  refuse(NN_ERR_UNSUPPORTED, "partial_rotary_factor|0.5",
         MIXTRAL "\"rope_parameters\":{\"partial_rotary_factor\":0.5}}");
  refuse(NN_ERR_UNSUPPORTED, "partial_rotary_factor|0.5", MIXTRAL "\"partial_rotary_factor\":0.5}");
}

#define FOUR_FACTORS "\"short_factor\":[1,1.5,2,2.5],\"long_factor\":[1.25,2,64,64.5]"
#define HEADS_OF_EIGHT "\"hidden_size\":16,\"num_attention_heads\":2,\"num_key_value_heads\":1,"

/* Every key that the published checkpoint of Phi-3.5-MoE has, with narrower heads. */
static void published_long_rope_is_understood(void **state) {
  (void)state;
  nn_model_config_t c = read_text(
      "{\"_name_or_path\":\"x\",\"architectures\":[\"PhiMoEForCausalLM\"],\"attention_bias\":true,"
      "\"attention_dropout\":0.0,\"auto_map\":{\"AutoConfig\":\"x\"},\"bos_token_id\":1,"
      "\"eos_token_id\":32000,\"hidden_act\":\"silu\",\"hidden_dropout\":0.0," HEADS_OF_EIGHT
      "\"initializer_range\":0.02,\"input_jitter_noise\":0.01,\"intermediate_size\":24,"
      "\"lm_head_bias\":true,\"max_position_embeddings\":131072,\"model_type\":\"phimoe\","
      "\"num_experts_per_tok\":2,\"num_hidden_layers\":2,\"num_local_experts\":16,"
      "\"original_max_position_embeddings\":4096,\"output_router_logits\":false,"
      "\"rms_norm_eps\":1e-05,\"rope_scaling\":{" FOUR_FACTORS ",\"long_mscale\":1.5,"
      "\"original_max_position_embeddings\":4096,\"short_mscale\":1.25,\"type\":\"longrope\"},"
      "\"rope_theta\":10000.0,\"router_aux_loss_coef\":0.0,\"router_jitter_noise\":0.01,"
      "\"sliding_window\":131072,\"tie_word_embeddings\":false,\"torch_dtype\":\"bfloat16\","
      "\"transformers_version\":\"4.43.3\",\"use_cache\":true,\"vocab_size\":32064}");
  assert_int_equal(c.rope_scaling, NN_ROPE_LONG);
  assert_int_equal(c.rope_original_context, 4096);
  assert_true(c.rope_short_mscale == 1.25f && c.rope_long_mscale == 1.5f && c.rope_theta == 1e4f);
  static const float shorts[5] = {1, 1.5f, 2, 2.5f}, longs[5] = {1.25f, 2, 64, 64.5f};
  assert_memory_equal(c.rope_short_factors, shorts, sizeof shorts);
  assert_memory_equal(c.rope_long_factors, longs, sizeof longs);
}

#define LONG(keys) \
  "{\"model_type\":\"llama\"," HEADS_OF_EIGHT "\"rope_scaling\":{\"type\":\"su\"," keys "}}"

static void long_rope_needs_its_lists(void **state) {
  (void)state;
  nn_model_config_t c = read_text(LONG(FOUR_FACTORS ",\"attention_factor\":1.5,\"factor\":2"));
  assert_true(c.rope_attention_factor == 1.5f && c.rope_factor == 2);
  refuse(NN_ERR_FORMAT, "has no long_factor|\"longrope\"", LONG("\"short_factor\":[1,1,1,1]"));
  refuse(NN_ERR_FORMAT, "has no short_factor",
         LONG("\"short_factor\":null,\"long_factor\":[1,1,1,1]"));
  refuse(NN_ERR_FORMAT, "short_factor is 1|a list", LONG("\"short_factor\":1"));
  refuse(NN_ERR_FORMAT, "short_factor is []|a list", LONG("\"short_factor\":[]"));
  refuse(NN_ERR_FORMAT, "short_factor is \"1\"|a number above 0",
         LONG("\"short_factor\":[1,\"1\"]"));
  refuse(NN_ERR_FORMAT, "short_factor is 0|a number above 0", LONG("\"short_factor\":[1,0]"));
  refuse(NN_ERR_FORMAT, "rope_scaling.short_factor[3] is 0|4 factors",
         LONG("\"short_factor\":[1,1,1],\"long_factor\":[1,1,1,1]"));
  refuse(NN_ERR_FORMAT, "rope_scaling.long_factor[4] is 2|4 factors",
         LONG("\"short_factor\":[1,1,1,1],\"long_factor\":[1,1,1,1,2]"));
  refuse(NN_ERR_UNSUPPORTED, "rope_scaling.short_mscale is 1.5|llama",
         LONG(FOUR_FACTORS ",\"short_mscale\":1.5,\"long_mscale\":1.5"));
  refuse(NN_ERR_UNSUPPORTED, "rope_scaling.short_factor|\"linear\"",
         "{\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,"
         "\"short_factor\":[1]}}");
  refuse(NN_ERR_FORMAT, "long_factor stands there twice",
         "{\"model_type\":\"llama\"," HEADS_OF_EIGHT
         "\"rope_scaling\":{\"type\":\"su\"," FOUR_FACTORS
         "},\"rope_parameters\":{\"rope_type\":\"longrope\",\"short_factor\":[1,1.5,2,2.5],"
         "\"long_factor\":[1,1,1,1]}}");
  char many[2000] =
      "{\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"su\",\"long_factor\":[1";
  for (int i = 0; i < 128; i++) strcat(many, ",1");
  refuse(NN_ERR_FORMAT, "long_factor is|a list of 1 to 128", strcat(many, "]}}"));
}

static void the_auxiliary_loss_counts_with_router_logits(void **state) {
  (void)state;
  nn_model_config_t c =
      read_text(MIXTRAL "\"output_router_logits\":true,\"router_aux_loss_coef\":0.02}");
  assert_true(c.aux_loss_coef == 0.02f);
  c = read_text(MIXTRAL "\"router_aux_loss_coef\":0.02}");
  assert_true(c.aux_loss_coef == 0);
  c = read_text(MIXTRAL "\"output_router_logits\":true}");
  assert_true(c.aux_loss_coef == 0.001f);
  c = read_text(MIXTRAL "\"router_aux_loss_norm\":\"switch\"}");
  assert_int_equal(c.aux_loss, NN_AUX_SWITCH);
  refuse(NN_ERR_UNSUPPORTED, "router_aux_loss_norm|\"other\"",
         MIXTRAL "\"router_aux_loss_norm\":\"other\"}");
}

static void nulls_and_aliases_are_understood(void **state) {
  (void)state;
  nn_model_config_t c = read_text(MIXTRAL "\"num_key_value_heads\":null,\"head_dim\":null}");
  assert_int_equal(c.kv_heads, 32);
  assert_int_equal(c.head_dim, 128);
  assert_int_equal(read_text(MIXTRAL "\"num_experts\":4}").experts, 4);
  assert_int_equal(read_text(MIXTRAL "\"num_experts\":4,\"num_local_experts\":4}").experts, 4);
  refuse(NN_ERR_FORMAT, "num_local_experts|4|5",
         MIXTRAL "\"num_experts\":4,\"num_local_experts\":5}");
  assert_int_equal(read_text(GPT2 "\"n_inner\":null,\"n_embd\":24}").ffn, 96);
  assert_int_equal(read_text(GPT2 "\"n_inner\":100,\"n_embd\":24}").ffn, 100);
}

static void bookkeeping_is_left_alone(void **state) {
  (void)state;
  nn_model_config_t plain = read_text("{\"model_type\":\"gpt2\"}");
  nn_model_config_t c = read_text(
      GPT2
      "\"architectures\":[\"GPT2LMHeadModel\"],\"_name_or_path\":\"gpt2\",\"bos_token_id\":50256,"
      "\"eos_token_id\":[1,2],\"attn_pdrop\":0.1,\"resid_pdrop\":0.1,\"embd_pdrop\":0.1,\"n_ctx\":"
      "1024,"
      "\"summary_type\":\"cls_index\",\"task_specific_params\":{\"text-generation\":{\"do_sample\":"
      "true}},"
      "\"torch_dtype\":\"float16\",\"transformers_version\":\"4.1\",\"use_cache\":false,"
      "\"reorder_and_upcast_attn\":true,\"scale_attn_weights\":true}");
  assert_memory_equal(&c, &plain, sizeof c);
}

static void what_would_change_the_numbers_is_refused(void **state) {
  (void)state;
  refuse(NN_ERR_UNSUPPORTED, "\"some_new_key\"|7|mixtral", MIXTRAL "\"some_new_key\":7}");
  refuse(NN_ERR_UNSUPPORTED, "\"n_embd\"", MIXTRAL "\"n_embd\":768}"); /* another family's */
  refuse(NN_ERR_UNSUPPORTED, "sliding_window is 4096",
         "{\"model_type\":\"llama\",\"sliding_window\":4096}");
  refuse(NN_ERR_UNSUPPORTED, "attention_bias is true", MIXTRAL "\"attention_bias\":true}");
  refuse(NN_ERR_UNSUPPORTED, "router_jitter_noise is 0.1", MIXTRAL "\"router_jitter_noise\":0.1}");
  refuse(NN_ERR_UNSUPPORTED, "hidden_act is \"gelu\"|silu", MIXTRAL "\"hidden_act\":\"gelu\"}");
  refuse(NN_ERR_UNSUPPORTED, "hidden_act is 5", MIXTRAL "\"hidden_act\":5}");
  refuse(NN_ERR_UNSUPPORTED, "quantization_config",
         MIXTRAL "\"quantization_config\":{\"bits\":4}}");
  refuse(NN_ERR_UNSUPPORTED, "quantization_config is {\"quant_method\":\"fp8\"}|\"mxfp4\"",
         "{\"model_type\":\"gpt_oss\",\"quantization_config\":{\"quant_method\":\"fp8\"}}");
  assert_int_equal(read_text("{\"model_type\":\"gpt_oss\",\"quantization_config\":"
                             "{\"quant_method\":\"mxfp4\",\"modules_to_not_convert\":[]}}")
                       .experts,
                   128);
  refuse(NN_ERR_UNSUPPORTED, "activation_function is \"relu\"",
         GPT2 "\"activation_function\":\"relu\"}");
  refuse(NN_ERR_UNSUPPORTED, "scale_attn_weights is false", GPT2 "\"scale_attn_weights\":false}");
  refuse(NN_ERR_UNSUPPORTED, "inverse_layer_idx is true",
         GPT2 "\"scale_attn_by_inverse_layer_idx\":true}");
  refuse(NN_ERR_UNSUPPORTED, "add_cross_attention is true", GPT2 "\"add_cross_attention\":true}");
  refuse(NN_ERR_UNSUPPORTED, "pruned_heads", GPT2 "\"pruned_heads\":{\"0\":[1]}}");
  refuse(NN_ERR_UNSUPPORTED, "tie_word_embeddings is 0", GPT2 "\"tie_word_embeddings\":false}");
  refuse(NN_ERR_UNSUPPORTED, "model_type is \"abacus\"|mixtral|qwen3_moe",
         "{\"model_type\":\"abacus\"}");
}

#define QWEN2 "{\"model_type\":\"qwen2\",\"num_hidden_layers\":2,"
#define QWEN2_MOE "{\"model_type\":\"qwen2_moe\",\"num_hidden_layers\":2,"

static void layers_that_differ_must_make_sense(void **state) {
  (void)state;
  refuse(NN_ERR_FORMAT, "layer_types has 1 entries|num_hidden_layers is 2",
         QWEN2 "\"layer_types\":[\"full_attention\"]}");
  refuse(NN_ERR_FORMAT, "layer_types is []", QWEN2 "\"layer_types\":[]}");
  refuse(NN_ERR_FORMAT, "layer_types is 7", QWEN2 "\"layer_types\":7}");
  refuse(NN_ERR_UNSUPPORTED, "layer_types is \"chunked_attention\"|full_attention",
         QWEN2 "\"layer_types\":[\"full_attention\",\"chunked_attention\"]}");
  refuse(NN_ERR_UNSUPPORTED, "layer_types is 1", QWEN2 "\"layer_types\":[1,1]}");
  refuse(NN_ERR_UNSUPPORTED, "sliding_attention|no window is in use",
         QWEN2 "\"layer_types\":[\"sliding_attention\",\"full_attention\"]}");
  refuse(NN_ERR_FORMAT, "use_sliding_window is 1", QWEN2 "\"use_sliding_window\":1}");
  refuse(NN_ERR_FORMAT, "sliding_window is -1", QWEN2 "\"sliding_window\":-1}");
  refuse(NN_ERR_UNSUPPORTED, "layer_types", /* a key that no code of this model type looks at */
         "{\"model_type\":\"mistral\",\"layer_types\":[\"full_attention\"]}");
  refuse(NN_ERR_FORMAT, "mlp_only_layers is 1", QWEN2_MOE "\"mlp_only_layers\":1}");
  refuse(NN_ERR_FORMAT, "mlp_only_layers is -1", QWEN2_MOE "\"mlp_only_layers\":[-1]}");
  refuse(NN_ERR_FORMAT, "decoder_sparse_step is 0", QWEN2_MOE "\"decoder_sparse_step\":0}");
  refuse(NN_ERR_FORMAT, "all of 2 layers are dense", QWEN2_MOE "\"mlp_only_layers\":[0,1]}");
  refuse(NN_ERR_FORMAT, "all of 2 layers are dense", QWEN2_MOE "\"decoder_sparse_step\":3}");
  /* layers that are not there are nothing to transformers */
  assert_true(read_text(QWEN2_MOE "\"mlp_only_layers\":[2,300]}").dense_layers[0] == 0);
  nn_model_config_t c = read_text(QWEN2_MOE "\"mlp_only_layers\":[0]}");
  assert_true(c.dense_layers[0] == 1 && c.dense_ffn == 5632 && c.ffn == 1408);
}

static void patterns_have_room_for_256_layers(void **state) {
  (void)state;
#define MANY "\"num_hidden_layers\":300,\"use_sliding_window\":true,"
  nn_model_config_t c = read_text("{\"model_type\":\"qwen2\"," MANY "\"max_window_layers\":0}");
  assert_true(c.window == 4096 && !c.window_layers[0]);
  c = read_text("{\"model_type\":\"qwen2\"," MANY "\"max_window_layers\":300}");
  assert_int_equal(c.window, 0);
  refuse(NN_ERR_UNSUPPORTED, "some of 300 layers have a window|256",
         "{\"model_type\":\"qwen2\"," MANY "\"max_window_layers\":299}");
  refuse(NN_ERR_UNSUPPORTED, "some of 300 layers are dense|256",
         "{\"model_type\":\"qwen3_moe\"," MANY "\"mlp_only_layers\":[299]}");
  refuse(NN_ERR_UNSUPPORTED, "some of 300 layers are dense|256",
         "{\"model_type\":\"qwen3_moe\"," MANY "\"mlp_only_layers\":[3]}");
  refuse(NN_ERR_UNSUPPORTED, "some of 300 layers are dense|256",
         "{\"model_type\":\"glm4_moe\",\"num_hidden_layers\":300}");
  refuse(NN_ERR_FORMAT, "partial_rotary_factor|1e+30|from 2 to all",
         "{\"model_type\":\"glm4_moe\",\"partial_rotary_factor\":1e30}");
}

static void switches_of_families_must_stand_where_they_are_computed(void **state) {
  (void)state;
  refuse(NN_ERR_UNSUPPORTED, "topk_method is \"noaux_tc\"|\"greedy\"",
         "{\"model_type\":\"deepseek_v2\",\"topk_method\":\"noaux_tc\"}");
  refuse(NN_ERR_UNSUPPORTED, "scoring_func is \"softmax\"",
         "{\"model_type\":\"deepseek_v3\",\"scoring_func\":\"softmax\"}");
  refuse(NN_ERR_UNSUPPORTED, "moe_layer_freq is 2|1",
         "{\"model_type\":\"deepseek_v3\",\"moe_layer_freq\":2}");
  refuse(NN_ERR_FORMAT, "logits_scaling is 0",
         "{\"model_type\":\"granitemoe\",\"logits_scaling\":0}");
  refuse(NN_ERR_FORMAT, "clip_qkv is 0", "{\"model_type\":\"olmoe\",\"clip_qkv\":0}");
  refuse(NN_ERR_FORMAT, "attention_bias is 1", "{\"model_type\":\"llama\",\"attention_bias\":1}");
  assert_true(read_text("{\"model_type\":\"phimoe\",\"architectures\":[\"PhiMoEForCausalLM\"]}")
                  .family == NN_FAMILY_PHIMOE);
  refuse(NN_ERR_FORMAT, "topk_group is 5|n_group, 4",
         "{\"model_type\":\"deepseek_v3\",\"n_group\":4,\"topk_group\":5}");
  refuse(NN_ERR_FORMAT, "n_group is 7|divide n_routed_experts",
         "{\"model_type\":\"deepseek_v3\",\"n_group\":7,\"topk_group\":5}");
}

/* The member of this library's struct that a key gives is not what its user wrote. */
static void bounds_name_the_keys(void **state) {
  (void)state;
  static const struct {
    const char *type, *experts, *top_k;
  } families[] = {
      {"mixtral", "num_local_experts", "num_experts_per_tok"},
      {"mixtral", "num_experts", "num_experts_per_tok"},
      {"olmoe", "num_experts", "num_experts_per_tok"},
      {"olmoe", "num_local_experts", "num_experts_per_tok"},
      {"qwen2_moe", "num_experts", "num_experts_per_tok"},
      {"qwen3_moe", "num_experts", "num_experts_per_tok"},
      {"granitemoe", "num_local_experts", "num_experts_per_tok"},
      {"gpt_oss", "num_local_experts", "experts_per_token"},
      {"deepseek_v2", "n_routed_experts", "num_experts_per_tok"},
      {"phimoe", "num_local_experts", "num_experts_per_tok"},
  };
  for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
    char text[200], message[200];
    snprintf(text, sizeof text, "{\"model_type\":\"%s\",\"%s\":8,\"%s\":9}", families[i].type,
             families[i].experts, families[i].top_k);
    snprintf(message, sizeof message,
             "config.json: %s is 9; it must be from 1 to %s, which is 8", families[i].top_k,
             families[i].experts);
    refuse(NN_ERR_FORMAT, message, text);
  }
  refuse(NN_ERR_FORMAT, "config.json: num_experts_per_tok is 5; topk_group leaves 4 experts to",
         "{\"model_type\":\"deepseek_v3\",\"n_routed_experts\":8,\"n_group\":4,"
         "\"topk_group\":2,\"num_experts_per_tok\":5}");
  refuse(NN_ERR_FORMAT, "v_head_dim is 200|at most qk_nope_head_dim + qk_rope_head_dim, which",
         "{\"model_type\":\"deepseek_v2\",\"v_head_dim\":200}");
  refuse(NN_ERR_FORMAT, "config.json: qk_nope_head_dim + qk_rope_head_dim is 364; it must be from",
         "{\"model_type\":\"deepseek_v3\",\"qk_nope_head_dim\":300}");
  refuse(NN_ERR_FORMAT, "config.json: partial_rotary_factor x head_dim is 9; it must be even",
         "{\"model_type\":\"glm4_moe\",\"head_dim\":18}");
  refuse(NN_ERR_FORMAT, "config.json: n_shared_experts x moe_intermediate_size is 2816000000; it",
         "{\"model_type\":\"glm4_moe\",\"head_dim\":64,\"n_shared_experts\":2000000}");
  refuse(NN_ERR_FORMAT, "config.json: head_dim is 300; it must be from 1 to 256",
         "{\"model_type\":\"llama\",\"head_dim\":300}");
  refuse(NN_ERR_FORMAT, "config.json: n_embd / n_head is 384; it must be from 1 to 256",
         GPT2 "\"n_head\":2}");
  refuse(NN_ERR_FORMAT, "config.json: rope_scaling.factor is 0.5; it must be at least 1",
         MIXTRAL "\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}}");
  refuse(NN_ERR_FORMAT, "rope_parameters.low_freq_factor is 5|below rope_parameters.high_freq",
         MIXTRAL "\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8,"
                 "\"low_freq_factor\":5,\"high_freq_factor\":4}}");
  /* whose member is 1 / the value */
  refuse(NN_ERR_FORMAT, "config.json: logit_scale is 1e+07",
         "{\"model_type\":\"granitemoe\",\"logits_scaling\":1e-7}");
}

static void dtypes_and_classes_must_make_sense(void **state) {
  (void)state;
  nn_model_config_t plain = read_text("{\"model_type\":\"mixtral\"}");
  static const char *const good[] = {
      "\"torch_dtype\":\"float32\",\"dtype\":\"bfloat16\"}", "\"torch_dtype\":\"float16\"}",
      "\"torch_dtype\":null,\"dtype\":null}", "\"architectures\":null}", "\"architectures\":[]}",
      "\"architectures\":[\"MixtralForCausalLM\"]}"};
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    char text[200] = MIXTRAL;
    nn_model_config_t config = read_text(strcat(text, good[i]));
    assert_memory_equal(&config, &plain, sizeof config);
  }
  refuse(NN_ERR_UNSUPPORTED, "torch_dtype is 5|\"float32\"|\"bfloat16\"|\"float16\"",
         MIXTRAL "\"torch_dtype\":5}");
  refuse(NN_ERR_UNSUPPORTED, "torch_dtype is \"int4\"", GPT2 "\"torch_dtype\":\"int4\"}");
  refuse(NN_ERR_UNSUPPORTED, "dtype is [\"float32\"]", GPT2 "\"dtype\":[\"float32\"]}");
  refuse(NN_ERR_UNSUPPORTED, "architectures is [\"GPT2LMHeadModel\"]|[\"MixtralForCausalLM\"]",
         MIXTRAL "\"architectures\":[\"GPT2LMHeadModel\"]}");
  refuse(NN_ERR_UNSUPPORTED, "architectures is [\"GPT2Model\"]|[\"GPT2LMHeadModel\"]",
         GPT2 "\"architectures\":[\"GPT2Model\"]}");
  refuse(NN_ERR_UNSUPPORTED, "architectures is [\"MixtralForCausalLM\",7]",
         MIXTRAL "\"architectures\":[\"MixtralForCausalLM\",7]}");
  refuse(NN_ERR_UNSUPPORTED, "architectures is \"MixtralForCausalLM\"",
         MIXTRAL "\"architectures\":\"MixtralForCausalLM\"}");
}

static void hostile_texts_are_refused(void **state) {
  (void)state;
  refuse(NN_ERR_FORMAT, "config.json: line 1", "");
  refuse(NN_ERR_FORMAT, "line 2, column", "{\"model_type\":\n}");
  refuse(NN_ERR_FORMAT, "object", "[]");
  refuse(NN_ERR_FORMAT, "model_type", "{}");
  refuse(NN_ERR_FORMAT, "model_type", "{\"model_type\":5}");
  refuse(NN_ERR_FORMAT, "end of file", "{\"model_type\":\"gpt2\"} x");
  refuse(NN_ERR_FORMAT, "duplicate", GPT2 "\"n_layer\":2,\"n_layer\":2}");
  refuse(NN_ERR_FORMAT, "too big", GPT2 "\"n_layer\":99999999999999999999}");
  refuse(NN_ERR_FORMAT, "overflow", GPT2 "\"layer_norm_epsilon\":1e999}");
  refuse(NN_ERR_FORMAT, "n_layer is 9223372036854775807", GPT2 "\"n_layer\":9223372036854775807}");
  refuse(NN_ERR_FORMAT, "n_embd is 9223372036854775807", GPT2 "\"n_embd\":9223372036854775807}");
  refuse(NN_ERR_FORMAT, "n_layer is 0", GPT2 "\"n_layer\":0}");
  refuse(NN_ERR_FORMAT, "n_layer is -3", GPT2 "\"n_layer\":-3}");
  refuse(NN_ERR_FORMAT, "n_layer is 12.0", GPT2 "\"n_layer\":12.0}");
  refuse(NN_ERR_FORMAT, "n_layer is \"12\"", GPT2 "\"n_layer\":\"12\"}");
  refuse(NN_ERR_FORMAT, "n_layer is null", GPT2 "\"n_layer\":null}");
  refuse(NN_ERR_FORMAT, "layer_norm_epsilon is 0", GPT2 "\"layer_norm_epsilon\":0}");
  refuse(NN_ERR_FORMAT, "layer_norm_epsilon is \"x\"", GPT2 "\"layer_norm_epsilon\":\"x\"}");
  refuse(NN_ERR_FORMAT, "layer_norm_epsilon is 1e300|fp32", GPT2 "\"layer_norm_epsilon\":1e300}");
  refuse(NN_ERR_FORMAT, "rope_theta is 1e300|fp32", MIXTRAL "\"rope_theta\":1e300}");
  refuse(NN_ERR_FORMAT, "rope_theta is 1e+35", MIXTRAL "\"rope_theta\":1e35}");
  refuse(NN_ERR_FORMAT, "tie_word_embeddings is 1", GPT2 "\"tie_word_embeddings\":1}");
  refuse(NN_ERR_FORMAT, "n_embd is 768|n_head, which is 5", GPT2 "\"n_head\":5}");
  refuse(NN_ERR_FORMAT, "num_key_value_heads is 5|num_attention_heads, which is 32",
         MIXTRAL "\"num_key_value_heads\":5}");
  refuse(NN_ERR_FORMAT, "config.json", "{\"model_type\":\"gpt2\",\"a\":\"\\u0000\"}");
  refuse(NN_ERR_FORMAT, "config.json", "{\"model_type\":\"gpt2\",\"a\":\"\xff\"}");

  nn_model_config_t config = STRUCT(nn_model_config_t);
  CHECK_STATUS(NN_ERR_FORMAT, nn_config_from_json("{\"model_type\":\"gpt2\0\"}", 22, &config));
  CHECK_STATUS(NN_ERR_FORMAT, nn_config_from_json("{\"model_type\":\"gpt2\"}\0", 23, &config));
  CHECK_STATUS(NN_ERR_FORMAT, nn_config_from_json("", 1, &config));
  static char deep[50000];
  memset(deep, '[', sizeof deep);
  CHECK_STATUS(NN_ERR_FORMAT, nn_config_from_json(deep, sizeof deep, &config));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_config_from_json(NULL, 0, &config));

  static char text[400] =
      GPT2 "\"activation_function\":\""; /* a long value is cut in the message */
  memset(text + strlen(text), 'y', 300);
  strcat(text, "\"}");
  refuse(NN_ERR_UNSUPPORTED, "activation_function is|...", text);

  static char name[400] = MIXTRAL "\""; /* and so is a long key, before the reason */
  memset(name + strlen(name), 'k', 300);
  strcat(name, "\":7}");
  refuse(NN_ERR_UNSUPPORTED, "kkk...\" (7)|mixtral|could change the numbers", name);
}

/* ---- writing --------------------------------------------------------------------------------- */

static char *write_text(const nn_model_config_t *config) {
  size_t required = 0;
  CHECK_STATUS(NN_ERR_CAPACITY, nn_config_to_json(config, NULL, 0, &required));
  char *text = fixture_memory(required);
  CHECK_STATUS(NN_ERR_CAPACITY, nn_config_to_json(config, text, required - 1, &required));
  CHECK(nn_config_to_json(config, text, required, &required));
  assert_int_equal(strlen(text) + 1, required);
  assert_int_equal(text[required - 2], '\n');
  return text;
}

static void check_round_trip(nn_model_config_t config) {
  CHECK(nn_config_validate(&config));
  char *text = write_text(&config);
  nn_model_config_t again = read_text(text), with_nul = STRUCT(nn_model_config_t);
  assert_memory_equal(&config, &again, sizeof config);
  /* the size that nn_config_to_json() asks for counts the NUL; one is read, two are not */
  CHECK(nn_config_from_json(text, strlen(text) + 1, &with_nul));
  assert_memory_equal(&config, &with_nul, sizeof config);
  free(text);
}

static void every_configuration_survives(void **state) {
  (void)state;
  static const char *const names[] = {"tiny",      "small",     "moe-6.9b",  "gpt2-124m",
                                      "gpt2-350m", "gpt2-774m", "gpt2-1558m"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    nn_model_config_t config = STRUCT(nn_model_config_t);
    CHECK(nn_config_preset(names[i], &config));
    check_round_trip(config);
  }
  nn_model_config_t config = files_mixtral();
  config.tied_head = 1, config.norm_eps = 3.1415927e-7f, config.rope_theta = 123456.79f;
  config.rope_ntk_alpha = 1.1f, config.init_std = 1.0f / 3, config.aux_loss = NN_AUX_JOINT;
  config.aux_loss_coef = 16777217.0f / 1e9f, config.z_loss_coef = 1e-3f,
  config.capacity_factor = 1.25f;
  check_round_trip(config);
  config = files_gpt2();
  config.norm_eps = 1e-6f;
  check_round_trip(config);
  config = files_mixtral();
  config.rope_scaling = NN_ROPE_LONG; /* the original context is the context, and so is written */
  for (int i = 0; i < 2; i++)
    config.rope_short_factors[i] = 1.0f / 3, config.rope_long_factors[i] = 1e6f - (float)i;
  check_round_trip(config);
  config.rope_original_context = 7, config.rope_factor = 3, config.rope_attention_factor = 1.1f;
  check_round_trip(config);
}

static void texts_are_what_transformers_reads(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  char *text = write_text(&config);
  json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
  assert_non_null(root);
  assert_string_equal(json_string_value(json_object_get(root, "model_type")), "mixtral");
  assert_string_equal(json_string_value(json_array_get(json_object_get(root, "architectures"), 0)),
                      "MixtralForCausalLM");
  assert_int_equal(json_integer_value(json_object_get(root, "num_key_value_heads")), 3);
  assert_int_equal(json_integer_value(json_object_get(root, "head_dim")), 4);
  assert_true(json_is_true(json_object_get(root, "output_router_logits")));
  assert_true(json_is_null(json_object_get(root, "sliding_window")));
  assert_true(json_is_null(json_object_get(root, "eos_token_id")));
  assert_string_equal(json_string_value(json_object_get(root, "router_aux_loss_norm")), "switch");
  assert_null(json_object_get(root, "rope_ntk_alpha"));
  assert_null(json_object_get(root, "capacity_factor"));
  assert_null(json_object_get(root, "torch_dtype"));
  json_decref(root);
  assert_non_null(strstr(text, "\"rms_norm_eps\": 1e-5"));
  assert_non_null(strstr(text, "\"router_aux_loss_coef\": 0.01"));
  assert_non_null(strstr(text, "\"rope_theta\": 10000.0"));
  free(text);
}

/* A program may have set a locale whose decimal point is a comma. Skipped where there is none. */
static void locales_make_no_difference(void **state) {
  (void)state;
  static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "ru_RU.UTF-8"};
  const char *set = NULL;
  for (size_t i = 0; i < sizeof names / sizeof *names && !set; i++)
    set = setlocale(LC_ALL, names[i]);
  if (!set) {
    print_message("no locale with a decimal comma is installed\n");
    skip();
  }
  nn_model_config_t config = files_mixtral();
  check_round_trip(config);
  char *text = write_text(&config);
  setlocale(LC_ALL, "C");
  assert_non_null(strstr(text, "\"router_aux_loss_coef\": 0.01"));
  free(text);
}

static void invalid_configurations_are_not_written(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  size_t required = 77;
  config.heads = 5;
  CHECK_FAILS(NN_ERR_ARGUMENT, "kv_heads", nn_config_to_json(&config, NULL, 0, &required));
  assert_int_equal(required, 77);
  config = files_mixtral();
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_config_to_json(&config, NULL, 0, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_config_to_json(NULL, NULL, 0, &required));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_config_to_json(&config, NULL, 100, &required));
  mem_fail_after(0);
  CHECK_STATUS(NN_ERR_MEMORY, nn_config_to_json(&config, NULL, 0, &required));
  mem_fail_after(-1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(absent_keys_have_the_defaults_of_transformers),
      cmocka_unit_test(rope_is_understood_in_both_spellings),
      cmocka_unit_test(published_long_rope_is_understood),
      cmocka_unit_test(long_rope_needs_its_lists),
      cmocka_unit_test(the_auxiliary_loss_counts_with_router_logits),
      cmocka_unit_test(nulls_and_aliases_are_understood),
      cmocka_unit_test(bookkeeping_is_left_alone),
      cmocka_unit_test(what_would_change_the_numbers_is_refused),
      cmocka_unit_test(layers_that_differ_must_make_sense),
      cmocka_unit_test(patterns_have_room_for_256_layers),
      cmocka_unit_test(switches_of_families_must_stand_where_they_are_computed),
      cmocka_unit_test(bounds_name_the_keys),
      cmocka_unit_test(dtypes_and_classes_must_make_sense),
      cmocka_unit_test(hostile_texts_are_refused),
      cmocka_unit_test(every_configuration_survives),
      cmocka_unit_test(texts_are_what_transformers_reads),
      cmocka_unit_test(locales_make_no_difference),
      cmocka_unit_test(invalid_configurations_are_not_written),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
