/* Embedding. Forward assigns out[t] = alpha wte[ids[t]] + wpe[position[t]], a row at a time.
 * Backward accumulates alpha dout[t] and dout[t] into those rows, t in order; threads divide the
 * columns, so that rows chosen twice need no care. */
#include "ref.h"

enum { EMBED_ROWS = 16, EMBED_COLS = 64 };

static void embed_rows(void *context, int64_t item, int32_t thread) {
  const op_embed_t *op = context;
  (void)thread;
  float alpha = backend_factor(op->alpha);
  int64_t end = ref_min(op->n, (item + 1) * EMBED_ROWS);
  for (int64_t t = item * EMBED_ROWS; t < end; t++) {
    int64_t token = op->ids[t] * op->hidden, place = op->wpe ? op->position[t] * op->hidden : 0;
    for (int64_t c = 0; c < op->hidden; c++) {
      float out = alpha * ref_load(op->wte, op->weight_dtype, token + c);
      if (op->wpe) out += ref_load(op->wpe, op->weight_dtype, place + c);
      ref_store(op->out, op->act_dtype, t * op->hidden + c, out);
    }
  }
}

nn_status_t ref_embed(backend_device_t *device, const op_embed_t *op, backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->n, EMBED_ROWS), embed_rows, (void *)op);
}

static void embed_add_columns(float *table, const int32_t *rows, float alpha,
                              const op_embed_bwd_t *op, int64_t begin, int64_t end) {
  for (int64_t t = 0; t < op->n; t++) {
    float *to = table + rows[t] * op->hidden;
    for (int64_t c = begin; c < end; c++)
      to[c] += alpha * ref_load(op->dout, op->act_dtype, t * op->hidden + c);
  }
}

static void embed_bwd_columns(void *context, int64_t item, int32_t thread) {
  const op_embed_bwd_t *op = context;
  (void)thread;
  int64_t begin = item * EMBED_COLS, end = ref_min(op->hidden, begin + EMBED_COLS);
  embed_add_columns(op->dwte, op->ids, backend_factor(op->alpha), op, begin, end);
  if (op->dwpe) embed_add_columns(op->dwpe, op->position, 1, op, begin, end);
}

nn_status_t ref_embed_bwd(backend_device_t *device, const op_embed_bwd_t *op,
                          backend_scratch_t scratch) {
  (void)scratch;
  return pool_run(device->pool, ref_blocks(op->hidden, EMBED_COLS), embed_bwd_columns, (void *)op);
}
