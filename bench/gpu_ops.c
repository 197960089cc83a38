/* A GPU's operations at the shapes of moe-6.9b, in bf16: 4 x 4096 tokens of training, and decoding.
 * Each is called many times between two events in the device's stream, so that launches overlap as
 * they do in a step. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/device.h"
#include "base/mem.h"
#include "bench.h"
#include "gpu_clock.h"

enum { BATCH = 4, SEQ = 4096, TOKENS = BATCH * SEQ, CACHE = 4096, SAMPLES = 9 };

typedef struct gpu {
  const backend_t *table;
  backend_device_t *place;
  backend_scratch_t scratch;
  const bench_ceilings_t *peak;
  nn_model_config_t config;
  uint64_t filled;
  gpu_clock_t *clock;
} gpu_t;

static void *gpu_alloc(gpu_t *gpu, size_t bytes) {
  void *data;
  TRY(gpu->table->alloc(gpu->place, bytes, &data));
  return data;
}

/* Random numbers of a dtype. */
static void *gpu_normal(gpu_t *gpu, int64_t count, int32_t dtype, float std) {
  void *data = gpu_alloc(gpu, (size_t)count * nn_dtype_bytes(dtype));
  op_fill_normal_t fill = {.out = data, .dtype = dtype, .count = count, .std = std, .seed = 7};
  fill.stream = gpu->filled++;
  TRY(gpu->table->fill_normal(gpu->place, &fill, gpu->scratch));
  return data;
}

static void *gpu_bf16(gpu_t *gpu, int64_t count) { return gpu_normal(gpu, count, NN_BF16, 1); }
static void *gpu_zeros(gpu_t *gpu, size_t bytes) {
  void *data = gpu_alloc(gpu, bytes);
  TRY(gpu->table->zero(gpu->place, data, bytes));
  return data;
}

/* i -> (i * step + first) % bound. */
static int32_t *gpu_ids(gpu_t *gpu, int64_t count, int64_t step, int64_t first, int64_t bound) {
  int32_t *ids = bench_alloc((size_t)count * sizeof *ids);
  for (int64_t i = 0; i < count; i++) ids[i] = (int32_t)((i * step + first) % bound);
  int32_t *data = gpu_alloc(gpu, (size_t)count * sizeof *ids);
  TRY(gpu->table->copy_in(gpu->place, data, ids, (size_t)count * sizeof *ids));
  mem_free(ids);
  return data;
}

typedef nn_status_t (*gpu_fn)(backend_device_t *, const void *, backend_scratch_t);

static int gpu_compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void gpu_run(const gpu_t *gpu, const char *name, gpu_fn fn, const void *op,
                    bench_work_t work) {
  if (!report_wanted("gpu", name)) return;
  double times[SAMPLES];
  double once = 0;
  for (int i = 0; i < 4; i++) { /* the last after three for warming up */
    gpu_clock_begin(gpu->clock);
    TRY(fn(gpu->place, op, gpu->scratch));
    once = gpu_clock_end(gpu->clock);
  }
  int64_t turns = (int64_t)(0.02 / once) + 1;
  for (int i = 0; i < SAMPLES; i++) {
    gpu_clock_begin(gpu->clock);
    for (int64_t t = 0; t < turns; t++) TRY(fn(gpu->place, op, gpu->scratch));
    times[i] = gpu_clock_end(gpu->clock) / (double)turns;
  }
  qsort(times, SAMPLES, sizeof *times, gpu_compare);
  report_line("gpu", name, times[SAMPLES / 2], times[0], turns * SAMPLES, work, "");
}

#define RUN(gpu, name, member, op, work) \
  gpu_run(gpu, name, (gpu_fn)(void (*)(void))(gpu)->table->member, &(op), work)

static bench_work_t flops(const gpu_t *gpu, double amount) {
  return (bench_work_t){UNIT_FLOP, amount, gpu->peak->bf16_flops};
}
static bench_work_t bytes_of(const gpu_t *gpu, double amount) {
  return (bench_work_t){UNIT_BYTE, amount, gpu->peak->copy_bytes};
}

/* ---- ceilings ---- */

