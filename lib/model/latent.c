#include "model/latent.h"

#include "model/config.h"
#include "model/linear.h"

/* The published models have this one whatever the others' is. */
static const float latent_norm_eps = 1e-6f;

/* Elements of a query or key that carry no position. */
static int64_t latent_nope(const nn_model_config_t *config) {
  return config->head_dim - config->rope_head_dim;
}

static int64_t latent_kv_a_width(const nn_model_config_t *config) {
  return config->kv_rank + config->rope_head_dim;
}

/* Of one head's key and value. */
static int64_t latent_kv_step(const nn_model_config_t *config) {
  return latent_nope(config) + config_value_dim(config);
}

static int64_t latent_q_width(const nn_model_config_t *config) {
  return config->heads * config->head_dim;
}

/* Rows of queries, keys and values, which are all as wide. */
static int64_t latent_row(const nn_model_config_t *config) { return 3 * latent_q_width(config); }

int64_t latent_values_width(const nn_model_config_t *config) {
  return config->heads * (config->kv_rank ? config_value_dim(config) : config->head_dim);
}

void latent_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                 bool backward, latent_t *latent) {
  const size_t f = sizeof(float), a = nn_dtype_bytes(act_dtype);
  if (config->q_rank) {
    latent->q_a = arena_take(arena, n, config->q_rank, a);
    latent->q_c = arena_take(arena, n, config->q_rank, a);
    if (backward) latent->q_rstd = arena_take(arena, 1, n, f);
  }
  latent->kv_a = arena_take(arena, n, latent_kv_a_width(config), a);
  latent->kv_c = arena_take(arena, n, config->kv_rank, a);
  if (backward) latent->kv_rstd = arena_take(arena, 1, n, f);
  latent->kv = arena_take(arena, n, config->heads * latent_kv_step(config), a);
  latent->values = arena_take(arena, n, latent_values_width(config), a);
}

/* ---- the layers ------------------------------------------------------------------------------ */

static linear_t latent_q_a(const pass_t *pass, const block_weights_t *w) {
  const nn_model_config_t *config = pass->config;
  return (linear_t){.in = config->hidden, .out = config->q_rank, .w = w->q_a};
}

/* From q_c, or from y1, to the queries of a row of qkv. */
static linear_t latent_q(const pass_t *pass, const block_weights_t *w) {
  const nn_model_config_t *config = pass->config;
  return (linear_t){.in = config->q_rank ? config->q_rank : config->hidden,
                    .out = latent_q_width(config),
                    .w = config->q_rank ? w->q_b : w->qkv,
                    .ldy = latent_row(config)};
}

static linear_t latent_kv_a(const pass_t *pass, const block_weights_t *w) {
  const nn_model_config_t *config = pass->config;
  return (linear_t){.in = config->hidden, .out = latent_kv_a_width(config), .w = w->kv_a};
}

static linear_t latent_kv_b(const pass_t *pass, const block_weights_t *w) {
  const nn_model_config_t *config = pass->config;
  return (linear_t){
      .in = config->kv_rank, .out = config->heads * latent_kv_step(config), .w = w->kv_b};
}

/* c[n, width] = the norm of the first `width` elements of rows of a, lda apart. */
static nn_status_t latent_norm(const pass_t *pass, int64_t width, const void *a, int64_t lda,
                               const void *w, void *c, float *rstd) {
  op_norm_t op = {.n = pass_rows(pass), .hidden = width, .kind = NN_NORM_RMS};
  op.eps = latent_norm_eps, op.ldx = lda;
  op.x = a, op.w = w, op.y = c, op.rstd = rstd;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  return PASS_RUN(pass, norm, op);
}

/* d: rows lda apart whose first `width` elements are the gradient of c, then that of a. */
static nn_status_t latent_norm_backward(const pass_t *pass, int64_t width, const void *a,
                                        int64_t lda, const void *w, const float *rstd, void *d,
                                        float *dw) {
  op_norm_bwd_t op = {.n = pass_rows(pass), .hidden = width, .kind = NN_NORM_RMS, .assign = 1};
  op.ldx = lda, op.ldy = lda;
  op.x = a, op.dy = d, op.dx = d, op.w = w, op.rstd = rstd, op.dw = dw;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  return PASS_RUN(pass, norm_bwd, op);
}

