/* The only door between the core and a device: a struct of functions.
 *
 * Every pointer in an argument struct is device memory unless it says host. The core has checked
 * all sizes, ids and dtypes before it calls. "Assigns" and "accumulates" (+=) are said per output.
 * Results are the same bits for any number of threads and on every run: each sum has one fixed
 * order.
 *
 * Calls come from any thread. alloc, free, copy_in, copy_out, describe, workspace_bytes and
 * graph_free may come while another thread's operation runs or is recorded; operations and zero
 * come one at a time.
 *
 * Order. An operation, or zero, may return before it is done: then its failure comes from a later
 * call, and what is called later sees what it wrote. copy_in has read `host` when it returns;
 * copy_out has waited for everything called before it; free waits until nothing uses the memory.
 * Argument structs are read before the call returns.
 *
 * Failures. A function that returns another status than NN_OK has set the caller's message
 * (backend_options_t's fail). Once the caller cancels, operations return NN_ERR_CANCELLED within a
 * few milliseconds and leave undefined what they were to write; zero, grad_norm, adamw and
 * fill_normal do not look: an update is made whole.
 *
 * Parameters are written by copy_in, zero, fill_normal and adamw alone.
 *
 * dtypes. Parameters that are read have `weight_dtype`: NN_F32, NN_BF16 or NN_F16. Activations and
 * their gradients, written `void` below, have `act_dtype`: NN_F32, or beside parameters of 16 bits
 * what backend_info_t says. Statistics and the gradients of parameters are fp32. Accumulation is
 * fp32 or better, and what is stored in 16 bits is rounded to the nearest; beyond the range of fp16
 * it is infinite. fp32 factors beside bf16 ones may be rounded to bf16.
 *
 * Shapes use: n tokens (rows), hidden, heads A, kv_heads K, head_dim D (at most 256), ffn F,
 * experts E (at most 1024), top_k k (at most 64), vocab V. Row-major, last index fastest. Members
 * called alpha, and those that say so, are factors of which 0 stands for 1 (backend_factor).
 *
 * This header is C11 and C++17. */
#ifndef NN_BACKEND_H
#define NN_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include "moenn.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Changes with anything below that a backend built before would misread. Until then the table and
 * the structs that begin with struct_size only grow at their ends. */
#define BACKEND_ABI_VERSION 7

typedef struct backend_device backend_device_t; /* owned by the backend */

/* What a factor means of which 0 stands for 1. */
static inline float backend_factor(float factor) { return factor == 0.0f ? 1.0f : factor; }

/* Scratch memory lent to one operation until it is done. Its content is undefined before and after.
 * zero takes none, and fill_normal, which uses none, may be given NULL. */
typedef struct backend_scratch {
  void *data;   /* aligned as what alloc gives */
  size_t bytes; /* at least workspace_bytes() of limits that cover the call */
} backend_scratch_t;

/* Upper bounds of the calls to come; zero members are not used by them. The counts of grad_norm,
 * adamw and fill_normal have no bound. */
typedef struct backend_limits {
  int64_t rows;    /* n of any operation */
  int64_t batch;   /* sequences of attention */
  int64_t kv_len;  /* keys of one sequence; 0: op_attention_t's kv_len is NULL, keys are its rows */
  int64_t hidden, heads, kv_heads, head_dim, ffn, experts, top_k, vocab;
  int32_t weight_dtype, act_dtype;
  int32_t training; /* 1: backward operations too */
} backend_limits_t;

/* ---- embedding ------------------------------------------------------------------------------- */

typedef struct op_embed {
  int64_t n, hidden;
  const int32_t *ids;      /* [n] */
  const int32_t *position; /* [n], used with wpe */
  const void *wte;         /* [V, hidden] */
  const void *wpe;         /* [context, hidden] or NULL */
  int32_t weight_dtype, act_dtype;
  float alpha;
  void *out;               /* [n, hidden] assigns alpha wte[id] + wpe[position] */
} op_embed_t;

typedef struct op_embed_bwd {
  int64_t n, hidden, vocab, context;
  const int32_t *ids, *position; /* [n] */
  int32_t act_dtype;
  const void *dout;              /* [n, hidden] */
  float alpha;                   /* of dwte alone */
  float *dwte;                   /* [V, hidden] accumulates alpha dout */
  float *dwpe;                   /* [context, hidden] accumulates, or NULL */
} op_embed_bwd_t;

