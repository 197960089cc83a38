#include "model/block.h"

#include <math.h>

/* Calls an operation of the pass's backend. */
#define RUN(pass, name, ...) \
  (pass)->backend->name((pass)->place, &(__VA_ARGS__), (pass)->scratch)

/* Width of a row of queries, keys and values, and of its part that attention sees as query. */
static int64_t block_qkv_width(const nn_model_config_t *config) {
  return (config->heads + 2 * config->kv_heads) * config->head_dim;
}
static int64_t block_q_width(const nn_model_config_t *config) {
  return config->heads * config->head_dim;
}

int32_t block_act_dtype(const nn_device_t *device, int32_t weight_dtype) {
  if (weight_dtype == NN_F32) return NN_F32;
  backend_info_t info = {.struct_size = sizeof info};
  device->backend->describe(device->place, &info);
  return info.act_dtype;
}

backend_limits_t block_limits(const nn_device_t *device, const nn_model_config_t *config, int64_t n,
                              int64_t batch, int64_t kv_len, int32_t weight_dtype, bool training) {
  return (backend_limits_t){.rows = n,
                            .batch = batch,
                            .kv_len = kv_len,
                            .hidden = config->hidden,
                            .heads = config->heads,
                            .kv_heads = config->kv_heads,
                            .head_dim = config->head_dim,
                            .ffn = config->ffn,
                            .experts = config->experts,
                            .top_k = config->top_k,
                            .vocab = config->vocab_size,
                            .weight_dtype = weight_dtype,
                            .act_dtype = block_act_dtype(device, weight_dtype),
                            .training = training};
}

void block_acts_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                     bool backward, block_acts_t *acts) {
  const size_t f = sizeof(float), a = nn_dtype_bytes(act_dtype);
  int64_t hidden = config->hidden, nk = n * config->top_k;
  *acts = (block_acts_t){0};
  acts->y1 = arena_take(arena, n, hidden, a);
  acts->qkv = arena_take(arena, n, block_qkv_width(config), a);
  acts->att = arena_take(arena, n, block_q_width(config), a);
  acts->mid = arena_take(arena, n, hidden, a);
  acts->y2 = arena_take(arena, n, hidden, a);
  if (backward) {
    acts->lse = arena_take(arena, n, config->heads, f);
    acts->rstd1 = arena_take(arena, 1, n, f);
    acts->rstd2 = arena_take(arena, 1, n, f);
    if (config->norm == NN_NORM_LAYER) {
      acts->mean1 = arena_take(arena, 1, n, f);
      acts->mean2 = arena_take(arena, 1, n, f);
    }
  }
  if (config->experts) {
    acts->routing.expert = arena_take(arena, 1, nk, sizeof(int32_t));
    acts->routing.weight = arena_take(arena, 1, nk, f);
    acts->routing.offset = arena_take(arena, 1, config->experts + 1, sizeof(int32_t));
    acts->routing.row_slot = arena_take(arena, 1, nk, sizeof(int32_t));
    acts->routing.slot_row = arena_take(arena, 1, nk, sizeof(int32_t));
    acts->prob = arena_take(arena, n, config->experts, f);
    acts->router_lse = arena_take(arena, 1, n, f);
  }
}

void block_acts_take_ffn(arena_t *arena, const nn_model_config_t *config, int64_t n,
                         int32_t act_dtype, bool backward, block_acts_t *acts) {
  const size_t a = nn_dtype_bytes(act_dtype);
  acts->pre = acts->post = NULL;
  if (config->experts) {
    if (backward) acts->pre = arena_take(arena, n * config->top_k, 2 * config->ffn, a);
  } else {
    acts->post = arena_take(arena, n, config->ffn, a);
    if (backward) acts->pre = arena_take(arena, n, config->ffn, a);
  }
}

void block_grads_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                      block_grads_t *grads) {
  const size_t f = sizeof(float), a = nn_dtype_bytes(act_dtype);
  *grads = (block_grads_t){0};
  grads->d = arena_take(arena, n, config->hidden, a);
  grads->dy = arena_take(arena, n, config->hidden, a);
  grads->dqkv = arena_take(arena, n, block_qkv_width(config), a);
  grads->datt = arena_take(arena, n, block_q_width(config), a);
  if (config->experts)
    grads->dweight = arena_take(arena, n, config->top_k, f);
  else
    grads->dpre = arena_take(arena, n, config->ffn, a);
}