static double gpu_product_rate(gpu_t *gpu, int32_t dtype, int64_t size) {
  op_matmul_t op = {.m = size, .n = size, .k = size, .lda = size, .ldb = size, .ldd = size};
  op.a_dtype = op.b_dtype = op.d_dtype = dtype, op.trans_b = 1;
  void *a = gpu_normal(gpu, size * size, dtype, 1), *b = gpu_normal(gpu, size * size, dtype, 1);
  size_t bytes = (size_t)(size * size) * nn_dtype_bytes(dtype);
  void *d = gpu_alloc(gpu, bytes);
  op.a = a, op.b = b, op.d = d;
  double best[5];
  for (int i = -2; i < 5; i++) {
    gpu_clock_begin(gpu->clock);
    for (int t = 0; t < 10; t++) TRY(gpu->table->matmul(gpu->place, &op, gpu->scratch));
    double seconds = gpu_clock_end(gpu->clock);
    if (i >= 0) best[i] = seconds / 10;
  }
  qsort(best, 5, sizeof *best, gpu_compare);
  gpu->table->free(gpu->place, a, bytes);
  gpu->table->free(gpu->place, b, bytes);
  gpu->table->free(gpu->place, d, bytes);
  return 2.0 * (double)size * (double)size * (double)size / best[2];
}

/* ---- operations ---- */

static void gpu_dense(gpu_t *gpu) {
  int64_t h = gpu->config.hidden, qkv = (gpu->config.heads + 2 * gpu->config.kv_heads) * 64;
  void *x = gpu_bf16(gpu, TOKENS * qkv), *w = gpu_bf16(gpu, qkv * h), *y = gpu_bf16(gpu, TOKENS * qkv);
  float *dw = gpu_zeros(gpu, (size_t)(qkv * h) * sizeof(float));
  op_matmul_t op = {.m = TOKENS, .n = qkv, .k = h, .trans_b = 1, .a = x, .lda = h, .b = w, .ldb = h};
  op.d = y, op.ldd = qkv, op.a_dtype = op.b_dtype = op.d_dtype = NN_BF16;
  double work = 2.0 * TOKENS * (double)(qkv * h);
  RUN(gpu, "matmul qkv forward", matmul, op, flops(gpu, work));
  op_column_sum_t sum = {.n = TOKENS, .width = qkv, .act_dtype = NN_BF16, .x = x, .ldx = qkv};
  sum.out = dw;
  RUN(gpu, "column sum", column_sum, sum, bytes_of(gpu, 2.0 * TOKENS * (double)qkv));
  op_matmul_t dx = {.m = TOKENS, .n = h, .k = qkv, .a = y, .lda = qkv, .b = w, .ldb = h, .d = x};
  dx.ldd = h, dx.a_dtype = dx.b_dtype = dx.d_dtype = NN_BF16;
  RUN(gpu, "matmul qkv data gradient", matmul, dx, flops(gpu, work));
  op_matmul_t dww = {.m = qkv, .n = h, .k = TOKENS, .trans_a = 1, .a = y, .lda = qkv, .b = x, .ldb = h};
  dww.c = dw, dww.ldc = h, dww.d = dw, dww.ldd = h, dww.a_dtype = dww.b_dtype = NN_BF16;
  RUN(gpu, "matmul qkv weight gradient", matmul, dww, flops(gpu, work));
  op.m = 1;
  RUN(gpu, "matmul qkv, 1 row", matmul, op, bytes_of(gpu, 2.0 * (double)(qkv * h)));
}