/* ---- norm: RMS or layer ---------------------------------------------------------------------- */

/* Each of a row's groups of `hidden` elements is normed by itself, all with the same w and b: the
 * heads of a query, or the whole row. */
typedef struct op_norm {
  int64_t n, hidden;
  int64_t groups;   /* G of a row; 0: 1 */
  int64_t ldx, ldy; /* elements between rows of x and of y; 0: G * hidden */
  int32_t kind;     /* NN_NORM_ */
  float eps;
  const void *x; /* [n, G, hidden] */
  const void *w; /* [hidden] */
  const void *b; /* [hidden] or NULL */
  int32_t weight_dtype, act_dtype;
  void *y;     /* [n, G, hidden] assigns */
  float *mean; /* [n, G] assigns, layer norm only; NULL: not wanted */
  float *rstd; /* [n, G] assigns 1 / sqrt(variance or mean square + eps); NULL: not wanted */
} op_norm_t;

typedef struct op_norm_bwd {
  int64_t n, hidden;
  int64_t groups;     /* as in forward */
  int64_t ldx, ldy;   /* elements between rows of x, and of dy and dx; 0: G * hidden */
  int32_t kind;
  int32_t assign;     /* 1: dx is assigned, and may be dy */
  const void *x, *dy; /* [n, G, hidden] */
  const void *w;      /* [hidden] */
  int32_t weight_dtype, act_dtype;
  const float *mean, *rstd; /* [n, G] from forward */
  void *dx;                 /* [n, G, hidden] accumulates */
  float *dw, *db;           /* [hidden] accumulate; db may be NULL */
} op_norm_bwd_t;

/* ---- matrix product -------------------------------------------------------------------------- */

enum {
  MATMUL_NONE = 0,
  MATMUL_GELU = 1,     /* d = gelu_tanh(v) and, where aux is given, aux = v */
  MATMUL_GELU_BWD = 2  /* d = v * gelu_tanh'(aux) */
};

/* v = alpha (op(a) [m, k] . op(b) [k, n] + bias (each row)) + c; d = epilogue(v). Strides are in
 * elements between stored rows. A linear layer y = x W^T, W [out, in], is trans_b = 1; dx = dy W
 * is neither; dW = dy^T x is trans_a = 1. */
typedef struct op_matmul {
  int64_t m, n, k;
  int32_t trans_a; /* 0: a stored [m, k]; 1: stored [k, m] */
  int32_t trans_b; /* 0: b stored [k, n]; 1: stored [n, k] */
  const void *a;
  int64_t lda;
  const void *b;
  int64_t ldb;
  int32_t a_dtype, b_dtype; /* act_dtype; weight_dtype or act_dtype */
  float alpha;
  const void *bias;  /* [n] of b_dtype, or NULL */
  const void *c;     /* [m, n] or NULL; may be d (accumulation) or another matrix (residual) */
  int64_t ldc;
  void *d;           /* [m, n] assigns */
  int64_t ldd;
  int32_t d_dtype;   /* of c, d and aux: a_dtype or NN_F32 */
  int32_t epilogue;  /* MATMUL_ */
  void *aux;         /* [m, n], stride ldd */
} op_matmul_t;

/* out[j] += alpha * the sum over rows i, in order, of x[i, j]: the gradient of a bias. */
typedef struct op_column_sum {
  int64_t n, width;
  int32_t act_dtype;
  float alpha;
  const void *x; /* [n, width] */
  int64_t ldx;
  float *out; /* [width] accumulates */
} op_column_sum_t;

/* ---- clamping -------------------------------------------------------------------------------- */

/* y = x clamped to [-limit, limit]. */
typedef struct op_clip {
  int64_t n, width;
  float limit; /* above 0 */
  int32_t act_dtype;
  const void *x; /* [n, width] */
  int64_t ldx;
  void *y; /* [n, width] assigns; may be x */
  int64_t ldy;
} op_clip_t;

/* dx = 0 where x, forward's input, was beyond the limit; elsewhere it stays. */
typedef struct op_clip_bwd {
  int64_t n, width;
  float limit;
  int32_t act_dtype;
  const void *x; /* [n, width] */
  int64_t ldx;
  void *dx; /* [n, width] of y, then of x */
  int64_t lddx;
} op_clip_bwd_t;

