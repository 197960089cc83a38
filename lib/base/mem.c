#define _POSIX_C_SOURCE 200809L
#include "base/mem.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "base/status.h"

static atomic_llong fail_after = -1;

/* True when this allocation is the one that the tests want to fail. */
static bool mem_must_fail(void) {
  if (atomic_load_explicit(&fail_after, memory_order_relaxed) < 0) return false;
  return atomic_fetch_sub_explicit(&fail_after, 1, memory_order_relaxed) == 0;
}

void mem_fail_after(int64_t after) { atomic_store(&fail_after, after); }

static nn_status_t mem_failed(size_t count, size_t size) {
  return status_fail(NN_ERR_MEMORY, "%zu x %zu bytes of host memory could not be had", count, size);
}

nn_status_t mem_alloc(size_t count, size_t size, void **data) {
  void *got = mem_must_fail() ? NULL : calloc(count ? count : 1, size);
  if (!got) return mem_failed(count, size);
  *data = got;
  return NN_OK;
}

nn_status_t mem_alloc_aligned(size_t bytes, void **data) {
  void *got = NULL;
  if (mem_must_fail() || bytes > PTRDIFF_MAX || posix_memalign(&got, 64, bytes ? bytes : 64))
    return mem_failed(bytes, 1);
  *data = got;
  return NN_OK;
}

void mem_free(void *data) { free(data); }
