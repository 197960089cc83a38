/* Every key of a config.json has one line in a table below, which says how it is understood: as a
 * member of the configuration, as a switch that must stand where this library computes, or as
 * bookkeeping that cannot change a number. A key without a line is refused by name, since nobody
 * knows what it would change. Dropout rates count as bookkeeping: this library trains without
 * dropout and nothing else depends on them. Absent keys have the defaults of the model type's own
 * configuration class. */
#include "format/config_json.h"

#include <float.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "base/status.h"
#include "format/name_show.h"
#include "model/config.h"

enum { MOST_BYTES = 16 << 20 }; /* of a config.json: far above any real one */

/* ---- the keys -------------------------------------------------------------------------------- */

typedef enum key_rule {
  KEY_SIZE,          /* int64_t member, at least 1 */
  KEY_SIZE_OR_NULL,  /* the same; null: the member's own default */
  KEY_POSITIVE,      /* float member, above 0 */
  KEY_NUMBER,        /* float member, at least 0 */
  KEY_FLAG,          /* int32_t member, true or false */
  KEY_AUX_NORM,      /* aux_loss, "switch" or "joint" */
  KEY_ROPE,          /* null, or an object with rope_theta and nothing but the default rotation */
  KEY_ROUTER_LOGITS, /* true or false: whether the auxiliary loss counts */
  KEY_OFF,           /* must be null, false, 0 or empty */
  KEY_ON,            /* must be true */
  KEY_ONE,           /* must be null or 1 */
  KEY_TEXT,          /* must be one of the texts */
  KEY_TEXT_OR_NULL,  /* the same, or null */
  KEY_CLASSES,       /* null, or a list that names no class but the family's own */
  KEY_ANY            /* bookkeeping */
} key_rule_t;

enum { TEXTS = 3 };

typedef struct key {
  const char *name;
  key_rule_t rule;
  size_t offset;            /* of the member, where the rule has one */
  const char *texts[TEXTS]; /* KEY_TEXT */
} key_line_t;

#define MEMBER(name, rule, member) \
  { name, rule, offsetof(nn_model_config_t, member), {NULL} }
#define FIXED(name, rule) \
  { name, rule, 0, {NULL} }

