#include "experts64.h"

#include <math.h>
#include <string.h>

#include "ops.h"

/* sum of x[i] y[i stride]; size: sum of magnitudes. */
static double dot64(const double *x, const double *y, int64_t n, int64_t stride, double *size) {
  double sum = 0;
  *size = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += x[i] * y[i * stride];
    *size += fabs(x[i] * y[i * stride]);
  }
  return sum;
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* a = gate * up of an element, both as the activation has made them from g and u, and their slopes:
 * silu(g) and u, or clamped g' sigmoid(1.702 g') and u' + 1. */
typedef struct act64 {
  double gate, up, gate_slope, up_slope;
} act64_t;

static act64_t act64(double g, double u, double limit) {
  double k = limit == 0 ? 1 : 1.702, inner = limit == 0 ? g : fmin(g, limit);
  double s = sigmoid(k * inner);
  act64_t a = {.gate = inner * s, .up = u, .up_slope = 1};
  a.gate_slope = limit != 0 && g > limit ? 0 : s * (1 + k * inner * (1 - s));
  if (limit == 0) return a;
  a.up = fmax(fmin(u, limit), -limit) + 1;
  a.up_slope = fabs(u) <= limit;
  return a;
}

/* Activations of a slot's row, a and what fp32 may be off; the gate has a slope of at most 1.1, and
 * is itself evaluated to a few units in the last place; to the up 1 may be added. */
static void slot_up(experts64_t *e, int64_t s, double *a, double *a_slack) {
  int64_t expert = e->routing.expert[s], row = e->routing.slot_row[s], h = e->hidden, f = e->ffn;
  const double *x = e->x + s / e->top_k * h;
  double *pre = e->pre + row * 2 * f, *slack = e->pre_slack + row * 2 * f;
  for (int64_t i = 0; i < f; i++) {
    double size_g, size_u;
    double g_bias = e->gate_bias[expert * f + i], u_bias = e->up_bias[expert * f + i];
    double g = dot64(x, e->gate + (expert * f + i) * h, h, 1, &size_g) + g_bias;
    double u = dot64(x, e->up + (expert * f + i) * h, h, 1, &size_u) + u_bias;
    pre[i] = g, pre[f + i] = u;
    slack[i] = ops_sum_error(h + 1) * (size_g + fabs(g_bias));
    slack[f + i] = ops_sum_error(h + 1) * (size_u + fabs(u_bias));
    act64_t act = act64(g, u, e->limit);
    a[i] = act.gate * act.up;
    a_slack[i] = 1.1 * fabs(act.up) * slack[i] + fabs(act.gate) * (slack[f + i] + OPS_U) +
                 (32 * OPS_U * (1 + fabs(g)) + e->rounding) * fabs(a[i]);
  }
}

void experts64_forward(experts64_t *e) {
  int64_t h = e->hidden, f = e->ffn;
  double *a = ops_doubles(f), *a_slack = ops_doubles(f);
  memset(e->out, 0, (size_t)(e->n * h) * sizeof(double));
  for (int64_t i = 0; i < e->n * h; i++) e->out_slack[i] = 4 * OPS_U * (1 + (double)e->top_k);
  for (int64_t s = 0; s < e->n * e->top_k; s++) {
    if (e->routing.slot_row[s] < 0) continue;
    slot_up(e, s, a, a_slack);
    for (int64_t c = 0; c < h; c++) {
      const double *down = e->down + (e->routing.expert[s] * h + c) * f;
      double bias = e->down_bias[e->routing.expert[s] * h + c];
      double size, off = 0, y = dot64(a, down, f, 1, &size) + bias;
      size += fabs(bias);
      for (int64_t i = 0; i < f; i++) off += fabs(down[i]) * a_slack[i];
      int64_t at = s / e->top_k * h + c;
      e->out[at] += e->weight[s] * y;
      e->out_slack[at] +=
          e->weight[s] * (off + (ops_sum_error(f + 1) + 4 * OPS_U * (double)e->top_k) * size);
    }
  }
}

/* Gradients of one element of F of a slot's row, and what fp32 may be off. */
typedef struct element64 {
  double g, a, d, dg, du;              /* d: down^T dout */
  double d_slack, dg_slack, du_slack;
} element64_t;

