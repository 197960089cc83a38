/* The experts' SwiGLU networks over the routed rows: tokens are gathered into rows, which grouped
 * products (grouped.h) turn into each row's result; a token then takes the sum over its slots.
 *
 * Forward: out[t] = residual[t] + sum over slots, in order, of weight (y[row of the slot] + the
 * expert's bias). Assigns. Backward: dx[t] = sum over slots, in order, of the row's dx; dweight =
 * the sum over slices, in order, of <d, a>, and <dy, bias>, 0 for slots without a row. Both assign.
 * The gradients of weights accumulate or are assigned, those of biases accumulate.
 *
 * Rows behind offset[experts], where capacity dropped slots, are never written, and no token reads
 * them: only slot_row leads to a row. */
#include "experts/grouped.cuh"
#include "experts/one.h"
#include "launch.cuh"

enum { EXPERTS_THREADS = 256, EXPERTS_WARPS = EXPERTS_THREADS / 32 };

/* Scratch. Each is [n * k] rows; the last three are for backward alone. */
typedef struct experts_room {
  void *x;       /* [H] gathered x; once that is spent, the rows' y or dx */
  void *act;     /* [F] */
  void *dy;      /* [H] gathered dout */
  float *weight; /* [1] */
  float *dot;    /* [slices of F] parts of dweight */
} experts_room_t;

static int64_t experts_slices(int64_t ffn) { return cuda_blocks(ffn, GROUPED_SLICE); }

static experts_room_t experts_take(cuda_arena_t *arena, int64_t rows, int64_t hidden, int64_t ffn,
                                   int32_t dtype, int training) {
  size_t size = cuda_dtype_bytes(dtype);
  experts_room_t room = {};
  room.x = cuda_take(arena, rows * hidden, size);
  room.act = cuda_take(arena, rows * ffn, size);
  if (!training) return room;
  room.dy = cuda_take(arena, rows * hidden, size);
  room.weight = (float *)cuda_take(arena, rows, sizeof(float));
  room.dot = (float *)cuda_take(arena, rows * experts_slices(ffn), sizeof(float));
  return room;
}

size_t cuda_experts_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  (void)device;
  if (!limits->experts) return 0;
  cuda_arena_t arena = {};
  experts_take(&arena, limits->rows * limits->top_k, limits->hidden, limits->ffn,
               limits->act_dtype, limits->training);
  return arena.used;
}

/* ---- gather ---------------------------------------------------------------------------------- */

typedef struct experts_gather {
  int64_t n, top_k, hidden;
  const int32_t *slot_row; /* [n, k] */
  const void *x;           /* [n, H] */
  void *x_row;             /* [rows, H] assigns x of the row's token */
  const void *dout;        /* [n, H] or NULL: backward's are left out */
  void *dout_row;          /* [rows, H] assigns dout of the row's token */
  const float *weight;     /* [n, k] */
  float *weight_row;       /* [rows] assigns */
} experts_gather_t;

/* A warp copies one token's line to the rows of its slots. */
template <typename V>
__device__ __forceinline__ void experts_spread(const V *from, V *to, int32_t vectors,
                                               const int32_t *row, int32_t top_k) {
  for (int32_t i = threadIdx.x & 31; i < vectors; i += 32) {
    V v = from[i];
#pragma unroll 4
    for (int32_t j = 0; j < top_k; j++)
      if (row[j] >= 0) to[(int64_t)row[j] * vectors + i] = v;
  }
}

/* V: what is copied at once. */
template <typename V>
__global__ void __launch_bounds__(EXPERTS_THREADS)
    experts_gather_kernel(const experts_gather_t op, int32_t vectors) {
  int64_t token = (int64_t)blockIdx.x * EXPERTS_WARPS + threadIdx.x / 32;
  if (token >= op.n) return;
  const int32_t *row = op.slot_row + token * op.top_k;
  int32_t top_k = (int32_t)op.top_k;
  experts_spread((const V *)op.x + token * vectors, (V *)op.x_row, vectors, row, top_k);
  if (!op.dout) return;
  experts_spread((const V *)op.dout + token * vectors, (V *)op.dout_row, vectors, row, top_k);
  for (int32_t j = threadIdx.x & 31; j < top_k; j += 32)
    if (row[j] >= 0) op.weight_row[row[j]] = op.weight[token * op.top_k + j];
}

