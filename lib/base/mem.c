#define _DEFAULT_SOURCE /* madvise */
#include "base/mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/status.h"

enum {
  MEM_ALIGNMENT = 64,
  MEM_HUGE_PAGE = 2 << 20,
  MEM_HUGE_LEAST = 2 * MEM_HUGE_PAGE /* bytes from which on huge pages are asked for */
};

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

/* Asks for huge pages where whole ones fit; the end keeps small ones, so that no more memory is
 * taken than was asked for. It is advice: a refusal costs time, nothing else. */
static void mem_advise_huge(void *data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  madvise(data, bytes / MEM_HUGE_PAGE * MEM_HUGE_PAGE, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

nn_status_t mem_alloc_aligned(size_t bytes, void **data) {
  void *got = NULL;
  bool huge = bytes >= MEM_HUGE_LEAST;
  size_t alignment = huge ? MEM_HUGE_PAGE : MEM_ALIGNMENT;
  if (mem_must_fail() || bytes > PTRDIFF_MAX ||
      posix_memalign(&got, alignment, bytes ? bytes : MEM_ALIGNMENT))
    return mem_failed(bytes, 1);
  if (huge) mem_advise_huge(got, bytes);
  *data = got;
  return NN_OK;
}

void mem_free(void *data) { free(data); }
