#include "model/attention.h"

#include <math.h>

#include "model/config.h"
#include "model/latent.h"
#include "model/linear.h"
#include "model/rope.h"

int64_t attention_q_width(const nn_model_config_t *config) {
  return config->heads * config->head_dim;
}

static int64_t attention_kv_width(const nn_model_config_t *config) {
  return config->kv_heads * config->head_dim;
}

int64_t attention_qkv_width(const nn_model_config_t *config) {
  return attention_q_width(config) + 2 * attention_kv_width(config);
}

void attention_grads_take(arena_t *arena, const nn_model_config_t *config, int64_t n,
                          int32_t act_dtype, block_grads_t *grads) {
  const size_t a = nn_dtype_bytes(act_dtype);
  grads->dqkv = arena_take(arena, n, attention_qkv_width(config), a);
  grads->datt = arena_take(arena, n, attention_q_width(config), a);
  if (config->kv_rank) latent_take(arena, config, n, act_dtype, false, &grads->latent);
}

/* Width of the rows that a q/k norm or the clamping reads: without a clamp values are not among
 * them. 0: the projection writes qkv itself. */
static int64_t attention_raw_width(const nn_model_config_t *config) {
  if (config->qkv_clip > 0) return attention_qkv_width(config);
  return config->qk_norm ? attention_q_width(config) + attention_kv_width(config) : 0;
}

/* Where queries (0), keys (1) and values (2) begin in a row, and how many heads each has. */
static int64_t attention_part(const nn_model_config_t *config, int part) {
  return part == 0 ? 0 : attention_q_width(config) + (part - 1) * attention_kv_width(config);
}
static int64_t attention_part_heads(const nn_model_config_t *config, int part) {
  return part == 0 ? config->heads : config->kv_heads;
}

void attention_acts_take(arena_t *arena, const nn_model_config_t *config, int64_t n,
                         int32_t act_dtype, bool backward, block_acts_t *acts) {
  const size_t f = sizeof(float), a = nn_dtype_bytes(act_dtype);
  acts->qkv = arena_take(arena, n, attention_qkv_width(config), a);
  if (attention_raw_width(config))
    acts->raw = arena_take(arena, n, attention_raw_width(config), a);
  acts->att = arena_take(arena, n, attention_q_width(config), a);
  if (config->kv_rank) latent_take(arena, config, n, act_dtype, backward, &acts->latent);
  if (!backward) return;
  acts->lse = arena_take(arena, n, config->heads, f);
  for (int part = 0; part < 2 && config->qk_norm; part++) {
    bool head = config->qk_norm == NN_QK_NORM_HEAD;
    acts->qk_rstd[part] = arena_take(arena, n, head ? attention_part_heads(config, part) : 1, f);
  }
}

/* ---- queries, keys and values ---------------------------------------------------------------- */

static linear_t attention_qkv(const pass_t *pass, const block_weights_t *w) {
  const nn_model_config_t *config = pass->config;
  return (linear_t){.in = config->hidden,
                    .out = attention_qkv_width(config),
                    .w = w->qkv,
                    .bias = w->qkv_bias};
}

/* Columns from `begin` of the projection alone, to rows ldy apart. */
static linear_t attention_qkv_part(const pass_t *pass, const block_weights_t *w, int64_t begin,
                                   int64_t end, int64_t ldy) {
  linear_t part = attention_qkv(pass, w);
  part.out = end - begin, part.ldy = ldy;
  part.w = block_at(w->qkv, pass->weight_dtype, begin * part.in);
  if (w->qkv_bias) part.bias = block_at(w->qkv_bias, pass->weight_dtype, begin);
  return part;
}

/* The norm of queries (0) or keys (1) from raw to y, rows of which are ldy apart. */
static nn_status_t attention_norm(const pass_t *pass, const block_weights_t *w, int part,
                                  const block_acts_t *acts, void *y, int64_t ldy) {
  const nn_model_config_t *config = pass->config;
  int64_t heads = attention_part_heads(config, part);
  bool head = config->qk_norm == NN_QK_NORM_HEAD;
  op_norm_t op = {.n = pass_rows(pass), .kind = NN_NORM_RMS, .eps = config->norm_eps};
  op.groups = head ? heads : 1, op.hidden = head ? config->head_dim : heads * config->head_dim;
  op.ldx = attention_raw_width(config), op.ldy = ldy;
  op.x = block_at(acts->raw, pass->act_dtype, attention_part(config, part));
  op.w = part ? w->k_norm : w->q_norm;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.y = y, op.rstd = acts->qk_rstd[part];
  return PASS_RUN(pass, norm, op);
}