static nn_status_t experts_gather_rows(backend_device_t *device, int32_t dtype,
                                       const experts_gather_t *op) {
  int64_t bytes = op->hidden * (int64_t)cuda_dtype_bytes(dtype);
  uintptr_t at = (uintptr_t)op->x | (uintptr_t)op->x_row | (uintptr_t)op->dout |
                 (uintptr_t)op->dout_row | (uintptr_t)bytes;
  unsigned blocks = (unsigned)cuda_blocks(op->n, EXPERTS_WARPS);
  if (at % 16 == 0)
    experts_gather_kernel<uint4>
        <<<blocks, EXPERTS_THREADS, 0, device->stream>>>(*op, (int32_t)(bytes / 16));
  else
    experts_gather_kernel<uint16_t>
        <<<blocks, EXPERTS_THREADS, 0, device->stream>>>(*op, (int32_t)(bytes / 2));
  return cuda_launched(device, "experts");
}

/* ---- combine --------------------------------------------------------------------------------- */

typedef struct experts_combine {
  int64_t n, top_k, hidden;
  const int32_t *slot_row; /* [n, k] */
  const float *weight;     /* [n, k], or NULL: 1 */
  const void *y;           /* [rows, H] */
  const void *residual;    /* [n, H] or NULL; may be out */
  void *out;               /* [n, H] assigns residual + the sum over slots of weight y */
  const int32_t *expert;   /* [n, k], for the bias */
  const void *bias;        /* expert 0's [H], or NULL */
  int64_t bias_stride;
} experts_combine_t;

/* V elements as one load. */
template <typename T, int V>
struct alignas(V * sizeof(T)) experts_vec_t {
  T at[V];
};

/* A warp makes one token. */
template <typename T, int V, bool BIAS>
__global__ void __launch_bounds__(EXPERTS_THREADS)
    experts_combine_kernel(const experts_combine_t op) {
  typedef experts_vec_t<T, V> vector_t;
  int64_t token = (int64_t)blockIdx.x * EXPERTS_WARPS + threadIdx.x / 32, vectors = op.hidden / V;
  launch_next();
  launch_wait();
  if (token >= op.n) return;
  const int32_t *slot_row = op.slot_row + token * op.top_k;
  const float *weight = op.weight ? op.weight + token * op.top_k : NULL;
  for (int64_t i = threadIdx.x & 31; i < vectors; i += 32) {
    float sum[V] = {};
    vector_t v;
    if (op.residual) {
      v = ((const vector_t *)op.residual)[token * vectors + i];
#pragma unroll
      for (int e = 0; e < V; e++) sum[e] = to_float(v.at[e]);
    }
#pragma unroll 4
    for (int64_t j = 0; j < op.top_k; j++) {
      int32_t row = slot_row[j];
      if (row < 0) continue;
      vector_t y = ((const vector_t *)op.y)[row * vectors + i];
      float by = weight ? weight[j] : 1;
      const T *bias = NULL;
      if (BIAS)
        bias = (const T *)op.bias + op.expert[token * op.top_k + j] * op.bias_stride + i * V;
#pragma unroll
      for (int e = 0; e < V; e++)
        sum[e] = fmaf(by, to_float(y.at[e]) + (BIAS ? to_float(bias[e]) : 0), sum[e]);
    }
#pragma unroll
    for (int e = 0; e < V; e++) v.at[e] = from_float<T>(sum[e]);
    ((vector_t *)op.out)[token * vectors + i] = v;
  }
}

template <typename T>
static void experts_combine_launch(backend_device_t *device, const experts_combine_t *op) {
  constexpr int width = 16 / sizeof(T);
  uintptr_t at = (uintptr_t)op->y | (uintptr_t)op->residual | (uintptr_t)op->out;
  unsigned blocks = (unsigned)cuda_blocks(op->n, EXPERTS_WARPS);
  auto kernel = experts_combine_kernel<T, 1, true>;
  if (at % 16 == 0 && op->hidden % width == 0)
    kernel = op->bias ? experts_combine_kernel<T, width, true>
                      : experts_combine_kernel<T, width, false>;
  else if (!op->bias)
    kernel = experts_combine_kernel<T, 1, false>;
  launch_chained(device, kernel, blocks, EXPERTS_THREADS, 0, 0, *op);
}

static nn_status_t experts_combine_rows(backend_device_t *device, int32_t dtype,
                                        const experts_combine_t *op) {
  CUDA_BY_DTYPE(dtype, experts_combine_launch, device, op);
  return cuda_launched(device, "experts");
}

/* dweight[slot] = the sum over slices, in order, of the row's dot; 0 without a row. */
__global__ void __launch_bounds__(EXPERTS_THREADS)
    experts_dweight_kernel(const int32_t *slot_row, const float *dot, int64_t slots, int64_t slices,
                           float *dweight) {
  int64_t slot = (int64_t)blockIdx.x * EXPERTS_THREADS + threadIdx.x;
  if (slot >= slots) return;
  float sum = 0;
  if (slot_row[slot] >= 0) {
    const float *part = dot + slot_row[slot] * slices;
#pragma unroll 8
    for (int64_t i = 0; i < slices; i++) sum += part[i];
  }
  dweight[slot] = sum;
}

