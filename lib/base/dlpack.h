/* The part of DLPack (dmlc.github.io/dlpack, layout of version 0) that crosses the border: plain C
 * structs by which libraries of arrays hand memory to each other. */
#ifndef NN_BASE_DLPACK_H
#define NN_BASE_DLPACK_H

#include <stdint.h>

enum { DLPACK_CPU = 1, DLPACK_CUDA = 2 };
enum { DLPACK_INT = 0, DLPACK_UINT = 1, DLPACK_FLOAT = 2, DLPACK_BFLOAT = 4, DLPACK_BOOL = 6 };

typedef struct dlpack_tensor {
  void *data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides; /* strides NULL: row-major */
  uint64_t byte_offset;
} dlpack_tensor_t;

typedef struct dlpack_managed {
  dlpack_tensor_t tensor;
  void *context;
  void (*deleter)(struct dlpack_managed *self);
} dlpack_managed_t;

#endif
