/* Scratch of the operations in ops.h: the sizes that decide it, and an upper bound. Knows no
 * instruction set, so that it can be asked on any machine and covers both paths. */
#ifndef NN_CPU_VEC_OPS_SCRATCH_H
#define NN_CPU_VEC_OPS_SCRATCH_H

#include "backend.h"

enum {
  ATTENTION_MAX_ROWS = 64,     /* of a tile, on the widest path */
  ATTENTION_KEYS = 48,         /* of a score tile */
  ATTENTION_DIRECT_ROWS = 16,  /* up to so many rows, vectors run over head_dim instead, */
  ATTENTION_DIRECT_KEYS = 128, /* with so many keys at a time */
  ATTENTION_CHUNK = 512,       /* keys of a chunk, or a multiple, */
  ATTENTION_CHUNKS = 32,       /* of which there are at most so many */
  ATTENTION_BWD_ITEMS = 32,    /* items that add to a dk and dv of their own */
  NORM_BWD_ROWS = 32,          /* rows of a block, or a multiple, */
  NORM_BWD_BLOCKS = 64,        /* of which there are at most so many */
  ROUTE_BLOCK = 64             /* tokens of a block */
};

/* Floats of one thread's tiles; tile_rows is at most ATTENTION_MAX_ROWS.
 * Forward: q and o transposed, scores, four numbers a row, keys or values widened; or q, o and
 * scores of few rows. */
static inline int64_t attention_work(int64_t head_dim, int64_t tile_rows) {
  return (2 * head_dim + ATTENTION_KEYS + 4) * tile_rows + ATTENTION_DIRECT_KEYS * head_dim +
         ATTENTION_DIRECT_ROWS * ATTENTION_DIRECT_KEYS;
}

/* Backward: q, dO and dQ transposed, q and dO plain, P and dS, three numbers a row, keys and values
 * widened. */
static inline int64_t attention_bwd_work(int64_t head_dim, int64_t tile_rows) {
  return (5 * head_dim + 2 * ATTENTION_KEYS + 3) * tile_rows + 2 * ATTENTION_KEYS * head_dim;
}

/* Bytes of a x b x c elements, or a size that no memory has where that overflows. */
static inline size_t ops_bytes(int64_t a, int64_t b, int64_t c, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow((size_t)a, (size_t)b, &bytes) ||
      __builtin_mul_overflow(bytes, (size_t)c, &bytes) ||
      __builtin_mul_overflow(bytes, size, &bytes) || bytes > PTRDIFF_MAX / 8)
    return PTRDIFF_MAX / 8;
  return bytes;
}

static inline size_t attention_scratch(const backend_limits_t *limits, int32_t threads) {
  size_t work = ops_bytes(threads, attention_work(limits->head_dim, ATTENTION_MAX_ROWS), 1, 4);
  /* Only calls whose rows fit one tile are split into chunks, so q_len <= ATTENTION_MAX_ROWS. */
  int64_t most = ATTENTION_MAX_ROWS, rows = limits->rows;
  if (limits->batch < rows / most) rows = limits->batch * most;
  int64_t chunks = (limits->kv_len + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK;
  if (chunks > ATTENTION_CHUNKS) chunks = ATTENTION_CHUNKS;
  if (chunks <= 1) return work;
  return work + ops_bytes(rows * chunks, limits->heads, limits->head_dim + 2, 4);
}

static inline size_t attention_bwd_scratch(const backend_limits_t *limits, int32_t threads) {
  int64_t keys = limits->kv_len && limits->kv_len < limits->rows ? limits->kv_len : limits->rows;
  return ops_bytes(threads, attention_bwd_work(limits->head_dim, ATTENTION_MAX_ROWS), 1, 4) +
         ops_bytes(2 * ATTENTION_BWD_ITEMS, keys, limits->head_dim, 4);
}

static inline size_t norm_bwd_scratch(const backend_limits_t *limits) {
  int64_t blocks = (limits->rows + NORM_BWD_ROWS - 1) / NORM_BWD_ROWS;
  if (blocks > NORM_BWD_BLOCKS) blocks = NORM_BWD_BLOCKS;
  return ops_bytes(blocks, 2, limits->hidden, 4);
}

/* Sums in double and counts of each block. */
static inline size_t route_scratch(const backend_limits_t *limits) {
  int64_t blocks = (limits->rows + ROUTE_BLOCK - 1) / ROUTE_BLOCK;
  return ops_bytes(blocks, limits->experts + 1, 1, 8) + ops_bytes(blocks, limits->experts, 1, 4);
}

static inline size_t route_bwd_scratch(const backend_limits_t *limits) {
  return ops_bytes(limits->rows, limits->experts, 1, 4);
}

/* Bytes that suffice for any one of the operations in ops.h. */
static inline size_t ops_scratch(const backend_limits_t *limits, int32_t threads) {
  size_t sizes[] = {
      limits->heads ? attention_scratch(limits, threads) : 0,
      limits->heads && limits->training ? attention_bwd_scratch(limits, threads) : 0,
      limits->training ? norm_bwd_scratch(limits) : 0,
      limits->experts ? route_scratch(limits) : 0,
      limits->experts && limits->training ? route_bwd_scratch(limits) : 0,
  };
  size_t most = 0;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    if (sizes[i] > most) most = sizes[i];
  return most;
}

#endif