static void gpu_elementwise(gpu_t *gpu) {
  int64_t h = gpu->config.hidden, heads = gpu->config.heads + gpu->config.kv_heads;
  int64_t qkv = (heads + gpu->config.kv_heads) * 64;
  double row = 2.0 * TOKENS * (double)h;
  void *x = gpu_bf16(gpu, TOKENS * h), *y = gpu_bf16(gpu, TOKENS * h), *d = gpu_bf16(gpu, TOKENS * h);
  void *w = gpu_bf16(gpu, h);
  float *rstd = gpu_alloc(gpu, TOKENS * sizeof(float)), *dw = gpu_zeros(gpu, (size_t)h * sizeof(float));
  op_norm_t norm = {.n = TOKENS, .hidden = h, .eps = 1e-5f, .x = x, .w = w, .y = y, .rstd = rstd};
  norm.weight_dtype = norm.act_dtype = NN_BF16;
  RUN(gpu, "rms norm", norm, norm, bytes_of(gpu, 2 * row));
  op_norm_bwd_t back = {.n = TOKENS, .hidden = h, .x = x, .dy = y, .w = w, .rstd = rstd, .dx = d};
  back.weight_dtype = back.act_dtype = NN_BF16, back.dw = dw;
  RUN(gpu, "rms norm backward", norm_bwd, back, bytes_of(gpu, 4 * row));
  void *q = gpu_bf16(gpu, TOKENS * qkv);
  op_rope_t rope = {.n = TOKENS, .heads = heads, .head_dim = 64, .x = q, .ldx = qkv};
  rope.act_dtype = NN_BF16, rope.position = gpu_ids(gpu, TOKENS, 1, 0, SEQ);
  rope.table = gpu_normal(gpu, SEQ * 64, NN_F32, 1);
  RUN(gpu, "rope", rope, rope, bytes_of(gpu, 4.0 * TOKENS * 64 * (double)heads));
  int64_t vocab = gpu->config.vocab_size;
  void *table = gpu_bf16(gpu, vocab * h);
  op_embed_t embed = {.n = TOKENS, .hidden = h, .ids = gpu_ids(gpu, TOKENS, 7919, 0, vocab)};
  embed.wte = table, embed.out = x, embed.weight_dtype = embed.act_dtype = NN_BF16;
  RUN(gpu, "embedding", embed, embed, bytes_of(gpu, 2 * row));
  op_embed_bwd_t embed_bwd = {.n = TOKENS, .hidden = h, .vocab = vocab, .ids = embed.ids, .dout = x};
  embed_bwd.dwte = gpu_zeros(gpu, (size_t)(vocab * h) * sizeof(float)), embed_bwd.act_dtype = NN_BF16;
  embed_bwd.position = rope.position;
  RUN(gpu, "embedding backward", embed_bwd, embed_bwd, bytes_of(gpu, 5 * row));
}

/* What the other families have beside these, at widths like theirs. */
static void gpu_families(gpu_t *gpu) {
  int64_t f = 2048, heads = 32, dim = 128, ld = heads * dim;
  double half = 2.0 * TOKENS * (double)f, row = 2.0 * TOKENS * (double)ld;
  void *x = gpu_bf16(gpu, TOKENS * ld), *y = gpu_bf16(gpu, TOKENS * ld), *w = gpu_bf16(gpu, ld);
  void *d = gpu_bf16(gpu, TOKENS * ld);
  float *stat = gpu_alloc(gpu, (size_t)(TOKENS * heads) * 4), *dw = gpu_zeros(gpu, (size_t)ld * 4);
  op_glu_t glu = {.n = TOKENS, .ffn = f, .act_dtype = NN_BF16, .x = x, .y = y};
  RUN(gpu, "gated unit, 2048", glu, glu, bytes_of(gpu, 3 * half));
  op_glu_bwd_t glu_bwd = {.n = TOKENS, .ffn = f, .act_dtype = NN_BF16, .x = x, .dy = y, .dx = d};
  RUN(gpu, "gated unit backward, 2048", glu_bwd, glu_bwd, bytes_of(gpu, 5 * half));
  op_row_gate_t gate = {.n = TOKENS, .width = ld, .x = x, .w = w, .gate = stat};
  gate.weight_dtype = gate.act_dtype = NN_BF16;
  RUN(gpu, "gate of rows, 4096", row_gate, gate, bytes_of(gpu, row));
  op_row_gate_bwd_t gate_bwd = {.n = TOKENS, .width = ld, .x = x, .w = w, .gate = stat, .dx = y};
  gate_bwd.weight_dtype = gate_bwd.act_dtype = NN_BF16, gate_bwd.dgate = stat, gate_bwd.dw = dw;
  RUN(gpu, "gate of rows backward, 4096", row_gate_bwd, gate_bwd, bytes_of(gpu, 3 * row));
  op_clip_t clip = {.n = TOKENS, .width = ld, .limit = 1, .act_dtype = NN_BF16, .x = x, .ldx = ld};
  clip.y = y, clip.ldy = ld;
  RUN(gpu, "clamp, 4096", clip, clip, bytes_of(gpu, 2 * row));
  op_clip_bwd_t clip_bwd = {.n = TOKENS, .width = ld, .limit = 1, .act_dtype = NN_BF16, .x = x};
  clip_bwd.ldx = clip_bwd.lddx = ld, clip_bwd.dx = y;
  RUN(gpu, "clamp backward, 4096", clip_bwd, clip_bwd, bytes_of(gpu, 3 * row));
  op_norm_t norm = {.n = TOKENS, .hidden = dim, .groups = heads, .eps = 1e-6f, .x = x, .w = w};
  norm.weight_dtype = norm.act_dtype = NN_BF16, norm.y = y, norm.rstd = stat;
  RUN(gpu, "rms norm of 32 heads of 128", norm, norm, bytes_of(gpu, 2 * row));
  op_norm_bwd_t back = {.n = TOKENS, .hidden = dim, .groups = heads, .x = x, .dy = y, .w = w};
  back.weight_dtype = back.act_dtype = NN_BF16, back.rstd = stat, back.assign = 1;
  back.dx = d, back.dw = dw;
  RUN(gpu, "rms norm backward of 32 heads of 128", norm_bwd, back, bytes_of(gpu, 3 * row));
  op_rope_t rope = {.n = TOKENS, .heads = heads, .head_dim = dim, .rotary_dim = dim / 2, .x = x};
  rope.interleaved = 1, rope.ldx = ld, rope.act_dtype = NN_BF16;
  rope.position = gpu_ids(gpu, TOKENS, 1, 0, SEQ);
  rope.table = gpu_normal(gpu, SEQ * dim, NN_F32, 1);
  RUN(gpu, "rope of neighbours in half of 32 heads", rope, rope, bytes_of(gpu, row));
  op_copy_heads_t copy = {.n = TOKENS, .heads = heads, .width = dim / 2, .act_dtype = NN_BF16};
  copy.zeros = dim / 2, copy.x = x, copy.ldx = copy.ldy = ld, copy.step_x = copy.step_y = dim;
  copy.y = y;
  RUN(gpu, "copy of halves of 32 heads", copy_heads, copy, bytes_of(gpu, 1.5 * row));
}

