#include "model/family.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "model/config.h"

/* ---- tensors --------------------------------------------------------------------------------- */

/* Every family but GPT-2 publishes these alike. */
#define EMBEDDING {PARAM_WTE, SCOPE_FIRST, "model.embed_tokens.weight", DIM_VOCAB, DIM_HIDDEN, 0}

#define ATTENTION                                                                               \
  {PARAM_Q, SCOPE_LAYER, "self_attn.q_proj.weight", DIM_QUERY, DIM_HIDDEN, 0},                  \
      {PARAM_Q_BIAS, SCOPE_LAYER, "self_attn.q_proj.bias", DIM_QUERY, DIM_NONE, 0},             \
      {PARAM_K, SCOPE_LAYER, "self_attn.k_proj.weight", DIM_KEY, DIM_HIDDEN, 0},                \
      {PARAM_K_BIAS, SCOPE_LAYER, "self_attn.k_proj.bias", DIM_KEY, DIM_NONE, 0},               \
      {PARAM_V, SCOPE_LAYER, "self_attn.v_proj.weight", DIM_KEY, DIM_HIDDEN, 0},                \
      {PARAM_V_BIAS, SCOPE_LAYER, "self_attn.v_proj.bias", DIM_KEY, DIM_NONE, 0},               \
      {PARAM_O, SCOPE_LAYER, "self_attn.o_proj.weight", DIM_HIDDEN, DIM_QUERY, 0},              \
      {PARAM_O_BIAS, SCOPE_LAYER, "self_attn.o_proj.bias", DIM_HIDDEN, DIM_NONE, 0},            \
      {PARAM_Q_NORM, SCOPE_LAYER, "self_attn.q_norm.weight", DIM_QUERY_NORM, DIM_NONE, 0},      \
      {PARAM_K_NORM, SCOPE_LAYER, "self_attn.k_norm.weight", DIM_KEY_NORM, DIM_NONE, 0},        \
      {PARAM_SINKS, SCOPE_LAYER, "self_attn.sinks", DIM_HEADS, DIM_NONE, 0}

#define LATENT_ATTENTION                                                                           \
  {PARAM_Q, SCOPE_LAYER, "self_attn.q_proj.weight", DIM_QUERY, DIM_HIDDEN, 0},                     \
      {PARAM_Q_A, SCOPE_LAYER, "self_attn.q_a_proj.weight", DIM_Q_RANK, DIM_HIDDEN, 0},            \
      {PARAM_Q_A_NORM, SCOPE_LAYER, "self_attn.q_a_layernorm.weight", DIM_Q_RANK, DIM_NONE, 0},    \
      {PARAM_Q_B, SCOPE_LAYER, "self_attn.q_b_proj.weight", DIM_QUERY, DIM_Q_RANK, 0},             \
      {PARAM_KV_A, SCOPE_LAYER, "self_attn.kv_a_proj_with_mqa.weight", DIM_KV_AND_ROPE,            \
       DIM_HIDDEN, 0},                                                                             \
      {PARAM_KV_A_NORM, SCOPE_LAYER, "self_attn.kv_a_layernorm.weight", DIM_KV_RANK, DIM_NONE, 0}, \
      {PARAM_KV_B, SCOPE_LAYER, "self_attn.kv_b_proj.weight", DIM_KEYS_VALUES, DIM_KV_RANK, 0},    \
      {PARAM_O, SCOPE_LAYER, "self_attn.o_proj.weight", DIM_HIDDEN, DIM_VALUES, 0}

#define DENSE_FFN                                                                                 \
  {PARAM_DENSE_GATE, SCOPE_LAYER, "mlp.gate_proj.weight", DIM_DENSE_FFN, DIM_HIDDEN, 0},          \
      {PARAM_DENSE_GATE_BIAS, SCOPE_LAYER, "mlp.gate_proj.bias", DIM_DENSE_FFN, DIM_NONE, 0},     \
      {PARAM_DENSE_UP, SCOPE_LAYER, "mlp.up_proj.weight", DIM_DENSE_FFN, DIM_HIDDEN, 0},          \
      {PARAM_DENSE_UP_BIAS, SCOPE_LAYER, "mlp.up_proj.bias", DIM_DENSE_FFN, DIM_NONE, 0},         \
      {PARAM_DENSE_DOWN, SCOPE_LAYER, "mlp.down_proj.weight", DIM_HIDDEN, DIM_DENSE_FFN, 0},      \
      {PARAM_DENSE_DOWN_BIAS, SCOPE_LAYER, "mlp.down_proj.bias", DIM_HIDDEN, DIM_NONE, 0}

