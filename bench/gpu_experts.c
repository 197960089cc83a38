/* Routing and experts on a GPU: training on 16384 tokens, routing on four times as many too, which
 * no cache holds, and decoding of 32 and of 1. */
#include <stdio.h>

#include "gpu.h"

typedef struct mixture_case {
  const char *what; /* begins with ", " */
  int64_t hidden, ffn, experts, top_k;
  int32_t dtype;
  float limit;
  int32_t biased, interleaved;
} mixture_case_t;

/* moe-6.9b's, and gpt_oss's; a layer's weights exceed the L2 cache. */
static const mixture_case_t mixture_cases[] = {
    {"", 768, 6144, 16, 4, NN_BF16, 0, 0, 0},
    {", fp16", 768, 6144, 16, 4, NN_F16, 0, 0, 0},
    {", clamped and biased", 768, 6144, 16, 4, NN_BF16, 7, 1, 0},
    {", as gpt_oss has them", 2880, 2880, 32, 4, NN_BF16, 7, 1, 1},
};

typedef struct router_case {
  const char *what;
  int64_t hidden, experts, top_k;
  int32_t dtype;
  op_router_t router;
  int32_t choice_bias;
} router_case_t;

static const router_case_t router_cases[] = {
    {"", 768, 16, 4, NN_BF16, {.score = NN_SCORE_SOFTMAX}, 0},
    {", fp16", 768, 16, 4, NN_F16, {.score = NN_SCORE_SOFTMAX}, 0},
    {", sigmoid and groups", 768, 16, 4, NN_BF16,
     {.score = NN_SCORE_SIGMOID, .groups = 4, .top_groups = 2}, 1},
    {", 8 of 64", 2048, 64, 8, NN_BF16, {.norm = NN_ROUTER_NORM_NONE}, 0},
    {", 8 of 128", 2048, 128, 8, NN_BF16, {.score = NN_SCORE_SOFTMAX}, 0},
    {", 8 of 256, sigmoid and groups", 2048, 256, 8, NN_BF16,
     {.score = NN_SCORE_SIGMOID, .groups = 8, .top_groups = 4, .group_score = NN_GROUP_TOP2,
      .scale = 2.5f}, 1},
};

/* ---- routing ---- */

static op_route_t mixture_route(gpu_t *gpu, const router_case_t *c, int64_t n) {
  size_t slots = (size_t)(n * c->top_k);
  op_route_t op = {.n = n, .hidden = c->hidden, .experts = c->experts, .top_k = c->top_k};
  op.x = gpu_normal(gpu, n * c->hidden, c->dtype, 1);
  op.w = gpu_normal(gpu, c->experts * c->hidden, c->dtype, 0.02f);
  op.weight_dtype = op.act_dtype = c->dtype, op.router = c->router;
  if (c->choice_bias) op.router.choice_bias = gpu_normal(gpu, c->experts, c->dtype, 1);
  op.out.expert = gpu_alloc(gpu, slots * 4), op.out.weight = gpu_alloc(gpu, slots * 4);
  op.out.row_slot = gpu_alloc(gpu, slots * 4), op.out.slot_row = gpu_alloc(gpu, slots * 4);
  op.out.offset = gpu_alloc(gpu, (size_t)(c->experts + 1) * 4);
  op.prob = gpu_alloc(gpu, (size_t)(n * c->experts) * 4), op.lse = gpu_alloc(gpu, (size_t)n * 4);
  op.share = gpu_alloc(gpu, (size_t)c->experts * 4);
  op.mean_prob = gpu_alloc(gpu, (size_t)c->experts * 4), op.mean_lse2 = gpu_alloc(gpu, 4);
  return op;
}

static void mixture_routing(gpu_t *gpu, const router_case_t *c, int64_t n) {
  char name[96];
  op_route_t op = mixture_route(gpu, c, n);
  double x = 2.0 * (double)(n * c->hidden), w = 2.0 * (double)(c->experts * c->hidden);
  double scores = 4.0 * (double)(n * (c->experts + 1)), slots = (double)(n * c->top_k);
  snprintf(name, sizeof name, "routing, %lld token%s%s", (long long)n, n > 1 ? "s" : "", c->what);
  RUN(gpu, name, route, op, gpu_bytes(gpu, x + w + scores + 16 * slots));
  if (n < 1024) return;
  TRY(gpu->table->route(gpu->place, &op, gpu->scratch));
  op_route_bwd_t back = {.n = n, .hidden = c->hidden, .experts = c->experts, .top_k = c->top_k};
  back.x = op.x, back.w = op.w, back.weight_dtype = back.act_dtype = c->dtype;
  back.router = op.router, back.routing = op.out, back.prob = op.prob, back.lse = op.lse;
  back.dweight = gpu_normal(gpu, n * c->top_k, NN_F32, 1e-3f), back.aux_share = op.share;
  if (op.router.score != NN_SCORE_SIGMOID) back.aux_scale = 0.1f, back.z_scale = 0.01f;
  back.dx = gpu_normal(gpu, n * c->hidden, c->dtype, 1e-3f);
  back.dw = gpu_zeros(gpu, (size_t)(c->experts * c->hidden) * 4);
  snprintf(name, sizeof name, "routing backward, %lld tokens%s", (long long)n, c->what);
  RUN(gpu, name, route_bwd, back, gpu_bytes(gpu, 3 * x + 5 * w + scores + 12 * slots));
}

