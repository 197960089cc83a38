/* A CPU's other operations: rows of activations, heads, gates, embedding, loss, optimizer, choice
 * of tokens, filling. */
#include <stdio.h>
#include <string.h>

#include "ops.h"

/* Bytes of a matrix of activations. */
static double rows_bytes(int64_t n, int64_t width, int32_t dtype) {
  return (double)(n * width) * (double)nn_dtype_bytes(dtype);
}

static void rows_norm(ops_t *ops, int64_t n, int64_t hidden, int32_t kind, int32_t dtype) {
  char name[OPS_NAME];
  const char *what = kind == NN_NORM_LAYER ? "layernorm" : "rmsnorm";
  double matrix = rows_bytes(n, hidden, dtype);
  op_norm_t norm = {.n = n, .hidden = hidden, .kind = kind, .eps = 1e-5f};
  norm.weight_dtype = norm.act_dtype = dtype;
  norm.x = ops_take_as(ops, n * hidden, dtype), norm.w = ops_take_as(ops, hidden, dtype);
  norm.y = ops_take_as(ops, n * hidden, dtype), norm.rstd = ops_take(ops, n);
  if (kind == NN_NORM_LAYER)
    norm.b = ops_take_as(ops, hidden, dtype), norm.mean = ops_take(ops, n);
  TRY(ops->backend->norm(ops->place, &norm, ops->scratch));
  snprintf(name, sizeof name, "%s %dx%d%s", what, (int)n, (int)hidden, ops_tail(dtype));
  RUN(ops, name, norm, norm, ops_moved(ops, 2 * matrix, true));
  op_norm_bwd_t bwd = {.n = n, .hidden = hidden, .kind = kind, .x = norm.x, .w = norm.w};
  bwd.weight_dtype = bwd.act_dtype = dtype;
  bwd.mean = norm.mean, bwd.rstd = norm.rstd, bwd.dy = ops_take_as(ops, n * hidden, dtype);
  bwd.dx = norm.y, bwd.dw = ops_take(ops, hidden);
  if (kind == NN_NORM_LAYER) bwd.db = ops_take(ops, hidden);
  snprintf(name, sizeof name, "%s backward %dx%d%s", what, (int)n, (int)hidden, ops_tail(dtype));
  RUN(ops, name, norm_bwd, bwd, ops_moved(ops, 4 * matrix, true));
  ops_drop(ops);
}

static void rows_softmax(ops_t *ops, int64_t n, int64_t width) {
  char name[OPS_NAME];
  op_softmax_t op = {.n = n, .width = width};
  op.x = ops_take(ops, n * width), op.y = ops_take(ops, n * width);
  snprintf(name, sizeof name, "softmax %dx%d", (int)n, (int)width);
  RUN(ops, name, softmax, op, ops_moved(ops, 2 * rows_bytes(n, width, NN_F32), true));
  ops_drop(ops);
}

static void rows_sum(ops_t *ops, int64_t n, int64_t width, int32_t dtype) {
  char name[OPS_NAME];
  op_column_sum_t op = {.n = n, .width = width, .ldx = width, .act_dtype = dtype};
  op.x = ops_take_as(ops, n * width, dtype), op.out = ops_take(ops, width);
  snprintf(name, sizeof name, "column sum %dx%d%s", (int)n, (int)width, ops_tail(dtype));
  RUN(ops, name, column_sum, op, ops_moved(ops, rows_bytes(n, width, dtype), false));
  ops_drop(ops);
}

static void rows_rope(ops_t *ops, int64_t n, int64_t heads, int64_t dim, int32_t dtype) {
  char name[OPS_NAME];
  int32_t *position = ops_take_ints(ops, n);
  for (int64_t i = 0; i < n; i++) position[i] = (int32_t)i;
  op_rope_t op = {.n = n, .heads = heads, .head_dim = dim, .ldx = heads * dim};
  float *table = ops_take(ops, n * dim); /* a rotation: rows keep their length from call to call */
  for (int64_t i = 0; i < n * dim; i++) table[i] = i % dim < dim / 2 ? 0.8f : 0.6f;
  op.x = ops_take_as(ops, n * heads * dim, dtype), op.position = position;
  op.table = table, op.act_dtype = dtype;
  for (; op.interleaved < 2; op.interleaved++) {
    snprintf(name, sizeof name, "rope%s %dx%d heads of %d%s", op.interleaved ? " interleaved" : "",
             (int)n, (int)heads, (int)dim, ops_tail(dtype));
    RUN(ops, name, rope, op, ops_moved(ops, 2 * rows_bytes(n, heads * dim, dtype), true));
  }
  ops_drop(ops);
}

