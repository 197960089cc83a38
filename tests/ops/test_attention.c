/* Causal attention forward (training rows, and caches of ragged length) and backward, with windows
 * and sinks. */
#include <math.h>

#include "ops.h"

typedef struct attention_case {
  int64_t batch, q_len, heads, kv_heads, dim;
  int64_t past; /* keys before the first query of the last sequence; others have fewer, one has 0 */
  float q_scale;  /* 0: 1 */
  int64_t window; /* 0: none */
  int32_t sinks;
} attention_case_t;

static const attention_case_t training_cases[] = {
    {1, 1, 1, 1, 1, 0, 0, 0, 0},    {1, 1, 4, 1, 8, 0, 0, 0, 0},
    {1, 17, 4, 2, 16, 0, 0, 0, 0},  {2, 9, 3, 3, 20, 0, 0, 0, 0},
    {1, 65, 4, 1, 64, 0, 0, 0, 0},  {1, 33, 2, 1, 80, 0, 0, 0, 0},
    {2, 40, 2, 2, 128, 0, 0, 0, 0}, {1, 20, 2, 1, 256, 0, 0, 0, 0},
    {3, 7, 6, 2, 7, 0, 0, 0, 0},    {1, 21, 2, 1, 100, 0, 5, 0, 0},
    {2, 130, 5, 1, 64, 0, 0, 0, 0}, {1, 70, 3, 1, 16, 0, 100, 0, 0},
    {1, 1, 2, 1, 8, 0, 0, 1, 1},    {2, 17, 4, 2, 16, 0, 0, 1, 0},
    {2, 17, 4, 2, 16, 0, 0, 5, 0},  {1, 9, 2, 1, 20, 0, 0, 9, 1},
    {2, 130, 5, 1, 64, 0, 0, 50, 0}, {1, 200, 3, 3, 16, 0, 5, 7, 1},
    {1, 150, 2, 2, 32, 0, 100, 64, 1}, {1, 65, 4, 1, 64, 0, 0, 0, 1},
    {1, 70, 3, 1, 16, 0, 0, 1000, 0},
};

static const attention_case_t cache_cases[] = {
    {1, 1, 1, 1, 1, 0, 0, 0, 0},      {4, 1, 4, 2, 64, 20, 0, 0, 0},
    {3, 5, 4, 1, 16, 11, 0, 0, 0},    {5, 17, 2, 1, 20, 9, 0, 0, 0},
    {3, 1, 12, 1, 64, 300, 0, 0, 0},  {2, 3, 4, 4, 80, 129, 0, 0, 0},
    {3, 2, 2, 1, 256, 70, 0, 0, 0},   {4, 16, 8, 2, 128, 64, 0, 0, 0},
    {2, 1, 3, 3, 8, 1000, 50, 0, 0},  {3, 5, 4, 1, 16, 11, 0, 3, 1},
    {4, 1, 4, 2, 64, 20, 0, 9, 0},    {3, 1, 12, 1, 64, 1300, 0, 700, 1},
    {2, 1, 3, 3, 8, 1300, 50, 1, 1},  {5, 17, 2, 1, 20, 90, 0, 40, 1},
    {3, 40, 4, 1, 32, 700, 0, 100, 0}, {2, 1, 3, 3, 8, 1000, 0, 0, 1},
    {1, 1, 12, 1, 64, 300, 0, 0, 0},  {1, 1, 13, 1, 64, 1300, 0, 700, 1},
    {2, 1, 15, 1, 40, 600, 0, 0, 1},
};

/* A case in fp64, all arrays dense: q, o, dout, dq [batch, q_len, A, D]; k, v, dk, dv [batch,
 * kv_most, K, D]; lse [batch, q_len, A]. */
typedef struct attention64 {
  int64_t batch, q_len, heads, kv_heads, dim, kv_most;
  const int32_t *kv_len; /* [batch] */
  int64_t window;
  double scale;
  double *sinks, *dsinks, *dsinks_size; /* [A] or NULL; dsinks_size: sum of magnitudes */
  double *q, *k, *v, *dout, *o, *lse, *dq, *dk, *dv;
  double *weight; /* [batch, kv_most, K] sum of the probabilities that a key received */
  double score_size, score_most, dp_size, dscore_most; /* largest sums of magnitudes, and values */
} attention64_t;

