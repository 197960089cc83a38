/* Routing and experts on a CPU. */
#include <stdio.h>

#include "ops.h"

typedef struct mixture {
  int64_t n, hidden, ffn, experts, top_k;
  int32_t dtype;
} mixture_t;

static const mixture_t mixtures[] = {{4096, 192, 384, 8, 2, NN_F32},
                                     {512, 768, 1536, 16, 4, NN_F32},
                                     {512, 768, 1536, 16, 4, NN_BF16}};

static void mixture_name(const mixture_t *m, const char *what, char name[OPS_NAME]) {
  snprintf(name, OPS_NAME, "%s %s %d tokens, %d of %d, %dx%d", what, ops_dtype(m->dtype), (int)m->n,
           (int)m->top_k, (int)m->experts, (int)m->ffn, (int)m->hidden);
}

static op_route_t mixture_route(ops_t *ops, const mixture_t *m) {
  int64_t slots = m->n * m->top_k;
  float *stats = ops_take(ops, 2 * m->experts + 1);
  op_route_t op = {.n = m->n, .hidden = m->hidden, .experts = m->experts, .top_k = m->top_k};
  op.x = ops_take_as(ops, m->n * m->hidden, m->dtype);
  op.weight_dtype = op.act_dtype = m->dtype;
  op.w = ops_take_as(ops, m->experts * m->hidden, m->dtype);
  op.out = (routing_t){.expert = ops_take_ints(ops, slots), .weight = ops_take(ops, slots)};
  op.out.offset = ops_take_ints(ops, m->experts + 1);
  op.out.row_slot = ops_take_ints(ops, slots), op.out.slot_row = ops_take_ints(ops, slots);
  op.prob = ops_take(ops, m->n * m->experts), op.lse = ops_take(ops, m->n);
  op.share = stats, op.mean_prob = stats + m->experts, op.mean_lse2 = stats + 2 * m->experts;
  TRY(ops->backend->route(ops->place, &op, ops->scratch));
  return op;
}

static void mixture_routing(ops_t *ops, const mixture_t *m) {
  char name[OPS_NAME];
  op_route_t op = mixture_route(ops, m);
  bench_work_t work = ops_moved(ops, 4.0 * (double)(m->n * m->hidden), false);
  snprintf(name, sizeof name, "route %d tokens, %d of %d, hidden %d", (int)m->n, (int)m->top_k,
           (int)m->experts, (int)m->hidden);
  RUN(ops, name, route, op, work);
  op_route_bwd_t back = {.n = m->n, .hidden = m->hidden, .experts = m->experts};
  back.top_k = m->top_k, back.x = op.x, back.w = op.w, back.routing = op.out;
  back.weight_dtype = back.act_dtype = m->dtype;
  back.prob = op.prob, back.lse = op.lse, back.aux_share = op.share;
  back.dweight = ops_take(ops, m->n * m->top_k), back.aux_scale = 0.1f, back.z_scale = 0.01f;
  back.dx = ops_take(ops, m->n * m->hidden), back.dw = ops_take(ops, m->experts * m->hidden);
  snprintf(name, sizeof name, "route backward %d tokens, %d of %d, hidden %d", (int)m->n,
           (int)m->top_k, (int)m->experts, (int)m->hidden);
  RUN(ops, name, route_bwd, back, ops_moved(ops, 12.0 * (double)(m->n * m->hidden), true));
  op.router = (op_router_t){.score = NN_SCORE_SIGMOID, .groups = 4, .top_groups = 2};
  op.router.group_score = NN_GROUP_TOP2;
  op.router.choice_bias = ops_take_as(ops, m->experts, m->dtype);
  snprintf(name, sizeof name, "route %d tokens, %d of %d in groups, hidden %d", (int)m->n,
           (int)m->top_k, (int)m->experts, (int)m->hidden);
  RUN(ops, name, route, op, work);
  ops_drop(ops);
}

static op_experts_t mixture_experts(ops_t *ops, const mixture_t *m, const op_route_t *route) {
  int64_t size = m->ffn * m->hidden, slots = m->n * m->top_k;
  size_t element = nn_dtype_bytes(m->dtype);
  char *w = ops_take_as(ops, 3 * m->experts * size, m->dtype);
  op_experts_t op = {.n = m->n, .hidden = m->hidden, .ffn = m->ffn, .experts = m->experts};
  op.top_k = m->top_k, op.weight_dtype = op.act_dtype = m->dtype;
  op.x = op.residual = route->x;
  op.routing = route->out, op.gate = w, op.up = w + (size_t)size * element;
  op.down = w + 2 * (size_t)size * element, op.expert_stride = 3 * size;
  op.pre = ops_take(ops, slots * 2 * m->ffn), op.out = ops_take(ops, m->n * m->hidden);
  return op;
}

/* Backward leaves other numbers in pre from call to call; its time does not depend on them. */
static void mixture_backward(ops_t *ops, const mixture_t *m, const op_experts_t *op) {
  char name[OPS_NAME];
  int64_t size = m->ffn * m->hidden, slots = m->n * m->top_k;
  float *dw = ops_take(ops, 3 * m->experts * size);
  op_experts_bwd_t back = {.n = m->n, .hidden = m->hidden, .ffn = m->ffn, .experts = m->experts};
  back.top_k = m->top_k, back.weight_dtype = back.act_dtype = m->dtype;
  back.x = op->x, back.routing = op->routing;
  back.gate = op->gate, back.up = op->up, back.down = op->down;
  back.expert_stride = op->expert_stride, back.pre = op->pre;
  back.dout = ops_take_as(ops, m->n * m->hidden, m->dtype), back.dx = op->out;
  back.dweight = ops_take(ops, slots);
  back.dgate = dw, back.dup = dw + size, back.ddown = dw + 2 * size;
  mixture_name(m, "experts backward", name);
  RUN(ops, name, experts_bwd, back, ops_flops(ops, 12.0 * (double)(slots * size), m->dtype));
}

/* What comes behind attention in serving. */
static void mixture_all(ops_t *ops, const mixture_t *m, const op_route_t *route,
                        const op_experts_t *experts, bench_work_t work) {
  char name[OPS_NAME];
  op_moe_t op = {.norm = {.n = m->n, .hidden = m->hidden, .eps = 1e-5f}};
  op.norm.weight_dtype = op.norm.act_dtype = m->dtype, op.norm.x = route->x;
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
    if (mixtures[i].dtype == NN_F32) mixture_routing(ops, &mixtures[i]);
  }
  mixture_loss(ops);
}
