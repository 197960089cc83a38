#include "model/ffn.h"

#include "model/config.h"
#include "model/linear.h"

/* ---- activations ----------------------------------------------------------------------------- */

/* Whether a layer (or with BLOCK_ANY_LAYER some layer) has experts, or a dense network. */
static bool ffn_has_experts(const nn_model_config_t *config, int64_t layer) {
  if (layer == BLOCK_ANY_LAYER) return config_sparse_layers(config) > 0;
  return !config_layer_is_dense(config, layer);
}
static bool ffn_has_dense(const nn_model_config_t *config, int64_t layer) {
  if (layer == BLOCK_ANY_LAYER) return config_sparse_layers(config) < config->layers;
  return config_layer_is_dense(config, layer);
}

static bool ffn_is_gated(const nn_model_config_t *config) {
  return config->ffn_kind != NN_FFN_GELU_TANH;
}

/* Widest row inside a dense or shared network, of those that a layer has. */
static int64_t ffn_widest(const nn_model_config_t *config, int64_t layer) {
  int64_t dense = ffn_has_dense(config, layer) ? config_dense_ffn(config) : 0;
  int64_t shared = ffn_has_experts(config, layer) ? config->shared_ffn : 0;
  return dense > shared ? dense : shared;
}

void ffn_acts_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int64_t layer,
                   block_acts_t *acts) {
  const size_t f = sizeof(float);
  int64_t nk = n * config->top_k;
  if (!ffn_has_experts(config, layer)) return;
  acts->routing.expert = arena_take(arena, 1, nk, sizeof(int32_t));
  acts->routing.weight = arena_take(arena, 1, nk, f);
  acts->routing.offset = arena_take(arena, 1, config->experts + 1, sizeof(int32_t));
  acts->routing.row_slot = arena_take(arena, 1, nk, sizeof(int32_t));
  acts->routing.slot_row = arena_take(arena, 1, nk, sizeof(int32_t));
  acts->prob = arena_take(arena, n, config->experts, f);
  acts->router_lse = arena_take(arena, 1, n, f);
  if (config->shared_gate) acts->shared_gate = arena_take(arena, 1, n, f);
}

/* What a gated network gives is read by the next product alone, and made again for backward: it
 * lies where its gradient will. */
void ffn_acts_take_inside(arena_t *arena, const nn_model_config_t *config, int64_t n,
                          int32_t act_dtype, int64_t layer, const block_grads_t *grads,
                          block_acts_t *acts) {
  const size_t a = nn_dtype_bytes(act_dtype);
  int64_t widest = ffn_widest(config, layer);
  bool gated = ffn_is_gated(config);
  acts->expert_pre = acts->pre = acts->post = NULL;
  if (grads && ffn_has_experts(config, layer))
    acts->expert_pre = arena_take(arena, n * config->top_k, 2 * config->ffn, a);
  if (!widest) return;
  if (grads || gated) acts->pre = arena_take(arena, n, gated ? 2 * widest : widest, a);
  acts->post = grads && gated ? grads->dpost : arena_take(arena, n, widest, a);
}

void ffn_grads_take(arena_t *arena, const nn_model_config_t *config, int64_t n, int32_t act_dtype,
                    block_grads_t *grads) {
  int64_t widest = ffn_widest(config, BLOCK_ANY_LAYER);
  if (ffn_has_experts(config, BLOCK_ANY_LAYER))
    grads->dweight = arena_take(arena, n, config->top_k, sizeof(float));
  if (config->shared_gate) grads->dshared_gate = arena_take(arena, 1, n, sizeof(float));
  if (widest) grads->dpost = arena_take(arena, n, widest, nn_dtype_bytes(act_dtype));
}

/* ---- gated networks: dense layers and shared experts ----------------------------------------- */

/* down(weight act(gate x, up x)): the first product gives both. */
typedef struct gated {
  int64_t width;
  linear_t inside, down;
  float limit;
  const float *weight; /* [n] or NULL */
} gated_t;

static gated_t gated_make(const pass_t *pass, int64_t width, const void *gate, const void *down) {
  const nn_model_config_t *config = pass->config;
  gated_t net = {.width = width, .limit = config->swiglu_limit};
  net.inside = (linear_t){.in = config->hidden, .out = 2 * width, .w = gate};
  net.down = (linear_t){.in = width, .out = config->hidden, .w = down};
  net.down.alpha = config->residual_scale;
  return net;
}

static gated_t gated_dense(const pass_t *pass, const block_weights_t *w) {
  gated_t net = gated_make(pass, config_dense_ffn(pass->config), w->dense_gate_up, w->dense_down);
  net.inside.bias = w->dense_gate_up_bias, net.down.bias = w->dense_down_bias;
  return net;
}

