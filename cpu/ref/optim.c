/* The global gradient norm and AdamW (Loshchilov and Hutter, 2019). The norm is summed over a fixed
 * number of blocks, each in order, then over the blocks in order. Neither can be cancelled: an
 * update is made whole. */
#include <math.h>

#include "ref.h"

enum {
  NORM_BLOCKS = 256,
  NORM_BLOCK_LEAST = 4096, /* elements */
  ADAMW_BLOCK = 16384
};

typedef struct norm_sum {
  const op_grad_norm_t *op;
  int64_t block;
  double part[NORM_BLOCKS];
} norm_sum_t;

static void norm_block(void *context, int64_t item, int32_t thread) {
  norm_sum_t *sum = context;
  (void)thread;
  int64_t begin = item * sum->block, count = ref_min(sum->op->count - begin, sum->block);
  sum->part[item] = ref_dot(sum->op->g + begin, sum->op->g + begin, count);
}

nn_status_t ref_grad_norm(backend_device_t *device, const op_grad_norm_t *op,
                          backend_scratch_t scratch) {
  (void)scratch;
  norm_sum_t sum = {.op = op};
  sum.block = ref_max(NORM_BLOCK_LEAST, ref_blocks(op->count, NORM_BLOCKS));
  int64_t blocks = ref_blocks(op->count, sum.block);
  pool_run_all(device->pool, blocks, norm_block, &sum);
  double square = 0;
  for (int64_t i = 0; i < blocks; i++) square += sum.part[i];
  double norm = sqrt(square);
  op->out[0] = norm;
  op->out[1] = op->max_norm > 0 && norm > op->max_norm ? op->max_norm / norm : 1;
  return NN_OK;
}

static void adamw_block(void *context, int64_t item, int32_t thread) {
  const op_adamw_t *op = context;
  (void)thread;
  double m_scale = 1 / (1 - pow(op->beta1, (double)op->step));
  double v_scale = 1 / (1 - pow(op->beta2, (double)op->step));
  int64_t end = ref_min(op->count, (item + 1) * ADAMW_BLOCK);
  for (int64_t i = item * ADAMW_BLOCK; i < end; i++) {
    double g = op->g[i] * op->scale[1];
    double m = op->beta1 * (double)op->m[i] + (1 - (double)op->beta1) * g;
    double v = op->beta2 * (double)op->v[i] + (1 - (double)op->beta2) * g * g;
    double step = m * m_scale / (sqrt(v * v_scale) + op->eps) + op->weight_decay * (double)op->p[i];
    op->m[i] = (float)m;
    op->v[i] = (float)v;
    op->p[i] = (float)(op->p[i] - op->lr * step);
  }
}

nn_status_t ref_adamw(backend_device_t *device, const op_adamw_t *op, backend_scratch_t scratch) {
  (void)scratch;
  if (!isfinite(op->scale[0])) return NN_OK;
  pool_run_all(device->pool, ref_blocks(op->count, ADAMW_BLOCK), adamw_block, (void *)op);
  return NN_OK;
}