static int64_t q_at(const attention64_t *c, int64_t b, int64_t i, int64_t a) {
  return ((b * c->q_len + i) * c->heads + a) * c->dim;
}

static int64_t k_at(const attention64_t *c, int64_t b, int64_t j, int64_t a) {
  return ((b * c->kv_most + j) * c->kv_heads + a / (c->heads / c->kv_heads)) * c->dim;
}

/* <x, y>; size receives the largest sum of magnitudes. */
static double dot64(const double *x, const double *y, int64_t n, double *size) {
  double sum = 0, magnitude = 0;
  for (int64_t d = 0; d < n; d++) {
    sum += x[d] * y[d];
    magnitude += fabs(x[d] * y[d]);
  }
  *size = fmax(*size, magnitude);
  return sum;
}

/* Probabilities of one query row, of keys outside the window 0; returns how many keys there are up
 * to its own. */
static int64_t probabilities(attention64_t *c, int64_t b, int64_t i, int64_t a, double *p,
                             double *lse) {
  int64_t seen = c->kv_len[b] ? c->kv_len[b] - c->q_len + i + 1 : 0;
  int64_t first = c->window && seen > c->window ? seen - c->window : 0;
  double most = c->sinks && seen ? c->sinks[a] : -INFINITY, sum = 0;
  for (int64_t j = first; j < seen; j++) {
    p[j] =
        c->scale * dot64(c->q + q_at(c, b, i, a), c->k + k_at(c, b, j, a), c->dim, &c->score_size);
    most = fmax(most, p[j]);
    c->score_most = fmax(c->score_most, fabs(p[j]));
  }
  for (int64_t j = first; j < seen; j++) sum += exp(p[j] - most);
  if (c->sinks && seen) sum += exp(c->sinks[a] - most);
  *lse = most + log(sum);
  for (int64_t j = 0; j < seen; j++) p[j] = j < first ? 0 : exp(p[j] - *lse);
  return seen;
}

static void attention64_forward(attention64_t *c) {
  double *p = ops_doubles(c->kv_most);
  for (int64_t at = 0; at < c->batch * c->q_len * c->heads; at++) {
    int64_t a = at % c->heads, i = at / c->heads % c->q_len, b = at / c->heads / c->q_len;
    double *o = c->o + q_at(c, b, i, a);
    for (int64_t d = 0; d < c->dim; d++) o[d] = 0;
    int64_t seen = probabilities(c, b, i, a, p, &c->lse[at]);
    for (int64_t j = 0; j < seen; j++)
      for (int64_t d = 0; d < c->dim; d++) o[d] += p[j] * c->v[k_at(c, b, j, a) + d];
  }
}

static void attention64_backward(attention64_t *c) {
  double *p = ops_doubles(c->kv_most);
  for (int64_t at = 0; at < c->batch * c->q_len * c->heads; at++) {
    int64_t a = at % c->heads, i = at / c->heads % c->q_len, b = at / c->heads / c->q_len;
    int64_t q = q_at(c, b, i, a);
    double lse, delta = dot64(c->dout + q, c->o + q, c->dim, &c->dp_size);
    int64_t seen = probabilities(c, b, i, a, p, &lse);
    if (c->sinks) {
      c->dsinks[a] -= exp(c->sinks[a] - lse) * delta;
      c->dsinks_size[a] += exp(c->sinks[a] - lse) * fabs(delta);
    }
    for (int64_t j = 0; j < seen; j++) {
      if (p[j] == 0) continue;
      int64_t k = k_at(c, b, j, a);
      double ds = dot64(c->dout + q, c->v + k, c->dim, &c->dp_size) - delta;
      c->dscore_most = fmax(c->dscore_most, fabs(ds));
      c->weight[k / c->dim] += p[j];
      for (int64_t d = 0; d < c->dim; d++) {
        c->dq[q + d] += c->scale * p[j] * ds * c->k[k + d];
        c->dk[k + d] += c->scale * p[j] * ds * c->q[q + d];
        c->dv[k + d] += p[j] * c->dout[q + d];
      }
    }
  }
}

