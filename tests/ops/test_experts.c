/* The experts' gated networks over routed tokens, forward and backward: empty experts, one that
 * takes everything, dropped slots, odd sizes, more rows than are treated at a time; and clamped
 * activations and biases. */
#include <math.h>
#include <string.h>

#include "experts64.h"
#include "ops.h"
#include "select.h"

/* Who chooses what. */
enum {
  SPREAD = 0, /* any expert */
  FEW = 1,    /* the first top_k only: the others are empty */
  ONE = 2     /* the last expert before all others */
};

typedef struct experts_case {
  int64_t n, hidden, ffn, experts, top_k, capacity;
  int32_t choice, dtype;
  float limit;
  int32_t biased, interleaved;
  int32_t beside; /* up lies behind gate and dup behind dgate, as a model has them */
} experts_case_t;

static const experts_case_t cases[] = {
    {1, 1, 1, 1, 1, 0, SPREAD, NN_F32, 0, 0, 0, 0},
    {1, 64, 65, 4, 2, 0, SPREAD, NN_F32, 0, 0, 0, 0},
    {1, 17, 3, 4, 4, 0, SPREAD, NN_BF16, 0, 0, 0, 0},
    {17, 65, 17, 5, 3, 0, FEW, NN_F32, 0, 0, 0, 0},
    {65, 16, 130, 4, 2, 0, SPREAD, NN_F32, 0, 0, 0, 0},
    {130, 65, 130, 8, 2, 0, SPREAD, NN_BF16, 0, 0, 0, 0},
    {40, 20, 33, 6, 2, 5, SPREAD, NN_F32, 0, 0, 0, 0},
    {600, 20, 33, 3, 1, 0, ONE, NN_F32, 0, 0, 0, 0},
    {33, 130, 64, 4, 4, 0, SPREAD, NN_F32, 0, 0, 0, 0},
    {30, 17, 9, 7, 2, 3, ONE, NN_F32, 0, 0, 0, 0},
    {4200, 8, 5, 4, 2, 0, SPREAD, NN_F32, 0, 0, 0, 0},
    {5, 300, 257, 2, 1, 0, SPREAD, NN_F32, 0, 0, 0, 0},
    {60, 65, 200, 2, 2, 0, SPREAD, NN_F32, 0, 0, 0, 0},
    {80, 256, 336, 2, 1, 0, SPREAD, NN_F32, 0, 0, 0, 0},
    {17, 64, 40, 4, 2, 0, SPREAD, NN_F32, 0, 0, 0, 0},
    {17, 65, 17, 5, 3, 0, FEW, NN_F32, 0, 1, 0, 0},
    {40, 20, 33, 6, 2, 5, SPREAD, NN_F32, 1, 1, 0, 0},
    {1, 64, 65, 4, 2, 0, SPREAD, NN_F32, 1.5f, 0, 0, 0},
    {130, 65, 130, 8, 2, 0, SPREAD, NN_BF16, 2, 1, 0, 0},
    {4200, 8, 5, 4, 2, 0, SPREAD, NN_F32, 1, 1, 0, 0},
    {1, 17, 3, 4, 4, 0, SPREAD, NN_F16, 0, 0, 0, 0},
    {130, 65, 130, 8, 2, 0, SPREAD, NN_F16, 2, 1, 0, 0},
    {.n = 17, .hidden = 65, .ffn = 17, .experts = 5, .top_k = 3, .biased = 1, .interleaved = 1},
    {.n = 130, .hidden = 65, .ffn = 130, .experts = 8, .top_k = 2, .dtype = NN_BF16, .limit = 2,
     .biased = 1, .interleaved = 1},
    {.n = 33, .hidden = 130, .ffn = 64, .experts = 4, .top_k = 4, .interleaved = 1},
    {.n = 17, .hidden = 64, .ffn = 48, .experts = 4, .top_k = 2, .biased = 1, .interleaved = 1},
    {.n = 1, .hidden = 64, .ffn = 65, .experts = 4, .top_k = 2, .biased = 1, .interleaved = 1},
    {.n = 130, .hidden = 65, .ffn = 130, .experts = 8, .top_k = 2, .beside = 1},
    {.n = 17, .hidden = 20, .ffn = 3, .experts = 4, .top_k = 2, .dtype = NN_BF16, .beside = 1},
};

