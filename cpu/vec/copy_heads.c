/* Copies of parts of heads from rows to rows, y[t, h] = x[t, h], assigned; where y has no step, the
 * sum over heads, in order. */
#include "vec/ops.h"

enum { COPY_ROWS = 16 };

static void copy_sum(const op_copy_heads_t *op, const float *x, float *y) {
  for (int64_t j = 0; j < op->width; j += VEC_WIDTH) {
    int64_t left = op->width - j;
    vf sum = vf_zero();
    for (int64_t h = 0; h < op->heads; h++)
      sum = vf_add(sum, vf_load_next(x + h * op->step_x + j, left));
    vf_store_next(y + j, left, sum);
  }
}

static void copy_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_copy_heads_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * COPY_ROWS);
  size_t bytes = (size_t)op->width * sizeof(float), zeros = (size_t)op->zeros * sizeof(float);
  for (int64_t row = item * COPY_ROWS; row < end; row++) {
    const float *x = op->x;
    float *y = op->y;
    x += row * op->ldx, y += row * op->ldy;
    if (!op->step_y) copy_sum(op, x, y);
    for (int64_t h = 0; h < op->heads; h++) {
      if (op->step_y) memcpy(y + h * op->step_y, x + h * op->step_x, bytes);
      if (zeros) memset(y + h * op->step_y + op->width, 0, zeros);
    }
  }
}

VEC_OP(copy_heads, op_copy_heads_t) {
  (void)scratch;
  op_copy_heads_t job = *op;
  return vec_run(device, vec_blocks(op->n, COPY_ROWS), op->n * op->heads * op->width, copy_rows,
                 &job);
}