/* Rotates `heads` heads, step apart, whose parts that carry positions begin at x. */
static nn_status_t latent_rope(const pass_t *pass, void *x, int64_t ldx, int64_t heads,
                               int64_t step, int32_t inverse) {
  const nn_model_config_t *config = pass->config;
  op_rope_t op = {.n = pass_rows(pass), .heads = heads, .head_dim = step};
  op.rotary_dim = config->rope_head_dim, op.interleaved = config->rope_interleaved;
  op.x = x, op.ldx = ldx, op.act_dtype = pass->act_dtype;
  op.position = pass->position, op.table = pass->rope, op.inverse = inverse;
  return PASS_RUN(pass, rope, op);
}

/* One part of every head from rows of x to rows of y. */
static nn_status_t latent_copy(const pass_t *pass, int64_t width, int64_t zeros, const void *x,
                               int64_t ldx, int64_t step_x, void *y, int64_t ldy, int64_t step_y) {
  op_copy_heads_t op = {.n = pass_rows(pass), .heads = pass->config->heads, .width = width};
  op.zeros = zeros, op.act_dtype = pass->act_dtype;
  op.x = x, op.ldx = ldx, op.step_x = step_x;
  op.y = y, op.ldy = ldy, op.step_y = step_y;
  return PASS_RUN(pass, copy_heads, op);
}

/* ---- forward --------------------------------------------------------------------------------- */

nn_status_t latent_project(const pass_t *pass, const block_weights_t *w, block_acts_t *acts) {
  const nn_model_config_t *c = pass->config;
  const latent_t *l = &acts->latent;
  const int32_t dtype = pass->act_dtype;
  int64_t row = latent_row(c), dim = c->head_dim, nope = latent_nope(c);
  int64_t value = config_value_dim(c);
  int64_t across = latent_kv_a_width(c), step = latent_kv_step(c), kv_row = c->heads * step;
  linear_t q = latent_q(pass, w), kv_a = latent_kv_a(pass, w), kv_b = latent_kv_b(pass, w);
  void *shared = block_at(l->kv_a, dtype, c->kv_rank);
  char *keys = block_at(acts->qkv, dtype, latent_q_width(c));
  void *values = block_at(acts->qkv, dtype, 2 * latent_q_width(c));
  if (c->q_rank) {
    linear_t q_a = latent_q_a(pass, w);
    STATUS_TRY(linear_forward(pass, &q_a, acts->y1, NULL, l->q_a));
    STATUS_TRY(latent_norm(pass, c->q_rank, l->q_a, c->q_rank, w->q_a_norm, l->q_c, l->q_rstd));
  }
  STATUS_TRY(linear_forward(pass, &q, c->q_rank ? l->q_c : acts->y1, NULL, acts->qkv));
  STATUS_TRY(latent_rope(pass, block_at(acts->qkv, dtype, nope), row, c->heads, dim, 0));
  STATUS_TRY(linear_forward(pass, &kv_a, acts->y1, NULL, l->kv_a));
  STATUS_TRY(latent_rope(pass, shared, across, 1, c->rope_head_dim, 0));
  STATUS_TRY(latent_norm(pass, c->kv_rank, l->kv_a, across, w->kv_a_norm, l->kv_c, l->kv_rstd));
  STATUS_TRY(linear_forward(pass, &kv_b, l->kv_c, NULL, l->kv));
  STATUS_TRY(latent_copy(pass, nope, 0, l->kv, kv_row, step, keys, row, dim));
  STATUS_TRY(latent_copy(pass, c->rope_head_dim, 0, shared, across, 0, block_at(keys, dtype, nope),
                         row, dim));
  return latent_copy(pass, value, dim - value, block_at(l->kv, dtype, nope), kv_row, step, values,
                     row, dim);
}

nn_status_t latent_values(const pass_t *pass, const block_acts_t *acts) {
  const nn_model_config_t *c = pass->config;
  int64_t value = config_value_dim(c);
  return latent_copy(pass, value, 0, acts->att, latent_q_width(c), c->head_dim,
                     acts->latent.values, latent_values_width(c), value);
}

/* ---- backward -------------------------------------------------------------------------------- */

nn_status_t latent_values_backward(const pass_t *pass, const block_grads_t *grads) {
  const nn_model_config_t *c = pass->config;
  int64_t value = config_value_dim(c);
  return latent_copy(pass, value, c->head_dim - value, grads->latent.values,
                     latent_values_width(c), value, grads->datt, latent_q_width(c), c->head_dim);
}

