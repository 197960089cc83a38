/* The experts' gated networks as grouped products, one group per expert, over chunks of tokens.
 *
 * Forward, for row r of token t and expert e: g = gate_e x_t, u = up_e x_t, a = act(g, u) and
 * y_r = down_e a, each plus its bias where there are biases; out_t = residual_t + sum over slots,
 * in order, of weight y. Assigns. Without out, g and u are all.
 *
 * Backward, with d = down_e^T dout_t: dweight = <d, a>, plus <dout_t, down_bias_e>; with
 * da = weight d, dg = da dact/dg and du = da dact/du replace g and u in pre; dx_t = sum over slots,
 * in order, of gate_e^T dg + up_e^T du is assigned; dgate_e += dg x_t^T, dup_e += du x_t^T and
 * ddown_e += dout_t (weight a)^T accumulate, summed over the rows of a chunk as in gemm.h, chunks
 * in order; with `assign` the first chunk that has rows of an expert assigns its. The biases'
 * gradients sum dg, du and weight dout_t over the rows in order.
 *
 * Rows of x and dout are gathered while they are packed. Rows of an expert are sorted by token,
 * so those of a chunk are contiguous. */
#include "vec/gemm.h"
#include "vec/glu.h"

/* What both directions share. A row has two numbers: its place in the routing (pre), and its place
 * among the rows of the chunk (token, act, y, dot), where experts follow each other too. */
typedef struct experts {
  int64_t n, hidden, ffn, experts, top_k;
  int32_t weight_dtype, act_dtype;
  const routing_t *routing;
  int64_t begin, end;    /* tokens of the chunk */
  gemm_group_t *groups;  /* [E] */
  int64_t *rows;         /* [E] how many of the chunk's rows are this expert's, */
  int64_t *row, *local;  /* [E] the first one's places in the routing and in the chunk */
  int32_t *token;        /* [rows] */
  void *act;             /* [rows, F] a; backward: weight a; of act_dtype */
  float *y;              /* [rows, hidden] of each row: y; backward: dx */
  float *dot;            /* [rows, parts] backward: parts of dweight, GEMM_NR columns each */
  const op_experts_t *forward;
  const op_experts_bwd_t *backward;
} experts_t;

enum { EXPERTS_TOKENS = 4 }; /* of an item of combining */

_Static_assert(sizeof(gemm_group_t) + 3 * sizeof(int64_t) <= EXPERTS_GROUP_BYTES,
               "what is noted for an expert fits in its scratch");
_Static_assert((int)GEMM_NR >= EXPERTS_DOT_COLUMNS, "the parts of dweight fit in their scratch");

static int64_t experts_parts(const experts_t *experts) { return vec_blocks(experts->ffn, GEMM_NR); }

static void *experts_take(char **at, int64_t count, size_t size) {
  void *piece = *at;
  *at += ((size_t)count * size + 63) / 64 * 64;
  return piece;
}

/* Lays out the scratch behind the threads' panels; experts_scratch() in vec_scratch.c is its
 * size. */
static void experts_lay_out(experts_t *experts, const backend_device_t *device,
                            backend_scratch_t scratch) {
  char *at = (char *)scratch.data + (size_t)device->threads * GEMM_THREAD_BYTES;
  int64_t rows = experts_chunk_tokens(experts->n, experts->top_k) * experts->top_k;
  experts->groups = experts_take(&at, experts->experts, sizeof(gemm_group_t));
  experts->rows = experts_take(&at, experts->experts, sizeof(int64_t));
  experts->row = experts_take(&at, experts->experts, sizeof(int64_t));
  experts->local = experts_take(&at, experts->experts, sizeof(int64_t));
  experts->token = experts_take(&at, rows, sizeof(int32_t));
  experts->act = experts_take(&at, rows * experts->ffn,
                              (size_t)vec_dtype_bytes(experts->act_dtype));
  experts->y = experts_take(&at, rows * experts->hidden, sizeof(float));
  experts->dot = experts_take(&at, rows * experts_parts(experts), sizeof(float));
}

