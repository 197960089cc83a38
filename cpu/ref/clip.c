/* Clamping: y = x clamped to [-limit, limit], assigned; backward sets dx to 0 where x was
 * beyond. */
#include <math.h>

#include "ref.h"

enum { CLIP_ROWS = 16 };

static void clip_rows(void *context, int64_t item, int32_t thread) {
  const op_clip_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * CLIP_ROWS);
  for (int64_t row = item * CLIP_ROWS; row < end; row++)
    for (int64_t c = 0; c < op->width; c++) {
      float value = ref_load(op->x, op->act_dtype, row * op->ldx + c);
      if (fabsf(value) > op->limit) value = copysignf(op->limit, value);
      ref_store(op->y, op->act_dtype, row * op->ldy + c, value);
    }
}

nn_status_t ref_clip(backend_device_t *device, const op_clip_t *op, backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, CLIP_ROWS), clip_rows, (void *)op);
}

static void clip_bwd_rows(void *context, int64_t item, int32_t thread) {
  const op_clip_bwd_t *op = context;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * CLIP_ROWS);
  for (int64_t row = item * CLIP_ROWS; row < end; row++)
    for (int64_t c = 0; c < op->width; c++)
      if (fabsf(ref_load(op->x, op->act_dtype, row * op->ldx + c)) > op->limit)
        ref_store(op->dx, op->act_dtype, row * op->lddx + c, 0);
}

nn_status_t ref_clip_bwd(backend_device_t *device, const op_clip_bwd_t *op,
                         backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, CLIP_ROWS), clip_bwd_rows, (void *)op);
}