/* Dense fp64 copies of rows of `width` floats, row r of sequence b at b * batch_step + r * ld. */
static double *dense(const float *data, int64_t batch, int64_t rows, int64_t width, int64_t ld,
                     int64_t batch_step) {
  double *copy = ops_doubles(batch * rows * width);
  for (int64_t i = 0; i < batch * rows * width; i++) {
    int64_t row = i / width;
    copy[i] = data[row / rows * batch_step + row % rows * ld + i % width];
  }
  return copy;
}

/* Between the scores, which are below 3 or so, and well above them. */
static float *sinks_of(const attention_case_t *c) { return ops_uniform(c->heads, 4, 12); }

static attention64_t attention64_make(const attention_case_t *c, int64_t kv_most,
                                      const int32_t *kv_len) {
  attention64_t e = {.batch = c->batch,
                     .q_len = c->q_len,
                     .heads = c->heads,
                     .kv_heads = c->kv_heads,
                     .dim = c->dim,
                     .kv_most = kv_most,
                     .kv_len = kv_len};
  e.scale = (float)(1 / sqrt((double)c->dim));
  e.window = c->window;
  if (c->sinks) {
    const float *sinks = sinks_of(c);
    e.sinks = ops_doubles(c->heads);
    for (int64_t a = 0; a < c->heads; a++) e.sinks[a] = sinks[a];
    e.dsinks = ops_doubles(c->heads), e.dsinks_size = ops_doubles(c->heads);
  }
  int64_t q_count = c->batch * c->q_len * c->heads * c->dim;
  int64_t k_count = c->batch * kv_most * c->kv_heads * c->dim;
  e.o = ops_doubles(q_count), e.dq = ops_doubles(q_count);
  e.dk = ops_doubles(k_count), e.dv = ops_doubles(k_count);
  e.lse = ops_doubles(c->batch * c->q_len * c->heads);
  e.weight = ops_doubles(k_count / c->dim);
  return e;
}

static backend_limits_t attention_limits(const attention_case_t *c, int64_t kv_len,
                                         int32_t training) {
  return (backend_limits_t){.rows = c->batch * c->q_len, .batch = c->batch, .kv_len = kv_len,
                            .hidden = c->heads * c->dim, .heads = c->heads, .kv_heads = c->kv_heads,
                            .head_dim = c->dim, .training = training};
}

/* Absolute error of a scaled score, which is the relative error of its probability: a sum of D
 * products and a multiplication. Probabilities add that of exp, of the sum of up to kv_most of them
 * and of being rescaled as the maximum grows. */
static double score_error(const attention64_t *e) {
  return e->scale * ops_sum_error(e->dim) * e->score_size + 4 * OPS_U * e->score_most;
}

static double probability_error(const attention64_t *e) {
  return 2 * score_error(e) + 3 * ops_sum_error(e->kv_most) + 16 * OPS_U;
}

/* |v| < 1, and so is any average of it. */
static void check_outputs(ops_trial_t *trial, const attention64_t *e, const op_attention_t *op) {
  int64_t rows = e->batch * e->q_len * e->heads, count = rows * e->dim;
  double *slack = ops_doubles(count), *slack_lse = ops_doubles(rows);
  for (int64_t i = 0; i < count; i++) slack[i] = probability_error(e);
  for (int64_t i = 0; i < rows; i++) /* a skipped sequence has exactly -infinity */
    slack_lse[i] = isinf(e->lse[i]) ? 0 : probability_error(e) + 4 * OPS_U * fabs(e->lse[i]);
  ops_check(trial, 0, "o", op->o, e->o, slack, count);
  if (!op->lse) return;
  ops_check(trial, 1, "lse", op->lse, e->lse, slack_lse, rows);
}

