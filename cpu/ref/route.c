/* Routing: the experts' scores p (softmax or sigmoid of x w^T + b), the choice of op_router_t, and
 * the slots sorted by expert; assigns. Where capacity bounds an expert, its first tokens stay.
 * Backward, with S the sum of the chosen p and w_j = scale p_j / S (or scale p_j):
 *   dprob_j = (scale dweight_j - sum_i dweight_i w_i) / S (or scale dweight_j) for the chosen, and
 *   for all dprob_e += aux_scale aux_share_e / n,
 *   dlogit_e = p_e (dprob_e - sum_i p_i dprob_i) + 2 z_scale lse p_e / n for softmax,
 *   dlogit_e = p_e (1 - p_e) dprob_e for sigmoid,
 * and then dx += dlogit w, dw += dlogit^T x and db += dlogit. Sums over tokens run in order. */
#include <math.h>

#include "choice.h"
#include "ref.h"

enum { ROUTE_ROWS = REF_TILE_ROWS };

/* Logits of a block of tokens, kept in prob until the softmax. */
static void route_logits(const op_route_t *op, int64_t begin) {
  ref_matrix_t x = {.data = op->x, .dtype = op->act_dtype, .row = op->hidden, .col = 1};
  ref_matrix_t w = {.data = op->w, .dtype = op->weight_dtype, .row = 1, .col = op->hidden};
  ref_place_t logits = {.data = op->prob, .row = op->experts, .col = 1};
  for (int64_t e = 0; e < op->experts; e += REF_TILE_COLS) {
    ref_tile_t tile = {{{0}}};
    ref_tile_add(&tile, &x, &w, op->n, op->experts, op->hidden, begin, e);
    ref_tile_assign(&tile, &logits, op->n, op->experts, begin, e);
  }
}

static void route_add_bias(const op_route_t *op, float *row) {
  for (int64_t e = 0; e < op->experts; e++)
    row[e] += ref_load(op->router.bias, op->weight_dtype, e);
}

/* Turns a row of logits into scores; returns the log-sum-exp of the logits. */
static double route_scores(int32_t score, float *row, int64_t experts) {
  double largest = row[0], sum = 0;
  for (int64_t e = 1; e < experts; e++) largest = row[e] > largest ? row[e] : largest;
  for (int64_t e = 0; e < experts; e++) sum += exp(row[e] - largest);
  for (int64_t e = 0; e < experts; e++)
    row[e] = (float)(score == NN_SCORE_SIGMOID ? 1 / (1 + exp(-(double)row[e]))
                                               : exp(row[e] - largest) / sum);
  return largest + log(sum);
}

/* The choice for a token with scores `prob`, and its weights. */
static void route_token(const op_route_t *op, const float *prob, int32_t *expert, float *weight) {
  float choice[CHOICE_EXPERTS];
  for (int64_t e = 0; op->router.choice_bias && e < op->experts; e++)
    choice[e] = prob[e] + ref_load(op->router.choice_bias, op->weight_dtype, e);
  choice_make(&op->router, op->router.choice_bias ? choice : prob, op->experts, op->top_k, expert);
  double sum = 0, scale = backend_factor(op->router.scale);
  for (int64_t j = 0; j < op->top_k; j++) sum += prob[expert[j]];
  if (op->router.norm == NN_ROUTER_NORM_NONE) sum = 1;
  for (int64_t j = 0; j < op->top_k; j++) weight[j] = (float)(scale * prob[expert[j]] / sum);
}

static void route_rows(void *context, int64_t item, int32_t thread) {
  const op_route_t *op = context;
  (void)thread;
  int64_t begin = item * ROUTE_ROWS, end = ref_min(op->n, begin + ROUTE_ROWS);
  route_logits(op, begin);
  for (int64_t t = begin; t < end; t++) {
    float *prob = op->prob + t * op->experts;
    if (op->router.bias) route_add_bias(op, prob);
    if (op->router.score == NN_SCORE_SPARSE_MIXER) choice_mix(op, t);
    op->lse[t] = (float)route_scores(op->router.score, prob, op->experts);
    if (op->router.score != NN_SCORE_SPARSE_MIXER)
      route_token(op, prob, op->out.expert + t * op->top_k, op->out.weight + t * op->top_k);
  }
}