/* ---- routing ---- */

static int32_t choose(const experts_case_t *c, int64_t t, int64_t j) {
  int64_t first = c->choice == SPREAD ? ops_random_index(c->experts, 21, (uint64_t)t) : 0;
  if (c->choice == ONE) first = c->experts - 1;
  if (c->choice == FEW) return (int32_t)((t + j) % c->top_k);
  return (int32_t)((first + j) % c->experts);
}

static routing_t make_routing(const experts_case_t *c) {
  int64_t slots = c->n * c->top_k;
  routing_t r = {ops_ints(slots), ops_uniform(slots, 0.5f, 22), ops_ints(c->experts + 1),
                 ops_ints(slots), ops_ints(slots)};
  for (int64_t s = 0; s < slots; s++) {
    r.expert[s] = choose(c, s / c->top_k, s % c->top_k);
    r.weight[s] += 0.5f;
    r.slot_row[s] = -1;
  }
  int32_t row = 0;
  for (int32_t e = 0; e < c->experts; e++) {
    r.offset[e] = row;
    for (int32_t s = 0; s < slots; s++)
      if (r.expert[s] == e && (!c->capacity || row - r.offset[e] < c->capacity))
        r.slot_row[s] = row, r.row_slot[row++] = s;
  }
  r.offset[c->experts] = row;
  return r;
}

/* ---- data ---- */

typedef struct experts_data {
  float *x, *residual, *dout;
  void *gate, *up, *down;
  void *gates, *ups, *downs; /* the same, experts_stride() apart */
  void *gate_bias, *up_bias, *down_bias;    /* bias_stride() apart; or NULL */
  experts64_t exact;
} experts_data_t;

/* Experts' matrices lie apart, as those of a model do; between them are zeros. */
static int64_t experts_stride(const experts_case_t *c) {
  return (c->interleaved || c->beside ? 2 : 1) * c->ffn * c->hidden + 5;
}

/* Where element i of an expert's gate, or up, is in its part of a matrix in which their rows are in
 * turn. */
static int64_t in_turn(const experts_case_t *c, int64_t i, int up) {
  return (2 * (i / c->hidden) + up) * c->hidden + i % c->hidden;
}

/* Both in one matrix; ups begin a row later. */
static char *apart_in_turn(const experts_case_t *c, const void *gate, const void *up,
                           int32_t dtype) {
  size_t element = dtype == NN_F32 ? 4 : 2;
  int64_t size = c->ffn * c->hidden;
  char *spread = ops_memory(c->experts, (size_t)experts_stride(c) * element);
  for (int64_t at = 0; at < 2 * c->experts * size; at++) {
    int64_t e = at / 2 / size, i = at / 2 % size;
    const char *from = (const char *)(at % 2 ? up : gate) + (size_t)(e * size + i) * element;
    memcpy(spread + (size_t)(e * experts_stride(c) + in_turn(c, i, (int)(at % 2))) * element, from,
           element);
  }
  return spread;
}

/* The way back, of one of them. */
static float *together_in_turn(const experts_case_t *c, const float *spread, int up) {
  int64_t size = c->ffn * c->hidden;
  float *data = ops_floats(c->experts * size);
  for (int64_t i = 0; i < c->experts * size; i++)
    data[i] = spread[i / size * experts_stride(c) + in_turn(c, i % size, up)];
  return data;
}

static void *apart(const experts_case_t *c, const void *data, int32_t dtype) {
  size_t element = dtype == NN_F32 ? 4 : 2, bytes = (size_t)(c->ffn * c->hidden) * element;
  size_t stride = (size_t)experts_stride(c) * element;
  char *spread = ops_memory(c->experts, stride);
  for (size_t e = 0; e < (size_t)c->experts; e++)
    memcpy(spread + e * stride, (const char *)data + e * bytes, bytes);
  return spread;
}