/* ---- forward --------------------------------------------------------------------------------- */

static nn_status_t experts_few(backend_device_t *device, const op_experts_t *op,
                               const grouped_t *grouped, const experts_room_t *room) {
  void *act = op->out ? room->act : NULL;
  few_up_t up = {op->x, op->routing.row_slot, op->top_k, op->gate, op->up, op->pre, act};
  CUDA_TRY(few_up(device, op->act_dtype, grouped, &up));
  if (!op->out) return NN_OK;
  few_down_t down = {op->n,     op->top_k, op->routing.slot_row, op->routing.weight,
                     room->act, op->down,  op->residual,         op->out,
                       op->routing.expert};
  return few_down(device, op->act_dtype, grouped, &down);
}

/* The sum over slots of the rows' y, which lie in room->x. */
static nn_status_t experts_sum(backend_device_t *device, const op_experts_t *op,
                               const experts_room_t *room) {
  experts_combine_t combine = {op->n,  op->top_k,    op->hidden, op->routing.slot_row,
                               op->routing.weight, room->x, op->residual, op->out,
                               op->routing.expert, op->down_bias, op->bias_stride};
  return experts_combine_rows(device, op->act_dtype, &combine);
}

static nn_status_t experts_thin(backend_device_t *device, const op_experts_t *op,
                                const grouped_t *grouped, const experts_room_t *room) {
  void *act = op->out ? room->act : NULL;
  few_up_t up = {op->x, op->routing.row_slot, op->top_k, op->gate, op->up, op->pre, act};
  CUDA_TRY(thin_up(device, op->act_dtype, grouped, &up));
  if (!op->out) return NN_OK;
  grouped_down_t down = {room->act, op->down, room->x};
  CUDA_TRY(thin_down(device, op->act_dtype, grouped, &down));
  return experts_sum(device, op, room);
}

nn_status_t cuda_experts(backend_device_t *device, const op_experts_t *op,
                         backend_scratch_t scratch) {
  CUDA_TRY(cuda_enter(device, "experts"));
  if (op->n == 0) return NN_OK;
  cuda_arena_t arena = {(char *)scratch.data, 0};
  int32_t dtype = op->act_dtype;
  grouped_t grouped = {op->routing.offset, op->n * op->top_k,       op->hidden,
                       op->ffn,            op->experts,             op->expert_stride,
                       op->limit,          op->interleaved ? 2 : 1, op->gate_bias,
                       op->up_bias,        op->down_bias,           op->bias_stride};
  experts_room_t room = experts_take(&arena, grouped.rows, op->hidden, op->ffn, dtype, 0);
  if (grouped.rows <= FEW_ROWS) return experts_few(device, op, &grouped, &room);
  uintptr_t at = (uintptr_t)op->x | (uintptr_t)op->gate | (uintptr_t)op->up | (uintptr_t)op->down;
  if (cuda_is_half(dtype) && thin_fits(&grouped, at))
    return experts_thin(device, op, &grouped, &room);

  int fast = cuda_is_half(dtype) && sm90_fits(device, &grouped);
  experts_gather_t gather = {};
  gather.n = op->n, gather.top_k = op->top_k, gather.hidden = op->hidden;
  gather.slot_row = op->routing.slot_row;
  gather.x = op->x, gather.x_row = room.x;
  CUDA_TRY(experts_gather_rows(device, dtype, &gather));
  grouped_up_t up = {room.x, op->gate, op->up, op->pre, op->out ? room.act : NULL};
  CUDA_TRY(fast ? sm90_up(device, dtype, &grouped, &up)
                : portable_up(device, dtype, &grouped, &up));
  if (!op->out) return NN_OK;
  grouped_down_t down = {room.act, op->down, room.x};
  CUDA_TRY(fast ? sm90_down(device, dtype, &grouped, &down)
                : portable_down(device, dtype, &grouped, &down));
  return experts_sum(device, op, &room);
}

nn_status_t cuda_moe(backend_device_t *device, const op_moe_t *op, backend_scratch_t scratch) {
  if (one_fits(op)) {
    CUDA_TRY(cuda_enter(device, "experts"));
    const op_experts_t *experts = &op->experts;
    cuda_arena_t arena = {(char *)scratch.data, 0};
    experts_room_t room = experts_take(&arena, experts->top_k, experts->hidden, experts->ffn,
                                       experts->act_dtype, 0);
    return one_run(device, op, room.act, room.x);
  }
  CUDA_TRY(cuda_norm(device, &op->norm, scratch));
  CUDA_TRY(cuda_route(device, &op->route, scratch));
  return cuda_experts(device, &op->experts, scratch);
}