static nn_status_t attention_clip(const pass_t *pass, const void *x, int64_t ldx, void *y,
                                  int64_t width) {
  op_clip_t op = {.n = pass_rows(pass), .width = width, .limit = pass->config->qkv_clip};
  op.act_dtype = pass->act_dtype;
  op.x = x, op.ldx = ldx, op.y = y, op.ldy = attention_qkv_width(pass->config);
  return PASS_RUN(pass, clip, op);
}

/* From y1 through raw to qkv, but for the rotation. */
static nn_status_t attention_project_raw(const pass_t *pass, const block_weights_t *w,
                                         block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  int64_t width = attention_qkv_width(config), raw = attention_raw_width(config);
  linear_t first = attention_qkv_part(pass, w, 0, raw, raw);
  STATUS_TRY(linear_forward(pass, &first, acts->y1, NULL, acts->raw));
  if (raw < width) {
    linear_t values = attention_qkv_part(pass, w, raw, width, width);
    STATUS_TRY(linear_forward(pass, &values, acts->y1, NULL,
                              block_at(acts->qkv, pass->act_dtype, raw)));
  }
  for (int part = 0; part < 2 && config->qk_norm; part++) {
    void *y = block_at(acts->qkv, pass->act_dtype, attention_part(config, part));
    STATUS_TRY(attention_norm(pass, w, part, acts, y, width));
  }
  if (!(config->qkv_clip > 0)) return NN_OK;
  int64_t normed = config->qk_norm ? attention_part(config, 2) : 0;
  if (normed) STATUS_TRY(attention_clip(pass, acts->qkv, width, acts->qkv, normed));
  return attention_clip(pass, block_at(acts->raw, pass->act_dtype, normed), raw,
                        block_at(acts->qkv, pass->act_dtype, normed), width - normed);
}

/* dqkv = 0 where x was clamped, in `width` columns from `begin`. */
static nn_status_t attention_clip_bwd(const pass_t *pass, const void *x, int64_t ldx,
                                      const block_grads_t *grads, int64_t begin, int64_t width) {
  op_clip_bwd_t op = {.n = pass_rows(pass), .width = width, .limit = pass->config->qkv_clip};
  op.act_dtype = pass->act_dtype;
  op.x = x, op.ldx = ldx;
  op.dx = block_at(grads->dqkv, pass->act_dtype, begin);
  op.lddx = attention_qkv_width(pass->config);
  return PASS_RUN(pass, clip_bwd, op);
}

/* What was clamped is the norms' output, which is made again, in datt. */
static nn_status_t attention_clip_backward(const pass_t *pass, const block_weights_t *w,
                                           const block_acts_t *acts, const block_grads_t *grads) {
  const nn_model_config_t *config = pass->config;
  int64_t width = attention_qkv_width(config), normed = 0;
  for (int part = 0; part < 2 && config->qk_norm; part++) {
    int64_t columns = attention_part(config, part + 1) - attention_part(config, part);
    STATUS_TRY(attention_norm(pass, w, part, acts, grads->datt, columns));
    STATUS_TRY(attention_clip_bwd(pass, grads->datt, columns, grads, normed, columns));
    normed += columns;
  }
  return attention_clip_bwd(pass, block_at(acts->raw, pass->act_dtype, normed), width, grads,
                            normed, width - normed);
}

static nn_status_t attention_norm_backward(const pass_t *pass, const block_weights_t *w, int part,
                                           const block_acts_t *acts, const block_grads_t *grads,
                                           const block_weights_t *dw) {
  const nn_model_config_t *config = pass->config;
  int64_t heads = attention_part_heads(config, part), at = attention_part(config, part);
  bool head = config->qk_norm == NN_QK_NORM_HEAD;
  op_norm_bwd_t op = {.n = pass_rows(pass), .kind = NN_NORM_RMS, .assign = 1};
  op.groups = head ? heads : 1, op.hidden = head ? config->head_dim : heads * config->head_dim;
  op.ldx = attention_raw_width(config), op.ldy = attention_qkv_width(config);
  op.x = block_at(acts->raw, pass->act_dtype, at);
  op.dx = block_at(grads->dqkv, pass->act_dtype, at), op.dy = op.dx;
  op.w = part ? w->k_norm : w->q_norm;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.rstd = acts->qk_rstd[part];
  op.dw = part ? dw->k_norm : dw->q_norm;
  return PASS_RUN(pass, norm_bwd, op);
}