void router_stats_take(arena_t *arena, const nn_model_config_t *config, int64_t layers,
                       router_stats_t *stats) {
  int64_t experts = config->experts, width = 2 * experts + 1;
  float *row = arena_take(arena, layers, width, sizeof(float));
  if (!row || !stats) return;
  for (int64_t l = 0; l < layers; l++, row += width)
    stats[l] = (router_stats_t){row, row + experts, row + 2 * experts};
}

/* ---- linear layers ------------------------------------------------------------------------------ */

/* y[n, out] = x[n, in] w^T + bias + residual. */
static nn_status_t linear(const pass_t *pass, const void *x, int64_t in, const void *w,
                          const void *bias, const void *residual, void *y, int64_t out) {
  op_matmul_t op = {.m = pass->batch * pass->q_len, .n = out, .k = in, .trans_b = 1};
  op.a = x, op.lda = in, op.a_dtype = pass->act_dtype;
  op.b = w, op.ldb = in, op.b_dtype = pass->weight_dtype;
  op.bias = bias;
  op.c = residual, op.ldc = out;
  op.d = y, op.ldd = out, op.d_dtype = pass->act_dtype;
  return RUN(pass, matmul, op);
}

/* dw[out, in] += dy^T x; dbias[out] += sum of dy's rows. */
static nn_status_t linear_weight_bwd(const pass_t *pass, const void *x, int64_t in, const void *dy,
                                     int64_t out, float *dw, float *dbias) {
  int64_t n = pass->batch * pass->q_len;
  op_matmul_t op = {.m = out, .n = in, .k = n, .trans_a = 1};
  op.a = dy, op.lda = out, op.a_dtype = pass->act_dtype;
  op.b = x, op.ldb = in, op.b_dtype = pass->act_dtype;
  op.c = dw, op.ldc = in;
  op.d = dw, op.ldd = in, op.d_dtype = NN_F32;
  op.rounds = pass->weight_dtype == NN_BF16;
  STATUS_TRY(RUN(pass, matmul, op));
  if (!dbias) return NN_OK;
  op_column_sum_t sum = {.n = n, .width = out, .x = dy, .ldx = out, .out = dbias};
  sum.act_dtype = pass->act_dtype;
  return RUN(pass, column_sum, sum);
}

/* dx[n, in] = dy[n, out] w, through GELU's derivative at gelu_pre where that is given. */
static nn_status_t linear_input_bwd(const pass_t *pass, const void *dy, int64_t out, const void *w,
                                    void *dx, int64_t in, void *gelu_pre) {
  op_matmul_t op = {.m = pass->batch * pass->q_len, .n = in, .k = out};
  op.a = dy, op.lda = out, op.a_dtype = pass->act_dtype;
  op.b = w, op.ldb = in, op.b_dtype = pass->weight_dtype;
  op.d = dx, op.ldd = in, op.d_dtype = pass->act_dtype;
  if (gelu_pre) op.epilogue = MATMUL_GELU_BWD, op.aux = gelu_pre;
  return RUN(pass, matmul, op);
}

/* ---- norms --------------------------------------------------------------------------------------- */

static nn_status_t norm_forward(const pass_t *pass, int64_t n, const void *x, const void *w,
                                const void *b, void *y, float *mean, float *rstd) {
  op_norm_t op = {.n = n, .hidden = pass->config->hidden, .kind = pass->config->norm};
  op.eps = pass->config->norm_eps;
  op.x = x, op.w = w, op.b = b;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.y = y, op.mean = mean, op.rstd = rstd;
  return RUN(pass, norm, op);
}

