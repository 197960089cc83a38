/* Attention of one block: projections, norms of queries and keys, rotary positions, the product of
 * probabilities and values. */
#ifndef NN_MODEL_ATTENTION_H
#define NN_MODEL_ATTENTION_H

#include "model/block.h"

/* Of a row of queries, keys and values, and of its part that attention sees as query. */
int64_t attention_qkv_width(const nn_model_config_t *config);
int64_t attention_q_width(const nn_model_config_t *config);

/* The part of the activations that is attention's. */
void attention_acts_take(arena_t *arena, const nn_model_config_t *config, int64_t n,
                         int32_t act_dtype, bool backward, block_acts_t *acts);

void attention_grads_take(arena_t *arena, const nn_model_config_t *config, int64_t n,
                          int32_t act_dtype, block_grads_t *grads);

/* acts->mid = x + attention of acts->y1, the norm of x. */
nn_status_t attention_forward(const pass_t *pass, int64_t layer, const void *x,
                              block_acts_t *acts);

/* From grads->d, the gradient of mid, to grads->dy, that of y1, and the parameters' gradients. */
nn_status_t attention_backward(const pass_t *pass, int64_t layer, const block_acts_t *acts,
                               const block_grads_t *grads, const block_weights_t *dweights);

#endif
