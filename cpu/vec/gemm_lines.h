/* Streaming for one or two rows of x: rows of w from far are read in the order of memory and
 * without requests, as fast as memory gives them. Two rows of x meet one row of w at once; so does
 * one row of x, twice, which is faster than once; where w is a pair of matrices or x is long, it
 * meets two rows of w that are half a tile apart. Both kinds of products share this. */
#ifndef NN_CPU_VEC_GEMM_LINES_H
#define NN_CPU_VEC_GEMM_LINES_H

#include "vec/gemm.h"

enum {
  LINES_X = 2,            /* most rows of x */
  LINES_BYTES = 12 << 10, /* and most of their bytes, which are read again for each row of w */
  LINES_LONG = 8 << 10,   /* bytes of one row from which on these readings tell */
  LINES_W = 4,            /* rows of w whose lanes are added together */
  LINES_CHAINS = 2        /* sums at once for each, none of which waits for another */
};

/* x_bytes: of a row of x. */
static inline int gemm_by_lines(const gemm_group_t *group, int64_t x_bytes) {
  return group->m <= LINES_X && group->m * x_bytes <= LINES_BYTES && gemm_far(group);
}

/* From a row of w, in an array of a tile's, to the one that is read at the same time; 0: to none. */
static inline int64_t gemm_lines_apart(const gemm_group_t *group, int64_t x_bytes) {
  return group->m == 1 && (group->b.pair || x_bytes > LINES_LONG) ? VEC_WIDTH : 0;
}

/* As gemm_rows, in whole fours, and as many that are read at the same time: a row that is not there
 * is another one again, whose sums are not used. */
VEC_APART int64_t gemm_lines_rows(const gemm_operand_t *operand, int64_t j, int64_t left,
                                  int64_t apart, const void **row) {
  int64_t rows = gemm_rows(operand, j, left, row), i = rows;
  for (; rows && i % LINES_W; i++) row[i] = row[rows - 1];
  if (!apart) return rows;
  for (int64_t r = gemm_rows(operand, j + apart, left - apart, row + apart); r < i; r++)
    row[apart + r] = row[r];
  return rows;
}

/* acc + the products of up to so many numbers, of `left`, from number p on. */
typedef vf (*gemm_line_fn)(vf acc, const void *x, const void *w, int64_t p, int64_t left,
                           int32_t dtype);

/* tile[i, j] for LINES_X rows of x, which may be the same one, and LINES_W rows of w; or, where
 * these have others so far `apart`, tile[0, j] and tile[0, apart + j] for the one row of x. Chain c
 * of a sum has each so many-th vector of `numbers` from c on, the first one also what is left. */
VEC_INLINE void gemm_lines(const int64_t numbers, const void *const *x, const void *const *w,
                           int64_t apart, int64_t k, int32_t dtype, gemm_line_fn add,
                           float *tile) {
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
          acc[i][c] = add(acc[i][c], x[i], row[i], p + c * numbers, numbers, dtype);
    for (; p < k; p += numbers)
      VEC_UNROLL for (int i = 0; i < LINES_X; i++)
        acc[i][0] = add(acc[i][0], x[i], row[i], p, k - p, dtype);
    VEC_UNROLL for (int i = 0; i < LINES_X; i++) sum[i][j] = vf_add(acc[i][0], acc[i][1]);
  }
  VEC_UNROLL for (int i = 0; i < LINES_X; i++)
    _mm_storeu_ps(tile + i * (apart ? apart : GEMM_NR), vf_sum4(sum[i]));
}

#endif