static void mixture_losses(gpu_t *gpu) {
  enum { LAYERS = 30, EXPERTS = 16 };
  op_router_loss_t op = {.layers = LAYERS, .experts = EXPERTS, .top_k = 4};
  op.stats = gpu_normal(gpu, LAYERS * (2 * EXPERTS + 1), NN_F32, 1);
  op.mean_share = gpu_alloc(gpu, EXPERTS * sizeof(float)), op.loss = gpu_alloc(gpu, 16);
  RUN(gpu, "router losses of 30 layers", router_loss, op, (bench_work_t){0});
  gpu_drop(gpu);
}

/* ---- experts ---- */

/* The plain routing of such a case. */
static op_route_t mixture_plain(gpu_t *gpu, const mixture_case_t *c, int64_t n) {
  router_case_t router = {"",       c->hidden, c->experts, c->top_k,
                          c->dtype, {.score = NN_SCORE_SOFTMAX}, 0};
  return mixture_route(gpu, &router, n);
}

/* The experts of what is routed here. */
static op_experts_t mixture_experts(gpu_t *gpu, const mixture_case_t *c, const op_route_t *from) {
  int64_t n = from->n, h = c->hidden, f = c->ffn, size = 3 * f * h;
  op_route_t route = *from;
  TRY(gpu->table->route(gpu->place, &route, gpu->scratch));
  char *w = gpu_normal(gpu, c->experts * size, c->dtype, 0.02f);
  op_experts_t op = {.n = n, .hidden = h, .ffn = f, .experts = c->experts, .top_k = c->top_k};
  op.limit = c->limit, op.interleaved = c->interleaved;
  op.x = route.x, op.routing = route.out, op.expert_stride = size;
  op.gate = w, op.up = w + 2 * (c->interleaved ? h : f * h), op.down = w + 4 * f * h;
  op.weight_dtype = op.act_dtype = c->dtype, op.residual = route.x;
  op.out = gpu_alloc(gpu, (size_t)(n * h) * 2);
  if (!c->biased) return op;
  char *bias = gpu_normal(gpu, c->experts * (2 * f + h), c->dtype, 1);
  op.gate_bias = bias, op.up_bias = bias + 2 * (c->interleaved ? 1 : f);
  op.down_bias = bias + 4 * f, op.bias_stride = 2 * f + h;
  return op;
}

static op_experts_bwd_t mixture_experts_bwd(gpu_t *gpu, const mixture_case_t *c,
                                            const op_experts_t *op) {
  int64_t n = op->n, h = c->hidden, f = c->ffn, size = op->expert_stride;
  op_experts_bwd_t back = {.n = n, .hidden = h, .ffn = f, .experts = c->experts};
  back.top_k = c->top_k, back.limit = op->limit, back.interleaved = op->interleaved;
  back.x = op->x, back.routing = op->routing, back.gate = op->gate, back.up = op->up;
  back.down = op->down, back.expert_stride = size, back.pre = op->pre;
  back.weight_dtype = back.act_dtype = c->dtype;
  back.dout = gpu_normal(gpu, n * h, c->dtype, 1e-3f);
  back.dx = gpu_alloc(gpu, (size_t)(n * h) * 2);
  back.dweight = gpu_alloc(gpu, (size_t)(n * c->top_k) * 4);
  float *dw = gpu_zeros(gpu, (size_t)(c->experts * size) * 4);
  back.dgate = dw, back.dup = dw + (c->interleaved ? h : f * h), back.ddown = dw + 2 * f * h;
  if (!c->biased) return back;
  float *db = gpu_zeros(gpu, (size_t)(c->experts * op->bias_stride) * 4);
  back.down_bias = op->down_bias, back.bias_stride = op->bias_stride;
  back.dgate_bias = db, back.dup_bias = db + (c->interleaved ? 1 : f);
  back.ddown_bias = db + 2 * f;
  return back;
}

