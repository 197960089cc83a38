/* The streaming path for few rows, as in decoding: tile[m, GEMM_NR] = x [m, k] . w^T for GEMM_NR
 * rows of w, which are read once, in place, at the speed of memory. Each element is a sum over
 * the lanes of VEC_WIDTH partial sums in order of k, or as gemm_lines.h has it. */
#include "vec/gemm_lines.h"

enum {
  STREAM_W = 4,                       /* rows of w read side by side */
  STREAM_X = VEC_WIDTH == 16 ? 4 : 2, /* rows of x that share a pass over them */
  STREAM_BLOCKS = 3,       /* blocks of STREAM_W rows from one to what it requests, or as many, */
  STREAM_AHEAD = 12 << 10, /* but at least one, as are so many bytes; */
  STREAM_SINGLE = 4 << 10  /* of a single pass over what is near */
};

/* How passes over STREAM_W rows of w request those to come: each its share, so that memory is not
 * idle while other passes multiply. */
typedef struct stream_plan {
  uintptr_t ahead; /* bytes from a row to the one that is requested */
  uintptr_t rest;  /* bytes from rows 0 and 1 to 2 and 3, where there is but one pass; else 0 */
  int far;         /* see gemm_far */
  struct {
    uint8_t first, last; /* rows of a pass; may be the same */
  } share[GEMM_STREAM_ROWS / STREAM_X];
} stream_plan_t;

static stream_plan_t stream_plan(const gemm_group_t *group) {
  int64_t row_bytes = group->b.ld * vec_dtype_bytes(group->b.dtype);
  int64_t passes = vec_blocks(group->m, STREAM_X), block = STREAM_W * row_bytes;
  int far = gemm_far(group);
  int64_t blocks = STREAM_BLOCKS, most = far || passes > 1 ? STREAM_AHEAD : STREAM_SINGLE;
  while (blocks > 1 && blocks * block > most) blocks--;
  stream_plan_t plan = {.ahead = (uintptr_t)(blocks * block), .far = far};
  for (int64_t i = 0; i < passes; i++) {
    plan.share[i].first = (uint8_t)(i * STREAM_W / passes);
    plan.share[i].last = (uint8_t)(((i + 1) * STREAM_W - 1) / passes);
  }
  if (passes > 1) return plan;
  plan.rest = 2 * (uintptr_t)row_bytes;
  plan.share[0].last = 1;
  return plan;
}

/* Adds `count` products (VEC_WIDTH, or fewer at the end) from p on to the sums of x_rows rows of
 * x (a constant where this is called; loops unroll to STREAM_X, which compilers agree on) with
 * STREAM_W rows of w. */
VEC_INLINE void stream_step(const int x_rows, const float *const *x, const void *const *w,
                            int64_t p, int64_t count, const uintptr_t ahead[2], uintptr_t rest,
                            int far, int32_t dtype, vf acc[STREAM_X][STREAM_W]) {
  vf v[STREAM_W];
  VEC_UNROLL for (int j = 0; j < 2; j++) {
    uintptr_t line = ahead[j] + (uintptr_t)(p * vec_dtype_bytes(dtype));
    if (far) _mm_prefetch((const char *)line, _MM_HINT_T1);
    else _mm_prefetch((const char *)line, _MM_HINT_T0);
    if (rest && far) _mm_prefetch((const char *)(line + rest), _MM_HINT_T1);
    else if (rest) _mm_prefetch((const char *)(line + rest), _MM_HINT_T0);
  }
  VEC_UNROLL for (int j = 0; j < STREAM_W; j++) v[j] = vf_load_as_next(w[j], p, count, dtype);
  VEC_UNROLL for (int i = 0; i < STREAM_X; i++) {
    if (i >= x_rows) continue;
    vf u = vf_load_next(x[i] + p, count);
    VEC_UNROLL for (int j = 0; j < STREAM_W; j++) acc[i][j] = vf_fma(u, v[j], acc[i][j]);
  }
}