/* ---- copies of heads ------------------------------------------------------------------------- */

/* y[t, h] = x[t, h] for `width` elements of each head h; heads lie step_x and step_y elements apart
 * in their rows. step_x = 0: every head is a copy of the one that x has. step_y = 0: y is the sum
 * of the heads, in order. */
typedef struct op_copy_heads {
  int64_t n, heads, width;
  int64_t zeros; /* elements behind each head of y that become 0 */
  int32_t act_dtype;
  const void *x;
  int64_t ldx, step_x;
  void *y; /* assigns; not x */
  int64_t ldy, step_y;
} op_copy_heads_t;

/* ---- rotary positions ------------------------------------------------------------------------ */

/* Rotates the first d = rotary_dim elements of the first `heads` heads of each row in place:
 * y[a] = x[a] c_i - x[b] s_i, y[b] = x[b] c_i + x[a] s_i for i < d/2, with a = i and b = i + d/2,
 * or interleaved a = 2i and b = 2i + 1. inverse = 1 has -s for s: the transpose, which is the
 * backward pass, also where the table's numbers carry a factor. Query and key heads are adjacent in
 * a row, so one call turns both. */
typedef struct op_rope {
  int64_t n, heads, head_dim;
  int64_t rotary_dim; /* 0: head_dim */
  int32_t interleaved;
  int32_t act_dtype;
  void *x;       /* [n, heads of head_dim ...] */
  int64_t ldx;   /* elements between rows */
  const int32_t *position; /* [n] row of the table */
  const float *table;      /* [positions, d]: d/2 cosines, then d/2 sines */
  int32_t inverse;
} op_rope_t;

/* ---- attention ------------------------------------------------------------------------------- */

/* o = softmax(scale q k^T, causal) v per head; head a reads key-value head a / (A / K). Heads of a
 * row are adjacent. Sequence b has kv_len[b] keys, the last q_len of which belong to its q rows:
 * row i sees keys up to kv_len[b] - q_len + i, with a window the last `window` of these. With
 * `sequence`, its keys are those of sequence[b] in k and v. With sinks, softmax has one more logit,
 * which is not scaled and has no value. Never forms more than a tile of the scores. */
typedef struct op_attention {
  int64_t batch, q_len, heads, kv_heads, head_dim;
  int64_t window; /* 0: none */
  int32_t weight_dtype, act_dtype; /* weight_dtype: of sinks */
  const void *q;         /* row i of sequence b at (b * q_len + i) * ldq, A heads of D */
  int64_t ldq;
  const void *k, *v;     /* row j of sequence b at b * kv_batch + j * ldkv, K heads of D */
  int64_t ldkv, kv_batch; /* with kv_len, a sequence has room for kv_batch / ldkv keys */
  const int32_t *kv_len; /* [batch], or NULL: q_len for each; 0: the sequence is skipped */
  const int32_t *sequence; /* [batch] which sequence of k and v each is, or NULL: the b-th */
  float scale;
  const void *sinks;     /* [A] or NULL */
  void *o;               /* [batch * q_len, A * D] assigns; rows of skipped sequences become 0 */
  float *lse;            /* [batch * q_len, A] assigns log-sum-exp of the scaled scores and the
                            sink, -infinity for skipped sequences; or NULL */
} op_attention_t;

/* Gradients of the above for kv_len = NULL. */
typedef struct op_attention_bwd {
  int64_t batch, q_len, heads, kv_heads, head_dim;
  int64_t window;
  int32_t weight_dtype, act_dtype;
  const void *q;
  int64_t ldq;
  const void *k, *v;
  int64_t ldkv, kv_batch;
  float scale;
  const void *sinks;
  const void *o, *dout;  /* [batch * q_len, A * D] */
  const float *lse;      /* [batch * q_len, A] */
  void *dq;              /* assigns, laid out as q */
  void *dk, *dv;         /* assign, laid out as k and v */
  float *dsinks;         /* [A] accumulates, rows in order; NULL without sinks */
} op_attention_bwd_t;

/* Writes key and value rows into a cache: row i goes to sequence[i], position[i]; a negative
 * sequence is skipped. */
