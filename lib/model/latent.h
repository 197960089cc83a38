/* Queries, keys and values through latents (DeepSeek-AI, 2024): q = q_b norm(q_a x) or a plain
 * projection, and per head [key | value] = kv_b norm(c), where [c | r] = kv_a x and r, rotated, is
 * the end of every head's key. What attention reads is as wide as elsewhere: values are padded. */
#ifndef NN_MODEL_LATENT_H
#define NN_MODEL_LATENT_H

#include "model/block.h"

/* Width of what attention gives, which the output projection reads: of all heads' values. */
int64_t latent_values_width(const nn_model_config_t *config);

void latent_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                 bool backward, latent_t *latent);

/* From acts->y1 to acts->qkv, rotated. */
nn_status_t latent_project(const pass_t *pass, const block_weights_t *w, block_acts_t *acts);

/* From grads->dqkv to grads->dy, and the parameters' gradients. */
nn_status_t latent_project_backward(const pass_t *pass, const block_weights_t *w,
                                    const block_acts_t *acts, const block_grads_t *grads,
                                    const block_weights_t *dweights);

/* From acts->att to acts->latent.values, and back. */
nn_status_t latent_values(const pass_t *pass, const block_acts_t *acts);
nn_status_t latent_values_backward(const pass_t *pass, const block_grads_t *grads);

#endif
