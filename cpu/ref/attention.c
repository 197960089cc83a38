/* Causal attention, one query row and head at a time: a running maximum and a running sum, so that
 * no scores are kept (Milakov and Gimelshein, 2018). Backward makes the probabilities again from
 * the log-sum-exp: once per query row for dq, once per key row for dk and dv, so that each output
 * row has one writer. Sums run over keys, or over heads and then queries, in order. A sink is where
 * the running sum begins; its gradient is -exp(sink - lse) <dout, o>, summed over rows in order. */
#include <math.h>

#include "ref.h"

enum { ATTENTION_DIM = 256 }; /* largest head dim */

/* Softmax of a row of scores so far: values weighted by exp(score - largest), and those weights. */
typedef struct attention_sum {
  double largest, weight, value[ATTENTION_DIM];
} attention_sum_t;

static void attention_add(attention_sum_t *sum, double score, const float *v, int64_t dim) {
  if (score > sum->largest) {
    double shrink = exp(sum->largest - score);
    sum->weight *= shrink;
    for (int64_t d = 0; d < dim; d++) sum->value[d] *= shrink;
    sum->largest = score;
  }
  double weight = exp(score - sum->largest);
  sum->weight += weight;
  for (int64_t d = 0; d < dim; d++) sum->value[d] += weight * v[d];
}

/* The first key that a query sees whose own key is `last`. */
static int64_t attention_first(int64_t window, int64_t last) {
  return window && last >= window ? last - window + 1 : 0;
}

/* item: a row of q and o, and a head. */
static void attention_row(void *context, int64_t item, int32_t thread) {
  const op_attention_t *op = context;
  (void)thread;
  int64_t row = item / op->heads, head = item % op->heads, dim = op->head_dim;
  int64_t b = row / op->q_len, i = row % op->q_len, kv_head = head / (op->heads / op->kv_heads);
  int64_t kv_len = op->kv_len ? op->kv_len[b] : op->q_len;
  int64_t last = kv_len ? kv_len - op->q_len + i : -1;
  int64_t kv = (op->sequence ? op->sequence[b] : b) * op->kv_batch + kv_head * dim;
  float room[3][ATTENTION_DIM];
  const float *q = ref_row(op->q, op->act_dtype, row * op->ldq + head * dim, dim, room[0]);

  attention_sum_t sum = {.largest = -INFINITY};
  if (op->sinks && last >= 0)
    sum.largest = ref_load(op->sinks, op->weight_dtype, head), sum.weight = 1;
  for (int64_t j = attention_first(op->window, last); j <= last; j++) {
    const float *k = ref_row(op->k, op->act_dtype, kv + j * op->ldkv, dim, room[1]);
    const float *v = ref_row(op->v, op->act_dtype, kv + j * op->ldkv, dim, room[2]);
    attention_add(&sum, op->scale * ref_dot(q, k, dim), v, dim);
  }
  for (int64_t d = 0; d < dim; d++)
    ref_store(op->o, op->act_dtype, (row * op->heads + head) * dim + d,
              last < 0 ? 0 : (float)(sum.value[d] / sum.weight));
  if (op->lse) op->lse[row * op->heads + head] = (float)(sum.largest + log(sum.weight));
}

nn_status_t ref_attention(backend_device_t *device, const op_attention_t *op,
                          backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, op->batch * op->q_len * op->heads, attention_row, (void *)op);
}

typedef struct attention_bwd {
  const op_attention_bwd_t *op;
  double *delta; /* [batch * q_len, A] <dout, o> */
} attention_bwd_t;

size_t ref_attention_scratch(const backend_limits_t *limits) {
  return limits->training ? ref_piece(limits->rows, limits->heads, sizeof(double)) : 0;
}

/* For query row i of sequence b, head `head`, and its key row j: the probability, and the gradient
 * of the scaled score. */
static double attention_score_bwd(const attention_bwd_t *bwd, int64_t b, int64_t head, int64_t i,
                                  int64_t j, double *dscore) {
  const op_attention_bwd_t *op = bwd->op;
  int64_t dim = op->head_dim, at = (b * op->q_len + i) * op->heads + head;
  int64_t key = b * op->kv_batch + j * op->ldkv + head / (op->heads / op->kv_heads) * dim;
  int64_t query = (b * op->q_len + i) * op->ldq + head * dim;
  float room[4][ATTENTION_DIM];
  const float *q = ref_row(op->q, op->act_dtype, query, dim, room[0]);
  const float *k = ref_row(op->k, op->act_dtype, key, dim, room[1]);
  const float *v = ref_row(op->v, op->act_dtype, key, dim, room[2]);
  const float *dout = ref_row(op->dout, op->act_dtype, at * dim, dim, room[3]);
  double p = exp(op->scale * ref_dot(q, k, dim) - op->lse[at]);
  *dscore = p * (ref_dot(dout, v, dim) - bwd->delta[at]);
  return p;
}