/* Queries, keys and values side by side in a row, as the projection leaves them, and padding. */
static float *fused_rows(const attention_case_t *c, int64_t *ld) {
  int64_t width = (c->heads + 2 * c->kv_heads) * c->dim;
  *ld = width + (c->dim % 3);
  float *rows = ops_uniform(c->batch * c->q_len * *ld, 1, 1);
  for (int64_t i = 0; i < c->batch * c->q_len * *ld; i++)
    if (i % *ld < c->heads * c->dim && c->q_scale != 0) rows[i] *= c->q_scale;
  return rows;
}

static attention64_t fused64(const attention_case_t *c, const float *rows, int64_t ld) {
  int32_t *kv_len = ops_ints(c->batch);
  for (int64_t b = 0; b < c->batch; b++) kv_len[b] = (int32_t)c->q_len;
  attention64_t e = attention64_make(c, c->q_len, kv_len);
  int64_t q = c->heads * c->dim, k = c->kv_heads * c->dim, step = c->q_len * ld;
  e.q = dense(rows, c->batch, c->q_len, q, ld, step);
  e.k = dense(rows + q, c->batch, c->q_len, k, ld, step);
  e.v = dense(rows + q + k, c->batch, c->q_len, k, ld, step);
  e.dout =
      dense(ops_uniform(c->batch * c->q_len * q, 1, 2), c->batch, c->q_len, q, q, c->q_len * q);
  attention64_forward(&e);
  attention64_backward(&e);
  return e;
}

static void check_training_forward(const attention_case_t *c) {
  int64_t ld, q = c->heads * c->dim, k = c->kv_heads * c->dim, rows = c->batch * c->q_len;
  const float *x = fused_rows(c, &ld);
  attention64_t e = fused64(c, x, ld);
  op_attention_t op = {.batch = c->batch,
                       .q_len = c->q_len,
                       .heads = c->heads,
                       .kv_heads = c->kv_heads,
                       .head_dim = c->dim,
                       .q = x,
                       .ldq = ld,
                       .k = x + q,
                       .v = x + q + k,
                       .ldkv = ld,
                       .kv_batch = c->q_len * ld,
                       .window = c->window,
                       .scale = (float)e.scale};
  if (c->sinks) op.sinks = sinks_of(c);
  ops_trial_t trial;
  ops_begin(&trial, attention_limits(c, c->q_len, 1));
  while (ops_next(&trial)) {
    op.o = ops_floats(rows * q), op.lse = ops_floats(rows * c->heads);
    ops_garbage(op.o, rows * q), ops_garbage(op.lse, rows * c->heads);
    OPS_RUN(&trial, attention, &op);
    check_outputs(&trial, &e, &op);
    if (rows * c->q_len * q >= 1 << 20) OPS_RUN_CANCELLED(&trial, attention, &op);
  }
  ops_free();
}

static void test_training_forward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof training_cases / sizeof *training_cases; i++)
    check_training_forward(&training_cases[i]);
}

