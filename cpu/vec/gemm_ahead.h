/* What is requested from memory beside some tiles of a product: what their end adds to and writes,
 * and a share of what comes next, so that packing finds it in the cache. */
#ifndef NN_CPU_VEC_GEMM_AHEAD_H
#define NN_CPU_VEC_GEMM_AHEAD_H

#include <stdbool.h>

#include "vec/gemm.h"

enum {
  GEMM_RUNS = 40, /* most of what is requested at a time */
  GEMM_LINE = 64  /* bytes of a cache line */
};

typedef struct gemm_requests {
  gemm_run_t run[GEMM_RUNS + 1];
  int64_t count, left; /* runs; lines that more could be */
  int64_t steps;       /* of the tiles */
} gemm_requests_t;

/* Rows or columns [first, first + count) of the product in [k0, k0 + k); operand NULL: nothing. */
typedef struct gemm_part {
  const gemm_operand_t *operand;
  int64_t first, count, k0, k;
} gemm_part_t;

/* A part that is packed or read when other tiles are done: its stored rows are requested beside
 * them, an equal share beside each. */
typedef struct gemm_ahead {
  gemm_part_t part;
  int64_t rows, share, row; /* stored rows; of them at a time; requested so far */
} gemm_ahead_t;

static inline gemm_ahead_t gemm_ahead(gemm_part_t part, int64_t times) {
  int64_t rows = part.operand->along_k ? part.k : part.count;
  return (gemm_ahead_t){part, rows, vec_blocks(rows, times), 0};
}

/* For tiles of so many steps together. */
static inline void gemm_requests_begin(gemm_requests_t *requests, int64_t steps) {
  requests->count = 0;
  requests->left = requests->steps = steps;
}

/* False where there was no room for all. */
static inline bool gemm_request(gemm_requests_t *requests, const void *data, int64_t step,
                                int64_t lines) {
  if (requests->count == GEMM_RUNS || requests->left == 0) return false;
  int64_t taken = vec_min(lines, requests->left);
  requests->run[requests->count++] = (gemm_run_t){(uintptr_t)data, step, taken};
  requests->left -= taken;
  return taken == lines;
}

/* Lines that so many bytes lie in. */
static inline int64_t gemm_lines(const void *data, int64_t bytes) {
  return vec_blocks((int64_t)((uintptr_t)data % GEMM_LINE) + bytes, GEMM_LINE);
}

static inline bool gemm_request_bytes(gemm_requests_t *requests, const void *data, int64_t bytes) {
  return gemm_request(requests, data, GEMM_LINE, gemm_lines(data, bytes));
}

/* Stored row r of a part, from 0; NULL past a pair's end. *even: as gemm_even_rows, at least 1. */
static inline const void *gemm_part_row(const gemm_part_t *part, int64_t r, int64_t *even) {
  const gemm_operand_t *operand = part->operand;
  int64_t from = operand->along_k ? part->first : part->k0;
  const char *row = gemm_even_rows(operand, r + (operand->along_k ? part->k0 : part->first), even);
  if (*even > 0) return row + from * vec_dtype_bytes(operand->dtype);
  *even = 1;
  return NULL;
}

/* `rows` rows of so many bytes, step bytes apart: all in one run, or one for each row or for each
 * line of a row, whatever is less. False where there was no room for all. */
static inline bool gemm_request_rows(gemm_requests_t *requests, const void *data, int64_t rows,
                                     int64_t step, int64_t bytes) {
  if (step == bytes) return gemm_request_bytes(requests, data, rows * bytes);
  int64_t lines = gemm_lines(data, bytes);
  bool room = true;
  if (rows < lines)
    for (int64_t i = 0; room && i < rows; i++)
      room = gemm_request_bytes(requests, (const char *)data + i * step, bytes);
  else
    for (int64_t i = 0; room && i < lines; i++)
      room = gemm_request(requests, (const char *)data + i * GEMM_LINE, step, rows);
  return room;
}

/* One more share. */
static inline void gemm_request_ahead(gemm_requests_t *requests, gemm_ahead_t *ahead) {
  const gemm_part_t *part = &ahead->part;
  if (!part->operand || ahead->row == ahead->rows) return;
  int64_t size = vec_dtype_bytes(part->operand->dtype);
  int64_t bytes = (part->operand->along_k ? part->count : part->k) * size;
  int64_t until = vec_min(ahead->rows, ahead->row + ahead->share), even;
  for (; ahead->row < until; ahead->row += even) {
    const void *row = gemm_part_row(part, ahead->row, &even);
    even = vec_min(even, until - ahead->row);
    if (row && !gemm_request_rows(requests, row, even, part->operand->ld * size, bytes)) return;
  }
}

/* `count` rows from (i, j) on of a matrix, or of none. */
static inline void gemm_request_tile(gemm_requests_t *requests, const void *matrix, int64_t ld,
                                     int32_t dtype, int64_t i, int64_t count, int64_t j,
                                     int64_t columns) {
  int64_t size = vec_dtype_bytes(dtype);
  for (int64_t q = 0; matrix && q < columns; q += GEMM_LINE / size)
    gemm_request(requests, vec_at(matrix, i * ld + j + q, dtype), ld * size, count);
}

/* What the last block of k adds to, and what it writes by way of the caches, of `count` rows from
 * (i, j) on. */
static inline void gemm_request_result(gemm_requests_t *requests, const gemm_group_t *group,
                                       int64_t i, int64_t count, int64_t j, int64_t columns) {
  gemm_request_tile(requests, group->c, group->ldc, group->d_dtype, i, count, j, columns);
  if (group->d != group->c && !group->bypass)
    gemm_request_tile(requests, group->d, group->ldd, group->d_dtype, i, count, j, columns);
}

/* Ends the list, with a line that is in the cache already. Returns the steps between two requests:
 * 2 where that leaves room for all, for many in a row hold loads up. */
static inline int64_t gemm_requests_end(gemm_requests_t *requests, const float *tile) {
  requests->run[requests->count] = (gemm_run_t){(uintptr_t)tile, 0, INT64_MAX};
  return requests->left < requests->steps / 2 ? 1 : 2;
}

#endif