#define W_EXPERTS                                                                                  \
  {PARAM_ROUTER, SCOPE_LAYER, "block_sparse_moe.gate.weight", DIM_EXPERTS, DIM_HIDDEN, 0},         \
      {PARAM_GATE, SCOPE_EXPERT, "w1.weight", DIM_FFN, DIM_HIDDEN, 0},                             \
      {PARAM_DOWN, SCOPE_EXPERT, "w2.weight", DIM_HIDDEN, DIM_FFN, 0},                             \
      {PARAM_UP, SCOPE_EXPERT, "w3.weight", DIM_FFN, DIM_HIDDEN, 0}

#define EXPERTS                                                                                   \
  {PARAM_ROUTER, SCOPE_LAYER, "mlp.gate.weight", DIM_EXPERTS, DIM_HIDDEN, 0},                     \
      {PARAM_ROUTER_CHOICE_BIAS, SCOPE_LAYER, "mlp.gate.e_score_correction_bias", DIM_EXPERTS,    \
       DIM_NONE, 0},                                                                              \
      {PARAM_GATE, SCOPE_EXPERT, "gate_proj.weight", DIM_FFN, DIM_HIDDEN, 0},                     \
      {PARAM_UP, SCOPE_EXPERT, "up_proj.weight", DIM_FFN, DIM_HIDDEN, 0},                         \
      {PARAM_DOWN, SCOPE_EXPERT, "down_proj.weight", DIM_HIDDEN, DIM_FFN, 0}

#define SHARED_EXPERT(prefix)                                                                      \
  {PARAM_SHARED_GATE, SCOPE_LAYER, prefix "gate_proj.weight", DIM_SHARED_FFN, DIM_HIDDEN, 0},      \
      {PARAM_SHARED_UP, SCOPE_LAYER, prefix "up_proj.weight", DIM_SHARED_FFN, DIM_HIDDEN, 0},      \
      {PARAM_SHARED_DOWN, SCOPE_LAYER, prefix "down_proj.weight", DIM_HIDDEN, DIM_SHARED_FFN, 0},  \
      {PARAM_SHARED_EXPERT_GATE, SCOPE_LAYER, "mlp.shared_expert_gate.weight", DIM_ONE,            \
       DIM_HIDDEN, 0}

#define NORMS_AND_HEAD                                                                             \
  {PARAM_NORM1, SCOPE_LAYER, "input_layernorm.weight", DIM_HIDDEN, DIM_NONE, 0},                   \
      {PARAM_NORM1_BIAS, SCOPE_LAYER, "input_layernorm.bias", DIM_HIDDEN, DIM_NONE, 0},            \
      {PARAM_NORM2, SCOPE_LAYER, "post_attention_layernorm.weight", DIM_HIDDEN, DIM_NONE, 0},      \
      {PARAM_NORM2_BIAS, SCOPE_LAYER, "post_attention_layernorm.bias", DIM_HIDDEN, DIM_NONE, 0},   \
      {PARAM_NORM_FINAL, SCOPE_LAST, "model.norm.weight", DIM_HIDDEN, DIM_NONE, 0},                \
      {PARAM_NORM_FINAL_BIAS, SCOPE_LAST, "model.norm.bias", DIM_HIDDEN, DIM_NONE, 0},             \
      {PARAM_HEAD, SCOPE_LAST, "lm_head.weight", DIM_VOCAB, DIM_HIDDEN, 0},                        \
      {PARAM_HEAD_BIAS, SCOPE_LAST, "lm_head.bias", DIM_VOCAB, DIM_NONE, 0}, {0}

static const part_t dense_parts[] = {EMBEDDING, ATTENTION, DENSE_FFN, NORMS_AND_HEAD};

