/* Attention forward: o = softmax(scale q k^T, causal) v, by tiles of rows against tiles of keys
 * with a running maximum and sum, so that no more than a tile of scores exists (Dao, 2023).
 *
 * Where the rows of a key-value head fill at most one tile (decoding), long sequences are split
 * into chunks of keys, whose results are merged by log-sum-exp in order. The split depends on
 * shapes alone. Keys that a window hides from all rows of a tile are left out. */
#include <float.h>
#include <math.h>

#include "vec/attention.h"
#include "vec/ops.h"

enum { AHEAD_KEYS = 16, LINE_BYTES = 64, ATTENTION_LEAST_ROWS = 4 };

typedef struct attention {
  const op_attention_t *op;
  int64_t group, tiles;  /* query heads per key-value head; row tiles of one, */
  int64_t tile_rows;     /* of so many rows */
  int64_t chunk, chunks; /* keys of a chunk; 1 chunk: results go straight to o and lse */
  float *work;           /* [threads, attention_work()] */
  float *part_o;         /* [batch * q_len, chunks, heads, head_dim], not normalised */
  float *part_max, *part_sum; /* [batch * q_len, chunks, heads] */
} attention_t;

/* What one item computes: a tile of rows against keys begin .. end - 1. */
typedef struct attention_item {
  attention_rows_t tile;
  const void *k, *v; /* of the sequence and key-value head */
  int64_t begin, end, chunk;
  int64_t past; /* keys older than query 0 */
} attention_item_t;

static void attention_item(const attention_t *job, int64_t index, attention_item_t *item) {
  const op_attention_t *op = job->op;
  /* Tiles of one key-value head follow each other, so that its keys stay in cache; those that
   * see most keys come first, so that threads finish together. */
  int64_t tile = job->tiles - 1 - index % job->tiles, rest = index / job->tiles;
  int64_t head = rest % op->kv_heads, batch = rest / op->kv_heads / job->chunks;
  attention_rows_set(&item->tile, batch, head, tile * job->tile_rows, job->tile_rows, op->q_len,
                     job->group, op->head_dim, op->window);
  item->chunk = rest / op->kv_heads % job->chunks;

  int64_t place = (op->sequence ? op->sequence[batch] : batch) * op->kv_batch + head * op->head_dim;
  item->k = vec_at(op->k, place, op->act_dtype);
  item->v = vec_at(op->v, place, op->act_dtype);
  item->past = (op->kv_len ? op->kv_len[batch] : op->q_len) - op->q_len;
  item->begin = attention_begin(&item->tile, item->past) + item->chunk * job->chunk;
  item->end = attention_seen(&item->tile, item->past);
  if (job->chunks > 1) item->end = vec_min(item->end, item->begin + job->chunk);
}

/* Where the running maximum and sum of a row begin: at its sink, which the first chunk has. */
static void attention_start(const attention_t *job, const attention_item_t *item, int64_t r,
                            float *max, float *sum) {
  const op_attention_t *op = job->op;
  *max = -FLT_MAX; /* not -infinity, whose difference to itself is NaN */
  *sum = 0.0f;
  if (!op->sinks || item->chunk || item->past < 0) return;
  *max = vec_load_as(op->sinks, item->tile.head[r], op->weight_dtype);
  *sum = 1.0f;
}

/* ---- what an item leaves --------------------------------------------------------------------- */

static void attention_row_out(const attention_t *job, const attention_item_t *item, int64_t r,
                              float max, float sum) {
  const attention_rows_t *tile = &item->tile;
  int64_t query = tile->first_query + tile->query[r], heads = job->op->heads;
  if (job->chunks > 1) {
    int64_t at = (query * job->chunks + item->chunk) * heads + tile->head[r];
    job->part_max[at] = max;
    job->part_sum[at] = sum;
  } else if (job->op->lse) {
    job->op->lse[query * heads + tile->head[r]] = max + logf(sum);
  }
}

/* Where the rows of o go, ld elements apart: o itself, or the chunk's part of it. */
typedef struct attention_out {
  void *data;
  int64_t ld;
  int32_t dtype;
} attention_out_t;

