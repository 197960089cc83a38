/* The CPU as a backend: opening and closing, memory, scratch, and the choice of operations. */
#include <string.h>

#include "base/dlpack.h"
#include "base/mem.h"
#include "cpu.h"
#include "dispatch.h"
#include "ref/ref.h"
#ifndef MOENN_NO_VEC
#include "vec/vec_scratch.h"
#endif

enum { ZERO_BYTES = 1 << 20 }; /* one item of zeroing */

static nn_status_t backend_alloc(backend_device_t *device, size_t bytes, void **data) {
  (void)device;
  return mem_alloc_aligned(bytes, data);
}

static void backend_free(backend_device_t *device, void *data, size_t bytes) {
  (void)device;
  (void)bytes;
  mem_free(data);
}

static nn_status_t backend_copy(backend_device_t *device, void *target, const void *source,
                                size_t bytes) {
  (void)device;
  if (bytes) memcpy(target, source, bytes);
  return NN_OK;
}

typedef struct zero_range {
  char *data;
  size_t bytes;
} zero_range_t;

static void zero_item(void *context, int64_t item, int32_t thread) {
  const zero_range_t *range = context;
  (void)thread;
  size_t begin = (size_t)item * ZERO_BYTES, left = range->bytes - begin;
  memset(range->data + begin, 0, left < ZERO_BYTES ? left : ZERO_BYTES);
}

static nn_status_t backend_zero(backend_device_t *device, void *data, size_t bytes) {
  zero_range_t range = {data, bytes};
  pool_run_all(device->pool, (int64_t)((bytes + ZERO_BYTES - 1) / ZERO_BYTES), zero_item, &range);
  return NN_OK;
}

static size_t backend_workspace_bytes(const backend_device_t *device,
                                      const backend_limits_t *limits) {
  size_t bytes = ref_scratch(&device->table, limits);
#ifndef MOENN_NO_VEC
  if (device->cpu_paths & ~NN_CPU_REFERENCE) {
    size_t vec = vec_scratch(limits, device->threads);
    if (vec > bytes) bytes = vec;
  }
#endif
  return bytes;
}

/* The core is built with this file, so the whole struct is there. */
static void backend_describe(const backend_device_t *device, backend_info_t *info) {
  info->threads = device->threads;
  info->cpu_paths = device->cpu_paths;
  info->dlpack_device = DLPACK_CPU;
  info->dlpack_id = 0;
  info->act_dtype = NN_BF16;
  info->act_dtype_f16 = NN_F32; /* widened exactly, so that nothing overflows that fp32 holds */
  info->model = device->model;
}

static void backend_close(backend_device_t *device) {
  if (!device) return;
  pool_destroy(device->pool);
  mem_free(device);
}

static void backend_fill_table(backend_device_t *device) {
  backend_t *table = &device->table;
  table->abi_version = BACKEND_ABI_VERSION;
  table->struct_size = sizeof *table;
  table->close = backend_close;
  table->describe = backend_describe;
  table->alloc = backend_alloc;
  table->free = backend_free;
  table->copy_in = backend_copy;
  table->copy_out = backend_copy;
  table->zero = backend_zero;
  table->workspace_bytes = backend_workspace_bytes;
  ref_table(table);
#ifndef MOENN_NO_VEC
  if (device->cpu_paths & NN_CPU_AVX2) avx2_table(table);
  if (device->cpu_paths & NN_CPU_AVX512) avx512_table(table);
#endif
}

nn_status_t cpu_backend_open(const backend_options_t *options, const backend_t **table,
                             backend_device_t **device) {
  void *memory;
  STATUS_TRY(mem_alloc(1, sizeof(backend_device_t), &memory));
  backend_device_t *made = memory;
  made->threads = options->threads;
  made->cpu_paths = NN_CPU_REFERENCE | (options->cpu_paths & dispatch_paths());
  if (!(made->cpu_paths & NN_CPU_AVX512)) made->cpu_paths &= ~NN_CPU_AVX512_BF16;
  dispatch_model(made->model);
  nn_status_t status = pool_create(options, &made->pool);
  if (status != NN_OK) {
    mem_free(made);
    return status;
  }
  backend_fill_table(made);
  *table = &made->table;
  *device = made;
  return NN_OK;
}
