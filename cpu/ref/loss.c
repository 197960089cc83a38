/* The head's logits and their cross-entropy over chunks of rows, and softmax of rows.
 *
 * row_loss = logsumexp(l) - l[target] with l = alpha (w x + bias); with
 * dl = scale alpha (softmax(l) - onehot(target)), rows without a target left out, dx = dl w is
 * assigned and dw += dl^T x and dbias += dl accumulated, rows in order within a chunk, chunks in
 * order; with `assign` the first chunk assigns dw. Sums over the vocabulary run in order. A loss
 * that is not finite, times 0, makes its row's dl NaN. */
#include <math.h>

#include "ref.h"

enum { LOSS_CHUNK = 64 }; /* rows whose logits exist at once */

typedef struct loss_chunk {
  const op_head_loss_t *op;
  int64_t begin, rows;
  float *logits; /* [LOSS_CHUNK, V] */
} loss_chunk_t;

size_t ref_loss_scratch(const backend_limits_t *limits) {
  return ref_piece(ref_min(limits->rows, LOSS_CHUNK), limits->vocab, sizeof(float));
}

/* Rows of x. */
static ref_matrix_t loss_x(const loss_chunk_t *chunk) {
  const op_head_loss_t *op = chunk->op;
  return (ref_matrix_t){.data = op->x,
                        .dtype = op->act_dtype,
                        .row = op->hidden,
                        .col = 1,
                        .at = chunk->begin * op->hidden};
}

static void loss_logits(void *context, int64_t item, int32_t thread) {
  const loss_chunk_t *chunk = context;
  const op_head_loss_t *op = chunk->op;
  (void)thread;
  int64_t across = ref_blocks(op->vocab, REF_TILE_COLS);
  int64_t i = item / across * REF_TILE_ROWS, j = item % across * REF_TILE_COLS;
  ref_matrix_t x = loss_x(chunk);
  ref_matrix_t w = {.data = op->w, .dtype = op->weight_dtype, .row = 1, .col = op->hidden};
  ref_tile_t tile = {{{0}}};
  ref_tile_add(&tile, &x, &w, chunk->rows, op->vocab, op->hidden, i, j);
  int64_t cols = ref_min(op->vocab - j, REF_TILE_COLS);
  for (int64_t c = 0; op->bias && c < cols; c++)
    for (int64_t r = 0; r < REF_TILE_ROWS; r++)
      tile.sum[r][c] += ref_load(op->bias, op->weight_dtype, j + c);
  ref_place_t logits = {.data = chunk->logits, .row = op->vocab, .col = 1};
  ref_tile_assign(&tile, &logits, chunk->rows, op->vocab, i, j);
}

/* The largest of alpha times each element. */
static double row_largest(const float *row, int64_t width, double alpha) {
  double largest = alpha * row[0];
  for (int64_t i = 1; i < width; i++) largest = alpha * row[i] > largest ? alpha * row[i] : largest;
  return largest;
}

/* item: a row of the chunk; turns logits into dl where gradients are wanted. */
static void loss_row(void *context, int64_t item, int32_t thread) {
  const loss_chunk_t *chunk = context;
  const op_head_loss_t *op = chunk->op;
  (void)thread;
  float *row = chunk->logits + item * op->vocab;
  int64_t target = op->target[chunk->begin + item];
  double alpha = backend_factor(op->alpha), sum = 0;
  double largest = row_largest(row, op->vocab, alpha);
  for (int64_t i = 0; i < op->vocab; i++) sum += exp(alpha * row[i] - largest);
  double lse = largest + log(sum);
  float loss = target < 0 ? 0 : (float)(lse - alpha * row[target]);
  op->row_loss[chunk->begin + item] = loss;
  if (!op->dx) return;
  double scale = target < 0 ? 0 : *op->scale * alpha + 0 * loss;
  for (int64_t i = 0; i < op->vocab; i++)
    row[i] = (float)(scale * (exp(alpha * row[i] - lse) - (i == target)));
}