/* Sorts slots by expert, then by token, and counts how many chose each expert. cursor: [E] the row
 * that an expert's next slot gets. */
static void route_sort(const op_route_t *op, int32_t *cursor) {
  const routing_t *out = &op->out;
  int64_t slots = op->n * op->top_k, dropped = 0;
  memset(cursor, 0, (size_t)op->experts * sizeof *cursor);
  for (int64_t s = 0; s < slots; s++) cursor[out->expert[s]]++;
  out->offset[0] = 0;
  for (int64_t e = 0; e < op->experts; e++) {
    int64_t chosen = cursor[e], kept = op->capacity ? ref_min(chosen, op->capacity) : chosen;
    op->share[e] = (float)((double)chosen / (double)slots);
    if (op->stat_count) op->stat_count[e] += chosen;
    dropped += chosen - kept;
    cursor[e] = out->offset[e];
    out->offset[e + 1] = out->offset[e] + (int32_t)kept;
  }
  if (op->stat_count) op->stat_count[op->experts] += dropped;
  for (int64_t s = 0; s < slots; s++) {
    int32_t e = out->expert[s], row = cursor[e];
    out->slot_row[s] = row < out->offset[e + 1] ? row : -1;
    if (out->slot_row[s] < 0) continue;
    out->row_slot[row] = (int32_t)s;
    cursor[e]++;
  }
}

/* sum: [E] of the probabilities over the tokens. */
static void route_statistics(const op_route_t *op, double *sum) {
  double lse2 = 0;
  memset(sum, 0, (size_t)op->experts * sizeof *sum);
  for (int64_t t = 0; t < op->n; t++) {
    const float *prob = op->prob + t * op->experts;
    double all = op->router.score == NN_SCORE_SIGMOID ? 0 : 1;
    for (int64_t e = 0; op->router.score == NN_SCORE_SIGMOID && e < op->experts; e++)
      all += prob[e];
    for (int64_t e = 0; e < op->experts; e++) sum[e] += prob[e] / all;
    lse2 += (double)op->lse[t] * op->lse[t];
  }
  *op->mean_lse2 = (float)(lse2 / (double)op->n);
  for (int64_t e = 0; e < op->experts; e++) {
    op->mean_prob[e] = (float)(sum[e] / (double)op->n);
    if (op->stat_prob) op->stat_prob[e] += sum[e];
  }
}

size_t ref_route_scratch(const backend_limits_t *limits) {
  size_t forward = ref_piece(1, limits->experts, sizeof(double)); /* of sorting: less */
  size_t backward = ref_piece(limits->rows, limits->experts, sizeof(float));
  return limits->training && backward > forward ? backward : forward;
}

nn_status_t ref_route(backend_device_t *device, const op_route_t *op, backend_scratch_t scratch) {
  STATUS_TRY(pool_run(device->pool, ref_blocks(op->n, ROUTE_ROWS), route_rows, (void *)op));
  route_sort(op, scratch.data);
  route_statistics(op, scratch.data);
  return NN_OK;
}

typedef struct route_bwd {
  const op_route_bwd_t *op;
  float *dlogit; /* [n, E] */
} route_bwd_t;

