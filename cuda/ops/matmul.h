/* Parts of the dense product that are our own kernels. */
#ifndef NN_CUDA_MATMUL_H
#define NN_CUDA_MATMUL_H

#include "device.h"

/* matmul.cu: the operation without bias and epilogue, never through TF32. */
nn_status_t matmul_exact(backend_device_t *device, const op_matmul_t *op,
                         backend_scratch_t scratch);

/* plain.cu: v = alpha (op(a) op(b) + bias) + c for any layout, one thread an element; for what
 * cuBLASLt has no kernel for. d: where v goes. */
void matmul_plain(backend_device_t *device, const op_matmul_t *op, void *d);

/* plain.cu: GELU, or its derivative, of the product v that lies at v (op->aux or op->d). */
void matmul_gelu(backend_device_t *device, const op_matmul_t *op, const void *v);

/* plain.cu: v += alpha bias for the product v that lies at v (op->aux or op->d). */
void matmul_bias(backend_device_t *device, const op_matmul_t *op, void *v);

/* rows.cu: a few rows of a against the rows of a weight, which is read once at memory bandwidth. */
int matmul_rows_fit(const op_matmul_t *op);
void matmul_rows(backend_device_t *device, const op_matmul_t *op, void *d);

#endif
