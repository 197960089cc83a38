/* Every operation of the backend at the shapes that matter: flops for products and attention, bytes
 * that must move for the rest. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/device.h"
#include "base/mem.h"
#include "bench.h"

/* The device and one large block of fp32 numbers that buffers are cut from. */
typedef struct ops {
  const backend_t *backend;
  backend_device_t *place;
  backend_scratch_t scratch;
  const bench_ceilings_t *peak;
  float *pool;
  size_t pool_floats, used;
  bool cold;
} ops_t;

enum { POOL_BYTES = 1 << 30, CACHED_BYTES = 1 << 26, TOKENS = 1024 };

/* Small numbers, neither zero nor growing: what an earlier scenario left could be infinite by now. */
static void ops_fill(float *x, size_t count) {
  for (size_t i = 0; i < count; i++) x[i] = (float)(i % 1021 + 1) * 1e-3f;
}

/* A buffer of the pool, filled; the scenario's buffers follow one another. */
static float *ops_take(ops_t *ops, int64_t count) {
  size_t rounded = ((size_t)count + 15) / 16 * 16;
  if (ops->used + rounded > ops->pool_floats) {
    fprintf(stderr, "moenn-bench: a scenario's buffers exceed the pool\n");
    exit(1);
  }
  float *place = ops->pool + ops->used;
  ops->used += rounded;
  ops_fill(place, rounded);
  return place;
}

/* Any operation: its function, its arguments, and which pointers move on when caches are to be cold. */
typedef nn_status_t (*op_fn)(backend_device_t *, const void *, backend_scratch_t);

typedef struct ops_job {
  ops_t *ops;
  op_fn fn;
  char op[512];         /* a copy of the arguments */
  const float **moving; /* pointer inside op, or NULL */
  const float *start;
  size_t stride, copies, turn;
} ops_job_t;

static void ops_run_job(void *context) {
  ops_job_t *job = context;
  if (job->moving) {
    *job->moving = job->start + job->turn * job->stride;
    job->turn = (job->turn + 1) % job->copies;
  }
  TRY(job->fn(job->ops->place, job->op, job->ops->scratch));
}

/* Runs a scenario. moving: offset in op of its largest input (of `size` floats), rotated through the
 * rest of the pool with --cold; -1: none. */
static void ops_run(ops_t *ops, const char *name, op_fn fn, const void *op, size_t bytes, long moving,
                    int64_t size, bench_work_t work) {
  ops_job_t job = {.ops = ops, .fn = fn};
  memcpy(job.op, op, bytes);
  if (ops->cold && moving >= 0) {
    job.moving = (const float **)(void *)(job.op + moving);
    job.stride = ((size_t)size + 15) / 16 * 16;
    job.start = ops->pool + ops->used;
    job.copies = (ops->pool_floats - ops->used) / job.stride;
    if (job.copies < 2) job.moving = NULL;
    ops_fill(ops->pool + ops->used, ops->pool_floats - ops->used);
  }
  report_run("ops", name, ops_run_job, &job, work);
  ops->used = 0;
}

#define RUN(ops, name, member, op, moving, size, work)                                        \
  ops_run(ops, name, (op_fn)(void (*)(void))(ops)->backend->member, &(op), sizeof(op), moving, size, \
          work)

static bench_work_t flops(const ops_t *ops, double amount) {
  return (bench_work_t){UNIT_FLOP, amount, ops->peak->fp32_flops};
}
/* Bandwidth is no ceiling of what stays in the caches. */
static bench_work_t bytes(const ops_t *ops, double amount, bool writes) {
  double ceiling = writes ? ops->peak->copy_bytes : ops->peak->read_bytes;
  if (!ops->cold && amount < CACHED_BYTES) ceiling = 0;
  return (bench_work_t){UNIT_BYTE, amount, ceiling};
}

/* ---- products ---- */

/* A weight of a dtype: bf16 numbers are the upper halves of the fp32 ones. */
static void *ops_take_weight(ops_t *ops, int64_t count, int32_t dtype) {
  float *wide = ops_take(ops, count);
  uint16_t *narrow = (uint16_t *)(void *)wide;
  for (int64_t i = 0; dtype == NN_BF16 && i < count; i++) {
    uint32_t bits;
    memcpy(&bits, &wide[i], sizeof bits);
    narrow[i] = (uint16_t)(bits >> 16); /* behind what is still to be read */
  }
  return wide;
}