/* ---- backward -------------------------------------------------------------------------------- */

/* The weights' gradients of experts without rows become zeros, for no product writes them. */
static __global__ void __launch_bounds__(EXPERTS_THREADS)
    experts_idle_kernel(const grouped_t grouped, const grouped_dw_t dw) {
  int64_t expert = blockIdx.y, elements = grouped.ffn * grouped.hidden;
  if (grouped.offset[expert] < grouped.offset[expert + 1]) return;
  int64_t first = (int64_t)blockIdx.x * EXPERTS_THREADS + threadIdx.x;
  for (int64_t i = first; i < elements; i += (int64_t)gridDim.x * EXPERTS_THREADS) {
    int64_t f = i / grouped.hidden, at = expert * grouped.stride;
    int64_t other = at + f * (grouped.apart - 1) * grouped.hidden + i;
    dw.dgate[other] = dw.dup[other] = dw.ddown[at + i] = 0;
  }
}

static nn_status_t experts_idle(backend_device_t *device, const grouped_t *grouped,
                                const grouped_dw_t *dw) {
  const dim3 grid(16, (unsigned)grouped->experts);
  experts_idle_kernel<<<grid, EXPERTS_THREADS, 0, device->stream>>>(*grouped, *dw);
  return cuda_launched(device, "experts_bwd");
}

/* Gathered rows to the weights' gradients, the rows' dx (in room->x) and the parts of dweight. */
static nn_status_t experts_bwd_products(backend_device_t *device, const op_experts_bwd_t *op,
                                        const grouped_t *grouped, const experts_room_t *room) {
  int32_t dtype = op->act_dtype;
  int fast = cuda_is_half(dtype) && sm90_fits(device, grouped);
  grouped_dact_t dact = {room->dy, op->down, room->weight, op->pre, room->act, room->dot};
  grouped_dw_t dw = {op->pre,   room->x, room->dy,  room->act,
                     op->dgate, op->dup, op->ddown, op->assign};
  grouped_dx_t dx = {op->pre, op->gate, op->up, room->x};
  if (op->assign) CUDA_TRY(experts_idle(device, grouped, &dw));
  if (fast) {
    CUDA_TRY(sm90_dact(device, dtype, grouped, &dact));
    CUDA_TRY(sm90_dw(device, dtype, grouped, &dw));
    return sm90_dx(device, dtype, grouped, &dx);
  }
  CUDA_TRY(portable_dact(device, dtype, grouped, &dact));
  CUDA_TRY(portable_dw(device, dtype, grouped, &dw));
  return portable_dx(device, dtype, grouped, &dx);
}

nn_status_t cuda_experts_bwd(backend_device_t *device, const op_experts_bwd_t *op,
                             backend_scratch_t scratch) {
  CUDA_TRY(cuda_enter(device, "experts_bwd"));
  if (op->n == 0) return NN_OK;
  cuda_arena_t arena = {(char *)scratch.data, 0};
  int64_t slots = op->n * op->top_k;
  grouped_t grouped = {op->routing.offset, slots,                   op->hidden,
                       op->ffn,            op->experts,             op->expert_stride,
                       op->limit,          op->interleaved ? 2 : 1, NULL,
                       NULL,               op->down_bias,           op->bias_stride};
  experts_room_t room = experts_take(&arena, slots, op->hidden, op->ffn, op->act_dtype, 1);
  experts_gather_t gather = {op->n,  op->top_k, op->hidden, op->routing.slot_row, op->x, room.x,
                             op->dout, room.dy, op->routing.weight, room.weight};
  CUDA_TRY(experts_gather_rows(device, op->act_dtype, &gather));
  CUDA_TRY(experts_bwd_products(device, op, &grouped, &room));
  experts_dweight_kernel<<<(unsigned)cuda_blocks(slots, EXPERTS_THREADS), EXPERTS_THREADS, 0,
                           device->stream>>>(op->routing.slot_row, room.dot, slots,
                                             experts_slices(op->ffn), op->dweight);
  if (op->down_bias) {
    grouped_bias_t bias = {op->pre,        room.dy,      room.weight,        op->dgate_bias,
                           op->dup_bias,   op->ddown_bias, slots,            op->routing.expert,
                           op->routing.slot_row, op->dweight};
    CUDA_TRY(grouped_bias_bwd(device, op->act_dtype, &grouped, &bias));
  }
  experts_combine_t combine = {op->n, op->top_k, op->hidden, op->routing.slot_row,
                               NULL,  room.x,    NULL,       op->dx, NULL, NULL, 0};
  return experts_combine_rows(device, op->act_dtype, &combine);
}
