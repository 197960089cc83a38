/* Embedding: out[i] = alpha wte[ids[i]] + wpe[position[i]], and its gradient. The gradient
 * is split over columns, so that every row of dwte and dwpe is summed in the order of i. */
#include "vec/ops.h"

enum { EMBED_ROWS = 16, EMBED_STRIP = 64 };

VEC_INLINE void embed_row(const op_embed_t *op, int64_t i, int32_t dtype, int32_t act) {
  const op_embed_t args = *op; /* which what is stored cannot change */
  op = &args;
  int64_t token = op->ids[i] * op->hidden;
  int64_t place = op->wpe ? op->position[i] * op->hidden : 0;
  vf alpha = vf_set1(backend_factor(op->alpha));
  for (int64_t j = 0; j < op->hidden; j += VEC_WIDTH) {
    int64_t left = op->hidden - j;
    vf x = vf_mul(alpha, vf_load_as_next(op->wte, token + j, left, dtype));
    if (op->wpe) x = vf_add(x, vf_load_as_next(op->wpe, place + j, left, dtype));
    vf_store_as_next(op->out, i * op->hidden + j, left, act, x);
  }
}

static void embed_rows(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_embed_t *op = context;
  int64_t end = vec_min(op->n, (item + 1) * EMBED_ROWS);
  for (int64_t i = item * EMBED_ROWS; i < end; i++)
    VEC_BY_DTYPES(op->weight_dtype, op->act_dtype, embed_row(op, i, VEC_DTYPE, VEC_ACT));
}

VEC_OP(embed, op_embed_t) {
  (void)scratch;
  op_embed_t job = *op;
  return vec_run(device, vec_blocks(op->n, EMBED_ROWS), op->n * op->hidden, embed_rows, &job);
}

/* rows[index[i]] += alpha dout[i] over columns begin .. end - 1. */
VEC_INLINE void embed_add(const op_embed_bwd_t *op, float *rows, const int32_t *index, float alpha,
                          int64_t begin, int64_t end, int32_t act) {
  for (int64_t i = 0; i < op->n; i++) {
    float *sum = rows + index[i] * op->hidden;
    for (int64_t j = begin; j < end; j += VEC_WIDTH)
      vf_store_next(sum + j, end - j,
                    vf_fma(vf_set1(alpha),
                           vf_load_as_next(op->dout, i * op->hidden + j, end - j, act),
                           vf_load_next(sum + j, end - j)));
  }
}

static void embed_bwd_strip(void *context, int64_t item, int32_t thread) {
  (void)thread;
  const op_embed_bwd_t *op = context;
  int64_t begin = item * EMBED_STRIP, end = vec_min(op->hidden, begin + EMBED_STRIP);
  float alpha = backend_factor(op->alpha);
  VEC_BY_ACT(op->act_dtype, embed_add(op, op->dwte, op->ids, alpha, begin, end, VEC_ACT));
  if (op->dwpe)
    VEC_BY_ACT(op->act_dtype, embed_add(op, op->dwpe, op->position, 1, begin, end, VEC_ACT));
}

VEC_OP(embed_bwd, op_embed_bwd_t) {
  (void)scratch;
  op_embed_bwd_t job = *op;
  return vec_run(device, vec_blocks(op->hidden, EMBED_STRIP), op->n * op->hidden, embed_bwd_strip,
                 &job);
}