static const key_line_t common_keys[] = {
    FIXED("model_type", KEY_ANY), /* looked at before the others */
    MEMBER("vocab_size", KEY_SIZE, vocab_size),
    MEMBER("initializer_range", KEY_POSITIVE, init_std),
    MEMBER("tie_word_embeddings", KEY_FLAG, tied_head),
    FIXED("quantization_config", KEY_OFF),
    FIXED("is_encoder_decoder", KEY_OFF),
    FIXED("add_cross_attention", KEY_OFF),
    FIXED("pruned_heads", KEY_OFF),
    FIXED("architectures", KEY_CLASSES),
    /* looked at for sense alone: the files say of each tensor what it is */
    {"torch_dtype", KEY_TEXT_OR_NULL, 0, {"float32", "bfloat16", "float16"}},
    {"dtype", KEY_TEXT_OR_NULL, 0, {"float32", "bfloat16", "float16"}},
    /* where weights come from, which program wrote them */
    FIXED("transformers_version", KEY_ANY),
    FIXED("auto_map", KEY_ANY),
    FIXED("finetuning_task", KEY_ANY),
    FIXED("task_specific_params", KEY_ANY),
    FIXED("gradient_checkpointing", KEY_ANY),
    FIXED("attention_dropout", KEY_ANY),
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

static const key_line_t mixtral_keys[] = {
    MEMBER("max_position_embeddings", KEY_SIZE, context),
    MEMBER("num_hidden_layers", KEY_SIZE, layers),
    MEMBER("hidden_size", KEY_SIZE, hidden),
    MEMBER("num_attention_heads", KEY_SIZE, heads),
    MEMBER("num_key_value_heads", KEY_SIZE_OR_NULL, kv_heads),
    MEMBER("head_dim", KEY_SIZE_OR_NULL, head_dim),
    MEMBER("intermediate_size", KEY_SIZE, ffn),
    MEMBER("num_local_experts", KEY_SIZE, experts),
    MEMBER("num_experts", KEY_SIZE, experts), /* another name of it, which some writers use */
    MEMBER("num_experts_per_tok", KEY_SIZE, top_k),
    MEMBER("rms_norm_eps", KEY_POSITIVE, norm_eps),
    MEMBER("rope_theta", KEY_POSITIVE, rope_theta),
    FIXED("rope_scaling", KEY_ROPE),
    FIXED("rope_parameters", KEY_ROPE),
    FIXED("partial_rotary_factor", KEY_ONE),
    MEMBER("router_aux_loss_coef", KEY_NUMBER, aux_loss_coef),
    FIXED("output_router_logits", KEY_ROUTER_LOGITS),
    /* this library's own */
    MEMBER("rope_ntk_alpha", KEY_POSITIVE, rope_ntk_alpha),
    FIXED("router_aux_loss_norm", KEY_AUX_NORM),
    MEMBER("router_z_loss_coef", KEY_NUMBER, z_loss_coef),
    MEMBER("capacity_factor", KEY_NUMBER, capacity_factor),
    {"hidden_act", KEY_TEXT, 0, {"silu", "swish"}},
    FIXED("sliding_window", KEY_OFF),
    FIXED("router_jitter_noise", KEY_OFF),
    FIXED("attention_bias", KEY_OFF),
    FIXED("mlp_bias", KEY_OFF),
    FIXED("pretraining_tp", KEY_ANY),
};

static const key_line_t gpt2_keys[] = {
    MEMBER("n_positions", KEY_SIZE, context),
    MEMBER("n_embd", KEY_SIZE, hidden),
    MEMBER("n_layer", KEY_SIZE, layers),
    MEMBER("n_head", KEY_SIZE, heads),
    MEMBER("n_inner", KEY_SIZE_OR_NULL, ffn),
    MEMBER("layer_norm_epsilon", KEY_POSITIVE, norm_eps),
    {"activation_function", KEY_TEXT, 0, {"gelu_new", "gelu_pytorch_tanh"}},
    FIXED("scale_attn_weights", KEY_ON),
    FIXED("scale_attn_by_inverse_layer_idx", KEY_OFF),
    FIXED("reorder_and_upcast_attn", KEY_ANY), /* scores are fp32 here in any case */
    FIXED("n_ctx", KEY_ANY),                   /* an old twin of n_positions that nothing reads */
    FIXED("attn_pdrop", KEY_ANY),
    FIXED("embd_pdrop", KEY_ANY),
    FIXED("resid_pdrop", KEY_ANY),
    FIXED("summary_activation", KEY_ANY),
    FIXED("summary_first_dropout", KEY_ANY),
    FIXED("summary_proj_to_labels", KEY_ANY),
    FIXED("summary_type", KEY_ANY),
    FIXED("summary_use_proj", KEY_ANY),
};

static const struct {
  const char *model_type, *architecture;
  const key_line_t *keys;
  size_t count;
  nn_model_config_t defaults;
} families[] = {
    [NN_FAMILY_MIXTRAL] = {"mixtral",
                           "MixtralForCausalLM",
                           mixtral_keys,
                           sizeof mixtral_keys / sizeof *mixtral_keys,
                           {.family = NN_FAMILY_MIXTRAL,
                            .norm = NN_NORM_RMS,
                            .position = NN_POSITION_ROPE,
                            .ffn_kind = NN_FFN_SWIGLU,
                            .vocab_size = 32000,
                            .context = 131072,
                            .layers = 32,
                            .hidden = 4096,
                            .heads = 32,
                            .kv_heads = 8,
                            .ffn = 14336,
                            .experts = 8,
                            .top_k = 2,
                            .rope_theta = 1e6f,
                            .aux_loss_coef = 0.001f,
                            .aux_loss = NN_AUX_JOINT}},
    [NN_FAMILY_GPT2] = {"gpt2",
                        "GPT2LMHeadModel",
                        gpt2_keys,
                        sizeof gpt2_keys / sizeof *gpt2_keys,
                        {.family = NN_FAMILY_GPT2,
                         .norm = NN_NORM_LAYER,
                         .position = NN_POSITION_LEARNED,
                         .ffn_kind = NN_FFN_GELU_TANH,
                         .vocab_size = 50257,
                         .context = 1024,
                         .layers = 12,
                         .hidden = 768,
                         .heads = 12,
                         .biases = NN_BIAS_ALL,
                         .tied_head = 1}},
};

static const key_line_t *key_among(const key_line_t *keys, size_t count, const char *name) {
  for (size_t i = 0; i < count; i++)
    if (strcmp(keys[i].name, name) == 0) return &keys[i];
  return NULL;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* What is read of a text, before the members are put together. */
typedef struct reading {
  nn_model_config_t config;
  bool router_logits;
  bool rope_theta_seen, experts_seen; /* members that two keys may give */
} reading_t;

/* A value as it may stand in a message. */
typedef struct shown {
  char text[80];
} shown_t;

static shown_t key_show(const json_t *value) {
  enum { ROOM = sizeof(shown_t) - sizeof "..." };
  shown_t shown = {{0}};
  size_t length =
      json_dumpb(value, shown.text, ROOM,
                 JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(9));
  /* what does not fit is left out, from somewhere before the end on */
  if (length > ROOM) strcat(shown.text, "...");
  return shown;
}

static nn_status_t key_refuse(nn_status_t status, const char *name, const json_t *value,
                              const char *needed) {
  return status_fail(status, "config.json: %s is %s; it must be %s", name_show(name).text,
                     key_show(value).text, needed);
}

static nn_status_t key_read_size(const char *name, const json_t *value, int64_t *member) {
  if (!json_is_integer(value) || json_integer_value(value) < 1)
    return key_refuse(NN_ERR_FORMAT, name, value, "a whole number of at least 1");
  *member = json_integer_value(value);
  return NN_OK;
}

static nn_status_t key_read_number(const char *name, const json_t *value, bool positive,
                                   float *member) {
  double number = json_number_value(value);
  if (!json_is_number(value) || number < 0 || (positive && (float)number == 0))
    return key_refuse(NN_ERR_FORMAT, name, value,
                      positive ? "a number above 0" : "a number of at least 0");
  if (number > (double)FLT_MAX)
    return key_refuse(NN_ERR_FORMAT, name, value, "a number within the range of fp32");
  *member = (float)number;
  return NN_OK;
}

static nn_status_t key_read_flag(const char *name, const json_t *value, bool *flag) {
  if (!json_is_boolean(value)) return key_refuse(NN_ERR_FORMAT, name, value, "true or false");
  *flag = json_is_true(value);
  return NN_OK;
}

static bool key_is_off(const json_t *value) {
  return json_is_null(value) || json_is_false(value) ||
         (json_is_number(value) && json_number_value(value) == 0) ||
         (json_is_object(value) && json_object_size(value) == 0) ||
         (json_is_array(value) && json_array_size(value) == 0);
}

static nn_status_t key_read_theta(const char *name, const json_t *value, reading_t *reading) {
  float theta = 0;
  STATUS_TRY(key_read_number(name, value, true, &theta));
  if (reading->rope_theta_seen && theta != reading->config.rope_theta)
    return status_fail(
        NN_ERR_FORMAT,
        "config.json: rope_theta stands there as %g and as %g; it can have one value",
        (double)reading->config.rope_theta, (double)theta);
  reading->config.rope_theta = theta;
  reading->rope_theta_seen = true;
  return NN_OK;
}

/* rope_scaling (transformers 4) or rope_parameters (5). */
static nn_status_t key_read_rope(const char *name, const json_t *value, reading_t *reading) {
  if (json_is_null(value)) return NN_OK;
  if (!json_is_object(value)) return key_refuse(NN_ERR_FORMAT, name, value, "null or an object");
  const char *inner;
  json_t *entry;
  json_object_foreach((json_t *)value, inner, entry) {
    if (strcmp(inner, "rope_theta") == 0) {
      STATUS_TRY(key_read_theta("rope_theta", entry, reading));
    } else if (strcmp(inner, "rope_type") == 0 || strcmp(inner, "type") == 0) {
      const char *type = json_string_value(entry);
      if (!type || strcmp(type, "default") != 0)
        return status_fail(NN_ERR_UNSUPPORTED,
                           "config.json: %s.%s is %s; only \"default\" is known", name, inner,
                           key_show(entry).text);
    } else if (strcmp(inner, "partial_rotary_factor") != 0 || json_number_value(entry) != 1) {
      return status_fail(NN_ERR_UNSUPPORTED, "config.json: %s.%s is %s; it is not understood",
                         name, name_show(inner).text, key_show(entry).text);
    }
  }
  return NN_OK;
}

static nn_status_t key_read_experts(const char *name, const json_t *value, reading_t *reading) {
  int64_t experts = 0;
  STATUS_TRY(key_read_size(name, value, &experts));
  if (reading->experts_seen && experts != reading->config.experts)
    return status_fail(
        NN_ERR_FORMAT,
        "config.json: num_local_experts and num_experts are %lld and %lld; they are two "
        "names of one number",
        (long long)reading->config.experts, (long long)experts);
  reading->config.experts = experts;
  reading->experts_seen = true;
  return NN_OK;
}

static nn_status_t key_read_aux_norm(const char *name, const json_t *value, reading_t *reading) {
  const char *text = json_string_value(value);
  bool joint = text && strcmp(text, "joint") == 0;
  if (!joint && (!text || strcmp(text, "switch") != 0))
    return key_refuse(NN_ERR_UNSUPPORTED, name, value, "\"switch\" or \"joint\"");
  reading->config.aux_loss = joint ? NN_AUX_JOINT : NN_AUX_SWITCH;
  return NN_OK;
}

static nn_status_t key_read_text(const key_line_t *key, const json_t *value) {
  const char *text = json_string_value(value);
  char needed[80] = "";
  for (size_t i = 0; i < TEXTS && key->texts[i]; i++) {
    if (text && strcmp(text, key->texts[i]) == 0) return NN_OK;
    size_t used = strlen(needed);
    snprintf(needed + used, sizeof needed - used, "%s\"%s\"", i ? " or " : "", key->texts[i]);
  }
  return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, needed);
}

static nn_status_t key_read_classes(const key_line_t *key, const json_t *value,
                                    const char *architecture) {
  bool good = json_is_array(value) || json_is_null(value);
  for (size_t i = 0; good && i < json_array_size(value); i++) {
    const char *class_name = json_string_value(json_array_get(value, i));
    good = class_name && strcmp(class_name, architecture) == 0;
  }
  if (good) return NN_OK;
  char needed[64];
  snprintf(needed, sizeof needed, "[\"%s\"]", architecture);
  return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, needed);
}