/* What rows of queries, keys and values go through before attention: the norm of each head, and a
 * clamp. */
static void rows_heads(ops_t *ops, int64_t n, int64_t heads, int64_t dim, int32_t dtype) {
  char name[OPS_NAME];
  int64_t width = heads * dim, ld = width + 2 * dim;
  void *raw = ops_take_as(ops, n * width, dtype), *qkv = ops_take_as(ops, n * ld, dtype);
  void *w = ops_take_as(ops, dim, dtype);
  float *rstd = ops_take(ops, n * heads), *dw = ops_take(ops, dim);
  double matrix = rows_bytes(n, width, dtype);
  op_norm_t norm = {.n = n, .hidden = dim, .groups = heads, .ldy = ld, .eps = 1e-5f, .x = raw,
                    .w = w, .y = qkv, .rstd = rstd, .weight_dtype = dtype, .act_dtype = dtype};
  TRY(ops->backend->norm(ops->place, &norm, ops->scratch));
  snprintf(name, sizeof name, "rmsnorm of %dx%d heads of %d%s", (int)n, (int)heads, (int)dim,
           ops_tail(dtype));
  RUN(ops, name, norm, norm, ops_moved(ops, 2 * matrix, true));
  op_norm_bwd_t bwd = {.n = n, .hidden = dim, .groups = heads, .ldy = ld, .assign = 1, .x = raw,
                       .dy = qkv, .w = w, .rstd = rstd, .dx = qkv, .dw = dw, .weight_dtype = dtype,
                       .act_dtype = dtype};
  snprintf(name, sizeof name, "rmsnorm backward of %dx%d heads of %d%s", (int)n, (int)heads,
           (int)dim, ops_tail(dtype));
  RUN(ops, name, norm_bwd, bwd, ops_moved(ops, 3 * matrix, true));
  op_clip_t clip = {.n = n, .width = ld, .limit = 0.5f, .act_dtype = dtype, .x = qkv, .ldx = ld,
                    .y = qkv, .ldy = ld};
  snprintf(name, sizeof name, "clamp %dx%d%s", (int)n, (int)ld, ops_tail(dtype));
  RUN(ops, name, clip, clip, ops_moved(ops, 2 * rows_bytes(n, ld, dtype), true));
  op_clip_bwd_t back = {.n = n, .width = width, .limit = 0.5f, .act_dtype = dtype, .x = raw,
                        .ldx = width, .dx = qkv, .lddx = ld};
  snprintf(name, sizeof name, "clamp backward %dx%d%s", (int)n, (int)width, ops_tail(dtype));
  RUN(ops, name, clip_bwd, back, ops_moved(ops, 3 * matrix, true));
  ops_drop(ops);
}

/* One part of every head's key, as latent attention puts it there. */
static void rows_copies(ops_t *ops, int64_t n, int64_t heads, int64_t dim, int32_t dtype) {
  char name[OPS_NAME];
  int64_t row = heads * dim;
  void *x = ops_take_as(ops, n * row, dtype), *y = ops_take(ops, n * 3 * row);
  op_copy_heads_t op = {.n = n, .heads = heads, .width = dim / 2, .x = x, .ldx = row, .step_x = dim,
                        .y = y, .ldy = 3 * row, .step_y = dim, .act_dtype = dtype};
  snprintf(name, sizeof name, "copy of %dx%d half heads of %d%s", (int)n, (int)heads, (int)dim,
           ops_tail(dtype));
  RUN(ops, name, copy_heads, op, ops_moved(ops, rows_bytes(n, row, dtype), true));
  ops_drop(ops);
}

/* The activation of a gated network. */
static void rows_glu(ops_t *ops, int64_t n, int64_t ffn, int32_t dtype) {
  char name[OPS_NAME];
  void *x = ops_take_as(ops, n * 2 * ffn, dtype), *y = ops_take_as(ops, n * ffn, dtype);
  float *gate = ops_take(ops, n);
  double inside = rows_bytes(n, ffn, dtype);
  op_glu_t glu = {.n = n, .ffn = ffn, .act_dtype = dtype, .x = x, .weight = gate, .y = y};
  snprintf(name, sizeof name, "gated unit %dx%d%s", (int)n, (int)ffn, ops_tail(dtype));
  RUN(ops, name, glu, glu, ops_moved(ops, 3 * inside, true));
  op_glu_bwd_t bwd = {.n = n, .ffn = ffn, .act_dtype = dtype, .x = x, .weight = gate, .dy = y};
  bwd.y = y, bwd.dx = ops_take(ops, n * 2 * ffn), bwd.dweight = ops_take(ops, n);
  snprintf(name, sizeof name, "gated unit backward %dx%d%s", (int)n, (int)ffn, ops_tail(dtype));
  RUN(ops, name, glu_bwd, bwd, ops_moved(ops, 6 * inside, true));
  ops_drop(ops);
}

