/* Tables of rotary positions. */
#ifndef NN_MODEL_ROPE_H
#define NN_MODEL_ROPE_H

#include "base/device.h"

/* The base of a sequence of up to max_len tokens: rope_theta, stretched past the context (NTK-aware
 * scaling): theta * alpha^(d / (d - 2)). */
double rope_base(const nn_model_config_t *config, int64_t max_len);

/* Fills table [positions, head_dim] on the device: head_dim/2 cosines, then as many sines, of
 * position * base^(-2i / head_dim), the angle rounded to fp32 as the published models compute it. */
nn_status_t rope_fill(nn_device_t *device, const nn_model_config_t *config, int64_t positions,
                      float *table);

#endif