/* Forward, data-gradient and weight-gradient forms of one linear layer [out, in]. */
static void ops_linear(ops_t *ops, int64_t rows, int64_t out, int64_t in, int32_t dtype) {
  static const char *forms[] = {"NT forward", "NN data gradient", "TN weight gradient"};
  bench_work_t work = flops(ops, 2.0 * (double)(rows * out) * (double)in);
  if (dtype == NN_BF16 && ops->peak->bf16_flops > 0) work.ceiling = ops->peak->bf16_flops;
  for (int form = 0; form < 3; form++) {
    char name[96];
    snprintf(name, sizeof name, "matmul %s %s %dx%dx%d", dtype == NN_BF16 ? "bf16" : "fp32", forms[form],
             (int)rows, (int)out, (int)in);
    if (!report_wanted("ops", name)) continue;
    float *x = ops_take(ops, rows * in), *y = ops_take(ops, rows * out), *dw = ops_take(ops, out * in);
    void *w = ops_take_weight(ops, out * in, dtype);
    op_matmul_t op = {.m = rows, .n = out, .k = in, .trans_b = 1, .a = x, .lda = in, .b = w, .ldb = in};
    op.d = y, op.ldd = out;
    if (form == 1)
      op = (op_matmul_t){.m = rows, .n = in, .k = out, .a = y, .lda = out, .b = w, .ldb = in, .d = x, .ldd = in};
    if (form == 2)
      op = (op_matmul_t){.m = out, .n = in, .k = rows, .trans_a = 1, .a = y, .lda = out, .b = x,
                         .ldb = in, .c = dw, .ldc = in, .d = dw, .ldd = in};
    op.b_dtype = form == 2 ? NN_F32 : dtype, op.rounds = dtype == NN_BF16;
    RUN(ops, name, matmul, op, -1, 0, work);
  }
}

/* Few rows against a large matrix: bandwidth. */
static void ops_skinny(ops_t *ops, int64_t rows, int64_t out, int64_t in, int32_t dtype) {
  char name[96];
  snprintf(name, sizeof name, "matmul %s rows %d, %dx%d", dtype == NN_BF16 ? "bf16" : "fp32", (int)rows,
           (int)out, (int)in);
  if (!report_wanted("ops", name)) return;
  int64_t floats = dtype == NN_BF16 ? out * in / 2 : out * in;
  float *x = ops_take(ops, rows * in), *y = ops_take(ops, rows * out), *w = ops_take(ops, floats);
  op_matmul_t op = {.m = rows, .n = out, .k = in, .trans_b = 1, .a = x, .lda = in, .b = w, .ldb = in};
  op.b_dtype = dtype, op.d = y, op.ldd = out;
  RUN(ops, name, matmul, op, (long)offsetof(op_matmul_t, b), floats,
      bytes(ops, 4.0 * (double)floats, false));
}

/* ---- attention ---- */

/* Pairs of a query and a key that it sees, of one head and sequence. */
static double ops_pairs(int64_t length, int64_t window) {
  double past = window && window < length ? (double)(length - window) : 0;
  return 0.5 * (double)length * (double)(length + 1) - 0.5 * past * (past + 1);
}