typedef struct op_kv_store {
  int64_t n, width;                     /* width = K * D */
  int32_t act_dtype;
  const void *k, *v;                    /* [n, width], stride ld */
  int64_t ld;
  const int32_t *sequence, *position;   /* [n] */
  void *k_cache, *v_cache;              /* row j of sequence b at b * cache_batch + j * width */
  int64_t cache_batch;
} op_kv_store_t;

/* ---- routing --------------------------------------------------------------------------------- */

/* The routing of one layer's tokens: built once, used by forward, backward and serving. Slot
 * s = t*k+j is token t's j-th choice; rows are slots sorted by expert, then by token. */
typedef struct routing {
  int32_t *expert;   /* [n, k] chosen experts, best first; ties go to the lower index */
  float *weight;     /* [n, k] what the chosen experts' outputs are multiplied by */
  int32_t *offset;   /* [E + 1] rows of expert e: offset[e] .. offset[e+1] - 1 */
  int32_t *row_slot; /* [n * k] slot of each row */
  int32_t *slot_row; /* [n * k] row of each slot, or -1 where capacity dropped it */
} routing_t;

/* How experts are chosen and weighed. With the logits l = x w^T + b in fp32, p is their softmax or
 * sigmoid, and c = p + choice_bias. Where there are groups of E / groups neighbours, those with the
 * top_groups best scores remain, a group's score being its largest c or the sum of its two largest.
 * Of what remains the top_k largest c are chosen, in falling order; all ties go to the lower index.
 * The weight of a chosen expert is scale p, or divided by the sum of the chosen p, scale p / S.
 *
 * NN_SCORE_SPARSE_MIXER is another way, for top_k = 2 without norm, choice bias and groups. The
 * first choice has the largest logit, the second the largest but that. With m a choice's logit, its
 * weight is scale times its part of the sum of exp(l) over the logits, for the second choice
 * without the first, that are near it: (m - l) / max(|l|, m) <= 2 eps. p is the softmax. */
typedef struct op_router {
  int32_t score;       /* NN_SCORE_ */
  int32_t norm;        /* NN_ROUTER_NORM_ */
  int32_t group_score; /* NN_GROUP_ */
  int64_t groups, top_groups; /* 0: no groups */
  float scale;         /* 0: 1 */
  float eps;           /* NN_SCORE_SPARSE_MIXER */
  const void *bias;        /* [E] of weight_dtype, or NULL */
  const void *choice_bias; /* [E] of weight_dtype, or NULL */
} op_router_t;

/* Logits, scores, choice, sorting. */
typedef struct op_route {
  int64_t n, hidden, experts, top_k;
  int64_t capacity; /* most rows of an expert; 0: no bound */
  const void *x;    /* [n, hidden] */
  const void *w;    /* [E, hidden] */
  int32_t weight_dtype, act_dtype;
  op_router_t router;
  routing_t out;      /* assigns */
  float *prob;        /* [n, E] assigns p */
  float *lse;         /* [n] assigns log-sum-exp of the logits */
  float *share;       /* [E] assigns the share of the n*k slots that chose e, drops included */
  float *mean_prob;   /* [E] assigns the mean over n of p, a row of sigmoids divided by its sum */
  float *mean_lse2;   /* [1] assigns the mean over n of lse^2 */
  int64_t *stat_count; /* [E + 1] accumulates slots per expert, drops included; [E]: drops; or
                          NULL */
  double *stat_prob;   /* [E] accumulates n times mean_prob; NULL with stat_count */
} op_route_t;

/* dlogits from dweight through the weights' definition and the scores, the choice held fixed, plus
 * the auxiliary losses, which NN_SCORE_SIGMOID has not:
 * dprob[t,e] += aux_scale * aux_share[e] / n; dlogit[t,e] += z_scale * 2 lse[t] prob[t,e] / n. */
typedef struct op_route_bwd {
  int64_t n, hidden, experts, top_k;
  const void *x; /* [n, hidden] */
  const void *w; /* [E, hidden] */
  int32_t weight_dtype, act_dtype;
  op_router_t router;
  routing_t routing;      /* expert and weight are read */
  const float *prob, *lse; /* from forward */
  const float *dweight;   /* [n, k], zero for dropped slots */
  const float *aux_share; /* [E] */
  float aux_scale, z_scale;
  void *dx;     /* [n, hidden] accumulates */
  float *dw;    /* [E, hidden] accumulates */
  float *dbias; /* [E] accumulates; NULL without a bias */
} op_route_bwd_t;