/* The first of an expert's rows whose token is at least `token`. */
static int64_t experts_first_row(const experts_t *experts, int64_t expert, int64_t token) {
  const routing_t *routing = experts->routing;
  int64_t low = routing->offset[expert], high = routing->offset[expert + 1];
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (routing->row_slot[middle] < token * experts->top_k)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* Finds the rows of the chunk that begins with a token. */
static void experts_begin_chunk(experts_t *experts, int64_t begin) {
  int64_t local = 0;
  experts->begin = begin;
  experts->end = vec_min(experts->n, begin + experts_chunk_tokens(experts->n, experts->top_k));
  for (int64_t e = 0; e < experts->experts; e++) {
    int64_t first = experts_first_row(experts, e, experts->begin);
    int64_t last = experts_first_row(experts, e, experts->end);
    experts->row[e] = first;
    experts->local[e] = local;
    experts->rows[e] = last - first;
    for (int64_t r = first; r < last; r++)
      experts->token[local++] = (int32_t)(experts->routing->row_slot[r] / experts->top_k);
  }
}

/* A slot's row in the chunk, or -1 where it was dropped. */
static int64_t experts_local_row(const experts_t *experts, int64_t slot) {
  int64_t row = experts->routing->slot_row[slot], expert = experts->routing->expert[slot];
  return row < 0 ? -1 : row - experts->row[expert] + experts->local[expert];
}

/* One product over all experts that have rows; `describe` says what an expert's is. */
static nn_status_t experts_product(backend_device_t *device, experts_t *experts,
                                   gemm_group_t (*describe)(const experts_t *experts, int64_t e),
                                   gemm_store_fn store, backend_scratch_t scratch) {
  for (int64_t e = 0; e < experts->experts; e++)
    experts->groups[e] = experts->rows[e] ? describe(experts, e) : (gemm_group_t){0};
  gemm_t gemm = {.groups = experts->groups,
                 .count = experts->experts,
                 .store = store,
                 .context = experts,
                 .scratch = scratch.data,
                 .rounds = experts->weight_dtype == NN_BF16};
  return VEC(gemm_run)(device, &gemm);
}

static nn_status_t experts_combine(backend_device_t *device, experts_t *experts, pool_fn fn) {
  int64_t tokens = experts->end - experts->begin;
  int64_t work = tokens * experts->top_k * experts->hidden;
  return vec_run(device, vec_blocks(tokens, EXPERTS_TOKENS), work, fn, experts);
}

/* What the rows of an expert's tokens are in x or dout. */
static gemm_operand_t experts_gathered(const experts_t *experts, const void *x, int64_t e) {
  return (gemm_operand_t){.data = x,
                          .ld = experts->hidden,
                          .gather = experts->token + experts->local[e],
                          .dtype = experts->act_dtype};
}

/* What an expert's rows are in act. */
static gemm_operand_t experts_act(const experts_t *experts, int64_t e) {
  int64_t first = experts->local[e] * experts->ffn;
  return (gemm_operand_t){.data = vec_at(experts->act, first, experts->act_dtype),
                          .ld = experts->ffn,
                          .dtype = experts->act_dtype};
}

/* An expert's matrix, by expert 0's. */
static const void *experts_weight(const void *first, int64_t stride, int32_t dtype, int64_t e) {
  return vec_at(first, e * stride, dtype);
}

/* Elements between the rows of gate, or of up. */
static int64_t experts_row(int64_t hidden, int32_t interleaved) {
  return interleaved ? 2 * hidden : hidden;
}

/* Of a bias, the vector from element f on; those in turn with another's are two apart. */
static vf experts_bias(const void *bias, int64_t first, int64_t f, int64_t left,
                       int32_t interleaved, int32_t dtype) {
  if (!interleaved) return vf_load_as_next(bias, first + f, left, dtype);
  float lanes[VEC_WIDTH] = {0};
  for (int64_t l = 0; l < vec_min(left, VEC_WIDTH); l++)
    lanes[l] = vec_load_as(bias, first + 2 * (f + l), dtype);
  return vf_load(lanes);
}

/* ---- forward --------------------------------------------------------------------------------- */

static gemm_group_t experts_up(const experts_t *experts, int64_t e) {
  const op_experts_t *op = experts->forward;
  int64_t stride = op->expert_stride;
  return (gemm_group_t){.m = experts->rows[e],
                        .n = gemm_pair_columns(op->ffn),
                        .k = op->hidden,
                        .a = experts_gathered(experts, op->x, e),
                        .b = {.data = experts_weight(op->gate, stride, op->weight_dtype, e),
                              .second = experts_weight(op->up, stride, op->weight_dtype, e),
                              .pair = op->ffn,
                              .ld = experts_row(op->hidden, op->interleaved),
                              .dtype = op->weight_dtype}};
}

/* What the tiles of an expert's rows [i, ..) and columns [f, f + VEC_WIDTH) become. */
typedef struct experts_up {
  void *pre, *out; /* or NULL */
  int64_t pre_at, at, ffn, left;
  int biased;
  float limit;
  vf g_bias, u_bias;
} experts_up_t;

/* Takes `count` rows, a constant, from row r on. A row of a tile is VEC_WIDTH columns of g beside
 * the same of u. */
VEC_INLINE void experts_up_beside(const int count, const experts_up_t *up, int64_t r,
                                  const float *tile, int32_t act) {
  vf g[VEC_BESIDE], u[VEC_BESIDE];
  tile += r * GEMM_NR;
  VEC_EACH(k, count) {
    g[k] = vf_load(tile + k * GEMM_NR), u[k] = vf_load(tile + k * GEMM_NR + VEC_WIDTH);
    if (up->biased) g[k] = vf_add(g[k], up->g_bias), u[k] = vf_add(u[k], up->u_bias);
    if (!up->pre) continue;
    int64_t at = up->pre_at + (r + k) * 2 * up->ffn;
    vf_store_as_next(up->pre, at, up->left, act, g[k]);
    vf_store_as_next(up->pre, at + up->ffn, up->left, act, u[k]);
  }
  if (!up->out) return;
  glu_acts(count, g, u, up->limit);
  VEC_EACH(k, count)
    vf_store_as_next(up->out, up->at + (r + k) * up->ffn, up->left, act, g[k]);
}

VEC_INLINE void experts_up_rows(const experts_t *experts, int64_t e, int64_t i, int64_t rows,
                                int64_t j, const float *tile, int32_t act) {
  const op_experts_t *op = experts->forward;
  /* All in variables of its own, which what is stored cannot change. */
  const int64_t ffn = op->ffn, f = j / 2, left = ffn - f, first = e * op->bias_stride;
  experts_up_t up = {.pre = op->pre, .out = op->out ? experts->act : NULL, .limit = op->limit};
  up.ffn = ffn, up.left = left, up.biased = op->gate_bias != NULL;
  up.pre_at = (experts->row[e] + i) * 2 * ffn + f, up.at = (experts->local[e] + i) * ffn + f;
  up.g_bias = up.u_bias = vf_zero();
  if (up.biased) {
    up.g_bias = experts_bias(op->gate_bias, first, f, left, op->interleaved, op->weight_dtype);
    up.u_bias = experts_bias(op->up_bias, first, f, left, op->interleaved, op->weight_dtype);
  }
  int64_t r = 0;
  for (; r + VEC_BESIDE <= rows; r += VEC_BESIDE) experts_up_beside(VEC_BESIDE, &up, r, tile, act);
  for (; r < rows; r++) experts_up_beside(1, &up, r, tile, act);
}

static void experts_up_store(void *context, int64_t e, int64_t i, int64_t rows, int64_t j,
                             int64_t columns, const float *tile) {
  const experts_t *experts = context;
  (void)columns;
  VEC_BY_ACT(experts->act_dtype, experts_up_rows(experts, e, i, rows, j, tile, VEC_ACT));
}

static gemm_group_t experts_down(const experts_t *experts, int64_t e) {
  const op_experts_t *op = experts->forward;
  const void *down = experts_weight(op->down, op->expert_stride, op->weight_dtype, e);
  return (gemm_group_t){
      .m = experts->rows[e],
      .n = op->hidden,
      .k = op->ffn,
      .a = experts_act(experts, e),
      .b = {.data = down, .ld = op->ffn, .dtype = op->weight_dtype},
      .d = experts->y + experts->local[e] * op->hidden,
      .ldd = op->hidden};
}

/* y with the biases of down. */
static void experts_down_store(void *context, int64_t e, int64_t i, int64_t rows, int64_t j,
                               int64_t columns, const float *tile) {
  const experts_t *experts = context;
  const op_experts_t *op = experts->forward;
  for (int64_t r = i; r < i + rows; r++, tile += GEMM_NR) {
    float *y = experts->y + (experts->local[e] + r) * experts->hidden + j;
    for (int64_t q = 0; q < columns; q += VEC_WIDTH) {
      int64_t left = columns - q, at = e * op->bias_stride + j + q;
      vf bias = vf_load_as_next(op->down_bias, at, left, op->weight_dtype);
      vf_store_next(y + q, left, vf_add(vf_load(tile + q), bias));
    }
  }
}

VEC_INLINE void experts_combine_token(const experts_t *experts, int64_t t, int32_t act) {
  const op_experts_t *op = experts->forward;
  for (int64_t c = 0; c < op->hidden; c += VEC_WIDTH) {
    int64_t left = op->hidden - c, at = t * op->hidden + c;
    vf sum = op->residual ? vf_load_as_next(op->residual, at, left, act) : vf_zero();
    for (int64_t s = t * op->top_k; s < (t + 1) * op->top_k; s++) {
      int64_t row = experts_local_row(experts, s);
      if (row < 0) continue;
      vf y = vf_load_next(experts->y + row * op->hidden + c, left);
      sum = vf_fma(vf_set1(op->routing.weight[s]), y, sum);
    }
    vf_store_as_next(op->out, at, left, act, sum);
  }
}

static void experts_combine_item(void *context, int64_t item, int32_t thread) {
  const experts_t *experts = context;
  (void)thread;
  int64_t first = experts->begin + item * EXPERTS_TOKENS;
  int64_t last = vec_min(first + EXPERTS_TOKENS, experts->end);
  for (int64_t t = first; t < last; t++)
    VEC_BY_ACT(experts->act_dtype, experts_combine_token(experts, t, VEC_ACT));
}

nn_status_t VEC(experts)(backend_device_t *device, const op_experts_t *op,
                         backend_scratch_t scratch) {
  experts_t experts = {.n = op->n,
                       .hidden = op->hidden,
                       .ffn = op->ffn,
                       .experts = op->experts,
                       .top_k = op->top_k,
                       .weight_dtype = op->weight_dtype,
                       .act_dtype = op->act_dtype,
                       .routing = &op->routing,
                       .forward = op};
  experts_lay_out(&experts, device, scratch);
  while (experts.end < op->n) {
    experts_begin_chunk(&experts, experts.end);
    STATUS_TRY(experts_product(device, &experts, experts_up, experts_up_store, scratch));
    if (!op->out) continue;
    STATUS_TRY(experts_product(device, &experts, experts_down,
                               op->down_bias ? experts_down_store : NULL, scratch));
    STATUS_TRY(experts_combine(device, &experts, experts_combine_item));
  }
  return NN_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

/* An expert's rows of pre: its numbers g, or with half = 1 its numbers u. */
static gemm_operand_t experts_pre(const experts_t *experts, int64_t e, int64_t half) {
  int64_t first = (experts->row[e] * 2 + half) * experts->ffn;
  return (gemm_operand_t){.data = vec_at(experts->backward->pre, first, experts->act_dtype),
                          .ld = 2 * experts->ffn,
                          .dtype = experts->act_dtype};
}

static gemm_operand_t along_k(gemm_operand_t operand) {
  operand.along_k = 1;
  return operand;
}

/* d = dout down: [rows, F]. */
static gemm_group_t experts_bwd_down(const experts_t *experts, int64_t e) {
  const op_experts_bwd_t *op = experts->backward;
  const void *down = experts_weight(op->down, op->expert_stride, op->weight_dtype, e);
  return (gemm_group_t){.m = experts->rows[e],
                        .n = op->ffn,
                        .k = op->hidden,
                        .a = experts_gathered(experts, op->dout, e),
                        .b = {.data = down,
                              .ld = op->ffn,
                              .dtype = op->weight_dtype,
                              .along_k = 1},
                        .c = experts_pre(experts, e, 0).data,
                        .ldc = 2 * op->ffn,
                        .d = vec_to(op->pre, (experts->row[e] * 2 + 1) * op->ffn, op->act_dtype),
                        .ldd = 2 * op->ffn,
                        .d_dtype = op->act_dtype};
}

/* At element g of pre and `at` of act, replaces g and u by their gradients, keeps weight a; returns
 * the lanes' parts of <d, a>. What is read beyond `left` is 0. */
VEC_INLINE vf experts_bwd_activation(const experts_t *experts, int64_t at_g, int64_t at, vf d,
                                     vf weight, int64_t left, int32_t act) {
  const op_experts_bwd_t *op = experts->backward;
  vf g = vf_load_as_next(op->pre, at_g, left, act);
  vf u = vf_load_as_next(op->pre, at_g + op->ffn, left, act);
  vf a = glu_act_bwd(&g, &u, vf_mul(weight, d), op->limit);
  vf_store_as_next(op->pre, at_g, left, act, g);
  vf_store_as_next(op->pre, at_g + op->ffn, left, act, u);
  vf_store_as_next(experts->act, at, left, act, vf_mul(weight, a));
  return vf_mul(d, a);
}

VEC_INLINE void experts_bwd_down_rows(const experts_t *experts, int64_t e, int64_t i, int64_t rows,
                                      int64_t j, int64_t columns, const float *tile, int32_t act) {
  const op_experts_bwd_t *op = experts->backward;
  for (int64_t r = i; r < i + rows; r++, tile += GEMM_NR) {
    int64_t local = experts->local[e] + r;
    int64_t g = (experts->row[e] + r) * 2 * op->ffn + j, at = local * op->ffn + j;
    vf weight = vf_set1(op->routing.weight[op->routing.row_slot[experts->row[e] + r]]);
    vf dot = vf_zero();
    for (int64_t q = 0; q < columns; q += VEC_WIDTH)
      dot = vf_add(dot, experts_bwd_activation(experts, g + q, at + q, vf_load(tile + q), weight,
                                               columns - q, act));
    experts->dot[local * experts_parts(experts) + j / GEMM_NR] = vf_sum(dot);
  }
}

static void experts_bwd_down_store(void *context, int64_t e, int64_t i, int64_t rows, int64_t j,
                                   int64_t columns, const float *tile) {
  const experts_t *experts = context;
  VEC_BY_ACT(experts->act_dtype,
             experts_bwd_down_rows(experts, e, i, rows, j, columns, tile, VEC_ACT));
}

/* What a chunk's part of an expert's gradient is added to: nothing where it is the first. */
static const float *experts_bwd_sum(const experts_t *experts, int64_t e, const float *gradient) {
  int first = experts->row[e] == experts->routing->offset[e];
  return experts->backward->assign && first ? NULL : gradient;
}

/* [hidden, F] += dout^T (weight a), over the rows. */
static gemm_group_t experts_bwd_ddown(const experts_t *experts, int64_t e) {
  const op_experts_bwd_t *op = experts->backward;
  float *ddown = op->ddown + e * op->expert_stride;
  return (gemm_group_t){.m = op->hidden,
                        .n = op->ffn,
                        .k = experts->rows[e],
                        .a = along_k(experts_gathered(experts, op->dout, e)),
                        .b = along_k(experts_act(experts, e)),
                        .c = experts_bwd_sum(experts, e, ddown),
                        .ldc = op->ffn,
                        .d = ddown,
                        .ldd = op->ffn};
}

/* dx of each row = (dg, du) (gate; up): [rows, hidden], one sum over 2F. */
static gemm_group_t experts_bwd_dx(const experts_t *experts, int64_t e) {
  const op_experts_bwd_t *op = experts->backward;
  int64_t stride = op->expert_stride;
  const void *gate = experts_weight(op->gate, stride, op->weight_dtype, e);
  const void *up = experts_weight(op->up, stride, op->weight_dtype, e);
  /* Where up's rows follow gate's they are one matrix. */
  if (!op->interleaved && up == vec_at(gate, op->ffn * op->hidden, op->weight_dtype)) up = NULL;
  return (gemm_group_t){
      .m = experts->rows[e],
      .n = op->hidden,
      .k = 2 * op->ffn,
      .a = experts_pre(experts, e, 0),
      .b = {.data = gate,
            .second = up,
            .split = op->ffn,
            .ld = experts_row(op->hidden, op->interleaved),
            .dtype = op->weight_dtype,
            .along_k = 1},
      .d = experts->y + experts->local[e] * op->hidden,
      .ldd = op->hidden};
}

/* Whether dup's rows follow dgate's as du follows dg in pre: then one product gives both. */
static int experts_bwd_joined(const op_experts_bwd_t *op) {
  return !op->interleaved && op->dup == op->dgate + op->ffn * op->hidden;
}

/* [F, hidden] += dg^T x, over the rows; joined, [2F, hidden] += (dg, du)^T x. */
static gemm_group_t experts_bwd_dgate(const experts_t *experts, int64_t e) {
  const op_experts_bwd_t *op = experts->backward;
  float *dgate = op->dgate + e * op->expert_stride;
  return (gemm_group_t){
      .m = experts_bwd_joined(op) ? 2 * op->ffn : op->ffn,
      .n = op->hidden,
      .k = experts->rows[e],
      .a = along_k(experts_pre(experts, e, 0)),
      .b = along_k(experts_gathered(experts, op->x, e)),
      .c = experts_bwd_sum(experts, e, dgate),
      .ldc = experts_row(op->hidden, op->interleaved),
      .d = dgate,
      .ldd = experts_row(op->hidden, op->interleaved)};
}

/* The same of du. */
static gemm_group_t experts_bwd_dup(const experts_t *experts, int64_t e) {
  const op_experts_bwd_t *op = experts->backward;
  gemm_group_t group = experts_bwd_dgate(experts, e);
  group.a = along_k(experts_pre(experts, e, 1));
  float *dup = op->dup + e * op->expert_stride;
  group.c = experts_bwd_sum(experts, e, dup), group.d = dup;
  return group;
}

/* item: an expert, whose gradients become zeros if it has no rows in any chunk. */
static void experts_bwd_idle(void *context, int64_t e, int32_t thread) {
  const op_experts_bwd_t *op = context;
  (void)thread;
  if (op->routing.offset[e] < op->routing.offset[e + 1]) return;
  int64_t row = experts_row(op->hidden, op->interleaved), at = e * op->expert_stride;
  size_t bytes = (size_t)op->hidden * sizeof(float);
  for (int64_t f = 0; f < op->ffn; f++, at += row)
    memset(op->dgate + at, 0, bytes), memset(op->dup + at, 0, bytes);
  memset(op->ddown + e * op->expert_stride, 0, (size_t)op->ffn * bytes);
}

/* <dout_t, down_bias_e> of a slot. */
static float experts_bias_dot(const op_experts_bwd_t *op, int64_t t, int64_t e, int32_t act) {
  vf sum = vf_zero();
  for (int64_t c = 0; c < op->hidden; c += VEC_WIDTH) {
    int64_t left = op->hidden - c;
    sum = vf_fma(vf_load_as_next(op->dout, t * op->hidden + c, left, act),
                 vf_load_as_next(op->down_bias, e * op->bias_stride + c, left,
                                     op->weight_dtype),
                 sum);
  }
  return vf_sum(sum);
}

/* out[c * step] += sum over the chunk's rows of an expert, in order, of
 * factor(r) x[r, c]; the factor of gathered rows is their weight, that of others 1. */
static void experts_sum_rows(float *out, int64_t step, int64_t width, const gemm_operand_t *x,
                             int64_t rows, const op_experts_bwd_t *op, int64_t first,
                             int32_t act) {
  for (int64_t c = 0; c < width; c += VEC_WIDTH) {
    vf sum = vf_zero();
    for (int64_t r = 0; r < rows; r++) {
      vf value = vf_load_as_next(gemm_row(x, r), c, width - c, act);
      float weight = x->gather ? op->routing.weight[op->routing.row_slot[first + r]] : 1.0f;
      sum = vf_fma(vf_set1(weight), value, sum);
    }
    float lanes[VEC_WIDTH];
    vf_store(lanes, sum);
    for (int64_t l = 0; l < vec_min(width - c, VEC_WIDTH); l++) out[(c + l) * step] += lanes[l];
  }
}

/* item: an expert, whose biases' gradients take the chunk's rows. */
static void experts_bwd_biases(void *context, int64_t e, int32_t thread) {
  const experts_t *experts = context;
  const op_experts_bwd_t *op = experts->backward;
  (void)thread;
  int64_t rows = experts->rows[e], first = experts->row[e], at = e * op->bias_stride;
  int64_t step = op->interleaved ? 2 : 1;
  struct {
    float *out;
    int64_t step, width;
    gemm_operand_t x;
  } sums[] = {{op->dgate_bias + at, step, op->ffn, experts_pre(experts, e, 0)},
              {op->dup_bias + at, step, op->ffn, experts_pre(experts, e, 1)},
              {op->ddown_bias + at, 1, op->hidden, experts_gathered(experts, op->dout, e)}};
  for (int i = 0; i < 3; i++)
    experts_sum_rows(sums[i].out, sums[i].step, sums[i].width, &sums[i].x, rows, op, first,
                     op->act_dtype);
}

static float experts_dweight(const experts_t *experts, int64_t row) {
  if (row < 0) return 0;
  float sum = 0;
  for (int64_t p = 0; p < experts_parts(experts); p++)
    sum += experts->dot[row * experts_parts(experts) + p];
  return sum;
}

VEC_INLINE void experts_bwd_combine_token(const experts_t *experts, int64_t t, int32_t act) {
  const op_experts_bwd_t *op = experts->backward;
  for (int64_t s = t * op->top_k; s < (t + 1) * op->top_k; s++) {
    int64_t row = experts_local_row(experts, s);
    op->dweight[s] = experts_dweight(experts, row);
    if (op->down_bias && row >= 0)
      op->dweight[s] += experts_bias_dot(op, t, op->routing.expert[s], act);
  }
  for (int64_t c = 0; c < op->hidden; c += VEC_WIDTH) {
    int64_t left = op->hidden - c;
    vf sum = vf_zero();
    for (int64_t s = t * op->top_k; s < (t + 1) * op->top_k; s++) {
      int64_t row = experts_local_row(experts, s);
      if (row >= 0) sum = vf_add(sum, vf_load_next(experts->y + row * op->hidden + c, left));
    }
    vf_store_as_next(op->dx, t * op->hidden + c, left, act, sum);
  }
}

static void experts_bwd_combine_item(void *context, int64_t item, int32_t thread) {
  const experts_t *experts = context;
  (void)thread;
  int64_t first = experts->begin + item * EXPERTS_TOKENS;
  int64_t last = vec_min(first + EXPERTS_TOKENS, experts->end);
  for (int64_t t = first; t < last; t++)
    VEC_BY_ACT(experts->act_dtype, experts_bwd_combine_token(experts, t, VEC_ACT));
}

nn_status_t VEC(experts_bwd)(backend_device_t *device, const op_experts_bwd_t *op,
                             backend_scratch_t scratch) {
  experts_t experts = {.n = op->n,
                       .hidden = op->hidden,
                       .ffn = op->ffn,
                       .experts = op->experts,
                       .top_k = op->top_k,
                       .weight_dtype = op->weight_dtype,
                       .act_dtype = op->act_dtype,
                       .routing = &op->routing,
                       .backward = op};
  experts_lay_out(&experts, device, scratch);
  op_experts_bwd_t args = *op;
  if (op->assign)
    STATUS_TRY(vec_run(device, op->experts, 3 * op->experts * op->ffn * op->hidden,
                       experts_bwd_idle, &args));
  while (experts.end < op->n) {
    experts_begin_chunk(&experts, experts.end);
    STATUS_TRY(
        experts_product(device, &experts, experts_bwd_down, experts_bwd_down_store, scratch));
    if (op->dgate_bias)
      STATUS_TRY(vec_run(device, op->experts,
                         (experts.end - experts.begin) * op->top_k * (2 * op->ffn + op->hidden),
                         experts_bwd_biases, &experts));
    STATUS_TRY(experts_product(device, &experts, experts_bwd_ddown, NULL, scratch));
    STATUS_TRY(experts_product(device, &experts, experts_bwd_dx, NULL, scratch));
    STATUS_TRY(experts_product(device, &experts, experts_bwd_dgate, NULL, scratch));
    if (!experts_bwd_joined(op))
      STATUS_TRY(experts_product(device, &experts, experts_bwd_dup, NULL, scratch));
    STATUS_TRY(experts_combine(device, &experts, experts_bwd_combine_item));
  }
  return NN_OK;
}