static void gpu_optimizer(gpu_t *gpu) {
  int64_t count = 1000000000;
  float *g = gpu_normal(gpu, count, NN_F32, 1);
  double *scale = gpu_zeros(gpu, 2 * sizeof(double));
  optim_now_t host = {.lr = 1e-4, .m_left = 0.2, .v_left = 0.1, .unscale = 1};
  optim_now_t *now = gpu_alloc(gpu, sizeof host);
  TRY(gpu->table->copy_in(gpu->place, now, &host, sizeof host));
  op_grad_norm_t norm = {.count = count, .g = g, .max_norm = 1, .now = now, .out = scale};
  RUN(gpu, "gradient norm, 1e9", grad_norm, norm, bytes_of(gpu, 4.0 * (double)count));
  op_adamw_t adam = {.count = count, .weight_dtype = NN_BF16, .g = g, .scale = scale, .now = now};
  adam.p = gpu_normal(gpu, count, NN_BF16, 1);
  adam.p_low = gpu_zeros(gpu, (size_t)count * sizeof(int16_t));
  adam.m = gpu_zeros(gpu, (size_t)count * sizeof(float));
  adam.v = gpu_zeros(gpu, (size_t)count * sizeof(float));
  adam.beta1 = 0.9f, adam.beta2 = 0.95f, adam.eps = 1e-8f, adam.weight_decay = 0.1f;
  adam.decayed = count;
  RUN(gpu, "AdamW, 1e9 bf16 with masters", adamw, adam, bytes_of(gpu, 28.0 * (double)count));
  gpu->table->free(gpu->place, g, (size_t)count * 4);
  gpu->table->free(gpu->place, adam.p, (size_t)count * 2);
  gpu->table->free(gpu->place, adam.p_low, (size_t)count * 2);
  gpu->table->free(gpu->place, adam.m, (size_t)count * 4);
  gpu->table->free(gpu->place, adam.v, (size_t)count * 4);
}

