/* Rotary positions, in place: halves of each head are rotated against each other by the angles of
 * the row's position; inverse rotates back, which is the backward pass. */
#include "ref.h"

enum { ROPE_ROWS = 8 };

static void rope_head(float *x, const float *cosine, const float *sine, int64_t half, double sign) {
  for (int64_t i = 0; i < half; i++) {
    double a = x[i], b = x[i + half], c = cosine[i], s = sign * sine[i];
    x[i] = (float)(a * c - b * s);
    x[i + half] = (float)(b * c + a * s);
  }
}

static void rope_rows(void *context, int64_t item, int32_t thread) {
  const op_rope_t *op = context;
  (void)thread;
  float *x = op->x;
  int64_t half = op->head_dim / 2, end = ref_min(op->n, (item + 1) * ROPE_ROWS);
  for (int64_t row = item * ROPE_ROWS; row < end; row++) {
    const float *cosine = op->table + op->position[row] * op->head_dim;
    for (int64_t head = 0; head < op->heads; head++)
      rope_head(x + row * op->ldx + head * op->head_dim, cosine, cosine + half, half,
                op->inverse ? -1 : 1);
  }
}

nn_status_t ref_rope(backend_device_t *device, const op_rope_t *op, backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, ROPE_ROWS), rope_rows, (void *)op);
}