/* Assigns dy. */
static nn_status_t latent_q_backward(const pass_t *pass, const block_weights_t *w,
                                     const block_acts_t *acts, const block_grads_t *grads,
                                     const block_weights_t *dw) {
  const nn_model_config_t *c = pass->config;
  const latent_t *l = &acts->latent, *d = &grads->latent;
  linear_t q = latent_q(pass, w), q_a = latent_q_a(pass, w);
  STATUS_TRY(latent_rope(pass, block_at(grads->dqkv, pass->act_dtype, latent_nope(c)),
                         latent_row(c), c->heads, c->head_dim, 1));
  if (!c->q_rank) {
    STATUS_TRY(linear_weight_bwd(pass, &q, acts->y1, grads->dqkv, dw->qkv, NULL));
    return linear_input_bwd(pass, &q, grads->dqkv, grads->dy, false, NULL);
  }
  STATUS_TRY(linear_weight_bwd(pass, &q, l->q_c, grads->dqkv, dw->q_b, NULL));
  STATUS_TRY(linear_input_bwd(pass, &q, grads->dqkv, d->q_a, false, NULL));
  STATUS_TRY(latent_norm_backward(pass, c->q_rank, l->q_a, c->q_rank, w->q_a_norm, l->q_rstd,
                                  d->q_a, dw->q_a_norm));
  STATUS_TRY(linear_weight_bwd(pass, &q_a, acts->y1, d->q_a, dw->q_a, NULL));
  return linear_input_bwd(pass, &q_a, d->q_a, grads->dy, false, NULL);
}

/* Adds to dy. */
static nn_status_t latent_kv_backward(const pass_t *pass, const block_weights_t *w,
                                      const block_acts_t *acts, const block_grads_t *grads,
                                      const block_weights_t *dw) {
  const nn_model_config_t *c = pass->config;
  const latent_t *l = &acts->latent, *d = &grads->latent;
  const int32_t dtype = pass->act_dtype;
  int64_t row = latent_row(c), dim = c->head_dim, nope = latent_nope(c);
  int64_t value = config_value_dim(c);
  int64_t across = latent_kv_a_width(c), step = latent_kv_step(c), kv_row = c->heads * step;
  linear_t kv_a = latent_kv_a(pass, w), kv_b = latent_kv_b(pass, w);
  void *shared = block_at(d->kv_a, dtype, c->kv_rank);
  const char *keys = block_at(grads->dqkv, dtype, latent_q_width(c));
  const void *values = block_at(grads->dqkv, dtype, 2 * latent_q_width(c));
  STATUS_TRY(latent_copy(pass, nope, 0, keys, row, dim, d->kv, kv_row, step));
  STATUS_TRY(latent_copy(pass, value, 0, values, row, dim, block_at(d->kv, dtype, nope), kv_row,
                         step));
  STATUS_TRY(latent_copy(pass, c->rope_head_dim, 0, block_at(keys, dtype, nope), row, dim, shared,
                         across, 0));
  STATUS_TRY(latent_rope(pass, shared, across, 1, c->rope_head_dim, 1));
  STATUS_TRY(linear_weight_bwd(pass, &kv_b, l->kv_c, d->kv, dw->kv_b, NULL));
  kv_b.ldx = across; /* its gradient goes to the first part of kv_a's */
  STATUS_TRY(linear_input_bwd(pass, &kv_b, d->kv, d->kv_a, false, NULL));
  STATUS_TRY(latent_norm_backward(pass, c->kv_rank, l->kv_a, across, w->kv_a_norm, l->kv_rstd,
                                  d->kv_a, dw->kv_a_norm));
  STATUS_TRY(linear_weight_bwd(pass, &kv_a, acts->y1, d->kv_a, dw->kv_a, NULL));
  return linear_input_bwd(pass, &kv_a, d->kv_a, grads->dy, true, NULL);
}

nn_status_t latent_project_backward(const pass_t *pass, const block_weights_t *w,
                                    const block_acts_t *acts, const block_grads_t *grads,
                                    const block_weights_t *dw) {
  STATUS_TRY(latent_q_backward(pass, w, acts, grads, dw));
  return latent_kv_backward(pass, w, acts, grads, dw);
}
