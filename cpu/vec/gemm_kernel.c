/* The register kernel for numbers; the kernel itself is in gemm_tile.h. */
#include "vec/gemm_tile.h"

VEC_INLINE void kernel(const int rows, const gemm_panels_t *panels, gemm_run_t **runs) {
  gemm_tile(rows, panels, runs, vf_fma);
}

static void kernel_1(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(1, panels, runs); }
static void kernel_2(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(2, panels, runs); }
static void kernel_3(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(3, panels, runs); }
static void kernel_4(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(4, panels, runs); }
static void kernel_5(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(5, panels, runs); }
static void kernel_6(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(6, panels, runs); }
#if VEC_AVX512
static void kernel_7(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(7, panels, runs); }
static void kernel_8(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(8, panels, runs); }
static void kernel_9(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(9, panels, runs); }
static void kernel_10(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(10, panels, runs); }
static void kernel_11(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(11, panels, runs); }
static void kernel_12(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(12, panels, runs); }
static void kernel_13(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(13, panels, runs); }
static void kernel_14(const gemm_panels_t *panels, gemm_run_t **runs) { kernel(14, panels, runs); }
#endif

static const gemm_kernel_fn kernels[GEMM_MR] = {
    kernel_1, kernel_2, kernel_3, kernel_4, kernel_5, kernel_6,
#if VEC_AVX512
    kernel_7, kernel_8, kernel_9, kernel_10, kernel_11, kernel_12, kernel_13, kernel_14,
#endif
};

void VEC(gemm_kernel)(int64_t rows, const gemm_panels_t *panels, gemm_run_t **runs) {
  kernels[rows - 1](panels, runs);
}