static attention_out_t attention_out(const attention_t *job, const attention_item_t *item) {
  int64_t width = job->op->heads * job->op->head_dim;
  if (job->chunks == 1) return (attention_out_t){job->op->o, width, job->op->act_dtype};
  return (attention_out_t){job->part_o + item->chunk * width, job->chunks * width, NN_F32};
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* Scores [count, rows] of keys j .. j + count - 1 become probabilities against the new running
 * maximum of one vector of rows; returns what earlier sums and outputs are to be multiplied by. */
VEC_INLINE vf attention_softmax(float *score, int64_t count, int64_t j, vf last_key,
                                int64_t window, int masked, float *max, float *sum) {
  vf old = vf_load(max), top = old;
  for (int64_t i = 0; i < count; i++) {
    vf s = vf_load(score + i * ATTENTION_ROWS);
    if (masked) {
      s = attention_mask(s, vf_set1(-INFINITY), last_key, window, j + i);
      vf_store(score + i * ATTENTION_ROWS, s);
    }
    top = vf_max(top, s);
  }
  vf total = vf_zero();
  for (int64_t i = 0; i < count; i++) {
    vf p = vf_exp(vf_sub(vf_load(score + i * ATTENTION_ROWS), top));
    vf_store(score + i * ATTENTION_ROWS, p);
    total = vf_add(total, p);
  }
  vf factor = vf_exp(vf_sub(old, top));
  vf_store(max, top);
  vf_store(sum, vf_fma(vf_load(sum), factor, total));
  return factor;
}

static void attention_scores(const outer_t *product) { outer_run(product, OUTER_ASSIGN); }
static void attention_values(const outer_t *product) { outer_run(product, OUTER_SCALE); }

static void attention_tile(const attention_t *job, const attention_item_t *item, float *work) {
  const op_attention_t *op = job->op;
  const attention_rows_t *tile = &item->tile;
  int64_t dim = op->head_dim;
  float *q = work, *o = q + dim * ATTENTION_ROWS, *score = o + dim * ATTENTION_ROWS;
  float *last_key = score + ATTENTION_KEYS * ATTENTION_ROWS, *max = last_key + ATTENTION_ROWS;
  float *sum = max + ATTENTION_ROWS, *factor = sum + ATTENTION_ROWS;
  float *room = factor + ATTENTION_ROWS;

  attention_pack(tile, op->q, op->ldq, op->scale, q, NULL, op->act_dtype);
  int64_t vectors = attention_last_keys(tile, item->past, last_key);
  memset(o, 0, (size_t)(dim * ATTENTION_ROWS) * sizeof *o);
  for (int64_t r = 0; r < vectors * VEC_WIDTH; r++)
    attention_start(job, item, vec_min(r, tile->rows - 1), max + r, sum + r);
  for (int64_t j = item->begin; j < item->end; j += ATTENTION_KEYS) {
    int64_t count = vec_min(ATTENTION_KEYS, item->end - j);
    int64_t first = attention_first_vector(last_key, vectors, j) * VEC_WIDTH;
    int64_t columns = vectors * VEC_WIDTH - first;
    attention_keys_t keys =
        attention_keys(item->k, op->ldkv, j, count, dim, op->act_dtype, room);
    attention_scores(&(outer_t){.rows = count, .columns = columns, .terms = dim,
                                .a = keys.data, .step_x = keys.ld, .step_t = 1,
                                .b = q + first, .ldb = ATTENTION_ROWS,
                                .c = score + first, .ldc = ATTENTION_ROWS});
    for (int64_t r = first; r < vectors * VEC_WIDTH; r += VEC_WIDTH) {
      vf last = vf_load(last_key + r);
      int masked = attention_masked(last_key + r, op->window, j, count);
      vf scale =
          masked ? attention_softmax(score + r, count, j, last, op->window, 1, max + r, sum + r)
                 : attention_softmax(score + r, count, j, last, op->window, 0, max + r, sum + r);
      vf_store(factor + r, scale);
    }
    keys = attention_keys(item->v, op->ldkv, j, count, dim, op->act_dtype, room);
    attention_values(&(outer_t){.rows = dim, .columns = columns, .terms = count,
                                .a = keys.data, .step_x = 1, .step_t = keys.ld,
                                .b = score + first, .ldb = ATTENTION_ROWS,
                                .c = o + first, .ldc = ATTENTION_ROWS, .factor = factor + first});
  }
  for (int64_t r = 0; r < vectors * VEC_WIDTH; r++)
    factor[r] = job->chunks > 1 ? 1.0f : sum[r] == 0.0f ? 0.0f : 1.0f / sum[r];
  attention_out_t out = attention_out(job, item);
  attention_unpack(tile, o, factor, out.data, out.ld, out.dtype);
  for (int64_t r = 0; r < tile->rows; r++) attention_row_out(job, item, r, max[r], sum[r]);
}

/* ---- few rows: vectors run over head_dim ----------------------------------------------------- */

/* score[r, i] = <q_r, key i>, four keys at a time; those past the end are taken as the last one.
 * A head's part of a row is too short a run for the processor to ask for the next in time, so we
 * do. */
VEC_INLINE void attention_dots(const float *q, int64_t rows, int64_t dim, const void *k, int64_t ld,
                               int64_t count, float *score, int32_t dtype) {
  int64_t row_bytes = ld * vec_dtype_bytes(dtype), dim_bytes = dim * vec_dtype_bytes(dtype);
  for (int64_t i = 0; i < count; i += 4) {
    const char *key[4];
    VEC_UNROLL for (int u = 0; u < 4; u++) {
      key[u] = (const char *)k + vec_min(i + u, count - 1) * row_bytes;
      for (int64_t d = 0; d < dim_bytes; d += LINE_BYTES)
        _mm_prefetch(key[u] + AHEAD_KEYS * row_bytes + d, _MM_HINT_T0);
    }
    for (int64_t r = 0; r < rows; r++) {
      vf sum[4];
      VEC_UNROLL for (int u = 0; u < 4; u++) sum[u] = vf_zero();
      for (int64_t d = 0; d < dim; d += VEC_WIDTH) {
        vf x = vf_load_next(q + r * dim + d, dim - d);
        VEC_UNROLL for (int u = 0; u < 4; u++)
          sum[u] = vf_fma(x, vf_load_as_next(key[u], d, dim - d, dtype), sum[u]);
      }
      _mm_storeu_ps(score + r * ATTENTION_DIRECT_KEYS + i, vf_sum4(sum));
    }
  }
}

/* One row's scores [count] against keys j .. become probabilities of a new running maximum. */
static float attention_softmax_row(float *score, int64_t count, float *max, float *sum) {
  vf top = vf_set1(*max), total = vf_zero();
  for (int64_t i = 0; i < count; i += VEC_WIDTH) {
    vmask mask = vf_mask(vec_min(VEC_WIDTH, count - i));
    top = vf_max(top, vf_select(mask, vf_load_mask(score + i, mask), vf_set1(-FLT_MAX)));
  }
  float old = *max;
  *max = vf_max_lane(top);
  for (int64_t i = 0; i < count; i += VEC_WIDTH) {
    vmask mask = vf_mask(vec_min(VEC_WIDTH, count - i));
    vf p = vf_exp(vf_sub(vf_load_mask(score + i, mask), vf_set1(*max)));
    vf_store_mask(score + i, mask, p);
    total = vf_add(total, vf_select(mask, p, vf_zero()));
  }
  float factor = expf(old - *max);
  *sum = *sum * factor + vf_sum(total);
  return factor;
}

static void attention_direct(const attention_t *job, const attention_item_t *item, float *work) {
  const op_attention_t *op = job->op;
  int32_t act = op->act_dtype;
  const attention_rows_t *tile = &item->tile;
  int64_t dim = op->head_dim;
  float *q = work, *o = q + ATTENTION_DIRECT_ROWS * dim, *score = o + ATTENTION_DIRECT_ROWS * dim;
  float *room = score + ATTENTION_DIRECT_ROWS * ATTENTION_DIRECT_KEYS;
  float max[ATTENTION_DIRECT_ROWS], sum[ATTENTION_DIRECT_ROWS];
  memset(o, 0, (size_t)(tile->rows * dim) * sizeof *o);
  for (int64_t r = 0; r < tile->rows; r++) {
    int64_t at = attention_offset(tile, r, op->ldq);
    for (int64_t d = 0; d < dim; d += VEC_WIDTH)
      vf_store_next(q + r * dim + d, dim - d,
                    vf_mul(vf_set1(op->scale), vf_load_as_next(op->q, at + d, dim - d, act)));
    attention_start(job, item, r, max + r, sum + r);
  }
  for (int64_t j = item->begin; j < item->end; j += ATTENTION_DIRECT_KEYS) {
    int64_t count = vec_min(ATTENTION_DIRECT_KEYS, item->end - j);
    const void *k = vec_at(item->k, j * op->ldkv, act);
    VEC_BY_ACT(act, attention_dots(q, tile->rows, dim, k, op->ldkv, count, score, VEC_ACT));
    for (int64_t r = 0; r < tile->rows; r++) {
      float *row = score + r * ATTENTION_DIRECT_KEYS;
      int64_t own = item->past + tile->query[r], seen = own + 1 - j;
      int64_t hidden = vec_min(count, attention_first_key(op->window, own) - j);
      for (int64_t i = 0; i < hidden; i++) row[i] = -INFINITY;
      for (int64_t i = seen > 0 ? seen : 0; i < count; i++) row[i] = -INFINITY;
      float factor = attention_softmax_row(row, count, max + r, sum + r);
      for (int64_t d = 0; d < dim; d++) o[r * dim + d] *= factor;
    }
    attention_keys_t v = attention_keys(item->v, op->ldkv, j, count, dim, act, room);
    outer_run(&(outer_t){.rows = tile->rows, .columns = dim, .terms = count,
                         .a = score, .step_x = ATTENTION_DIRECT_KEYS, .step_t = 1,
                         .b = v.data, .ldb = v.ld, .c = o, .ldc = dim},
              OUTER_ADD);
  }
  attention_out_t out = attention_out(job, item);
  for (int64_t r = 0; r < tile->rows; r++) {
    float factor = job->chunks > 1 ? 1.0f : sum[r] == 0.0f ? 0.0f : 1.0f / sum[r];
    int64_t at = attention_offset(tile, r, out.ld);
    for (int64_t d = 0; d < dim; d += VEC_WIDTH)
      vf_store_as_next(out.data, at + d, dim - d, out.dtype,
                       vf_mul(vf_set1(factor), vf_load_next(o + r * dim + d, dim - d)));
    attention_row_out(job, item, r, max[r], sum[r]);
  }
}

static void attention_run(void *context, int64_t index, int32_t thread) {
  const attention_t *job = context;
  attention_item_t item;
  attention_item(job, index, &item);
  float *work = job->work + thread * attention_work(job->op->head_dim, ATTENTION_ROWS);
  if (job->op->q_len * job->group <= ATTENTION_DIRECT_ROWS)
    attention_direct(job, &item, work);
  else attention_tile(job, &item, work);
}

/* ---- chunks ---------------------------------------------------------------------------------- */

/* Row of o and lse number `index` of [batch * q_len, heads] from its chunks. */
static void attention_merge(void *context, int64_t index, int32_t thread) {
  (void)thread;
  const attention_t *job = context;
  int64_t heads = job->op->heads, dim = job->op->head_dim, chunks = job->chunks;
  int64_t at = index / heads * chunks * heads + index % heads;
  float max = -FLT_MAX, sum = 0.0f;
  for (int64_t c = 0; c < chunks; c++)
    if (!(job->part_max[at + c * heads] <= max)) max = job->part_max[at + c * heads];
  float o[ATTENTION_DIM] = {0};
  for (int64_t c = 0; c < chunks; c++) {
    float factor = expf(job->part_max[at + c * heads] - max);
    const float *part = job->part_o + (at + c * heads) * dim;
    sum += factor * job->part_sum[at + c * heads];
    for (int64_t d = 0; d < dim; d++) o[d] += factor * part[d];
  }
  float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (int64_t d = 0; d < dim; d++)
    vec_store_as(job->op->o, index * dim + d, job->op->act_dtype, o[d] * scale);
  if (job->op->lse) job->op->lse[index] = max + logf(sum);
}

/* Keys of a chunk when the longest sequence has kv_len. */
static int64_t attention_chunk(int64_t kv_len) {
  return ATTENTION_CHUNK * vec_blocks(kv_len > 0 ? kv_len : 1, ATTENTION_CHUNK * ATTENTION_CHUNKS);
}

/* Rows of a tile. Where a sequence has one query, which its heads share in all that they see, fewer
 * rows make the same numbers: as few as leave every thread a tile. */
static int64_t attention_tile_rows(const op_attention_t *op, int64_t group, int64_t items,
                                   int64_t work, int64_t threads) {
  if (op->q_len > 1 || group > ATTENTION_DIRECT_ROWS || work < VEC_SMALL) return ATTENTION_ROWS;
  int64_t rows = vec_blocks(group * items, threads);
  return rows > ATTENTION_LEAST_ROWS ? rows : ATTENTION_LEAST_ROWS;
}

VEC_OP(attention, op_attention_t) {
  int64_t group = op->heads / op->kv_heads, keys = op->kv_len ? 0 : op->q_len;
  for (int64_t b = 0; op->kv_len && b < op->batch; b++)
    if (op->kv_len[b] > keys) keys = op->kv_len[b];
  if (op->window) keys = vec_min(keys, op->window + op->q_len - 1); /* of all rows together */
  attention_t job = {.op = op, .group = group, .work = scratch.data};
  bool one_tile = op->q_len * group <= ATTENTION_ROWS;
  job.chunk = attention_chunk(keys);
  job.chunks = one_tile && keys > job.chunk ? vec_blocks(keys, job.chunk) : 1;
  job.part_o = job.work + device->threads * attention_work(op->head_dim, ATTENTION_ROWS);
  int64_t rows = op->batch * op->q_len, parts = rows * job.chunks * op->heads;
  job.part_max = job.part_o + parts * op->head_dim;
  job.part_sum = job.part_max + parts;

  int64_t work = rows * op->heads * op->head_dim * (keys + op->q_len);
  int64_t items = op->batch * job.chunks * op->kv_heads;
  job.tile_rows = attention_tile_rows(op, group, items, work, device->threads);
  job.tiles = vec_blocks(op->q_len * group, job.tile_rows);
  STATUS_TRY(vec_run(device, items * job.tiles, work, attention_run, &job));
  if (job.chunks > 1)
    return vec_run(device, rows * op->heads, parts * op->head_dim, attention_merge, &job);
  return NN_OK;
}
