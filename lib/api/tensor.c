/* Exported functions of nn_tensor_t. */
#include "base/tensor.h"

#include <stdbool.h>
#include <string.h>

#include "base/dlpack.h"
#include "base/dtype.h"
#include "base/mem.h"

/* Checks dtype and shape; gives the bytes from the first element to one past the last, for
 * row-major strides (NULL) or others. A size of 0 counts as 1 in the products, so that no later one
 * overflows. */
static nn_status_t tensor_check(int32_t dtype, int32_t ndim, const int64_t *shape,
                                const int64_t *strides, int64_t *bytes) {
  int64_t bytes_each = (int64_t)nn_dtype_bytes(dtype), elements = 1, last = 0;
  if (!bytes_each) return status_fail(NN_ERR_ARGUMENT, "dtype %d is not an NN_ dtype", dtype);
  if (ndim < 0 || ndim > NN_MAX_DIMS)
    return status_fail(NN_ERR_ARGUMENT, "ndim is %d; it goes from 0 to %d", ndim, NN_MAX_DIMS);
  if (ndim && !shape) return status_fail(NN_ERR_ARGUMENT, "shape is NULL for %d dimensions", ndim);
  bool fits = true, empty = false;
  for (int32_t i = 0; i < ndim; i++) {
    if (shape[i] < 0)
      return status_fail(NN_ERR_ARGUMENT, "shape[%d] is %lld; sizes are at least 0", i,
                         (long long)shape[i]);
    empty |= shape[i] == 0;
  }
  for (int32_t i = ndim - 1; i >= 0; i--) {
    int64_t size = shape[i] ? shape[i] : 1, stride = strides ? strides[i] : elements, step;
    if (stride < 0)
      return status_fail(NN_ERR_ARGUMENT, "strides[%d] is %lld; strides are at least 0", i,
                         (long long)stride);
    fits &= mem_mul(size, stride, &step) && mem_mul(size - 1, stride, &step) &&
            mem_add(last, step, &last) && mem_mul(elements, size, &elements);
  }
  int64_t unused;
  if (!fits || !mem_add(last, 1, &last) || !mem_mul(last, bytes_each, bytes) ||
      !mem_mul(elements, bytes_each, &unused) || *bytes > PTRDIFF_MAX)
    return status_fail(NN_ERR_ARGUMENT, "the tensor's size overflows");
  if (empty) *bytes = 0;
  return NN_OK;
}

nn_status_t nn_tensor_create(nn_device_t *device, int32_t dtype, int32_t ndim, const int64_t *shape,
                             nn_tensor_t **tensor) {
  STATUS_REQUIRE(device);
  STATUS_REQUIRE(tensor);
  int64_t bytes;
  STATUS_TRY(tensor_check(dtype, ndim, shape, NULL, &bytes));
  storage_t *storage;
  STATUS_TRY(storage_create(device, (size_t)bytes, "a tensor", &storage));
  nn_status_t status = device_zero(device, storage->data, storage->bytes);
  if (status == NN_OK)
    status = tensor_view(storage, storage->data, dtype, ndim, shape, NULL, tensor);
  storage_release(storage);
  return status;
}

/* A tensor over foreign memory; release may be NULL. */
static nn_status_t tensor_wrap(nn_device_t *device, void *data, int32_t dtype, int32_t ndim,
                               const int64_t *shape, const int64_t *strides,
                               void (*release)(void *), void *owner, nn_tensor_t **tensor) {
  int64_t bytes;
  STATUS_TRY(tensor_check(dtype, ndim, shape, strides, &bytes));
  if (bytes && !data)
    return status_fail(NN_ERR_ARGUMENT, "data is NULL for %lld bytes", (long long)bytes);
  if ((uintptr_t)data % nn_dtype_bytes(dtype))
    return status_fail(NN_ERR_ARGUMENT, "data is not aligned to its %zu-byte elements",
                       nn_dtype_bytes(dtype));
  storage_t *storage;
  STATUS_TRY(storage_wrap(device, data, (size_t)bytes, NULL, owner, &storage));
  nn_status_t status = tensor_view(storage, data, dtype, ndim, shape, strides, tensor);
  if (status == NN_OK) storage->release = release; /* a failure leaves the memory to the caller */
  storage_release(storage);
  return status;
}

