/* A GPU's operations but for attention and experts at the shapes of moe-6.9b, in bf16: 4 x 4096
 * tokens of training, and decoding. */
#include "gpu.h"

/* What comes before attention in decoding, around the product. */
static void gpu_project(gpu_t *gpu, const op_matmul_t *product) {
  int64_t h = product->k, width = product->n, kv = 64;
  op_project_t op = {.norm = {.n = 1, .hidden = h, .eps = 1e-5f}, .matmul = *product};
  op.norm.x = gpu_bf16(gpu, h), op.norm.w = gpu_bf16(gpu, h), op.norm.y = gpu_bf16(gpu, h);
  op.norm.weight_dtype = op.norm.act_dtype = NN_BF16, op.matmul.a = op.norm.y;
  op.rope = (op_rope_t){.n = 1, .heads = width / kv - 1, .head_dim = kv, .act_dtype = NN_BF16};
  op.rope.x = product->d, op.rope.ldx = width, op.rope.position = gpu_ids(gpu, 1, 0, 0, 1);
  op.rope.table = gpu_normal(gpu, kv, NN_F32, 1);
  op.store = (op_kv_store_t){.n = 1, .width = kv, .act_dtype = NN_BF16, .ld = width};
  op.store.k = (char *)product->d + 2 * (width - 2 * kv);
  op.store.v = (char *)product->d + 2 * (width - kv), op.store.cache_batch = kv;
  op.store.sequence = op.store.position = op.rope.position;
  op.store.k_cache = gpu_bf16(gpu, kv), op.store.v_cache = gpu_bf16(gpu, kv);
  RUN(gpu, "norm, qkv, rope, store, 1 row", project, op, gpu_bytes(gpu, 2.0 * (double)(width * h)));
}

static void gpu_dense(gpu_t *gpu) {
  int64_t h = gpu->config.hidden, qkv = (gpu->config.heads + 2 * gpu->config.kv_heads) * 64;
  void *x = gpu_bf16(gpu, GPU_TOKENS * qkv), *w = gpu_bf16(gpu, qkv * h),
       *y = gpu_bf16(gpu, GPU_TOKENS * qkv);
  float *dw = gpu_zeros(gpu, (size_t)(qkv * h) * sizeof(float));
  op_matmul_t op = {
      .m = GPU_TOKENS, .n = qkv, .k = h, .trans_b = 1, .a = x, .lda = h, .b = w, .ldb = h};
  op.d = y, op.ldd = qkv, op.a_dtype = op.b_dtype = op.d_dtype = NN_BF16;
  double work = 2.0 * GPU_TOKENS * (double)(qkv * h);
  RUN(gpu, "matmul qkv forward", matmul, op, gpu_flops(gpu, work));
  op_column_sum_t sum = {.n = GPU_TOKENS, .width = qkv, .act_dtype = NN_BF16, .x = x, .ldx = qkv};
  sum.out = dw;
  RUN(gpu, "column sum", column_sum, sum, gpu_bytes(gpu, 2.0 * GPU_TOKENS * (double)qkv));
  op_matmul_t dx = {
      .m = GPU_TOKENS, .n = h, .k = qkv, .a = y, .lda = qkv, .b = w, .ldb = h, .d = x};
  dx.ldd = h, dx.a_dtype = dx.b_dtype = dx.d_dtype = NN_BF16;
  RUN(gpu, "matmul qkv data gradient", matmul, dx, gpu_flops(gpu, work));
  op_matmul_t dww = {
      .m = qkv, .n = h, .k = GPU_TOKENS, .trans_a = 1, .a = y, .lda = qkv, .b = x, .ldb = h};
  dww.c = dw, dww.ldc = h, dww.d = dw, dww.ldd = h, dww.a_dtype = dww.b_dtype = NN_BF16;
  RUN(gpu, "matmul qkv weight gradient", matmul, dww, gpu_flops(gpu, work));
  op.m = 1;
  RUN(gpu, "matmul qkv, 1 row", matmul, op, gpu_bytes(gpu, 2.0 * (double)(qkv * h)));
  gpu_project(gpu, &op);
}

/* What GPT-2's network has around its first product. */
static void gpu_gelu(gpu_t *gpu) {
  int64_t h = gpu->config.hidden, f = 4 * h;
  op_matmul_t op = {.m = GPU_TOKENS, .n = f, .k = h, .trans_b = 1, .lda = h, .ldb = h, .ldd = f};
  op.a = gpu_bf16(gpu, GPU_TOKENS * h), op.b = gpu_bf16(gpu, f * h), op.bias = gpu_bf16(gpu, f);
  op.d = gpu_bf16(gpu, GPU_TOKENS * f), op.aux = gpu_bf16(gpu, GPU_TOKENS * f);
  op.a_dtype = op.b_dtype = op.d_dtype = NN_BF16, op.epilogue = MATMUL_GELU;
  bench_work_t work = gpu_flops(gpu, 2.0 * GPU_TOKENS * (double)(f * h));
  RUN(gpu, "matmul with bias and GELU", matmul, op, work);
  op.trans_b = 0, op.ldb = f, op.bias = NULL, op.epilogue = MATMUL_GELU_BWD;
  RUN(gpu, "matmul with GELU's slope", matmul, op, work);
}

