/* Attention on a CPU: over a batch's own rows, forward and backward, and one query against a cache;
 * and what puts keys and values there. */
#include <stdio.h>

#include "ops.h"

/* Pairs of a query and a key that it sees, of one head and sequence. */
static double ops_pairs(int64_t length, int64_t window) {
  double past = window && window < length ? (double)(length - window) : 0;
  return 0.5 * (double)length * (double)(length + 1) - 0.5 * past * (past + 1);
}

/* window: 0, or with sinks too, as gpt_oss has them. */
static void ops_attention(ops_t *ops, int64_t batch, int64_t length, int64_t heads,
                          int64_t kv_heads, int64_t dim, int64_t window, int32_t dtype) {
  int64_t n = batch * length, width = (heads + 2 * kv_heads) * dim;
  int64_t q = heads * dim, kv = kv_heads * dim;
  void *qkv = ops_take_as(ops, n * width, dtype), *o = ops_take_as(ops, n * q, dtype);
  void *k = ops_at(qkv, q, dtype), *v = ops_at(k, kv, dtype);
  void *dout = ops_take_as(ops, n * q, dtype), *d = ops_take_as(ops, n * width, dtype);
  float *lse = ops_take(ops, n * heads);
  double pairs = (double)(batch * heads) * ops_pairs(length, window);
  char name[OPS_NAME], tail[32];
  if (window) snprintf(tail, sizeof tail, ", window %d and sinks", (int)window);
  else snprintf(tail, sizeof tail, "%s", ops_tail(dtype));
  void *sinks = window ? ops_take_as(ops, heads, dtype) : NULL;
  float *dsinks = window ? ops_take(ops, heads) : NULL;
  op_attention_t op = {.batch = batch, .q_len = length, .heads = heads, .kv_heads = kv_heads};
  op.head_dim = dim, op.window = window, op.sinks = sinks, op.scale = 0.1f;
  op.weight_dtype = op.act_dtype = dtype, op.q = qkv, op.k = k, op.v = v;
  op.ldq = op.ldkv = width, op.kv_batch = length * width, op.o = o, op.lse = lse;
  TRY(ops->backend->attention(ops->place, &op, ops->scratch));
  snprintf(name, sizeof name, "attention %dx%d, heads %d/%d of %d%s", (int)batch, (int)length,
           (int)heads, (int)kv_heads, (int)dim, tail);
  RUN(ops, name, attention, op, ops_flops(ops, 4.0 * pairs * (double)dim, NN_F32));
  op_attention_bwd_t bwd = {.batch = batch, .q_len = length, .heads = heads};
  bwd.kv_heads = kv_heads, bwd.head_dim = dim, bwd.window = window, bwd.scale = 0.1f;
  bwd.weight_dtype = bwd.act_dtype = dtype, bwd.q = qkv, bwd.k = k, bwd.v = v;
  bwd.sinks = sinks, bwd.dsinks = dsinks;
  bwd.ldq = bwd.ldkv = width, bwd.kv_batch = length * width;
  bwd.o = o, bwd.dout = dout, bwd.lse = lse, bwd.dq = d, bwd.dk = ops_at(d, q, dtype);
  bwd.dv = ops_at(bwd.dk, kv, dtype);
  snprintf(name, sizeof name, "attention backward %dx%d, heads %d/%d of %d%s", (int)batch,
           (int)length, (int)heads, (int)kv_heads, (int)dim, tail);
  RUN(ops, name, attention_bwd, bwd, ops_flops(ops, 10.0 * pairs * (double)dim, NN_F32));
  ops_drop(ops);
}

/* Decoding: each sequence has one query for all keys of its cache. */
static void ops_cached(ops_t *ops, int64_t batch, int64_t keys, int64_t heads, int64_t kv_heads,
                       int64_t dim, int32_t dtype) {
  char name[OPS_NAME];
  int64_t width = kv_heads * dim, cached = batch * keys * width;
  int32_t *kv_len = ops_take_ints(ops, batch);
  for (int64_t b = 0; b < batch; b++) kv_len[b] = (int32_t)keys;
  op_attention_t op = {.batch = batch, .q_len = 1, .heads = heads, .kv_heads = kv_heads};
  op.head_dim = dim, op.kv_len = kv_len, op.scale = 0.1f, op.ldq = heads * dim;
  op.q = ops_take_as(ops, batch * heads * dim, dtype), op.k = ops_take_as(ops, cached, dtype);
  op.v = ops_take_as(ops, cached, dtype), op.o = ops_take_as(ops, batch * heads * dim, dtype);
  op.ldkv = width, op.kv_batch = keys * width, op.weight_dtype = op.act_dtype = dtype;
  snprintf(name, sizeof name, "attention, %d of %d keys, 1 query, heads %d/%d of %d%s", (int)batch,
           (int)keys, (int)heads, (int)kv_heads, (int)dim, ops_tail(dtype));
  double bytes = 2.0 * (double)cached * (double)nn_dtype_bytes(dtype);
  RUN(ops, name, attention, op, ops_moved(ops, bytes, false));
  ops_drop(ops);
}