/* The way back, of fp32; what is between has to be zero still. */
static float *together(const experts_case_t *c, const float *spread) {
  int64_t size = c->ffn * c->hidden, stride = experts_stride(c);
  float *data = ops_floats(c->experts * size);
  for (int64_t at = 0; at < c->experts * stride; at++) {
    if (at % stride < size) data[at / stride * size + at % stride] = spread[at];
    else assert_true(spread[at] == 0);
  }
  return data;
}

/* Moves matrices from one place of each expert to another; zeros are left behind. */
static void beside(const experts_case_t *c, float *from, int64_t first, float *to, int64_t second) {
  size_t bytes = (size_t)(c->ffn * c->hidden) * sizeof *from;
  for (int64_t e = 0; e < c->experts; e++) {
    memcpy(to + e * experts_stride(c) + second, from + e * experts_stride(c) + first, bytes);
    memset(from + e * experts_stride(c) + first, 0, bytes);
  }
}

/* So are their biases; those of gate and up are ffn wide, that of down as the tokens are. Between
 * them is what no operation may read or write. */
static int64_t bias_step(const experts_case_t *c) { return c->interleaved ? 2 : 1; }
static int64_t bias_stride(const experts_case_t *c) {
  int64_t inside = bias_step(c) * c->ffn;
  return (inside > c->hidden ? inside : c->hidden) + 3;
}

static double *dense_biases(const experts_case_t *c, const void *biases, int32_t dtype,
                            int64_t width, int64_t step) {
  double *dense = ops_doubles(c->experts * width);
  for (int64_t i = 0; biases && i < c->experts * width; i++)
    dense[i] = ops_weight(biases, dtype, i / width * bias_stride(c) + i % width * step);
  return dense;
}

/* What an operation made of biases' gradients that were 0.5 everywhere; what is between has to be
 * that still. turn: which of two that lie in turn. */
static float *added_biases(const experts_case_t *c, const float *biases, int64_t width,
                           int64_t step, int64_t turn) {
  float *dense = ops_floats(c->experts * width);
  for (int64_t at = 0; at < c->experts * bias_stride(c); at++) {
    int64_t e = at / bias_stride(c), i = at % bias_stride(c);
    if (i % step == turn && i / step < width) dense[e * width + i / step] = biases[at];
    else if (i >= step * width) assert_true(biases[at] == 0.5f);
  }
  return dense;
}

static void experts64_make(const experts_case_t *c, experts_data_t *d, double rounding) {
  int64_t tokens = c->n * c->hidden, slots = c->n * c->top_k, size = c->ffn * c->hidden;
  experts64_t *e = &d->exact;
  *e = (experts64_t){.n = c->n, .hidden = c->hidden, .ffn = c->ffn, .experts = c->experts,
                     .top_k = c->top_k, .rounding = rounding, .limit = (double)c->limit,
                     .routing = make_routing(c)};
  e->gate_bias = dense_biases(c, d->gate_bias, c->dtype, c->ffn, bias_step(c));
  e->up_bias = dense_biases(c, d->up_bias, c->dtype, c->ffn, bias_step(c));
  e->down_bias = dense_biases(c, d->down_bias, c->dtype, c->hidden, 1);
  double **biases[] = {&e->dgate_bias,     &e->dgate_bias_slack, &e->dup_bias,
                       &e->dup_bias_slack, &e->ddown_bias,       &e->ddown_bias_slack};
  for (int i = 0; i < 6; i++)
    *biases[i] = ops_doubles(c->experts * (i < 4 ? c->ffn : c->hidden));
  e->x = ops_widen(d->x, NN_F32, tokens), e->residual = ops_widen(d->residual, NN_F32, tokens);
  e->dout = ops_widen(d->dout, NN_F32, tokens);
  e->weight = ops_widen(e->routing.weight, NN_F32, slots);
  e->gate = ops_widen(d->gate, c->dtype, c->experts * size),
  e->up = ops_widen(d->up, c->dtype, c->experts * size);
  e->down = ops_widen(d->down, c->dtype, c->experts * size);
  double **made[] = {&e->out, &e->out_slack, &e->dx, &e->dx_slack};
  for (int i = 0; i < 4; i++) *made[i] = ops_doubles(tokens);
  double **weights[] = {&e->dgate,     &e->dgate_slack, &e->dup,
                        &e->dup_slack, &e->ddown,       &e->ddown_slack};
  for (int i = 0; i < 6; i++) *weights[i] = ops_doubles(c->experts * size);
  e->dweight = ops_doubles(slots), e->dweight_slack = ops_doubles(slots);
  e->pre = ops_doubles(slots * 2 * c->ffn), e->pre_slack = ops_doubles(slots * 2 * c->ffn);
  experts64_forward(e);
  experts64_backward(e);
}

