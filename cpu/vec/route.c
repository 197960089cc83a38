/* Routing: the experts' scores p (softmax or sigmoid of x w^T + b), the choice of op_router_t, and
 * the slots sorted by expert, then by token; assigns. Backward: with S the sum of the chosen p and
 * w_j = scale p_j / S (without that norm S is 1, and the sum over i is left out),
 *
 *   dprob_e  = (scale dweight_j - sum_i dweight_i w_i) / S if e is choice j,
 *              + aux_scale aux_share_e / n
 *   dlogit_e = p_e (dprob_e - sum_i p_i dprob_i + 2 z_scale lse / n) of softmax,
 *              p_e (1 - p_e) dprob_e of sigmoid
 *
 * and then dx += dlogit w, dw += dlogit^T x, db += dlogit. A token's numbers do not depend on its
 * neighbours, so decoding chooses the experts that training chose. Sums over tokens are taken in
 * blocks of ROUTE_BLOCK, added up in order. */
#include <math.h>

#include "choice.h"
#include "vec/ops.h"
#include "vec/outer.h"

enum {
  ROUTE_TOKENS = VEC_WIDTH == 16 ? 4 : 2, /* tokens x experts whose products share registers */
  ROUTE_EXPERTS = 4,
  ROUTE_STRIP = 32 /* columns of dw, and of dx where these or w are of 16 bits */
};

typedef struct route {
  const op_route_t *op;
  double *sums;   /* [blocks, E + 1] of prob and of lse^2 */
  int32_t *place; /* [blocks, E] slots that chose e; then the rank of the first among them all */
} route_t;

/* ---- choice ---------------------------------------------------------------------------------- */

/* Logits of tokens t .. and experts e .., written where prob will be. Those past `end` and the last
 * expert are computed from the last ones and not stored. */
VEC_INLINE void route_dots(const op_route_t *op, int64_t t, int64_t end, int64_t e, int32_t dtype,
                           int32_t act) {
  int64_t x[ROUTE_TOKENS], w[ROUTE_EXPERTS];
  vf sum[ROUTE_TOKENS][ROUTE_EXPERTS];
  int64_t hidden = op->hidden;
  VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++) x[i] = vec_min(t + i, end - 1) * hidden;
  VEC_UNROLL for (int j = 0; j < ROUTE_EXPERTS; j++)
    w[j] = vec_min(e + j, op->experts - 1) * hidden;
  VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++)
    VEC_UNROLL for (int j = 0; j < ROUTE_EXPERTS; j++) sum[i][j] = vf_zero();
  for (int64_t h = 0; h < hidden; h += VEC_WIDTH) {
    int64_t left = hidden - h;
    vf row[ROUTE_TOKENS];
    VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++)
      row[i] = vf_load_as_next(op->x, x[i] + h, left, act);
    VEC_UNROLL for (int j = 0; j < ROUTE_EXPERTS; j++) {
      vf weight = vf_load_as_next(op->w, w[j] + h, left, dtype);
      VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++)
        sum[i][j] = vf_fma(row[i], weight, sum[i][j]);
    }
  }
  VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++)
    VEC_UNROLL for (int j = 0; j < ROUTE_EXPERTS; j++)
      if (t + i < end && e + j < op->experts)
        op->prob[(t + i) * op->experts + e + j] = vf_sum(sum[i][j]);
}

/* Turns the rows of logits of tokens t .. into scores; total becomes their sums of exponentials and
 * lse their largest logits. Rows are read before others are written: a read of what a masked
 * write may touch waits for it. */
VEC_INLINE void route_score(const op_route_t *op, int64_t t, int64_t end, float *lse,
                            float *total) {
  const int sigmoid = op->router.score == NN_SCORE_SIGMOID;
  const int64_t experts = op->experts, last = (experts - 1) / VEC_WIDTH * VEC_WIDTH;
  float *row[ROUTE_TOKENS];
  vf largest[ROUTE_TOKENS], sum[ROUTE_TOKENS], score[ROUTE_TOKENS];
  VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++) {
    row[i] = op->prob + vec_min(t + i, end - 1) * experts;
    largest[i] = vf_set1(-INFINITY), sum[i] = score[i] = vf_zero();
  }
  for (int64_t e = 0; e < experts; e += VEC_WIDTH) {
    vmask mask = vf_mask(vec_min(VEC_WIDTH, experts - e));
    VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++)
      largest[i] = vf_max(largest[i],
                          vf_select(mask, vf_load_mask(row[i] + e, mask), vf_set1(-INFINITY)));
  }
  VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++) {
    float most = vf_max_lane(largest[i]);
    largest[i] = vf_set1(most);
    if (t + i < end) lse[i] = most;
  }
  for (int64_t e = 0; e < experts; e += VEC_WIDTH) {
    vmask mask = vf_mask(vec_min(VEC_WIDTH, experts - e));
    VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++) {
      vf logit = vf_load_mask(row[i] + e, mask), p = vf_exp(vf_sub(logit, largest[i]));
      score[i] = sigmoid ? vf_sigmoid(logit) : p;
      sum[i] = vf_add(sum[i], vf_select(mask, p, vf_zero()));
    }
    VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++)
      if (e < last && t + i < end) vf_store(row[i] + e, score[i]);
  }
  VEC_UNROLL for (int i = 0; i < ROUTE_TOKENS; i++) {
    float all = vf_sum(sum[i]);
    if (t + i >= end) continue;
    total[i] = all;
    for (int64_t e = 0; !sigmoid && e < last; e += VEC_WIDTH)
      vf_store(row[i] + e, vf_div(vf_load(row[i] + e), vf_set1(all)));
    if (!sigmoid) score[i] = vf_div(score[i], vf_set1(all));
    vf_store_next(row[i] + last, experts - last, score[i]);
  }
}