static gated_t gated_shared(const pass_t *pass, const block_weights_t *w,
                            const block_acts_t *acts) {
  gated_t net = gated_make(pass, pass->config->shared_ffn, w->shared_gate_up, w->shared_down);
  net.weight = acts->shared_gate;
  return net;
}

static nn_status_t gated_inside(const pass_t *pass, const gated_t *net, const block_acts_t *acts) {
  return linear_forward(pass, &net->inside, acts->y2, NULL, acts->pre);
}

/* out = residual + the network of y2; out NULL: pre is all. */
static nn_status_t gated_forward(const pass_t *pass, const gated_t *net, const void *residual,
                                 void *out, const block_acts_t *acts) {
  STATUS_TRY(gated_inside(pass, net, acts));
  if (!out) return NN_OK;
  op_glu_t glu = {.n = pass_rows(pass), .ffn = net->width, .limit = net->limit};
  glu.act_dtype = pass->act_dtype, glu.weight = net->weight;
  glu.x = acts->pre, glu.y = acts->post;
  STATUS_TRY(PASS_RUN(pass, glu, glu));
  return linear_forward(pass, &net->down, acts->post, residual, out);
}

/* Turns dpost into what forward gave, and pre into its gradient; adds to dy or assigns it. */
static nn_status_t gated_backward(const pass_t *pass, const gated_t *net, const block_acts_t *acts,
                                  const block_grads_t *grads, float *dgate, float *dgate_bias,
                                  float *ddown, float *ddown_bias, bool adds) {
  STATUS_TRY(linear_input_bwd(pass, &net->down, grads->d, grads->dpost, false, NULL));
  op_glu_bwd_t glu = {.n = pass_rows(pass), .ffn = net->width, .limit = net->limit};
  glu.act_dtype = pass->act_dtype, glu.weight = net->weight;
  glu.x = acts->pre, glu.dx = acts->pre, glu.dy = grads->dpost, glu.y = grads->dpost;
  glu.dweight = net->weight ? grads->dshared_gate : NULL;
  STATUS_TRY(PASS_RUN(pass, glu_bwd, glu));
  STATUS_TRY(linear_weight_bwd(pass, &net->down, grads->dpost, grads->d, ddown, ddown_bias));
  STATUS_TRY(linear_weight_bwd(pass, &net->inside, acts->y2, acts->pre, dgate, dgate_bias));
  return linear_input_bwd(pass, &net->inside, acts->pre, grads->dy, adds, NULL);
}

/* ---- the shared expert ----------------------------------------------------------------------- */

/* out += the shared expert of y2. */
static nn_status_t shared_forward(const pass_t *pass, int64_t layer, void *out,
                                  const block_acts_t *acts) {
  const block_weights_t *w = &pass->weights->blocks[layer];
  if (!pass->config->shared_ffn) return NN_OK;
  if (acts->shared_gate) {
    op_row_gate_t op = {.n = pass_rows(pass), .width = pass->config->hidden, .x = acts->y2};
    op.w = w->shared_expert_gate, op.gate = acts->shared_gate;
    op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
    STATUS_TRY(PASS_RUN(pass, row_gate, op));
  }
  gated_t net = gated_shared(pass, w, acts);
  return gated_forward(pass, &net, out, out, acts);
}

/* Adds to dy. */
static nn_status_t shared_backward(const pass_t *pass, int64_t layer, const block_acts_t *acts,
                                   const block_grads_t *grads, const block_weights_t *dw) {
  const block_weights_t *w = &pass->weights->blocks[layer];
  if (!pass->config->shared_ffn) return NN_OK;
  gated_t net = gated_shared(pass, w, acts);
  STATUS_TRY(gated_backward(pass, &net, acts, grads, dw->shared_gate_up, NULL, dw->shared_down,
                            NULL, true));
  if (!acts->shared_gate) return NN_OK;
  op_row_gate_bwd_t op = {.n = pass_rows(pass), .width = pass->config->hidden, .x = acts->y2};
  op.w = w->shared_expert_gate, op.gate = acts->shared_gate, op.dgate = grads->dshared_gate;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.dx = grads->dy, op.dw = dw->shared_expert_gate;
  return PASS_RUN(pass, row_gate_bwd, op);
}

/* ---- routed experts -------------------------------------------------------------------------- */

/* The scale of the residual stream is a factor of experts' weights, like the router's own. */
static op_router_t experts_router(const pass_t *pass, const block_weights_t *w) {
  const nn_model_config_t *config = pass->config;
  op_router_t router = {.score = config->router_score, .norm = config->router_norm};
  router.group_score = config->router_group_score;
  router.groups = config->router_groups, router.top_groups = config->router_top_groups;
  router.scale = backend_factor(config->router_scale) * backend_factor(config->residual_scale);
  router.eps = config->router_eps;
  router.bias = w->router_bias, router.choice_bias = w->choice_bias;
  return router;
}

