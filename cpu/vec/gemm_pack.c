/* Packing: rows or columns of an operand as out[k, width], so that the kernel reads both of its panels
 * from end to end. Copies without arithmetic; bf16 is widened. Rows along k are copied, rows along the
 * product are transposed in registers, VEC_WIDTH x VEC_WIDTH at a time. */
#include "vec/gemm.h"

/* Transposes `steps` columns from element k0 on of `rows` rows. Each store is a whole vector: what it
 * writes beyond the panel's width is overwritten by the next one or lies in the slack. */
VEC_INLINE void pack_square(const void *const *row, int64_t rows, int64_t k0, int64_t steps,
                            int32_t dtype, int64_t width, float *out) {
  vf r[VEC_WIDTH];
#pragma GCC unroll 16
  for (int i = 0; i < VEC_WIDTH; i++)
    r[i] = i < rows ? vf_load_weight_next(row[i], k0, steps, dtype) : vf_zero();
  vf_transpose(r);
#pragma GCC unroll 16
  for (int i = 0; i < VEC_WIDTH; i++)
    if (i < steps) vf_store(out + i * width, r[i]);
}

VEC_INLINE void pack_rows(const void *const *row, int64_t rows, int64_t width, int64_t k0, int64_t k,
                          int32_t dtype, float *out) {
  int64_t p = 0;
  if (rows == VEC_WIDTH)
    for (; p + VEC_WIDTH <= k; p += VEC_WIDTH)
      pack_square(row, VEC_WIDTH, k0 + p, VEC_WIDTH, dtype, width, out + p * width);
  for (; p + VEC_WIDTH <= k; p += VEC_WIDTH)
    pack_square(row, rows, k0 + p, VEC_WIDTH, dtype, width, out + p * width);
  if (p < k) pack_square(row, rows, k0 + p, k - p, dtype, width, out + p * width);
}

/* Copies `count` elements (at most width) of each of k rows from element `first` on. Panels of a are
 * narrower than a vector: whole ones are stored where the next row will be written over the rest. */
VEC_INLINE void pack_columns(const gemm_operand_t *operand, int64_t first, int64_t count,
                             int64_t width, int64_t k0, int64_t k, int32_t dtype, float *out) {
  if (width == GEMM_NR && count == GEMM_NR) {
    for (int64_t p = 0; p < k; p++, out += GEMM_NR) {
      const void *row = gemm_row(operand, k0 + p);
      vf_store(out, vf_load_weight(row, first, dtype));
      vf_store(out + VEC_WIDTH, vf_load_weight(row, first + VEC_WIDTH, dtype));
    }
  } else if (width == GEMM_NR) {
    int64_t low = vec_min(count, VEC_WIDTH), high = count - low;
    for (int64_t p = 0; p < k; p++, out += GEMM_NR) {
      const void *row = gemm_row(operand, k0 + p);
      vf_store(out, vf_load_weight_part(row, first, low, dtype));
      vf_store(out + VEC_WIDTH, vf_load_weight_part(row, first + low, high, dtype));
    }
  } else if (k > 0) {
    for (int64_t p = 0; p + 1 < k; p++, out += width)
      vf_store(out, vf_load_weight_part(gemm_row(operand, k0 + p), first, count, dtype));
    vf_store_part(out, width, vf_load_weight_part(gemm_row(operand, k0 + k - 1), first, count, dtype));
  }
}

VEC_INLINE void pack(const gemm_operand_t *operand, int64_t first, int64_t count, int64_t width,
                     int64_t k0, int64_t k, int32_t dtype, float *out) {
  if (operand->along_k) {
    pack_columns(operand, first, count, width, k0, k, dtype, out);
    return;
  }
  for (int64_t q = 0; q < width; q += VEC_WIDTH) {
    const void *row[VEC_WIDTH];
    int64_t rows = count > q ? gemm_rows(operand, first + q, count - q, row) : 0;
    pack_rows(row, rows, width, k0, k, dtype, out + q);
  }
}

void VEC(gemm_pack)(const gemm_operand_t *operand, int64_t first, int64_t count, int64_t width,
                    int64_t k0, int64_t k, float *out) {
  if (operand->dtype == NN_BF16)
    pack(operand, first, count, width, k0, k, NN_BF16, out);
  else
    pack(operand, first, count, width, k0, k, NN_F32, out);
}