static void route_add_bias(const op_route_t *op, float *row) {
  for (int64_t e = 0; e < op->experts; e += VEC_WIDTH) {
    int64_t left = op->experts - e;
    vf bias = vf_load_as_next(op->router.bias, e, left, op->weight_dtype);
    vf_store_next(row + e, left, vf_add(vf_load_next(row + e, left), bias));
  }
}

/* The choice for a token with scores `prob`, and its weights. */
static void route_token(const op_route_t *op, const float *prob, int32_t *expert, float *weight) {
  float choice[CHOICE_EXPERTS], sum = 0.0f, scale = backend_factor(op->router.scale);
  for (int64_t e = 0; op->router.choice_bias && e < op->experts; e++)
    choice[e] = prob[e] + vec_load_as(op->router.choice_bias, e, op->weight_dtype);
  choice_make(&op->router, op->router.choice_bias ? choice : prob, op->experts, op->top_k, expert);
  for (int64_t j = 0; j < op->top_k; j++) sum += prob[expert[j]];
  if (op->router.norm == NN_ROUTER_NORM_NONE) sum = 1.0f;
  for (int64_t j = 0; j < op->top_k; j++) weight[j] = scale * prob[expert[j]] / sum;
}

/* Adds a token's probabilities to the sums; those of sigmoids are divided by their sum. */
static void route_sum(const op_route_t *op, const float *prob, double *sums) {
  double all = op->router.score == NN_SCORE_SIGMOID ? 0 : 1;
  if (op->router.score == NN_SCORE_SIGMOID)
    for (int64_t e = 0; e < op->experts; e++) all += prob[e];
  for (int64_t e = 0; e < op->experts; e++) sums[e] += prob[e] / all;
}

static void route_block(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const route_t *job = context;
  const op_route_t *op = job->op;
  int64_t begin = item * ROUTE_BLOCK, end = vec_min(op->n, begin + ROUTE_BLOCK);
  for (int64_t t = begin; t < end; t += ROUTE_TOKENS)
    for (int64_t e = 0; e < op->experts; e += ROUTE_EXPERTS)
      VEC_BY_DTYPES(op->weight_dtype, op->act_dtype,
                    route_dots(op, t, end, e, VEC_DTYPE, VEC_ACT));
  double *sums = job->sums + item * (op->experts + 1);
  int32_t *count = job->place + item * op->experts;
  float total[ROUTE_BLOCK];
  memset(sums, 0, (size_t)(op->experts + 1) * sizeof *sums);
  memset(count, 0, (size_t)op->experts * sizeof *count);
  for (int64_t t = begin; t < end; t++) {
    if (op->router.bias) route_add_bias(op, op->prob + t * op->experts);
    if (op->router.score == NN_SCORE_SPARSE_MIXER) choice_mix(op, t);
  }
  for (int64_t t = begin; t < end; t += ROUTE_TOKENS)
    route_score(op, t, end, op->lse + t, total + t - begin);
  for (int64_t t = begin; t < end; t++) {
    float *prob = op->prob + t * op->experts;
    int32_t *expert = op->out.expert + t * op->top_k;
    op->lse[t] += logf(total[t - begin]);
    if (op->router.score != NN_SCORE_SPARSE_MIXER)
      route_token(op, prob, expert, op->out.weight + t * op->top_k);
    for (int64_t j = 0; j < op->top_k; j++) count[expert[j]]++;
    route_sum(op, prob, sums);
    sums[op->experts] += (double)op->lse[t] * op->lse[t];
  }
}

/* ---- sort and statistics --------------------------------------------------------------------- */

