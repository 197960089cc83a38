/* Attention on a GPU: training on 4 x 4096 tokens, and one query of each sequence against a cache
 * of 4096 keys. */
#include <stdio.h>

#include "gpu.h"

typedef struct attention_case {
  const char *what;
  int64_t heads, kv_heads, dim;
  int64_t window; /* 0: none */
  int32_t dtype, sinks;
} attention_case_t;

/* As many heads as make moe-6.9b's hidden size, and one key-value head; and gpt_oss's. */
static const attention_case_t attention_cases[] = {
    {"width 64", 12, 1, 64, 0, NN_BF16, 0},
    {"width 128", 6, 1, 128, 0, NN_BF16, 0},
    {"width 64, fp16", 12, 1, 64, 0, NN_F16, 0},
    {"width 128, fp16", 6, 1, 128, 0, NN_F16, 0},
    {"width 64, window 512", 12, 1, 64, 512, NN_BF16, 0},
    {"width 128, window 512", 6, 1, 128, 512, NN_BF16, 0},
    {"width 64, sinks", 12, 1, 64, 0, NN_BF16, 1},
    {"64 heads of 64, window 128, sinks", 64, 8, 64, 128, NN_BF16, 1},
    {"width 32", 24, 1, 32, 0, NN_BF16, 0},
    {"width 96", 8, 1, 96, 0, NN_BF16, 0},
    {"width 192", 4, 1, 192, 0, NN_BF16, 0},
    {"width 256", 3, 1, 256, 0, NN_BF16, 0},
    {"width 64, fp32", 12, 1, 64, 0, NN_F32, 0},
};

/* Rows of queries, keys and values. */
typedef struct attention_rows {
  char *data;
  int64_t ld;
} attention_rows_t;

static attention_rows_t attention_rows(gpu_t *gpu, const attention_case_t *c) {
  int64_t ld = (c->heads + 2 * c->kv_heads) * c->dim;
  return (attention_rows_t){gpu_normal(gpu, GPU_TOKENS * ld, c->dtype, 1), ld};
}

static op_attention_t attention_op(gpu_t *gpu, const attention_case_t *c) {
  attention_rows_t qkv = attention_rows(gpu, c);
  int64_t q = c->heads * c->dim, kv = c->kv_heads * c->dim, rows = GPU_TOKENS * c->heads;
  op_attention_t op = {.batch = GPU_BATCH, .q_len = GPU_SEQ, .heads = c->heads};
  op.kv_heads = c->kv_heads, op.head_dim = c->dim, op.window = c->window;
  op.weight_dtype = op.act_dtype = c->dtype;
  int64_t bytes = (int64_t)nn_dtype_bytes(c->dtype);
  op.q = qkv.data, op.k = qkv.data + bytes * q, op.v = qkv.data + bytes * (q + kv);
  op.ldq = op.ldkv = qkv.ld, op.kv_batch = GPU_SEQ * qkv.ld, op.scale = 0.125f;
  if (c->sinks) op.sinks = gpu_normal(gpu, c->heads, c->dtype, 1);
  op.o = gpu_normal(gpu, GPU_TOKENS * q, c->dtype, 1);
  op.lse = gpu_alloc(gpu, (size_t)rows * sizeof(float));
  return op;
}

static op_attention_bwd_t attention_bwd_op(gpu_t *gpu, const attention_case_t *c,
                                           const op_attention_t *op) {
  int64_t q = c->heads * c->dim, kv = c->kv_heads * c->dim;
  op_attention_bwd_t back = {.batch = op->batch, .q_len = op->q_len, .heads = op->heads};
  back.kv_heads = op->kv_heads, back.head_dim = op->head_dim, back.window = op->window;
  back.weight_dtype = back.act_dtype = c->dtype;
  back.q = op->q, back.k = op->k, back.v = op->v, back.sinks = op->sinks;
  back.ldq = op->ldq, back.ldkv = op->ldkv, back.kv_batch = op->kv_batch, back.scale = op->scale;
  back.o = op->o, back.dout = gpu_normal(gpu, GPU_TOKENS * q, c->dtype, 1), back.lse = op->lse;
  char *d = attention_rows(gpu, c).data;
  int64_t bytes = (int64_t)nn_dtype_bytes(c->dtype);
  back.dq = d, back.dk = d + bytes * q, back.dv = d + bytes * (q + kv);
  if (c->sinks) back.dsinks = gpu_zeros(gpu, (size_t)c->heads * sizeof(float));
  return back;
}

