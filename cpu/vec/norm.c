/* RMS and layer norm of each group of a row: y = (x - mean) * rstd * w + b with mean = 0 for RMS,
 * and the gradients. dx (unless assigned), dw and db accumulate. Sums over a group are taken in
 * fp32, four vectors wide; sums over rows for dw and db in blocks that depend on n alone, whose
 * partial sums are added in order. */
#include <math.h>

#include "vec/ops.h"

enum { NORM_ROWS = 16, NORM_STRIP = 64 };

/* Sum over the row that begins at an element of x, or of (x - mean)^2. */
VEC_INLINE float norm_reduce(const void *x, int64_t at, int64_t hidden, int32_t act, int square,
                             float mean) {
  vf sum[4] = {vf_zero(), vf_zero(), vf_zero(), vf_zero()}, center = vf_set1(mean);
  int64_t j = 0;
  for (; j + 4 * VEC_WIDTH <= hidden; j += 4 * VEC_WIDTH)
    for (int u = 0; u < 4; u++) {
      vf value = vf_sub(vf_load_as(x, at + j + u * VEC_WIDTH, act), center);
      sum[u] = square ? vf_fma(value, value, sum[u]) : vf_add(value, sum[u]);
    }
  for (; j < hidden; j += VEC_WIDTH) {
    vmask mask = vf_mask(vec_min(VEC_WIDTH, hidden - j));
    vf part = vf_load_as_next(x, at + j, hidden - j, act);
    vf value = vf_select(mask, vf_sub(part, center), vf_zero());
    sum[0] = square ? vf_fma(value, value, sum[0]) : vf_add(value, sum[0]);
  }
  return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

/* What lies where in a row: groups of `hidden` elements, rows ldx and ldy apart. */
typedef struct norm_shape {
  int64_t groups, ldx, ldy;
} norm_shape_t;

static norm_shape_t norm_shape(int64_t groups, int64_t hidden, int64_t ldx, int64_t ldy) {
  groups = groups ? groups : 1;
  return (norm_shape_t){groups, ldx ? ldx : groups * hidden, ldy ? ldy : groups * hidden};
}

/* The group whose first elements of x and y are `from` and `to`; i: its number over all rows. */
VEC_INLINE void norm_group(const op_norm_t *op, int64_t from, int64_t to, int64_t i, int32_t dtype,
                           int32_t act) {
  const op_norm_t args = *op; /* which what is stored cannot change */
  op = &args;
  int64_t hidden = op->hidden;
  float mean = 0.0f;
  if (op->kind == NN_NORM_LAYER)
    mean = norm_reduce(op->x, from, hidden, act, 0, 0.0f) / (float)hidden;
  float square = norm_reduce(op->x, from, hidden, act, 1, mean);
  float rstd = 1.0f / sqrtf(square / (float)hidden + op->eps);
  vf center = vf_set1(mean), scale = vf_set1(rstd);
  for (int64_t j = 0; j < hidden; j += VEC_WIDTH) {
    int64_t left = hidden - j;
    vf normal = vf_mul(vf_sub(vf_load_as_next(op->x, from + j, left, act), center), scale);
    vf out = vf_mul(normal, vf_load_as_next(op->w, j, left, dtype));
    if (op->b) out = vf_add(out, vf_load_as_next(op->b, j, left, dtype));
    vf_store_as_next(op->y, to + j, left, act, out);
  }
  if (op->mean && op->kind == NN_NORM_LAYER) op->mean[i] = mean;
  if (op->rstd) op->rstd[i] = rstd;
}

static void norm_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_norm_t *op = context;
  norm_shape_t shape = norm_shape(op->groups, op->hidden, op->ldx, op->ldy);
  int64_t end = vec_min(op->n, (item + 1) * NORM_ROWS);
  for (int64_t i = item * NORM_ROWS; i < end; i++)
    for (int64_t g = 0; g < shape.groups; g++) {
      int64_t from = i * shape.ldx + g * op->hidden, to = i * shape.ldy + g * op->hidden;
      VEC_BY_DTYPES(op->weight_dtype, op->act_dtype,
                    norm_group(op, from, to, i * shape.groups + g, VEC_DTYPE, VEC_ACT));
    }
}

VEC_OP(norm, op_norm_t) {
  (void)scratch;
  op_norm_t job = *op;
  int64_t work = op->n * op->hidden * (op->groups ? op->groups : 1);
  return vec_run(device, vec_blocks(op->n, NORM_ROWS), work, norm_rows, &job);
}

/* ---- backward -------------------------------------------------------------------------------- */

typedef struct norm_bwd {
  const op_norm_bwd_t *op;
  norm_shape_t shape;
  int64_t rows, blocks; /* rows of a block */
  float *partial;       /* [blocks, 2, hidden]: dw, db */
} norm_bwd_t;

