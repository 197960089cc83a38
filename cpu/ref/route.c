/* Routing: softmax of x w^T over the experts, the k most probable (ties to the lower index),
 * renormalised, and the slots sorted by expert; assigns. Where capacity bounds an expert, its first
 * tokens stay. Backward: with p the probabilities, S the sum of the chosen ones and w_j = p_j / S,
 *   dprob_j = (dweight_j - sum_i dweight_i w_i) / S for the chosen, and for all
 *   dprob_e += aux_scale aux_share_e / n,
 *   dlogit_e = p_e (dprob_e - sum_i p_i dprob_i) + 2 z_scale lse p_e / n,
 * and then dx += dlogit w and dw += dlogit^T x. Sums over tokens run in order. */
#include <math.h>

#include "ref.h"

enum { ROUTE_ROWS = REF_TILE_ROWS };

/* Logits of a block of tokens, kept in prob until the softmax. */
static void route_logits(const op_route_t *op, int64_t begin) {
  ref_matrix_t x = {op->x, NN_F32, op->hidden, 1, NULL};
  ref_matrix_t w = {op->w, op->weight_dtype, 1, op->hidden, NULL};
  for (int64_t e = 0; e < op->experts; e += REF_TILE_COLS) {
    ref_tile_t tile = {{{0}}};
    ref_tile_add(&tile, &x, &w, op->n, op->experts, op->hidden, begin, e);
    ref_tile_assign(&tile, op->prob, op->experts, 1, op->n, op->experts, begin, e);
  }
}

/* Turns a row of logits into probabilities; returns the log-sum-exp. */
static double route_softmax(float *row, int64_t experts) {
  double largest = row[0], sum = 0;
  for (int64_t e = 1; e < experts; e++) largest = row[e] > largest ? row[e] : largest;
  for (int64_t e = 0; e < experts; e++) sum += exp(row[e] - largest);
  for (int64_t e = 0; e < experts; e++) row[e] = (float)(exp(row[e] - largest) / sum);
  return largest + log(sum);
}

/* The k largest in falling order. Later entries move behind equals, and NaN behind everything, so
 * the indices are valid and distinct whatever the numbers are. */
static void route_choose(const float *prob, int64_t experts, int64_t k, int32_t *expert,
                         float *weight) {
  int64_t kept = 0;
  for (int64_t e = 0; e < experts; e++) {
    int64_t j = kept;
    while (j > 0 && prob[e] > prob[expert[j - 1]]) j--;
    if (j == k) continue;
    kept = ref_min(kept + 1, k);
    memmove(expert + j + 1, expert + j, (size_t)(kept - 1 - j) * sizeof *expert);
    expert[j] = (int32_t)e;
  }
  double sum = 0;
  for (int64_t j = 0; j < k; j++) sum += prob[expert[j]];
  for (int64_t j = 0; j < k; j++) weight[j] = (float)(prob[expert[j]] / sum);
}

