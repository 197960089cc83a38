/* Linear layers and norms over the n tokens of a pass, forward beside backward. */
#ifndef NN_MODEL_LINEAR_H
#define NN_MODEL_LINEAR_H

#include "model/block.h"

/* Calls an operation of the pass's backend. */
#define PASS_RUN(pass, name, ...) \
  (pass)->backend->name((pass)->place, &(__VA_ARGS__), (pass)->scratch)

static inline int64_t pass_rows(const pass_t *pass) { return pass->batch * pass->q_len; }

/* y = alpha (x w^T + bias). */
typedef struct linear {
  int64_t in, out;
  const void *w;    /* [out, in] */
  const void *bias; /* [out] or NULL */
  float alpha;      /* 0: 1 */
  int64_t ldx, ldy; /* elements between rows of x and dx, of y and dy; 0: in, out */
} linear_t;

/* y[n, out] = the layer of x[n, in], plus residual[n, out]: the operation, and run. */
op_matmul_t linear_op(const pass_t *pass, const linear_t *layer, const void *x,
                      const void *residual, void *y);
nn_status_t linear_forward(const pass_t *pass, const linear_t *layer, const void *x,
                           const void *residual, void *y);

/* dw += alpha dy^T x, or is assigned that; dbias += alpha times the sum of dy's rows. dbias NULL:
 * there is no bias. */
nn_status_t linear_weight_bwd(const pass_t *pass, const linear_t *layer, const void *x,
                              const void *dy, float *dw, float *dbias);

/* dx[n, in] = alpha dy[n, out] w, onto what is there where `adds`, and through GELU's derivative at
 * gelu_pre where that is given. */
nn_status_t linear_input_bwd(const pass_t *pass, const linear_t *layer, const void *dy, void *dx,
                             bool adds, void *gelu_pre);

/* The norms of a block and the one at the end, over n rows of `hidden`. */
op_norm_t norm_op(const pass_t *pass, int64_t n, const void *x, const void *w, const void *b,
                  void *y, float *mean, float *rstd);

/* dx += the gradient through such a norm of the pass's rows. */
nn_status_t norm_backward(const pass_t *pass, const void *x, const void *dy, const void *w,
                          const float *mean, const float *rstd, void *dx, float *dw, float *db);

#endif