static void gpu_elementwise(gpu_t *gpu) {
  int64_t h = gpu->config.hidden, heads = gpu->config.heads + gpu->config.kv_heads;
  int64_t qkv = (heads + gpu->config.kv_heads) * 64;
  double row = 2.0 * GPU_TOKENS * (double)h;
  void *x = gpu_bf16(gpu, GPU_TOKENS * h), *y = gpu_bf16(gpu, GPU_TOKENS * h),
       *d = gpu_bf16(gpu, GPU_TOKENS * h);
  void *w = gpu_bf16(gpu, h);
  float *rstd = gpu_alloc(gpu, GPU_TOKENS * sizeof(float)),
        *dw = gpu_zeros(gpu, (size_t)h * sizeof(float));
  op_norm_t norm = {
      .n = GPU_TOKENS, .hidden = h, .eps = 1e-5f, .x = x, .w = w, .y = y, .rstd = rstd};
  norm.weight_dtype = norm.act_dtype = NN_BF16;
  RUN(gpu, "rms norm", norm, norm, gpu_bytes(gpu, 2 * row));
  op_norm_bwd_t back = {
      .n = GPU_TOKENS, .hidden = h, .x = x, .dy = y, .w = w, .rstd = rstd, .dx = d};
  back.weight_dtype = back.act_dtype = NN_BF16, back.dw = dw;
  RUN(gpu, "rms norm backward", norm_bwd, back, gpu_bytes(gpu, 4 * row));
  void *q = gpu_bf16(gpu, GPU_TOKENS * qkv);
  op_rope_t rope = {.n = GPU_TOKENS, .heads = heads, .head_dim = 64, .x = q, .ldx = qkv};
  rope.act_dtype = NN_BF16, rope.position = gpu_ids(gpu, GPU_TOKENS, 1, 0, GPU_SEQ);
  rope.table = gpu_normal(gpu, GPU_SEQ * 64, NN_F32, 1);
  RUN(gpu, "rope", rope, rope, gpu_bytes(gpu, 4.0 * GPU_TOKENS * 64 * (double)heads));
  int64_t vocab = gpu->config.vocab_size;
  void *table = gpu_bf16(gpu, vocab * h);
  op_embed_t embed = {
      .n = GPU_TOKENS, .hidden = h, .ids = gpu_ids(gpu, GPU_TOKENS, 7919, 0, vocab)};
  embed.wte = table, embed.out = x, embed.weight_dtype = embed.act_dtype = NN_BF16;
  RUN(gpu, "embedding", embed, embed, gpu_bytes(gpu, 2 * row));
  op_embed_bwd_t embed_bwd = {
      .n = GPU_TOKENS, .hidden = h, .vocab = vocab, .ids = embed.ids, .dout = x};
  embed_bwd.dwte = gpu_zeros(gpu, (size_t)(vocab * h) * sizeof(float)),
  embed_bwd.act_dtype = NN_BF16;
  embed_bwd.position = rope.position;
  RUN(gpu, "embedding backward", embed_bwd, embed_bwd, gpu_bytes(gpu, 5 * row));
  op_embed_bwd_t often = embed_bwd;
  often.ids = gpu_ids_often(gpu, GPU_TOKENS, 7919, 0, vocab, 20);
  RUN(gpu, "embedding backward, a twentieth one token", embed_bwd, often, gpu_bytes(gpu, 5 * row));
}

