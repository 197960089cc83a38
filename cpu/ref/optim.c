/* The global gradient norm and AdamW (Loshchilov and Hutter, 2019). The norm is summed over a fixed
 * number of blocks, each in order, then over the blocks in order. Masters kept as a bf16 parameter
 * and its rest are put together, updated as fp32 parameters are, and taken apart again. Neither can
 * be cancelled: an update is made whole. */
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
  double norm = sqrt(square) * op->now->unscale;
  op->out[0] = norm;
  op->out[1] = op->now->unscale;
  if (op->max_norm > 0 && norm > op->max_norm) op->out[1] *= op->max_norm / norm;
  return NN_OK;
}

/* Updates m and v of element i; returns what becomes of its p. */
static float adamw_update(const op_adamw_t *op, double m_scale, double v_scale, int64_t i,
                          float p) {
  double g = op->g[i] * op->scale[1];
  double m = op->beta1 * (double)op->m[i] + (1 - (double)op->beta1) * g;
  double v = op->beta2 * (double)op->v[i] + (1 - (double)op->beta2) * g * g;
  double decay = i < op->decayed ? op->weight_decay : 0;
  double step = m * m_scale / (sqrt(v * v_scale) + op->eps) + decay * (double)p;
  op->m[i] = (float)m;
  op->v[i] = (float)v;
  return (float)(p - op->now->lr * step);
}

static float adamw_join(uint16_t p, int16_t low) {
  uint32_t bits = ((uint32_t)p << 16) + (uint32_t)low;
  float master;
  memcpy(&master, &bits, sizeof master);
  return master;
}

static void adamw_split(float master, uint16_t *p, int16_t *low) {
  uint32_t bits;
  memcpy(&bits, &master, sizeof bits);
  *p = (uint16_t)((bits + 0x8000) >> 16);
  *low = (int16_t)(bits & 0xffff);
}

/* The master of an fp16 parameter: p where that is not the nearest fp16 number. */
static float adamw_master(float master, uint16_t p) {
  return dtype_f32_to_f16(master) == p ? master : dtype_f16_to_f32(p);
}

static void adamw_block(void *context, int64_t item, int32_t thread) {
  const op_adamw_t *op = context;
  (void)thread;
  double m_scale = 1 / op->now->m_left, v_scale = 1 / op->now->v_left;
  int64_t begin = item * ADAMW_BLOCK, end = ref_min(op->count, begin + ADAMW_BLOCK);
  if (op->weight_dtype == NN_BF16) {
    uint16_t *p = op->p;
    for (int64_t i = begin; i < end; i++) {
      float master = adamw_join(p[i], op->p_low[i]);
      adamw_split(adamw_update(op, m_scale, v_scale, i, master), &p[i], &op->p_low[i]);
    }
  } else if (op->weight_dtype == NN_F16) {
    uint16_t *p = op->p;
    for (int64_t i = begin; i < end; i++) {
      float master = adamw_master(op->master[i], p[i]);
      op->master[i] = adamw_update(op, m_scale, v_scale, i, master);
      p[i] = dtype_f32_to_f16(op->master[i]);
    }
  } else {
    float *p = op->p;
    for (int64_t i = begin; i < end; i++) p[i] = adamw_update(op, m_scale, v_scale, i, p[i]);
  }
}

nn_status_t ref_adamw(backend_device_t *device, const op_adamw_t *op, backend_scratch_t scratch) {
  (void)scratch;
  if (!isfinite(op->scale[0])) return NN_OK;
  pool_run_all(device->pool, ref_blocks(op->count, ADAMW_BLOCK), adamw_block, (void *)op);
  return NN_OK;
}
