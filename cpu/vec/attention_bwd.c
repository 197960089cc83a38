/* Attention backward. With P = exp(scale q k^T - lse) and delta = rowsum(dO * O):
 *
 *   dV = P^T dO,  dS = P * (dO V^T - delta),  dQ = scale dS K,  dK = scale dS^T Q
 *
 * An item takes the row tiles of one key-value head, goes over the keys of each, and adds to dk
 * and dv in the order of tiles. Where sequences and key-value heads alone are too few items,
 * every S-th row tile makes an item; each has its own dk and dv, added up in order at the end. S
 * depends on shapes alone, so the sums do not depend on the number of threads. A sink's gradient is
 * -sum of exp(sink - lse) delta over the rows, in order. */
#include <float.h>
#include <math.h>

#include "vec/attention.h"
#include "vec/ops.h"

enum { BWD_REDUCE_KEYS = 64 };

/* Multiplications of an item between two looks at the cancel flag: a few milliseconds. */
static const int64_t BWD_ROUND = (int64_t)1 << 29;

typedef struct attention_bwd {
  const op_attention_bwd_t *op;
  int64_t group, tiles, splits; /* query heads per key-value head; row tiles of one; S */
  int64_t begin, end;           /* this round's tiles, counted within a split */
  float *work;                  /* [threads, attention_bwd_work()] */
  float *part;                  /* [batch, kv_heads, splits, 2, q_len, head_dim]: dk, dv */
} attention_bwd_t;

/* Keys and values of a key-value head, and where an item adds their gradients: to a part of its
 * own, or to the gradients themselves. */
typedef struct attention_sums {
  const float *k, *v; /* [q_len, head_dim], stride ldkv */
  float *dk, *dv;     /* [q_len, head_dim], stride ld */
  int64_t ld;
} attention_sums_t;

/* A thread's work: q, dO and dQ transposed, q and dO plain, P and dS, and per-row numbers. */
typedef struct attention_bwd_tile {
  float *q, *dout, *dq, *q_plain, *dout_plain, *p, *ds, *last_key, *lse, *delta;
} attention_bwd_tile_t;

static attention_bwd_tile_t attention_bwd_layout(float *work, int64_t head_dim) {
  attention_bwd_tile_t t;
  int64_t matrix = head_dim * ATTENTION_ROWS, score = ATTENTION_KEYS * ATTENTION_ROWS;
  t.q = work;
  t.dout = t.q + matrix;
  t.dq = t.dout + matrix;
  t.q_plain = t.dq + matrix;
  t.dout_plain = t.q_plain + matrix;
  t.p = t.dout_plain + matrix;
  t.ds = t.p + score;
  t.last_key = t.ds + score;
  t.lse = t.last_key + ATTENTION_ROWS;
  t.delta = t.lse + ATTENTION_ROWS;
  return t;
}

static attention_sums_t attention_bwd_sums(const attention_bwd_t *job, int64_t batch, int64_t head,
                                           int64_t split) {
  const op_attention_bwd_t *op = job->op;
  int64_t place = batch * op->kv_batch + head * op->head_dim, size = op->q_len * op->head_dim;
  const float *k = op->k, *v = op->v;
  float *dk = op->dk, *dv = op->dv;
  attention_sums_t sums = {k + place, v + place, dk + place, dv + place, op->ldkv};
  if (job->splits > 1) {
    sums.dk = job->part + ((batch * op->kv_heads + head) * job->splits + split) * 2 * size;
    sums.dv = sums.dk + size;
    sums.ld = op->head_dim;
  }
  return sums;
}

/* ---- one tile -------------------------------------------------------------------------------- */

static void attention_bwd_assign(const outer_t *product) {
  outer_run(product, OUTER_ASSIGN, NN_F32);
}
static void attention_bwd_add(const outer_t *product) { outer_run(product, OUTER_ADD, NN_F32); }

/* lse and delta of the tile's rows; rows past the end get an lse that makes their P zero. */
static void attention_bwd_rows(const op_attention_bwd_t *op, const attention_rows_t *tile,
                               int64_t vectors, const attention_bwd_tile_t *t) {
  int64_t ld = op->heads * op->head_dim, dim = op->head_dim;
  const float *o = op->o, *dout = op->dout;
  for (int64_t r = 0; r < vectors * VEC_WIDTH; r++) {
    t->lse[r] = FLT_MAX;
    t->delta[r] = 0.0f;
    if (r >= tile->rows) continue;
    int64_t at = attention_offset(tile, r, ld);
    vf sum = vf_zero();
    for (int64_t d = 0; d < dim; d += VEC_WIDTH)
      sum = vf_fma(vf_load_next(o + at + d, dim - d), vf_load_next(dout + at + d, dim - d), sum);
    t->lse[r] = op->lse[at / dim];
    t->delta[r] = vf_sum(sum);
  }
}

