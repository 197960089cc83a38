/* Dense products by cuBLASLt, in its column-major view: d^T [n, m] = op(b)^T [n, k] op(a)^T [k, m].
 * alpha, bias, c and, in 16 bits, GELU go into the product; where alpha is not 1, a bias follows
 * it, for cuBLASLt does not multiply that. In fp32 GELU follows it, for cuBLASLt's tanh is good to
 * fewer bits. A product keeps its algorithm in a table of plans, so that the search for one is made
 * once. Few rows against a weight are streamed by rows.cu. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../kernel.cuh"
#include "matmul.h"

enum { PLANS = 512 };
static const size_t WORKSPACE_BYTES = 32 << 20; /* what cuBLAS advises for Hopper */

/* All that an algorithm depends on. */
typedef struct matmul_key {
  int64_t m, n, k, lda, ldb, ldc, ldd;
  int32_t trans_a, trans_b, a_dtype, b_dtype, d_dtype, bias, adds, epilogue, aux, alignment;
  int32_t fast; /* fp32 may go through TF32 */
} matmul_key_t;

typedef struct matmul_plan {
  matmul_key_t key;
  int32_t used;
  int32_t found; /* 0: cuBLASLt has none, so the plain kernel does it */
  cublasLtMatmulDesc_t what;
  cublasLtMatrixLayout_t a, b, c, d; /* as cuBLASLt names them: a is the operation's b */
  cublasLtMatmulAlgo_t algorithm;
} matmul_plan_t;

struct matmul_plans {
  matmul_plan_t at[PLANS];
};

/* Whether the device works. A recorded stream may not be asked. */
static cudaError_t matmul_look(const backend_device_t *device) {
  cudaStreamCaptureStatus recorded;
  cudaError_t error = cudaStreamIsCapturing(device->stream, &recorded);
  if (error == cudaSuccess && recorded == cudaStreamCaptureStatusNone)
    error = cudaStreamQuery(device->stream);
  cudaGetLastError();
  return error == cudaErrorNotReady ? cudaSuccess : error;
}

/* cuBLASLt's statuses do not tell a lost device from a call that it refuses. */
static nn_status_t matmul_check(backend_device_t *device, cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return NN_OK;
  CUDA_TRY(cuda_check(device, "matmul", matmul_look(device)));
  char what[128];
  snprintf(what, sizeof what, "cuBLASLt: %s", cublasLtGetStatusName(status));
  bool memory = status == CUBLAS_STATUS_ALLOC_FAILED;
  return cuda_fail(device, memory ? NN_ERR_MEMORY : NN_ERR_DEVICE, "matmul", what);
}

nn_status_t cuda_matmul_open(backend_device_t *device) {
  device->plans = (matmul_plans_t *)calloc(1, sizeof(matmul_plans_t));
  if (!device->plans)
    return cuda_fail(device, NN_ERR_MEMORY, "open", "host memory could not be had");
  return matmul_check(device, cublasLtCreate(&device->lt));
}

static void plan_clear(matmul_plan_t *plan) {
  if (plan->what) cublasLtMatmulDescDestroy(plan->what);
  if (plan->a) cublasLtMatrixLayoutDestroy(plan->a);
  if (plan->b) cublasLtMatrixLayoutDestroy(plan->b);
  if (plan->c) cublasLtMatrixLayoutDestroy(plan->c);
  if (plan->d) cublasLtMatrixLayoutDestroy(plan->d);
  memset(plan, 0, sizeof *plan);
}

void cuda_matmul_close(backend_device_t *device) {
  for (int i = 0; device->plans && i < PLANS; i++) plan_clear(&device->plans->at[i]);
  free(device->plans);
  device->plans = NULL;
  if (device->lt) cublasLtDestroy(device->lt);
  device->lt = NULL;
}

size_t cuda_matmul_scratch(const backend_device_t *, const backend_limits_t *) {
  return WORKSPACE_BYTES;
}

/* ---- plans ----------------------------------------------------------------------------------- */

static cudaDataType_t matmul_type(int32_t dtype) {
  return dtype == NN_BF16 ? CUDA_R_16BF : dtype == NN_F16 ? CUDA_R_16F : CUDA_R_32F;
}

/* The largest power of two, at most 16, that divides all addresses. The bias's counts: whether
 * cuBLASLt multiplies may depend on it, and a plan that fails once is not tried again. */
static int32_t matmul_alignment(const op_matmul_t *op) {
  uintptr_t all = (uintptr_t)op->a | (uintptr_t)op->b | (uintptr_t)op->c | (uintptr_t)op->d |
                  (uintptr_t)op->bias | (uintptr_t)op->aux | 16;
  return (int32_t)(all & (~all + 1));
}