/* What the other families have beside these, at widths like theirs. */
static void gpu_families(gpu_t *gpu) {
  int64_t f = 2048, heads = 32, dim = 128, ld = heads * dim;
  double half = 2.0 * GPU_TOKENS * (double)f, row = 2.0 * GPU_TOKENS * (double)ld;
  void *x = gpu_bf16(gpu, GPU_TOKENS * ld), *y = gpu_bf16(gpu, GPU_TOKENS * ld),
       *w = gpu_bf16(gpu, ld);
  void *d = gpu_bf16(gpu, GPU_TOKENS * ld);
  float *stat = gpu_alloc(gpu, (size_t)(GPU_TOKENS * heads) * 4),
        *dw = gpu_zeros(gpu, (size_t)ld * 4);
  op_glu_t glu = {.n = GPU_TOKENS, .ffn = f, .act_dtype = NN_BF16, .x = x, .y = y};
  RUN(gpu, "gated unit, 2048", glu, glu, gpu_bytes(gpu, 3 * half));
  op_glu_bwd_t glu_bwd = {
      .n = GPU_TOKENS, .ffn = f, .act_dtype = NN_BF16, .x = x, .dy = y, .dx = d};
  RUN(gpu, "gated unit backward, 2048", glu_bwd, glu_bwd, gpu_bytes(gpu, 5 * half));
  op_row_gate_t gate = {.n = GPU_TOKENS, .width = ld, .x = x, .w = w, .gate = stat};
  gate.weight_dtype = gate.act_dtype = NN_BF16;
  RUN(gpu, "gate of rows, 4096", row_gate, gate, gpu_bytes(gpu, row));
  op_row_gate_bwd_t gate_bwd = {
      .n = GPU_TOKENS, .width = ld, .x = x, .w = w, .gate = stat, .dx = y};
  gate_bwd.weight_dtype = gate_bwd.act_dtype = NN_BF16, gate_bwd.dgate = stat, gate_bwd.dw = dw;
  RUN(gpu, "gate of rows backward, 4096", row_gate_bwd, gate_bwd, gpu_bytes(gpu, 3 * row));
  op_clip_t clip = {
      .n = GPU_TOKENS, .width = ld, .limit = 1, .act_dtype = NN_BF16, .x = x, .ldx = ld};
  clip.y = y, clip.ldy = ld;
  RUN(gpu, "clamp, 4096", clip, clip, gpu_bytes(gpu, 2 * row));
  op_clip_bwd_t clip_bwd = {.n = GPU_TOKENS, .width = ld, .limit = 1, .act_dtype = NN_BF16, .x = x};
  clip_bwd.ldx = clip_bwd.lddx = ld, clip_bwd.dx = y;
  RUN(gpu, "clamp backward, 4096", clip_bwd, clip_bwd, gpu_bytes(gpu, 3 * row));
  op_norm_t norm = {.n = GPU_TOKENS, .hidden = dim, .groups = heads, .eps = 1e-6f, .x = x, .w = w};
  norm.weight_dtype = norm.act_dtype = NN_BF16, norm.y = y, norm.rstd = stat;
  RUN(gpu, "rms norm of 32 heads of 128", norm, norm, gpu_bytes(gpu, 2 * row));
  op_norm_bwd_t back = {.n = GPU_TOKENS, .hidden = dim, .groups = heads, .x = x, .dy = y, .w = w};
  back.weight_dtype = back.act_dtype = NN_BF16, back.rstd = stat, back.assign = 1;
  back.dx = d, back.dw = dw;
  RUN(gpu, "rms norm backward of 32 heads of 128", norm_bwd, back, gpu_bytes(gpu, 3 * row));
  op_rope_t rope = {
      .n = GPU_TOKENS, .heads = heads, .head_dim = dim, .rotary_dim = dim / 2, .x = x};
  rope.interleaved = 1, rope.ldx = ld, rope.act_dtype = NN_BF16;
  rope.position = gpu_ids(gpu, GPU_TOKENS, 1, 0, GPU_SEQ);
  rope.table = gpu_normal(gpu, GPU_SEQ * dim, NN_F32, 1);
  RUN(gpu, "rope of neighbours in half of 32 heads", rope, rope, gpu_bytes(gpu, row));
  op_copy_heads_t copy = {.n = GPU_TOKENS, .heads = heads, .width = dim / 2, .act_dtype = NN_BF16};
  copy.zeros = dim / 2, copy.x = x, copy.ldx = copy.ldy = ld, copy.step_x = copy.step_y = dim;
  copy.y = y;
  RUN(gpu, "copy of halves of 32 heads", copy_heads, copy, gpu_bytes(gpu, 1.5 * row));
}

/* op: all but the parameters and what belongs to them. */
static void gpu_adamw(gpu_t *gpu, op_adamw_t op, const char *name, int32_t dtype, double moved) {
  int kept = gpu->buffers;
  op.weight_dtype = dtype, op.p = gpu_normal(gpu, op.count, dtype, 1);
  if (dtype == NN_BF16) op.p_low = gpu_zeros(gpu, (size_t)op.count * sizeof(int16_t));
  if (dtype == NN_F16) op.master = gpu_zeros(gpu, (size_t)op.count * sizeof(float));
  RUN(gpu, name, adamw, op, gpu_bytes(gpu, moved * (double)op.count));
  gpu_drop_to(gpu, kept);
}