/* A cache of one sequence more than are used, in reverse order or in their own; one length is 0. */
static void check_cache_forward(const attention_case_t *c, int reversed) {
  int64_t q = c->heads * c->dim, k = c->kv_heads * c->dim, kv_most = c->past + c->q_len;
  int64_t kv_batch = (kv_most + 1) * k, rows = c->batch * c->q_len;
  float *cache_k = ops_uniform((c->batch + 1) * kv_batch, 1, 3);
  float *cache_v = ops_uniform((c->batch + 1) * kv_batch, 1, 4);
  int32_t *kv_len = ops_ints(c->batch), *sequence = ops_ints(c->batch);
  for (int64_t b = 0; b < c->batch; b++) {
    kv_len[b] = (int32_t)(c->q_len + c->past * (b + 1) / c->batch);
    if (c->batch > 2 && b == 1) kv_len[b] = 0;
    sequence[b] = (int32_t)(c->batch - b);
  }
  attention64_t e = attention64_make(c, kv_most, kv_len);
  const float *x = ops_uniform(rows * q, c->q_scale != 0 ? c->q_scale : 1, 5);
  e.q = dense(x, c->batch, c->q_len, q, q, c->q_len * q);
  const float *first = reversed ? cache_k + c->batch * kv_batch : cache_k;
  const float *first_v = reversed ? cache_v + c->batch * kv_batch : cache_v;
  e.k = dense(first, c->batch, kv_most, k, k, reversed ? -kv_batch : kv_batch);
  e.v = dense(first_v, c->batch, kv_most, k, k, reversed ? -kv_batch : kv_batch);
  attention64_forward(&e);
  op_attention_t op = {.batch = c->batch,
                       .q_len = c->q_len,
                       .heads = c->heads,
                       .kv_heads = c->kv_heads,
                       .head_dim = c->dim,
                       .q = x,
                       .ldq = q,
                       .k = cache_k,
                       .v = cache_v,
                       .ldkv = k,
                       .kv_batch = kv_batch,
                       .kv_len = kv_len,
                       .window = c->window,
                       .scale = (float)e.scale};
  if (c->sinks) op.sinks = sinks_of(c);
  if (reversed) op.sequence = sequence;
  ops_trial_t trial;
  ops_begin(&trial, attention_limits(c, kv_most, 0));
  while (ops_next(&trial)) {
    int kept = (trial.threads + trial.repeat) % 2; /* both, with a single run of each too */
    op.o = ops_floats(rows * q), op.lse = kept ? ops_floats(rows * c->heads) : NULL;
    ops_garbage(op.o, rows * q);
    OPS_RUN(&trial, attention, &op);
    check_outputs(&trial, &e, &op);
  }
  ops_free();
}

static void test_cache_forward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cache_cases / sizeof *cache_cases; i++) {
    check_cache_forward(&cache_cases[i], 0);
    check_cache_forward(&cache_cases[i], 1);
  }
}

/* Spreads dense fp64 gradients over rows of ld; padding keeps what it was. With p the probability
 * and g = dout . v - delta of it: an error of probability_error (and of lse, rounded to fp32) in p,
 * and two of a dot product over D in g, times the sums of p that a row of dq (1) or of dk and dv
 * (weight) has, times the largest |k| or |q|. What is below the smallest normal number may be
 * flushed. */
static void spread(const attention64_t *e, const float *before, int64_t ld, double q_most,
                   double *want, double *slack) {
  int64_t q = e->heads * e->dim, k = e->kv_heads * e->dim;
  double p = probability_error(e) + 4 * OPS_U * (e->score_most + log((double)e->kv_most + 1));
  double terms = ops_sum_error(e->kv_most * e->heads / e->kv_heads);
  double g = e->dscore_most * (p + terms) + 3 * ops_sum_error(e->dim) * e->dp_size;
  for (int64_t at = 0; at < e->batch * e->q_len * ld; at++) {
    int64_t row = at / ld, j = at % ld;
    want[at] = before[at];
    slack[at] = j < q + 2 * k ? 0x1p-126 : 0;
    if (j < q) {
      want[at] = e->dq[row * q + j];
      slack[at] += e->scale * g;
    } else if (j < q + k) {
      want[at] = e->dk[row * k + j - q];
      slack[at] += e->scale * q_most * g * e->weight[row * e->kv_heads + (j - q) / e->dim];
    } else if (j < q + 2 * k) {
      want[at] = e->dv[row * k + j - q - k];
      slack[at] += (p + terms) * e->weight[row * e->kv_heads + (j - q - k) / e->dim];
    }
  }
}