/* dx += the gradient through the norm. */
static nn_status_t norm_backward(const pass_t *pass, const void *x, const void *dy, const void *w,
                                 const float *mean, const float *rstd, void *dx, float *dw,
                                 float *db) {
  op_norm_bwd_t op = {.n = pass->batch * pass->q_len, .hidden = pass->config->hidden};
  op.kind = pass->config->norm;
  op.x = x, op.dy = dy, op.w = w;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.mean = mean, op.rstd = rstd;
  op.dx = dx, op.dw = dw, op.db = db;
  return RUN(pass, norm_bwd, op);
}

nn_status_t final_norm(const pass_t *pass, int64_t n, const void *x, void *y, float *mean,
                       float *rstd) {
  return norm_forward(pass, n, x, pass->weights->norm_final, pass->weights->norm_final_bias, y, mean,
                      rstd);
}

/* ---- attention ------------------------------------------------------------------------------------ */

/* Rotates the query and key heads of qkv (or of its gradient, inverse). */
static nn_status_t attention_rope(const pass_t *pass, void *qkv, int32_t inverse) {
  const nn_model_config_t *config = pass->config;
  if (config->position != NN_POSITION_ROPE) return NN_OK;
  op_rope_t op = {.n = pass->batch * pass->q_len, .head_dim = config->head_dim};
  op.heads = config->heads + config->kv_heads;
  op.x = qkv, op.ldx = block_qkv_width(config), op.act_dtype = pass->act_dtype;
  op.position = pass->position, op.table = pass->rope, op.inverse = inverse;
  return RUN(pass, rope, op);
}

static float attention_scale(const nn_model_config_t *config) {
  return (float)(1.0 / sqrt((double)config->head_dim));
}

static nn_status_t attention_forward(const pass_t *pass, int64_t layer, block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_cache_t *cache = pass->cache;
  int64_t width = block_qkv_width(config), kv_width = config->kv_heads * config->head_dim;
  void *k = block_at(acts->qkv, pass->act_dtype, block_q_width(config));
  void *v = block_at(k, pass->act_dtype, kv_width);
  op_attention_t op = {.batch = pass->batch, .q_len = pass->q_len, .heads = config->heads};
  op.kv_heads = config->kv_heads, op.head_dim = config->head_dim;
  op.scale = attention_scale(config), op.act_dtype = pass->act_dtype;
  op.q = acts->qkv, op.ldq = width;
  op.k = k, op.v = v, op.ldkv = width, op.kv_batch = pass->q_len * width;
  op.o = acts->att, op.lse = acts->lse;
  if (cache) {
    op_kv_store_t store = {.n = pass->batch * pass->q_len, .width = kv_width, .k = k, .v = v};
    store.ld = width, store.act_dtype = pass->act_dtype;
    store.sequence = cache->sequence, store.position = pass->position;
    store.k_cache = block_at(cache->k, pass->act_dtype, layer * cache->layer_stride);
    store.v_cache = block_at(cache->v, pass->act_dtype, layer * cache->layer_stride);
    store.cache_batch = cache->sequence_stride;
    STATUS_TRY(RUN(pass, kv_store, store));
    op.k = store.k_cache, op.v = store.v_cache;
    op.ldkv = kv_width, op.kv_batch = cache->sequence_stride;
    op.kv_len = cache->kv_len, op.sequence = cache->attend;
  }
  return RUN(pass, attention, op);
}

static nn_status_t attention_backward(const pass_t *pass, const block_acts_t *acts,
                                      const block_grads_t *grads) {
  const nn_model_config_t *config = pass->config;
  int64_t width = block_qkv_width(config), kv_width = config->kv_heads * config->head_dim;
  int64_t q_width = block_q_width(config);
  op_attention_bwd_t op = {.batch = pass->batch, .q_len = pass->q_len, .heads = config->heads};
  op.kv_heads = config->kv_heads, op.head_dim = config->head_dim;
  op.scale = attention_scale(config), op.act_dtype = pass->act_dtype;
  op.q = acts->qkv, op.ldq = width;
  op.k = block_at(acts->qkv, pass->act_dtype, q_width);
  op.v = block_at(op.k, pass->act_dtype, kv_width);
  op.ldkv = width, op.kv_batch = pass->q_len * width;
  op.o = acts->att, op.dout = grads->datt, op.lse = acts->lse;
  op.dq = grads->dqkv, op.dk = block_at(grads->dqkv, pass->act_dtype, q_width);
  op.dv = block_at(op.dk, pass->act_dtype, kv_width);
  return RUN(pass, attention_bwd, op);
}

