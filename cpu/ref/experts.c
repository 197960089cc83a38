/* The experts' gated networks over the routed rows, one expert at a time and a slab of its rows at
 * a time, so that activations need little scratch. Each product may have a bias.
 *
 * Forward, for row r of token t and expert e: g = gate x_t, u = up x_t, a = act(g, u),
 *   y_r = down a, out_t = residual_t + sum over slots, in order, of weight y.  Assigns. Without
 *   out, g and u are all.
 * Backward, with d = down^T dout_t and da = weight d: dg = da dact/dg and du = da dact/du, which
 * replace g and u in pre;
 *   dweight = <d, a> + <dout_t, down_bias>, dx_t = sum over slots, in order, of
 *   gate^T dg + up^T du.  Both assign.
 *   dgate += dg x_t, dup += du x_t, ddown += dout_t (weight a), and of the biases dg, du and
 *   weight dout_t: rows in order within a slab, slabs in order. With `assign` an expert's first
 *   slab, which may have no rows, assigns the three. */
#include "ref.h"

enum {
  EXPERTS_SLAB = 512, /* rows */
  EXPERTS_TOKENS = 8
};

/* One slab of one expert, and the scratch. */
typedef struct experts_slab {
  const op_experts_t *op;
  int64_t expert, begin, rows; /* rows begin .. begin + rows - 1 */
  int32_t *token;              /* [n * k] of each row */
  float *y;                    /* [n * k, hidden] */
  float *act;                  /* [EXPERTS_SLAB, F] */
} experts_slab_t;

size_t ref_experts_scratch(const backend_limits_t *limits) {
  if (!limits->experts) return 0;
  int64_t slots;
  if (__builtin_mul_overflow(limits->rows, limits->top_k, &slots)) slots = INT64_MAX;
  size_t bytes = ref_piece(1, slots, sizeof(int32_t)) +
                 ref_piece(slots, limits->hidden, sizeof(float)) +
                 ref_piece(EXPERTS_SLAB, limits->ffn, sizeof(float));
  if (limits->training)
    bytes += ref_piece(EXPERTS_SLAB, ref_blocks(limits->ffn, REF_TILE_COLS), sizeof(double));
  return bytes;
}

static void experts_tokens(const routing_t *routing, int64_t experts, int64_t top_k,
                           int32_t *token) {
  for (int64_t r = 0; r < routing->offset[experts]; r++)
    token[r] = (int32_t)(routing->row_slot[r] / top_k);
}

/* An expert's matrix, by expert 0's. */
static const void *experts_weight(const void *first, int64_t stride, int32_t dtype,
                                  int64_t expert) {
  return (const char *)first + expert * stride * (dtype == NN_F32 ? 4 : 2);
}

/* The tokens' rows behind an expert's rows. */
static ref_matrix_t experts_tokens_of(const void *x, int32_t dtype, int64_t hidden,
                                      const int32_t *token) {
  return (ref_matrix_t){.data = x, .dtype = dtype, .row = hidden, .col = 1, .index = token};
}

/* Adds an expert's bias, whose elements are `step` apart, to the columns of a tile. */
static void experts_add_bias(ref_tile_t *tile, const void *bias, int64_t step, int32_t dtype,
                             int64_t first, int64_t j, int64_t width) {
  int64_t cols = ref_min(width - j, REF_TILE_COLS);
  for (int64_t c = 0; bias && c < cols; c++) {
    double value = ref_load(bias, dtype, first + (j + c) * step);
    for (int64_t r = 0; r < REF_TILE_ROWS; r++) tile->sum[r][c] += value;
  }
}