static void check_backward(const attention_case_t *c) {
  int64_t ld, q = c->heads * c->dim, k = c->kv_heads * c->dim, rows = c->batch * c->q_len;
  const float *x = fused_rows(c, &ld), *before = ops_uniform(rows * ld, 1, 9);
  attention64_t e = fused64(c, x, ld);
  double *want = ops_doubles(rows * ld), *slack = ops_doubles(rows * ld);
  spread(&e, before, ld, c->q_scale != 0 ? c->q_scale : 1, want, slack);
  op_attention_bwd_t op = {.batch = c->batch,
                           .q_len = c->q_len,
                           .heads = c->heads,
                           .kv_heads = c->kv_heads,
                           .head_dim = c->dim,
                           .q = x,
                           .ldq = ld,
                           .k = x + q,
                           .v = x + q + k,
                           .ldkv = ld,
                           .kv_batch = c->q_len * ld,
                           .window = c->window,
                           .scale = (float)e.scale};
  float *sinks_before = ops_uniform(c->heads, 1, 13);
  double *want_sinks = ops_doubles(c->heads), *slack_sinks = ops_doubles(c->heads);
  if (c->sinks) op.sinks = sinks_of(c);
  for (int64_t a = 0; c->sinks && a < c->heads; a++) {
    /* a probability by the log-sum-exp in fp32, and <dout, o> of rows that are averages below 1 */
    double p = 8 * OPS_U * (2 + fabs(e.sinks[a]) + e.score_most + log((double)c->q_len + 1));
    want_sinks[a] = sinks_before[a] + e.dsinks[a];
    slack_sinks[a] = p * e.dsinks_size[a] + OPS_U * fabs(want_sinks[a]) +
                     (double)rows * (ops_sum_error(c->dim) + OPS_U) * e.dp_size;
  }
  op.o = ops_narrow(e.o, rows * q), op.dout = ops_narrow(e.dout, rows * q);
  op.lse = ops_narrow(e.lse, rows * c->heads);
  ops_trial_t trial;
  ops_begin(&trial, attention_limits(c, c->q_len, 1));
  while (ops_next(&trial)) {
    float *d = ops_copy(before, rows * ld);
    for (int64_t i = 0; i < rows * ld; i++)
      if (i % ld < q + 2 * k) d[i] = NAN;
    op.dq = d, op.dk = d + q, op.dv = d + q + k;
    if (c->sinks) op.dsinks = ops_copy(sinks_before, c->heads);
    OPS_RUN(&trial, attention_bwd, &op);
    ops_check(&trial, 0, "rows of dq, dk, dv", d, want, slack, rows * ld);
    if (c->sinks) ops_check(&trial, 1, "dsinks", op.dsinks, want_sinks, slack_sinks, c->heads);
    if (rows * c->q_len * q >= 1 << 20) OPS_RUN_CANCELLED(&trial, attention_bwd, &op);
  }
  ops_free();
}

static void test_backward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof training_cases / sizeof *training_cases; i++)
    check_backward(&training_cases[i]);
}

static double attention64_loss(const void *context) {
  attention64_t c = *(const attention64_t *)context;
  double loss = 0;
  attention64_forward(&c);
  for (int64_t i = 0; i < c.batch * c.q_len * c.heads * c.dim; i++) loss += c.dout[i] * c.o[i];
  return loss;
}

static void test_gradients_by_finite_differences(void **state) {
  (void)state;
  const attention_case_t cs[] = {{2, 4, 4, 2, 3, 0, 2, 0, 0}, {2, 5, 4, 2, 3, 0, 2, 3, 1}};
  for (int i = 0; i < 2; i++) {
    const attention_case_t c = cs[i];
    int64_t ld, rows = c.batch * c.q_len;
    const float *x = fused_rows(&c, &ld);
    attention64_t e = fused64(&c, x, ld);
    ops_check_gradient("dq", attention64_loss, &e, e.q, e.dq, rows * c.heads * c.dim);
    ops_check_gradient("dk", attention64_loss, &e, e.k, e.dk, rows * c.kv_heads * c.dim);
    ops_check_gradient("dv", attention64_loss, &e, e.v, e.dv, rows * c.kv_heads * c.dim);
    if (c.sinks) ops_check_gradient("dsinks", attention64_loss, &e, e.sinks, e.dsinks, c.heads);
    ops_free();
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_training_forward),
      cmocka_unit_test(test_cache_forward),
      cmocka_unit_test(test_backward),
      cmocka_unit_test(test_gradients_by_finite_differences),
  };
  return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
