/* The register kernel for numbers: d[m, GEMM_NR] = sum + a . b + c, any number of rows, as one loop
 * over tiles; each sum is a chain of fused multiply-adds in order of k. Of a, what is needed next
 * is left to the processor to foresee: its rows, or those of its panel of columns, follow each
 * other. Lines of what is packed next are requested between steps. */
#include "vec/gemm.h"

/* Tiles are ROWS_MR x GEMM_NR: the loads of more rows would be fewer, but the end of a tile, where
 * sums are stored and the next ones have not begun, weighs more. */
#if VEC_AVX512
enum { ROWS_MR = 8 };
#else
enum { ROWS_MR = 6 };
#endif
enum { ROWS_FOURTHS = (ROWS_MR + 3) / 4, ROWS_STEPS = 2 };

_Static_assert((int)ROWS_MR * (int)ROWS_STEPS <= (int)GEMM_ROWS_REQUEST,
               "requests come as often as is counted on");

/* Adds `steps` products to each sum. Of a across, every fourth row has a pointer: more would not
 * stay in registers. */
VEC_INLINE void rows_steps(const int rows, const int across, const int steps,
                           const float *fourth[ROWS_FOURTHS], const float **b, int64_t lda,
                           int64_t ldb, vf acc[ROWS_MR][2]) {
  VEC_UNROLL for (int p = 0; p < ROWS_STEPS; p++) {
    if (p >= steps) continue;
    vf b0 = vf_load(*b), b1 = vf_load(*b + VEC_WIDTH);
    VEC_UNROLL for (int i = 0; i < ROWS_MR; i++) {
      if (i >= rows) continue;
      vf x = vf_set1(across ? fourth[i / 4][i % 4 * lda] : fourth[0][i]);
      acc[i][0] = vf_fma(x, b0, acc[i][0]);
      acc[i][1] = vf_fma(x, b1, acc[i][1]);
    }
    *b += ldb;
    VEC_UNROLL for (int i = 0; i < ROWS_FOURTHS; i++) fourth[i] += across ? 1 : lda;
  }
}

VEC_INLINE void rows_add(const int rows, vf acc[ROWS_MR][2], const float *c, int64_t ldc) {
  VEC_UNROLL for (int i = 0; i < ROWS_MR; i++) {
    if (i >= rows) continue;
    acc[i][0] = vf_add(acc[i][0], vf_load(c + i * ldc));
    acc[i][1] = vf_add(acc[i][1], vf_load(c + i * ldc + VEC_WIDTH));
  }
}

VEC_INLINE void rows_load(const int rows, vf acc[ROWS_MR][2], const float *sum) {
  VEC_UNROLL for (int i = 0; i < ROWS_MR; i++) {
    if (i >= rows) continue;
    acc[i][0] = vf_load(sum + i * GEMM_NR);
    acc[i][1] = vf_load(sum + i * GEMM_NR + VEC_WIDTH);
  }
}

VEC_INLINE void rows_request(gemm_run_t *run, gemm_run_t **runs) {
  _mm_prefetch((const char *)run->line, _MM_HINT_T0);
  run->line += (uintptr_t)run->step;
  if (--run->count == 0) *run = *++*runs;
}

/* rows and across are constants where this is called, so that the loops unroll (all to ROWS_MR,
 * which compilers agree on) and acc becomes registers. */
VEC_INLINE void rows_tile(const int rows, const int across, const gemm_panels_t *panels,
                          gemm_run_t **runs) {
  const float *b = panels->b, *fourth[ROWS_FOURTHS];
  gemm_run_t run = **runs;
  int64_t k = panels->k, lda = panels->lda, ldb = panels->ldb;
  const int often = panels->request_step < ROWS_STEPS;
  vf acc[ROWS_MR][2];
  VEC_UNROLL for (int i = 0; i < ROWS_MR; i++) acc[i][0] = acc[i][1] = vf_zero();
  if (panels->sum) rows_load(rows, acc, panels->sum);
  VEC_UNROLL for (int i = 0; i < ROWS_FOURTHS; i++)
    fourth[i] = panels->a + (across && 4 * i < rows ? 4 * i * lda : 0);
  for (; k >= ROWS_STEPS; k -= ROWS_STEPS) {
    if (across) rows_request(&run, runs);
    if (across && often) rows_request(&run, runs);
    rows_steps(rows, across, ROWS_STEPS, fourth, &b, lda, ldb, acc);
  }
  if (across) **runs = run;
  if (k) rows_steps(rows, across, 1, fourth, &b, lda, ldb, acc);
  if (panels->c) rows_add(rows, acc, panels->c, panels->ldc);
  VEC_UNROLL for (int i = 0; i < ROWS_MR; i++) {
    if (i >= rows) continue;
    vf_store(panels->d + i * panels->ldd, acc[i][0]);
    vf_store(panels->d + i * panels->ldd + VEC_WIDTH, acc[i][1]);
  }
}

/* The last m < ROWS_MR rows. */
VEC_INLINE void rows_rest(int64_t m, const int across, const gemm_panels_t *panels,
                          gemm_run_t **runs) {
  switch (m) {
    case 1: rows_tile(1, across, panels, runs); break;
    case 2: rows_tile(2, across, panels, runs); break;
    case 3: rows_tile(3, across, panels, runs); break;
    case 4: rows_tile(4, across, panels, runs); break;
    case 5: rows_tile(5, across, panels, runs); break;
#if VEC_AVX512
    case 6: rows_tile(6, across, panels, runs); break;
    case 7: rows_tile(7, across, panels, runs); break;
#endif
    default: break;
  }
}

VEC_INLINE void rows_all(int64_t m, const int across, const gemm_panels_t *panels,
                         gemm_run_t **runs) {
  gemm_panels_t at = {.k = panels->k, .a = panels->a, .b = panels->b};
  at.sum = panels->sum, at.c = panels->c, at.d = panels->d;
  at.lda = panels->lda, at.ldb = panels->ldb, at.ldc = panels->ldc, at.ldd = panels->ldd;
  at.request_step = panels->request_step;
  for (; m >= ROWS_MR; m -= ROWS_MR) {
    rows_tile(ROWS_MR, across, &at, runs);
    at.a += across ? ROWS_MR * at.lda : ROWS_MR;
    if (at.sum) at.sum += ROWS_MR * GEMM_NR;
    if (at.c) at.c += ROWS_MR * at.ldc;
    at.d += ROWS_MR * at.ldd;
  }
  rows_rest(m, across, &at, runs);
}

static void rows_across(int64_t m, const gemm_panels_t *panels, gemm_run_t **runs) {
  rows_all(m, 1, panels, runs);
}
static void rows_along(int64_t m, const gemm_panels_t *panels, gemm_run_t **runs) {
  rows_all(m, 0, panels, runs);
}

void VEC(gemm_kernel_rows)(int64_t m, int across, const gemm_panels_t *panels, gemm_run_t **runs) {
  (across ? rows_across : rows_along)(m, panels, runs);
}
