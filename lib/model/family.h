/* Families: whose checkpoints this library opens. A family is one row of data: its names in
 * config.json, the names and shapes of its tensors, and which configurations have a published form
 * in it. */
#ifndef NN_MODEL_FAMILY_H
#define NN_MODEL_FAMILY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/params.h"
#include "moenn.h"

/* Where a parameter repeats. The items of a table follow this order, experts inside their layer. */
typedef enum scope { SCOPE_FIRST, SCOPE_LAYER, SCOPE_EXPERT, SCOPE_LAST, SCOPES } scope_t;

typedef enum dim {
  DIM_NONE, /* second dimension of a vector */
  DIM_ONE,
  DIM_VOCAB,
  DIM_CONTEXT,
  DIM_HIDDEN,
  DIM_QUERY,       /* heads * head_dim */
  DIM_KEY,         /* kv_heads * head_dim */
  DIM_QKV,         /* query and twice key */
  DIM_VALUES,      /* heads * width of a value: what attention gives */
  DIM_HEADS,
  DIM_QUERY_NORM,  /* head_dim or DIM_QUERY */
  DIM_KEY_NORM,    /* head_dim or DIM_KEY */
  DIM_FFN,         /* of an expert, or of a dense model's FFN */
  DIM_GATE_UP,     /* twice DIM_FFN */
  DIM_DENSE_FFN,   /* of a dense layer */
  DIM_SHARED_FFN,
  DIM_EXPERTS,
  DIM_Q_RANK,
  DIM_KV_RANK,
  DIM_KV_AND_ROPE, /* kv_rank and rope_head_dim */
  DIM_KEYS_VALUES  /* heads * (head_dim - rope_head_dim + width of a value) */
} dim_t;

/* How a tensor is published. */
typedef enum form {
  FORM_PLAIN,      /* [rows, cols], or [rows] */
  FORM_TRANSPOSED, /* [cols, rows] */
  FORM_STACKED,    /* all experts' in one, [experts, rows, cols], or [experts, rows] */
  FORM_STACKED_TRANSPOSED /* the same as [experts, cols, rows] */
} form_t;

/* One tensor of a family; param_role_t says when it is there. */
typedef struct part {
  param_role_t role;
  scope_t scope;
  const char *name; /* behind the prefix of its scope */
  dim_t rows, cols; /* as stored, of one expert */
  form_t form;
} part_t;

/* Where newer programs keep parameters that are published otherwise: a tensor of a layer that a
 * router has, or all experts', [experts, rows, cols], gate rows before up rows in one. */
typedef struct fused {
  param_role_t role;
  const char *name; /* behind the layer's prefix */
} fused_t;

/* What a member may be in a family; a member behind capacity_factor without a limit must be 0. */
typedef struct limit {
  size_t offset;
  double min, max;
} limit_t;

typedef struct family {
  const char *model_type, *architecture, *alias; /* the class, and another spelling of it or NULL */
  int32_t norm, position, ffn_kind;
  bool sparse; /* has experts */
  bool tied_head; /* always */
  bool window_needs_list; /* files whose every layer has the window list the layers */
  bool rope_mscales; /* LongRoPE has a rope_short_mscale and a rope_long_mscale */
  bool counted;   /* shared_ffn is counted in experts, dense layers from the first on */
  /* NN_BIAS_ masks: those that are always there, and those that come and go together */
  int32_t biases, attention_biases, ffn_biases, head_biases;
  const limit_t *limits; /* ends with an offset of 0 */
  const char *layer_prefix, *expert_prefix;
  /* Parts in the order of the family's state dict; those of one scope adjacent but for the layer's,
   * which may stand on both sides of its experts. Ends with a NULL name. */
  const part_t *parts;
  const fused_t *fused;   /* ends with a NULL name; or NULL */
  bool predicting_layers; /* files may have layers behind the last one that predict more tokens */
} family_t;

enum { FAMILIES = NN_FAMILY_PHIMOE + 1 };
extern const family_t families[FAMILIES];

/* NN_ERR_UNSUPPORTED: the configuration, valid otherwise, has no form that the family publishes. */
nn_status_t family_check(const nn_model_config_t *config);

#endif