static experts_data_t experts_make(const experts_case_t *c, double rounding) {
  int64_t tokens = c->n * c->hidden, size = c->ffn * c->hidden;
  experts_data_t d = {0};
  d.x = ops_inputs(tokens, c->dtype, 1, 1), d.residual = ops_uniform(tokens, 1, 2);
  d.dout = ops_inputs(tokens, c->dtype, 1, 3);
  float in = (float)(3 / sqrt((double)c->hidden)), out = (float)(3 / sqrt((double)c->ffn));
  d.gate = ops_weights(c->experts * size, c->dtype, in, 0, 4);
  d.up = ops_weights(c->experts * size, c->dtype, in, 0, 5);
  d.down = ops_weights(c->experts * size, c->dtype, out, 0, 6);
  size_t element = c->dtype == NN_F32 ? 4 : 2;
  if (c->interleaved) {
    char *both = apart_in_turn(c, d.gate, d.up, c->dtype);
    d.gates = both, d.ups = both + (size_t)c->hidden * element;
  } else {
    d.gates = apart(c, d.gate, c->dtype), d.ups = apart(c, d.up, c->dtype);
  }
  if (c->beside) {
    char *behind = (char *)d.gates + (size_t)size * element;
    for (int64_t e = 0; e < c->experts; e++)
      memcpy(behind + (size_t)(e * experts_stride(c)) * element,
             (const char *)d.up + (size_t)(e * size) * element, (size_t)size * element);
    d.ups = behind;
  }
  d.downs = apart(c, d.down, c->dtype);
  if (c->biased) {
    d.gate_bias = ops_weights(c->experts * bias_stride(c), c->dtype, 1, 0, 7);
    d.up_bias = c->interleaved ? (char *)d.gate_bias + element
                               : ops_weights(c->experts * bias_stride(c), c->dtype, 1, 0, 8);
    d.down_bias = ops_weights(c->experts * bias_stride(c), c->dtype, 1, 0, 9);
  }
  experts64_make(c, &d, rounding);
  return d;
}

static backend_limits_t experts_limits(const experts_case_t *c, int32_t training) {
  return (backend_limits_t){.rows = c->n, .hidden = c->hidden, .ffn = c->ffn, .experts = c->experts,
                            .top_k = c->top_k, .weight_dtype = c->dtype, .training = training};
}

/* ---- forward ---- */

/* The paths that round to bf16 what they multiply with bf16 weights, and those that do not. */
static void check_paths(void (*check)(const experts_case_t *c, double rounding),
                        const experts_case_t *c) {
  check(c, 0);
  if (c->dtype == NN_BF16) check(c, 0x1p-8);
}