/* The auxiliary losses of a pass from its layers' statistics, coefficients left out:
 * loss[0] = sum over layers of E sum_e share_e mean_prob_e (NN_AUX_SWITCH), or E k sum_e of the
 * product of both's means over layers (NN_AUX_JOINT); loss[1] = sum over layers of mean_lse2. */
typedef struct op_router_loss {
  int64_t layers, experts, top_k;
  int32_t kind;       /* NN_AUX_ */
  const float *stats; /* [layers, 2E + 1]: what op_route wrote as share, mean_prob, mean_lse2 */
  double *loss;       /* [2] assigns */
  float *mean_share;  /* [E] assigns the mean of share over layers */
} op_router_loss_t;

/* ---- gated linear units ---------------------------------------------------------------------- */

/* act(g, u) of a row's gate g (its first F elements) and up u (its last F): silu(g) u, or with a
 * limit l > 0 g' sigmoid(1.702 g') (u' + 1), g' = min(g, l), u' = u clamped to [-l, l]. A dense FFN
 * is a product of 2F columns, this, and a product back; op_experts has it inside. */
typedef struct op_glu {
  int64_t n, ffn;
  float limit; /* 0: silu */
  int32_t act_dtype;
  const void *x;       /* [n, 2F] */
  const float *weight; /* [n] factors of the rows of y, or NULL */
  void *y;             /* [n, F] assigns weight act(g, u) */
} op_glu_t;

typedef struct op_glu_bwd {
  int64_t n, ffn;
  float limit;
  int32_t act_dtype;
  const void *x; /* [n, 2F] */
  const float *weight;
  const void *dy; /* [n, F] */
  void *dx;       /* [n, 2F] assigns; may be x */
  void *y;        /* [n, F] assigns what forward did; may be dy; or NULL */
  float *dweight; /* [n] assigns <dy, act(g, u)>; NULL without weight */
} op_glu_bwd_t;

/* gate[t] = sigmoid(<x_t, w>): the weight of a shared expert. */
typedef struct op_row_gate {
  int64_t n, width;
  const void *x; /* [n, width] */
  const void *w; /* [width] */
  int32_t weight_dtype, act_dtype;
  float *gate; /* [n] assigns */
} op_row_gate_t;

typedef struct op_row_gate_bwd {
  int64_t n, width;
  const void *x, *w;
  int32_t weight_dtype, act_dtype;
  const float *gate, *dgate; /* [n] */
  void *dx;                  /* [n, width] accumulates */
  float *dw;                 /* [width] accumulates, rows in order */
} op_row_gate_bwd_t;

/* ---- experts --------------------------------------------------------------------------------- */

/* out[t] = residual[t] + sum over j, in slot order, of
 * weight[t,j] * (down_e act(gate_e x + gate_bias_e, up_e x + up_bias_e) + down_bias_e). */
typedef struct op_experts {
  int64_t n, hidden, ffn, experts, top_k;
  float limit;   /* of act, as in op_glu_t */
  int32_t interleaved; /* 1: rows of gate and up are in turn in one matrix, up's behind gate's, and
                          elements of their biases: steps from one to the next are twice as large */
  const void *x; /* [n, hidden] */
  routing_t routing;
  const void *gate, *up; /* expert 0's [F, hidden] */
  const void *down;      /* expert 0's [hidden, F] */
  int64_t expert_stride; /* elements from one expert's matrix to the next one's, in all three */
  const void *gate_bias, *up_bias; /* expert 0's [F]; or NULL, all three */
  const void *down_bias;           /* expert 0's [hidden] */
  int64_t bias_stride;             /* elements from one expert's bias to the next one's */
  int32_t weight_dtype, act_dtype;
  void *pre; /* [n * k, 2F] assigns gate x + bias (first F) and up x + bias per row; or NULL */
  const void *residual; /* [n, hidden] or NULL */
  void *out;            /* [n, hidden] assigns; not x; may be residual; NULL: pre is all */
} op_experts_t;

