/* Every key has one line in a table below, which says how it is understood: as a member of the
 * configuration, as a switch that must stand where this library computes, or as bookkeeping that
 * cannot change a number. A key without a line is refused by name, since nobody knows what it would
 * change. Dropout rates count as bookkeeping: this library trains without dropout and nothing else
 * depends on them. Absent keys have the defaults of the model type's own configuration class. */
#include "format/config_keys.h"

#include <string.h>

#include "model/family.h"

/* A member that every file has; and one that other programs need not know. */
#define MEMBER(name_, rule_, member_) \
  { .name = name_, .rule = rule_, .written = WRITE_ALWAYS, .offset = offsetof(reading_t, member_) }
#define OWN(name_, rule_, member_, number_)                                                       \
  { .name = name_, .rule = rule_, .written = WRITE_SET, .offset = offsetof(reading_t, member_), \
    .number = number_ }
/* Another name of a member, which some writers use. */
#define ALIAS(name_, rule_, member_) \
  { .name = name_, .rule = rule_, .offset = offsetof(reading_t, member_) }
#define TEXTS(...) \
  (const char *const[]) { __VA_ARGS__, NULL }
#define FIXED(name_, rule_) \
  { .name = name_, .rule = rule_ }
#define DROPOUT(name_) \
  { .name = name_, .rule = KEY_ANY, .written = WRITE_ALWAYS }
#define BIASES(name_, bits_) \
  { .name = name_, .rule = KEY_BIASES, .written = WRITE_ALWAYS, .bits = bits_ }

static const key_line_t common_keys[] = {
    FIXED("model_type", KEY_ANY), /* looked at before the others */
    MEMBER("vocab_size", KEY_SIZE, config.vocab_size),
    MEMBER("initializer_range", KEY_POSITIVE, config.init_std),
    MEMBER("tie_word_embeddings", KEY_FLAG, config.tied_head),
    FIXED("quantization_config", KEY_OFF),
    FIXED("is_encoder_decoder", KEY_OFF),
    FIXED("add_cross_attention", KEY_OFF),
    FIXED("pruned_heads", KEY_OFF),
    FIXED("architectures", KEY_CLASSES),
    /* looked at for sense alone: the files say of each tensor what it is */
    {.name = "torch_dtype",
     .rule = KEY_TEXT_OR_NULL,
     .texts = TEXTS("float32", "bfloat16", "float16")},
    {.name = "dtype", .rule = KEY_TEXT_OR_NULL, .texts = TEXTS("float32", "bfloat16", "float16")},
    /* where weights come from, which program wrote them */
    FIXED("transformers_version", KEY_ANY),
    FIXED("auto_map", KEY_ANY),
    FIXED("finetuning_task", KEY_ANY),
    FIXED("task_specific_params", KEY_ANY),
    FIXED("gradient_checkpointing", KEY_ANY),
    /* tokens and tokenizers */
    FIXED("bos_token_id", KEY_ANY),
    FIXED("eos_token_id", KEY_ANY),
    FIXED("pad_token_id", KEY_ANY),
    FIXED("sep_token_id", KEY_ANY),
    FIXED("unk_token_id", KEY_ANY),
    FIXED("decoder_start_token_id", KEY_ANY),
    FIXED("tokenizer_class", KEY_ANY),
    FIXED("prefix", KEY_ANY),
    /* what a forward pass returns, and heads of other tasks */
    FIXED("use_cache", KEY_ANY),
    FIXED("is_decoder", KEY_ANY),
    FIXED("return_dict", KEY_ANY),
    FIXED("output_attentions", KEY_ANY),
    FIXED("output_hidden_states", KEY_ANY),
    FIXED("torchscript", KEY_ANY),
    FIXED("chunk_size_feed_forward", KEY_ANY),
    FIXED("id2label", KEY_ANY),
    FIXED("label2id", KEY_ANY),
    FIXED("num_labels", KEY_ANY),
    FIXED("problem_type", KEY_ANY),
    FIXED("classifier_dropout", KEY_ANY),
    /* defaults of text generation, which older files keep here */
    FIXED("max_length", KEY_ANY),
    FIXED("max_new_tokens", KEY_ANY),
    FIXED("min_length", KEY_ANY),
    FIXED("do_sample", KEY_ANY),
    FIXED("early_stopping", KEY_ANY),
    FIXED("num_beams", KEY_ANY),
    FIXED("num_return_sequences", KEY_ANY),
    FIXED("temperature", KEY_ANY),
    FIXED("top_k", KEY_ANY),
    FIXED("top_p", KEY_ANY),
    FIXED("repetition_penalty", KEY_ANY),
    FIXED("length_penalty", KEY_ANY),
    FIXED("no_repeat_ngram_size", KEY_ANY),
    FIXED("bad_words_ids", KEY_ANY),
};