/* item: REF_TILE_ROWS rows by REF_TILE_COLS of F. */
static void experts_up(void *context, int64_t item, int32_t thread) {
  const experts_slab_t *slab = context;
  const op_experts_t *op = slab->op;
  (void)thread;
  int64_t across = ref_blocks(op->ffn, REF_TILE_COLS);
  int64_t i = item / across * REF_TILE_ROWS, j = item % across * REF_TILE_COLS;
  const void *gate_e = experts_weight(op->gate, op->expert_stride, op->weight_dtype, slab->expert);
  const void *up_e = experts_weight(op->up, op->expert_stride, op->weight_dtype, slab->expert);
  ref_matrix_t x = experts_tokens_of(op->x, op->act_dtype, op->hidden, slab->token + slab->begin);
  int64_t step = op->interleaved ? 2 : 1, bias = slab->expert * op->bias_stride;
  ref_matrix_t gate = {gate_e, op->weight_dtype, 1, step * op->hidden, NULL, 0};
  ref_matrix_t up = {up_e, op->weight_dtype, 1, step * op->hidden, NULL, 0};
  ref_tile_t g = {{{0}}}, u = {{{0}}};
  ref_tile_add(&g, &x, &gate, slab->rows, op->ffn, op->hidden, i, j);
  ref_tile_add(&u, &x, &up, slab->rows, op->ffn, op->hidden, i, j);
  experts_add_bias(&g, op->gate_bias, step, op->weight_dtype, bias, j, op->ffn);
  experts_add_bias(&u, op->up_bias, step, op->weight_dtype, bias, j, op->ffn);
  if (op->pre) {
    ref_place_t pre = {op->pre, op->act_dtype, slab->begin * 2 * op->ffn, 2 * op->ffn, 1};
    ref_tile_assign(&g, &pre, slab->rows, op->ffn, i, j);
    pre.at += op->ffn;
    ref_tile_assign(&u, &pre, slab->rows, op->ffn, i, j);
  }
  if (!op->out) return;
  for (int64_t r = 0; r < REF_TILE_ROWS; r++)
    for (int64_t c = 0; c < REF_TILE_COLS; c++)
      g.sum[r][c] = ref_act(g.sum[r][c], u.sum[r][c], op->limit);
  ref_place_t act = {.data = slab->act, .row = op->ffn, .col = 1};
  ref_tile_assign(&g, &act, slab->rows, op->ffn, i, j);
}

/* item: REF_TILE_ROWS rows by REF_TILE_COLS of hidden. */
static void experts_down(void *context, int64_t item, int32_t thread) {
  const experts_slab_t *slab = context;
  const op_experts_t *op = slab->op;
  (void)thread;
  int64_t across = ref_blocks(op->hidden, REF_TILE_COLS);
  int64_t i = item / across * REF_TILE_ROWS, j = item % across * REF_TILE_COLS;
  const void *down_e = experts_weight(op->down, op->expert_stride, op->weight_dtype, slab->expert);
  ref_matrix_t act = {.data = slab->act, .row = op->ffn, .col = 1};
  ref_matrix_t down = {down_e, op->weight_dtype, 1, op->ffn, NULL, 0};
  ref_tile_t y = {{{0}}};
  ref_tile_add(&y, &act, &down, slab->rows, op->hidden, op->ffn, i, j);
  experts_add_bias(&y, op->down_bias, 1, op->weight_dtype, slab->expert * op->bias_stride, j,
                   op->hidden);
  ref_place_t to = {.data = slab->y, .at = slab->begin * op->hidden, .row = op->hidden, .col = 1};
  ref_tile_assign(&y, &to, slab->rows, op->hidden, i, j);
}

/* item: EXPERTS_TOKENS tokens. */
static void experts_combine(void *context, int64_t item, int32_t thread) {
  const experts_slab_t *slab = context;
  const op_experts_t *op = slab->op;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * EXPERTS_TOKENS);
  for (int64_t t = item * EXPERTS_TOKENS; t < end; t++) {
    for (int64_t c = 0; c < op->hidden; c++) {
      int64_t at = t * op->hidden + c;
      double sum = op->residual ? ref_load(op->residual, op->act_dtype, at) : 0;
      for (int64_t s = t * op->top_k; s < (t + 1) * op->top_k; s++) {
        int64_t row = op->routing.slot_row[s];
        if (row >= 0) sum += (double)op->routing.weight[s] * slab->y[row * op->hidden + c];
      }
      ref_store(op->out, op->act_dtype, at, (float)sum);
    }
  }
}

nn_status_t ref_experts(backend_device_t *device, const op_experts_t *op,
                        backend_scratch_t scratch) {
  char *at = scratch.data;
  experts_slab_t slab = {.op = op};
  slab.token = ref_take(&at, op->n, op->top_k, sizeof(int32_t));
  slab.y = ref_take(&at, op->n * op->top_k, op->hidden, sizeof(float));
  slab.act = ref_take(&at, EXPERTS_SLAB, op->ffn, sizeof(float));
  const int32_t *offset = op->routing.offset;
  experts_tokens(&op->routing, op->experts, op->top_k, slab.token);
  for (slab.expert = 0; slab.expert < op->experts; slab.expert++) {
    int64_t end = offset[slab.expert + 1];
    for (slab.begin = offset[slab.expert]; slab.begin < end; slab.begin += EXPERTS_SLAB) {
      slab.rows = ref_min(end - slab.begin, EXPERTS_SLAB);
      int64_t tall = ref_blocks(slab.rows, REF_TILE_ROWS);
      STATUS_TRY(
          pool_run(device->pool, tall * ref_blocks(op->ffn, REF_TILE_COLS), experts_up, &slab));
      if (!op->out) continue;
      STATUS_TRY(pool_run(device->pool, tall * ref_blocks(op->hidden, REF_TILE_COLS), experts_down,
                          &slab));
    }
  }
  if (!op->out) return NN_OK;
  return pool_run(device->pool, ref_blocks(op->n, EXPERTS_TOKENS), experts_combine, &slab);
}

