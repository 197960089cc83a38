/* Routing and experts on a CPU. */
#include <stdio.h>

#include "ops.h"

typedef struct mixture {
  int64_t n, hidden, ffn, experts, top_k;
  int32_t dtype;
  bool oss; /* as gpt_oss has them: clamped, with biases, rows of gate and up interleaved */
} mixture_t;

static const mixture_t mixtures[] = {
    {4096, 192, 384, 8, 2, NN_F32, false},   {512, 768, 1536, 16, 4, NN_F32, false},
    {512, 768, 1536, 16, 4, NN_BF16, false}, {512, 768, 1536, 16, 4, NN_BF16, true},
    {512, 768, 1536, 16, 4, NN_F16, false},
};

static void mixture_name(const mixture_t *m, const char *what, char name[OPS_NAME]) {
  snprintf(name, OPS_NAME, "%s %s %d tokens, %d of %d, %dx%d%s", what, ops_dtype(m->dtype),
           (int)m->n, (int)m->top_k, (int)m->experts, (int)m->ffn, (int)m->hidden,
           m->oss ? ", clamped, biased, interleaved" : "");
}

static op_route_t mixture_route(ops_t *ops, const mixture_t *m) {
  int64_t slots = m->n * m->top_k;
  float *stats = ops_take(ops, 2 * m->experts + 1);
  op_route_t op = {.n = m->n, .hidden = m->hidden, .experts = m->experts, .top_k = m->top_k};
  op.x = ops_take_as(ops, m->n * m->hidden, ops_act(m->dtype));
  op.weight_dtype = m->dtype, op.act_dtype = ops_act(m->dtype);
  op.w = ops_take_as(ops, m->experts * m->hidden, m->dtype);
  op.out = (routing_t){.expert = ops_take_ints(ops, slots), .weight = ops_take(ops, slots)};
  op.out.offset = ops_take_ints(ops, m->experts + 1);
  op.out.row_slot = ops_take_ints(ops, slots), op.out.slot_row = ops_take_ints(ops, slots);
  op.prob = ops_take(ops, m->n * m->experts), op.lse = ops_take(ops, m->n);
  op.share = stats, op.mean_prob = stats + m->experts, op.mean_lse2 = stats + 2 * m->experts;
  TRY(ops->backend->route(ops->place, &op, ops->scratch));
  return op;
}

static void mixture_route_line(ops_t *ops, const mixture_t *m, const char *how,
                               const op_route_t *op) {
  char name[OPS_NAME];
  double x = (double)(m->n * m->hidden) * (double)nn_dtype_bytes(op->act_dtype);
  snprintf(name, sizeof name, "route %d tokens, %d of %d%s, hidden %d%s", (int)m->n, (int)m->top_k,
           (int)m->experts, how, (int)m->hidden, ops_tail(m->dtype));
  RUN(ops, name, route, *op, ops_moved(ops, x, false));
}

/* x is read and dx changed, for a router that has just chosen. */
static void mixture_route_back(ops_t *ops, const mixture_t *m, const char *how,
                               const op_route_t *op) {
  char name[OPS_NAME];
  double x = (double)(m->n * m->hidden) * (double)nn_dtype_bytes(op->act_dtype);
  op_route_bwd_t back = {.n = m->n, .hidden = m->hidden, .experts = m->experts};
  back.top_k = m->top_k, back.x = op->x, back.w = op->w, back.routing = op->out;
  back.weight_dtype = op->weight_dtype, back.act_dtype = op->act_dtype, back.router = op->router;
  back.prob = op->prob, back.lse = op->lse, back.aux_share = op->share;
  back.dweight = ops_take(ops, m->n * m->top_k), back.aux_scale = 0.1f, back.z_scale = 0.01f;
  back.dx = ops_take_as(ops, m->n * m->hidden, op->act_dtype);
  back.dw = ops_take(ops, m->experts * m->hidden);
  snprintf(name, sizeof name, "route backward %d tokens, %d of %d%s, hidden %d%s", (int)m->n,
           (int)m->top_k, (int)m->experts, how, (int)m->hidden, ops_tail(m->dtype));
  RUN(ops, name, route_bwd, back, ops_moved(ops, 3 * x, true));
}

static void mixture_routing(ops_t *ops, const mixture_t *m) {
  op_route_t op = mixture_route(ops, m);
  mixture_route_line(ops, m, "", &op);
  mixture_route_back(ops, m, "", &op);
  if (m->top_k == 2) {
    static const char how[] = " by the sparse mixer";
    op.router = (op_router_t){.score = NN_SCORE_SPARSE_MIXER, .eps = 0.01f};
    op.router.norm = NN_ROUTER_NORM_NONE;
    TRY(ops->backend->route(ops->place, &op, ops->scratch));
    mixture_route_line(ops, m, how, &op);
    mixture_route_back(ops, m, how, &op);
  }
  op.router = (op_router_t){.score = NN_SCORE_SIGMOID, .groups = 4, .top_groups = 2};
  op.router.group_score = NN_GROUP_TOP2;
  op.router.choice_bias = ops_take_as(ops, m->experts, m->dtype);
  mixture_route_line(ops, m, " in groups", &op);
  ops_drop(ops);
}

