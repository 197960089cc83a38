/* Packing: rows or columns of an operand as out[k, width], so that the kernel reads both of its
 * panels from end to end. Copies without arithmetic; 16 bits are widened. Rows along k are copied,
 * rows along the product are transposed in registers, VEC_WIDTH x VEC_WIDTH at a time.
 *
 * Each row gives a run that is too short for the processor to foresee the next one, so the same
 * place of a row to come is requested from memory. */
#include "vec/gemm.h"

/* Requests the vector that lies `ahead` bytes behind element i of a row; it need not exist. */
VEC_INLINE void pack_request(const void *row, int64_t i, int64_t ahead, int32_t dtype) {
  int64_t size = vec_dtype_bytes(dtype);
  _mm_prefetch((const char *)((uintptr_t)row + (uintptr_t)(i * size + ahead)), _MM_HINT_T0);
}

/* Transposes `steps` columns from element k0 on of `rows` rows. Each store is a whole vector:
 * what it writes beyond the panel's width is overwritten by the next one or lies in the slack. */
VEC_INLINE void pack_square(const void *const *row, int64_t rows, int64_t ahead, int64_t k0,
                            int64_t steps, int32_t dtype, int64_t width, float *out) {
  vf r[VEC_WIDTH];
  VEC_UNROLL for (int i = 0; i < VEC_WIDTH; i++) {
    r[i] = vf_zero();
    if (i >= rows) continue;
    pack_request(row[i], k0, ahead, dtype);
    r[i] = vf_load_as_next(row[i], k0, steps, dtype);
  }
  vf_transpose(r);
  VEC_UNROLL for (int i = 0; i < VEC_WIDTH; i++)
    if (i < steps) vf_store(out + i * width, r[i]);
}

/* The same, once for all dtypes: what k leaves is rare, and its code is long. */
VEC_APART void pack_rest(const void *const *row, int64_t rows, int64_t ahead, int64_t k0,
                         int64_t steps, int32_t dtype, int64_t width, float *out) {
  pack_square(row, rows, ahead, k0, steps, dtype, width, out);
}

/* The same of whole fp32 rows. */
VEC_INLINE void pack_square_f32(const void *const *row, int64_t k0, int64_t width, float *out) {
  const float *at[VEC_WIDTH];
  vf r[VEC_WIDTH];
  VEC_UNROLL for (int i = 0; i < VEC_WIDTH; i++) at[i] = (const float *)row[i] + k0;
  vf_load_columns(at, r);
  VEC_UNROLL for (int i = 0; i < VEC_WIDTH; i++) vf_store(out + i * width, r[i]);
}

/* The same of rows that are ld elements apart, for whole squares of k. Every fourth row has a
 * pointer: more would not stay in registers. */
VEC_INLINE void pack_even_f32(const float *row, int64_t ld, int64_t k, int64_t width, float *out) {
  const float *fourth[VEC_WIDTH / 4];
  VEC_UNROLL for (int i = 0; i < VEC_WIDTH / 4; i++) fourth[i] = row + 4 * i * ld;
  for (; k >= VEC_WIDTH; k -= VEC_WIDTH, out += VEC_WIDTH * width) {
    vf r[VEC_WIDTH];
    VEC_UNROLL for (int i = 0; i < VEC_WIDTH; i++) r[i] = vf_load(fourth[i / 4] + i % 4 * ld);
    vf_transpose(r);
    VEC_UNROLL for (int i = 0; i < VEC_WIDTH; i++) vf_store(out + i * width, r[i]);
    VEC_UNROLL for (int i = 0; i < VEC_WIDTH / 4; i++) fourth[i] += VEC_WIDTH;
  }
}

VEC_INLINE void pack_rows(const void *const *row, int64_t rows, int64_t ahead, int64_t width,
                          int64_t k0, int64_t k, int32_t dtype, float *out) {
  int64_t p = 0;
  if (rows == VEC_WIDTH && dtype == NN_F32)
    for (; p + VEC_WIDTH <= k; p += VEC_WIDTH) pack_square_f32(row, k0 + p, width, out + p * width);
  for (; p + VEC_WIDTH <= k; p += VEC_WIDTH)
    pack_square(row, rows, ahead, k0 + p, VEC_WIDTH, dtype, width, out + p * width);
  if (p < k) pack_rest(row, rows, ahead, k0 + p, k - p, dtype, width, out + p * width);
}

