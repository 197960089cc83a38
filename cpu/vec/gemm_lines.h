/* Streaming for one or two rows of x: rows of w from far are read one after the other, in the order
 * of memory and without requests, as fast as memory gives them; where w is a pair of matrices and x
 * one row, in both at once, for two streams far apart come faster than one. Both kinds of products
 * share it. */
#ifndef NN_CPU_VEC_GEMM_LINES_H
#define NN_CPU_VEC_GEMM_LINES_H

#include "vec/gemm.h"

enum {
  LINES_X = 2,            /* most rows of x */
  LINES_BYTES = 12 << 10, /* and most of their bytes, which are read again for each row of w */
  LINES_W = 4,            /* rows of w whose lanes are added together */
  LINES_CHAINS = 2        /* sums at once of a row, for with four it is read more slowly */
};

/* x_bytes: of a row of x. */
static inline int gemm_by_lines(const gemm_group_t *group, int64_t x_bytes) {
  return group->m <= LINES_X && group->m * x_bytes <= LINES_BYTES && gemm_far(group);
}

/* From a row of w to the one that is read at the same time, in an array of a tile's rows; or 0. */
static inline int64_t gemm_lines_apart(const gemm_group_t *group) {
  return group->m == 1 && group->b.pair ? VEC_WIDTH : 0;
}

/* As gemm_rows, in whole fours: a row that is not there is another one again, whose sums are not
 * used. */
VEC_APART int64_t gemm_lines_rows(const gemm_operand_t *operand, int64_t j, int64_t left,
                                  const void **row) {
  int64_t rows = gemm_rows(operand, j, left, row);
  for (int64_t i = rows; rows && i % LINES_W; i++) row[i] = row[rows - 1];
  return rows;
}

/* acc + the products of up to so many numbers, of `left`, from number p on. */
typedef vf (*gemm_line_fn)(vf acc, const void *x, const void *w, int64_t p, int64_t left,
                           int32_t dtype);

/* tile[i, j] for `sums` rows of x (a constant where this is called) and LINES_W rows of w; or, where
 * these have others so far `apart`, tile[0, j] and tile[0, apart + j] for the one row that x[0] and
 * x[1] are. Chain c of a sum has each so many-th vector of `numbers` from c on, the first one also
 * what is left. */
VEC_INLINE void gemm_lines(const int sums, const int64_t numbers, const void *const *x,
                           const void *const *w, int64_t apart, int64_t k, int32_t dtype,
                           gemm_line_fn add, float *tile) {
  vf sum[LINES_X][LINES_W];
  for (int j = 0; j < LINES_W; j++) { /* a loop, for the library's size */
    const void *row[LINES_X] = {w[j], w[j + apart]};
    vf acc[LINES_X][LINES_CHAINS];
    VEC_UNROLL for (int i = 0; i < LINES_X; i++)
      VEC_UNROLL for (int c = 0; c < LINES_CHAINS; c++) acc[i][c] = vf_zero();
    int64_t p = 0;
    for (; p + LINES_CHAINS * numbers <= k; p += LINES_CHAINS * numbers)
      VEC_UNROLL for (int c = 0; c < LINES_CHAINS; c++)
        VEC_UNROLL for (int i = 0; i < LINES_X; i++)
          if (i < sums)
            acc[i][c] = add(acc[i][c], x[i], row[i], p + c * numbers, numbers, dtype);
    for (; p < k; p += numbers)
      VEC_UNROLL for (int i = 0; i < LINES_X; i++)
        if (i < sums) acc[i][0] = add(acc[i][0], x[i], row[i], p, k - p, dtype);
    VEC_UNROLL for (int i = 0; i < LINES_X; i++) sum[i][j] = vf_add(acc[i][0], acc[i][1]);
  }
  VEC_UNROLL for (int i = 0; i < LINES_X; i++)
    if (i < sums) _mm_storeu_ps(tile + i * (apart ? apart : GEMM_NR), vf_sum4(sum[i]));
}

#endif