/* As many heads as make hidden; one key-value head. */
static void gpu_attention(gpu_t *gpu, int64_t dim) {
  int64_t q = gpu->config.hidden, heads = q / dim, width = q + 2 * dim;
  char name[64];
  char *qkv = gpu_bf16(gpu, TOKENS * width), *d = gpu_bf16(gpu, TOKENS * width);
  op_attention_t op = {.batch = BATCH, .q_len = SEQ, .heads = heads, .kv_heads = 1};
  op.head_dim = dim, op.act_dtype = NN_BF16;
  op.q = qkv, op.k = qkv + 2 * q, op.v = qkv + 2 * (q + dim);
  op.ldq = op.ldkv = width, op.kv_batch = SEQ * width, op.scale = 0.125f;
  op.o = gpu_bf16(gpu, TOKENS * q), op.lse = gpu_alloc(gpu, (size_t)(TOKENS * heads) * sizeof(float));
  double work = 2.0 * TOKENS * (double)(q * SEQ); /* two products, half of each masked */
  snprintf(name, sizeof name, "attention forward, 4 x 4096, width %lld", (long long)dim);
  RUN(gpu, name, attention, op, flops(gpu, work));
  op_attention_bwd_t back = {.batch = BATCH, .q_len = SEQ, .heads = heads, .kv_heads = 1};
  back.head_dim = dim, back.act_dtype = NN_BF16, back.q = op.q, back.k = op.k, back.v = op.v;
  back.ldq = back.ldkv = width, back.kv_batch = op.kv_batch, back.scale = op.scale;
  back.o = op.o, back.dout = gpu_bf16(gpu, TOKENS * q), back.lse = op.lse;
  back.dq = d, back.dk = d + 2 * q, back.dv = d + 2 * (q + dim);
  snprintf(name, sizeof name, "attention backward, 4 x 4096, width %lld", (long long)dim);
  RUN(gpu, name, attention_bwd, back, flops(gpu, 2.5 * work));
  op.window = back.window = 512; /* a query's keys, but for the first 511 */
  snprintf(name, sizeof name, "attention forward, window 512, width %lld", (long long)dim);
  RUN(gpu, name, attention, op, flops(gpu, work * 2 * 512 / SEQ));
  snprintf(name, sizeof name, "attention backward, window 512, width %lld", (long long)dim);
  RUN(gpu, name, attention_bwd, back, flops(gpu, 2.5 * work * 2 * 512 / SEQ));
  op.window = 0;
  for (int64_t batch = 1; batch <= 32; batch *= 32) {
    op_attention_t one = op;
    one.batch = batch, one.q_len = 1, one.lse = NULL, one.ldkv = dim, one.kv_batch = CACHE * dim;
    one.kv_len = gpu_ids(gpu, batch, 0, CACHE, CACHE + 1);
    one.k = gpu_bf16(gpu, batch * CACHE * dim), one.v = gpu_bf16(gpu, batch * CACHE * dim);
    snprintf(name, sizeof name, "attention, %lld of 4096 keys, 1 query, width %lld",
             (long long)batch, (long long)dim);
    RUN(gpu, name, attention, one, bytes_of(gpu, 4.0 * (double)(batch * CACHE * dim)));
  }
  if (dim != 64) return;
  op_kv_store_t store = {.n = TOKENS, .width = dim, .act_dtype = NN_BF16, .k = op.k, .v = op.v};
  store.ld = width, store.cache_batch = SEQ * dim;
  store.sequence = gpu_ids(gpu, TOKENS, 0, 0, 1), store.position = gpu_ids(gpu, TOKENS, 1, 0, SEQ);
  store.k_cache = gpu_bf16(gpu, SEQ * dim), store.v_cache = gpu_bf16(gpu, SEQ * dim);
  RUN(gpu, "keys and values into the cache", kv_store, store, bytes_of(gpu, 8.0 * TOKENS * (double)dim));
}