/* Of every family but GPT-2. */
static const key_line_t decoder_keys[] = {
    MEMBER("max_position_embeddings", KEY_SIZE, config.context),
    MEMBER("num_hidden_layers", KEY_SIZE, config.layers),
    MEMBER("hidden_size", KEY_SIZE, config.hidden),
    MEMBER("num_attention_heads", KEY_SIZE, config.heads),
    MEMBER("num_key_value_heads", KEY_SIZE_OR_NULL, config.kv_heads),
    MEMBER("head_dim", KEY_SIZE_OR_NULL, config.head_dim),
    MEMBER("rms_norm_eps", KEY_POSITIVE, config.norm_eps),
    MEMBER("rope_theta", KEY_POSITIVE, config.rope_theta),
    {.name = "rope_scaling", .rule = KEY_ROPE, .written = WRITE_ALWAYS},
    FIXED("rope_parameters", KEY_ROPE),
    ALIAS("original_max_position_embeddings", KEY_SIZE_OR_NULL, original_context),
    {.name = "partial_rotary_factor", .rule = KEY_EQUAL, .number = 1},
    OWN("rope_ntk_alpha", KEY_POSITIVE, config.rope_ntk_alpha, 1),
    {.name = "hidden_act",
     .rule = KEY_TEXT,
     .written = WRITE_ALWAYS,
     .texts = TEXTS("silu", "swish")},
    DROPOUT("attention_dropout"),
    FIXED("sliding_window", KEY_OFF),
    FIXED("attention_bias", KEY_OFF),
    FIXED("mlp_bias", KEY_OFF),
    FIXED("use_mrope", KEY_OFF),
    FIXED("pretraining_tp", KEY_ANY),
};

/* Of every dense family but GPT-2. */
static const key_line_t dense_keys[] = {
    MEMBER("intermediate_size", KEY_SIZE, config.ffn),
};

/* Of every family with experts. */
static const key_line_t moe_keys[] = {
    MEMBER("num_experts_per_tok", KEY_SIZE, config.top_k),
    MEMBER("router_aux_loss_coef", KEY_NUMBER, config.aux_loss_coef),
    MEMBER("output_router_logits", KEY_FLAG, router_logits),
    {.name = "router_aux_loss_norm", .rule = KEY_AUX_NORM, .written = WRITE_SET},
    OWN("router_z_loss_coef", KEY_NUMBER, config.z_loss_coef, 0),
    OWN("capacity_factor", KEY_NUMBER, config.capacity_factor, 0),
    FIXED("router_jitter_noise", KEY_OFF),
};

/* Whose every layer has experts, of the width intermediate_size. */
static const key_line_t local_experts_keys[] = {
    MEMBER("intermediate_size", KEY_SIZE, config.ffn),
    MEMBER("num_local_experts", KEY_SIZE, config.experts),
    ALIAS("num_experts", KEY_SIZE, config.experts),
};

/* Whose dense layers have another width than experts. */
static const key_line_t two_widths_keys[] = {
    MEMBER("intermediate_size", KEY_SIZE, config.dense_ffn),
    MEMBER("moe_intermediate_size", KEY_SIZE, config.ffn),
};

static const key_line_t gpt2_keys[] = {
    MEMBER("n_positions", KEY_SIZE, config.context),
    MEMBER("n_embd", KEY_SIZE, config.hidden),
    MEMBER("n_layer", KEY_SIZE, config.layers),
    MEMBER("n_head", KEY_SIZE, config.heads),
    MEMBER("n_inner", KEY_SIZE_OR_NULL, config.ffn),
    MEMBER("layer_norm_epsilon", KEY_POSITIVE, config.norm_eps),
    {.name = "activation_function",
     .rule = KEY_TEXT,
     .written = WRITE_ALWAYS,
     .texts = TEXTS("gelu_new", "gelu_pytorch_tanh")},
    {.name = "scale_attn_weights", .rule = KEY_ON, .written = WRITE_ALWAYS},
    FIXED("scale_attn_by_inverse_layer_idx", KEY_OFF),
    FIXED("reorder_and_upcast_attn", KEY_ANY), /* scores are fp32 here in any case */
    FIXED("n_ctx", KEY_ANY),                   /* an old twin of n_positions that nothing reads */
    DROPOUT("attn_pdrop"),
    DROPOUT("embd_pdrop"),
    DROPOUT("resid_pdrop"),
    FIXED("attention_dropout", KEY_ANY),
    FIXED("summary_activation", KEY_ANY),
    FIXED("summary_first_dropout", KEY_ANY),
    FIXED("summary_proj_to_labels", KEY_ANY),
    FIXED("summary_type", KEY_ANY),
    FIXED("summary_use_proj", KEY_ANY),
};

