/* Rotary positions, in place: the halves of a head's first rotary_dim elements, or its neighbours,
 * are rotated against each other by the angles of the row's position; inverse is the transpose. */
#include "ref.h"

enum { ROPE_ROWS = 8 };

/* Pair i is elements i * step and i * step + apart. */
static void rope_head(const op_rope_t *op, int64_t at, int64_t step, int64_t apart,
                      const float *table, int64_t half, double sign) {
  for (int64_t i = 0; i < half; i++) {
    int64_t first = at + i * step, second = first + apart;
    double a = ref_load(op->x, op->act_dtype, first), b = ref_load(op->x, op->act_dtype, second);
    double c = table[i], s = sign * table[half + i];
    ref_store(op->x, op->act_dtype, first, (float)(a * c - b * s));
    ref_store(op->x, op->act_dtype, second, (float)(b * c + a * s));
  }
}

static void rope_rows(void *context, int64_t item, int32_t thread) {
  const op_rope_t *op = context;
  (void)thread;
  int64_t width = op->rotary_dim ? op->rotary_dim : op->head_dim, half = width / 2;
  int64_t step = op->interleaved ? 2 : 1, apart = op->interleaved ? 1 : half;
  int64_t end = ref_min(op->n, (item + 1) * ROPE_ROWS);
  for (int64_t row = item * ROPE_ROWS; row < end; row++)
    for (int64_t head = 0; head < op->heads; head++)
      rope_head(op, row * op->ldx + head * op->head_dim, step, apart,
                op->table + op->position[row] * width, half, op->inverse ? -1 : 1);
}

nn_status_t ref_rope(backend_device_t *device, const op_rope_t *op, backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, ROPE_ROWS), rope_rows, (void *)op);
}