static op_experts_t mixture_experts(ops_t *ops, const mixture_t *m, const op_route_t *route) {
  int64_t size = m->ffn * m->hidden, slots = m->n * m->top_k;
  void *w = ops_take_as(ops, 3 * m->experts * size, m->dtype);
  op_experts_t op = {.n = m->n, .hidden = m->hidden, .ffn = m->ffn, .experts = m->experts};
  op.top_k = m->top_k, op.weight_dtype = m->dtype, op.act_dtype = ops_act(m->dtype);
  op.x = op.residual = route->x, op.routing = route->out, op.expert_stride = 3 * size;
  op.gate = w, op.up = ops_at(w, m->oss ? m->hidden : size, m->dtype);
  op.down = ops_at(w, 2 * size, m->dtype);
  if (m->oss) {
    void *bias = ops_take_as(ops, m->experts * (2 * m->ffn + m->hidden), m->dtype);
    op.limit = 7, op.interleaved = 1, op.bias_stride = 2 * m->ffn + m->hidden;
    op.gate_bias = bias, op.up_bias = ops_at(bias, 1, m->dtype);
    op.down_bias = ops_at(bias, 2 * m->ffn, m->dtype);
  }
  op.pre = ops_take(ops, slots * 2 * m->ffn), op.out = ops_take(ops, m->n * m->hidden);
  return op;
}

/* Backward leaves other numbers in pre from call to call; its time does not depend on them. */
static void mixture_backward(ops_t *ops, const mixture_t *m, const op_experts_t *op) {
  char name[OPS_NAME];
  int64_t size = m->ffn * m->hidden, slots = m->n * m->top_k;
  float *dw = ops_take(ops, 3 * m->experts * size);
  op_experts_bwd_t back = {.n = m->n, .hidden = m->hidden, .ffn = m->ffn, .experts = m->experts};
  back.top_k = m->top_k, back.weight_dtype = m->dtype, back.act_dtype = op->act_dtype;
  back.x = op->x, back.routing = op->routing;
  back.gate = op->gate, back.up = op->up, back.down = op->down;
  back.expert_stride = op->expert_stride, back.pre = op->pre;
  back.dout = ops_take_as(ops, m->n * m->hidden, op->act_dtype), back.dx = op->out;
  back.dweight = ops_take(ops, slots);
  back.dgate = dw, back.dup = dw + (m->oss ? m->hidden : size), back.ddown = dw + 2 * size;
  if (m->oss) {
    back.limit = op->limit, back.interleaved = 1;
    back.down_bias = op->down_bias, back.bias_stride = op->bias_stride;
    back.dgate_bias = ops_take(ops, m->experts * op->bias_stride);
    back.dup_bias = back.dgate_bias + 1, back.ddown_bias = back.dgate_bias + 2 * m->ffn;
  }
  mixture_name(m, "experts backward", name);
  RUN(ops, name, experts_bwd, back, ops_flops(ops, 12.0 * (double)(slots * size), m->dtype));
}

/* What comes behind attention in serving. */
static void mixture_all(ops_t *ops, const mixture_t *m, const op_route_t *route,
                        const op_experts_t *experts, bench_work_t work) {
  char name[OPS_NAME];
  op_moe_t op = {.norm = {.n = m->n, .hidden = m->hidden, .eps = 1e-5f}};
  op.norm.weight_dtype = m->dtype, op.norm.act_dtype = route->act_dtype, op.norm.x = route->x;
  op.norm.w = ops_take_as(ops, m->hidden, m->dtype);
  op.norm.y = ops_take(ops, m->n * m->hidden);
  op.route = *route, op.route.x = op.norm.y;
  op.experts = *experts, op.experts.x = op.norm.y, op.experts.pre = NULL;
  mixture_name(m, "norm, route, experts", name);
  RUN(ops, name, moe, op, work);
}

static void mixture_run(ops_t *ops, const mixture_t *m) {
  char name[OPS_NAME];
  op_route_t route = mixture_route(ops, m);
  op_experts_t op = mixture_experts(ops, m, &route);
  double flops = 6.0 * (double)(m->n * m->top_k) * (double)(m->ffn * m->hidden);
  bench_work_t work = ops_flops(ops, flops, m->dtype);
  mixture_name(m, "experts", name);
  RUN(ops, name, experts, op, work);
  mixture_all(ops, m, &route, &op, work);
  mixture_backward(ops, m, &op);
  ops_drop(ops);
}

static void mixture_loss(ops_t *ops) {
  enum { LAYERS = 30, EXPERTS = 16 };
  op_router_loss_t op = {.layers = LAYERS, .experts = EXPERTS, .top_k = 4};
  op.stats = ops_take(ops, LAYERS * (2 * EXPERTS + 1)), op.mean_share = ops_take(ops, EXPERTS);
  op.loss = (double *)(void *)ops_take(ops, 4);
  RUN(ops, "router losses of 30 layers of 16 experts", router_loss, op, (bench_work_t){0});
  ops_drop(ops);
}

void ops_mixtures(ops_t *ops) {
  for (size_t i = 0; i < sizeof mixtures / sizeof *mixtures; i++) {
    mixture_run(ops, &mixtures[i]);
    if (mixtures[i].dtype != NN_F16 && !mixtures[i].oss) mixture_routing(ops, &mixtures[i]);
  }
  mixture_loss(ops);
}