/* window: 0, or with sinks too, as gpt_oss has them. */
static void ops_attention(ops_t *ops, int64_t batch, int64_t length, int64_t heads, int64_t kv_heads,
                          int64_t dim, int64_t window) {
  int64_t n = batch * length, width = (heads + 2 * kv_heads) * dim, q = heads * dim, kv = kv_heads * dim;
  float *qkv = ops_take(ops, n * width), *o = ops_take(ops, n * q), *lse = ops_take(ops, n * heads);
  float *dout = ops_take(ops, n * q), *d = ops_take(ops, n * width);
  double pairs = (double)(batch * heads) * ops_pairs(length, window);
  char name[96], tail[32] = "";
  if (window) snprintf(tail, sizeof tail, ", window %d and sinks", (int)window);
  float *sinks = window ? ops_take(ops, heads) : NULL, *dsinks = window ? ops_take(ops, heads) : NULL;
  op_attention_t op = {.batch = batch, .q_len = length, .heads = heads, .kv_heads = kv_heads,
                       .head_dim = dim, .q = qkv, .ldq = width, .k = qkv + q, .v = qkv + q + kv,
                       .ldkv = width, .kv_batch = length * width, .scale = 0.1f, .o = o, .lse = lse,
                       .window = window, .sinks = sinks};
  TRY(ops->backend->attention(ops->place, &op, ops->scratch));
  snprintf(name, sizeof name, "attention %dx%d, heads %d/%d of %d%s", (int)batch, (int)length,
           (int)heads, (int)kv_heads, (int)dim, tail);
  size_t kept = ops->used;
  RUN(ops, name, attention, op, -1, 0, flops(ops, 4.0 * pairs * (double)dim));
  ops->used = kept;
  op_attention_bwd_t bwd = {.batch = batch, .q_len = length, .heads = heads, .kv_heads = kv_heads,
                            .head_dim = dim, .q = qkv, .ldq = width, .k = qkv + q, .v = qkv + q + kv,
                            .ldkv = width, .kv_batch = length * width, .scale = 0.1f, .o = o,
                            .dout = dout, .lse = lse, .dq = d, .dk = d + q, .dv = d + q + kv,
                            .window = window, .sinks = sinks, .dsinks = dsinks};
  snprintf(name, sizeof name, "attention backward %dx%d, heads %d/%d of %d%s", (int)batch,
           (int)length, (int)heads, (int)kv_heads, (int)dim, tail);
  RUN(ops, name, attention_bwd, bwd, -1, 0, flops(ops, 10.0 * pairs * (double)dim));
}

/* ---- experts ---- */

static void ops_experts(ops_t *ops, int64_t n, int64_t hidden, int64_t ffn, int64_t experts,
                        int64_t top_k) {
  char name[96];
  snprintf(name, sizeof name, "experts %d tokens, %d of %d, %dx%d", (int)n, (int)top_k, (int)experts,
           (int)ffn, (int)hidden);
  char name_bwd[96];
  snprintf(name_bwd, sizeof name_bwd, "experts backward %d tokens, %d of %d, %dx%d", (int)n, (int)top_k,
           (int)experts, (int)ffn, (int)hidden);
  if (!report_wanted("ops", name) && !report_wanted("ops", name_bwd)) return;
  int64_t slots = n * top_k, size = ffn * hidden;
  float *x = ops_take(ops, n * hidden), *out = ops_take(ops, n * hidden), *dout = ops_take(ops, n * hidden);
  float *router = ops_take(ops, experts * hidden), *pre = ops_take(ops, slots * 2 * ffn);
  float *pre_kept = ops_take(ops, slots * 2 * ffn);
  float *w = ops_take(ops, 3 * experts * size), *dw = ops_take(ops, 3 * experts * size);
  float *prob = ops_take(ops, n * experts), *lse = ops_take(ops, n), *stats = ops_take(ops, 2 * experts + 1);
  float *dweight = ops_take(ops, slots);
  routing_t routing = {.expert = (int32_t *)(void *)ops_take(ops, slots), .weight = ops_take(ops, slots),
                       .offset = (int32_t *)(void *)ops_take(ops, experts + 1),
                       .row_slot = (int32_t *)(void *)ops_take(ops, slots),
                       .slot_row = (int32_t *)(void *)ops_take(ops, slots)};
  op_route_t route = {.n = n, .hidden = hidden, .experts = experts, .top_k = top_k, .x = x, .w = router,
                      .out = routing, .prob = prob, .lse = lse, .share = stats,
                      .mean_prob = stats + experts, .mean_lse2 = stats + 2 * experts};
  TRY(ops->backend->route(ops->place, &route, ops->scratch));
  size_t kept = ops->used;
  op_experts_t op = {.n = n, .hidden = hidden, .ffn = ffn, .experts = experts, .top_k = top_k, .x = x,
                     .routing = routing, .gate = w, .up = w + size, .down = w + 2 * size,
                     .expert_stride = 3 * size, .pre = pre, .residual = x, .out = out};
  double forward = 6.0 * (double)slots * (double)size;
  RUN(ops, name, experts, op, -1, 0, flops(ops, forward));
  memcpy(pre_kept, pre, (size_t)(slots * 2 * ffn) * sizeof(float));
  ops->used = kept;
  op_experts_bwd_t bwd = {.n = n, .hidden = hidden, .ffn = ffn, .experts = experts, .top_k = top_k,
                          .x = x, .routing = routing, .gate = w, .up = w + size,
                          .down = w + 2 * size, .expert_stride = 3 * size, .pre = pre_kept,
                          .dout = dout, .dx = out, .dweight = dweight, .dgate = dw,
                          .dup = dw + size, .ddown = dw + 2 * size};
  RUN(ops, name_bwd, experts_bwd, bwd, -1, 0, flops(ops, 2 * forward));
  char name_route[96];
  snprintf(name_route, sizeof name_route, "route %d tokens, %d of %d, hidden %d", (int)n, (int)top_k,
           (int)experts, (int)hidden);
  kept = ops->used;
  RUN(ops, name_route, route, route, -1, 0, bytes(ops, 4.0 * (double)(n * hidden), false));
  ops->used = kept;
  route.router = (op_router_t){.score = NN_SCORE_SIGMOID, .groups = 4, .top_groups = 2};
  route.router.group_score = NN_GROUP_TOP2, route.router.choice_bias = w;
  snprintf(name_route, sizeof name_route, "route %d tokens, %d of %d in groups, hidden %d", (int)n,
           (int)top_k, (int)experts, (int)hidden);
  RUN(ops, name_route, route, route, -1, 0, bytes(ops, 4.0 * (double)(n * hidden), false));
}