/* The experts of tokens that are routed already; out NULL: expert_pre alone. */
static op_experts_t experts_op(const pass_t *pass, int64_t layer, void *out,
                               const block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  op_experts_t op = {.n = pass_rows(pass), .hidden = config->hidden, .ffn = config->ffn};
  op.experts = config->experts, op.top_k = config->top_k, op.limit = config->swiglu_limit;
  op.x = acts->y2, op.routing = acts->routing;
  op.gate = w->gate, op.up = w->up, op.down = w->down;
  op.expert_stride = pass->weights->expert_stride;
  op.interleaved = pass->weights->interleaved;
  op.gate_bias = w->gate_bias, op.up_bias = w->up_bias, op.down_bias = w->down_bias;
  op.bias_stride = pass->weights->expert_bias_stride;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.pre = acts->expert_pre, op.residual = acts->mid, op.out = out;
  return op;
}

/* norm: from mid to y2. */
static nn_status_t experts_forward(const pass_t *pass, int64_t layer, const op_norm_t *norm,
                                   void *out, const block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  op_route_t route = {.n = pass_rows(pass), .hidden = config->hidden};
  route.experts = config->experts, route.top_k = config->top_k, route.capacity = pass->capacity;
  route.x = acts->y2, route.w = w->router, route.router = experts_router(pass, w);
  route.weight_dtype = pass->weight_dtype, route.act_dtype = pass->act_dtype;
  route.out = acts->routing, route.prob = acts->prob, route.lse = acts->router_lse;
  route.share = pass->router[layer].share, route.mean_prob = pass->router[layer].mean_prob;
  route.mean_lse2 = pass->router[layer].mean_lse2;
  if (out) {
    route.stat_count = pass->stat_count + layer * (config->experts + 1);
    route.stat_prob = pass->stat_prob + layer * config->experts;
  }
  op_moe_t all = {*norm, route, experts_op(pass, layer, out, acts)};
  return PASS_RUN(pass, moe, all);
}

/* Assigns dy. */
static nn_status_t experts_backward(const pass_t *pass, int64_t layer, const block_acts_t *acts,
                                    const block_grads_t *grads, const block_weights_t *dw,
                                    const router_loss_t *loss) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  op_experts_bwd_t op = {.n = pass_rows(pass), .hidden = config->hidden, .ffn = config->ffn};
  op.experts = config->experts, op.top_k = config->top_k, op.limit = config->swiglu_limit;
  op.x = acts->y2, op.routing = acts->routing;
  op.gate = w->gate, op.up = w->up, op.down = w->down;
  op.expert_stride = pass->weights->expert_stride;
  op.interleaved = pass->weights->interleaved;
  op.down_bias = w->down_bias, op.bias_stride = pass->weights->expert_bias_stride;
  op.weight_dtype = pass->weight_dtype, op.act_dtype = pass->act_dtype;
  op.pre = acts->expert_pre, op.dout = grads->d, op.dx = grads->dy, op.dweight = grads->dweight;
  op.dgate = dw->gate, op.dup = dw->up, op.ddown = dw->down;
  op.dgate_bias = dw->gate_bias, op.dup_bias = dw->up_bias, op.ddown_bias = dw->down_bias;
  op.assign = pass->assign;
  STATUS_TRY(PASS_RUN(pass, experts_bwd, op));
  op_route_bwd_t route = {.n = op.n, .hidden = config->hidden, .experts = config->experts};
  route.top_k = config->top_k;
  route.x = acts->y2, route.w = w->router, route.router = experts_router(pass, w);
  route.weight_dtype = pass->weight_dtype, route.act_dtype = pass->act_dtype;
  route.routing = acts->routing, route.prob = acts->prob, route.lse = acts->router_lse;
  route.dweight = grads->dweight;
  route.aux_share = loss->aux_share, route.aux_scale = loss->aux_scale;
  route.z_scale = loss->z_scale;
  route.dx = grads->dy, route.dw = dw->router, route.dbias = dw->router_bias;
  return PASS_RUN(pass, route_bwd, route);
}

/* ---- proj(gelu(fc(x))) ----------------------------------------------------------------------- */