static void route_dlogit(const op_route_bwd_t *op, int64_t t, float *dlogit) {
  const float *prob = op->prob + t * op->experts;
  const float *weight = op->routing.weight + t * op->top_k, *dweight = op->dweight + t * op->top_k;
  const int32_t *expert = op->routing.expert + t * op->top_k;
  double n = (double)op->n, chosen = 0, mean = 0, dot = 0;
  double scale = backend_factor(op->router.scale);
  for (int64_t j = 0; j < op->top_k; j++) {
    chosen += prob[expert[j]];
    mean += (double)dweight[j] * weight[j];
  }
  if (op->router.norm == NN_ROUTER_NORM_NONE) chosen = 1, mean = 0;
  if (op->router.score == NN_SCORE_SPARSE_MIXER) scale = 0, mean = 0; /* not through prob */
  for (int64_t e = 0; e < op->experts; e++)
    dlogit[e] = (float)(op->aux_scale * op->aux_share[e] / n);
  for (int64_t j = 0; j < op->top_k; j++)
    dlogit[expert[j]] = (float)(dlogit[expert[j]] + (scale * dweight[j] - mean) / chosen);
  if (op->router.score == NN_SCORE_SIGMOID) {
    for (int64_t e = 0; e < op->experts; e++)
      dlogit[e] = (float)((double)prob[e] * (1 - prob[e]) * dlogit[e]);
    return;
  }
  for (int64_t e = 0; e < op->experts; e++) dot += (double)prob[e] * dlogit[e];
  double z = 2.0 * op->z_scale * op->lse[t] / n;
  for (int64_t e = 0; e < op->experts; e++) dlogit[e] = (float)(prob[e] * (dlogit[e] - dot + z));
  if (op->router.score != NN_SCORE_SPARSE_MIXER) return;
  float logit[CHOICE_EXPERTS];
  for (int64_t e = 0; e < op->experts; e++) logit[e] = (float)(log(prob[e]) + op->lse[t]);
  choice_mix_bwd(logit, op->experts, op->router.eps, expert, dweight,
                 backend_factor(op->router.scale), dlogit);
}

static void route_bwd_rows(void *context, int64_t item, int32_t thread) {
  const route_bwd_t *bwd = context;
  const op_route_bwd_t *op = bwd->op;
  (void)thread;
  int64_t begin = item * ROUTE_ROWS, end = ref_min(op->n, begin + ROUTE_ROWS);
  for (int64_t t = begin; t < end; t++) route_dlogit(op, t, bwd->dlogit + t * op->experts);
  ref_matrix_t dlogit = {.data = bwd->dlogit, .row = op->experts, .col = 1};
  ref_matrix_t w = {.data = op->w, .dtype = op->weight_dtype, .row = op->hidden, .col = 1};
  ref_place_t dx = {.data = op->dx, .dtype = op->act_dtype, .row = op->hidden, .col = 1};
  for (int64_t c = 0; c < op->hidden; c += REF_TILE_COLS) {
    ref_tile_t tile = {{{0}}};
    ref_tile_add(&tile, &dlogit, &w, op->n, op->hidden, op->experts, begin, c);
    ref_tile_accumulate(&tile, &dx, op->n, op->hidden, begin, c);
  }
}

static void route_bwd_weights(void *context, int64_t item, int32_t thread) {
  const route_bwd_t *bwd = context;
  const op_route_bwd_t *op = bwd->op;
  (void)thread;
  int64_t across = ref_blocks(op->hidden, REF_TILE_COLS);
  int64_t e = item / across * REF_TILE_ROWS, c = item % across * REF_TILE_COLS;
  ref_matrix_t dlogit = {.data = bwd->dlogit, .row = 1, .col = op->experts};
  ref_matrix_t x = {.data = op->x, .dtype = op->act_dtype, .row = op->hidden, .col = 1};
  ref_tile_t tile = {{{0}}};
  ref_tile_add(&tile, &dlogit, &x, op->experts, op->hidden, op->n, e, c);
  ref_place_t dw = {.data = op->dw, .row = op->hidden, .col = 1};
  ref_tile_accumulate(&tile, &dw, op->experts, op->hidden, e, c);
}

static void route_bwd_bias(const route_bwd_t *bwd) {
  const op_route_bwd_t *op = bwd->op;
  for (int64_t e = 0; e < op->experts; e++) {
    double sum = 0;
    for (int64_t t = 0; t < op->n; t++) sum += bwd->dlogit[t * op->experts + e];
    op->dbias[e] = (float)(op->dbias[e] + sum);
  }
}

nn_status_t ref_route_bwd(backend_device_t *device, const op_route_bwd_t *op,
                          backend_scratch_t scratch) {
  route_bwd_t bwd = {op, scratch.data};
  STATUS_TRY(pool_run(device->pool, ref_blocks(op->n, ROUTE_ROWS), route_bwd_rows, &bwd));
  if (op->dbias) route_bwd_bias(&bwd);
  int64_t tiles = ref_blocks(op->experts, REF_TILE_ROWS) * ref_blocks(op->hidden, REF_TILE_COLS);
  return pool_run(device->pool, tiles, route_bwd_weights, &bwd);
}