/* ---- the rest: bytes ---- */

static void ops_rows(ops_t *ops, int64_t n, int64_t hidden) {
  char name[96];
  float *x = ops_take(ops, n * hidden), *y = ops_take(ops, n * hidden), *w = ops_take(ops, hidden);
  float *dy = ops_take(ops, n * hidden), *dw = ops_take(ops, hidden), *rstd = ops_take(ops, n);
  double matrix = 4.0 * (double)(n * hidden);
  op_norm_t norm = {.n = n, .hidden = hidden, .eps = 1e-5f, .x = x, .w = w, .y = y, .rstd = rstd};
  TRY(ops->backend->norm(ops->place, &norm, ops->scratch));
  size_t kept = ops->used;
  snprintf(name, sizeof name, "rmsnorm %dx%d", (int)n, (int)hidden);
  RUN(ops, name, norm, norm, (long)offsetof(op_norm_t, x), n * hidden, bytes(ops, 2 * matrix, true));
  ops->used = kept;
  op_norm_bwd_t bwd = {.n = n, .hidden = hidden, .x = x, .dy = dy, .w = w, .rstd = rstd, .dx = y, .dw = dw};
  snprintf(name, sizeof name, "rmsnorm backward %dx%d", (int)n, (int)hidden);
  RUN(ops, name, norm_bwd, bwd, (long)offsetof(op_norm_bwd_t, x), n * hidden, bytes(ops, 4 * matrix, true));
  ops->used = kept;
  op_softmax_t softmax = {.n = n, .width = hidden, .x = x, .y = y};
  snprintf(name, sizeof name, "softmax %dx%d", (int)n, (int)hidden);
  RUN(ops, name, softmax, softmax, (long)offsetof(op_softmax_t, x), n * hidden, bytes(ops, 2 * matrix, true));
  ops->used = kept;
  op_column_sum_t sum = {.n = n, .width = hidden, .x = x, .ldx = hidden, .out = dw};
  snprintf(name, sizeof name, "column sum %dx%d", (int)n, (int)hidden);
  RUN(ops, name, column_sum, sum, (long)offsetof(op_column_sum_t, x), n * hidden, bytes(ops, matrix, false));
  int32_t *position = (int32_t *)(void *)ops_take(ops, n);
  float *table = ops_take(ops, n * 64);
  x = ops_take(ops, n * hidden);
  for (int64_t i = 0; i < n; i++) position[i] = (int32_t)i;
  op_rope_t rope = {.n = n, .heads = hidden / 64, .head_dim = 64, .x = x, .ldx = hidden,
                    .position = position, .table = table};
  snprintf(name, sizeof name, "rope %dx%d heads of 64", (int)n, (int)(hidden / 64));
  size_t before = ops->used;
  RUN(ops, name, rope, rope, -1, 0, bytes(ops, 2 * matrix, true));
  ops->used = before;
  rope.interleaved = 1;
  snprintf(name, sizeof name, "rope interleaved %dx%d heads of 64", (int)n, (int)(hidden / 64));
  RUN(ops, name, rope, rope, -1, 0, bytes(ops, 2 * matrix, true));
}