/* Offsets, shares and counts; place becomes each block's first rank. */
static void route_offsets(const route_t *job, int64_t blocks) {
  const op_route_t *op = job->op;
  int64_t slots = op->n * op->top_k, dropped = 0;
  op->out.offset[0] = 0;
  for (int64_t e = 0; e < op->experts; e++) {
    int32_t chosen = 0;
    for (int64_t block = 0; block < blocks; block++) {
      int32_t *place = job->place + block * op->experts + e, count = *place;
      *place = chosen;
      chosen += count;
    }
    int32_t kept = op->capacity && op->capacity < chosen ? (int32_t)op->capacity : chosen;
    op->out.offset[e + 1] = op->out.offset[e] + kept;
    op->share[e] = (float)((double)chosen / (double)slots);
    dropped += chosen - kept;
    if (op->stat_count) op->stat_count[e] += chosen;
  }
  if (op->stat_count) op->stat_count[op->experts] += dropped;
}

static void route_statistics(const route_t *job, int64_t blocks) {
  const op_route_t *op = job->op;
  for (int64_t e = 0; e <= op->experts; e++) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; block++)
      sum += job->sums[block * (op->experts + 1) + e];
    float *mean = e < op->experts ? op->mean_prob + e : op->mean_lse2;
    *mean = (float)(sum / (double)op->n);
    if (op->stat_prob && e < op->experts) op->stat_prob[e] += sum;
  }
}

/* Gives each slot of a block its row: its rank among the slots of its expert. */
static void route_place(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const route_t *job = context;
  const op_route_t *op = job->op;
  int32_t *place = job->place + item * op->experts;
  int64_t end = vec_min(op->n, (item + 1) * ROUTE_BLOCK) * op->top_k;
  for (int64_t slot = item * ROUTE_BLOCK * op->top_k; slot < end; slot++) {
    int32_t e = op->out.expert[slot], row = op->out.offset[e] + place[e]++;
    int kept = row < op->out.offset[e + 1];
    op->out.slot_row[slot] = kept ? row : -1;
    if (kept) op->out.row_slot[row] = (int32_t)slot;
  }
}

VEC_OP(route, op_route_t) {
  int64_t blocks = vec_blocks(op->n, ROUTE_BLOCK), work = op->n * op->experts * op->hidden;
  route_t job = {.op = op, .sums = scratch.data};
  job.place = (int32_t *)(job.sums + blocks * (op->experts + 1));
  STATUS_TRY(vec_run(device, blocks, work, route_block, &job));
  route_offsets(&job, blocks);
  route_statistics(&job, blocks);
  return vec_run(device, blocks, op->n * op->top_k, route_place, &job);
}

/* ---- backward -------------------------------------------------------------------------------- */

typedef struct route_bwd {
  const op_route_bwd_t *op;
  float *dlogit; /* [n, E] */
} route_bwd_t;

static void route_dlogit(const op_route_bwd_t *op, int64_t t, float *dlogit) {
  const float *prob = op->prob + t * op->experts;
  const float *weight = op->routing.weight + t * op->top_k, *dweight = op->dweight + t * op->top_k;
  const int32_t *expert = op->routing.expert + t * op->top_k;
  float chosen = 0.0f, mean = 0.0f, dot = 0.0f, scale = backend_factor(op->router.scale);
  float aux = op->aux_scale / (float)op->n, z = 2.0f * op->z_scale * op->lse[t] / (float)op->n;
  for (int64_t j = 0; j < op->top_k; j++) {
    chosen += prob[expert[j]];
    mean += dweight[j] * weight[j];
  }
  if (op->router.norm == NN_ROUTER_NORM_NONE) chosen = 1.0f, mean = 0.0f;
  if (op->router.score == NN_SCORE_SPARSE_MIXER) scale = 0.0f, mean = 0.0f; /* not through prob */
  for (int64_t e = 0; e < op->experts; e++) dlogit[e] = aux * op->aux_share[e];
  for (int64_t j = 0; j < op->top_k; j++)
    dlogit[expert[j]] += (scale * dweight[j] - mean) / chosen;
  if (op->router.score == NN_SCORE_SIGMOID) {
    for (int64_t e = 0; e < op->experts; e++) dlogit[e] *= prob[e] * (1.0f - prob[e]);
    return;
  }
  for (int64_t e = 0; e < op->experts; e++) dot += prob[e] * dlogit[e];
  for (int64_t e = 0; e < op->experts; e++) dlogit[e] = prob[e] * (dlogit[e] - dot + z);
  if (op->router.score != NN_SCORE_SPARSE_MIXER) return;
  float logit[CHOICE_EXPERTS];
  for (int64_t e = 0; e < op->experts; e++) logit[e] = logf(prob[e]) + op->lse[t];
  choice_mix_bwd(logit, op->experts, op->router.eps, expert, dweight,
                 backend_factor(op->router.scale), dlogit);
}

static void route_add_product(const outer_t *product) { outer_run(product, OUTER_ADD); }