/* x, dy: the group's first elements, the latter of dy and dx; i: its number over all rows.
 * With g = dy * w and the normalised row z: dx += rstd * (g - mean(g) - z * mean(g z)), where
 * RMS has no mean(g); dw += dy * z; db += dy. */
VEC_INLINE void norm_bwd_group(const op_norm_bwd_t *op, int64_t x, int64_t dy, int64_t i,
                               int32_t dtype, int32_t act, float *dw, float *db) {
  const op_norm_bwd_t args = *op; /* which what is stored cannot change */
  op = &args;
  int64_t hidden = op->hidden;
  int layer = op->kind == NN_NORM_LAYER;
  vf center = vf_set1(layer ? op->mean[i] : 0.0f), scale = vf_set1(op->rstd[i]);
  vf sum = vf_zero(), product = vf_zero();
  for (int64_t j = 0; j < hidden; j += VEC_WIDTH) {
    int64_t left = hidden - j;
    vf d = vf_load_as_next(op->dy, dy + j, left, act);
    vf z = vf_mul(vf_sub(vf_load_as_next(op->x, x + j, left, act), center), scale);
    vf g = vf_mul(d, vf_load_as_next(op->w, j, left, dtype));
    sum = vf_add(sum, g);
    product = vf_fma(g, z, product);
    vf_store_next(dw + j, left, vf_fma(d, z, vf_load_next(dw + j, left)));
    if (op->db) vf_store_next(db + j, left, vf_add(d, vf_load_next(db + j, left)));
  }
  vf mean = vf_set1(layer ? vf_sum(sum) / (float)hidden : 0.0f);
  vf slope = vf_set1(vf_sum(product) / (float)hidden);
  for (int64_t j = 0; j < hidden; j += VEC_WIDTH) {
    int64_t left = hidden - j;
    vf z = vf_mul(vf_sub(vf_load_as_next(op->x, x + j, left, act), center), scale);
    vf d = vf_load_as_next(op->dy, dy + j, left, act);
    vf g = vf_mul(d, vf_load_as_next(op->w, j, left, dtype));
    vf inner = vf_fnma(z, slope, vf_sub(g, mean));
    vf before = op->assign ? vf_zero() : vf_load_as_next(op->dx, dy + j, left, act);
    vf_store_as_next(op->dx, dy + j, left, act, vf_fma(scale, inner, before));
  }
}

static void norm_bwd_block(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const norm_bwd_t *job = context;
  const op_norm_bwd_t *op = job->op;
  float *dw = job->partial + item * 2 * op->hidden, *db = dw + op->hidden;
  memset(dw, 0, 2 * (size_t)op->hidden * sizeof *dw);
  int64_t end = vec_min(op->n, (item + 1) * job->rows), groups = job->shape.groups;
  for (int64_t i = item * job->rows; i < end; i++)
    for (int64_t g = 0; g < groups; g++) {
      int64_t x = i * job->shape.ldx + g * op->hidden, dy = i * job->shape.ldy + g * op->hidden;
      VEC_BY_DTYPES(op->weight_dtype, op->act_dtype,
                    norm_bwd_group(op, x, dy, i * groups + g, VEC_DTYPE, VEC_ACT, dw, db));
    }
}

/* total[j] += the blocks' partial sums of one kind, in order, for columns begin .. end - 1. */
static void norm_bwd_add(const norm_bwd_t *job, const float *partial, float *total, int64_t begin,
                         int64_t end) {
  for (int64_t j = begin; j < end; j += VEC_WIDTH) {
    vf sum = vf_zero();
    for (int64_t block = 0; block < job->blocks; block++)
      sum = vf_add(sum, vf_load_next(partial + block * 2 * job->op->hidden + j, end - j));
    vf_store_next(total + j, end - j, vf_add(sum, vf_load_next(total + j, end - j)));
  }
}

static void norm_bwd_strip(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const norm_bwd_t *job = context;
  const op_norm_bwd_t *op = job->op;
  int64_t begin = item * NORM_STRIP, end = vec_min(op->hidden, begin + NORM_STRIP);
  norm_bwd_add(job, job->partial, op->dw, begin, end);
  if (op->db) norm_bwd_add(job, job->partial + op->hidden, op->db, begin, end);
}

VEC_OP(norm_bwd, op_norm_bwd_t) {
  int64_t rows = vec_round_up(vec_blocks(op->n, NORM_BWD_BLOCKS), NORM_BWD_ROWS);
  if (!rows) return NN_OK;
  norm_shape_t shape = norm_shape(op->groups, op->hidden, op->ldx, op->ldy);
  norm_bwd_t job = {op, shape, rows, vec_blocks(op->n, rows), scratch.data};
  int64_t work = op->n * op->hidden * shape.groups;
  STATUS_TRY(vec_run(device, job.blocks, work, norm_bwd_block, &job));
  return vec_run(device, vec_blocks(op->hidden, NORM_STRIP), job.blocks * 2 * op->hidden,
                 norm_bwd_strip, &job);
}