/* Copies GEMM_NR elements, of which `count` exist, of each of k rows from element `first` on. */
VEC_INLINE void pack_columns_b(const gemm_operand_t *operand, int64_t ahead, int64_t first,
                               int64_t count, int64_t k0, int64_t k, int32_t dtype, float *out) {
  int64_t low = vec_min(count, VEC_WIDTH), high = count - low;
  for (int64_t p = 0; p < k; p++, out += GEMM_NR) {
    const void *row = gemm_row(operand, k0 + p);
    pack_request(row, first, ahead, dtype);
    pack_request(row, first + VEC_WIDTH, ahead, dtype);
    vf_store(out, vf_load_as_next(row, first, low, dtype));
    vf_store(out + VEC_WIDTH, vf_load_as_next(row, first + low, high, dtype));
  }
}

/* Copies count elements, at most a vector, of each of k > 0 rows from element `first` on. Whole
 * vectors are stored as long as the next row will be written over what is too much. */
VEC_INLINE void pack_columns_a(const gemm_operand_t *operand, int64_t ahead, int64_t first,
                               int64_t count, int64_t k0, int64_t k, int32_t dtype, float *out) {
  for (int64_t p = 0; p + 1 < k; p++, out += count) {
    const void *row = gemm_row(operand, k0 + p);
    pack_request(row, first, ahead, dtype);
    vf_store(out, vf_load_as_part(row, first, count, dtype));
  }
  const void *row = gemm_row(operand, k0 + k - 1);
  vf_store_part(out, count, vf_load_as_part(row, first, count, dtype));
}

VEC_INLINE void pack_along_product(const gemm_operand_t *operand, int64_t first, int64_t count,
                           int64_t width, int64_t k0, int64_t k, int32_t dtype, float *out) {
  int64_t ahead = VEC_WIDTH * operand->ld * vec_dtype_bytes(dtype), even;
  for (int64_t q = 0; q < width; q += VEC_WIDTH) {
    if (width == GEMM_NR && dtype == NN_F32 && count - q >= VEC_WIDTH && k % VEC_WIDTH == 0) {
      const float *at = gemm_even_rows(operand, first + q, &even);
      if (even >= VEC_WIDTH) {
        pack_even_f32(at + k0, operand->ld, k, GEMM_NR, out + q);
        continue;
      }
    }
    const void *row[VEC_WIDTH];
    int64_t rows = count > q ? gemm_rows(operand, first + q, count - q, row) : 0;
    /* What lies beyond a panel of a need not be 0: its last row again makes the square whole. */
    if (width < VEC_WIDTH)
      for (; rows < VEC_WIDTH; rows++) row[rows] = row[rows - 1];
    pack_rows(row, rows, ahead, width, k0, k, dtype, out + q);
  }
}

VEC_INLINE void pack_along_k(const gemm_operand_t *operand, int64_t first, int64_t count,
                             int64_t width, int64_t k0, int64_t k, int32_t dtype, float *out) {
  int64_t ahead = GEMM_PACK_STEP * operand->ld * vec_dtype_bytes(dtype);
  if (width == GEMM_NR)
    pack_columns_b(operand, ahead, first, count, k0, k, dtype, out);
  else
    pack_columns_a(operand, ahead, first, count, k0, k, dtype, out);
}

/* Two functions: runs of rows along k are short and many, and would pay for the registers that the
 * transposition saves and restores. */
VEC_APART void pack_transposed(const gemm_operand_t *operand, int64_t first, int64_t count,
                               int64_t width, int64_t k0, int64_t k, float *out) {
  VEC_BY_DTYPE(operand->dtype,
               pack_along_product(operand, first, count, width, k0, k, VEC_DTYPE, out));
}

VEC_APART void pack_copied(const gemm_operand_t *operand, int64_t first, int64_t count,
                           int64_t width, int64_t k0, int64_t k, float *out) {
  VEC_BY_DTYPE(operand->dtype,
               pack_along_k(operand, first, count, width, k0, k, VEC_DTYPE, out));
}

void VEC(gemm_pack)(const gemm_operand_t *operand, int64_t first, int64_t count, int64_t width,
                    int64_t k0, int64_t k, float *out) {
  (operand->along_k ? pack_copied : pack_transposed)(operand, first, count, width, k0, k, out);
}
