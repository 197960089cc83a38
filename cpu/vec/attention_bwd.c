/* Attention backward. With P = exp(scale q k^T - lse) and delta = rowsum(dO * O):
 *
 *   dV = P^T dO,  dS = P * (dO V^T - delta),  dQ = scale dS K,  dK = scale dS^T Q
 *
 * An item takes the row tiles of one key-value head, goes over the keys of each, and adds to dk
 * and dv in the order of tiles. Where sequences and key-value heads alone are too few items,
 * every S-th row tile makes an item; each has its own dk and dv, added up in order at the end. S
 * depends on shapes alone, so the sums do not depend on the number of threads. Gradients of 16 bits
 * are always summed so, some key-value heads at a time. A sink's gradient is
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
  int64_t first_pair, pairs;    /* this turn's key-value heads, counted over all sequences */
  int64_t begin, end;           /* this round's tiles, counted within a split */
  float *work;                  /* [threads, attention_bwd_work()] */
  float *part;                  /* [pairs, splits, 2, q_len, head_dim]: dk, dv; or NULL */
} attention_bwd_t;

/* Keys and values of a key-value head, and where an item adds their gradients: to a part of its
 * own, or to the gradients themselves. */
typedef struct attention_sums {
  const void *k, *v;  /* [q_len, head_dim], stride ldkv */
  float *dk, *dv;     /* [q_len, head_dim], stride ld */
  int64_t ld;
} attention_sums_t;

/* A thread's work: q, dO and dQ transposed, q and dO plain, P and dS, per-row numbers, and room for
 * keys and values. */
typedef struct attention_bwd_tile {
  float *q, *dout, *dq, *q_plain, *dout_plain, *p, *ds, *last_key, *lse, *delta, *k, *v;
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
  t.k = t.delta + ATTENTION_ROWS;
  t.v = t.k + ATTENTION_KEYS * head_dim;
  return t;
}

/* First element of a pair's keys. */
static int64_t attention_bwd_place(const op_attention_bwd_t *op, int64_t pair) {
  return pair / op->kv_heads * op->kv_batch + pair % op->kv_heads * op->head_dim;
}

static attention_sums_t attention_bwd_sums(const attention_bwd_t *job, int64_t pair,
                                           int64_t split) {
  const op_attention_bwd_t *op = job->op;
  int64_t place = attention_bwd_place(op, pair), size = op->q_len * op->head_dim;
  attention_sums_t sums = {.k = vec_at(op->k, place, op->act_dtype),
                           .v = vec_at(op->v, place, op->act_dtype)};
  if (job->part) {
    sums.dk = job->part + ((pair - job->first_pair) * job->splits + split) * 2 * size;
    sums.dv = sums.dk + size;
    sums.ld = op->head_dim;
  } else {
    sums.dk = (float *)op->dk + place;
    sums.dv = (float *)op->dv + place;
    sums.ld = op->ldkv;
  }
  return sums;
}

/* ---- one tile -------------------------------------------------------------------------------- */

static void attention_bwd_assign(const outer_t *product) { outer_run(product, OUTER_ASSIGN); }
static void attention_bwd_add(const outer_t *product) { outer_run(product, OUTER_ADD); }

/* <o, dO> of the row at an element of both. */
static float attention_bwd_delta(const op_attention_bwd_t *op, int64_t at, int32_t act) {
  vf sum = vf_zero();
  for (int64_t d = 0; d < op->head_dim; d += VEC_WIDTH) {
    int64_t left = op->head_dim - d;
    sum = vf_fma(vf_load_as_next(op->o, at + d, left, act),
                 vf_load_as_next(op->dout, at + d, left, act), sum);
  }
  return vf_sum(sum);
}

