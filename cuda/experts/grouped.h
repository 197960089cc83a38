/* Products over rows that are grouped by expert: rows offset[e] .. offset[e + 1] - 1 meet expert
 * e's matrices. Offsets lie on the device and are never read by the host; rows behind
 * offset[experts] are neither read into a result nor written. Every sum has one fixed order.
 *
 * Each product exists for any dtype on any device (portable.cu), for 16 bits on sm_90a by the
 * bulk copy engine and warpgroup products (sm90.cu), and for few rows by streaming the weights
 * (few.cu). experts.cu chooses. H: hidden, F: ffn. Matrices of activations are row-major and
 * packed. */
#ifndef NN_CUDA_GROUPED_H
#define NN_CUDA_GROUPED_H

#include "device.h"

typedef struct grouped {
  const int32_t *offset; /* [E + 1] */
  int64_t rows;          /* at least offset[E]; matrices of rows have so many */
  int64_t hidden, ffn, experts;
  int64_t stride;        /* elements from one expert's weights to the next one's */
  /* Other than plain SwiGLU; see op_experts_t. */
  float limit;                                  /* of the activation; 0: SwiGLU */
  int32_t apart;                                /* rows from one of gate to the next: 1 or 2 */
  const void *gate_bias, *up_bias, *down_bias; /* expert 0's; elements `apart` apart, but down's */
  int64_t bias_stride;
} grouped_t;

/* pre[r] = (gate x_r, up x_r) + biases as [rows, 2F], or pre NULL; act[r] = silu(gate x_r) * (up
 * x_r), or what else the activation makes of them, as [rows, F], or act NULL. Both in the dtype of
 * x; act comes from the sums before they are rounded. */
typedef struct grouped_up {
  const void *x;         /* [rows, H] */
  const void *gate, *up; /* [F, H] */
  void *pre, *act;
} grouped_up_t;

/* y[r] = down act_r, [rows, H]; without a bias. */
typedef struct grouped_down {
  const void *act;  /* [rows, F] */
  const void *down; /* [H, F] */
  void *y;
} grouped_down_t;

/* d = down^T dy_r; with g, u from pre, s = sigmoid(g), a = g s u, da = weight[r] d: pre becomes (da
 * u s (1 + g (1 - s)), da g s), or as the activation has it; act[r] = weight[r] a; dot[r, j] = the
 * part of <d, a> in the j-th slice of GROUPED_SLICE columns. */
enum { GROUPED_SLICE = 128 };
typedef struct grouped_dact {
  const void *dy;      /* [rows, H] */
  const void *down;    /* [H, F] */
  const float *weight; /* [rows] */
  void *pre;           /* [rows, 2F] read and written */
  void *act;           /* [rows, F] assigns */
  float *dot;          /* [rows, ceil(F / GROUPED_SLICE)] assigns */
} grouped_dact_t;

/* dx[r] = gate^T dpre_r[0..F) + up^T dpre_r[F..2F), [rows, H]. */
typedef struct grouped_dx {
  const void *dpre;      /* [rows, 2F] */
  const void *gate, *up; /* [F, H] */
  void *dx;
} grouped_dx_t;

/* Per expert that has rows, over these: dgate += dpre[:, 0..F)^T x, dup += dpre[:, F..2F)^T x,
 * [F, H], and ddown += dy^T act, [H, F], or assigns all three; fp32. stride as the weights'. */
typedef struct grouped_dw {
  const void *dpre; /* [rows, 2F] */
  const void *x;    /* [rows, H] */
  const void *dy;   /* [rows, H] */
  const void *act;  /* [rows, F] */
  float *dgate, *dup, *ddown;
  int32_t assign;
} grouped_dw_t;

/* portable.cu */
nn_status_t portable_up(backend_device_t *, int32_t dtype, const grouped_t *, const grouped_up_t *);
nn_status_t portable_down(backend_device_t *, int32_t dtype, const grouped_t *,
                          const grouped_down_t *);
nn_status_t portable_dact(backend_device_t *, int32_t dtype, const grouped_t *,
                          const grouped_dact_t *);
nn_status_t portable_dx(backend_device_t *, int32_t dtype, const grouped_t *, const grouped_dx_t *);
nn_status_t portable_dw(backend_device_t *, int32_t dtype, const grouped_t *, const grouped_dw_t *);

/* sm90.cu: 16 bits alone. sm90_fits says whether this device and these shapes can
 * be done so. */
int sm90_fits(const backend_device_t *, const grouped_t *);
nn_status_t sm90_up(backend_device_t *, int32_t dtype, const grouped_t *, const grouped_up_t *);
nn_status_t sm90_down(backend_device_t *, int32_t dtype, const grouped_t *, const grouped_down_t *);
nn_status_t sm90_dact(backend_device_t *, int32_t dtype, const grouped_t *, const grouped_dact_t *);
nn_status_t sm90_dx(backend_device_t *, int32_t dtype, const grouped_t *, const grouped_dx_t *);
nn_status_t sm90_dw(backend_device_t *, int32_t dtype, const grouped_t *, const grouped_dw_t *);

/* few.cu: forward for at most FEW_ROWS rows, each streaming its expert's weights. Here row r's x is
 * x[row_slot[r] / top_k], and the sum over a token's slots comes with the down product: out[t] =
 * residual[t] + sum over slots, in order, of weight * down act. */
enum { FEW_ROWS = 16 };
typedef struct few_up_args {
  const void *x;           /* [n, H] */
  const int32_t *row_slot; /* [rows] */
  int64_t top_k;
  const void *gate, *up;   /* [F, H] */
  void *pre, *act;         /* as grouped_up_t's */
} few_up_t;
typedef struct few_down_args {
  int64_t n, top_k;        /* n * top_k rows at most */
  const int32_t *slot_row; /* [n * top_k], -1: the slot has no row */
  const float *weight;     /* [n * top_k] */
  const void *act;         /* [rows, F] */
  const void *down;        /* [H, F] */
  const void *residual;    /* [n, H] or NULL */
  void *out;               /* [n, H] assigns; may be residual */
  const int32_t *expert;   /* [n * top_k], for the bias */
} few_down_t;
nn_status_t few_up(backend_device_t *, int32_t dtype, const grouped_t *, const few_up_t *);
nn_status_t few_down(backend_device_t *, int32_t dtype, const grouped_t *, const few_down_t *);

/* bias.cu: what the biases get and give backward. dgate_bias and dup_bias += the sums of dpre over
 * each expert's rows, ddown_bias += that of weight dy; then dweight of each slot += <dy,
 * down_bias>. */
typedef struct grouped_bias_args {
  const void *dpre;        /* [rows, 2F] */
  const void *dy;          /* [rows, H] */
  const float *weight;     /* [rows] */
  float *dgate_bias, *dup_bias, *ddown_bias;
  int64_t slots;
  const int32_t *expert, *slot_row; /* [slots] */
  float *dweight;                   /* [slots] */
} grouped_bias_t;
nn_status_t grouped_bias_bwd(backend_device_t *, int32_t dtype, const grouped_t *,
                             const grouped_bias_t *);

/* thin.cu: forward for few rows of each expert, 16 bits alone; rows as above. thin_fits: so many
 * rows of these shapes, at these addresses (or-ed), can be done so and gain from it. */
int thin_fits(const grouped_t *, uintptr_t at);
nn_status_t thin_up(backend_device_t *, int32_t dtype, const grouped_t *, const few_up_t *);
nn_status_t thin_down(backend_device_t *, int32_t dtype, const grouped_t *, const grouped_down_t *);

#endif
