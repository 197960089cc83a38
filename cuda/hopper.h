/* Tensor maps: what the bulk copy engine of sm_90a reads about a tensor that it copies boxes of. */
#ifndef NN_CUDA_HOPPER_H
#define NN_CUDA_HOPPER_H

#include <cuda.h>

#include "device.h"

enum { HOPPER_MOST_DIMS = 5 };

/* A tensor in device memory, the dimension whose numbers follow one another first. A box lies in
 * shared memory in rows of 128 bytes with the 128-byte swizzle, so box[0] is 128 bytes at most. The
 * base and all strides are multiples of 16 bytes. */
typedef struct hopper_tensor {
  const void *base;
  int32_t dtype; /* NN_F32, or NN_BF16 for either type of 16 bits: copies look at no number */
  int dims;
  int64_t dim[HOPPER_MOST_DIMS];
  int64_t stride[HOPPER_MOST_DIMS - 1]; /* in elements, of dim[1] on */
  int box[HOPPER_MOST_DIMS];
  int streamed = 0; /* comes from memory, which is asked for 128 bytes at once; else for 256 */
} hopper_tensor_t;

nn_status_t hopper_map(backend_device_t *device, const char *operation,
                       const hopper_tensor_t *tensor, CUtensorMap *map);

#endif
