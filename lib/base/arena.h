/* Places in one allocation. The same layout code runs twice: with base NULL it counts bytes (the
 * byte plan), with memory it hands out addresses, so that the plan and the allocation cannot
 * differ. */
#ifndef NN_BASE_ARENA_H
#define NN_BASE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct arena {
  char *base;      /* NULL while counting */
  size_t used;     /* bytes, a multiple of ARENA_ALIGN */
  bool overflowed; /* a size did not fit */
} arena_t;

/* What GPUs want of a matrix; on a CPU an allocation's own alignment, 64, remains. */
enum { ARENA_ALIGN = 256 };

/* Room for a matrix of rows x columns elements of size bytes, aligned; NULL while counting. */
static inline void *arena_take(arena_t *arena, int64_t rows, int64_t columns, size_t size) {
  size_t bytes, end;
  if (__builtin_mul_overflow((size_t)rows, (size_t)columns, &bytes) ||
      __builtin_mul_overflow(bytes, size, &bytes) ||
      __builtin_add_overflow(bytes, ARENA_ALIGN - 1, &bytes) ||
      __builtin_add_overflow(arena->used, bytes & ~(size_t)(ARENA_ALIGN - 1), &end) ||
      end > PTRDIFF_MAX) {
    arena->overflowed = true;
    return NULL;
  }
  void *place = arena->base ? arena->base + arena->used : NULL;
  arena->used = end;
  return place;
}

#endif