static void check_experts(const experts_case_t *c, double rounding) {
  if (c->dtype != NN_F32 && !ops_widens()) return;
  experts_data_t d = experts_make(c, rounding);
  experts64_t *e = &d.exact;
  int64_t tokens = c->n * c->hidden, kept = e->routing.offset[c->experts] * 2 * c->ffn;
  double *with_residual = ops_doubles(tokens);
  for (int64_t i = 0; i < tokens; i++) with_residual[i] = e->out[i] + e->residual[i];
  op_experts_t op = {.n = c->n,
                     .hidden = c->hidden,
                     .ffn = c->ffn,
                     .experts = c->experts,
                     .top_k = c->top_k,
                     .x = d.x,
                     .routing = e->routing,
                     .gate = d.gates,
                     .up = d.ups,
                     .down = d.downs,
                     .expert_stride = experts_stride(c),
                     .limit = c->limit,
                     .interleaved = c->interleaved,
                     .gate_bias = d.gate_bias,
                     .up_bias = d.up_bias,
                     .down_bias = d.down_bias,
                     .bias_stride = bias_stride(c),
                     .weight_dtype = c->dtype};
  ops_trial_t trial;
  ops_begin(&trial, experts_limits(c, 0));
  while (ops_next(&trial)) {
    if (ops_rounding(&trial, c->dtype) != rounding) continue;
    float *out = ops_floats(tokens), *pre = ops_floats(c->n * c->top_k * 2 * c->ffn);
    ops_garbage(out, tokens), ops_garbage(pre, c->n * c->top_k * 2 * c->ffn);
    op.out = out, op.pre = pre, op.residual = d.residual;
    OPS_RUN(&trial, experts, &op);
    ops_check(&trial, 0, "out", out, with_residual, e->out_slack, tokens);
    ops_check(&trial, 1, "pre", pre, e->pre, e->pre_slack, kept);

    ops_garbage(out, tokens);
    op.pre = NULL, op.residual = NULL;
    OPS_RUN(&trial, experts, &op);
    ops_check(&trial, 2, "out without residual", out, e->out, e->out_slack, tokens);

    memcpy(out, d.residual, (size_t)tokens * sizeof *out);
    op.residual = out;
    OPS_RUN(&trial, experts, &op);
    ops_check(&trial, 0, "out over residual", out, with_residual, e->out_slack, tokens);
    if (tokens * c->ffn >= 1 << 20) OPS_RUN_CANCELLED(&trial, experts, &op);

    ops_garbage(pre, c->n * c->top_k * 2 * c->ffn);
    op.pre = pre, op.residual = NULL, op.out = NULL;
    OPS_RUN(&trial, experts, &op);
    ops_check(&trial, 1, "pre without out", pre, e->pre, e->pre_slack, kept);
  }
  ops_free();
}

static int selected(const experts_case_t *c, int products) {
  return select_case(3.0 * products * (double)(c->n * c->top_k * c->hidden * c->ffn));
}

static void test_forward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    if (selected(&cases[i], 1)) check_paths(check_experts, &cases[i]);
}

/* ---- backward ---- */

/* What the weights' gradients are accumulated to, added to what is expected: one more term of a sum
 * over up to n rows. */
static float *onto(double *want, double *slack, int64_t count, int64_t n, uint64_t seed) {
  float *before = ops_uniform(count, 1, seed);
  for (int64_t i = 0; i < count; i++) {
    want[i] += before[i];
    slack[i] += ops_sum_error(n + 1) * fabs(before[i]) + OPS_U * fabs(want[i]);
  }
  return before;
}

/* The same for biases, which are accumulated to 0.5: of gate, up and down. */
static void onto_half(const experts_case_t *c, experts64_t *e, int which) {
  double *want[] = {e->dgate_bias, e->dup_bias, e->ddown_bias};
  double *slack[] = {e->dgate_bias_slack, e->dup_bias_slack, e->ddown_bias_slack};
  for (int64_t i = 0; i < c->experts * (which < 2 ? c->ffn : c->hidden); i++) {
    want[which][i] += 0.5;
    slack[which][i] += ops_sum_error(c->n + 1) + OPS_U * fabs(want[which][i]);
  }
}

/* Assigned, the weights' gradients are what they are added to zeros, for experts without rows too,
 * and what lies between experts stays. */
static void check_assigned(ops_trial_t *trial, const experts_case_t *c, op_experts_bwd_t op,
                           const float *pre) {
  int64_t count = c->experts * experts_stride(c), size = c->ffn * c->hidden;
  float *d[2][3]; /* added and assigned; gate, up and down, or gate with up, nothing and down */
  for (int i = 0; i < 6; i++) d[i / 3][i % 3] = ops_floats(count);
  for (int i = 0; i < 3; i++) ops_garbage(d[1][i], count);
  for (op.assign = 0; op.assign < 2; op.assign++) {
    float **to = d[op.assign];
    op.pre = ops_copy(pre, c->n * c->top_k * 2 * c->ffn);
    op.dgate = to[0], op.dup = c->interleaved ? to[0] + c->hidden : to[1], op.ddown = to[2];
    OPS_RUN(trial, experts_bwd, &op);
  }
  for (int64_t at = 0; at < 3 * count; at++) {
    int64_t which = at / count, i = at % count;
    int64_t used = !c->interleaved ? size : which == 0 ? 2 * size : which == 1 ? 0 : size;
    int inside = i % experts_stride(c) < used;
    assert_true(inside ? d[1][which][i] == d[0][which][i] : isnan(d[1][which][i]));
  }
}