static const key_line_t llama_keys[] = {
    BIASES("attention_bias", NN_BIAS_QKV | NN_BIAS_O),
    BIASES("mlp_bias", NN_BIAS_FFN),
    FIXED("rope_interleaved", KEY_OFF),
    FIXED("is_llama_config", KEY_ANY),
};

static const key_line_t mistral_keys[] = {
    MEMBER("sliding_window", KEY_SIZE_OR_OFF, config.window),
};

/* The window of the Qwen families. */
#define QWEN_WINDOW                                                     \
  MEMBER("use_sliding_window", KEY_FLAG, use_window),                   \
      MEMBER("sliding_window", KEY_SIZE_OR_OFF, config.window),        \
      MEMBER("max_window_layers", KEY_COUNT, max_window_layers)
#define LAYER_TYPES \
  { .name = "layer_types", .rule = KEY_LAYER_TYPES, .written = WRITE_SET }

static const key_line_t qwen2_keys[] = {QWEN_WINDOW, LAYER_TYPES};

static const key_line_t qwen3_keys[] = {
    QWEN_WINDOW,
    LAYER_TYPES,
    BIASES("attention_bias", NN_BIAS_QKV | NN_BIAS_O),
};

static const key_line_t olmoe_keys[] = {
    MEMBER("intermediate_size", KEY_SIZE, config.ffn),
    MEMBER("num_experts", KEY_SIZE, config.experts),
    ALIAS("num_local_experts", KEY_SIZE, config.experts),
    MEMBER("clip_qkv", KEY_NUMBER_OR_NULL, config.qkv_clip),
    MEMBER("norm_topk_prob", KEY_NOT, config.router_norm),
    BIASES("attention_bias", NN_BIAS_QKV | NN_BIAS_O),
};

/* Which layers of the Qwen families have experts. */
#define QWEN_EXPERTS                                                                \
  MEMBER("num_experts", KEY_SIZE, config.experts),                                  \
      ALIAS("num_local_experts", KEY_SIZE, config.experts),                         \
      MEMBER("norm_topk_prob", KEY_NOT, config.router_norm),                        \
      MEMBER("decoder_sparse_step", KEY_SIZE, sparse_step),                         \
      {.name = "mlp_only_layers", .rule = KEY_DENSE_LIST, .written = WRITE_ALWAYS}

static const key_line_t qwen2_moe_keys[] = {
    QWEN_EXPERTS, QWEN_WINDOW, LAYER_TYPES,
    MEMBER("shared_expert_intermediate_size", KEY_SIZE, config.shared_ffn),
    BIASES("qkv_bias", NN_BIAS_QKV),
};

static const key_line_t qwen3_moe_keys[] = {
    QWEN_EXPERTS,
    QWEN_WINDOW,
    BIASES("attention_bias", NN_BIAS_QKV | NN_BIAS_O),
};

static const key_line_t granitemoe_keys[] = {
    BIASES("attention_bias", NN_BIAS_QKV | NN_BIAS_O),
    MEMBER("embedding_multiplier", KEY_POSITIVE, config.embedding_scale),
    MEMBER("residual_multiplier", KEY_POSITIVE, config.residual_scale),
    MEMBER("attention_multiplier", KEY_POSITIVE, config.attention_scale),
    MEMBER("logits_scaling", KEY_INVERSE, config.logit_scale),
};

/* Of the DeepSeek families and GLM. */
#define GROUPED_EXPERTS                                                  \
  MEMBER("n_routed_experts", KEY_SIZE, config.experts),                  \
      ALIAS("num_local_experts", KEY_SIZE, config.experts),              \
      ALIAS("num_experts", KEY_SIZE, config.experts),                    \
      MEMBER("n_shared_experts", KEY_SIZE_OR_NULL, shared_experts),      \
      MEMBER("routed_scaling_factor", KEY_POSITIVE, config.router_scale), \
      MEMBER("n_group", KEY_SIZE_OR_NULL, config.router_groups),         \
      MEMBER("topk_group", KEY_SIZE_OR_NULL, config.router_top_groups),  \
      MEMBER("first_k_dense_replace", KEY_COUNT, first_dense),           \
      {.name = "moe_layer_freq", .rule = KEY_EQUAL, .number = 1},        \
      FIXED("num_nextn_predict_layers", KEY_ANY), FIXED("num_mtp_layers", KEY_ANY)