/* The gate of a shared expert. */
static void rows_gate(ops_t *ops, int64_t n, int64_t hidden, int32_t dtype) {
  char name[OPS_NAME];
  void *x = ops_take_as(ops, n * hidden, dtype), *w = ops_take_as(ops, hidden, dtype);
  float *gate = ops_take(ops, n);
  double matrix = rows_bytes(n, hidden, dtype);
  op_row_gate_t row = {.n = n, .width = hidden, .x = x, .w = w, .gate = gate};
  row.weight_dtype = row.act_dtype = dtype;
  snprintf(name, sizeof name, "gate of rows %dx%d%s", (int)n, (int)hidden, ops_tail(dtype));
  RUN(ops, name, row_gate, row, ops_moved(ops, matrix, false));
  op_row_gate_bwd_t bwd = {.n = n, .width = hidden, .x = x, .w = w, .gate = gate};
  bwd.weight_dtype = bwd.act_dtype = dtype;
  bwd.dgate = ops_take(ops, n), bwd.dx = ops_take_as(ops, n * hidden, dtype);
  bwd.dw = ops_take(ops, hidden);
  snprintf(name, sizeof name, "gate of rows backward %dx%d%s", (int)n, (int)hidden,
           ops_tail(dtype));
  RUN(ops, name, row_gate_bwd, bwd, ops_moved(ops, 3 * matrix, true));
  ops_drop(ops);
}

static void rows_embedding(ops_t *ops, int64_t n, int64_t hidden, int64_t vocab, int32_t dtype) {
  char name[OPS_NAME];
  int32_t act = ops_act(dtype), *ids = ops_take_ints(ops, n);
  void *out = ops_take_as(ops, n * hidden, act);
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(i * 7919 % vocab);
  double rows = rows_bytes(n, hidden, dtype), made = rows_bytes(n, hidden, act);
  op_embed_t embed = {.n = n, .hidden = hidden, .ids = ids, .out = out};
  embed.wte = ops_take_as(ops, vocab * hidden, dtype);
  embed.weight_dtype = dtype, embed.act_dtype = act;
  snprintf(name, sizeof name, "embedding %dx%d of %d%s", (int)n, (int)hidden, (int)vocab,
           ops_tail(dtype));
  RUN(ops, name, embed, embed, ops_moved(ops, rows + made, true));
  ops_drop(ops);
}

static void rows_embedding_back(ops_t *ops, int64_t n, int64_t hidden, int64_t vocab,
                                int32_t dtype) {
  char name[OPS_NAME];
  int32_t *ids = ops_take_ints(ops, n);
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(i * 7919 % vocab);
  op_embed_bwd_t op = {.n = n, .hidden = hidden, .vocab = vocab, .ids = ids, .act_dtype = dtype};
  op.dout = ops_take_as(ops, n * hidden, dtype), op.dwte = ops_take(ops, vocab * hidden);
  snprintf(name, sizeof name, "embedding backward %dx%d of %d%s", (int)n, (int)hidden, (int)vocab,
           ops_tail(dtype));
  double changed = 2 * rows_bytes(n, hidden, NN_F32);
  RUN(ops, name, embed_bwd, op, ops_moved(ops, changed + rows_bytes(n, hidden, dtype), true));
  ops_drop(ops);
}

static void rows_loss(ops_t *ops, int64_t n, int64_t hidden, int64_t vocab, int32_t dtype) {
  char name[OPS_NAME];
  int32_t *target = ops_take_ints(ops, n);
  for (int64_t i = 0; i < n; i++) target[i] = (int32_t)(i * 104729 % vocab);
  op_head_loss_t op = {.n = n, .hidden = hidden, .vocab = vocab};
  op.weight_dtype = dtype, op.act_dtype = ops_act(dtype);
  op.x = ops_take_as(ops, n * hidden, op.act_dtype), op.w = ops_take_as(ops, vocab * hidden, dtype);
  op.target = target, op.row_loss = ops_take(ops, n), op.scale = ops_take(ops, 1);
  op.loss_sum = (double *)(void *)ops_take(ops, 2);
  op.dx = ops_take(ops, n * hidden), op.dw = ops_take(ops, vocab * hidden);
  snprintf(name, sizeof name, "head and loss with gradients %s %dx%d of %d", ops_dtype(dtype),
           (int)n, (int)hidden, (int)vocab);
  RUN(ops, name, head_loss, op,
      ops_flops(ops, 6.0 * (double)(n * hidden) * (double)vocab, dtype));
  ops_drop(ops);
}

