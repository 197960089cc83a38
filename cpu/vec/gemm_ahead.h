/* What is requested from memory beside a tile of a product: what its end adds to and writes, and a
 * share of what comes next, so that packing finds it in the cache. */
#ifndef NN_CPU_VEC_GEMM_AHEAD_H
#define NN_CPU_VEC_GEMM_AHEAD_H

#include <stdbool.h>

#include "vec/gemm.h"

enum {
  GEMM_RUNS = 16, /* most of what is requested beside one tile */
  GEMM_LINE = 64  /* bytes of a cache line */
};

typedef struct gemm_requests {
  gemm_run_t run[GEMM_RUNS + 1];
  int64_t count, left; /* runs; lines that more could be */
} gemm_requests_t;

/* Rows or columns [first, first + count) of the product in [k0, k0 + k); operand NULL: nothing. */
typedef struct gemm_part {
  const gemm_operand_t *operand;
  int64_t first, count, k0, k;
} gemm_part_t;

/* A part that is packed or read when `tiles` tiles are done: its stored rows are requested beside
 * them, an equal share beside each. */
typedef struct gemm_ahead {
  gemm_part_t part;
  int64_t tiles, tile, row; /* all tiles; tiles computed and stored rows requested so far */
} gemm_ahead_t;

/* For a tile of so many steps. */
static inline void gemm_requests_begin(gemm_requests_t *requests, int64_t steps) {
  requests->count = 0;
  requests->left = steps / GEMM_REQUEST_STEP;
}

/* False, with nothing added, where there is no room. */
static inline bool gemm_request(gemm_requests_t *requests, const void *data, int64_t step,
                                int64_t lines) {
  if (requests->count == GEMM_RUNS || requests->left < lines) return false;
  requests->run[requests->count++] = (gemm_run_t){(uintptr_t)data, step, lines};
  requests->left -= lines;
  return true;
}

static inline bool gemm_request_bytes(gemm_requests_t *requests, const void *data, int64_t bytes) {
  int64_t before = (int64_t)((uintptr_t)data % GEMM_LINE);
  return gemm_request(requests, data, GEMM_LINE, vec_blocks(before + bytes, GEMM_LINE));
}

/* Stored row r of a part, from 0; NULL past a pair's end. */
static inline const void *gemm_part_row(const gemm_part_t *part, int64_t r) {
  const gemm_operand_t *operand = part->operand;
  int64_t size = vec_dtype_bytes(operand->dtype);
  if (operand->along_k)
    return (const char *)gemm_row(operand, part->k0 + r) + part->first * size;
  const void *row[VEC_WIDTH];
  if (!gemm_rows(operand, part->first + r, 1, row)) return NULL;
  return (const char *)row[0] + part->k0 * size;
}

/* The share of one more tile. */
static inline void gemm_request_ahead(gemm_requests_t *requests, gemm_ahead_t *ahead) {
  const gemm_part_t *part = &ahead->part;
  if (!part->operand) return;
  int64_t rows = part->operand->along_k ? part->k : part->count;
  int64_t bytes = (part->operand->along_k ? part->count : part->k) *
                  vec_dtype_bytes(part->operand->dtype);
  int64_t until = vec_min(rows, vec_blocks(rows * ++ahead->tile, ahead->tiles));
  for (; ahead->row < until; ahead->row++) {
    const void *row = gemm_part_row(part, ahead->row);
    if (row && !gemm_request_bytes(requests, row, bytes)) return;
  }
}

/* What the last block of k adds to and writes, of `count` rows from (i, j) on. */
static inline void gemm_request_result(gemm_requests_t *requests, const gemm_group_t *group,
                                       int64_t i, int64_t count, int64_t j, int64_t columns) {
  const float *at = group->c ? group->c : group->d;
  int64_t ld = group->c ? group->ldc : group->ldd;
  for (int64_t q = 0; at && q < columns; q += VEC_WIDTH)
    gemm_request(requests, at + i * ld + j + q, ld * (int64_t)sizeof *at, count);
}

/* Ends the list, with a line that is in the cache already. */
static inline void gemm_requests_end(gemm_requests_t *requests, const float *tile) {
  requests->run[requests->count] = (gemm_run_t){(uintptr_t)tile, 0, INT64_MAX};
}

#endif
