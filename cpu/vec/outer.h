/* A small register-blocked product for operands that stay in cache, as attention and routing need:
 *
 *   c[x, j] = start[x, j] + sum over t, in order, of a[x * step_x + t * step_t] * b[t, j]
 *
 * x < rows, j < columns, t < terms. Elements of a are broadcast, so a may lie either way; rows of b
 * and c are vectors. start is 0 (assign), c (add) or c * factor[j] (scale). */
#ifndef NN_CPU_VEC_OUTER_H
#define NN_CPU_VEC_OUTER_H

#include "vec/vec.h"

typedef struct outer {
  int64_t rows, columns, terms;
  const float *a;
  int64_t step_x, step_t;
  const float *b; /* [terms, columns], stride ldb */
  int64_t ldb;
  float *c; /* [rows, columns], stride ldc */
  int64_t ldc;
  const float *factor; /* [columns], for scale */
} outer_t;

typedef enum outer_start { OUTER_ASSIGN, OUTER_ADD, OUTER_SCALE } outer_start_t;

/* Accumulators of a block: OUTER_ROWS x OUTER_VECTORS registers. */
enum { OUTER_ROWS = 6, OUTER_VECTORS = VEC_WIDTH == 16 ? 4 : 2 };

/* The block at (x0, j0): `height` x `vectors` registers, constants at every call. Rows past the
 * end are computed from the last one and not stored. */
VEC_INLINE void outer_block(const outer_t *p, outer_start_t start, int height, int vectors,
                            int64_t x0, int64_t j0) {
  int64_t rows = vec_min(height, p->rows - x0);
  int64_t last = vec_min(VEC_WIDTH, p->columns - j0 - (vectors - 1) * VEC_WIDTH);
  vmask full = vf_mask(VEC_WIDTH), tail = vf_mask(last);
  const float *a[OUTER_ROWS];
  vf sum[OUTER_ROWS][OUTER_VECTORS];
  VEC_UNROLL for (int x = 0; x < height; x++) {
    a[x] = p->a + (x0 + vec_min(x, rows - 1)) * p->step_x;
    VEC_UNROLL for (int v = 0; v < vectors; v++) {
      sum[x][v] = vf_zero();
      if (start == OUTER_ASSIGN || x >= rows) continue;
      vmask mask = v == vectors - 1 ? tail : full;
      sum[x][v] = vf_load_mask(p->c + (x0 + x) * p->ldc + j0 + v * VEC_WIDTH, mask);
      if (start == OUTER_SCALE)
        sum[x][v] = vf_mul(sum[x][v], vf_load_mask(p->factor + j0 + v * VEC_WIDTH, mask));
    }
  }
  int64_t step = p->step_t, end = p->terms * step;
  const float *row = p->b + j0;
  for (int64_t t = 0; t != end; t += step, row += p->ldb) {
    vf b[OUTER_VECTORS];
    VEC_UNROLL for (int v = 0; v < vectors - 1; v++) b[v] = vf_load(row + v * VEC_WIDTH);
    b[vectors - 1] = vf_load_mask(row + (vectors - 1) * VEC_WIDTH, tail);
    VEC_UNROLL for (int x = 0; x < height; x++) {
      vf scalar = vf_set1(a[x][t]);
      VEC_UNROLL for (int v = 0; v < vectors; v++) sum[x][v] = vf_fma(scalar, b[v], sum[x][v]);
    }
  }
  VEC_UNROLL for (int x = 0; x < height; x++)
    VEC_UNROLL for (int v = 0; v < vectors; v++)
      if (x < rows)
        vf_store_mask(p->c + (x0 + x) * p->ldc + j0 + v * VEC_WIDTH, v == vectors - 1 ? tail : full,
                      sum[x][v]);
}

/* All rows of the columns from j0 that `vectors` registers hold. */
VEC_INLINE void outer_columns(const outer_t *p, outer_start_t start, int vectors, int64_t j0) {
  int64_t x = 0;
  for (; x + 4 < p->rows; x += 6) outer_block(p, start, 6, vectors, x, j0);
  if (x + 2 < p->rows) outer_block(p, start, 4, vectors, x, j0);
  else if (x < p->rows) outer_block(p, start, 2, vectors, x, j0);
}

VEC_INLINE void outer_run(const outer_t *p, outer_start_t start) {
  for (int64_t j = 0; j < p->columns; j += OUTER_VECTORS * VEC_WIDTH)
    switch (vec_min(OUTER_VECTORS, vec_blocks(p->columns - j, VEC_WIDTH))) {
      case 1: outer_columns(p, start, 1, j); break;
      case 2: outer_columns(p, start, 2, j); break;
#if VEC_AVX512
      case 3: outer_columns(p, start, 3, j); break;
      default: outer_columns(p, start, 4, j); break;
#endif
    }
}

#endif