static void gpu_optimizer(gpu_t *gpu) {
  int64_t count = 1000000000;
  float *g = gpu_normal(gpu, count, NN_F32, 1);
  double *scale = gpu_zeros(gpu, 2 * sizeof(double));
  optim_now_t host = {.lr = 1e-4, .m_left = 0.2, .v_left = 0.1, .unscale = 1};
  optim_now_t *now = gpu_alloc(gpu, sizeof host);
  TRY(gpu->table->copy_in(gpu->place, now, &host, sizeof host));
  op_grad_norm_t norm = {.count = count, .g = g, .max_norm = 1, .now = now, .out = scale};
  RUN(gpu, "gradient norm, 1e9", grad_norm, norm, gpu_bytes(gpu, 4.0 * (double)count));
  op_adamw_t adam = {.count = count, .decayed = count, .g = g, .scale = scale, .now = now};
  adam.m = gpu_zeros(gpu, (size_t)count * sizeof(float));
  adam.v = gpu_zeros(gpu, (size_t)count * sizeof(float));
  adam.beta1 = 0.9f, adam.beta2 = 0.95f, adam.eps = 1e-8f, adam.weight_decay = 0.1f;
  gpu_adamw(gpu, adam, "AdamW, 1e9 bf16 with masters", NN_BF16, 28);
  gpu_adamw(gpu, adam, "AdamW, 1e9 fp16 with masters", NN_F16, 32);
  gpu_adamw(gpu, adam, "AdamW, 1e9 fp32", NN_F32, 28);
  op_fill_normal_t fill = {.out = adam.m, .count = count, .std = 0.02f, .seed = 7};
  RUN(gpu, "normal numbers, 1e9", fill_normal, fill, gpu_bytes(gpu, 4.0 * (double)count));
}

static void gpu_head(gpu_t *gpu) {
  int64_t h = gpu->config.hidden, vocab = gpu->config.vocab_size;
  op_head_loss_t op = {
      .n = GPU_TOKENS, .hidden = h, .vocab = vocab, .x = gpu_bf16(gpu, GPU_TOKENS * h)};
  op.w = gpu_normal(gpu, vocab * h, NN_BF16, 0.02f), op.weight_dtype = op.act_dtype = NN_BF16;
  op.target = gpu_ids(gpu, GPU_TOKENS, 104729, 0, vocab),
  op.row_loss = gpu_alloc(gpu, GPU_TOKENS * 4);
  op.loss_sum = gpu_alloc(gpu, 8), op.scale = gpu_normal(gpu, 1, NN_F32, 1.0f / GPU_TOKENS),
  op.dx = gpu_alloc(gpu, (size_t)(GPU_TOKENS * h) * 2);
  op.dw = gpu_zeros(gpu, (size_t)(vocab * h) * 4);
  RUN(gpu, "head and loss, 16384 tokens", head_loss, op,
      gpu_flops(gpu, 6.0 * GPU_TOKENS * (double)(h * vocab)));
  op_matmul_t head = {
      .m = 1, .n = vocab, .k = h, .trans_b = 1, .a = op.x, .lda = h, .b = op.w, .ldb = h};
  head.a_dtype = head.b_dtype = NN_BF16, head.d = gpu_alloc(gpu, (size_t)vocab * 4),
  head.ldd = vocab;
  RUN(gpu, "matmul head, 1 row", matmul, head, gpu_bytes(gpu, 2.0 * (double)(vocab * h)));
  op_softmax_t softmax = {.n = 256, .width = vocab, .x = gpu_normal(gpu, 256 * vocab, NN_F32, 1)};
  softmax.y = gpu_alloc(gpu, (size_t)(256 * vocab) * 4);
  RUN(gpu, "softmax, 256 rows of logits", softmax, softmax,
      gpu_bytes(gpu, 8.0 * 256 * (double)vocab));
  op_sample_t sample = {.vocab = vocab, .logits = gpu_normal(gpu, vocab, NN_F32, 0.5f)};
  sample.token = gpu_alloc(gpu, 64);
  RUN(gpu, "sample greedy", sample, sample, gpu_bytes(gpu, 4.0 * (double)vocab));
  sample.temperature = 0.8f, sample.top_k = 40, sample.top_p = 0.9f, sample.seed = 1;
  RUN(gpu, "sample top-k 40, top-p 0.9", sample, sample, gpu_bytes(gpu, 4.0 * (double)vocab));
  sample.top_k = 0;
  RUN(gpu, "sample top-p 0.9", sample, sample, gpu_bytes(gpu, 4.0 * (double)vocab));
}

void gpu_ops(gpu_t *gpu) {
  void (*const groups[])(gpu_t *) = {gpu_dense, gpu_gelu, gpu_elementwise, gpu_families,
                                     gpu_optimizer, gpu_head};
  for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
    groups[i](gpu);
    gpu_drop(gpu);
  }
}