/* Nothing but x, pre and the routing is kept from forward: the activation is made again from pre,
 * and dweight of a row is <dout W_down, a> + <dout, down_bias>. */
typedef struct op_experts_bwd {
  int64_t n, hidden, ffn, experts, top_k;
  float limit;
  int32_t interleaved; /* as in forward, the gradients too */
  const void *x; /* [n, hidden] */
  routing_t routing;
  const void *gate, *up, *down; /* as in forward */
  int64_t expert_stride;        /* of the weights and of their gradients */
  const void *down_bias;        /* or NULL: no biases */
  int64_t bias_stride;          /* of the biases and of their gradients */
  int32_t weight_dtype, act_dtype;
  void *pre;        /* [n * k, 2F] from forward; may be overwritten */
  const void *dout; /* [n, hidden] */
  void *dx;         /* [n, hidden] assigns; not dout */
  float *dweight;   /* [n, k] assigns; 0 for dropped slots */
  float *dgate, *dup, *ddown; /* of expert 0; accumulate */
  float *dgate_bias, *dup_bias, *ddown_bias; /* of expert 0; accumulate; NULL without biases */
  int32_t assign; /* 1: dgate, dup and ddown are assigned, zeros for experts without rows */
} op_experts_bwd_t;

/* ---- operations that follow one another ------------------------------------------------------ */

/* norm, matmul, rope and store, one after the other, as if each were asked for by itself; rope and
 * store of 0 rows are left out. matmul.a is norm.y, matmul.b a parameter, and what rope and store
 * read lies in matmul.d. A backend may make them in one. */
typedef struct op_project {
  op_norm_t norm;
  op_matmul_t matmul;
  op_rope_t rope;
  op_kv_store_t store;
} op_project_t;

/* norm, route and experts, one after the other, as if each were asked for by itself. route.x and
 * experts.x are norm.y, and experts.routing is route.out. A backend may make them in one. */
typedef struct op_moe {
  op_norm_t norm;
  op_route_t route;
  op_experts_t experts;
} op_moe_t;

/* ---- loss ------------------------------------------------------------------------------------ */

/* Head and cross-entropy together, over chunks of rows, so that all logits
 * l_i = alpha (w x_i + bias) never exist at once: row_loss[i] = logsumexp(l_i) - l_i[target_i], 0
 * where target_i < 0. Gradients of a row whose loss is not finite are NaN, so that the norm of all
 * gradients tells. */
typedef struct op_head_loss {
  int64_t n, hidden, vocab;
  const void *x; /* [n, hidden] */
  const void *w; /* [V, hidden] */
  int32_t weight_dtype, act_dtype;
  float alpha;           /* of the logits */
  const void *bias;      /* [V] of weight_dtype, or NULL */
  const int32_t *target; /* [n] */
  float *row_loss;       /* [n] assigns */
  double *loss_sum;      /* [1] assigns the sum of row_loss */
  const float *scale;    /* [1] of the gradients; used with dx */
  void *dx;              /* [n, hidden] assigns; NULL: forward only */
  float *dw;             /* [V, hidden] accumulates; used with dx */
  float *dbias;          /* [V] accumulates; used with dx and bias */
  int32_t assign;        /* 1: dw is assigned */
} op_head_loss_t;

/* y = softmax of each row of x; y may be x. */
typedef struct op_softmax {
  int64_t n, width;
  const float *x; /* [n, width] */
  float *y;       /* [n, width] assigns */
} op_softmax_t;

/* ---- optimizer ------------------------------------------------------------------------------- */

/* What differs from one update to the next: in device memory, so that a recorded update can run
 * again with what is there by then. */
typedef struct optim_now {
  double lr;
  double m_left, v_left; /* 1 - beta1^step and 1 - beta2^step, step 1 being the first update */
  double unscale;        /* factor of the gradients: 1 / what the loss was multiplied by */
} optim_now_t;

typedef struct op_grad_norm {
  int64_t count;
  const float *g;
  float max_norm;         /* 0: no clip */
  const optim_now_t *now; /* [1] unscale is read */
  double *out; /* [2] assigns: norm of g * unscale; the factor that unscales and clips g, which is
                  unscale * min(1, max_norm / norm), or unscale without a clip */
} op_grad_norm_t;