/* What gradients are accumulated to: the weights', and 0.5 for biases. */
typedef struct before {
  const float *gate, *up, *down, *half;
} before_t;

static before_t before_make(const experts_case_t *c, experts64_t *e) {
  int64_t count = c->experts * c->ffn * c->hidden, biases = c->experts * bias_stride(c);
  float *half = ops_floats(biases);
  for (int64_t i = 0; i < biases; i++) half[i] = 0.5f;
  for (int i = 0; i < 3; i++) onto_half(c, e, i);
  return (before_t){.gate = onto(e->dgate, e->dgate_slack, count, c->n, 31),
                    .up = onto(e->dup, e->dup_slack, count, c->n, 32),
                    .down = onto(e->ddown, e->ddown_slack, count, c->n, 33),
                    .half = half};
}

/* Gives the operation its gradients; returns memory for dup where that lies behind dgate. */
static float *place_gradients(const experts_case_t *c, const before_t *before,
                              op_experts_bwd_t *op) {
  if (c->interleaved) {
    op->dgate = (float *)(void *)apart_in_turn(c, before->gate, before->up, NN_F32);
    op->dup = op->dgate + c->hidden;
  } else {
    op->dgate = apart(c, before->gate, NN_F32), op->dup = apart(c, before->up, NN_F32);
  }
  float *alone = op->dup;
  int64_t size = c->ffn * c->hidden;
  if (c->beside) beside(c, alone, 0, op->dgate, size), op->dup = op->dgate + size;
  op->ddown = apart(c, before->down, NN_F32);
  float **biases[] = {&op->dgate_bias, &op->dup_bias, &op->ddown_bias};
  for (int i = 0; i < 3 && c->biased; i++)
    *biases[i] = ops_copy(before->half, c->experts * bias_stride(c));
  if (c->biased && c->interleaved) op->dup_bias = op->dgate_bias + 1;
  return alone;
}

static void check_weights(ops_trial_t *trial, const experts_case_t *c, const experts64_t *e,
                          const op_experts_bwd_t *op) {
  int64_t count = c->experts * c->ffn * c->hidden;
  const float *dgate = c->interleaved ? together_in_turn(c, op->dgate, 0) : together(c, op->dgate);
  const float *dup = c->interleaved ? together_in_turn(c, op->dgate, 1) : together(c, op->dup);
  ops_check(trial, 2, "dgate", dgate, e->dgate, e->dgate_slack, count);
  ops_check(trial, 3, "dup", dup, e->dup, e->dup_slack, count);
  ops_check(trial, 4, "ddown", together(c, op->ddown), e->ddown, e->ddown_slack, count);
}

static void check_biases(ops_trial_t *trial, const experts_case_t *c, const experts64_t *e,
                         const op_experts_bwd_t *op) {
  const float *gate = added_biases(c, op->dgate_bias, c->ffn, bias_step(c), 0);
  const float *up = c->interleaved ? added_biases(c, op->dgate_bias, c->ffn, 2, 1)
                                   : added_biases(c, op->dup_bias, c->ffn, 1, 0);
  const float *down = added_biases(c, op->ddown_bias, c->hidden, 1, 0);
  int64_t inside = c->experts * c->ffn, outside = c->experts * c->hidden;
  ops_check(trial, 5, "dgate_bias", gate, e->dgate_bias, e->dgate_bias_slack, inside);
  ops_check(trial, 6, "dup_bias", up, e->dup_bias, e->dup_bias_slack, inside);
  ops_check(trial, 7, "ddown_bias", down, e->ddown_bias, e->ddown_bias_slack, outside);
}