/* What rows of queries, keys and values go through before attention: the norm of each head, and a
 * clamp. */
static void ops_heads(ops_t *ops, int64_t n, int64_t heads, int64_t dim) {
  char name[96];
  int64_t width = heads * dim, ld = width + 2 * dim;
  float *raw = ops_take(ops, n * width), *qkv = ops_take(ops, n * ld), *w = ops_take(ops, dim);
  float *rstd = ops_take(ops, n * heads), *dw = ops_take(ops, dim);
  double matrix = 4.0 * (double)(n * width);
  size_t kept = ops->used;
  op_norm_t norm = {.n = n, .hidden = dim, .groups = heads, .ldy = ld, .eps = 1e-5f, .x = raw,
                    .w = w, .y = qkv, .rstd = rstd};
  TRY(ops->backend->norm(ops->place, &norm, ops->scratch));
  snprintf(name, sizeof name, "rmsnorm of %dx%d heads of %d", (int)n, (int)heads, (int)dim);
  RUN(ops, name, norm, norm, -1, 0, bytes(ops, 2 * matrix, true));
  ops->used = kept;
  op_norm_bwd_t bwd = {.n = n, .hidden = dim, .groups = heads, .ldy = ld, .assign = 1, .x = raw,
                       .dy = qkv, .w = w, .rstd = rstd, .dx = qkv, .dw = dw};
  snprintf(name, sizeof name, "rmsnorm backward of %dx%d heads of %d", (int)n, (int)heads, (int)dim);
  RUN(ops, name, norm_bwd, bwd, -1, 0, bytes(ops, 3 * matrix, true));
  ops->used = kept;
  op_clip_t clip = {.n = n, .width = ld, .limit = 0.5f, .x = qkv, .ldx = ld, .y = qkv, .ldy = ld};
  snprintf(name, sizeof name, "clamp %dx%d", (int)n, (int)ld);
  RUN(ops, name, clip, clip, -1, 0, bytes(ops, 8.0 * (double)(n * ld), true));
  ops->used = kept;
  op_clip_bwd_t back = {.n = n, .width = width, .limit = 0.5f, .x = raw, .ldx = width, .dx = qkv,
                        .lddx = ld};
  snprintf(name, sizeof name, "clamp backward %dx%d", (int)n, (int)width);
  RUN(ops, name, clip_bwd, back, -1, 0, bytes(ops, 3 * matrix, true));
}

/* One part of every head's key, as latent attention puts it there. */
static void ops_copies(ops_t *ops, int64_t n, int64_t heads, int64_t dim) {
  char name[96];
  int64_t row = heads * dim;
  float *x = ops_take(ops, n * row), *y = ops_take(ops, n * 3 * row);
  op_copy_heads_t op = {.n = n, .heads = heads, .width = dim / 2, .x = x, .ldx = row, .step_x = dim,
                        .y = y, .ldy = 3 * row, .step_y = dim};
  snprintf(name, sizeof name, "copy of %dx%d half heads of %d", (int)n, (int)heads, (int)dim);
  RUN(ops, name, copy_heads, op, -1, 0, bytes(ops, 4.0 * (double)(n * row), true));
}

