/* Tensors: shape and strides over reference-counted storage. */
#ifndef NN_BASE_TENSOR_H
#define NN_BASE_TENSOR_H

#include <stdatomic.h>

#include "base/device.h"

/* Storage that tensors view; the owner of a model's buffer is such a storage too. */
typedef struct storage {
  atomic_int references;
  nn_device_t *device; /* retained */
  void *data;
  size_t bytes;
  void (*release)(void *owner); /* ends foreign memory; NULL: device_free(data) when owned */
  void *owner;
  int owned;   /* 1: from device_alloc */
  int counted; /* 1: counted as held by the device, which did not allocate it */
} storage_t;

struct nn_tensor {
  storage_t *storage;
  void *data; /* first element */
  int32_t dtype, ndim;
  int64_t shape[NN_MAX_DIMS], strides[NN_MAX_DIMS], elements;
};

/* Storage of bytes on a device, not initialised. what: as in device_alloc. */
nn_status_t storage_create(nn_device_t *device, size_t bytes, const char *what,
                           storage_t **storage);
/* Storage over foreign memory; release(owner) is called with the last reference. */
nn_status_t storage_wrap(nn_device_t *device, void *data, size_t bytes, void (*release)(void *),
                         void *owner, storage_t **storage);
/* The same for memory that the device's counters count as held, like its own. */
nn_status_t storage_wrap_counted(nn_device_t *device, void *data, size_t bytes,
                                 void (*release)(void *), void *owner, storage_t **storage);
void storage_retain(storage_t *storage);
void storage_release(storage_t *storage);

/* A tensor over part of a storage, which it retains. strides NULL: row-major. */
nn_status_t tensor_view(storage_t *storage, void *data, int32_t dtype, int32_t ndim,
                        const int64_t *shape, const int64_t *strides, nn_tensor_t **tensor);

#endif
