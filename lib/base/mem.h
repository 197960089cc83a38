/* Host memory for handles and tables, checked size arithmetic, and a tap that makes allocations
 * fail. */
#ifndef NN_BASE_MEM_H
#define NN_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moenn.h"

/* Zeroed memory for count elements; NN_ERR_MEMORY with a message on failure. count 0 gives a
 * pointer that can be freed. */
nn_status_t mem_alloc(size_t count, size_t size, void **data);

/* 64-byte aligned, not initialised: the CPU backend's device memory, in huge pages where it is
 * large and the system has them. Freed by mem_free. */
nn_status_t mem_alloc_aligned(size_t bytes, void **data);

void mem_free(void *data);

/* Tests: the allocation after `after` more ones fails, once; -1: none does. Counts every function
 * above, over all threads. */
void mem_fail_after(int64_t after);

/* Products and sums that refuse to overflow. */
static inline bool mem_mul(int64_t a, int64_t b, int64_t *out) {
  return !__builtin_mul_overflow(a, b, out);
}
static inline bool mem_add(int64_t a, int64_t b, int64_t *out) {
  return !__builtin_add_overflow(a, b, out);
}

#endif