/* The activation of a gated network, and the gate of a shared expert. */
static void ops_gated(ops_t *ops, int64_t n, int64_t ffn, int64_t hidden) {
  char name[96];
  float *x = ops_take(ops, n * 2 * ffn), *y = ops_take(ops, n * ffn), *dx = ops_take(ops, n * 2 * ffn);
  float *rows = ops_take(ops, n * hidden), *drows = ops_take(ops, n * hidden);
  float *w = ops_take(ops, hidden), *dw = ops_take(ops, hidden), *gate = ops_take(ops, n);
  float *dgate = ops_take(ops, n);
  double inside = 4.0 * (double)(n * ffn), matrix = 4.0 * (double)(n * hidden);
  size_t kept = ops->used;
  op_glu_t glu = {.n = n, .ffn = ffn, .x = x, .weight = gate, .y = y};
  snprintf(name, sizeof name, "gated unit %dx%d", (int)n, (int)ffn);
  RUN(ops, name, glu, glu, -1, 0, bytes(ops, 3 * inside, true));
  ops->used = kept;
  op_glu_bwd_t glu_bwd = {.n = n, .ffn = ffn, .x = x, .weight = gate, .dy = y, .dx = dx, .y = y,
                          .dweight = dgate};
  snprintf(name, sizeof name, "gated unit backward %dx%d", (int)n, (int)ffn);
  RUN(ops, name, glu_bwd, glu_bwd, -1, 0, bytes(ops, 6 * inside, true));
  ops->used = kept;
  op_row_gate_t row = {.n = n, .width = hidden, .x = rows, .w = w, .gate = gate};
  snprintf(name, sizeof name, "gate of rows %dx%d", (int)n, (int)hidden);
  RUN(ops, name, row_gate, row, -1, 0, bytes(ops, matrix, false));
  ops->used = kept;
  op_row_gate_bwd_t row_bwd = {.n = n, .width = hidden, .x = rows, .w = w, .gate = gate,
                               .dgate = dgate, .dx = drows, .dw = dw};
  snprintf(name, sizeof name, "gate of rows backward %dx%d", (int)n, (int)hidden);
  RUN(ops, name, row_gate_bwd, row_bwd, -1, 0, bytes(ops, 3 * matrix, true));
}

static void ops_embedding(ops_t *ops, int64_t n, int64_t hidden, int64_t vocab) {
  float *out = ops_take(ops, n * hidden), *table = ops_take(ops, vocab * hidden);
  int32_t *ids = (int32_t *)(void *)ops_take(ops, n);
  for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(i * 7919 % vocab);
  double moved = 8.0 * (double)(n * hidden);
  size_t kept = ops->used;
  op_embed_t embed = {.n = n, .hidden = hidden, .ids = ids, .wte = table, .out = out};
  RUN(ops, "embedding 1024x768 of 50257", embed, embed, -1, 0, bytes(ops, moved, true));
  ops->used = kept;
  op_embed_bwd_t bwd = {.n = n, .hidden = hidden, .vocab = vocab, .ids = ids, .dout = out, .dwte = table};
  RUN(ops, "embedding backward 1024x768 of 50257", embed_bwd, bwd, -1, 0, bytes(ops, 1.5 * moved, true));
}

static void ops_loss(ops_t *ops, int64_t n, int64_t hidden, int64_t vocab) {
  float *x = ops_take(ops, n * hidden), *w = ops_take(ops, vocab * hidden), *dw = ops_take(ops, vocab * hidden);
  float *dx = ops_take(ops, n * hidden), *row_loss = ops_take(ops, n);
  double *sum = (double *)(void *)ops_take(ops, 2);
  int32_t *target = (int32_t *)(void *)ops_take(ops, n);
  for (int64_t i = 0; i < n; i++) target[i] = (int32_t)(i * 104729 % vocab);
  op_head_loss_t op = {.n = n, .hidden = hidden, .vocab = vocab, .x = x, .w = w, .target = target,
                       .row_loss = row_loss, .loss_sum = sum, .scale = 1, .dx = dx, .dw = dw};
  RUN(ops, "head and loss with gradients 256x768 of 50257", head_loss, op, -1, 0,
      flops(ops, 6.0 * (double)(n * hidden) * (double)vocab));
}