static element64_t element64(const experts64_t *e, int64_t s, int64_t i) {
  int64_t expert = e->routing.expert[s], row = e->routing.slot_row[s], h = e->hidden, f = e->ffn;
  double size, w = e->weight[s];
  element64_t l = {.g = e->pre[row * 2 * f + i]};
  act64_t act = act64(l.g, e->pre[row * 2 * f + f + i], e->limit);
  l.d = dot64(e->dout + s / e->top_k * h, e->down + expert * h * f + i, h, f, &size);
  l.d_slack = ops_sum_error(h) * size;
  l.a = act.gate * act.up;
  l.dg = w * l.d * act.up * act.gate_slope;
  l.du = w * l.d * act.gate * act.up_slope;
  /* slope and gate are below 1.1 (1 + |g|), and fp32 makes them to a few units in the last place of
   * that, from pre in fp32 */
  double part = 64 * OPS_U * 1.1 * (1 + fabs(l.g)) * w * fabs(l.d);
  l.dg_slack = w * fabs(act.up * act.gate_slope) * l.d_slack + part * (1 + fabs(act.up)) +
               e->rounding * fabs(l.dg);
  l.du_slack = w * fabs(act.gate) * l.d_slack + part + e->rounding * fabs(l.du);
  return l;
}

/* to[i] += by x[i], its slack by what `by` and a sum of `terms` products may be off. */
static void add64(double *to, double *slack, const double *x, int64_t n, int64_t stride, double by,
                  double by_slack, double terms) {
  for (int64_t i = 0; i < n; i++) {
    to[i * stride] += by * x[i];
    slack[i * stride] += fabs(x[i]) * (by_slack + (terms + 8 * OPS_U) * fabs(by));
  }
}

void experts64_backward(experts64_t *e) {
  static const double one = 1;
  int64_t h = e->hidden, f = e->ffn;
  for (int64_t s = 0; s < e->n * e->top_k; s++) {
    if (e->routing.slot_row[s] < 0) continue;
    int64_t t = s / e->top_k, expert = e->routing.expert[s];
    double over_f = ops_sum_error(2 * f * e->top_k);
    double over_rows = ops_sum_error(e->routing.offset[expert + 1] - e->routing.offset[expert]);
    for (int64_t i = 0; i < f; i++) {
      element64_t l = element64(e, s, i);
      int64_t at = (expert * f + i) * h, at_down = expert * h * f + i;
      add64(e->dx + t * h, e->dx_slack + t * h, e->gate + at, h, 1, l.dg, l.dg_slack, over_f);
      add64(e->dx + t * h, e->dx_slack + t * h, e->up + at, h, 1, l.du, l.du_slack, over_f);
      add64(e->dgate + at, e->dgate_slack + at, e->x + t * h, h, 1, l.dg, l.dg_slack, over_rows);
      add64(e->dup + at, e->dup_slack + at, e->x + t * h, h, 1, l.du, l.du_slack, over_rows);
      add64(e->dgate_bias + expert * f + i, e->dgate_bias_slack + expert * f + i, &one, 1, 1, l.dg,
            l.dg_slack, over_rows);
      add64(e->dup_bias + expert * f + i, e->dup_bias_slack + expert * f + i, &one, 1, 1, l.du,
            l.du_slack, over_rows);
      double wa = e->weight[s] * l.a, off = (64 * OPS_U * (1 + fabs(l.g)) + e->rounding) * fabs(wa);
      add64(e->ddown + at_down, e->ddown_slack + at_down, e->dout + t * h, h, f, wa, off,
            over_rows);
      e->dweight[s] += l.d * l.a;
      e->dweight_slack[s] +=
          fabs(l.a) * (l.d_slack + (ops_sum_error(f) + 64 * OPS_U * (1 + fabs(l.g))) * fabs(l.d));
    }
    double size;
    e->dweight[s] += dot64(e->dout + t * h, e->down_bias + expert * h, h, 1, &size);
    e->dweight_slack[s] += (ops_sum_error(h) + OPS_U) * size + 2 * OPS_U * fabs(e->dweight[s]);
    add64(e->ddown_bias + expert * h, e->ddown_bias_slack + expert * h, e->dout + t * h, h, 1,
          e->weight[s], 0, over_rows);
  }
}