static nn_status_t key_read(const key_line_t *key, const json_t *value, reading_t *reading) {
  char *member = (char *)&reading->config + key->offset;
  switch (key->rule) {
    case KEY_SIZE_OR_NULL:
      if (json_is_null(value)) {
        *(int64_t *)(void *)member = 0;
        return NN_OK;
      }
      return key_read_size(key->name, value, (int64_t *)(void *)member);
    case KEY_SIZE:
      if (key->offset == offsetof(nn_model_config_t, experts))
        return key_read_experts(key->name, value, reading);
      return key_read_size(key->name, value, (int64_t *)(void *)member);
    case KEY_POSITIVE:
      if (key->offset == offsetof(nn_model_config_t, rope_theta))
        return key_read_theta(key->name, value, reading);
      return key_read_number(key->name, value, true, (float *)(void *)member);
    case KEY_NUMBER: return key_read_number(key->name, value, false, (float *)(void *)member);
    case KEY_FLAG: {
      bool flag = false;
      STATUS_TRY(key_read_flag(key->name, value, &flag));
      *(int32_t *)(void *)member = flag;
      return NN_OK;
    }
    case KEY_AUX_NORM: return key_read_aux_norm(key->name, value, reading);
    case KEY_ROPE: return key_read_rope(key->name, value, reading);
    case KEY_ROUTER_LOGITS: return key_read_flag(key->name, value, &reading->router_logits);
    case KEY_OFF:
      if (key_is_off(value)) return NN_OK;
      return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, "off (null, false or 0)");
    case KEY_ON:
      if (json_is_true(value)) return NN_OK;
      return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, "true");
    case KEY_ONE:
      if (json_is_null(value) || json_number_value(value) == 1) return NN_OK;
      return key_refuse(NN_ERR_UNSUPPORTED, key->name, value, "1");
    case KEY_TEXT: return key_read_text(key, value);
    case KEY_TEXT_OR_NULL: return json_is_null(value) ? NN_OK : key_read_text(key, value);
    case KEY_CLASSES:
      return key_read_classes(key, value, families[reading->config.family].architecture);
    default: return NN_OK;
  }
}

