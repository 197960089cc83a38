#include "base/tensor.h"

#include "base/mem.h"

static nn_status_t storage_make(nn_device_t *device, storage_t **storage) {
  void *got = NULL;
  STATUS_TRY(mem_alloc(1, sizeof **storage, &got));
  *storage = got;
  atomic_init(&(*storage)->references, 1);
  (*storage)->device = device;
  device_retain(device);
  return NN_OK;
}

nn_status_t storage_create(nn_device_t *device, size_t bytes, const char *what,
                           storage_t **storage) {
  storage_t *made;
  STATUS_TRY(storage_make(device, &made));
  nn_status_t status = device_alloc(device, bytes, what, &made->data);
  if (status != NN_OK) {
    storage_release(made);
    return status;
  }
  made->bytes = bytes;
  made->owned = 1;
  *storage = made;
  return NN_OK;
}

nn_status_t storage_wrap(nn_device_t *device, void *data, size_t bytes, void (*release)(void *),
                         void *owner, storage_t **storage) {
  storage_t *made;
  STATUS_TRY(storage_make(device, &made));
  made->data = data;
  made->bytes = bytes;
  made->release = release;
  made->owner = owner;
  *storage = made;
  return NN_OK;
}

nn_status_t storage_wrap_counted(nn_device_t *device, void *data, size_t bytes,
                                 void (*release)(void *), void *owner, storage_t **storage) {
  STATUS_TRY(storage_wrap(device, data, bytes, release, owner, storage));
  (*storage)->counted = 1;
  device_count(device, (int64_t)bytes);
  return NN_OK;
}

void storage_retain(storage_t *storage) {
  atomic_fetch_add_explicit(&storage->references, 1, memory_order_relaxed);
}

void storage_release(storage_t *storage) {
  if (!storage) return;
  if (atomic_fetch_sub_explicit(&storage->references, 1, memory_order_acq_rel) != 1) return;
  if (storage->owned) device_free(storage->device, storage->data, storage->bytes);
  if (storage->counted) device_count(storage->device, -(int64_t)storage->bytes);
  if (storage->release) storage->release(storage->owner);
  device_release(storage->device);
  mem_free(storage);
}

nn_status_t tensor_view(storage_t *storage, void *data, int32_t dtype, int32_t ndim,
                        const int64_t *shape, const int64_t *strides, nn_tensor_t **tensor) {
  void *got = NULL;
  STATUS_TRY(mem_alloc(1, sizeof(nn_tensor_t), &got));
  nn_tensor_t *made = got;
  storage_retain(storage);
  made->storage = storage;
  made->data = data;
  made->dtype = dtype;
  made->ndim = ndim;
  made->elements = 1;
  int64_t run = 1; /* row-major stride, sizes of 0 taken as 1 */
  for (int32_t i = ndim - 1; i >= 0; i--) {
    made->shape[i] = shape[i];
    made->strides[i] = strides ? strides[i] : run;
    made->elements *= shape[i];
    run *= shape[i] ? shape[i] : 1;
  }
  *tensor = made;
  return NN_OK;
}
