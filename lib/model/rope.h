/* Tables of rotary positions. */
#ifndef NN_MODEL_ROPE_H
#define NN_MODEL_ROPE_H

#include <stdbool.h>

#include "base/device.h"

/* Elements of a head that are rotated: the width of a table's row. */
int64_t rope_dim(const nn_model_config_t *config);

/* Sequences may be this many times as long as the context. */
double rope_stretch(const nn_model_config_t *config);

/* What YaRN multiplies the scores of attention through latents by. */
double rope_latent_factor(const nn_model_config_t *config);

/* frequency: [rope_dim / 2], the angle of pair i between two positions, in a table for sequences of
 * up to max_len tokens. *factor multiplies cosines and sines. */
void rope_frequencies(const nn_model_config_t *config, int64_t max_len, double *frequency,
                      double *factor);

/* Whether training has one table for sequences of both lengths, neither above the context. */
bool rope_same(const nn_model_config_t *config, int64_t a, int64_t b);

/* Fills table [positions, rope_dim], for sequences of up to max_len tokens, on the device:
 * rope_dim/2 cosines, then as many sines, of position times frequency, which are rounded to fp32
 * like their product, as the published models have it. */
nn_status_t rope_fill(nn_device_t *device, const nn_model_config_t *config, int64_t max_len,
                      int64_t positions, float *table);

#endif