static void route_rows(void *context, int64_t item, int32_t thread) {
  const op_route_t *op = context;
  (void)thread;
  int64_t begin = item * ROUTE_ROWS, end = ref_min(op->n, begin + ROUTE_ROWS);
  route_logits(op, begin);
  for (int64_t t = begin; t < end; t++) {
    float *prob = op->prob + t * op->experts;
    op->lse[t] = (float)route_softmax(prob, op->experts);
    route_choose(prob, op->experts, op->top_k, op->out.expert + t * op->top_k,
                 op->out.weight + t * op->top_k);
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

static void route_statistics(const op_route_t *op) {
  double lse2 = 0;
  for (int64_t t = 0; t < op->n; t++) lse2 += (double)op->lse[t] * op->lse[t];
  *op->mean_lse2 = (float)(lse2 / (double)op->n);
  for (int64_t e = 0; e < op->experts; e++) {
    double sum = 0;
    for (int64_t t = 0; t < op->n; t++) sum += op->prob[t * op->experts + e];
    op->mean_prob[e] = (float)(sum / (double)op->n);
    if (op->stat_prob) op->stat_prob[e] += sum;
  }
}

size_t ref_route_scratch(const backend_limits_t *limits) {
  size_t forward = ref_piece(1, limits->experts, sizeof(int32_t));
  size_t backward = ref_piece(limits->rows, limits->experts, sizeof(float));
  return limits->training && backward > forward ? backward : forward;
}

nn_status_t ref_route(backend_device_t *device, const op_route_t *op, backend_scratch_t scratch) {
  STATUS_TRY(pool_run(device->pool, ref_blocks(op->n, ROUTE_ROWS), route_rows, (void *)op));
  route_sort(op, scratch.data);
  route_statistics(op);
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
  for (int64_t j = 0; j < op->top_k; j++) {
    chosen += prob[expert[j]];
    mean += (double)dweight[j] * weight[j];
  }
  for (int64_t e = 0; e < op->experts; e++)
    dlogit[e] = (float)(op->aux_scale * op->aux_share[e] / n);
  for (int64_t j = 0; j < op->top_k; j++)
    dlogit[expert[j]] = (float)(dlogit[expert[j]] + (dweight[j] - mean) / chosen);
  for (int64_t e = 0; e < op->experts; e++) dot += (double)prob[e] * dlogit[e];
  double z = 2.0 * op->z_scale * op->lse[t] / n;
  for (int64_t e = 0; e < op->experts; e++) dlogit[e] = (float)(prob[e] * (dlogit[e] - dot + z));
}

static void route_bwd_rows(void *context, int64_t item, int32_t thread) {
  const route_bwd_t *bwd = context;
  const op_route_bwd_t *op = bwd->op;
  (void)thread;
  int64_t begin = item * ROUTE_ROWS, end = ref_min(op->n, begin + ROUTE_ROWS);
  for (int64_t t = begin; t < end; t++) route_dlogit(op, t, bwd->dlogit + t * op->experts);
  ref_matrix_t dlogit = {bwd->dlogit, NN_F32, op->experts, 1, NULL};
  ref_matrix_t w = {op->w, op->weight_dtype, op->hidden, 1, NULL};
  for (int64_t c = 0; c < op->hidden; c += REF_TILE_COLS) {
    ref_tile_t tile = {{{0}}};
    ref_tile_add(&tile, &dlogit, &w, op->n, op->hidden, op->experts, begin, c);
    ref_tile_accumulate(&tile, op->dx, op->hidden, 1, op->n, op->hidden, begin, c);
  }
}

static void route_bwd_weights(void *context, int64_t item, int32_t thread) {
  const route_bwd_t *bwd = context;
  const op_route_bwd_t *op = bwd->op;
  (void)thread;
  int64_t across = ref_blocks(op->hidden, REF_TILE_COLS);
  int64_t e = item / across * REF_TILE_ROWS, c = item % across * REF_TILE_COLS;
  ref_matrix_t dlogit = {bwd->dlogit, NN_F32, 1, op->experts, NULL};
  ref_matrix_t x = {op->x, NN_F32, op->hidden, 1, NULL};
  ref_tile_t tile = {{{0}}};
  ref_tile_add(&tile, &dlogit, &x, op->experts, op->hidden, op->n, e, c);
  ref_tile_accumulate(&tile, op->dw, op->hidden, 1, op->experts, op->hidden, e, c);
}

nn_status_t ref_route_bwd(backend_device_t *device, const op_route_bwd_t *op,
                          backend_scratch_t scratch) {
  route_bwd_t bwd = {op, scratch.data};
  STATUS_TRY(pool_run(device->pool, ref_blocks(op->n, ROUTE_ROWS), route_bwd_rows, &bwd));
  int64_t tiles = ref_blocks(op->experts, REF_TILE_ROWS) * ref_blocks(op->hidden, REF_TILE_COLS);
  return pool_run(device->pool, tiles, route_bwd_weights, &bwd);
}