static const part_t w_parts[] = {EMBEDDING, ATTENTION, W_EXPERTS, NORMS_AND_HEAD};

static const part_t moe_parts[] = {EMBEDDING, ATTENTION, DENSE_FFN, EXPERTS,
                                   SHARED_EXPERT("mlp.shared_expert."), NORMS_AND_HEAD};

static const part_t glm_parts[] = {EMBEDDING, ATTENTION, DENSE_FFN, EXPERTS,
                                   SHARED_EXPERT("mlp.shared_experts."), NORMS_AND_HEAD};

static const part_t deepseek_parts[] = {EMBEDDING, LATENT_ATTENTION, DENSE_FFN, EXPERTS,
                                        SHARED_EXPERT("mlp.shared_experts."), NORMS_AND_HEAD};

static const part_t granite_parts[] = {
    EMBEDDING,
    ATTENTION,
    {PARAM_ROUTER, SCOPE_LAYER, "block_sparse_moe.router.layer.weight", DIM_EXPERTS, DIM_HIDDEN, 0},
    {PARAM_GATE_UP, SCOPE_EXPERT, "input_linear.weight", DIM_GATE_UP, DIM_HIDDEN,
     FORM_STACKED},
    {PARAM_DOWN, SCOPE_EXPERT, "output_linear.weight", DIM_HIDDEN, DIM_FFN,
     FORM_STACKED},
    NORMS_AND_HEAD};

static const part_t gpt_oss_parts[] = {
    EMBEDDING,
    ATTENTION,
    {PARAM_ROUTER, SCOPE_LAYER, "mlp.router.weight", DIM_EXPERTS, DIM_HIDDEN, 0},
    {PARAM_ROUTER_BIAS, SCOPE_LAYER, "mlp.router.bias", DIM_EXPERTS, DIM_NONE, 0},
    {PARAM_GATE_UP, SCOPE_EXPERT, "gate_up_proj", DIM_GATE_UP, DIM_HIDDEN,
     FORM_STACKED_TRANSPOSED},
    {PARAM_GATE_UP_BIAS, SCOPE_EXPERT, "gate_up_proj_bias", DIM_GATE_UP, DIM_NONE, FORM_STACKED},
    {PARAM_DOWN, SCOPE_EXPERT, "down_proj", DIM_HIDDEN, DIM_FFN, FORM_STACKED_TRANSPOSED},
    {PARAM_DOWN_BIAS, SCOPE_EXPERT, "down_proj_bias", DIM_HIDDEN, DIM_NONE, FORM_STACKED},
    NORMS_AND_HEAD};

static const part_t gpt2_parts[] = {
    {PARAM_WTE, SCOPE_FIRST, "transformer.wte.weight", DIM_VOCAB, DIM_HIDDEN, 0},
    {PARAM_WPE, SCOPE_FIRST, "transformer.wpe.weight", DIM_CONTEXT, DIM_HIDDEN, 0},
    {PARAM_NORM1, SCOPE_LAYER, "ln_1.weight", DIM_HIDDEN, DIM_NONE, 0},
    {PARAM_NORM1_BIAS, SCOPE_LAYER, "ln_1.bias", DIM_HIDDEN, DIM_NONE, 0},
    {PARAM_QKV, SCOPE_LAYER, "attn.c_attn.weight", DIM_QKV, DIM_HIDDEN, FORM_TRANSPOSED},
    {PARAM_QKV_BIAS, SCOPE_LAYER, "attn.c_attn.bias", DIM_QKV, DIM_NONE, 0},
    {PARAM_O, SCOPE_LAYER, "attn.c_proj.weight", DIM_HIDDEN, DIM_QUERY, FORM_TRANSPOSED},
    {PARAM_O_BIAS, SCOPE_LAYER, "attn.c_proj.bias", DIM_HIDDEN, DIM_NONE, 0},
    {PARAM_NORM2, SCOPE_LAYER, "ln_2.weight", DIM_HIDDEN, DIM_NONE, 0},
    {PARAM_NORM2_BIAS, SCOPE_LAYER, "ln_2.bias", DIM_HIDDEN, DIM_NONE, 0},
    {PARAM_FC, SCOPE_LAYER, "mlp.c_fc.weight", DIM_FFN, DIM_HIDDEN, FORM_TRANSPOSED},
    {PARAM_FC_BIAS, SCOPE_LAYER, "mlp.c_fc.bias", DIM_FFN, DIM_NONE, 0},
    {PARAM_PROJ, SCOPE_LAYER, "mlp.c_proj.weight", DIM_HIDDEN, DIM_FFN, FORM_TRANSPOSED},
    {PARAM_PROJ_BIAS, SCOPE_LAYER, "mlp.c_proj.bias", DIM_HIDDEN, DIM_NONE, 0},
    {PARAM_NORM_FINAL, SCOPE_LAST, "transformer.ln_f.weight", DIM_HIDDEN, DIM_NONE, 0},
    {PARAM_NORM_FINAL_BIAS, SCOPE_LAST, "transformer.ln_f.bias", DIM_HIDDEN, DIM_NONE, 0},
    {PARAM_HEAD, SCOPE_LAST, "lm_head.weight", DIM_VOCAB, DIM_HIDDEN, 0},
    {0}};