/* item: a row of q, and a head. Comes first, and leaves delta for the keys' turn. */
static void attention_bwd_query(void *context, int64_t item, int32_t thread) {
  const attention_bwd_t *bwd = context;
  const op_attention_bwd_t *op = bwd->op;
  (void)thread;
  int64_t row = item / op->heads, head = item % op->heads, dim = op->head_dim;
  int64_t b = row / op->q_len, i = row % op->q_len, kv_head = head / (op->heads / op->kv_heads);
  float room[2][ATTENTION_DIM];
  const float *o = ref_row(op->o, op->act_dtype, item * dim, dim, room[0]);
  const float *dout = ref_row(op->dout, op->act_dtype, item * dim, dim, room[1]);
  bwd->delta[item] = ref_dot(dout, o, dim);
  double sum[ATTENTION_DIM] = {0};
  for (int64_t j = attention_first(op->window, i); j <= i; j++) {
    double dscore;
    attention_score_bwd(bwd, b, head, i, j, &dscore);
    int64_t key = b * op->kv_batch + kv_head * dim + j * op->ldkv;
    const float *k = ref_row(op->k, op->act_dtype, key, dim, room[0]);
    for (int64_t d = 0; d < dim; d++) sum[d] += dscore * k[d];
  }
  for (int64_t d = 0; d < dim; d++)
    ref_store(op->dq, op->act_dtype, row * op->ldq + head * dim + d, (float)(op->scale * sum[d]));
}

/* item: a row of k and v, and a key-value head. */
static void attention_bwd_key(void *context, int64_t item, int32_t thread) {
  const attention_bwd_t *bwd = context;
  const op_attention_bwd_t *op = bwd->op;
  (void)thread;
  int64_t dim = op->head_dim, group = op->heads / op->kv_heads;
  int64_t kv_head = item % op->kv_heads, b = item / op->kv_heads / op->q_len;
  int64_t j = item / op->kv_heads % op->q_len;
  int64_t end = op->window ? ref_min(op->q_len, j + op->window) : op->q_len;
  double dk[ATTENTION_DIM] = {0}, dv[ATTENTION_DIM] = {0};
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
    for (int64_t i = j; i < end; i++) {
      int64_t row = b * op->q_len + i, out = (row * op->heads + head) * dim;
      float room[2][ATTENTION_DIM];
      const float *q = ref_row(op->q, op->act_dtype, row * op->ldq + head * dim, dim, room[0]);
      const float *dout = ref_row(op->dout, op->act_dtype, out, dim, room[1]);
      double dscore, p = attention_score_bwd(bwd, b, head, i, j, &dscore);
      for (int64_t d = 0; d < dim; d++) {
        dk[d] += dscore * q[d];
        dv[d] += p * dout[d];
      }
    }
  }
  int64_t at = b * op->kv_batch + j * op->ldkv + kv_head * dim;
  for (int64_t d = 0; d < dim; d++) {
    ref_store(op->dk, op->act_dtype, at + d, (float)(op->scale * dk[d]));
    ref_store(op->dv, op->act_dtype, at + d, (float)dv[d]);
  }
}

static void attention_bwd_sink(void *context, int64_t head, int32_t thread) {
  const attention_bwd_t *bwd = context;
  const op_attention_bwd_t *op = bwd->op;
  (void)thread;
  double sink = ref_load(op->sinks, op->weight_dtype, head), sum = 0;
  for (int64_t at = head; at < op->batch * op->q_len * op->heads; at += op->heads)
    sum += exp(sink - op->lse[at]) * bwd->delta[at];
  op->dsinks[head] = (float)(op->dsinks[head] - sum);
}

nn_status_t ref_attention_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                              backend_scratch_t scratch) {
  attention_bwd_t bwd = {op, scratch.data};
  int64_t rows = op->batch * op->q_len;
  STATUS_TRY(pool_run(device->pool, rows * op->heads, attention_bwd_query, &bwd));
  if (op->sinks) STATUS_TRY(pool_run(device->pool, op->heads, attention_bwd_sink, &bwd));
  return pool_run(device->pool, rows * op->kv_heads, attention_bwd_key, &bwd);
}
