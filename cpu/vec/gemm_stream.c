/* The streaming path for few rows, as in decoding: tile[m, GEMM_NR] = x [m, k] . w^T for GEMM_NR
 * rows of w, which are read once, in place, at the speed of memory. Each element is a sum over
 * the lanes of VEC_WIDTH partial sums in order of k. */
#include "vec/gemm.h"

enum {
  STREAM_W = 4,                      /* rows of w read side by side */
  STREAM_X = VEC_WIDTH == 16 ? 4 : 2 /* rows of x that share a pass over them */
};

/* Adds `count` products (VEC_WIDTH, or fewer at the end) from p on to the sums of x_rows rows of
 * x (a constant where this is called; loops unroll to STREAM_X, which compilers agree on) with
 * STREAM_W rows of w. What lies `ahead` bytes further is requested from memory, if that is not
 * 0. */
VEC_INLINE void stream_step(const int x_rows, const float *const *x, const void *const *w,
                            int64_t p, int64_t count, int64_t ahead, int32_t dtype,
                            vf acc[STREAM_X][STREAM_W]) {
  vf v[STREAM_W];
  VEC_UNROLL for (int j = 0; j < STREAM_W; j++) {
    uintptr_t here = (uintptr_t)w[j] + (uintptr_t)(p * vec_dtype_bytes(dtype));
    if (ahead) _mm_prefetch((const char *)(here + (uintptr_t)ahead), _MM_HINT_T0);
    v[j] = vf_load_as_next(w[j], p, count, dtype);
  }
  VEC_UNROLL for (int i = 0; i < STREAM_X; i++) {
    if (i >= x_rows) continue;
    vf u = vf_load_next(x[i] + p, count);
    VEC_UNROLL for (int j = 0; j < STREAM_W; j++) acc[i][j] = vf_fma(u, v[j], acc[i][j]);
  }
}

/* tile[i, j] for x_rows rows of x and STREAM_W rows of w. */
VEC_INLINE void stream_dots(const int x_rows, const float *const *rows_of_x,
                            const void *const *rows_of_w, int64_t ahead, int64_t k,
                            int32_t dtype, float *tile) {
  const float *x[STREAM_X];
  const void *w[STREAM_W];
  vf acc[STREAM_X][STREAM_W];
  VEC_UNROLL for (int j = 0; j < STREAM_W; j++) w[j] = rows_of_w[j];
  VEC_UNROLL for (int i = 0; i < STREAM_X; i++) {
    x[i] = rows_of_x[i < x_rows ? i : 0];
    VEC_UNROLL for (int j = 0; j < STREAM_W; j++) acc[i][j] = vf_zero();
  }
  int64_t p = 0;
  for (; p + VEC_WIDTH <= k; p += VEC_WIDTH)
    stream_step(x_rows, x, w, p, VEC_WIDTH, ahead, dtype, acc);
  if (p < k) stream_step(x_rows, x, w, p, k - p, ahead, dtype, acc);
  VEC_UNROLL for (int i = 0; i < STREAM_X; i++) {
    if (i >= x_rows) continue;
    _mm_storeu_ps(tile + i * GEMM_NR, vf_sum4(acc[i]));
  }
}

/* tile[i, j] for m rows of x and STREAM_W rows of w, ld elements apart; the first pass requests
 * the rows of w after these. */
VEC_INLINE void stream_rows(const float *const *x, int64_t m, const void *const *w, int64_t ld,
                            int64_t k, int32_t dtype, float *tile) {
  int64_t i = 0, ahead = STREAM_W * ld * vec_dtype_bytes(dtype);
  for (; i + STREAM_X <= m; i += STREAM_X, tile += STREAM_X * GEMM_NR, ahead = 0)
    stream_dots(STREAM_X, x + i, w, ahead, k, dtype, tile);
  switch (m - i) {
    case 1: stream_dots(1, x + i, w, ahead, k, dtype, tile); break;
#if VEC_AVX512
    case 2: stream_dots(2, x + i, w, ahead, k, dtype, tile); break;
    case 3: stream_dots(3, x + i, w, ahead, k, dtype, tile); break;
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
      float *to = tile + q + i;
      VEC_BY_DTYPE(group->b.dtype, stream_rows(x, group->m, w + i, group->b.ld, group->k,
                                               VEC_DTYPE, to));
    }
  }
}
