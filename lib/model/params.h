/* The parameters of a model: names, shapes and places in one buffer, derived from the configuration.
 *
 * The buffer holds first every parameter that decays (matrices), then those that do not (norms and
 * biases). Gradients and moments are fp32 buffers with the same offsets. A parameter's published shape
 * (its family's files) may be a transpose of what is stored: then its strides say so. */
#ifndef NN_MODEL_PARAMS_H
#define NN_MODEL_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "moenn.h"

/* What a parameter is to the block code. The buffer's layout (params.c) relies on Q, K, V and on GATE, UP,
 * DOWN being neighbours here, and on what follows the last layer coming from NORM_FINAL on. GATE, UP and
 * DOWN belong to an expert, always. */
typedef enum param_role {
  PARAM_WTE,         /* [vocab, hidden] */
  PARAM_WPE,         /* [context, hidden] */
  PARAM_NORM1,       /* [hidden], before attention */
  PARAM_NORM1_BIAS,
  PARAM_Q,           /* [heads * head_dim, hidden] */
  PARAM_K,           /* [kv_heads * head_dim, hidden], behind Q */
  PARAM_V,           /* [kv_heads * head_dim, hidden], behind K */
  PARAM_QKV,         /* [(heads + 2 kv_heads) * head_dim, hidden] where the family keeps one tensor */
  PARAM_Q_BIAS,
  PARAM_K_BIAS,
  PARAM_V_BIAS,
  PARAM_QKV_BIAS,
  PARAM_O,           /* [hidden, heads * head_dim] */
  PARAM_O_BIAS,
  PARAM_NORM2,       /* [hidden], before the FFN */
  PARAM_NORM2_BIAS,
  PARAM_ROUTER,      /* [experts, hidden] */
  PARAM_GATE,        /* [ffn, hidden], per expert */
  PARAM_UP,          /* [ffn, hidden], per expert */
  PARAM_DOWN,        /* [hidden, ffn], per expert */
  PARAM_FC,          /* [ffn, hidden], dense GELU */
  PARAM_FC_BIAS,
  PARAM_PROJ,        /* [hidden, ffn], dense GELU */
  PARAM_PROJ_BIAS,
  PARAM_NORM_FINAL,  /* [hidden] */
  PARAM_NORM_FINAL_BIAS,
  PARAM_HEAD         /* [vocab, hidden], absent when tied */
} param_role_t;

enum { PARAM_NAME_BYTES = 96 };

typedef struct param {
  char name[PARAM_NAME_BYTES]; /* in the family's files */
  param_role_t role;
  int64_t layer, expert;       /* -1 where it has none */
  int32_t ndim;                /* 1 or 2 */
  int64_t shape[2];            /* published */
  int64_t stride[2];           /* in elements of the buffer; (1, rows) of a transpose */
  int64_t offset;              /* first element in the buffer */
  int64_t elements;
} param_t;

typedef struct param_table {
  param_t *items;
  int64_t count;
  int64_t elements; /* of the buffer */
  int64_t decayed;  /* elements [0, decayed) decay */
  int64_t active;   /* see nn_plan_t active_parameters */
  int64_t expert_elements; /* from one expert's parameters to the next one's in a layer */
} param_table_t;

/* Builds the table of a validated configuration. NN_ERR_ARGUMENT when a size overflows. */
nn_status_t param_table_build(const nn_model_config_t *config, param_table_t *table);
void param_table_free(param_table_t *table);

/* Counts alone, nothing allocated. */
nn_status_t param_table_count(const nn_model_config_t *config, param_table_t *counts);

/* The parameter of a published name, or NULL. */
const param_t *param_find(const param_table_t *table, const char *name);

#endif
