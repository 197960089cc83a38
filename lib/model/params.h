/* The parameters of a model: names, shapes and places in one buffer, derived from the
 * configuration.
 *
 * The buffer holds first every parameter that decays (matrices), then those that do not (norms and
 * biases). Gradients and moments are fp32 buffers with the same offsets. A parameter's published
 * shape (its family's files) may be a transpose of what is stored, or stack what is stored apart:
 * then its strides say so. */
#ifndef NN_MODEL_PARAMS_H
#define NN_MODEL_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "moenn.h"

/* What a parameter is to the block code. The buffer's layout (params.c) relies on the order here:
 * Q, K, V are neighbours, so are their biases, and each gate and its up; what follows the last
 * layer comes from NORM_FINAL on. GATE to DOWN_BIAS belong to an expert, always. In brackets: when
 * it is there. */
typedef enum param_role {
  PARAM_WTE,         /* [vocab, hidden] */
  PARAM_WPE,         /* [context, hidden] */
  PARAM_NORM1,       /* [hidden], before attention */
  PARAM_NORM1_BIAS,  /* [hidden] (layer norm; so every norm's) */
  PARAM_Q,           /* [heads * head_dim, hidden] (not with q_rank) */
  PARAM_K,           /* [kv_heads * head_dim, hidden], behind Q */
  PARAM_V,           /* [kv_heads * head_dim, hidden], behind K */
  PARAM_QKV,         /* [(heads + 2 kv_heads) * head_dim, hidden] where the family keeps one
                        tensor */
  PARAM_Q_BIAS,      /* (NN_BIAS_QKV) */
  PARAM_K_BIAS,
  PARAM_V_BIAS,
  PARAM_QKV_BIAS,
  PARAM_Q_A,         /* [q_rank, hidden] (q_rank; so the next two) */
  PARAM_Q_A_NORM,    /* [q_rank] */
  PARAM_Q_B,         /* [heads * head_dim, q_rank] */
  PARAM_KV_A,        /* [kv_rank + rope_head_dim, hidden] */
  PARAM_KV_A_NORM,   /* [kv_rank] */
  PARAM_KV_B,        /* [heads * (head_dim - rope_head_dim + value width), kv_rank]: of each head
                        keys, then values */
  PARAM_Q_NORM,      /* [head_dim], or [heads * head_dim] with NN_QK_NORM_FULL (qk_norm) */
  PARAM_K_NORM,      /* [head_dim] or [kv_heads * head_dim] */
  PARAM_SINKS,       /* [heads] (attention_sinks) */
  PARAM_O,           /* [hidden, heads * value width] */
  PARAM_O_BIAS,      /* [hidden] (NN_BIAS_O) */
  PARAM_NORM2,       /* [hidden], before the FFN */
  PARAM_NORM2_BIAS,
  PARAM_ROUTER,      /* [experts, hidden] (sparse layers; so all that experts have) */
  PARAM_ROUTER_BIAS, /* [experts] (NN_BIAS_ROUTER) */
  PARAM_ROUTER_CHOICE_BIAS, /* [experts], no gradient (router_choice_bias) */
  PARAM_DENSE_GATE,  /* [dense ffn, hidden] (dense layers; so all DENSE_) */
  PARAM_DENSE_UP,    /* [dense ffn, hidden], behind DENSE_GATE */
  PARAM_DENSE_DOWN,  /* [hidden, dense ffn] */
  PARAM_DENSE_GATE_BIAS, /* (NN_BIAS_FFN; so the next two) */
  PARAM_DENSE_UP_BIAS,   /* behind DENSE_GATE_BIAS */
  PARAM_DENSE_DOWN_BIAS,
  PARAM_SHARED_GATE, /* [shared_ffn, hidden] (sparse layers with shared_ffn; so the next two) */
  PARAM_SHARED_UP,   /* [shared_ffn, hidden], behind SHARED_GATE */
  PARAM_SHARED_DOWN, /* [hidden, shared_ffn] */
  PARAM_SHARED_EXPERT_GATE, /* [1, hidden] (shared_gate) */
  PARAM_GATE,        /* [ffn, hidden], per expert */
  PARAM_UP,          /* [ffn, hidden], per expert, behind GATE */
  PARAM_GATE_UP,     /* [2 ffn, hidden], per expert, where the family keeps one tensor: gate rows,
                        then up rows, or with NN_FFN_SWIGLU_CLAMPED in turn; so its bias */
  PARAM_DOWN,        /* [hidden, ffn], per expert */
  PARAM_GATE_UP_BIAS, /* [2 ffn], per expert (NN_BIAS_FFN; so the next) */
  PARAM_DOWN_BIAS,   /* [hidden], per expert */
  PARAM_FC,          /* [ffn, hidden], dense GELU */
  PARAM_FC_BIAS,
  PARAM_PROJ,        /* [hidden, ffn], dense GELU */
  PARAM_PROJ_BIAS,
  PARAM_NORM_FINAL,  /* [hidden] */
  PARAM_NORM_FINAL_BIAS,
  PARAM_HEAD,        /* [vocab, hidden], absent when tied */
  PARAM_HEAD_BIAS    /* [vocab] (NN_BIAS_HEAD) */
} param_role_t;

enum { PARAM_NAME_BYTES = 96 };

typedef struct param {
  char name[PARAM_NAME_BYTES]; /* in the family's files */
  param_role_t role;
  int64_t layer, expert;       /* -1 where it has none, or has all experts' */
  int32_t ndim;                /* 1 or 2; one more where it has all experts' */
  int64_t shape[3];            /* published */
  int64_t stride[3];           /* in elements of the buffer; (1, rows) of a transpose */
  int64_t offset;              /* first element in the buffer */
  int64_t elements;
  int64_t runs, run_stride;    /* they lie in `runs` runs of elements / runs, whose beginnings are
                                  run_stride apart: 1 and 0, or one an expert */
} param_t;

typedef struct param_table {
  param_t *items;
  int64_t count;
  int64_t elements; /* of the buffer */
  int64_t decayed;  /* elements [0, decayed) decay */
  int64_t active;   /* see nn_plan_t active_parameters */
  int64_t expert_elements; /* from one expert's matrices to the next one's in a layer */
  int64_t expert_vector_elements; /* the same of its biases */
} param_table_t;

/* Builds the table of a validated configuration. NN_ERR_ARGUMENT when a size overflows. */
nn_status_t param_table_build(const nn_model_config_t *config, param_table_t *table);
void param_table_free(param_table_t *table);

/* Counts alone, nothing allocated. */
nn_status_t param_table_count(const nn_model_config_t *config, param_table_t *counts);

/* Whether backward assigns a parameter's gradient where it is asked to; it adds to the others. A
 * tied head's is assigned before the embedding adds to it. */
bool param_is_assigned(const param_table_t *table, const param_t *param, bool tied_head);

/* The parameter of a published name, or NULL. */
const param_t *param_find(const param_table_t *table, const char *name);

#endif
