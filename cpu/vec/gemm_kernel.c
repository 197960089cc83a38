/* The register kernel: tile[rows, GEMM_NR] (+)= a [rows, k] . b [k, GEMM_NR] from packed panels,
 * with all sums in registers; each is a chain of fused multiply-adds in order of k. */
#include "vec/gemm.h"

/* rows is a constant where this is called, so that the loops unroll (all to GEMM_MR, which
 * compilers agree on) and acc becomes registers: 2 rows + 3 of the 32 (AVX-512) or 16 (AVX2). */
VEC_INLINE void kernel(const int rows, const gemm_panels_t *panels) {
  const float *a = panels->a, *b = panels->b;
  float *tile = panels->tile;
  vf acc[GEMM_MR][2];
  VEC_UNROLL for (int i = 0; i < GEMM_MR; i++) acc[i][0] = acc[i][1] = vf_zero();
  for (int64_t p = panels->k; p > 0; p--) {
    vf b0 = vf_load(b), b1 = vf_load(b + VEC_WIDTH);
    VEC_UNROLL for (int i = 0; i < GEMM_MR; i++) {
      if (i >= rows) continue;
      vf x = vf_set1(a[i]);
      acc[i][0] = vf_fma(x, b0, acc[i][0]);
      acc[i][1] = vf_fma(x, b1, acc[i][1]);
    }
    a += rows;
    b += GEMM_NR;
  }
  VEC_UNROLL for (int i = 0; i < GEMM_MR; i++) {
    if (i >= rows) continue;
    float *row = tile + i * GEMM_NR;
    vf_store(row, panels->accumulate ? vf_add(acc[i][0], vf_load(row)) : acc[i][0]);
    row += VEC_WIDTH;
    vf_store(row, panels->accumulate ? vf_add(acc[i][1], vf_load(row)) : acc[i][1]);
  }
}

/* A function for each height: in one, compilers would merge them into a loop over memory. */
typedef void (*kernel_fn)(const gemm_panels_t *panels);

static void kernel_1(const gemm_panels_t *panels) { kernel(1, panels); }
static void kernel_2(const gemm_panels_t *panels) { kernel(2, panels); }
static void kernel_3(const gemm_panels_t *panels) { kernel(3, panels); }
static void kernel_4(const gemm_panels_t *panels) { kernel(4, panels); }
static void kernel_5(const gemm_panels_t *panels) { kernel(5, panels); }
static void kernel_6(const gemm_panels_t *panels) { kernel(6, panels); }
#if VEC_AVX512
static void kernel_7(const gemm_panels_t *panels) { kernel(7, panels); }
static void kernel_8(const gemm_panels_t *panels) { kernel(8, panels); }
static void kernel_9(const gemm_panels_t *panels) { kernel(9, panels); }
static void kernel_10(const gemm_panels_t *panels) { kernel(10, panels); }
static void kernel_11(const gemm_panels_t *panels) { kernel(11, panels); }
static void kernel_12(const gemm_panels_t *panels) { kernel(12, panels); }
static void kernel_13(const gemm_panels_t *panels) { kernel(13, panels); }
static void kernel_14(const gemm_panels_t *panels) { kernel(14, panels); }
#endif

static const kernel_fn kernels[GEMM_MR] = {
    kernel_1, kernel_2, kernel_3, kernel_4, kernel_5, kernel_6,
#if VEC_AVX512
    kernel_7, kernel_8, kernel_9, kernel_10, kernel_11, kernel_12, kernel_13, kernel_14,
#endif
};

void VEC(gemm_kernel)(int64_t rows, const gemm_panels_t *panels) { kernels[rows - 1](panels); }
