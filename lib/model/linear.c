#include "model/linear.h"

static int64_t linear_ldx(const linear_t *layer) { return layer->ldx ? layer->ldx : layer->in; }
static int64_t linear_ldy(const linear_t *layer) { return layer->ldy ? layer->ldy : layer->out; }

op_matmul_t linear_op(const pass_t *pass, const linear_t *layer, const void *x,
                      const void *residual, void *y) {
  op_matmul_t op = {.m = pass_rows(pass), .n = layer->out, .k = layer->in, .trans_b = 1};
  op.a = x, op.lda = linear_ldx(layer), op.a_dtype = pass->act_dtype;
  op.b = layer->w, op.ldb = layer->in, op.b_dtype = pass->weight_dtype;
  op.alpha = layer->alpha, op.bias = layer->bias;
  op.c = residual, op.ldc = layer->out;
  op.d = y, op.ldd = linear_ldy(layer), op.d_dtype = pass->act_dtype;
  return op;
}

nn_status_t linear_forward(const pass_t *pass, const linear_t *layer, const void *x,
                           const void *residual, void *y) {
  op_matmul_t op = linear_op(pass, layer, x, residual, y);
  return PASS_RUN(pass, matmul, op);
}

nn_status_t linear_weight_bwd(const pass_t *pass, const linear_t *layer, const void *x,
                              const void *dy, float *dw, float *dbias) {
  int64_t n = pass_rows(pass);
  op_matmul_t op = {.m = layer->out, .n = layer->in, .k = n, .trans_a = 1};
  op.a = dy, op.lda = linear_ldy(layer), op.a_dtype = pass->act_dtype;
  op.b = x, op.ldb = linear_ldx(layer), op.b_dtype = pass->act_dtype;
  op.alpha = layer->alpha;
  op.c = pass->assign ? NULL : dw, op.ldc = layer->in;
  op.d = dw, op.ldd = layer->in, op.d_dtype = NN_F32;
  STATUS_TRY(PASS_RUN(pass, matmul, op));
  if (!dbias) return NN_OK;
  op_column_sum_t sum = {.n = n, .width = layer->out, .x = dy, .out = dbias};
  sum.ldx = linear_ldy(layer);
  sum.act_dtype = pass->act_dtype, sum.alpha = layer->alpha;
  return PASS_RUN(pass, column_sum, sum);
}

nn_status_t linear_input_bwd(const pass_t *pass, const linear_t *layer, const void *dy, void *dx,
                             bool adds, void *gelu_pre) {
  op_matmul_t op = {.m = pass_rows(pass), .n = layer->in, .k = layer->out};
  op.a = dy, op.lda = linear_ldy(layer), op.a_dtype = pass->act_dtype;
  op.b = layer->w, op.ldb = layer->in, op.b_dtype = pass->weight_dtype;
  op.alpha = layer->alpha;
  if (adds) op.c = dx, op.ldc = linear_ldx(layer);
  op.d = dx, op.ldd = linear_ldx(layer), op.d_dtype = pass->act_dtype;
  if (gelu_pre) op.epilogue = MATMUL_GELU_BWD, op.aux = gelu_pre;
  return PASS_RUN(pass, matmul, op);
}

op_norm_t norm_op(const pass_t *pass, int64_t n, const void *x, const void *w, const void *b,
                  void *y, float *mean, float *rstd) {
  op_norm_t op = {.n = n, .hidden = pass->config->hidden, .kind = pass->config->norm};
  op.eps = pass->config->norm_eps;
  op.x = x, op.w = w, op.b = b;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.y = y, op.mean = mean, op.rstd = rstd;
  return op;
}

nn_status_t norm_backward(const pass_t *pass, const void *x, const void *dy, const void *w,
                          const float *mean, const float *rstd, void *dx, float *dw, float *db) {
  op_norm_bwd_t op = {.n = pass_rows(pass), .hidden = pass->config->hidden};
  op.kind = pass->config->norm;
  op.x = x, op.dy = dy, op.w = w;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.mean = mean, op.rstd = rstd;
  op.dx = dx, op.dw = dw, op.db = db;
  return PASS_RUN(pass, norm_bwd, op);
}

op_norm_t final_norm(const pass_t *pass, int64_t n, const void *x, void *y, float *mean,
                     float *rstd) {
  const weights_t *w = pass->weights;
  return norm_op(pass, n, x, w->norm_final, w->norm_final_bias, y, mean, rstd);
}