/* ---- feed-forward ----------------------------------------------------------------------------------- */

/* The experts of tokens that are routed already; out NULL: pre alone. */
static nn_status_t experts_run(const pass_t *pass, int64_t layer, void *out,
                               const block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  op_experts_t op = {.n = pass->batch * pass->q_len, .hidden = config->hidden};
  op.ffn = config->ffn, op.experts = config->experts, op.top_k = config->top_k;
  op.x = acts->y2, op.routing = acts->routing;
  op.gate = w->gate, op.up = w->up, op.down = w->down;
  op.expert_stride = pass->weights->expert_stride;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.pre = acts->pre, op.residual = acts->mid, op.out = out;
  return RUN(pass, experts, op);
}

static nn_status_t experts_forward(const pass_t *pass, int64_t layer, void *out,
                                   block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  op_route_t route = {.n = pass->batch * pass->q_len, .hidden = config->hidden};
  route.experts = config->experts, route.top_k = config->top_k, route.capacity = pass->capacity;
  route.x = acts->y2, route.w = w->router;
  route.weight_dtype = pass->weight_dtype, route.act_dtype = pass->act_dtype;
  route.out = acts->routing, route.prob = acts->prob, route.lse = acts->router_lse;
  route.share = pass->router[layer].share, route.mean_prob = pass->router[layer].mean_prob;
  route.mean_lse2 = pass->router[layer].mean_lse2;
  if (out) {
    route.stat_count = pass->stat_count + layer * (config->experts + 1);
    route.stat_prob = pass->stat_prob + layer * config->experts;
  }
  STATUS_TRY(RUN(pass, route, route));
  return experts_run(pass, layer, out, acts);
}

static nn_status_t experts_backward(const pass_t *pass, int64_t layer, const block_acts_t *acts,
                                    const block_grads_t *grads, const block_weights_t *dw,
                                    const router_loss_t *loss) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  op_experts_bwd_t op = {.n = pass->batch * pass->q_len, .hidden = config->hidden};
  op.ffn = config->ffn, op.experts = config->experts, op.top_k = config->top_k;
  op.x = acts->y2, op.routing = acts->routing;
  op.gate = w->gate, op.up = w->up, op.down = w->down;
  op.expert_stride = pass->weights->expert_stride;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.pre = acts->pre, op.dout = grads->d, op.dx = grads->dy, op.dweight = grads->dweight;
  op.dgate = dw->gate, op.dup = dw->up, op.ddown = dw->down;
  STATUS_TRY(RUN(pass, experts_bwd, op));
  op_route_bwd_t route = {.n = op.n, .hidden = config->hidden, .experts = config->experts};
  route.top_k = config->top_k;
  route.x = acts->y2, route.w = w->router;
  route.weight_dtype = pass->weight_dtype, route.act_dtype = pass->act_dtype;
  route.routing = acts->routing, route.prob = acts->prob, route.lse = acts->router_lse;
  route.dweight = grads->dweight;
  route.aux_share = loss->aux_share, route.aux_scale = loss->aux_scale;
  route.z_scale = loss->z_scale;
  route.dx = grads->dy, route.dw = dw->router;
  return RUN(pass, route_bwd, route);
}

/* Dense: post = gelu(fc(y2)). */
static nn_status_t dense_inside(const pass_t *pass, int64_t layer, const block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  op_matmul_t op = {.m = pass->batch * pass->q_len, .n = config->ffn, .k = config->hidden};
  op.trans_b = 1;
  op.a = acts->y2, op.lda = config->hidden, op.a_dtype = pass->act_dtype;
  op.b = w->fc, op.ldb = config->hidden, op.b_dtype = pass->weight_dtype, op.bias = w->fc_bias;
  op.d = acts->post, op.ldd = config->ffn, op.d_dtype = pass->act_dtype;
  op.epilogue = MATMUL_GELU, op.aux = acts->pre;
  return RUN(pass, matmul, op);
}