/* p: scores become P. ds: dP becomes dS. One vector of rows, keys j .. j + count - 1. */
VEC_INLINE void attention_bwd_softmax(float *p, float *ds, int64_t count, int64_t j, vf last_key,
                                      int64_t window, int masked, vf lse, vf delta) {
  for (int64_t i = 0; i < count; i++, p += ATTENTION_ROWS, ds += ATTENTION_ROWS) {
    vf prob = vf_exp(vf_sub(vf_load(p), lse));
    if (masked) prob = attention_mask(prob, vf_zero(), last_key, window, j + i);
    vf_store(p, prob);
    vf_store(ds, vf_mul(prob, vf_sub(vf_load(ds), delta)));
  }
}

/* The five products of the rows from `first` with keys j .. j + count - 1. */
static void attention_bwd_keys(const op_attention_bwd_t *op, const attention_rows_t *tile,
                               int64_t vectors, const attention_bwd_tile_t *t, int64_t j,
                               const attention_sums_t *sums) {
  int64_t dim = op->head_dim, ld = op->ldkv;
  int64_t count = vec_min(ATTENTION_KEYS, attention_seen(tile, 0) - j);
  int64_t first = attention_first_vector(t->last_key, vectors, j) * VEC_WIDTH;
  int64_t columns = vectors * VEC_WIDTH - first;

  outer_t product = {.rows = count, .columns = columns, .terms = dim,
                     .a = sums->k + j * ld, .step_x = ld, .step_t = 1,
                     .b = t->q + first, .ldb = ATTENTION_ROWS,
                     .c = t->p + first, .ldc = ATTENTION_ROWS};
  attention_bwd_assign(&product);
  product.a = sums->v + j * ld;
  product.b = t->dout + first;
  product.c = t->ds + first;
  attention_bwd_assign(&product);

  for (int64_t r = first; r < vectors * VEC_WIDTH; r += VEC_WIDTH) {
    vf last = vf_load(t->last_key + r), lse = vf_load(t->lse + r), delta = vf_load(t->delta + r);
    if (attention_masked(t->last_key + r, tile->window, j, count))
      attention_bwd_softmax(t->p + r, t->ds + r, count, j, last, tile->window, 1, lse, delta);
    else attention_bwd_softmax(t->p + r, t->ds + r, count, j, last, tile->window, 0, lse, delta);
  }

  attention_bwd_add(&(outer_t){.rows = dim, .columns = columns, .terms = count,
                               .a = sums->k + j * ld, .step_x = 1, .step_t = ld,
                               .b = t->ds + first, .ldb = ATTENTION_ROWS,
                               .c = t->dq + first, .ldc = ATTENTION_ROWS});
  product = (outer_t){.rows = count, .columns = dim, .terms = tile->rows - first,
                      .a = t->p + first, .step_x = ATTENTION_ROWS, .step_t = 1,
                      .b = t->dout_plain + first * dim, .ldb = dim,
                      .c = sums->dv + j * sums->ld, .ldc = sums->ld};
  attention_bwd_add(&product);
  product.a = t->ds + first;
  product.b = t->q_plain + first * dim;
  product.c = sums->dk + j * sums->ld;
  attention_bwd_add(&product);
}

static void attention_bwd_tile(const op_attention_bwd_t *op, const attention_rows_t *tile,
                               const attention_bwd_tile_t *t, const attention_sums_t *sums) {
  int64_t dim = op->head_dim, width = op->heads * dim;
  attention_pack(tile, op->q, op->ldq, op->scale, t->q, t->q_plain);
  attention_pack(tile, op->dout, width, 1.0f, t->dout, t->dout_plain);
  int64_t vectors = attention_last_keys(tile, 0, t->last_key);
  attention_bwd_rows(op, tile, vectors, t);
  memset(t->dq, 0, (size_t)(dim * ATTENTION_ROWS) * sizeof *t->dq);
  for (int64_t j = attention_begin(tile, 0); j < attention_seen(tile, 0); j += ATTENTION_KEYS)
    attention_bwd_keys(op, tile, vectors, t, j, sums);
  for (int64_t r = 0; r < vectors * VEC_WIDTH; r++) t->delta[r] = op->scale;
  attention_unpack(tile, t->dq, t->delta, op->dq, op->ldq);
}