/* ---- tensors of newer programs --------------------------------------------------------------- */

#define FUSED_EXPERTS                                 \
  {PARAM_GATE, "mlp.experts.gate_up_proj"},           \
      {PARAM_UP, "mlp.experts.gate_up_proj"},         \
      {PARAM_DOWN, "mlp.experts.down_proj"}, {0}

static const fused_t mixtral_fused[] = {{PARAM_ROUTER, "mlp.gate.weight"}, FUSED_EXPERTS};
static const fused_t phimoe_fused[] = {{PARAM_ROUTER, "mlp.router.weight"}, FUSED_EXPERTS};
static const fused_t moe_fused[] = {FUSED_EXPERTS};
static const fused_t granite_fused[] = {
    {PARAM_ROUTER, "block_sparse_moe.router.weight"},
    {PARAM_GATE_UP, "block_sparse_moe.experts.gate_up_proj"},
    {PARAM_DOWN, "block_sparse_moe.experts.down_proj"},
    {0}};

/* ---- what members may be --------------------------------------------------------------------- */

/* The bounds of config.c hold in any case: ANY leaves a member to them. */
#define IS(member, min, max) \
  { offsetof(nn_model_config_t, member), min, max }
#define ANY(member) IS(member, -DBL_MAX, DBL_MAX)
#define ROPE_SCALINGS                                                                             \
  ANY(rope_scaling), ANY(rope_original_context), ANY(rope_factor), ANY(rope_beta_fast),           \
      ANY(rope_beta_slow), ANY(rope_low_freq), ANY(rope_high_freq), ANY(rope_attention_factor),   \
      ANY(rope_mscale), ANY(rope_mscale_all_dim), ANY(rope_no_truncate),                          \
      ANY(rope_short_factors), ANY(rope_long_factors)
#define WINDOWS ANY(window), ANY(window_layers)
#define DENSE_LAYERS ANY(dense_ffn), ANY(dense_layers)
#define LAST \
  { 0, 0, 0 }

static const limit_t gpt2_limits[] = {LAST};
static const limit_t llama_limits[] = {ROPE_SCALINGS, LAST};
static const limit_t mistral_limits[] = {ROPE_SCALINGS, ANY(window), LAST};
static const limit_t qwen2_limits[] = {ROPE_SCALINGS, WINDOWS, LAST};
static const limit_t qwen3_limits[] = {
    ROPE_SCALINGS, WINDOWS, IS(qk_norm, NN_QK_NORM_HEAD, NN_QK_NORM_HEAD), LAST};
static const limit_t olmoe_limits[] = {
    ROPE_SCALINGS, IS(qk_norm, NN_QK_NORM_FULL, NN_QK_NORM_FULL), ANY(qkv_clip), ANY(router_norm),
    LAST};
static const limit_t qwen2_moe_limits[] = {
    ROPE_SCALINGS, WINDOWS, DENSE_LAYERS, IS(shared_ffn, 1, DBL_MAX), IS(shared_gate, 1, 1),
    ANY(router_norm), LAST};
