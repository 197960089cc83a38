/* The experts' gated networks over routed tokens in fp64, forward and backward, and what an
 * operation in fp32 may be off: x_slack is that of x. */
#ifndef NN_TEST_EXPERTS64_H
#define NN_TEST_EXPERTS64_H

#include "backend.h"

typedef struct experts64 {
  int64_t n, hidden, ffn, experts, top_k;
  double rounding; /* relative, of what is made on the way before it is multiplied with weights */
  double limit;
  routing_t routing;
  double *x, *residual, *dout;          /* [n, hidden] */
  double *weight;                       /* [n, k] */
  double *gate, *up;                    /* [E, F, hidden] */
  double *down;                         /* [E, hidden, F] */
  double *gate_bias, *up_bias, *down_bias; /* [E, F] twice, [E, hidden]; zeros: there are none */
  double *out, *out_slack;              /* without the residual */
  double *pre, *pre_slack;              /* [n * k, 2F] */
  double *dx, *dx_slack, *dweight, *dweight_slack;
  double *dgate, *dgate_slack, *dup, *dup_slack, *ddown, *ddown_slack;
  double *dgate_bias, *dgate_bias_slack, *dup_bias, *dup_bias_slack, *ddown_bias, *ddown_bias_slack;
} experts64_t;

/* Assigns pre and out; reads what is above them. */
void experts64_forward(experts64_t *e);

/* Accumulates the gradients, once forward is done. */
void experts64_backward(experts64_t *e);

#endif