static linear_t plain_fc(const pass_t *pass, const block_weights_t *w) {
  return (linear_t){
      .in = pass->config->hidden, .out = pass->config->ffn, .w = w->fc, .bias = w->fc_bias};
}
static linear_t plain_proj(const pass_t *pass, const block_weights_t *w) {
  return (linear_t){.in = pass->config->ffn,
                    .out = pass->config->hidden,
                    .w = w->proj,
                    .bias = w->proj_bias,
                    .alpha = pass->config->residual_scale};
}

/* post = gelu(fc(y2)). */
static nn_status_t plain_inside(const pass_t *pass, int64_t layer, const block_acts_t *acts) {
  linear_t fc = plain_fc(pass, &pass->weights->blocks[layer]);
  op_matmul_t op = {.m = pass_rows(pass), .n = fc.out, .k = fc.in, .trans_b = 1};
  op.a = acts->y2, op.lda = fc.in, op.a_dtype = pass->act_dtype;
  op.b = fc.w, op.ldb = fc.in, op.b_dtype = pass->weight_dtype, op.bias = fc.bias;
  op.d = acts->post, op.ldd = fc.out, op.d_dtype = pass->act_dtype;
  op.epilogue = MATMUL_GELU, op.aux = acts->pre;
  return PASS_RUN(pass, matmul, op);
}

static nn_status_t plain_forward(const pass_t *pass, int64_t layer, void *out,
                                 const block_acts_t *acts) {
  linear_t proj = plain_proj(pass, &pass->weights->blocks[layer]);
  STATUS_TRY(plain_inside(pass, layer, acts));
  if (!out) return NN_OK;
  return linear_forward(pass, &proj, acts->post, acts->mid, out);
}

static nn_status_t plain_backward(const pass_t *pass, int64_t layer, const block_acts_t *acts,
                                  const block_grads_t *grads, const block_weights_t *dw) {
  const block_weights_t *w = &pass->weights->blocks[layer];
  linear_t fc = plain_fc(pass, w), proj = plain_proj(pass, w);
  STATUS_TRY(linear_weight_bwd(pass, &proj, acts->post, grads->d, dw->proj, dw->proj_bias));
  STATUS_TRY(linear_input_bwd(pass, &proj, grads->d, grads->dpost, false, acts->pre));
  STATUS_TRY(linear_weight_bwd(pass, &fc, acts->y2, grads->dpost, dw->fc, dw->fc_bias));
  return linear_input_bwd(pass, &fc, grads->dpost, grads->dy, false, NULL);
}

/* ---- which of them a layer has --------------------------------------------------------------- */

nn_status_t ffn_forward(const pass_t *pass, int64_t layer, void *out, block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  op_norm_t norm = norm_op(pass, pass_rows(pass), acts->mid, w->norm2, w->norm2_bias, acts->y2,
                           acts->mean2, acts->rstd2);
  if (!config_layer_is_dense(config, layer)) {
    STATUS_TRY(experts_forward(pass, layer, &norm, out, acts));
    return shared_forward(pass, layer, out, acts);
  }
  STATUS_TRY(PASS_RUN(pass, norm, norm));
  if (!ffn_is_gated(config)) return plain_forward(pass, layer, out, acts);
  gated_t net = gated_dense(pass, w);
  return gated_forward(pass, &net, acts->mid, out, acts);
}

nn_status_t ffn_again(const pass_t *pass, int64_t layer, block_acts_t *acts) {
  const nn_model_config_t *config = pass->config;
  const block_weights_t *w = &pass->weights->blocks[layer];
  if (!config_layer_is_dense(config, layer)) {
    op_experts_t experts = experts_op(pass, layer, NULL, acts);
    STATUS_TRY(PASS_RUN(pass, experts, experts));
    if (!config->shared_ffn) return NN_OK;
    gated_t shared = gated_shared(pass, w, acts);
    return gated_inside(pass, &shared, acts);
  }
  if (!ffn_is_gated(config)) return plain_inside(pass, layer, acts);
  gated_t net = gated_dense(pass, w);
  return gated_inside(pass, &net, acts);
}

nn_status_t ffn_backward(const pass_t *pass, int64_t layer, const block_acts_t *acts,
                         const block_grads_t *grads, const block_weights_t *dw,
                         const router_loss_t *loss) {
  const nn_model_config_t *config = pass->config;
  if (!config_layer_is_dense(config, layer)) {
    STATUS_TRY(experts_backward(pass, layer, acts, grads, dw, loss));
    return shared_backward(pass, layer, acts, grads, dw);
  }
  if (!ffn_is_gated(config)) return plain_backward(pass, layer, acts, grads, dw);
  gated_t net = gated_dense(pass, &pass->weights->blocks[layer]);
  return gated_backward(pass, &net, acts, grads, dw->dense_gate_up, dw->dense_gate_up_bias,
                        dw->dense_down, dw->dense_down_bias, false);
}