static const limit_t qwen3_moe_limits[] = {
    ROPE_SCALINGS, ANY(window), DENSE_LAYERS, IS(qk_norm, NN_QK_NORM_HEAD, NN_QK_NORM_HEAD),
    ANY(router_norm), LAST};
static const limit_t granitemoe_limits[] = {
    ROPE_SCALINGS, ANY(embedding_scale), ANY(residual_scale), ANY(attention_scale),
    ANY(logit_scale), LAST};
static const limit_t gpt_oss_limits[] = {
    ROPE_SCALINGS, WINDOWS, IS(attention_sinks, 1, 1), IS(swiglu_limit, FLT_MIN, DBL_MAX), LAST};
static const limit_t deepseek_v2_limits[] = {
    ROPE_SCALINGS, DENSE_LAYERS, ANY(shared_ffn), ANY(router_scale), ANY(router_groups),
    ANY(router_top_groups), IS(router_norm, NN_ROUTER_NORM_NONE, NN_ROUTER_NORM_NONE),
    IS(router_group_score, NN_GROUP_MAX, NN_GROUP_MAX), IS(rope_interleaved, 1, 1), ANY(q_rank),
    IS(kv_rank, 1, DBL_MAX), ANY(rope_head_dim), ANY(value_head_dim), LAST};
static const limit_t deepseek_v3_limits[] = {
    ROPE_SCALINGS, DENSE_LAYERS, ANY(shared_ffn), ANY(router_scale), ANY(router_groups),
    ANY(router_top_groups), ANY(router_norm), IS(router_score, NN_SCORE_SIGMOID, NN_SCORE_SIGMOID),
    IS(router_group_score, NN_GROUP_TOP2, NN_GROUP_TOP2), IS(router_choice_bias, 1, 1),
    ANY(rope_interleaved), ANY(q_rank), IS(kv_rank, 1, DBL_MAX), ANY(rope_head_dim),
    ANY(value_head_dim), LAST};
static const limit_t glm4_moe_limits[] = {
    ROPE_SCALINGS, DENSE_LAYERS, IS(qk_norm, NN_QK_NORM_NONE, NN_QK_NORM_HEAD), ANY(shared_ffn),
    ANY(router_scale), ANY(router_groups), ANY(router_top_groups), ANY(router_norm),
    IS(router_score, NN_SCORE_SIGMOID, NN_SCORE_SIGMOID),
    IS(router_group_score, NN_GROUP_TOP2, NN_GROUP_TOP2), IS(router_choice_bias, 1, 1),
    ANY(rotary_dim), LAST};
static const limit_t phimoe_limits[] = {
    ROPE_SCALINGS, ANY(window), IS(router_score, NN_SCORE_SPARSE_MIXER, NN_SCORE_SPARSE_MIXER),
    IS(router_norm, NN_ROUTER_NORM_NONE, NN_ROUTER_NORM_NONE), ANY(router_eps), LAST};

/* ---- the rows -------------------------------------------------------------------------------- */

#define FAMILY(model_type_, architecture_, parts_, experts_, limits_)                          \
  .model_type = model_type_, .architecture = architecture_, .parts = parts_, .limits = limits_, \
  .layer_prefix = "model.layers.", .expert_prefix = experts_, .sparse = (experts_)[0] != 0
#define QKVO (NN_BIAS_QKV | NN_BIAS_O)
#define W "block_sparse_moe.experts."
#define MLP "mlp.experts."