/* AdamW; see nn_optim_step(). Does nothing when scale[1] comes with a norm (scale[0]) that is not
 * finite. bf16 parameters have fp32 masters, of which p is the nearest bf16 number (halves away
 * from zero) and p_low the rest: seen as integers, master = p * 65536 + p_low. fp16 parameters have
 * whole masters beside them, of which p is the nearest fp16 number (ties to even); where it is not,
 * the master is p. */
typedef struct op_adamw {
  int64_t count;
  int64_t decayed; /* weight_decay is of elements [0, decayed); the others have none */
  int32_t weight_dtype;
  void *p;          /* updated */
  int16_t *p_low;   /* updated; of bf16 parameters, else NULL */
  float *master;    /* updated; of fp16 parameters, else NULL */
  const float *g;
  float *m, *v;     /* updated */
  const double *scale;    /* [2] what op_grad_norm wrote */
  const optim_now_t *now; /* [1] */
  float beta1, beta2, eps, weight_decay;
} op_adamw_t;

/* ---- choice of tokens ------------------------------------------------------------------------ */

/* Chooses one token from logits; see nn_sample_options_t for the order of filters. */
typedef struct op_sample {
  int64_t vocab;
  const float *logits;    /* [V] */
  const int32_t *history; /* [history_len] ids that the penalty applies to */
  int64_t history_len;
  float temperature, top_p, min_p, repetition_penalty; /* 0 as in nn_sample_options_t */
  int32_t top_k;
  uint64_t seed, counter; /* the uniform number is a function of these two */
  int32_t *token;         /* [1] assigns; -1 where a logit is NaN */
} op_sample_t;

/* ---- filling --------------------------------------------------------------------------------- */

/* Element i becomes std * normal(seed, stream, i), rounded to dtype. */
typedef struct op_fill_normal {
  void *out;
  int32_t dtype; /* NN_F32, NN_BF16 or NN_F16 */
  int64_t count;
  float std;
  uint64_t seed, stream;
} op_fill_normal_t;

/* ---- the table ------------------------------------------------------------------------------- */

#define BACKEND_OP(name, args) \
  nn_status_t (*name)(backend_device_t *device, const args *op, backend_scratch_t scratch)

/* What a device is. */
typedef struct backend_info {
  size_t struct_size;  /* set by the caller: nothing is written behind it */
  int32_t threads;     /* threads that compute; on the host */
  int32_t cpu_paths;   /* NN_CPU_ mask of the paths in use; 0 where the device is not the CPU */
  int32_t dlpack_device, dlpack_id; /* DLDeviceType and number of the device memory, for DLPack */
  int32_t act_dtype;   /* of activations beside NN_BF16 parameters: NN_F32 or NN_BF16 */
  const char *model;   /* such as "NVIDIA H200"; lives as long as the device */
  int32_t act_dtype_f16; /* of activations beside NN_F16 parameters: NN_F32 or NN_F16 */
  void *queue;         /* CUDA: the cudaStream_t in which all runs, for timing; else NULL */
} backend_info_t;

typedef struct backend_graph backend_graph_t; /* owned by the backend */

