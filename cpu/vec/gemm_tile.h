/* The register kernel of products, of numbers (gemm_kernel.c) and of pairs of bf16 (gemm_bf16.c):
 * d[rows, GEMM_NR] = a [k, rows] . b [k, GEMM_NR] + sum + c from panels, with all sums in
 * registers; each is a chain of fused multiply-adds in order of k.
 *
 * Between its steps it requests from memory what is needed soon: a few requests at a time leave the
 * loads of the panels undisturbed, where many in a row hold them up. */
#ifndef NN_CPU_VEC_GEMM_TILE_H
#define NN_CPU_VEC_GEMM_TILE_H

#include "vec/gemm.h"

/* sum + a b, lane by lane. */
typedef vf (*gemm_fma_fn)(vf a, vf b, vf sum);

VEC_INLINE void gemm_tile_add(const int rows, vf acc[GEMM_MR][2], const float *c, int64_t ldc) {
  VEC_UNROLL for (int i = 0; i < GEMM_MR; i++) {
    if (i >= rows) continue;
    acc[i][0] = vf_add(acc[i][0], vf_load(c));
    acc[i][1] = vf_add(acc[i][1], vf_load(c + VEC_WIDTH));
    c += ldc;
  }
}

typedef void (*gemm_put_fn)(float *p, vf x);

VEC_INLINE void gemm_tile_put(const int rows, vf acc[GEMM_MR][2], float *d, int64_t ldd,
                              gemm_put_fn put) {
  VEC_UNROLL for (int i = 0; i < GEMM_MR; i++) {
    if (i >= rows) continue;
    put(d, acc[i][0]);
    put(d + VEC_WIDTH, acc[i][1]);
    d += ldd;
  }
}

/* rows and fma are constants where this is called, so that the loops unroll (all to GEMM_MR, which
 * compilers agree on) and acc becomes registers: 2 rows + 3 of the 32 (AVX-512) or 16 (AVX2). */
VEC_INLINE void gemm_tile(const int rows, const gemm_panels_t *panels, gemm_run_t **runs,
                          gemm_fma_fn fma) {
  const float *a = panels->a, *b = panels->b;
  int64_t lda = panels->lda, ldb = panels->ldb;
  gemm_run_t *run = *runs;
  uintptr_t line = run->line;
  int64_t lines = run->count, request_step = panels->request_step;
  vf acc[GEMM_MR][2];
  VEC_UNROLL for (int i = 0; i < GEMM_MR; i++) acc[i][0] = acc[i][1] = vf_zero();
  for (int64_t left = panels->k; left > 0; left -= request_step) {
    _mm_prefetch((const char *)line, _MM_HINT_T0);
    line += (uintptr_t)run->step;
    if (--lines == 0) {
      run++;
      line = run->line;
      lines = run->count;
    }
    for (int64_t p = vec_min(left, request_step); p > 0; p--) {
      vf b0 = vf_load(b), b1 = vf_load(b + VEC_WIDTH);
      VEC_UNROLL for (int i = 0; i < GEMM_MR; i++) {
        if (i >= rows) continue;
        vf x = vf_set1(a[i]);
        acc[i][0] = fma(x, b0, acc[i][0]);
        acc[i][1] = fma(x, b1, acc[i][1]);
      }
      a += lda;
      b += ldb;
    }
  }
  run->line = line, run->count = lines;
  *runs = run;
  if (panels->sum) gemm_tile_add(rows, acc, panels->sum, GEMM_NR);
  if (panels->c) gemm_tile_add(rows, acc, panels->c, panels->ldc);
  if (panels->bypass) gemm_tile_put(rows, acc, panels->d, panels->ldd, vf_store_bypass);
  else gemm_tile_put(rows, acc, panels->d, panels->ldd, vf_store);
}

/* A function for each height: in one, compilers would merge them into a loop over memory. */
typedef void (*gemm_kernel_fn)(const gemm_panels_t *panels, gemm_run_t **runs);

#endif