/* One layer's 453 MB of weights exceed the L2 cache by themselves. */
static void gpu_moe(gpu_t *gpu, int64_t n) {
  const nn_model_config_t *c = &gpu->config;
  int64_t h = c->hidden, f = c->ffn, experts = c->experts, k = c->top_k, size = 3 * f * h;
  char name[64];
  char *w = gpu_normal(gpu, experts * size, NN_BF16, 0.02f);
  routing_t r = {.expert = gpu_alloc(gpu, (size_t)(n * k) * 4)};
  r.weight = gpu_alloc(gpu, (size_t)(n * k) * 4), r.offset = gpu_alloc(gpu, (size_t)(experts + 1) * 4);
  r.row_slot = gpu_alloc(gpu, (size_t)(n * k) * 4), r.slot_row = gpu_alloc(gpu, (size_t)(n * k) * 4);
  op_route_t route = {.n = n, .hidden = h, .experts = experts, .top_k = k, .x = gpu_bf16(gpu, n * h)};
  route.w = gpu_normal(gpu, experts * h, NN_BF16, 0.02f);
  route.weight_dtype = route.act_dtype = NN_BF16, route.out = r;
  route.prob = gpu_alloc(gpu, (size_t)(n * experts) * 4), route.lse = gpu_alloc(gpu, (size_t)n * 4);
  route.share = gpu_alloc(gpu, (size_t)experts * 4), route.mean_prob = gpu_alloc(gpu, (size_t)experts * 4);
  route.mean_lse2 = gpu_alloc(gpu, 4);
  snprintf(name, sizeof name, "routing, %lld tokens", (long long)n);
  RUN(gpu, name, route, route, bytes_of(gpu, 2.0 * (double)(n * h) + 20.0 * (double)(n * k)));
  op_route_t grouped = route;
  grouped.router = (op_router_t){.score = NN_SCORE_SIGMOID, .groups = 4, .top_groups = 2};
  grouped.router.choice_bias = gpu_bf16(gpu, experts);
  snprintf(name, sizeof name, "routing by sigmoid and groups, %lld tokens", (long long)n);
  RUN(gpu, name, route, grouped, bytes_of(gpu, 2.0 * (double)(n * h) + 20.0 * (double)(n * k)));
  TRY(gpu->table->route(gpu->place, &route, gpu->scratch));
  op_experts_t op = {.n = n, .hidden = h, .ffn = f, .experts = experts, .top_k = k, .x = route.x};
  op.routing = r, op.gate = w, op.up = w + 2 * f * h, op.down = w + 4 * f * h, op.expert_stride = size;
  op.weight_dtype = op.act_dtype = NN_BF16, op.out = gpu_bf16(gpu, n * h), op.residual = route.x;
  if (n >= 1024) op.pre = gpu_alloc(gpu, (size_t)(n * k * 2 * f) * 2);
  double work = 2.0 * (double)(n * k * size);
  snprintf(name, sizeof name, "experts forward, %lld tokens", (long long)n);
  double touched = n * k < experts ? (double)(n * k) : (double)experts;
  RUN(gpu, name, experts, op, n >= 1024 ? flops(gpu, work) : bytes_of(gpu, 2 * touched * (double)size));
  op_experts_t biased = op;
  void *bias = gpu_bf16(gpu, experts * (2 * f + h));
  biased.limit = 7, biased.gate_bias = biased.up_bias = biased.down_bias = bias;
  biased.bias_stride = 2 * f + h;
  snprintf(name, sizeof name, "experts forward, clamped and biased, %lld tokens", (long long)n);
  RUN(gpu, name, experts, biased,
      n >= 1024 ? flops(gpu, work) : bytes_of(gpu, 2 * touched * (double)size));
  if (n < 1024) return;
  op_experts_bwd_t back = {.n = n, .hidden = h, .ffn = f, .experts = experts, .top_k = k, .x = op.x};
  back.routing = r, back.gate = op.gate, back.up = op.up, back.down = op.down;
  back.expert_stride = size, back.weight_dtype = back.act_dtype = NN_BF16, back.pre = op.pre;
  back.dout = gpu_normal(gpu, n * h, NN_BF16, 1e-3f), back.dx = gpu_alloc(gpu, (size_t)(n * h) * 2);
  back.dweight = gpu_alloc(gpu, (size_t)(n * k) * 4);
  float *dw = gpu_zeros(gpu, (size_t)(experts * size) * 4);
  back.dgate = dw, back.dup = dw + f * h, back.ddown = dw + 2 * f * h;
  RUN(gpu, "experts backward, 16384 tokens", experts_bwd, back, flops(gpu, 2 * work));
  op.out = NULL;
  RUN(gpu, "experts up product alone (recomputation)", experts, op, flops(gpu, work * 2 / 3));
  op_route_bwd_t rb = {.n = n, .hidden = h, .experts = experts, .top_k = k, .x = op.x, .w = route.w};
  rb.weight_dtype = rb.act_dtype = NN_BF16, rb.routing = r, rb.prob = route.prob, rb.lse = route.lse;
  rb.dweight = back.dweight, rb.aux_share = route.share, rb.aux_scale = 0.1f, rb.z_scale = 0.01f;
  rb.dx = back.dx, rb.dw = gpu_zeros(gpu, (size_t)(experts * h) * 4);
  RUN(gpu, "routing backward, 16384 tokens", route_bwd, rb, bytes_of(gpu, 6.0 * (double)(n * h)));
}