/* out = proj(post) + mid. */
static nn_status_t dense_forward(const pass_t *pass, int64_t layer, void *out, block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  STATUS_TRY(dense_inside(pass, layer, acts));
  if (!out) return NN_OK;
  return linear(pass, acts->post, config->ffn, w->proj, w->proj_bias, acts->mid, out,
                config->hidden);
}

nn_status_t block_ffn_again(const pass_t *pass, int64_t layer, block_acts_t *acts) {
  return pass->config->experts ? experts_run(pass, layer, NULL, acts)
                               : dense_inside(pass, layer, acts);
}

static nn_status_t dense_backward(const pass_t *pass, int64_t layer, const block_acts_t *acts,
                                  const block_grads_t *grads, const block_weights_t *dw) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  STATUS_TRY(linear_weight_bwd(pass, acts->post, config->ffn, grads->d, config->hidden, dw->proj,
                               dw->proj_bias));
  STATUS_TRY(linear_input_bwd(pass, grads->d, config->hidden, w->proj, grads->dpre, config->ffn,
                              acts->pre));
  STATUS_TRY(linear_weight_bwd(pass, acts->y2, config->hidden, grads->dpre, config->ffn, dw->fc,
                               dw->fc_bias));
  return linear_input_bwd(pass, grads->dpre, config->ffn, w->fc, grads->dy, config->hidden, NULL);
}

/* ---- the block ---------------------------------------------------------------------------------------- */

nn_status_t block_forward(const pass_t *pass, int64_t layer, const void *x, void *out,
                          block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  int64_t n = pass->batch * pass->q_len;
  STATUS_TRY(norm_forward(pass, n, x, w->norm1, w->norm1_bias, acts->y1, acts->mean1, acts->rstd1));
  STATUS_TRY(linear(pass, acts->y1, config->hidden, w->qkv, w->qkv_bias, NULL, acts->qkv,
                    block_qkv_width(config)));
  STATUS_TRY(attention_rope(pass, acts->qkv, 0));
  STATUS_TRY(attention_forward(pass, layer, acts));
  STATUS_TRY(linear(pass, acts->att, block_q_width(config), w->o, w->o_bias, x, acts->mid,
                    config->hidden));
  STATUS_TRY(norm_forward(pass, n, acts->mid, w->norm2, w->norm2_bias, acts->y2, acts->mean2,
                          acts->rstd2));
  return config->experts ? experts_forward(pass, layer, out, acts)
                         : dense_forward(pass, layer, out, acts);
}

nn_status_t block_backward(const pass_t *pass, int64_t layer, const void *x,
                           const block_acts_t *acts, const block_grads_t *grads,
                           const block_weights_t *dw, const router_loss_t *loss) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  int64_t q_width = block_q_width(config), qkv_width = block_qkv_width(config);
  STATUS_TRY(config->experts ? experts_backward(pass, layer, acts, grads, dw, loss)
                             : dense_backward(pass, layer, acts, grads, dw));
  STATUS_TRY(norm_backward(pass, acts->mid, grads->dy, w->norm2, acts->mean2, acts->rstd2, grads->d,
                           dw->norm2, dw->norm2_bias));
  STATUS_TRY(linear_weight_bwd(pass, acts->att, q_width, grads->d, config->hidden, dw->o,
                               dw->o_bias));
  STATUS_TRY(linear_input_bwd(pass, grads->d, config->hidden, w->o, grads->datt, q_width, NULL));
  STATUS_TRY(attention_backward(pass, acts, grads));
  STATUS_TRY(attention_rope(pass, grads->dqkv, 1));
  STATUS_TRY(linear_weight_bwd(pass, acts->y1, config->hidden, grads->dqkv, qkv_width, dw->qkv,
                               dw->qkv_bias));
  STATUS_TRY(linear_input_bwd(pass, grads->dqkv, qkv_width, w->qkv, grads->dy, config->hidden, NULL));
  return norm_backward(pass, x, grads->dy, w->norm1, acts->mean1, acts->rstd1, grads->d, dw->norm1,
                       dw->norm1_bias);
}