static void ops_optimizer(ops_t *ops, int64_t count) {
  float *p = ops_take(ops, count), *g = ops_take(ops, count), *m = ops_take(ops, count);
  float *v = ops_take(ops, count);
  double *scale = (double *)(void *)ops_take(ops, 4);
  size_t kept = ops->used;
  optim_now_t now = {.lr = 1e-6, .m_left = 1, .v_left = 1, .unscale = 1};
  op_grad_norm_t norm = {.count = count, .g = g, .max_norm = 1, .now = &now, .out = scale};
  RUN(ops, "gradient norm of 32M", grad_norm, norm, -1, 0, bytes(ops, 4.0 * (double)count, false));
  ops->used = kept;
  op_adamw_t adam = {.count = count, .decayed = count, .p = p, .g = g, .m = m, .v = v,
                     .scale = scale, .now = &now, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f,
                     .weight_decay = 0.1f};
  RUN(ops, "adamw of 32M", adamw, adam, -1, 0, bytes(ops, 28.0 * (double)count, true));
  ops->used = kept;
  memset(p, 0, (size_t)count * sizeof *p); /* fp32's bits make no sense as bf16 */
  adam.weight_dtype = NN_BF16, adam.p_low = (int16_t *)(void *)(p + count / 2);
  RUN(ops, "adamw of 32M, bf16 with masters", adamw, adam, -1, 0,
      bytes(ops, 28.0 * (double)count, true));
}

void bench_ops(nn_device_t *device, const bench_options_t *options, const bench_ceilings_t *peak) {
  ops_t ops = {.backend = device->backend, .place = device->place, .peak = peak, .cold = options->cold};
  static const char *others[] = {"seed", "gpt2", "moe/", "decode", "prefill", "load"};
  for (size_t g = 0; options->filter && g < sizeof others / sizeof others[0]; g++)
    if (!strncmp(options->filter, others[g], strlen(others[g]))) return; /* spare the gigabyte */
  ops.pool_floats = POOL_BYTES / sizeof(float);
  ops.pool = bench_alloc(POOL_BYTES);
  backend_limits_t limits = {.rows = 4096, .batch = 8, .kv_len = 4096, .hidden = 6144, .heads = 12,
                             .kv_heads = 12, .head_dim = 64, .ffn = 6144, .experts = 16, .top_k = 4,
                             .vocab = 50257, .weight_dtype = NN_BF16, .training = 1};
  ops.scratch.bytes = ops.backend->workspace_bytes(ops.place, &limits);
  ops.scratch.data = bench_alloc(ops.scratch.bytes);
  for (int32_t dtype = NN_F32; dtype <= NN_BF16; dtype++) {
    ops_linear(&ops, 256, 768, 768, dtype);
    ops_linear(&ops, TOKENS, 768, 768, dtype);
    ops_linear(&ops, TOKENS, 12288, 768, dtype);
    ops_linear(&ops, TOKENS, 768, 6144, dtype);
    ops_linear(&ops, 256, 50257, 768, dtype);
  }
  ops_skinny(&ops, 1, 12288, 768, NN_F32);
  ops_skinny(&ops, 1, 12288, 768, NN_BF16);
  ops_skinny(&ops, 8, 12288, 768, NN_BF16);
  ops_attention(&ops, 4, 64, 12, 12, 64, 0);
  ops_attention(&ops, 16, 256, 6, 2, 32, 0);
  ops_attention(&ops, 1, TOKENS, 12, 12, 64, 0);
  ops_attention(&ops, 1, TOKENS, 12, 1, 64, 0);
  ops_attention(&ops, 1, 4 * TOKENS, 12, 1, 64, 128);
  ops_experts(&ops, 4096, 192, 384, 8, 2);
  ops_experts(&ops, 512, 768, 1536, 16, 4);
  ops_rows(&ops, 4096, 768);
  ops_heads(&ops, 4096, 12, 64);
  ops_gated(&ops, 1024, 3072, 768);
  ops_copies(&ops, 1024, 16, 192);
  ops_embedding(&ops, TOKENS, 768, 50257);
  ops_loss(&ops, 256, 768, 50257);
  ops_optimizer(&ops, 32 << 20);
  mem_free(ops.scratch.data);
  mem_free(ops.pool);
}
