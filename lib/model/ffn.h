/* The feed-forward network of one block: routed experts with or without a shared one, a gated dense
 * network, or a plain one with GELU. */
#ifndef NN_MODEL_FFN_H
#define NN_MODEL_FFN_H

#include "model/block.h"

/* The parts of the activations that are the FFN's: routing, and what block_acts_take_ffn takes. */
void ffn_acts_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int64_t layer,
                   block_acts_t *acts);
void ffn_acts_take_inside(arena_t *arena, const nn_model_config_t *config, int64_t n,
                          int32_t act_dtype, int64_t layer, const block_grads_t *grads,
                          block_acts_t *acts);
void ffn_grads_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                    block_grads_t *grads);

/* out = acts->mid + FFN of acts->y2, the norm of mid. out NULL: as block_forward() says. */
nn_status_t ffn_forward(const pass_t *pass, int64_t layer, void *out, block_acts_t *acts);

/* Makes the inside again, from y2 and the routing. */
nn_status_t ffn_again(const pass_t *pass, int64_t layer, block_acts_t *acts);

/* From grads->d, the gradient of out, to grads->dy, that of y2, and the parameters' gradients. */
nn_status_t ffn_backward(const pass_t *pass, int64_t layer, const block_acts_t *acts,
                         const block_grads_t *grads, const block_weights_t *dweights,
                         const router_loss_t *loss);

#endif