static void ops_store(ops_t *ops, int64_t n, int64_t width, int32_t dtype) {
  char name[OPS_NAME];
  op_kv_store_t op = {.n = n, .width = width, .ld = 2 * width, .cache_batch = n * width};
  void *kv = ops_take_as(ops, n * 2 * width, dtype);
  int32_t *sequence = ops_take_ints(ops, n), *position = ops_take_ints(ops, n);
  for (int64_t i = 0; i < n; i++) sequence[i] = 0, position[i] = (int32_t)i;
  op.k = kv, op.v = ops_at(kv, width, dtype), op.sequence = sequence, op.position = position;
  op.k_cache = ops_take(ops, n * width), op.v_cache = ops_take(ops, n * width);
  op.act_dtype = dtype;
  snprintf(name, sizeof name, "keys and values into the cache %dx%d%s", (int)n, (int)width,
           ops_tail(dtype));
  double bytes = 4.0 * (double)(n * width) * (double)nn_dtype_bytes(dtype);
  RUN(ops, name, kv_store, op, ops_moved(ops, bytes, true));
  ops_drop(ops);
}

/* What comes before attention in decoding: norm, the product of queries, keys and values, rotation,
 * and the cache. */
static void ops_project(ops_t *ops, int64_t hidden, int64_t heads, int64_t dim) {
  int64_t width = (heads + 2) * dim, kv = heads * dim;
  int32_t *zero = ops_take_ints(ops, 1);
  uint16_t *qkv = ops_take_as(ops, width, NN_BF16);
  *zero = 0;
  op_project_t op = {.norm = {.n = 1, .hidden = hidden, .eps = 1e-5f}};
  op.norm.x = ops_take_as(ops, hidden, NN_BF16), op.norm.w = ops_take_as(ops, hidden, NN_BF16);
  op.norm.weight_dtype = op.norm.act_dtype = NN_BF16;
  op.norm.y = ops_take(ops, hidden);
  op.matmul = (op_matmul_t){.m = 1, .n = width, .k = hidden, .trans_b = 1, .a = op.norm.y};
  op.matmul.b = ops_take_as(ops, width * hidden, NN_BF16);
  op.matmul.a_dtype = op.matmul.b_dtype = op.matmul.d_dtype = NN_BF16;
  op.matmul.lda = op.matmul.ldb = hidden, op.matmul.d = qkv, op.matmul.ldd = width;
  op.rope = (op_rope_t){.n = 1, .heads = heads + 1, .head_dim = dim, .x = qkv, .ldx = width};
  op.rope.position = zero, op.rope.table = ops_take(ops, dim), op.rope.act_dtype = NN_BF16;
  op.store = (op_kv_store_t){.n = 1, .width = dim, .ld = width, .k = qkv + kv};
  op.store.v = qkv + kv + dim, op.store.sequence = op.store.position = zero;
  op.store.k_cache = ops_take(ops, dim), op.store.v_cache = ops_take(ops, dim);
  op.store.cache_batch = dim, op.store.act_dtype = NN_BF16;
  RUN(ops, "norm, qkv, rope, store, bf16, 1 row", project, op,
      ops_moved(ops, 2.0 * (double)(width * hidden), false));
  ops_drop(ops);
}

void ops_attentions(ops_t *ops) {
  for (int32_t dtype = NN_F32; dtype <= NN_BF16; dtype++) {
    ops_attention(ops, 4, 64, 12, 12, 64, 0, dtype);
    ops_attention(ops, 16, 256, 6, 2, 32, 0, dtype);
    ops_attention(ops, 1, OPS_TOKENS, 12, 12, 64, 0, dtype);
    ops_cached(ops, 1, 4096, 12, 1, 64, dtype);
    ops_cached(ops, 8, 4096, 12, 12, 64, dtype);
    ops_store(ops, OPS_TOKENS, 768, dtype);
  }
  ops_attention(ops, 1, OPS_TOKENS, 12, 1, 64, 0, NN_F32);
  ops_attention(ops, 1, 4 * OPS_TOKENS, 12, 1, 64, 128, NN_F32);
  ops_project(ops, 768, 12, 64);
}