/* lse and delta of the tile's rows; rows past the end get an lse that makes their P zero. */
static void attention_bwd_rows(const op_attention_bwd_t *op, const attention_rows_t *tile,
                               int64_t vectors, const attention_bwd_tile_t *t) {
  int64_t ld = op->heads * op->head_dim, dim = op->head_dim;
  for (int64_t r = 0; r < vectors * VEC_WIDTH; r++) {
    t->lse[r] = FLT_MAX;
    t->delta[r] = 0.0f;
    if (r >= tile->rows) continue;
    int64_t at = attention_offset(tile, r, ld);
    t->lse[r] = op->lse[at / dim];
    t->delta[r] = attention_bwd_delta(op, at, op->act_dtype);
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
  int64_t dim = op->head_dim;
  int64_t count = vec_min(ATTENTION_KEYS, attention_seen(tile, 0) - j);
  int64_t first = attention_first_vector(t->last_key, vectors, j) * VEC_WIDTH;
  int64_t columns = vectors * VEC_WIDTH - first;

  attention_keys_t k = attention_keys(sums->k, op->ldkv, j, count, dim, op->act_dtype, t->k);
  attention_keys_t v = attention_keys(sums->v, op->ldkv, j, count, dim, op->act_dtype, t->v);
  outer_t product = {.rows = count, .columns = columns, .terms = dim,
                     .a = k.data, .step_x = k.ld, .step_t = 1,
                     .b = t->q + first, .ldb = ATTENTION_ROWS,
                     .c = t->p + first, .ldc = ATTENTION_ROWS};
  attention_bwd_assign(&product);
  product.a = v.data;
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
                               .a = k.data, .step_x = 1, .step_t = k.ld,
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

VEC_APART void attention_bwd_pack(const attention_rows_t *tile, const void *x, int64_t ld,
                                  float scale, float *packed, float *plain, int32_t dtype) {
  attention_pack(tile, x, ld, scale, packed, plain, dtype);
}

static void attention_bwd_tile(const op_attention_bwd_t *op, const attention_rows_t *tile,
                               const attention_bwd_tile_t *t, const attention_sums_t *sums) {
  int64_t dim = op->head_dim, width = op->heads * dim;
  attention_bwd_pack(tile, op->q, op->ldq, op->scale, t->q, t->q_plain, op->act_dtype);
  attention_bwd_pack(tile, op->dout, width, 1.0f, t->dout, t->dout_plain, op->act_dtype);
  int64_t vectors = attention_last_keys(tile, 0, t->last_key);
  attention_bwd_rows(op, tile, vectors, t);
  memset(t->dq, 0, (size_t)(dim * ATTENTION_ROWS) * sizeof *t->dq);
  for (int64_t j = attention_begin(tile, 0); j < attention_seen(tile, 0); j += ATTENTION_KEYS)
    attention_bwd_keys(op, tile, vectors, t, j, sums);
  for (int64_t r = 0; r < vectors * VEC_WIDTH; r++) t->delta[r] = op->scale;
  attention_unpack(tile, t->dq, t->delta, op->dq, op->ldq, op->act_dtype);
}

static void attention_bwd_item(void *context, int64_t item, int32_t thread) {
  const attention_bwd_t *job = context;
  const op_attention_bwd_t *op = job->op;
  int64_t split = item % job->splits, pair = job->first_pair + item / job->splits;
  int64_t batch = pair / op->kv_heads, head = pair % op->kv_heads, dim = op->head_dim;
  attention_sums_t sums = attention_bwd_sums(job, pair, split);
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
    attention_rows_set(&tile, batch, head, index * ATTENTION_ROWS, ATTENTION_ROWS, op->q_len,
                       job->group, dim, op->window);
    attention_bwd_tile(op, &tile, &t, &sums);
  }
}

/* ---- sinks ----------------------------------------------------------------------------------- */

static void attention_bwd_sink(void *context, int64_t head, int32_t thread) {
  (void)thread;
  const op_attention_bwd_t *op = context;
  int64_t dim = op->head_dim, rows = op->batch * op->q_len;
  float sink = vec_load_as(op->sinks, head, op->weight_dtype);
  double total = 0;
  for (int64_t row = 0; row < rows; row++) {
    int64_t at = row * op->heads + head;
    float delta = attention_bwd_delta(op, at * dim, op->act_dtype);
    total += (double)expf(sink - op->lse[at]) * delta;
  }
  op->dsinks[head] = (float)(op->dsinks[head] - total);
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* The vectors at an element of dk and dv, key j and dimension d of a pair: the sum of their parts,
 * in order. */
static void attention_bwd_total(const attention_bwd_t *job, int64_t pair, int64_t j, int64_t d,
                                int32_t act) {
  const op_attention_bwd_t *op = job->op;
  int64_t left = op->head_dim - d, at = attention_bwd_place(op, pair) + j * op->ldkv + d;
  vf dk = vf_zero(), dv = vf_zero();
  for (int64_t split = 0; split < job->splits; split++) {
    attention_sums_t part = attention_bwd_sums(job, pair, split);
    dk = vf_add(dk, vf_load_next(part.dk + j * part.ld + d, left));
    dv = vf_add(dv, vf_load_next(part.dv + j * part.ld + d, left));
  }
  vf_store_as_next(op->dk, at, left, act, dk);
  vf_store_as_next(op->dv, at, left, act, dv);
}

/* dk and dv of some keys of one key-value head. */
static void attention_bwd_reduce(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const attention_bwd_t *job = context;
  const op_attention_bwd_t *op = job->op;
  int64_t blocks = vec_blocks(op->q_len, BWD_REDUCE_KEYS);
  int64_t pair = job->first_pair + item / blocks;
  int64_t begin = item % blocks * BWD_REDUCE_KEYS;
  int64_t end = vec_min(op->q_len, begin + BWD_REDUCE_KEYS);
  for (int64_t j = begin; j < end; j++)
    for (int64_t d = 0; d < op->head_dim; d += VEC_WIDTH)
      attention_bwd_total(job, pair, j, d, op->act_dtype);
}

/* One turn: all tiles of its key-value heads, a few at a time, and what their parts sum up to. */
static nn_status_t attention_bwd_turn(backend_device_t *device, attention_bwd_t *job) {
  const op_attention_bwd_t *op = job->op;
  int64_t tile_work = 5 * ATTENTION_ROWS * op->q_len * op->head_dim;
  int64_t count = vec_blocks(job->tiles, job->splits), step = vec_blocks(BWD_ROUND, tile_work);
  for (job->begin = 0; job->begin < count; job->begin = job->end) {
    job->end = vec_min(count, job->begin + step);
    STATUS_TRY(vec_run(device, job->pairs * job->splits, job->pairs * job->tiles * tile_work,
                       attention_bwd_item, job));
  }
  if (!job->part) return NN_OK;
  return vec_run(device, job->pairs * vec_blocks(op->q_len, BWD_REDUCE_KEYS),
                 job->pairs * job->splits * 2 * op->q_len * op->head_dim, attention_bwd_reduce,
                 job);
}

VEC_OP(attention_bwd, op_attention_bwd_t) {
  int64_t group = op->heads / op->kv_heads, pairs = op->batch * op->kv_heads;
  if (!pairs || !op->q_len) return NN_OK;
  attention_bwd_t job = {.op = op, .group = group, .work = scratch.data};
  job.tiles = vec_blocks(op->q_len * group, ATTENTION_ROWS);
  job.splits = pairs < ATTENTION_BWD_ITEMS ? vec_min(job.tiles, ATTENTION_BWD_ITEMS / pairs) : 1;
  int64_t turn = pairs;
  if (job.splits > 1 || op->act_dtype != NN_F32) {
    job.part = job.work + device->threads * attention_bwd_work(op->head_dim, ATTENTION_ROWS);
    turn = vec_min(pairs, ATTENTION_BWD_ITEMS);
  }
  for (; job.first_pair < pairs; job.first_pair += turn) {
    job.pairs = vec_min(turn, pairs - job.first_pair);
    STATUS_TRY(attention_bwd_turn(device, &job));
  }
  if (op->sinks) {
    op_attention_bwd_t args = *op;
    STATUS_TRY(vec_run(device, op->heads, op->batch * op->q_len * op->heads * op->head_dim,
                       attention_bwd_sink, &args));
  }
  return NN_OK;
}
