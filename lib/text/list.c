#include "text/list.h"

#include <string.h>

#include "base/mem.h"

nn_status_t list_grow(void *items, size_t count, size_t more, size_t size, size_t *capacity) {
  size_t needed, wanted;
  void *grown, *old;
  memcpy(&old, items, sizeof old);
  if (__builtin_add_overflow(count, more, &needed) || needed > PTRDIFF_MAX / size)
    return status_fail(NN_ERR_MEMORY, "%zu elements and %zu more", count, more);
  wanted = needed > PTRDIFF_MAX / size / 2 ? needed : needed + needed / 2 + 8;
  STATUS_TRY(mem_alloc(wanted, size, &grown));
  if (count) memcpy(grown, old, count * size);
  mem_free(old);
  memcpy(items, &grown, sizeof grown);
  *capacity = wanted;
  return NN_OK;
}