static matmul_key_t matmul_key(const op_matmul_t *op, int32_t epilogue, bool fast) {
  matmul_key_t key;
  memset(&key, 0, sizeof key); /* compared whole */
  key.m = op->m, key.n = op->n, key.k = op->k;
  key.lda = op->lda, key.ldb = op->ldb, key.ldd = op->ldd, key.ldc = op->c ? op->ldc : op->ldd;
  key.trans_a = op->trans_a, key.trans_b = op->trans_b;
  key.a_dtype = op->a_dtype, key.b_dtype = op->b_dtype, key.d_dtype = op->d_dtype;
  key.bias = op->bias != NULL, key.adds = op->c != NULL;
  key.epilogue = epilogue, key.aux = epilogue != MATMUL_NONE && op->aux;
  key.alignment = matmul_alignment(op);
  key.fast = fast;
  return key;
}

static cublasLtEpilogue_t plan_epilogue(const matmul_key_t *key) {
  if (key->epilogue == MATMUL_GELU_BWD) return CUBLASLT_EPILOGUE_DGELU;
  if (key->epilogue == MATMUL_NONE)
    return key->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  if (key->aux) return key->bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
  return key->bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
}

static cublasStatus_t plan_describe(matmul_plan_t *plan) {
  const matmul_key_t *key = &plan->key;
  cublasComputeType_t compute = key->fast ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  cublasOperation_t op_a = key->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublasOperation_t op_b = key->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  cudaDataType_t a = matmul_type(key->b_dtype), b = matmul_type(key->a_dtype);
  cudaDataType_t d = matmul_type(key->d_dtype);
#define LT_TRY(call)                                  \
  do {                                                \
    cublasStatus_t status_ = (call);                  \
    if (status_ != CUBLAS_STATUS_SUCCESS) return status_; \
  } while (0)
#define LT_SET(attribute, value) \
  LT_TRY(cublasLtMatmulDescSetAttribute(plan->what, attribute, &(value), sizeof(value)))
  LT_TRY(cublasLtMatmulDescCreate(&plan->what, compute, CUDA_R_32F));
  LT_SET(CUBLASLT_MATMUL_DESC_TRANSA, op_a);
  LT_SET(CUBLASLT_MATMUL_DESC_TRANSB, op_b);
  cublasLtEpilogue_t epilogue = plan_epilogue(key);
  LT_SET(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  if (key->aux) LT_SET(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, key->ldd);
  uint64_t m = (uint64_t)key->m, n = (uint64_t)key->n, k = (uint64_t)key->k;
  LT_TRY(cublasLtMatrixLayoutCreate(&plan->a, a, key->trans_b ? k : n, key->trans_b ? n : k,
                                    key->ldb));
  LT_TRY(cublasLtMatrixLayoutCreate(&plan->b, b, key->trans_a ? m : k, key->trans_a ? k : m,
                                    key->lda));
  LT_TRY(cublasLtMatrixLayoutCreate(&plan->c, d, n, m, key->ldc));
  return cublasLtMatrixLayoutCreate(&plan->d, d, n, m, key->ldd);
}

/* Asks for the algorithm. Only reductions in a fixed order, through the workspace, are taken. */
static cublasStatus_t plan_choose(const backend_device_t *device, matmul_plan_t *plan) {
  cublasLtMatmulPreference_t wish = NULL;
  LT_TRY(cublasLtMatmulPreferenceCreate(&wish));
  size_t workspace = WORKSPACE_BYTES;
  uint32_t reductions =
      CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
  uint32_t alignment = (uint32_t)plan->key.alignment;
  const cublasLtMatmulPreferenceAttributes_t alignments[] = {
      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
  cublasStatus_t status = cublasLtMatmulPreferenceSetAttribute(
      wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
  if (status == CUBLAS_STATUS_SUCCESS)
    status = cublasLtMatmulPreferenceSetAttribute(
        wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
  for (int i = 0; i < 4 && status == CUBLAS_STATUS_SUCCESS; i++)
    status =
        cublasLtMatmulPreferenceSetAttribute(wish, alignments[i], &alignment, sizeof alignment);
  cublasLtMatmulHeuristicResult_t result;
  int count = 0;
  if (status == CUBLAS_STATUS_SUCCESS)
    status = cublasLtMatmulAlgoGetHeuristic(device->lt, plan->what, plan->a, plan->b, plan->c,
                                            plan->d, wish, 1, &result, &count);
  cublasLtMatmulPreferenceDestroy(wish);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || (status == CUBLAS_STATUS_SUCCESS && count == 0))
    return CUBLAS_STATUS_SUCCESS;
  if (status == CUBLAS_STATUS_SUCCESS) plan->found = 1, plan->algorithm = result.algo;
  return status;
}

/* The plan of a key, found or made. A full neighbourhood gives up its first entry. */
static nn_status_t matmul_plan(backend_device_t *device, const matmul_key_t *key,
                               matmul_plan_t **plan) {
  enum { NEIGHBOURS = 8 };
  uint64_t hash = 14695981039346656037u; /* FNV-1a (Fowler, Noll and Vo) */
  for (size_t i = 0; i < sizeof *key; i++)
    hash = (hash ^ ((const unsigned char *)key)[i]) * 1099511628211u;
  matmul_plan_t *at = NULL;
  for (uint64_t i = 0; i < NEIGHBOURS; i++) {
    at = &device->plans->at[(hash + i) % PLANS];
    if (!at->used) break;
    if (!memcmp(&at->key, key, sizeof *key)) {
      *plan = at;
      return NN_OK;
    }
    if (i == NEIGHBOURS - 1) at = &device->plans->at[hash % PLANS];
  }
  plan_clear(at);
  at->key = *key;
  cublasStatus_t status = plan_describe(at);
  if (status == CUBLAS_STATUS_SUCCESS) status = plan_choose(device, at);
  if (status != CUBLAS_STATUS_SUCCESS) {
    plan_clear(at);
    return matmul_check(device, status);
  }
  at->used = 1;
  *plan = at;
  return NN_OK;
}

/* ---- the operation --------------------------------------------------------------------------- */

/* The product with an epilogue; done is 0 where cuBLASLt has none like it. */
static nn_status_t matmul_product(backend_device_t *device, const op_matmul_t *op, int32_t epilogue,
                                  bool fast, void *d, backend_scratch_t scratch, bool *done) {
  matmul_key_t key = matmul_key(op, epilogue, fast && op->a_dtype == NN_F32);
  matmul_plan_t *plan = NULL;
  CUDA_TRY(matmul_plan(device, &key, &plan));
  *done = false;
  if (!plan->found || (op->bias && op->b_dtype != op->d_dtype)) /* a bias is of d's type there */
    return NN_OK;
  const struct {
    int32_t wanted;
    cublasLtMatmulDescAttributes_t attribute;
    const void *pointer;
  } pointers[] = {{key.bias, CUBLASLT_MATMUL_DESC_BIAS_POINTER, op->bias},
                  {key.aux, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, op->aux}};
  for (int i = 0; i < 2; i++)
    if (pointers[i].wanted)
      CUDA_TRY(matmul_check(device, cublasLtMatmulDescSetAttribute(
                                        plan->what, pointers[i].attribute, &pointers[i].pointer,
                                        sizeof pointers[i].pointer)));
  const float alpha = backend_factor(op->alpha), one = 1, zero = 0;
  size_t workspace = scratch.bytes < WORKSPACE_BYTES ? scratch.bytes : WORKSPACE_BYTES;
  cublasStatus_t status =
      cublasLtMatmul(device->lt, plan->what, &alpha, op->b, plan->a, op->a, plan->b,
                     op->c ? &one : &zero, op->c ? op->c : d, plan->c, d, plan->d, &plan->algorithm,
                     scratch.data, workspace, device->stream);
  *done = status != CUBLAS_STATUS_NOT_SUPPORTED;
  if (*done) return matmul_check(device, status);
  plan->found = 0; /* seen with odd strides of bf16: the search knew no better */
  return NN_OK;
}

/* What alpha and a bias make of the product goes to d without the bias first, rounded, and takes
 * the bias and the rest of the epilogue from there. */
static nn_status_t matmul_scaled_bias(backend_device_t *device, const op_matmul_t *op,
                                      backend_scratch_t scratch) {
  op_matmul_t product = *op;
  product.bias = NULL, product.epilogue = MATMUL_NONE;
  if (op->epilogue == MATMUL_GELU && op->aux) product.d = op->aux;
  CUDA_TRY(cuda_matmul(device, &product, scratch));
  matmul_bias(device, op, product.d);
  if (op->epilogue != MATMUL_NONE) matmul_gelu(device, op, product.d);
  return cuda_launched(device, "matmul");
}

/* The product alone. */
static nn_status_t matmul_bare(backend_device_t *device, const op_matmul_t *op, bool fast, void *d,
                               backend_scratch_t scratch) {
  bool done = true;
  if (matmul_rows_fit(op))
    matmul_rows(device, op, d);
  else
    CUDA_TRY(matmul_product(device, op, MATMUL_NONE, fast, d, scratch, &done));
  if (!done) matmul_plain(device, op, d);
  return NN_OK;
}

nn_status_t matmul_exact(backend_device_t *device, const op_matmul_t *op,
                         backend_scratch_t scratch) {
  CUDA_TRY(matmul_bare(device, op, false, op->d, scratch));
  return cuda_launched(device, "matmul");
}

CUDA_OP(matmul, op_matmul_t) {
  CUDA_TRY(cuda_enter(device, "matmul"));
  if (!op->m || !op->n) return NN_OK;
  bool done = false, fast = device->options.fast_fp32;
  if (op->bias && backend_factor(op->alpha) != 1.0f) return matmul_scaled_bias(device, op, scratch);
  if (op->epilogue != MATMUL_NONE && cuda_is_half(op->d_dtype))
    CUDA_TRY(matmul_product(device, op, op->epilogue, fast, op->d, scratch, &done));
  if (done) return cuda_launched(device, "matmul");
  /* GELU keeps the product in aux where that is wanted. */
  void *product = op->epilogue == MATMUL_GELU && op->aux ? op->aux : op->d;
  CUDA_TRY(matmul_bare(device, op, fast, product, scratch));
  if (op->epilogue != MATMUL_NONE) matmul_gelu(device, op, product);
  return cuda_launched(device, "matmul");
}
