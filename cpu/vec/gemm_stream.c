/* The streaming path for few rows, as in decoding: tile[m, GEMM_NR] = x [m, k] . w^T for GEMM_NR rows
 * of w, which are read once, in place, at the speed of memory. Each element is a sum over the lanes of
 * VEC_WIDTH partial sums in order of k. */
#include "vec/gemm.h"

enum {
  STREAM_W = 4,                          /* rows of w read side by side */
  STREAM_X = VEC_WIDTH == 16 ? 4 : 2     /* rows of x that share a pass over them */
};

/* tile[i, j] for x_rows rows of x (a constant where this is called; loops unroll to STREAM_X, which
 * compilers agree on) and STREAM_W rows of w, ld elements apart at least. The rows after these are
 * requested from memory on the way. */
VEC_INLINE void stream_dots(const int x_rows, const float *const *x, const void *const *w, int64_t ld,
                            int64_t k, int32_t dtype, float *tile) {
  const int64_t size = dtype == NN_BF16 ? 2 : 4;
  vf acc[STREAM_X][STREAM_W];
#pragma GCC unroll STREAM_X
  for (int i = 0; i < STREAM_X; i++)
#pragma GCC unroll STREAM_W
    for (int j = 0; j < STREAM_W; j++) acc[i][j] = vf_zero();
  for (int64_t p = 0; p < k; p += VEC_WIDTH) {
    vf v[STREAM_W];
#pragma GCC unroll STREAM_W
    for (int j = 0; j < STREAM_W; j++) {
      _mm_prefetch((const char *)w[j] + (STREAM_W * ld + p) * size, _MM_HINT_T0);
      v[j] = vf_load_weight_next(w[j], p, k - p, dtype);
    }
#pragma GCC unroll STREAM_X
    for (int i = 0; i < STREAM_X; i++) {
      if (i >= x_rows) continue;
      vf u = vf_load_next(x[i] + p, k - p);
#pragma GCC unroll STREAM_W
      for (int j = 0; j < STREAM_W; j++) acc[i][j] = vf_fma(u, v[j], acc[i][j]);
    }
  }
#pragma GCC unroll STREAM_X
  for (int i = 0; i < STREAM_X; i++) {
    if (i >= x_rows) continue;
    __m128 low = _mm_hadd_ps(vec_fold_sum(acc[i][0]), vec_fold_sum(acc[i][1]));
    __m128 high = _mm_hadd_ps(vec_fold_sum(acc[i][2]), vec_fold_sum(acc[i][3]));
    _mm_storeu_ps(tile + i * GEMM_NR, _mm_hadd_ps(low, high));
  }
}

VEC_INLINE void stream_rows(const float *const *x, int64_t m, const void *const *w, int64_t ld,
                            int64_t k, int32_t dtype, float *tile) {
  int64_t i = 0;
  for (; i + STREAM_X <= m; i += STREAM_X, tile += STREAM_X * GEMM_NR)
    stream_dots(STREAM_X, x + i, w, ld, k, dtype, tile);
  switch (m - i) {
    case 1: stream_dots(1, x + i, w, ld, k, dtype, tile); break;
#if VEC_AVX512
    case 2: stream_dots(2, x + i, w, ld, k, dtype, tile); break;
    case 3: stream_dots(3, x + i, w, ld, k, dtype, tile); break;
#endif
    default: break;
  }
}

void VEC(gemm_stream)(const gemm_group_t *group, int64_t j, int64_t columns, float *tile) {
  const float *x[GEMM_STREAM_ROWS];
  for (int64_t i = 0; i < group->m; i++) x[i] = gemm_row(&group->a, i);
  for (int64_t q = 0; q < columns; q += VEC_WIDTH) {
    const void *w[VEC_WIDTH];
    int64_t rows = gemm_rows(&group->b, j + q, columns - q, w);
    /* A row that is not there is another one again: its sums are not used. */
    for (int64_t i = rows; rows && i % STREAM_W; i++) w[i] = w[rows - 1];
    for (int64_t i = 0; i < rows; i += STREAM_W) {
      if (group->b.dtype == NN_BF16)
        stream_rows(x, group->m, w + i, group->b.ld, group->k, NN_BF16, tile + q + i);
      else
        stream_rows(x, group->m, w + i, group->b.ld, group->k, NN_F32, tile + q + i);
    }
  }
}