/* What backward spends, and backward. */
typedef struct mixture_pair {
  const backend_t *table;
  op_experts_t up;
  op_experts_bwd_t back;
} mixture_pair_t;

static nn_status_t mixture_pair(backend_device_t *device, const void *context,
                                backend_scratch_t scratch) {
  const mixture_pair_t *pair = context;
  nn_status_t status = pair->table->experts(device, &pair->up, scratch);
  return status == NN_OK ? pair->table->experts_bwd(device, &pair->back, scratch) : status;
}

/* Backward overwrites pre, which would fade from call to call: it is made again before each, and
 * the time of that taken off. */
static void mixture_backward(gpu_t *gpu, const mixture_case_t *c, const op_experts_t *op) {
  char name[96];
  mixture_pair_t pair = {gpu->table, *op, mixture_experts_bwd(gpu, c, op)};
  double work = 2.0 * (double)(GPU_TOKENS * c->top_k * op->expert_stride);
  pair.up.out = NULL;
  snprintf(name, sizeof name, "experts up product alone (recomputation)%s", c->what);
  gpu_time_t up = RUN(gpu, name, experts, pair.up, gpu_flops(gpu, work * 2 / 3));
  snprintf(name, sizeof name, "experts backward, 16384 tokens%s", c->what);
  if (!report_wanted("gpu", name)) return;
  if (!up.runs) up = gpu_time(gpu, (gpu_fn)(void (*)(void))gpu->table->experts, &pair.up);
  gpu_time_t both = gpu_time(gpu, mixture_pair, &pair);
  report_line("gpu", name, both.median - up.median, both.fastest - up.fastest, both.runs,
              gpu_flops(gpu, 2 * work), both.note);
}

static void mixture_training(gpu_t *gpu, const mixture_case_t *c) {
  char name[96];
  op_route_t route = mixture_plain(gpu, c, GPU_TOKENS);
  op_experts_t op = mixture_experts(gpu, c, &route);
  double work = 2.0 * (double)(GPU_TOKENS * c->top_k * op.expert_stride);
  op.pre = gpu_alloc(gpu, (size_t)(GPU_TOKENS * c->top_k * 2 * c->ffn) * 2);
  snprintf(name, sizeof name, "experts forward, 16384 tokens%s", c->what);
  RUN(gpu, name, experts, op, gpu_flops(gpu, work));
  mixture_backward(gpu, c, &op);
}

static void mixture_decoding(gpu_t *gpu, const mixture_case_t *c, int64_t n) {
  char name[96];
  op_moe_t all = {.norm = {.n = n, .hidden = c->hidden, .eps = 1e-5f}};
  all.route = mixture_plain(gpu, c, n);
  op_experts_t op = all.experts = mixture_experts(gpu, c, &all.route);
  int64_t slots = n * c->top_k, touched = slots < c->experts ? slots : c->experts;
  snprintf(name, sizeof name, "experts forward, %lld token%s%s", (long long)n, n > 1 ? "s" : "",
           c->what);
  RUN(gpu, name, experts, op, gpu_bytes(gpu, 2.0 * (double)(touched * op.expert_stride)));
  all.norm.x = op.x, all.norm.w = gpu_normal(gpu, c->hidden, c->dtype, 1);
  all.norm.y = gpu_alloc(gpu, (size_t)(n * c->hidden) * 2);
  all.norm.weight_dtype = all.norm.act_dtype = c->dtype;
  all.route.x = all.experts.x = all.norm.y;
  snprintf(name, sizeof name, "norm, routing, experts, %lld token%s%s", (long long)n,
           n > 1 ? "s" : "", c->what);
  RUN(gpu, name, moe, all, gpu_bytes(gpu, 2.0 * (double)(touched * op.expert_stride)));
}

void gpu_mixtures(gpu_t *gpu) {
  static const int64_t routed[] = {GPU_ROUTED, GPU_TOKENS, 32, 1};
  for (size_t i = 0; i < sizeof router_cases / sizeof *router_cases; i++)
    for (size_t k = 0; k < sizeof routed / sizeof *routed; k++) {
      mixture_routing(gpu, &router_cases[i], routed[k]);
      gpu_drop(gpu);
    }
  mixture_losses(gpu);
  for (size_t i = 0; i < sizeof mixture_cases / sizeof *mixture_cases; i++) {
    mixture_training(gpu, &mixture_cases[i]);
    gpu_drop(gpu);
    for (int64_t n = 32; n; n /= 32) {
      mixture_decoding(gpu, &mixture_cases[i], n);
      gpu_drop(gpu);
    }
  }
}