/* ---- backward -------------------------------------------------------------------------------- */

typedef struct experts_bwd_slab {
  const op_experts_bwd_t *op;
  int64_t expert, begin, rows;
  int32_t *token; /* [n * k] of each row */
  float *dx;      /* [n * k, hidden] */
  float *act;     /* [EXPERTS_SLAB, F] weight a */
  double *dot;    /* [EXPERTS_SLAB, tiles of F] parts of dweight */
} experts_bwd_slab_t;

/* Replaces g and u of a row's tile, which begin at element `at` of pre, by their gradients, keeps
 * weight a; d: down^T dout. Returns the tile's part of <d, a>. */
static double experts_bwd_activation(const op_experts_bwd_t *op, int64_t at, float *act,
                                     const double *d, int64_t cols, double weight) {
  double dot = 0;
  for (int64_t c = 0; c < cols; c++) {
    double g = ref_load(op->pre, op->act_dtype, at + c), by_g, by_u;
    double u = ref_load(op->pre, op->act_dtype, at + op->ffn + c);
    double a = ref_act(g, u, op->limit), da = weight * d[c];
    ref_act_slopes(g, u, op->limit, &by_g, &by_u);
    dot += d[c] * a;
    act[c] = (float)(weight * a);
    ref_store(op->pre, op->act_dtype, at + c, (float)(da * by_g));
    ref_store(op->pre, op->act_dtype, at + op->ffn + c, (float)(da * by_u));
  }
  return dot;
}

/* dg or du of the slab's rows: `half` is 0 or 1. */
static ref_matrix_t experts_bwd_pre(const experts_bwd_slab_t *slab, int64_t half) {
  const op_experts_bwd_t *op = slab->op;
  return (ref_matrix_t){.data = op->pre,
                        .dtype = op->act_dtype,
                        .row = 2 * op->ffn,
                        .col = 1,
                        .at = (slab->begin * 2 + half) * op->ffn};
}

static ref_matrix_t transposed(ref_matrix_t m) {
  int64_t row = m.row;
  m.row = m.col, m.col = row;
  return m;
}

/* item: REF_TILE_ROWS rows by REF_TILE_COLS of F. */
static void experts_bwd_down(void *context, int64_t item, int32_t thread) {
  const experts_bwd_slab_t *slab = context;
  const op_experts_bwd_t *op = slab->op;
  (void)thread;
  int64_t across = ref_blocks(op->ffn, REF_TILE_COLS);
  int64_t i = item / across * REF_TILE_ROWS, j = item % across * REF_TILE_COLS;
  const void *down_e = experts_weight(op->down, op->expert_stride, op->weight_dtype, slab->expert);
  ref_matrix_t dout =
      experts_tokens_of(op->dout, op->act_dtype, op->hidden, slab->token + slab->begin);
  ref_matrix_t down = {down_e, op->weight_dtype, op->ffn, 1, NULL, 0};
  ref_tile_t d = {{{0}}};
  ref_tile_add(&d, &dout, &down, slab->rows, op->ffn, op->hidden, i, j);
  int64_t end = ref_min(slab->rows, i + REF_TILE_ROWS), cols = ref_min(op->ffn - j, REF_TILE_COLS);
  for (int64_t r = i; r < end; r++) {
    int64_t at = (slab->begin + r) * 2 * op->ffn + j;
    double weight = op->routing.weight[op->routing.row_slot[slab->begin + r]];
    slab->dot[r * across + j / REF_TILE_COLS] = experts_bwd_activation(
        op, at, slab->act + r * op->ffn + j, d.sum[r - i], cols, weight);
  }
}