static void rows_optimizer(ops_t *ops, int64_t count) {
  float *p = ops_take(ops, count), *g = ops_take(ops, count), *m = ops_take(ops, count);
  float *v = ops_take(ops, count), *master = ops_take(ops, count);
  double *scale = (double *)(void *)ops_take(ops, 4);
  optim_now_t now = {.lr = 1e-6, .m_left = 1, .v_left = 1, .unscale = 1};
  op_grad_norm_t norm = {.count = count, .g = g, .max_norm = 1, .now = &now, .out = scale};
  RUN(ops, "gradient norm of 32M", grad_norm, norm, ops_moved(ops, 4.0 * (double)count, false));
  op_adamw_t adam = {.count = count, .decayed = count, .p = p, .g = g, .m = m, .v = v,
                     .scale = scale, .now = &now, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f,
                     .weight_decay = 0.1f};
  RUN(ops, "adamw of 32M", adamw, adam, ops_moved(ops, 28.0 * (double)count, true));
  memset(p, 0, (size_t)count * sizeof *p); /* fp32's bits make no sense as those of 16 */
  adam.weight_dtype = NN_BF16, adam.p_low = (int16_t *)(void *)(p + count / 2);
  RUN(ops, "adamw of 32M, bf16 with masters", adamw, adam,
      ops_moved(ops, 28.0 * (double)count, true));
  memset(p, 0, (size_t)count * sizeof *p), memset(master, 0, (size_t)count * sizeof *master);
  adam.weight_dtype = NN_F16, adam.p_low = NULL, adam.master = master;
  RUN(ops, "adamw of 32M, fp16 with masters", adamw, adam,
      ops_moved(ops, 36.0 * (double)count, true));
  ops_drop(ops);
}

static void rows_sample(ops_t *ops, int64_t vocab) {
  op_sample_t op = {.vocab = vocab, .logits = ops_take(ops, vocab), .seed = 1};
  op.token = ops_take_ints(ops, 1);
  bench_work_t work = ops_moved(ops, 4.0 * (double)vocab, false);
  RUN(ops, "sample greedy of 50257", sample, op, work);
  op.temperature = 0.8f, op.top_k = 40, op.top_p = 0.9f;
  RUN(ops, "sample top-k 40, top-p 0.9 of 50257", sample, op, work);
  op.top_k = 0;
  RUN(ops, "sample top-p 0.9 of 50257", sample, op, work);
  ops_drop(ops);
}

static void rows_fill(ops_t *ops, int64_t count) {
  op_fill_normal_t op = {.out = ops_take(ops, count), .count = count, .std = 0.02f, .seed = 7};
  RUN(ops, "normal numbers, 16M", fill_normal, op, ops_moved(ops, 4.0 * (double)count, true));
  ops_drop(ops);
}

void ops_others(ops_t *ops) {
  for (int32_t dtype = NN_F32; dtype <= NN_BF16; dtype++) {
    rows_norm(ops, 4096, 768, NN_NORM_RMS, dtype);
    rows_norm(ops, 4096, 768, NN_NORM_LAYER, dtype);
    rows_sum(ops, 4096, 768, dtype);
    rows_rope(ops, 4096, 12, 64, dtype);
    rows_heads(ops, 4096, 12, 64, dtype);
    rows_glu(ops, OPS_TOKENS, 3072, dtype);
    rows_gate(ops, OPS_TOKENS, 768, dtype);
    rows_copies(ops, OPS_TOKENS, 16, 192, dtype);
    rows_embedding_back(ops, OPS_TOKENS, 768, 50257, dtype);
  }
  for (int32_t dtype = NN_F32; dtype <= NN_F16; dtype++) {
    rows_embedding(ops, OPS_TOKENS, 768, 50257, dtype);
    rows_loss(ops, 256, 768, 50257, dtype);
  }
  rows_softmax(ops, 4096, 768);
  rows_optimizer(ops, 32 << 20);
  rows_sample(ops, 50257);
  rows_fill(ops, 16 << 20);
}