static void attention_bwd_item(void *context, int64_t item, int32_t thread) {
  const attention_bwd_t *job = context;
  const op_attention_bwd_t *op = job->op;
  int64_t split = item % job->splits, pair = item / job->splits;
  int64_t batch = pair / op->kv_heads, head = pair % op->kv_heads, dim = op->head_dim;
  attention_sums_t sums = attention_bwd_sums(job, batch, head, split);
  attention_bwd_tile_t t =
      attention_bwd_layout(job->work + thread * attention_bwd_work(dim, ATTENTION_ROWS), dim);
  for (int64_t j = 0; job->begin == 0 && j < op->q_len; j++) {
    memset(sums.dk + j * sums.ld, 0, (size_t)dim * sizeof(float));
    memset(sums.dv + j * sums.ld, 0, (size_t)dim * sizeof(float));
  }
  for (int64_t i = job->begin; i < job->end; i++) {
    int64_t index = split + i * job->splits;
    if (index >= job->tiles) continue;
    attention_rows_t tile;
    attention_rows_set(&tile, batch, head, index, op->q_len, job->group, dim, op->window);
    attention_bwd_tile(op, &tile, &t, &sums);
  }
}

/* ---- sinks ----------------------------------------------------------------------------------- */

static void attention_bwd_sink(void *context, int64_t head, int32_t thread) {
  (void)thread;
  const op_attention_bwd_t *op = context;
  int64_t dim = op->head_dim, rows = op->batch * op->q_len;
  float sink = vec_weight(op->sinks, head, op->weight_dtype);
  double total = 0;
  for (int64_t row = 0; row < rows; row++) {
    int64_t at = row * op->heads + head;
    const float *o = op->o, *dout = op->dout;
    vf sum = vf_zero();
    for (int64_t d = at * dim; d < (at + 1) * dim; d += VEC_WIDTH) {
      int64_t left = (at + 1) * dim - d;
      sum = vf_fma(vf_load_next(o + d, left), vf_load_next(dout + d, left), sum);
    }
    total += (double)expf(sink - op->lse[at]) * vf_sum(sum);
  }
  op->dsinks[head] = (float)(op->dsinks[head] - total);
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* dk and dv of some keys of one key-value head: the sum of their parts, in order. */
static void attention_bwd_reduce(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const attention_bwd_t *job = context;
  const op_attention_bwd_t *op = job->op;
  int64_t blocks = vec_blocks(op->q_len, BWD_REDUCE_KEYS), dim = op->head_dim;
  int64_t pair = item / blocks, batch = pair / op->kv_heads, head = pair % op->kv_heads;
  int64_t begin = item % blocks * BWD_REDUCE_KEYS;
  int64_t end = vec_min(op->q_len, begin + BWD_REDUCE_KEYS);
  float *out_k = op->dk, *out_v = op->dv;
  out_k += batch * op->kv_batch + head * dim, out_v += batch * op->kv_batch + head * dim;
  for (int64_t j = begin; j < end; j++)
    for (int64_t d = 0; d < dim; d += VEC_WIDTH) {
      vf dk = vf_zero(), dv = vf_zero();
      for (int64_t split = 0; split < job->splits; split++) {
        attention_sums_t part = attention_bwd_sums(job, batch, head, split);
        dk = vf_add(dk, vf_load_next(part.dk + j * part.ld + d, dim - d));
        dv = vf_add(dv, vf_load_next(part.dv + j * part.ld + d, dim - d));
      }
      vf_store_next(out_k + j * op->ldkv + d, dim - d, dk);
      vf_store_next(out_v + j * op->ldkv + d, dim - d, dv);
    }
}

VEC_OP(attention_bwd, op_attention_bwd_t) {
  int64_t group = op->heads / op->kv_heads, pairs = op->batch * op->kv_heads;
  if (!pairs || !op->q_len) return NN_OK;
  attention_bwd_t job = {.op = op, .group = group, .work = scratch.data};
  job.tiles = vec_blocks(op->q_len * group, ATTENTION_ROWS);
  job.splits = pairs < ATTENTION_BWD_ITEMS ? vec_min(job.tiles, ATTENTION_BWD_ITEMS / pairs) : 1;
  job.part = job.work + device->threads * attention_bwd_work(op->head_dim, ATTENTION_ROWS);

  int64_t tile_work = 5 * ATTENTION_ROWS * op->q_len * op->head_dim;
  int64_t count = vec_blocks(job.tiles, job.splits), step = vec_blocks(BWD_ROUND, tile_work);
  for (job.begin = 0; job.begin < count; job.begin = job.end) {
    job.end = vec_min(count, job.begin + step);
    STATUS_TRY(vec_run(device, pairs * job.splits, pairs * job.tiles * tile_work,
                       attention_bwd_item, &job));
  }
  if (op->sinks) {
    op_attention_bwd_t args = *op;
    STATUS_TRY(vec_run(device, op->heads, op->batch * op->q_len * op->heads * op->head_dim,
                       attention_bwd_sink, &args));
  }
  if (job.splits == 1) return NN_OK;
  return vec_run(device, pairs * vec_blocks(op->q_len, BWD_REDUCE_KEYS),
                 pairs * job.splits * 2 * op->q_len * op->head_dim, attention_bwd_reduce, &job);
}
