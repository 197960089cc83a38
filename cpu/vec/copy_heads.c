/* Copies of parts of heads from rows to rows, y[t, h] = x[t, h], assigned; where y has no step, the
 * sum over heads, in order. */
#include "vec/ops.h"

enum { COPY_ROWS = 16 };

VEC_INLINE void copy_sum(const op_copy_heads_t *op, int64_t row, int32_t act) {
  for (int64_t j = 0; j < op->width; j += VEC_WIDTH) {
    int64_t left = op->width - j;
    vf sum = vf_zero();
    for (int64_t h = 0; h < op->heads; h++)
      sum = vf_add(sum, vf_load_as_next(op->x, row * op->ldx + h * op->step_x + j, left, act));
    vf_store_as_next(op->y, row * op->ldy + j, left, act, sum);
  }
}

static void copy_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_copy_heads_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * COPY_ROWS);
  size_t element = (size_t)vec_dtype_bytes(op->act_dtype);
  size_t bytes = (size_t)op->width * element, zeros = (size_t)op->zeros * element;
  for (int64_t row = item * COPY_ROWS; row < end; row++) {
    if (!op->step_y) VEC_BY_ACT(op->act_dtype, copy_sum(op, row, VEC_ACT));
    for (int64_t h = 0; h < op->heads; h++) {
      char *y = vec_to(op->y, row * op->ldy + h * op->step_y, op->act_dtype);
      if (op->step_y)
        memcpy(y, vec_at(op->x, row * op->ldx + h * op->step_x, op->act_dtype), bytes);
      if (zeros) memset(y + bytes, 0, zeros);
    }
  }
}

VEC_OP(copy_heads, op_copy_heads_t) {
  (void)scratch;
  op_copy_heads_t job = *op;
  return vec_run(device, vec_blocks(op->n, COPY_ROWS), op->n * op->heads * op->width, copy_rows,
                 &job);
}
