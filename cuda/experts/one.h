/* one.cu: norm, routing and experts of one token. */
#ifndef NN_CUDA_ONE_H
#define NN_CUDA_ONE_H

#include "device.h"

/* Whether the operations are of this kind: one token, RMS norm, few experts chosen by softmax
 * alone, plain SwiGLU, whole vectors. Scratch: act [top_k, F], rows 8 bytes x top_k. */
int one_fits(const op_moe_t *op);
nn_status_t one_run(backend_device_t *device, const op_moe_t *op, void *act, void *rows);

#endif