static void gpu_head(gpu_t *gpu) {
  int64_t h = gpu->config.hidden, vocab = gpu->config.vocab_size;
  op_head_loss_t op = {.n = TOKENS, .hidden = h, .vocab = vocab, .x = gpu_bf16(gpu, TOKENS * h)};
  op.w = gpu_normal(gpu, vocab * h, NN_BF16, 0.02f), op.weight_dtype = op.act_dtype = NN_BF16;
  op.target = gpu_ids(gpu, TOKENS, 104729, 0, vocab), op.row_loss = gpu_alloc(gpu, TOKENS * 4);
  op.loss_sum = gpu_alloc(gpu, 8), op.scale = 1.0f / TOKENS, op.dx = gpu_alloc(gpu, (size_t)(TOKENS * h) * 2);
  op.dw = gpu_zeros(gpu, (size_t)(vocab * h) * 4);
  RUN(gpu, "head and loss, 16384 tokens", head_loss, op, flops(gpu, 6.0 * TOKENS * (double)(h * vocab)));
  op_matmul_t head = {.m = 1, .n = vocab, .k = h, .trans_b = 1, .a = op.x, .lda = h, .b = op.w, .ldb = h};
  head.a_dtype = head.b_dtype = NN_BF16, head.d = gpu_alloc(gpu, (size_t)vocab * 4), head.ldd = vocab;
  RUN(gpu, "matmul head, 1 row", matmul, head, bytes_of(gpu, 2.0 * (double)(vocab * h)));
  op_softmax_t softmax = {.n = 256, .width = vocab, .x = gpu_normal(gpu, 256 * vocab, NN_F32, 1)};
  softmax.y = gpu_alloc(gpu, (size_t)(256 * vocab) * 4);
  RUN(gpu, "softmax, 256 rows of logits", softmax, softmax, bytes_of(gpu, 8.0 * 256 * (double)vocab));
  op_sample_t sample = {.vocab = vocab, .logits = head.d, .token = gpu_alloc(gpu, 64)};
  RUN(gpu, "sample greedy", sample, sample, bytes_of(gpu, 4.0 * (double)vocab));
  sample.temperature = 0.8f, sample.top_k = 40, sample.top_p = 0.9f, sample.seed = 1;
  RUN(gpu, "sample top-k 40, top-p 0.9", sample, sample, bytes_of(gpu, 4.0 * (double)vocab));
}

bench_ceilings_t bench_gpu(nn_device_t *device, int32_t index) {
  bench_ceilings_t peak = {0};
  gpu_t gpu = {.table = device->backend, .place = device->place, .peak = &peak};
  gpu.config.struct_size = sizeof gpu.config;
  TRY(nn_config_preset("moe-6.9b", &gpu.config));
  const nn_model_config_t *c = &gpu.config;
  backend_limits_t limits = {.rows = TOKENS, .batch = 32, .kv_len = SEQ, .hidden = 8192,
                             .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim,
                             .ffn = c->ffn, .experts = c->experts, .top_k = c->top_k,
                             .vocab = c->vocab_size, .weight_dtype = NN_BF16, .act_dtype = NN_BF16,
                             .training = 1};
  gpu.scratch.bytes = gpu.table->workspace_bytes(gpu.place, &limits);
  gpu.scratch.data = gpu_alloc(&gpu, gpu.scratch.bytes);
  gpu_bandwidth(index, &peak.read_bytes, &peak.copy_bytes);
  backend_info_t info = {.struct_size = sizeof info};
  gpu.table->describe(gpu.place, &info);
  gpu.clock = gpu_clock_open(index, info.queue);
  peak.bf16_flops = gpu_product_rate(&gpu, NN_BF16, 8192);
  peak.fp32_flops = gpu_product_rate(&gpu, NN_F32, 4096);
  report_ceilings("GPU", &peak);
  gpu_dense(&gpu);
  gpu_elementwise(&gpu);
  gpu_families(&gpu);
  gpu_optimizer(&gpu);
  gpu_attention(&gpu, 64);
  gpu_attention(&gpu, 128);
  gpu_moe(&gpu, TOKENS);
  gpu_moe(&gpu, 1);
  gpu_moe(&gpu, 32);
  gpu_head(&gpu);
  gpu_clock_close(gpu.clock);
  return peak; /* the process's end gives the buffers back */
}