nn_status_t nn_tensor_wrap(nn_device_t *device, void *data, int32_t dtype, int32_t ndim,
                           const int64_t *shape, const int64_t *strides, nn_tensor_t **tensor) {
  STATUS_REQUIRE(device);
  STATUS_REQUIRE(tensor);
  return tensor_wrap(device, data, dtype, ndim, shape, strides, NULL, NULL, tensor);
}

nn_status_t nn_tensor_slice(const nn_tensor_t *tensor, int32_t dim, int64_t begin, int64_t end,
                            nn_tensor_t **view) {
  STATUS_REQUIRE(tensor);
  STATUS_REQUIRE(view);
  if (dim < 0 || dim >= tensor->ndim)
    return status_fail(NN_ERR_ARGUMENT, "dim is %d; the tensor has %d dimensions", dim,
                       tensor->ndim);
  if (begin < 0 || end < begin || end > tensor->shape[dim])
    return status_fail(NN_ERR_ARGUMENT, "elements %lld to %lld of a dimension of %lld",
                       (long long)begin, (long long)end, (long long)tensor->shape[dim]);
  int64_t shape[NN_MAX_DIMS];
  memcpy(shape, tensor->shape, sizeof shape);
  shape[dim] = end - begin;
  size_t skip = 0;
  if (end > begin) skip = (size_t)(begin * tensor->strides[dim]) * nn_dtype_bytes(tensor->dtype);
  return tensor_view(tensor->storage, (char *)tensor->data + skip, tensor->dtype, tensor->ndim,
                     shape, tensor->strides, view);
}

void nn_tensor_destroy(nn_tensor_t *tensor) {
  if (!tensor) return;
  storage_release(tensor->storage);
  mem_free(tensor);
}

nn_status_t nn_tensor_info(const nn_tensor_t *tensor, nn_tensor_info_t *info) {
  STATUS_REQUIRE(tensor);
  STATUS_TRY(status_check_result(info, sizeof *info, "nn_tensor_info_t"));
  nn_tensor_info_t found = {.dtype = tensor->dtype,
                            .ndim = tensor->ndim,
                            .shape = tensor->shape,
                            .strides = tensor->strides,
                            .elements = tensor->elements,
                            .data = tensor->data};
  status_write_result(info, &found, sizeof found);
  return NN_OK;
}

/* A tensor's elements in row-major order: runs of contiguous ones. */
typedef struct tensor_runs {
  int32_t outer; /* dimensions before the run */
  size_t bytes;  /* of a run */
} tensor_runs_t;

static tensor_runs_t tensor_runs(const nn_tensor_t *tensor) {
  int32_t outer = tensor->ndim;
  int64_t run = 1;
  while (outer && (tensor->shape[outer - 1] == 1 || tensor->strides[outer - 1] == run))
    run *= tensor->shape[--outer];
  return (tensor_runs_t){outer, (size_t)run * nn_dtype_bytes(tensor->dtype)};
}

/* Moves the elements, which begin at data, to or from row-major host memory, run by run. device:
 * whose memory data is in, or NULL: the host's. */