#define LATENT                                                                          \
  MEMBER("q_lora_rank", KEY_SIZE_OR_NULL, config.q_rank),                               \
      MEMBER("kv_lora_rank", KEY_SIZE, config.kv_rank),                                 \
      MEMBER("qk_nope_head_dim", KEY_SIZE, nope_head_dim),                              \
      MEMBER("qk_rope_head_dim", KEY_SIZE, config.rope_head_dim),                       \
      MEMBER("v_head_dim", KEY_SIZE, config.value_head_dim),                            \
      FIXED("head_dim", KEY_ANY), FIXED("qk_head_dim", KEY_ANY), FIXED("ep_size", KEY_ANY), \
      FIXED("seq_aux", KEY_ANY), FIXED("aux_loss_alpha", KEY_ANY)

static const key_line_t deepseek_v2_keys[] = {
    GROUPED_EXPERTS,
    LATENT,
    {.name = "topk_method", .rule = KEY_TOPK_METHOD, .written = WRITE_ALWAYS},
    {.name = "scoring_func", .rule = KEY_TEXT, .texts = TEXTS("softmax")},
    FIXED("norm_topk_prob", KEY_OFF),
};

static const key_line_t deepseek_v3_keys[] = {
    GROUPED_EXPERTS,
    LATENT,
    MEMBER("norm_topk_prob", KEY_NOT, config.router_norm),
    MEMBER("rope_interleave", KEY_FLAG, config.rope_interleaved),
    {.name = "topk_method", .rule = KEY_TEXT, .written = WRITE_ALWAYS, .texts = TEXTS("noaux_tc")},
    {.name = "scoring_func", .rule = KEY_TEXT, .written = WRITE_ALWAYS, .texts = TEXTS("sigmoid")},
};

static const key_line_t glm4_moe_keys[] = {
    GROUPED_EXPERTS,
    MEMBER("norm_topk_prob", KEY_NOT, config.router_norm),
    MEMBER("use_qk_norm", KEY_FLAG, config.qk_norm),
    MEMBER("partial_rotary_factor", KEY_POSITIVE, partial_rotary),
    BIASES("attention_bias", NN_BIAS_QKV),
};

static const key_line_t gpt_oss_keys[] = {
    BIASES("attention_bias", NN_BIAS_QKV | NN_BIAS_O),
    MEMBER("sliding_window", KEY_SIZE_OR_NULL, config.window),
    LAYER_TYPES,
    MEMBER("swiglu_limit", KEY_POSITIVE, config.swiglu_limit),
    {.name = "swiglu_alpha", .rule = KEY_EQUAL, .number = 1.702},
    ALIAS("experts_per_token", KEY_SIZE, config.top_k),
    FIXED("quantization_config", KEY_MXFP4),
    FIXED("initial_context_length", KEY_ANY), /* original_max_position_embeddings for others */
};

static const key_line_t phimoe_keys[] = {
    BIASES("attention_bias", NN_BIAS_QKV | NN_BIAS_O),
    BIASES("lm_head_bias", NN_BIAS_HEAD),
    MEMBER("sliding_window", KEY_SIZE_OR_OFF, config.window),
    MEMBER("router_jitter_noise", KEY_NUMBER, config.router_eps),
    /* of training alone, like dropout */
    FIXED("input_jitter_noise", KEY_ANY),
    FIXED("hidden_dropout", KEY_ANY),
};

/* ---- families -------------------------------------------------------------------------------- */

#define LIST(keys) \
  { keys, sizeof keys / sizeof *keys }