/* item: one of the three weights, REF_TILE_ROWS of F by REF_TILE_COLS of hidden; rows may be 0. */
static void experts_bwd_weights(void *context, int64_t item, int32_t thread) {
  const experts_bwd_slab_t *slab = context;
  const op_experts_bwd_t *op = slab->op;
  (void)thread;
  int64_t across = ref_blocks(op->hidden, REF_TILE_COLS);
  int64_t tiles = ref_blocks(op->ffn, REF_TILE_ROWS) * across;
  int64_t which = item / tiles, i = item % tiles / across * REF_TILE_ROWS;
  int64_t j = item % across * REF_TILE_COLS;
  ref_matrix_t by_f = {.data = slab->act, .row = 1, .col = op->ffn};
  if (which < 2) by_f = transposed(experts_bwd_pre(slab, which));
  ref_matrix_t by_hidden = experts_tokens_of(which == 2 ? op->dout : op->x, op->act_dtype,
                                             op->hidden, slab->token + slab->begin);
  ref_tile_t tile = {{{0}}};
  ref_tile_add(&tile, &by_f, &by_hidden, op->ffn, op->hidden, slab->rows, i, j);
  ref_place_t to = {.data = which == 2 ? op->ddown : which ? op->dup : op->dgate,
                    .at = slab->expert * op->expert_stride};
  to.row = which == 2 ? 1 : (op->interleaved ? 2 : 1) * op->hidden;
  to.col = which == 2 ? op->ffn : 1;
  if (op->assign && slab->begin == op->routing.offset[slab->expert])
    ref_tile_assign(&tile, &to, op->ffn, op->hidden, i, j);
  else
    ref_tile_accumulate(&tile, &to, op->ffn, op->hidden, i, j);
}

/* item: REF_TILE_ROWS rows by REF_TILE_COLS of hidden. */
static void experts_bwd_up(void *context, int64_t item, int32_t thread) {
  const experts_bwd_slab_t *slab = context;
  const op_experts_bwd_t *op = slab->op;
  (void)thread;
  int64_t across = ref_blocks(op->hidden, REF_TILE_COLS);
  int64_t i = item / across * REF_TILE_ROWS, j = item % across * REF_TILE_COLS;
  ref_matrix_t dg = experts_bwd_pre(slab, 0), du = experts_bwd_pre(slab, 1);
  const void *gate_e = experts_weight(op->gate, op->expert_stride, op->weight_dtype, slab->expert);
  const void *up_e = experts_weight(op->up, op->expert_stride, op->weight_dtype, slab->expert);
  int64_t row = (op->interleaved ? 2 : 1) * op->hidden;
  ref_matrix_t gate = {gate_e, op->weight_dtype, row, 1, NULL, 0};
  ref_matrix_t up = {up_e, op->weight_dtype, row, 1, NULL, 0};
  ref_tile_t tile = {{{0}}};
  ref_tile_add(&tile, &dg, &gate, slab->rows, op->hidden, op->ffn, i, j);
  ref_tile_add(&tile, &du, &up, slab->rows, op->hidden, op->ffn, i, j);
  ref_place_t dx = {.data = slab->dx, .at = slab->begin * op->hidden, .row = op->hidden, .col = 1};
  ref_tile_assign(&tile, &dx, slab->rows, op->hidden, i, j);
}

static double experts_bwd_bias_dot(const experts_bwd_slab_t *slab, int64_t row) {
  const op_experts_bwd_t *op = slab->op;
  int64_t at = slab->token[slab->begin + row] * op->hidden;
  double sum = 0;
  for (int64_t c = 0; op->down_bias && c < op->hidden; c++)
    sum += ref_load(op->dout, op->act_dtype, at + c) *
           ref_load(op->down_bias, op->weight_dtype, slab->expert * op->bias_stride + c);
  return sum;
}

static void experts_bwd_dweight(const experts_bwd_slab_t *slab) {
  const op_experts_bwd_t *op = slab->op;
  int64_t across = ref_blocks(op->ffn, REF_TILE_COLS);
  for (int64_t r = 0; r < slab->rows; r++) {
    double sum = experts_bwd_bias_dot(slab, r);
    for (int64_t part = 0; part < across; part++) sum += slab->dot[r * across + part];
    op->dweight[op->routing.row_slot[slab->begin + r]] = (float)sum;
  }
}