static nn_status_t tensor_move_runs(const nn_tensor_t *tensor, const nn_device_t *device,
                                    char *data, char *host, bool in) {
  size_t size = nn_dtype_bytes(tensor->dtype), bytes = (size_t)tensor->elements * size;
  tensor_runs_t runs = tensor_runs(tensor);
  int64_t index[NN_MAX_DIMS] = {0};
  nn_status_t status = NN_OK;
  for (size_t done = 0; status == NN_OK && done < bytes; done += runs.bytes) {
    int64_t at = 0;
    for (int32_t i = 0; i < runs.outer; i++) at += index[i] * tensor->strides[i];
    char *here = data + (size_t)at * size, *to = in ? here : host + done;
    const char *from = in ? host + done : here;
    if (!device) memcpy(to, from, runs.bytes);
    else if (in) status = device->backend->copy_in(device->place, to, from, runs.bytes);
    else status = device->backend->copy_out(device->place, to, from, runs.bytes);
    for (int32_t i = runs.outer - 1; i >= 0 && ++index[i] == tensor->shape[i]; i--) index[i] = 0;
  }
  return status;
}

/* The same by way of a host copy of all that the elements span, with what lies between them. */
static nn_status_t tensor_move_span(const nn_tensor_t *tensor, const nn_device_t *device,
                                    size_t span, char *host, bool in) {
  const backend_t *backend = device->backend;
  void *copy;
  STATUS_TRY(mem_alloc(span, 1, &copy));
  nn_status_t status = backend->copy_out(device->place, copy, tensor->data, span);
  if (status == NN_OK) status = tensor_move_runs(tensor, NULL, copy, host, in);
  if (status == NN_OK && in) status = backend->copy_in(device->place, tensor->data, copy, span);
  mem_free(copy);
  return status;
}

enum {
  TENSOR_COPY_COST = 64 << 10, /* bytes that pass while a copy between memories begins */
  TENSOR_GAPS_MOST = 64 << 20  /* bytes beside a view's elements that a copy of its span may have */
};

static nn_status_t tensor_move(const nn_tensor_t *tensor, void *host, size_t bytes, bool in) {
  size_t size = nn_dtype_bytes(tensor->dtype);
  if (bytes != (size_t)tensor->elements * size)
    return status_fail(NN_ERR_ARGUMENT,
                       "%zu bytes given for a tensor of %lld elements of %zu bytes", bytes,
                       (long long)tensor->elements, size);
  if (!bytes) return NN_OK;
  if (!host) return status_fail(NN_ERR_ARGUMENT, "the host memory is NULL");
  nn_device_t *device = tensor->storage->device;
  size_t runs = bytes / tensor_runs(tensor).bytes, last = 0;
  for (int32_t i = 0; i < tensor->ndim; i++)
    last += (size_t)((tensor->shape[i] - 1) * tensor->strides[i]);
  size_t span = (last + 1) * size;
  nn_status_t status;
  device_lock(device);
  /* What lies between elements is somebody else's to write. */
  bool near = span / runs < TENSOR_COPY_COST && span <= bytes + TENSOR_GAPS_MOST;
  if (runs > 1 && !device->host_memory && near && (!in || span == bytes))
    status = tensor_move_span(tensor, device, span, host, in);
  else
    status = tensor_move_runs(tensor, device, tensor->data, host, in);
  device_leave(device);
  return status;
}

nn_status_t nn_tensor_copy_in(nn_tensor_t *tensor, const void *source, size_t bytes) {
  STATUS_REQUIRE(tensor);
  return tensor_move(tensor, (void *)(uintptr_t)source, bytes, true);
}

nn_status_t nn_tensor_copy_out(const nn_tensor_t *tensor, void *target, size_t bytes) {
  STATUS_REQUIRE(tensor);
  return tensor_move(tensor, target, bytes, false);
}

/* ---- DLPack ---- */

_Static_assert(sizeof(void *) != 8 || sizeof(dlpack_managed_t) == 64,
               "DLManagedTensor is 64 bytes");