static nn_status_t config_json_keys(json_t *root, int32_t family, reading_t *reading) {
  const char *name;
  json_t *value;
  json_object_foreach(root, name, value) {
    const key_line_t *key = key_among(families[family].keys, families[family].count, name);
    if (!key) key = key_among(common_keys, sizeof common_keys / sizeof *common_keys, name);
    if (!key && name[0] == '_') continue; /* the writing program's own notes */
    if (!key)
      return status_fail(
          NN_ERR_UNSUPPORTED,
          "config.json: the key \"%s\" (%s) is not known for model type %s, and could "
          "change the numbers",
          name_show(name).text, key_show(value).text, families[family].model_type);
    STATUS_TRY(key_read(key, value, reading));
  }
  return NN_OK;
}

static nn_status_t config_json_family(const json_t *root, int32_t *family) {
  if (!json_is_object(root)) return status_fail(NN_ERR_FORMAT, "config.json: is not a JSON object");
  const json_t *type = json_object_get(root, "model_type");
  if (!json_is_string(type))
    return status_fail(NN_ERR_FORMAT, "config.json: model_type is missing or not a text");
  for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
    if (strcmp(json_string_value(type), families[i].model_type) != 0) continue;
    *family = (int32_t)i;
    return NN_OK;
  }
  return key_refuse(NN_ERR_UNSUPPORTED, "model_type", type, "\"mixtral\" or \"gpt2\"");
}

