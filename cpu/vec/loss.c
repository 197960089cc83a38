/* The head's logits and their cross-entropy over equal chunks of rows, and softmax of rows.
 *
 * row_loss = logsumexp(l) - l[target], l = alpha (w x + bias); with
 * dl = scale alpha (softmax(l) - onehot(target)), rows without a target left out, dx = dl w is
 * assigned and dw += dl^T x, dbias += dl accumulated: products as in gemm.h, chunks in order. A
 * row's sum of exponentials runs over blocks of ROW_BLOCK in order, lanes within. A loss that is
 * not finite, times 0, makes its row's dl NaN. */
#include <math.h>

#include "vec/gemm.h"

enum {
  ROW_BLOCK = 1024,           /* elements summed in fp32 before the sum goes on in double */
  ROW_ITEM_ELEMENTS = 1 << 14 /* of the rows of an item, at least */
};

static float row_largest(const float *x, int64_t width) {
  vf largest = vf_set1(-INFINITY);
  int64_t i = 0;
  for (; i + VEC_WIDTH <= width; i += VEC_WIDTH) largest = vf_max(vf_load(x + i), largest);
  float most = vf_max_lane(largest);
  for (; i < width; i++) most = x[i] > most ? x[i] : most;
  return most;
}

/* y = exp(x - shift); returns the sum. y may be x. */
static double row_exp(const float *x, float shift, float *y, int64_t width) {
  double total = 0;
  for (int64_t begin = 0; begin < width; begin += ROW_BLOCK) {
    int64_t end = vec_min(begin + ROW_BLOCK, width), i = begin;
    vf sum = vf_zero();
    for (; i + VEC_WIDTH <= end; i += VEC_WIDTH) {
      vf e = vf_exp(vf_sub(vf_load(x + i), vf_set1(shift)));
      sum = vf_add(sum, e);
      vf_store(y + i, e);
    }
    if (i < end) {
      vmask mask = vf_mask(end - i);
      vf e = vf_exp(vf_sub(vf_load_mask(x + i, mask), vf_set1(shift)));
      sum = vf_add(sum, vf_select(mask, e, vf_zero()));
      vf_store_mask(y + i, mask, e);
    }
    total += vf_sum(sum);
  }
  return total;
}

static void row_scale(float *x, float factor, int64_t width) {
  for (int64_t i = 0; i < width; i += VEC_WIDTH)
    vf_store_next(x + i, width - i, vf_mul(vf_load_next(x + i, width - i), vf_set1(factor)));
}

static int64_t rows_of_item(int64_t width) { return 1 + ROW_ITEM_ELEMENTS / width; }

/* ---- head and loss --------------------------------------------------------------------------- */

typedef struct head_chunk {
  const op_head_loss_t *op;
  int64_t begin, rows;
  float *logits; /* [rows, V]; then dl */
} head_chunk_t;

static void head_loss_row(const head_chunk_t *chunk, int64_t r) {
  const op_head_loss_t *op = chunk->op;
  int64_t target = op->target[chunk->begin + r];
  float *row = chunk->logits + r * op->vocab, *loss = op->row_loss + chunk->begin + r;
  *loss = 0;
  if (target < 0) {
    if (op->dx) memset(row, 0, (size_t)op->vocab * sizeof *row);
    return;
  }
  float largest = row_largest(row, op->vocab), chosen = row[target];
  double sum = row_exp(row, largest, row, op->vocab);
  *loss = (float)(log(sum) + ((double)largest - chosen));
  if (!op->dx) return;
  float scale = *op->scale * backend_factor(op->alpha) + 0 * *loss;
  row_scale(row, (float)(scale / sum), op->vocab);
  row[target] -= scale;
}

static void head_loss_item(void *context, int64_t item, int32_t thread) {
  const head_chunk_t *chunk = context;
  (void)thread;
  int64_t step = rows_of_item(chunk->op->vocab), last = vec_min((item + 1) * step, chunk->rows);
  for (int64_t r = item * step; r < last; r++) head_loss_row(chunk, r);
}