static const key_list_t all_keys[FAMILIES][KEY_LISTS] = {
    [NN_FAMILY_MIXTRAL] = {LIST(mistral_keys), LIST(local_experts_keys), LIST(moe_keys),
                           LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_GPT2] = {LIST(gpt2_keys), LIST(common_keys)},
    [NN_FAMILY_LLAMA] = {LIST(llama_keys), LIST(dense_keys), LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_MISTRAL] = {LIST(mistral_keys), LIST(dense_keys), LIST(decoder_keys),
                           LIST(common_keys)},
    [NN_FAMILY_QWEN2] = {LIST(qwen2_keys), LIST(dense_keys), LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_QWEN3] = {LIST(qwen3_keys), LIST(dense_keys), LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_OLMOE] = {LIST(olmoe_keys), LIST(moe_keys), LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_QWEN2_MOE] = {LIST(qwen2_moe_keys), LIST(two_widths_keys), LIST(moe_keys),
                             LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_QWEN3_MOE] = {LIST(qwen3_moe_keys), LIST(two_widths_keys), LIST(moe_keys),
                             LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_GRANITEMOE] = {LIST(granitemoe_keys), LIST(local_experts_keys), LIST(moe_keys),
                              LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_GPT_OSS] = {LIST(gpt_oss_keys), LIST(local_experts_keys), LIST(moe_keys),
                           LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_DEEPSEEK_V2] = {LIST(deepseek_v2_keys), LIST(two_widths_keys), LIST(moe_keys),
                               LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_DEEPSEEK_V3] = {LIST(deepseek_v3_keys), LIST(two_widths_keys), LIST(moe_keys),
                               LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_GLM4_MOE] = {LIST(glm4_moe_keys), LIST(two_widths_keys), LIST(moe_keys),
                            LIST(decoder_keys), LIST(common_keys)},
    [NN_FAMILY_PHIMOE] = {LIST(phimoe_keys), LIST(local_experts_keys), LIST(moe_keys),
                          LIST(decoder_keys), LIST(common_keys)},
};

const key_list_t *family_keys(int32_t family) { return all_keys[family]; }

const key_line_t *key_find(int32_t family, const char *name) {
  for (const key_list_t *list = all_keys[family]; list < all_keys[family] + KEY_LISTS; list++)
    for (size_t i = 0; i < list->count; i++)
      if (strcmp(list->keys[i].name, name) == 0) return &list->keys[i];
  return NULL;
}

/* ---- defaults -------------------------------------------------------------------------------- */

#define SIZES(vocab, hidden_, ffn_, layers_, heads_, kv, context_)                                 \
  .vocab_size = vocab, .hidden = hidden_, .ffn = ffn_, .layers = layers_, .heads = heads_,         \
  .kv_heads = kv, .context = context_
#define ROUTED(experts_, top_k_, coef)                                                             \
  .experts = experts_, .top_k = top_k_, .aux_loss_coef = coef, .aux_loss = NN_AUX_JOINT