static nn_status_t config_json_object(json_t *root, nn_model_config_t *config) {
  int32_t family = 0;
  STATUS_TRY(config_json_family(root, &family));
  reading_t reading = {.config = families[family].defaults};
  STATUS_TRY(config_json_keys(root, family, &reading));
  /* as the model type's own program: without router logits there is no auxiliary loss */
  if (!reading.router_logits) reading.config.aux_loss_coef = 0;
  if (!reading.config.ffn && reading.config.hidden <= INT32_MAX)
    reading.config.ffn = 4 * reading.config.hidden;
  reading.config.struct_size = sizeof reading.config;
  nn_status_t status = config_validate(&reading.config);
  if (status != NN_OK)
    return status_prefix(status == NN_ERR_ARGUMENT ? NN_ERR_FORMAT : status, "config.json");
  *config = reading.config;
  return NN_OK;
}

nn_status_t config_json_read(const char *text, size_t bytes, nn_model_config_t *config) {
  if (bytes && !text[bytes - 1]) bytes--;
  if (bytes > MOST_BYTES)
    return status_fail(NN_ERR_FORMAT, "config.json: has %zu bytes; at most %d are read", bytes,
                       MOST_BYTES);
  json_error_t error;
  json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
  if (!root && json_error_code(&error) == json_error_out_of_memory)
    return status_fail(NN_ERR_MEMORY, "config.json: memory for its JSON could not be had");
  if (!root)
    return status_fail(NN_ERR_FORMAT, "config.json: line %d, column %d: %s", error.line,
                       error.column, error.text);
  nn_status_t status = config_json_object(root, config);
  json_decref(root);
  return status;
}

/* ---- writing --------------------------------------------------------------------------------- */

/* The double of the shortest decimal that reads back as this float: 0.01f is written 0.01. */
static json_t *json_float(float value) {
  for (int digits = 1; digits < 9; digits++) {
    char text[32];
    snprintf(text, sizeof text, "%.*g", digits, (double)value);
    double shortest = strtod(text, NULL);
    if ((float)shortest == value) return json_real(shortest);
  }
  return json_real((double)value);
}

/* The keys of both families that tell other programs how to use the weights. */
static int config_json_set_common(json_t *root, const nn_model_config_t *c, int32_t dtype) {
  int failed = json_object_set_new(root, "architectures",
                                   json_pack("[s]", families[c->family].architecture));
  failed |= json_object_set_new(root, "model_type", json_string(families[c->family].model_type));
  failed |= json_object_set_new(root, "vocab_size", json_integer(c->vocab_size));
  failed |= json_object_set_new(root, "initializer_range", json_float(c->init_std));
  failed |= json_object_set_new(root, "tie_word_embeddings", json_boolean(c->tied_head));
  failed |= json_object_set_new(root, "use_cache", json_true());
  /* null, since the class defaults are ids of a tokenizer that this model need not have */
  failed |= json_object_set_new(root, "bos_token_id", json_null());
  failed |= json_object_set_new(root, "eos_token_id", json_null());
  if (dtype >= 0)
    failed |= json_object_set_new(root, "torch_dtype",
                                  json_string(dtype == NN_BF16 ? "bfloat16" : "float32"));
  return failed;
}