/* From dqkv, rotated back, to dy. */
static nn_status_t attention_project_backward(const pass_t *pass, const block_weights_t *w,
                                              const block_acts_t *acts, const block_grads_t *grads,
                                              const block_weights_t *dw) {
  const nn_model_config_t *config = pass->config;
  if (config->qkv_clip > 0) STATUS_TRY(attention_clip_backward(pass, w, acts, grads));
  for (int part = 0; part < 2 && config->qk_norm; part++)
    STATUS_TRY(attention_norm_backward(pass, w, part, acts, grads, dw));
  linear_t qkv = attention_qkv(pass, w);
  STATUS_TRY(linear_weight_bwd(pass, &qkv, acts->y1, grads->dqkv, dw->qkv, dw->qkv_bias));
  return linear_input_bwd(pass, &qkv, grads->dqkv, grads->dy, false, NULL);
}

/* Rotates the query and key heads of qkv (or of its gradient, inverse); of 0 rows without RoPE. */
static op_rope_t attention_rope(const pass_t *pass, void *qkv, int32_t inverse) {
  const nn_model_config_t *config = pass->config;
  op_rope_t op = {.head_dim = config->head_dim};
  if (config->position == NN_POSITION_ROPE) op.n = pass_rows(pass);
  op.heads = config->heads + config->kv_heads;
  op.rotary_dim = config->rotary_dim, op.interleaved = config->rope_interleaved;
  op.x = qkv, op.ldx = attention_qkv_width(config), op.act_dtype = pass->act_dtype;
  op.position = pass->position, op.table = pass->rope, op.inverse = inverse;
  return op;
}

/* Keys and values of qkv to the cache; of 0 rows without one. */
static op_kv_store_t attention_store(const pass_t *pass, int64_t layer, const block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_cache_t *cache = pass->cache;
  if (!cache) return (op_kv_store_t){0};
  op_kv_store_t op = {.n = pass_rows(pass), .width = attention_kv_width(config)};
  op.k = block_at(acts->qkv, pass->act_dtype, attention_part(config, 1));
  op.v = block_at(acts->qkv, pass->act_dtype, attention_part(config, 2));
  op.ld = attention_qkv_width(config), op.act_dtype = pass->act_dtype;
  op.sequence = cache->sequence, op.position = pass->position;
  op.k_cache = block_at(cache->k, pass->act_dtype, layer * cache->layer_stride);
  op.v_cache = block_at(cache->v, pass->act_dtype, layer * cache->layer_stride);
  op.cache_batch = cache->sequence_stride;
  return op;
}

/* From x to qkv, rotated, and to the cache. */
static nn_status_t attention_project(const pass_t *pass, int64_t layer, const void *x,
                                     block_acts_t *acts) {
  const block_weights_t *w = &pass->weights->blocks[layer];
  bool latent = pass->config->kv_rank > 0;
  op_norm_t norm = norm_op(pass, pass_rows(pass), x, w->norm1, w->norm1_bias, acts->y1,
                           acts->mean1, acts->rstd1);
  op_rope_t rope = attention_rope(pass, acts->qkv, 0);
  op_kv_store_t store = attention_store(pass, layer, acts);
  if (!latent && !attention_raw_width(pass->config)) {
    linear_t qkv = attention_qkv(pass, w);
    op_project_t all = {norm, linear_op(pass, &qkv, acts->y1, NULL, acts->qkv), rope, store};
    return PASS_RUN(pass, project, all);
  }
  STATUS_TRY(PASS_RUN(pass, norm, norm));
  STATUS_TRY(latent ? latent_project(pass, w, acts) : attention_project_raw(pass, w, acts));
  if (!latent && rope.n) STATUS_TRY(PASS_RUN(pass, rope, rope));
  return store.n ? PASS_RUN(pass, kv_store, store) : NN_OK;
}

/* ---- the product ----------------------------------------------------------------------------- */

static float attention_scale(const nn_model_config_t *config) {
  if (config->attention_scale > 0) return config->attention_scale;
  double scale = 1.0 / sqrt((double)config->head_dim);
  return (float)(config->kv_rank ? scale * rope_latent_factor(config) : scale);
}

