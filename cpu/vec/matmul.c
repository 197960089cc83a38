/* op_matmul: d = epilogue(alpha (op(a) op(b) + bias) + c) by one product; alpha, bias, c and the
 * epilogue are applied once to the whole sum, tile by tile. */
#include "vec/gemm.h"

/* gelu_tanh(v) = v sigmoid(2u) with u = sqrt(2 / pi) (v + 0.044715 v^3). */
VEC_INLINE vf gelu_gate(vf v) {
  const float twice = 1.5957691216f; /* 2 sqrt(2 / pi) */
  vf inner = vf_fma(vf_mul(v, v), vf_set1(twice * 0.044715f), vf_set1(twice));
  return vf_sigmoid(vf_mul(v, inner));
}

VEC_INLINE vf gelu(vf v) { return vf_mul(v, gelu_gate(v)); }

/* gelu' = s + v s (1 - s) 2u', s = sigmoid(2u), 2u' = 2 sqrt(2 / pi) (1 + 3 . 0.044715 v^2). */
VEC_INLINE vf gelu_slope(vf v) {
  const float twice = 1.5957691216f;
  vf s = gelu_gate(v);
  vf du = vf_fma(vf_mul(v, v), vf_set1(twice * 3.0f * 0.044715f), vf_set1(twice));
  return vf_fma(vf_mul(vf_mul(v, s), vf_sub(vf_set1(1.0f), s)), du, s);
}

/* The vector at (i, j) of d, which is of dtype, or the `left` elements that there are. */
VEC_INLINE void matmul_finish(const op_matmul_t *op, int64_t i, int64_t j, int64_t left, vf v,
                              int32_t dtype) {
  int64_t at = i * op->ldd + j;
  if (op->bias) v = vf_add(v, vf_load_as_next(op->bias, j, left, op->b_dtype));
  if (op->alpha != 0.0f) v = vf_mul(v, vf_set1(op->alpha));
  if (op->c) v = vf_add(v, vf_load_as_next(op->c, i * op->ldc + j, left, dtype));
  if (op->epilogue == MATMUL_GELU) {
    if (op->aux) vf_store_as_next(op->aux, at, left, dtype, v);
    v = gelu(v);
  } else if (op->epilogue == MATMUL_GELU_BWD) {
    v = vf_mul(v, gelu_slope(vf_load_as_next(op->aux, at, left, dtype)));
  }
  vf_store_as_next(op->d, at, left, dtype, v);
}

VEC_INLINE void matmul_rows(const op_matmul_t op, int64_t i, int64_t rows, int64_t j,
                            int64_t columns, const float *tile, int32_t dtype) {
  for (int64_t r = 0; r < rows; r++, tile += GEMM_NR)
    for (int64_t q = 0; q < columns; q += VEC_WIDTH)
      matmul_finish(&op, i + r, j + q, columns - q, vf_load(tile + q), dtype);
}

static void matmul_store(void *context, int64_t group, int64_t i, int64_t rows, int64_t j,
                         int64_t columns, const float *tile) {
  const op_matmul_t op = *(const op_matmul_t *)context; /* which what is stored cannot change */
  (void)group;
  VEC_BY_ACT(op.d_dtype, matmul_rows(op, i, rows, j, columns, tile, VEC_ACT));
}

nn_status_t VEC(matmul)(backend_device_t *device, const op_matmul_t *op,
                        backend_scratch_t scratch) {
  op_matmul_t args = *op; /* the store function's context is not const */
  int plain = !op->bias && op->alpha == 0.0f && op->epilogue == MATMUL_NONE;
  const void *reads = op->epilogue == MATMUL_GELU_BWD ? op->aux : op->c;
  gemm_group_t group = {
      .m = op->m,
      .n = op->n,
      .k = op->k,
      .a = {.data = op->a, .ld = op->lda, .dtype = op->a_dtype, .along_k = op->trans_a},
      .b = {.data = op->b, .ld = op->ldb, .dtype = op->b_dtype, .along_k = !op->trans_b},
      .c = reads,
      .ldc = reads == op->c ? op->ldc : op->ldd,
      .d = op->d,
      .ldd = op->ldd,
      .d_dtype = op->d_dtype};
  gemm_t gemm = {.groups = &group,
                 .count = 1,
                 .store = plain ? NULL : matmul_store,
                 .context = &args,
                 .scratch = scratch.data,
                 .rounds = op->b_dtype == NN_BF16};
  return VEC(gemm_run)(device, &gemm);
}
