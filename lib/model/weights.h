/* A parameter buffer as the block code sees it: a pointer per tensor. The same binding serves
 * parameters, gradients and moments, which share their offsets. */
#ifndef NN_MODEL_WEIGHTS_H
#define NN_MODEL_WEIGHTS_H

#include "model/params.h"

/* One block's tensors; NULL where the architecture has none. */
typedef struct block_weights {
  void *norm1, *norm1_bias;
  void *qkv, *qkv_bias; /* [(A + 2K) D, hidden]: query rows, then key, then value rows */
  void *o, *o_bias;     /* [hidden, A D] */
  void *norm2, *norm2_bias;
  void *router;              /* [E, hidden] */
  void *gate, *up, *down;    /* of expert 0 */
  void *fc, *fc_bias, *proj, *proj_bias;
} block_weights_t;

typedef struct weights {
  void *wte, *wpe, *norm_final, *norm_final_bias;
  void *head; /* the embedding when tied */
  block_weights_t *blocks; /* [layers] */
  int64_t expert_stride;   /* elements from an expert's matrix to the next expert's */
} weights_t;

/* Points into a buffer of element_bytes elements laid out by the table. */
nn_status_t weights_bind(const nn_model_config_t *config, const param_table_t *table, void *buffer,
                         size_t element_bytes, weights_t *weights);
void weights_free(weights_t *weights);

#endif