static void check_experts_bwd(const experts_case_t *c, double rounding) {
  if (c->dtype != NN_F32 && !ops_widens()) return;
  experts_data_t d = experts_make(c, rounding);
  experts64_t *e = &d.exact;
  int64_t tokens = c->n * c->hidden, slots = c->n * c->top_k, size = c->ffn * c->hidden;
  before_t before = before_make(c, e);
  op_experts_bwd_t op = {.n = c->n, .hidden = c->hidden, .ffn = c->ffn, .experts = c->experts,
                         .top_k = c->top_k, .x = d.x, .routing = e->routing, .gate = d.gates,
                         .up = d.ups, .down = d.downs, .expert_stride = experts_stride(c),
                         .weight_dtype = c->dtype, .dout = d.dout, .limit = c->limit,
                         .interleaved = c->interleaved,
                         .down_bias = d.down_bias, .bias_stride = bias_stride(c)};
  float *forward_pre = ops_floats(slots * 2 * c->ffn);
  for (int64_t i = 0; i < slots * 2 * c->ffn; i++) forward_pre[i] = (float)e->pre[i];
  ops_trial_t trial;
  ops_begin(&trial, experts_limits(c, 1));
  while (ops_next(&trial)) {
    if (ops_rounding(&trial, c->dtype) != rounding) continue;
    op.pre = ops_copy(forward_pre, slots * 2 * c->ffn);
    op.dx = ops_floats(tokens), op.dweight = ops_floats(slots);
    ops_garbage(op.dx, tokens), ops_garbage(op.dweight, slots);
    float *alone = place_gradients(c, &before, &op);
    OPS_RUN(&trial, experts_bwd, &op);
    if (c->beside) beside(c, op.dgate, size, alone, 0), op.dup = alone;
    ops_check(&trial, 0, "dx", op.dx, e->dx, e->dx_slack, tokens);
    ops_check(&trial, 1, "dweight", op.dweight, e->dweight, e->dweight_slack, slots);
    check_weights(&trial, c, e, &op);
    if (c->biased) check_biases(&trial, c, e, &op);
    check_assigned(&trial, c, op, forward_pre);
    if (tokens * c->ffn >= 1 << 20) OPS_RUN_CANCELLED(&trial, experts_bwd, &op);
  }
  ops_free();
}

static void test_backward(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    if (selected(&cases[i], 2)) check_paths(check_experts_bwd, &cases[i]);
}

static double experts64_loss(const void *context) {
  experts64_t e = *(const experts64_t *)context;
  double loss = 0;
  experts64_forward(&e);
  for (int64_t i = 0; i < e.n * e.hidden; i++) loss += e.dout[i] * e.out[i];
  return loss;
}

static void test_gradients_by_finite_differences(void **state) {
  (void)state;
  const experts_case_t small[] = {{4, 3, 5, 3, 2, 2, SPREAD, NN_F32, 0, 0, 0, 0},
                                  {4, 3, 5, 3, 2, 2, SPREAD, NN_F32, 1, 1, 0, 0}};
  for (int i = 0; i < 2; i++) {
    const experts_case_t c = small[i];
    experts64_t e = experts_make(&c, 0).exact;
    int64_t size = c.experts * c.ffn * c.hidden;
    assert_true(e.routing.offset[c.experts] < c.n * c.top_k); /* capacity 2 drops some */
    ops_check_gradient("dx", experts64_loss, &e, e.x, e.dx, c.n * c.hidden);
    ops_check_gradient("dweight", experts64_loss, &e, e.weight, e.dweight, c.n * c.top_k);
    ops_check_gradient("dgate", experts64_loss, &e, e.gate, e.dgate, size);
    ops_check_gradient("dup", experts64_loss, &e, e.up, e.dup, size);
    ops_check_gradient("ddown", experts64_loss, &e, e.down, e.ddown, size);
    int64_t biases = c.experts * c.ffn, down_biases = c.experts * c.hidden;
    ops_check_gradient("dgate_bias", experts64_loss, &e, e.gate_bias, e.dgate_bias, biases);
    ops_check_gradient("dup_bias", experts64_loss, &e, e.up_bias, e.dup_bias, biases);
    ops_check_gradient("ddown_bias", experts64_loss, &e, e.down_bias, e.ddown_bias, down_biases);
    ops_free();
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_forward),
      cmocka_unit_test(test_backward),
      cmocka_unit_test(test_gradients_by_finite_differences),
  };
  return cmocka_run_group_tests_name("experts", tests, NULL, NULL);
}