/* tile[i, j] for x_rows rows of x and STREAM_W rows of w, in pass number `pass` over these. */
VEC_INLINE void stream_dots(const int x_rows, const float *const *rows_of_x,
                            const void *const *rows_of_w, const stream_plan_t *plan, int64_t pass,
                            int64_t k, int32_t dtype, float *tile) {
  const float *x[STREAM_X];
  const void *w[STREAM_W];
  vf acc[STREAM_X][STREAM_W];
  const uintptr_t ahead[2] = {(uintptr_t)rows_of_w[plan->share[pass].first] + plan->ahead,
                              (uintptr_t)rows_of_w[plan->share[pass].last] + plan->ahead};
  const uintptr_t rest = plan->rest;
  const int far = plan->far;
  VEC_UNROLL for (int j = 0; j < STREAM_W; j++) w[j] = rows_of_w[j];
  VEC_UNROLL for (int i = 0; i < STREAM_X; i++) {
    x[i] = rows_of_x[i < x_rows ? i : 0];
    VEC_UNROLL for (int j = 0; j < STREAM_W; j++) acc[i][j] = vf_zero();
  }
  int64_t p = 0;
  for (; p + VEC_WIDTH <= k; p += VEC_WIDTH)
    stream_step(x_rows, x, w, p, VEC_WIDTH, ahead, rest, far, dtype, acc);
  if (p < k) stream_step(x_rows, x, w, p, k - p, ahead, rest, far, dtype, acc);
  VEC_UNROLL for (int i = 0; i < STREAM_X; i++) {
    if (i >= x_rows) continue;
    _mm_storeu_ps(tile + i * GEMM_NR, vf_sum4(acc[i]));
  }
}

/* tile[i, j] for m rows of x and STREAM_W rows of w. */
VEC_INLINE void stream_rows(const float *const *x, int64_t m, const void *const *w,
                            const stream_plan_t *plan, int64_t k, int32_t dtype, float *tile) {
  int64_t pass = 0;
  for (; m >= STREAM_X; m -= STREAM_X, pass++, x += STREAM_X, tile += STREAM_X * GEMM_NR)
    stream_dots(STREAM_X, x, w, plan, pass, k, dtype, tile);
  switch (m) {
    case 1: stream_dots(1, x, w, plan, pass, k, dtype, tile); break;
#if VEC_AVX512
    case 2: stream_dots(2, x, w, plan, pass, k, dtype, tile); break;
    case 3: stream_dots(3, x, w, plan, pass, k, dtype, tile); break;
#endif
    default: break;
  }
}

VEC_INLINE vf stream_line(vf acc, const void *x, const void *w, int64_t p, int64_t left,
                          int32_t dtype) {
  return vf_fma(vf_load_next((const float *)x + p, left), vf_load_as_next(w, p, left, dtype), acc);
}

VEC_INLINE void stream_lines(const float *const *x, int64_t m, const void *const *w,
                             int64_t apart, int64_t k, int32_t dtype, float *tile) {
  const void *row[] = {x[0], x[m - 1]};
  if (m == 1 && !apart) gemm_lines(1, VEC_WIDTH, row, w, 0, k, dtype, stream_line, tile);
  else gemm_lines(2, VEC_WIDTH, row, w, apart, k, dtype, stream_line, tile);
}

void VEC(gemm_stream)(const gemm_group_t *group, int64_t j, int64_t columns, float *tile) {
  const float *x[GEMM_STREAM_ROWS];
  const stream_plan_t plan = stream_plan(group);
  int64_t m = group->m, k = group->k;
  int lines = gemm_by_lines(group, k * (int64_t)sizeof(float));
  int64_t apart = lines ? gemm_lines_apart(group) : 0;
  for (int64_t i = 0; i < m; i++) x[i] = gemm_row(&group->a, i);
  for (int64_t q = 0; q < columns; q += VEC_WIDTH + apart) {
    const void *w[GEMM_NR];
    int64_t rows = gemm_lines_rows(&group->b, j + q, columns - q, w);
    if (apart) gemm_lines_rows(&group->b, j + q + apart, columns - q - apart, w + apart);
    for (int64_t i = 0; i < rows; i += STREAM_W) {
      float *to = tile + q + i;
      if (lines) VEC_BY_DTYPE(group->b.dtype, stream_lines(x, m, w + i, apart, k, VEC_DTYPE, to));
      else VEC_BY_DTYPE(group->b.dtype, stream_rows(x, m, w + i, &plan, k, VEC_DTYPE, to));
    }
  }
}