static const struct {
  uint8_t code, bits;
  int32_t dtype;
} dlpack_types[] = {
    {DLPACK_FLOAT, 32, NN_F32}, {DLPACK_BFLOAT, 16, NN_BF16}, {DLPACK_FLOAT, 16, NN_F16},
    {DLPACK_FLOAT, 64, NN_F64}, {DLPACK_INT, 64, NN_I64},     {DLPACK_INT, 32, NN_I32},
    {DLPACK_INT, 16, NN_I16},   {DLPACK_INT, 8, NN_I8},       {DLPACK_UINT, 8, NN_U8},
    {DLPACK_BOOL, 8, NN_BOOL},
};
enum { DLPACK_TYPES = sizeof dlpack_types / sizeof dlpack_types[0] };

static backend_info_t tensor_device_info(const nn_device_t *device) {
  backend_info_t info = {.struct_size = sizeof info};
  device->backend->describe(device->place, &info);
  return info;
}

/* An exported tensor: the managed struct first, so that its address is this one's. */
typedef struct dlpack_export {
  dlpack_managed_t managed;
  nn_tensor_t *tensor;
} dlpack_export_t;

static void dlpack_export_delete(dlpack_managed_t *self) {
  dlpack_export_t *export = self->context;
  nn_tensor_destroy(export->tensor);
  mem_free(export);
}

nn_status_t nn_tensor_to_dlpack(const nn_tensor_t *tensor, void **managed) {
  STATUS_REQUIRE(tensor);
  STATUS_REQUIRE(managed);
  void *got = NULL;
  STATUS_TRY(mem_alloc(1, sizeof(dlpack_export_t), &got));
  dlpack_export_t *export = got;
  nn_status_t status = tensor_view(tensor->storage, tensor->data, tensor->dtype, tensor->ndim,
                                   tensor->shape, tensor->strides, &export->tensor);
  if (status != NN_OK) {
    mem_free(export);
    return status;
  }
  size_t type = 0;
  while (dlpack_types[type].dtype != tensor->dtype) type++;
  backend_info_t info = tensor_device_info(tensor->storage->device);
  export->managed = (dlpack_managed_t){
      .tensor = {.data = tensor->data,
                 .device_type = info.dlpack_device,
                 .device_id = info.dlpack_id,
                 .ndim = tensor->ndim,
                 .code = dlpack_types[type].code,
                 .bits = dlpack_types[type].bits,
                 .lanes = 1,
                 .shape = export->tensor->shape,
                 .strides = export->tensor->strides},
      .context = export,
      .deleter = dlpack_export_delete,
  };
  *managed = &export->managed;
  return NN_OK;
}

static void dlpack_import_release(void *owner) {
  dlpack_managed_t *managed = owner;
  if (managed->deleter) managed->deleter(managed);
}

nn_status_t nn_tensor_from_dlpack(nn_device_t *device, void *managed, nn_tensor_t **tensor) {
  STATUS_REQUIRE(device);
  STATUS_REQUIRE(managed);
  STATUS_REQUIRE(tensor);
  dlpack_managed_t *import = managed;
  const dlpack_tensor_t *from = &import->tensor;
  backend_info_t info = tensor_device_info(device);
  if (from->device_type != info.dlpack_device || from->device_id != info.dlpack_id)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "DLPack tensor on device %d:%d; \"%s\" reaches the memory of %d:%d",
                       from->device_type, from->device_id, device->name, info.dlpack_device,
                       info.dlpack_id);
  size_t type = 0;
  while (type < DLPACK_TYPES &&
         (dlpack_types[type].code != from->code || dlpack_types[type].bits != from->bits))
    type++;
  if (type == DLPACK_TYPES || from->lanes != 1)
    return status_fail(NN_ERR_UNSUPPORTED,
                       "DLPack element of code %d, %d bits, %d lanes has no dtype here", from->code,
                       from->bits, from->lanes);
  return tensor_wrap(device, from->data ? (char *)from->data + from->byte_offset : NULL,
                     dlpack_types[type].dtype, from->ndim, from->shape, from->strides,
                     dlpack_import_release, import, tensor);
}