static int config_json_set_mixtral(json_t *root, const nn_model_config_t *c) {
  int failed = json_object_set_new(root, "max_position_embeddings", json_integer(c->context));
  failed |= json_object_set_new(root, "num_hidden_layers", json_integer(c->layers));
  failed |= json_object_set_new(root, "hidden_size", json_integer(c->hidden));
  failed |= json_object_set_new(root, "num_attention_heads", json_integer(c->heads));
  failed |= json_object_set_new(root, "num_key_value_heads", json_integer(c->kv_heads));
  failed |= json_object_set_new(root, "head_dim", json_integer(c->head_dim));
  failed |= json_object_set_new(root, "intermediate_size", json_integer(c->ffn));
  failed |= json_object_set_new(root, "num_local_experts", json_integer(c->experts));
  failed |= json_object_set_new(root, "num_experts_per_tok", json_integer(c->top_k));
  failed |= json_object_set_new(root, "hidden_act", json_string("silu"));
  failed |= json_object_set_new(root, "rms_norm_eps", json_float(c->norm_eps));
  failed |= json_object_set_new(root, "rope_theta", json_float(c->rope_theta));
  failed |= json_object_set_new(root, "router_aux_loss_coef", json_float(c->aux_loss_coef));
  failed |= json_object_set_new(root, "output_router_logits", json_boolean(c->aux_loss_coef > 0));
  failed |= json_object_set_new(root, "router_jitter_noise", json_real(0));
  failed |= json_object_set_new(root, "attention_dropout", json_real(0));
  failed |= json_object_set_new(root, "sliding_window", json_null());
  if (c->rope_ntk_alpha != 1)
    failed |= json_object_set_new(root, "rope_ntk_alpha", json_float(c->rope_ntk_alpha));
  if (c->aux_loss != NN_AUX_JOINT)
    failed |= json_object_set_new(root, "router_aux_loss_norm", json_string("switch"));
  if (c->z_loss_coef != 0)
    failed |= json_object_set_new(root, "router_z_loss_coef", json_float(c->z_loss_coef));
  if (c->capacity_factor != 0)
    failed |= json_object_set_new(root, "capacity_factor", json_float(c->capacity_factor));
  return failed;
}

static int config_json_set_gpt2(json_t *root, const nn_model_config_t *c) {
  int failed = json_object_set_new(root, "n_positions", json_integer(c->context));
  failed |= json_object_set_new(root, "n_embd", json_integer(c->hidden));
  failed |= json_object_set_new(root, "n_layer", json_integer(c->layers));
  failed |= json_object_set_new(root, "n_head", json_integer(c->heads));
  failed |= json_object_set_new(root, "n_inner",
                                c->ffn == 4 * c->hidden ? json_null() : json_integer(c->ffn));
  failed |= json_object_set_new(root, "activation_function", json_string("gelu_new"));
  failed |= json_object_set_new(root, "layer_norm_epsilon", json_float(c->norm_eps));
  failed |= json_object_set_new(root, "scale_attn_weights", json_true());
  failed |= json_object_set_new(root, "attn_pdrop", json_real(0));
  failed |= json_object_set_new(root, "embd_pdrop", json_real(0));
  failed |= json_object_set_new(root, "resid_pdrop", json_real(0));
  return failed;
}

nn_status_t config_json_write(const nn_model_config_t *config, int32_t dtype, char **text,
                              size_t *bytes) {
  enum { FLAGS = JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(9) };
  json_t *root = json_object();
  int failed = !root || config_json_set_common(root, config, dtype);
  if (!failed)
    failed = config->family == NN_FAMILY_GPT2 ? config_json_set_gpt2(root, config)
                                              : config_json_set_mixtral(root, config);
  size_t length = failed ? 0 : json_dumpb(root, NULL, 0, FLAGS);
  void *written = NULL;
  nn_status_t status = NN_OK;
  if (length)
    status = mem_alloc(length + 2, 1, &written);
  else
    status = status_fail(NN_ERR_MEMORY, "config.json: memory for its JSON could not be had");
  if (status == NN_OK) {
    json_dumpb(root, written, length, FLAGS);
    *text = written;
    (*text)[length] = '\n'; /* and NUL behind it */
    if (bytes) *bytes = length + 1;
  }
  json_decref(root);
  return status;
}