reading_t family_defaults(int32_t family) {
  switch (family) {
    case NN_FAMILY_MIXTRAL:
      return (reading_t){.use_window = 1,
                         .config = {SIZES(32000, 4096, 14336, 32, 32, 8, 131072),
                                    ROUTED(8, 2, 0.001f), .rope_theta = 1e6f, .norm_eps = 1e-5f}};
    case NN_FAMILY_GPT2:
      return (reading_t){
          .config = {SIZES(50257, 768, 0, 12, 12, 0, 1024), .biases = NN_BIAS_ALL, .tied_head = 1}};
    case NN_FAMILY_LLAMA:
      return (reading_t){.config = {SIZES(32000, 4096, 11008, 32, 32, 0, 2048), .norm_eps = 1e-6f}};
    case NN_FAMILY_MISTRAL:
      return (reading_t){.use_window = 1,
                         .config = {SIZES(32000, 4096, 14336, 32, 32, 8, 131072), .norm_eps = 1e-6f,
                                    .window = 4096}};
    case NN_FAMILY_QWEN2:
      return (reading_t){.window_rule = WINDOW_FROM,
                         .max_window_layers = 28,
                         .config = {SIZES(151936, 4096, 22016, 32, 32, 32, 32768),
                                    .norm_eps = 1e-6f, .window = 4096, .biases = NN_BIAS_QKV}};
    case NN_FAMILY_QWEN3:
      return (reading_t){.window_rule = WINDOW_FROM,
                         .max_window_layers = 28,
                         .config = {SIZES(151936, 4096, 22016, 32, 32, 32, 32768), .head_dim = 128,
                                    .norm_eps = 1e-6f, .window = 4096, .qk_norm = NN_QK_NORM_HEAD}};
    case NN_FAMILY_OLMOE:
      return (reading_t){.config = {SIZES(50304, 2048, 2048, 16, 16, 0, 4096), ROUTED(64, 8, 0.01f),
                                    .norm_eps = 1e-5f, .qk_norm = NN_QK_NORM_FULL,
                                    .router_norm = NN_ROUTER_NORM_NONE}};
    case NN_FAMILY_QWEN2_MOE:
      return (reading_t){
          .window_rule = WINDOW_EVEN_BELOW,
          .max_window_layers = 28,
          .sparse_step = 1,
          .config = {SIZES(151936, 2048, 1408, 24, 16, 16, 32768), ROUTED(60, 4, 0.001f),
                     .norm_eps = 1e-6f, .window = 4096, .dense_ffn = 5632, .shared_ffn = 5632,
                     .shared_gate = 1, .biases = NN_BIAS_QKV, .router_norm = NN_ROUTER_NORM_NONE}};
    case NN_FAMILY_QWEN3_MOE:
      return (reading_t){
          .sparse_step = 1,
          .config = {SIZES(151936, 2048, 768, 24, 32, 4, 32768), ROUTED(128, 8, 0.001f),
                     .norm_eps = 1e-6f, .window = 4096, .dense_ffn = 6144,
                     .qk_norm = NN_QK_NORM_HEAD, .router_norm = NN_ROUTER_NORM_NONE}};
    case NN_FAMILY_GRANITEMOE:
      return (reading_t){.config = {SIZES(32000, 4096, 11008, 32, 32, 0, 2048),
                                    ROUTED(8, 2, 0.001f), .norm_eps = 1e-6f, .attention_scale = 1}};
    case NN_FAMILY_GPT_OSS:
      return (reading_t){
          .window_rule = WINDOW_EVEN,
          .use_window = 1,
          .config = {SIZES(201088, 2880, 2880, 36, 64, 8, 131072), ROUTED(128, 4, 0.001f),
                     .head_dim = 64, .norm_eps = 1e-5f, .rope_theta = 150000, .window = 128,
                     .attention_sinks = 1, .swiglu_limit = 7,
                     .biases = NN_BIAS_ALL | NN_BIAS_ROUTER, .rope_scaling = NN_ROPE_YARN,
                     .rope_factor = 32, .rope_original_context = 4096, .rope_no_truncate = 1}};
    case NN_FAMILY_DEEPSEEK_V2:
      return (reading_t){.greedy = true,
                         .shared_experts = 2,
                         .nope_head_dim = 128,
                         .config = {SIZES(102400, 4096, 1407, 32, 32, 0, 2048), ROUTED(64, 0, 0),
                                    .norm_eps = 1e-6f, .dense_ffn = 11008, .q_rank = 1536,
                                    .kv_rank = 512, .rope_head_dim = 64, .value_head_dim = 128,
                                    .rope_interleaved = 1, .router_norm = NN_ROUTER_NORM_NONE}};
    case NN_FAMILY_DEEPSEEK_V3:
      return (reading_t){
          .first_dense = 3,
          .shared_experts = 1,
          .nope_head_dim = 128,
          .config = {SIZES(129280, 7168, 2048, 61, 128, 128, 4096), ROUTED(256, 8, 0),
                     .norm_eps = 1e-6f, .dense_ffn = 18432, .q_rank = 1536, .kv_rank = 512,
                     .rope_head_dim = 64, .value_head_dim = 128, .rope_interleaved = 1,
                     .router_scale = 2.5f, .router_groups = 8, .router_top_groups = 4,
                     .router_score = NN_SCORE_SIGMOID, .router_choice_bias = 1,
                     .router_group_score = NN_GROUP_TOP2}};
    case NN_FAMILY_GLM4_MOE:
      return (reading_t){.first_dense = 1,
                         .shared_experts = 1,
                         .partial_rotary = 0.5f,
                         .config = {SIZES(151552, 4096, 1408, 46, 96, 8, 131072), ROUTED(128, 8, 0),
                                    .norm_eps = 1e-5f, .dense_ffn = 10944, .router_groups = 1,
                                    .router_top_groups = 1, .router_score = NN_SCORE_SIGMOID,
                                    .router_choice_bias = 1, .router_group_score = NN_GROUP_TOP2}};
    case NN_FAMILY_PHIMOE:
      return (reading_t){
          .use_window = 1,
          .config = {SIZES(32064, 4096, 6400, 32, 32, 8, 131072), ROUTED(16, 2, 0.001f),
                     .norm_eps = 1e-5f, .rope_theta = 1e6f, .router_eps = 0.01f,
                     .router_score = NN_SCORE_SPARSE_MIXER, .router_norm = NN_ROUTER_NORM_NONE}};
    default: return (reading_t){0};
  }
}