/* item: EXPERTS_TOKENS tokens. */
static void experts_bwd_combine(void *context, int64_t item, int32_t thread) {
  const experts_bwd_slab_t *slab = context;
  const op_experts_bwd_t *op = slab->op;
  (void)thread;
  int64_t end = ref_min(op->n, (item + 1) * EXPERTS_TOKENS);
  for (int64_t t = item * EXPERTS_TOKENS; t < end; t++) {
    for (int64_t c = 0; c < op->hidden; c++) {
      double sum = 0;
      for (int64_t s = t * op->top_k; s < (t + 1) * op->top_k; s++) {
        int64_t row = op->routing.slot_row[s];
        if (row >= 0) sum += slab->dx[row * op->hidden + c];
      }
      ref_store(op->dx, op->act_dtype, t * op->hidden + c, (float)sum);
    }
  }
}

/* The slab's part of the biases' gradients. */
static void experts_bwd_biases(const experts_bwd_slab_t *slab) {
  const op_experts_bwd_t *op = slab->op;
  int64_t first = slab->expert * op->bias_stride, end = slab->begin + slab->rows;
  int64_t step = op->interleaved ? 2 : 1;
  for (int64_t c = 0; c < op->ffn; c++) {
    double gate = 0, up = 0;
    for (int64_t r = slab->begin; r < end; r++) {
      gate += ref_load(op->pre, op->act_dtype, r * 2 * op->ffn + c);
      up += ref_load(op->pre, op->act_dtype, (r * 2 + 1) * op->ffn + c);
    }
    op->dgate_bias[first + c * step] = (float)(op->dgate_bias[first + c * step] + gate);
    op->dup_bias[first + c * step] = (float)(op->dup_bias[first + c * step] + up);
  }
  for (int64_t c = 0; c < op->hidden; c++) {
    double down = 0;
    for (int64_t r = slab->begin; r < end; r++)
      down += (double)op->routing.weight[op->routing.row_slot[r]] *
              ref_load(op->dout, op->act_dtype, slab->token[r] * op->hidden + c);
    op->ddown_bias[first + c] = (float)(op->ddown_bias[first + c] + down);
  }
}

static nn_status_t experts_bwd_matrices(backend_device_t *device, experts_bwd_slab_t *slab) {
  const op_experts_bwd_t *op = slab->op;
  int64_t tiles = ref_blocks(op->ffn, REF_TILE_ROWS) * ref_blocks(op->hidden, REF_TILE_COLS);
  return pool_run(device->pool, 3 * tiles, experts_bwd_weights, slab);
}

static nn_status_t experts_bwd_run(backend_device_t *device, experts_bwd_slab_t *slab) {
  const op_experts_bwd_t *op = slab->op;
  int64_t tall = ref_blocks(slab->rows, REF_TILE_ROWS);
  int64_t wide = ref_blocks(op->hidden, REF_TILE_COLS);
  STATUS_TRY(
      pool_run(device->pool, tall * ref_blocks(op->ffn, REF_TILE_COLS), experts_bwd_down, slab));
  experts_bwd_dweight(slab);
  if (op->dgate_bias) experts_bwd_biases(slab);
  STATUS_TRY(experts_bwd_matrices(device, slab));
  return pool_run(device->pool, tall * wide, experts_bwd_up, slab);
}

nn_status_t ref_experts_bwd(backend_device_t *device, const op_experts_bwd_t *op,
                            backend_scratch_t scratch) {
  char *at = scratch.data;
  experts_bwd_slab_t slab = {.op = op};
  slab.token = ref_take(&at, op->n, op->top_k, sizeof(int32_t));
  slab.dx = ref_take(&at, op->n * op->top_k, op->hidden, sizeof(float));
  slab.act = ref_take(&at, EXPERTS_SLAB, op->ffn, sizeof(float));
  slab.dot = ref_take(&at, EXPERTS_SLAB, ref_blocks(op->ffn, REF_TILE_COLS), sizeof(double));
  const int32_t *offset = op->routing.offset;
  experts_tokens(&op->routing, op->experts, op->top_k, slab.token);
  memset(op->dweight, 0, (size_t)(op->n * op->top_k) * sizeof *op->dweight);
  for (slab.expert = 0; slab.expert < op->experts; slab.expert++) {
    int64_t end = offset[slab.expert + 1];
    slab.begin = offset[slab.expert], slab.rows = 0;
    if (op->assign && slab.begin == end) STATUS_TRY(experts_bwd_matrices(device, &slab));
    for (; slab.begin < end; slab.begin += EXPERTS_SLAB) {
      slab.rows = ref_min(end - slab.begin, EXPERTS_SLAB);
      STATUS_TRY(experts_bwd_run(device, &slab));
    }
  }
  return pool_run(device->pool, ref_blocks(op->n, EXPERTS_TOKENS), experts_bwd_combine, &slab);
}