static nn_status_t head_loss_forward(backend_device_t *device, head_chunk_t *chunk,
                                     backend_scratch_t scratch) {
  const op_head_loss_t *op = chunk->op;
  op_matmul_t logits = {.m = chunk->rows,
                        .n = op->vocab,
                        .k = op->hidden,
                        .trans_b = 1,
                        .a = vec_at(op->x, chunk->begin * op->hidden, op->act_dtype),
                        .lda = op->hidden,
                        .a_dtype = op->act_dtype,
                        .b = op->w,
                        .ldb = op->hidden,
                        .b_dtype = op->weight_dtype,
                        .alpha = op->alpha,
                        .bias = op->bias,
                        .d = chunk->logits,
                        .ldd = op->vocab};
  STATUS_TRY(VEC(matmul)(device, &logits, scratch));
  return vec_run(device, vec_blocks(chunk->rows, rows_of_item(op->vocab)), chunk->rows * op->vocab,
                 head_loss_item, chunk);
}

static nn_status_t head_loss_backward(backend_device_t *device, const head_chunk_t *chunk,
                                      backend_scratch_t scratch) {
  const op_head_loss_t *op = chunk->op;
  op_matmul_t dx = {.m = chunk->rows,
                    .n = op->hidden,
                    .k = op->vocab,
                    .a = chunk->logits,
                    .lda = op->vocab,
                    .b = op->w,
                    .ldb = op->hidden,
                    .b_dtype = op->weight_dtype,
                    .d = vec_to(op->dx, chunk->begin * op->hidden, op->act_dtype),
                    .ldd = op->hidden,
                    .d_dtype = op->act_dtype};
  op_matmul_t dw = {.m = op->vocab,
                    .n = op->hidden,
                    .k = chunk->rows,
                    .trans_a = 1,
                    .a = chunk->logits,
                    .lda = op->vocab,
                    .b = vec_at(op->x, chunk->begin * op->hidden, op->act_dtype),
                    .ldb = op->hidden,
                    .b_dtype = op->act_dtype,
                    .c = op->assign && !chunk->begin ? NULL : op->dw,
                    .ldc = op->hidden,
                    .d = op->dw,
                    .ldd = op->hidden};
  op_column_sum_t dbias = {.n = chunk->rows,
                           .width = op->vocab,
                           .x = chunk->logits,
                           .ldx = op->vocab,
                           .out = op->dbias};
  if (op->bias) STATUS_TRY(VEC(column_sum)(device, &dbias, scratch));
  STATUS_TRY(VEC(matmul)(device, &dx, scratch));
  return VEC(matmul)(device, &dw, scratch);
}

nn_status_t VEC(head_loss)(backend_device_t *device, const op_head_loss_t *op,
                           backend_scratch_t scratch) {
  head_chunk_t chunk = {
      .op = op,
      .logits = (float *)((char *)scratch.data + (size_t)device->threads * GEMM_THREAD_BYTES)};
  int64_t most = head_chunk_rows(op->n, op->vocab);
  int64_t step = op->n > most ? vec_blocks(op->n, vec_blocks(op->n, most)) : op->n;
  for (; chunk.begin < op->n; chunk.begin += step) {
    chunk.rows = vec_min(step, op->n - chunk.begin);
    STATUS_TRY(head_loss_forward(device, &chunk, scratch));
    if (op->dx) STATUS_TRY(head_loss_backward(device, &chunk, scratch));
  }
  double sum = 0;
  for (int64_t i = 0; i < op->n; i++) sum += op->row_loss[i];
  *op->loss_sum = sum;
  return NN_OK;
}

/* ---- softmax --------------------------------------------------------------------------------- */

static void softmax_item(void *context, int64_t item, int32_t thread) {
  const op_softmax_t *op = context;
  (void)thread;
  int64_t step = rows_of_item(op->width), last = vec_min((item + 1) * step, op->n);
  for (int64_t r = item * step; r < last; r++) {
    const float *x = op->x + r * op->width;
    float *y = op->y + r * op->width;
    double sum = row_exp(x, row_largest(x, op->width), y, op->width);
    row_scale(y, (float)(1 / sum), op->width);
  }
}

nn_status_t VEC(softmax)(backend_device_t *device, const op_softmax_t *op,
                         backend_scratch_t scratch) {
  op_softmax_t args = *op;
  int64_t items = vec_blocks(op->n, rows_of_item(op->width));
  (void)scratch;
  return vec_run(device, items, op->n * op->width, softmax_item, &args);
}