/* Rows of a matrix [rows, columns], ld elements apart, as floats where they lie, or in room. */
static const float *route_rows(const void *x, int64_t at, int64_t rows, int64_t columns, int64_t ld,
                               int32_t dtype, float *room) {
  if (dtype == NN_F32) return (const float *)x + at;
  for (int64_t r = 0; r < rows; r++) vec_row(x, at + r * ld, columns, dtype, room + r * columns);
  return room;
}

/* dx of a block's tokens += dlogit w in columns column .. column + columns - 1. */
static void route_bwd_dx(const op_route_bwd_t *op, const float *dlogit, int64_t begin, int64_t rows,
                         int64_t column, int64_t columns) {
  float dx_room[ROUTE_BLOCK * ROUTE_STRIP], w_room[ROUTE_BLOCK * ROUTE_STRIP];
  int wide = op->act_dtype == NN_F32;
  int64_t first = begin * op->hidden + column;
  int64_t step = op->weight_dtype == NN_F32 ? op->experts : ROUTE_BLOCK; /* that w_room holds */
  float *dx = wide ? (float *)op->dx + first : dx_room;
  if (!wide) route_rows(op->dx, first, rows, columns, op->hidden, op->act_dtype, dx_room);
  for (int64_t e = 0; e < op->experts; e += step) {
    int64_t terms = vec_min(step, op->experts - e);
    const float *w = route_rows(op->w, e * op->hidden + column, terms, columns, op->hidden,
                                op->weight_dtype, w_room);
    route_add_product(&(outer_t){.rows = rows, .columns = columns, .terms = terms,
                                 .a = dlogit + e, .step_x = op->experts, .step_t = 1,
                                 .b = w, .ldb = w == w_room ? columns : op->hidden,
                                 .c = dx, .ldc = wide ? op->hidden : columns});
  }
  for (int64_t r = 0; !wide && r < rows; r++)
    vec_row_to_bf16(dx_room + r * columns, columns, (uint16_t *)op->dx + first + r * op->hidden);
}

static void route_bwd_block(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const route_bwd_t *job = context;
  const op_route_bwd_t *op = job->op;
  int64_t begin = item * ROUTE_BLOCK, end = vec_min(op->n, begin + ROUTE_BLOCK);
  float *dlogit = job->dlogit + begin * op->experts;
  for (int64_t t = begin; t < end; t++) route_dlogit(op, t, dlogit + (t - begin) * op->experts);
  int direct = op->act_dtype == NN_F32 && op->weight_dtype == NN_F32;
  int64_t step = direct ? op->hidden : ROUTE_STRIP;
  for (int64_t c = 0; c < op->hidden; c += step)
    route_bwd_dx(op, dlogit, begin, end - begin, c, vec_min(step, op->hidden - c));
}

static void route_bwd_strip(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const route_bwd_t *job = context;
  const op_route_bwd_t *op = job->op;
  int64_t column = item * ROUTE_STRIP, columns = vec_min(ROUTE_STRIP, op->hidden - column);
  float room[ROUTE_BLOCK * ROUTE_STRIP];
  for (int64_t t = 0; t < op->n; t += ROUTE_BLOCK) {
    int64_t terms = vec_min(ROUTE_BLOCK, op->n - t);
    const float *x = route_rows(op->x, t * op->hidden + column, terms, columns, op->hidden,
                                op->act_dtype, room);
    route_add_product(&(outer_t){.rows = op->experts, .columns = columns, .terms = terms,
                                 .a = job->dlogit + t * op->experts, .step_x = 1,
                                 .step_t = op->experts,
                                 .b = x, .ldb = x == room ? columns : op->hidden,
                                 .c = op->dw + column, .ldc = op->hidden});
  }
}

/* item: VEC_WIDTH experts; tokens in order. */
static void route_bwd_bias(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const route_bwd_t *job = context;
  const op_route_bwd_t *op = job->op;
  int64_t e = item * VEC_WIDTH, left = op->experts - e;
  vf sum = vf_zero();
  for (int64_t t = 0; t < op->n; t++)
    sum = vf_add(sum, vf_load_next(job->dlogit + t * op->experts + e, left));
  vf_store_next(op->dbias + e, left, vf_add(vf_load_next(op->dbias + e, left), sum));
}

VEC_OP(route_bwd, op_route_bwd_t) {
  route_bwd_t job = {op, scratch.data};
  int64_t work = op->n * op->experts * op->hidden;
  STATUS_TRY(vec_run(device, vec_blocks(op->n, ROUTE_BLOCK), work, route_bwd_block, &job));
  if (op->dbias)
    STATUS_TRY(vec_run(device, vec_blocks(op->experts, VEC_WIDTH), op->n * op->experts,
                       route_bwd_bias, &job));
  return vec_run(device, vec_blocks(op->hidden, ROUTE_STRIP), work, route_bwd_strip, &job);
}