const family_t families[FAMILIES] = {
    [NN_FAMILY_MIXTRAL] = {FAMILY("mixtral", "MixtralForCausalLM", w_parts, W, mistral_limits),
                           .fused = mixtral_fused},
    [NN_FAMILY_GPT2] = {.model_type = "gpt2",
                        .architecture = "GPT2LMHeadModel",
                        .parts = gpt2_parts,
                        .limits = gpt2_limits,
                        .layer_prefix = "transformer.h.",
                        .expert_prefix = "",
                        .norm = NN_NORM_LAYER,
                        .position = NN_POSITION_LEARNED,
                        .ffn_kind = NN_FFN_GELU_TANH,
                        .biases = NN_BIAS_ALL,
                        .tied_head = true},
    [NN_FAMILY_LLAMA] = {FAMILY("llama", "LlamaForCausalLM", dense_parts, "", llama_limits),
                         .attention_biases = QKVO,
                         .ffn_biases = NN_BIAS_FFN},
    [NN_FAMILY_MISTRAL] = {FAMILY("mistral", "MistralForCausalLM", dense_parts, "",
                                  mistral_limits)},
    [NN_FAMILY_QWEN2] = {FAMILY("qwen2", "Qwen2ForCausalLM", dense_parts, "", qwen2_limits),
                         .biases = NN_BIAS_QKV},
    [NN_FAMILY_QWEN3] = {FAMILY("qwen3", "Qwen3ForCausalLM", dense_parts, "", qwen3_limits),
                         .attention_biases = QKVO},
    [NN_FAMILY_OLMOE] = {FAMILY("olmoe", "OlmoeForCausalLM", moe_parts, MLP, olmoe_limits),
                             .fused = moe_fused,
                         .attention_biases = QKVO},
    [NN_FAMILY_QWEN2_MOE] = {FAMILY("qwen2_moe", "Qwen2MoeForCausalLM", moe_parts, MLP,
                                    qwen2_moe_limits),
                             .fused = moe_fused,
                             .window_needs_list = true,
                             .attention_biases = NN_BIAS_QKV},
    [NN_FAMILY_QWEN3_MOE] = {FAMILY("qwen3_moe", "Qwen3MoeForCausalLM", moe_parts, MLP,
                                    qwen3_moe_limits),
                             .fused = moe_fused,
                             .attention_biases = QKVO},
    [NN_FAMILY_GRANITEMOE] = {FAMILY("granitemoe", "GraniteMoeForCausalLM", granite_parts,
                                     "block_sparse_moe.", granitemoe_limits),
                              .fused = granite_fused,
                              .attention_biases = QKVO},
    [NN_FAMILY_GPT_OSS] = {FAMILY("gpt_oss", "GptOssForCausalLM", gpt_oss_parts, MLP,
                                  gpt_oss_limits),
                           .ffn_kind = NN_FFN_SWIGLU_CLAMPED,
                           .window_needs_list = true,
                           .biases = NN_BIAS_FFN | NN_BIAS_ROUTER,
                           .attention_biases = QKVO},
    [NN_FAMILY_DEEPSEEK_V2] = {FAMILY("deepseek_v2", "DeepseekV2ForCausalLM", deepseek_parts, MLP,
                                      deepseek_v2_limits),
                             .fused = moe_fused,
                               .counted = true},
    [NN_FAMILY_DEEPSEEK_V3] = {FAMILY("deepseek_v3", "DeepseekV3ForCausalLM", deepseek_parts, MLP,
                                      deepseek_v3_limits),
                             .fused = moe_fused,
                               .predicting_layers = true,
                               .counted = true},
    [NN_FAMILY_GLM4_MOE] = {FAMILY("glm4_moe", "Glm4MoeForCausalLM", glm_parts, MLP,
                                   glm4_moe_limits),
                             .fused = moe_fused,
                            .predicting_layers = true,
                               .counted = true,
                            .attention_biases = NN_BIAS_QKV},
    [NN_FAMILY_PHIMOE] = {FAMILY("phimoe", "PhimoeForCausalLM", w_parts, W, phimoe_limits),
                          .fused = phimoe_fused,
                          .alias = "PhiMoEForCausalLM",
                          .norm = NN_NORM_LAYER,
                          .rope_mscales = true,
                          .attention_biases = QKVO,
                          .head_biases = NN_BIAS_HEAD},
};

/* ---- the check ------------------------------------------------------------------------------- */

typedef enum kind { KIND_INT32, KIND_INT64, KIND_FLOAT, KIND_LAYERS, KIND_FACTORS } kind_t;