static void loss_dx(void *context, int64_t item, int32_t thread) {
  const loss_chunk_t *chunk = context;
  const op_head_loss_t *op = chunk->op;
  (void)thread;
  int64_t across = ref_blocks(op->hidden, REF_TILE_COLS);
  int64_t i = item / across * REF_TILE_ROWS, j = item % across * REF_TILE_COLS;
  ref_matrix_t dl = {.data = chunk->logits, .row = op->vocab, .col = 1};
  ref_matrix_t w = {.data = op->w, .dtype = op->weight_dtype, .row = op->hidden, .col = 1};
  ref_tile_t tile = {{{0}}};
  ref_tile_add(&tile, &dl, &w, chunk->rows, op->hidden, op->vocab, i, j);
  ref_place_t dx = {.data = op->dx,
                    .dtype = op->act_dtype,
                    .at = chunk->begin * op->hidden,
                    .row = op->hidden,
                    .col = 1};
  ref_tile_assign(&tile, &dx, chunk->rows, op->hidden, i, j);
}

static void loss_dw(void *context, int64_t item, int32_t thread) {
  const loss_chunk_t *chunk = context;
  const op_head_loss_t *op = chunk->op;
  (void)thread;
  int64_t across = ref_blocks(op->hidden, REF_TILE_COLS);
  int64_t i = item / across * REF_TILE_ROWS, j = item % across * REF_TILE_COLS;
  ref_matrix_t dl = {.data = chunk->logits, .row = 1, .col = op->vocab};
  ref_matrix_t x = loss_x(chunk);
  ref_tile_t tile = {{{0}}};
  ref_tile_add(&tile, &dl, &x, op->vocab, op->hidden, chunk->rows, i, j);
  ref_place_t dw = {.data = op->dw, .row = op->hidden, .col = 1};
  if (op->assign && !chunk->begin)
    ref_tile_assign(&tile, &dw, op->vocab, op->hidden, i, j);
  else
    ref_tile_accumulate(&tile, &dw, op->vocab, op->hidden, i, j);
}

/* item: REF_TILE_COLS of the vocabulary. */
static void loss_dbias(void *context, int64_t item, int32_t thread) {
  const loss_chunk_t *chunk = context;
  const op_head_loss_t *op = chunk->op;
  (void)thread;
  int64_t end = ref_min(op->vocab, (item + 1) * REF_TILE_COLS);
  for (int64_t v = item * REF_TILE_COLS; v < end; v++) {
    double sum = 0;
    for (int64_t r = 0; r < chunk->rows; r++) sum += chunk->logits[r * op->vocab + v];
    op->dbias[v] = (float)(op->dbias[v] + sum);
  }
}

static nn_status_t loss_run(backend_device_t *device, loss_chunk_t *chunk) {
  const op_head_loss_t *op = chunk->op;
  int64_t tall = ref_blocks(chunk->rows, REF_TILE_ROWS);
  int64_t wide = ref_blocks(op->hidden, REF_TILE_COLS);
  STATUS_TRY(
      pool_run(device->pool, tall * ref_blocks(op->vocab, REF_TILE_COLS), loss_logits, chunk));
  STATUS_TRY(pool_run(device->pool, chunk->rows, loss_row, chunk));
  if (!op->dx) return NN_OK;
  if (op->bias)
    STATUS_TRY(pool_run(device->pool, ref_blocks(op->vocab, REF_TILE_COLS), loss_dbias, chunk));
  STATUS_TRY(pool_run(device->pool, tall * wide, loss_dx, chunk));
  return pool_run(device->pool, ref_blocks(op->vocab, REF_TILE_ROWS) * wide, loss_dw, chunk);
}

nn_status_t ref_head_loss(backend_device_t *device, const op_head_loss_t *op,
                          backend_scratch_t scratch) {
  loss_chunk_t chunk = {.op = op, .logits = scratch.data};
  for (; chunk.begin < op->n; chunk.begin += LOSS_CHUNK) {
    chunk.rows = ref_min(op->n - chunk.begin, LOSS_CHUNK);
    STATUS_TRY(loss_run(device, &chunk));
  }
  double sum = 0;
  for (int64_t i = 0; i < op->n; i++) sum += op->row_loss[i];
  *op->loss_sum = sum;
  return NN_OK;
}

static void softmax_row(void *context, int64_t item, int32_t thread) {
  const op_softmax_t *op = context;
  (void)thread;
  const float *x = op->x + item * op->width;
  float *y = op->y + item * op->width;
  double largest = row_largest(x, op->width, 1), sum = 0;
  for (int64_t i = 0; i < op->width; i++) sum += exp(x[i] - largest);
  for (int64_t i = 0; i < op->width; i++) y[i] = (float)(exp(x[i] - largest) / sum);
}

nn_status_t ref_softmax(backend_device_t *device, const op_softmax_t *op,
                        backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, op->n, softmax_row, (void *)op);
}
