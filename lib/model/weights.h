/* A parameter buffer as the block code sees it: a pointer per tensor. The same binding serves
 * parameters, gradients and moments, which share their offsets. */
#ifndef NN_MODEL_WEIGHTS_H
#define NN_MODEL_WEIGHTS_H

#include "model/params.h"

/* One block's tensors; NULL where the architecture has none. */
typedef struct block_weights {
  void *norm1, *norm1_bias;
  void *qkv, *qkv_bias; /* [(A + 2K) D, hidden]: query rows, then key, then value rows; with
                           kv_rank query rows alone */
  void *q_a, *q_a_norm, *q_b;    /* [q_rank, hidden], [q_rank], [A D, q_rank] */
  void *kv_a, *kv_a_norm, *kv_b; /* [kv_rank + rope, hidden], [kv_rank],
                                    [A (nope + value), kv_rank] */
  void *q_norm, *k_norm; /* [D], or [A D] and [K D] */
  void *sinks;           /* [A] */
  void *o, *o_bias;     /* [hidden, A D] */
  void *norm2, *norm2_bias;
  void *router, *router_bias, *choice_bias; /* [E, hidden], [E], [E] */
  void *gate, *up, *down;    /* of expert 0 */
  void *gate_bias, *up_bias, *down_bias; /* likewise */
  void *shared_gate_up;      /* [2 shared ffn, hidden]: gate rows, then up rows */
  void *shared_down;         /* [hidden, shared ffn] */
  void *shared_expert_gate;  /* [hidden] */
  void *dense_gate_up, *dense_gate_up_bias; /* [2 dense ffn, hidden]: gate rows, then up rows */
  void *dense_down, *dense_down_bias;       /* [hidden, dense ffn] */
  void *fc, *fc_bias, *proj, *proj_bias;
} block_weights_t;

typedef struct weights {
  void *wte, *wpe, *norm_final, *norm_final_bias;
  void *head; /* the embedding when tied */
  void *head_bias;
  block_weights_t *blocks; /* [layers] */
  int64_t expert_stride;   /* elements from an expert's matrix to the next expert's */
  int64_t expert_bias_stride; /* the same of its biases */
  int32_t interleaved; /* rows of gate and up, and their biases, are in turn */
} weights_t;

/* Points into a buffer of element_bytes elements laid out by the table. */
nn_status_t weights_bind(const nn_model_config_t *config, const param_table_t *table, void *buffer,
                         size_t element_bytes, weights_t *weights);
void weights_free(weights_t *weights);

#endif