typedef struct backend {
  int32_t abi_version; /* BACKEND_ABI_VERSION */
  size_t struct_size;  /* sizeof(backend_t) */

  void (*close)(backend_device_t *device); /* waits for what runs; NULL is ignored */
  void (*describe)(const backend_device_t *device, backend_info_t *info);

  /* Memory. alloc is 64-byte aligned, on a GPU 256-byte aligned; bytes > 0. free takes what alloc
   * gave, with its size. Ranges of copies do not overlap. `host` pointers are host memory. */
  nn_status_t (*alloc)(backend_device_t *device, size_t bytes, void **data);
  void (*free)(backend_device_t *device, void *data, size_t bytes);
  nn_status_t (*copy_in)(backend_device_t *device, void *data, const void *host, size_t bytes);
  nn_status_t (*copy_out)(backend_device_t *device, void *host, const void *data, size_t bytes);
  nn_status_t (*zero)(backend_device_t *device, void *data, size_t bytes);

  /* Bytes of scratch that suffice for every operation within the limits. */
  size_t (*workspace_bytes)(const backend_device_t *device, const backend_limits_t *limits);

  BACKEND_OP(embed, op_embed_t);
  BACKEND_OP(embed_bwd, op_embed_bwd_t);
  BACKEND_OP(norm, op_norm_t);
  BACKEND_OP(norm_bwd, op_norm_bwd_t);
  BACKEND_OP(matmul, op_matmul_t);
  BACKEND_OP(column_sum, op_column_sum_t);
  BACKEND_OP(clip, op_clip_t);
  BACKEND_OP(clip_bwd, op_clip_bwd_t);
  BACKEND_OP(copy_heads, op_copy_heads_t);
  BACKEND_OP(rope, op_rope_t);
  BACKEND_OP(attention, op_attention_t);
  BACKEND_OP(attention_bwd, op_attention_bwd_t);
  BACKEND_OP(kv_store, op_kv_store_t);
  BACKEND_OP(route, op_route_t);
  BACKEND_OP(route_bwd, op_route_bwd_t);
  BACKEND_OP(router_loss, op_router_loss_t);
  BACKEND_OP(glu, op_glu_t);
  BACKEND_OP(glu_bwd, op_glu_bwd_t);
  BACKEND_OP(row_gate, op_row_gate_t);
  BACKEND_OP(row_gate_bwd, op_row_gate_bwd_t);
  BACKEND_OP(experts, op_experts_t);
  BACKEND_OP(experts_bwd, op_experts_bwd_t);
  BACKEND_OP(head_loss, op_head_loss_t);
  BACKEND_OP(softmax, op_softmax_t);
  BACKEND_OP(grad_norm, op_grad_norm_t);
  BACKEND_OP(adamw, op_adamw_t);
  BACKEND_OP(sample, op_sample_t);
  BACKEND_OP(fill_normal, op_fill_normal_t);

  /* Graphs: operations and zero between record_begin and record_end are noted down instead of done;
   * copies may not come there. graph_run does them all, with the same arguments, on what memory
   * holds by then; a graph lacks operations that failed. record_end gives NULL and NN_OK where
   * something beside the operations broke the recording off: they may have failed by that, and are
   * to be done as they are. All four are NULL where the backend gains nothing from them. */
  nn_status_t (*record_begin)(backend_device_t *device);
  nn_status_t (*record_end)(backend_device_t *device, backend_graph_t **graph);
  nn_status_t (*graph_run)(backend_device_t *device, backend_graph_t *graph);
  void (*graph_free)(backend_device_t *device, backend_graph_t *graph); /* NULL is ignored */

  BACKEND_OP(project, op_project_t);
  BACKEND_OP(moe, op_moe_t);
} backend_t;

/* How a device is opened. Functions are never NULL, are called from any thread, and are of use
 * until close; what pointers point to otherwise is read before the device is open. */
typedef struct backend_options {
  size_t struct_size;      /* sizeof(backend_options_t) */
  int32_t threads;         /* at least 1 */
  int32_t cpu_paths;       /* NN_CPU_ mask, not 0; paths that the processor lacks are left out */
  const int32_t *affinity; /* host [threads] or NULL */

  /* Non-zero once the caller cancels; cheap enough to ask before each item of work. */
  int32_t (*cancelled)(const void *user);
  const void *cancel_user;

  /* Sets the calling thread's message, which is copied, and returns status. */
  nn_status_t (*fail)(nn_status_t status, const char *message);

  /* Passes a message of an NN_LOG_ level to the application. */
  void (*log)(void *user, int32_t level, const char *message);
  void *log_user;

  int32_t index;     /* which of the backend's devices */
  int32_t fast_fp32; /* 1: fp32 products may round their inputs to TF32 */
} backend_options_t;

/* Opens a device; the table lives until the device is closed. On failure neither is set. */
typedef nn_status_t (*backend_open_fn)(const backend_options_t *options, const backend_t **table,
                                       backend_device_t **device);

/* Opens a CUDA device: the backend_open_fn that libmoenn_cuda.so exports, under this name. */
#define CUDA_BACKEND_LIBRARY "libmoenn_cuda.so"
#define CUDA_BACKEND_OPEN "moenn_cuda_open"

/* Opens the CPU: a backend_open_fn. */
nn_status_t cpu_backend_open(const backend_options_t *options, const backend_t **table,
                             backend_device_t **device);

#ifdef __cplusplus
}
#endif

#endif