/* Members that a family limits. */
static const struct {
  const char *name;
  size_t offset;
  kind_t kind;
} limited[] = {
#define MEMBER(member, kind) \
  { #member, offsetof(nn_model_config_t, member), kind }
    MEMBER(dense_ffn, KIND_INT64),
    MEMBER(dense_layers, KIND_LAYERS),
    MEMBER(window, KIND_INT64),
    MEMBER(window_layers, KIND_LAYERS),
    MEMBER(qk_norm, KIND_INT32),
    MEMBER(qkv_clip, KIND_FLOAT),
    MEMBER(shared_ffn, KIND_INT64),
    MEMBER(shared_gate, KIND_INT32),
    MEMBER(router_score, KIND_INT32),
    MEMBER(router_norm, KIND_INT32),
    MEMBER(router_scale, KIND_FLOAT),
    MEMBER(router_choice_bias, KIND_INT32),
    MEMBER(router_group_score, KIND_INT32),
    MEMBER(router_groups, KIND_INT64),
    MEMBER(router_top_groups, KIND_INT64),
    MEMBER(router_eps, KIND_FLOAT),
    MEMBER(attention_sinks, KIND_INT32),
    MEMBER(embedding_scale, KIND_FLOAT),
    MEMBER(residual_scale, KIND_FLOAT),
    MEMBER(attention_scale, KIND_FLOAT),
    MEMBER(logit_scale, KIND_FLOAT),
    MEMBER(rotary_dim, KIND_INT64),
    MEMBER(rope_interleaved, KIND_INT32),
    MEMBER(rope_scaling, KIND_INT32),
    MEMBER(rope_original_context, KIND_INT64),
    MEMBER(rope_factor, KIND_FLOAT),
    MEMBER(rope_beta_fast, KIND_FLOAT),
    MEMBER(rope_beta_slow, KIND_FLOAT),
    MEMBER(rope_low_freq, KIND_FLOAT),
    MEMBER(rope_high_freq, KIND_FLOAT),
    MEMBER(rope_attention_factor, KIND_FLOAT),
    MEMBER(rope_mscale, KIND_FLOAT),
    MEMBER(rope_mscale_all_dim, KIND_FLOAT),
    MEMBER(rope_no_truncate, KIND_INT32),
    MEMBER(rope_short_factors, KIND_FACTORS),
    MEMBER(rope_long_factors, KIND_FACTORS),
    MEMBER(swiglu_limit, KIND_FLOAT),
    MEMBER(q_rank, KIND_INT64),
    MEMBER(kv_rank, KIND_INT64),
    MEMBER(rope_head_dim, KIND_INT64),
    MEMBER(value_head_dim, KIND_INT64),
};

static double member_value(const nn_model_config_t *config, size_t offset, kind_t kind) {
  const char *at = (const char *)config + offset;
  int32_t small;
  int64_t large;
  float real;
  uint64_t words[4];
  float factors[CONFIG_ROPE_FACTORS];
  double any = 0;
  switch (kind) {
    case KIND_INT32: memcpy(&small, at, sizeof small); return small;
    case KIND_INT64: memcpy(&large, at, sizeof large); return (double)large;
    case KIND_FLOAT: memcpy(&real, at, sizeof real); return (double)real;
    case KIND_LAYERS:
      memcpy(words, at, sizeof words);
      return words[0] || words[1] || words[2] || words[3];
    default:
      memcpy(factors, at, sizeof factors);
      for (size_t i = 0; i < CONFIG_ROPE_FACTORS; i++) any += factors[i] != 0;
      return any;
  }
}

static nn_status_t no_form(const family_t *family, const char *member, double value,
                           const char *needed) {
  return status_fail(
      NN_ERR_UNSUPPORTED,
      "%s is %.9g; this combination has no published form in the %s family: it needs %s", member,
      value, family->model_type, needed);
}

static nn_status_t family_check_limits(const family_t *family, const nn_model_config_t *config) {
  for (size_t i = 0; i < sizeof limited / sizeof *limited; i++) {
    const limit_t *limit = family->limits;
    while (limit->offset && limit->offset != limited[i].offset) limit++; /* the last allows 0 */
    double value = member_value(config, limited[i].offset, limited[i].kind);
    if (value >= limit->min && value <= limit->max) continue;
    char needed[64];
    snprintf(needed, sizeof needed, limit->min == limit->max ? "%.9g" : "at least %.9g",
             limit->min);
    return no_form(family, limited[i].name, value, needed);
  }
  return NN_OK;
}

/* Biases that come together are there together. */
static bool family_has_biases(const family_t *family, int32_t biases) {
  const int32_t groups[] = {family->attention_biases, family->ffn_biases, family->head_biases};
  if ((biases & family->biases) != family->biases) return false;
  biases &= ~family->biases;
  for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
    if ((biases & groups[i]) == groups[i]) biases &= ~groups[i];
  return !biases;
}

static nn_status_t family_check_biases(const family_t *family, int32_t biases) {
  if (family_has_biases(family, biases)) return NN_OK;
  char needed[64];
  int used = snprintf(needed, sizeof needed, "%d", family->biases);
  const int32_t groups[] = {family->attention_biases, family->ffn_biases, family->head_biases};
  for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
    if (groups[i])
      used += snprintf(needed + used, sizeof needed - (size_t)used, ", with or without %d",
                       groups[i]);
  return no_form(family, "biases", biases, needed);
}

static nn_status_t family_check_counts(const family_t *family, const nn_model_config_t *config) {
  if (!family->counted) return NN_OK;
  if (config->shared_ffn % config->ffn)
    return no_form(family, "shared_ffn", (double)config->shared_ffn, "a multiple of ffn");
  int64_t dense = config->layers - config_sparse_layers(config);
  for (int64_t layer = 0; layer < dense; layer++)
    if (!config_layer_is_dense(config, layer))
      return status_fail(NN_ERR_UNSUPPORTED,
                         "dense_layers lacks layer %lld; this combination has no published form in "
                         "the %s family: it needs dense layers to be the first ones",
                         (long long)layer, family->model_type);
  return NN_OK;
}

/* A family whose LongRoPE says what multiplies cosines and sines says it for both lists. */
static nn_status_t family_check_mscales(const family_t *family, const nn_model_config_t *config) {
  bool needed = family->rope_mscales && config->rope_scaling == NN_ROPE_LONG;
  const struct {
    const char *name;
    float value;
  } mscales[] = {{"rope_short_mscale", config->rope_short_mscale},
                 {"rope_long_mscale", config->rope_long_mscale}};
  for (size_t i = 0; i < sizeof mscales / sizeof *mscales; i++)
    if ((mscales[i].value != 0) != needed)
      return no_form(family, mscales[i].name, (double)mscales[i].value, needed ? "above 0" : "0");
  return NN_OK;
}

nn_status_t family_check(const nn_model_config_t *config) {
  const nn_model_config_t *c = config;
  const family_t *family = &families[c->family];
  if (!family->model_type)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "family is %d; this release knows no names of its parameters", c->family);
  const struct {
    const char *name;
    int32_t value, needed;
  } fixed[] = {{"norm", c->norm, family->norm},
               {"position", c->position, family->position},
               {"ffn_kind", c->ffn_kind, family->ffn_kind}};
  for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
    char needed[16];
    snprintf(needed, sizeof needed, "%d", fixed[i].needed);
    if (fixed[i].value != fixed[i].needed)
      return no_form(family, fixed[i].name, fixed[i].value, needed);
  }
  STATUS_TRY(family_check_biases(family, c->biases));
  if (family->tied_head && !c->tied_head) return no_form(family, "tied_head", 0, "1");
  if (!c->experts && family->sparse) return no_form(family, "experts", 0, "at least 1");
  if (c->experts && !family->sparse)
    return no_form(family, "experts", (double)c->experts, "0");
  if (family->position == NN_POSITION_LEARNED && c->kv_heads != c->heads)
    return no_form(family, "kv_heads", (double)c->kv_heads, "as many as heads");
  if (family->position == NN_POSITION_LEARNED && c->heads * c->head_dim != c->hidden)
    return no_form(family, "head_dim", (double)c->head_dim, "hidden / heads");
  STATUS_TRY(family_check_limits(family, c));
  STATUS_TRY(family_check_mscales(family, c));
  if (family->window_needs_list && c->window && c->layers > CONFIG_PATTERN_LAYERS)
    return no_form(family, "layers", (double)c->layers, "at most 256 with a window");
  return family_check_counts(family, c);
}