static nn_status_t attention_run(const pass_t *pass, int64_t layer, block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_cache_t *cache = pass->cache;
  int64_t width = attention_qkv_width(config);
  op_attention_t op = {.batch = pass->batch, .q_len = pass->q_len, .heads = config->heads};
  op.kv_heads = config->kv_heads, op.head_dim = config->head_dim;
  op.window = config_layer_window(config, layer), op.scale = attention_scale(config);
  op.sinks = pass->weights->blocks[layer].sinks;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.q = acts->qkv, op.ldq = width;
  op.k = block_at(acts->qkv, pass->act_dtype, attention_part(config, 1));
  op.v = block_at(acts->qkv, pass->act_dtype, attention_part(config, 2));
  op.ldkv = width, op.kv_batch = pass->q_len * width;
  op.o = acts->att, op.lse = acts->lse;
  if (cache) {
    op.k = block_at(cache->k, pass->act_dtype, layer * cache->layer_stride);
    op.v = block_at(cache->v, pass->act_dtype, layer * cache->layer_stride);
    op.ldkv = attention_kv_width(config), op.kv_batch = cache->sequence_stride;
    op.kv_len = cache->kv_len, op.sequence = cache->attend;
  }
  return PASS_RUN(pass, attention, op);
}

static nn_status_t attention_run_backward(const pass_t *pass, int64_t layer,
                                          const block_acts_t *acts, const block_grads_t *grads,
                                          const block_weights_t *dw) {
  const nn_model_config_t *config = pass->config;
  int64_t width = attention_qkv_width(config);
  op_attention_bwd_t op = {.batch = pass->batch, .q_len = pass->q_len, .heads = config->heads};
  op.kv_heads = config->kv_heads, op.head_dim = config->head_dim;
  op.window = config_layer_window(config, layer), op.scale = attention_scale(config);
  op.sinks = pass->weights->blocks[layer].sinks, op.dsinks = dw->sinks;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.q = acts->qkv, op.ldq = width;
  op.k = block_at(acts->qkv, pass->act_dtype, attention_part(config, 1));
  op.v = block_at(acts->qkv, pass->act_dtype, attention_part(config, 2));
  op.ldkv = width, op.kv_batch = pass->q_len * width;
  op.o = acts->att, op.dout = grads->datt, op.lse = acts->lse;
  op.dq = grads->dqkv;
  op.dk = block_at(grads->dqkv, pass->act_dtype, attention_part(config, 1));
  op.dv = block_at(grads->dqkv, pass->act_dtype, attention_part(config, 2));
  return PASS_RUN(pass, attention_bwd, op);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static linear_t attention_output(const pass_t *pass, const block_weights_t *w) {
  const nn_model_config_t *config = pass->config;
  return (linear_t){.in = latent_values_width(config),
                    .out = config->hidden,
                    .w = w->o,
                    .bias = w->o_bias,
                    .alpha = config->residual_scale};
}

nn_status_t attention_forward(const pass_t *pass, int64_t layer, const void *x,
                              block_acts_t *acts) {
  linear_t output = attention_output(pass, &pass->weights->blocks[layer]);
  const void *values = acts->att;
  STATUS_TRY(attention_project(pass, layer, x, acts));
  STATUS_TRY(attention_run(pass, layer, acts));
  if (pass->config->kv_rank) {
    STATUS_TRY(latent_values(pass, acts));
    values = acts->latent.values;
  }
  return linear_forward(pass, &output, values, x, acts->mid);
}

nn_status_t attention_backward(const pass_t *pass, int64_t layer, const block_acts_t *acts,
                               const block_grads_t *grads, const block_weights_t *dw) {
  const block_weights_t *w = &pass->weights->blocks[layer];
  linear_t output = attention_output(pass, w);
  if (pass->config->kv_rank) {
    STATUS_TRY(linear_weight_bwd(pass, &output, acts->latent.values, grads->d, dw->o, dw->o_bias));
    STATUS_TRY(linear_input_bwd(pass, &output, grads->d, grads->latent.values, false, NULL));
    STATUS_TRY(latent_values_backward(pass, grads));
    STATUS_TRY(attention_run_backward(pass, layer, acts, grads, dw));
    return latent_project_backward(pass, w, acts, grads, dw);
  }
  STATUS_TRY(linear_weight_bwd(pass, &output, acts->att, grads->d, dw->o, dw->o_bias));
  STATUS_TRY(linear_input_bwd(pass, &output, grads->d, grads->datt, false, NULL));
  STATUS_TRY(attention_run_backward(pass, layer, acts, grads, dw));
  op_rope_t rope = attention_rope(pass, grads->dqkv, 1);
  if (rope.n) STATUS_TRY(PASS_RUN(pass, rope, rope));
  return attention_project_backward(pass, w, acts, grads, dw);
}
