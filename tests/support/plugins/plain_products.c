/* Preloaded, it leaves cuBLASLt without an algorithm for any product, so that cuda/ops/plain.cu
 * makes them all: for tools that take cuBLASLt's own kernels for faulty. */
#include <cublasLt.h>

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t what,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t wish, int room,
                                              cublasLtMatmulHeuristicResult_t *result,
                                              int *count) {
  (void)handle, (void)what, (void)a, (void)b, (void)c, (void)d, (void)wish, (void)room;
  (void)result;
  *count = 0;
  return CUBLAS_STATUS_NOT_SUPPORTED;
}