/* Pairs of a query and a key that it sees. */
static double attention_pairs(const attention_case_t *c) {
  double seen = c->window ? (double)c->window : (double)(GPU_SEQ + 1) / 2;
  return (double)(GPU_TOKENS * c->heads) * seen;
}

static void attention_training(gpu_t *gpu, const attention_case_t *c) {
  char name[96];
  op_attention_t op = attention_op(gpu, c);
  op_attention_bwd_t back = attention_bwd_op(gpu, c, &op);
  bench_work_t work = gpu_flops(gpu, 4 * (double)c->dim * attention_pairs(c)); /* two products */
  if (c->dtype == NN_F32) work.ceiling = gpu->peak.fp32_flops;
  snprintf(name, sizeof name, "attention forward, 4 x 4096, %s", c->what);
  RUN(gpu, name, attention, op, work);
  snprintf(name, sizeof name, "attention backward, 4 x 4096, %s", c->what);
  work.amount *= 2.5; /* five */
  RUN(gpu, name, attention_bwd, back, work);
}

static void attention_decoding(gpu_t *gpu, const attention_case_t *c, int64_t batch) {
  char name[96];
  int64_t width = c->kv_heads * c->dim, seen = c->window ? c->window : GPU_SEQ;
  op_attention_t op = attention_op(gpu, c);
  op.batch = batch, op.q_len = 1, op.lse = NULL, op.ldkv = width, op.kv_batch = GPU_SEQ * width;
  op.kv_len = gpu_ids(gpu, batch, 0, GPU_SEQ, GPU_SEQ + 1);
  op.k = gpu_normal(gpu, batch * GPU_SEQ * width, c->dtype, 1);
  op.v = gpu_normal(gpu, batch * GPU_SEQ * width, c->dtype, 1);
  snprintf(name, sizeof name, "attention, %lld of 4096 keys, 1 query, %s", (long long)batch,
           c->what);
  double bytes = 2 * (double)nn_dtype_bytes(c->dtype) * (double)(batch * seen * width);
  RUN(gpu, name, attention, op, gpu_bytes(gpu, bytes));
}

static void attention_store(gpu_t *gpu) {
  const int64_t width = 64, ld = 14 * width;
  op_kv_store_t store = {.n = GPU_TOKENS, .width = width, .act_dtype = NN_BF16, .ld = ld};
  char *rows = gpu_bf16(gpu, GPU_TOKENS * ld);
  store.k = rows, store.v = rows + 2 * width, store.cache_batch = GPU_SEQ * width;
  store.sequence = gpu_ids(gpu, GPU_TOKENS, 0, 0, 1);
  store.position = gpu_ids(gpu, GPU_TOKENS, 1, 0, GPU_SEQ);
  store.k_cache = gpu_bf16(gpu, GPU_SEQ * width), store.v_cache = gpu_bf16(gpu, GPU_SEQ * width);
  RUN(gpu, "keys and values into the cache", kv_store, store,
      gpu_bytes(gpu, 8.0 * GPU_TOKENS * (double)width));
  gpu_drop(gpu);
}

void gpu_attentions(gpu_t *gpu) {
  for (size_t i = 0; i < sizeof attention_cases / sizeof *attention_cases; i++) {
    attention_training(gpu, &attention_cases[i]);
    gpu_drop(gpu);
    for (int64_t batch = 1; batch <= 32; batch *= 32) {
      attention_decoding(gpu, &attention_cases[i], batch);
      gpu_drop(gpu);
    }
  }
  attention_store(gpu);
}
