/* The experts' forward for at most FEW_ROWS rows (decode), in two kernels bound by reading weights:
 * few_up makes act (and pre) straight from the tokens, few_down the sum over each token's slots.
 * Rows of one expert share the reads of its weights. A sum is a thread's share in order, then the
 * warp's tree, then (few_down) the warps in order; slots in order.
 *
 * few_up lets few_down begin once the routing is there, so that few_down's blocks, as they find
 * room, read it while few_up's last blocks still run. */
#include "experts/groups.cuh"
#include "launch.cuh"
#include "ops/row_vec.cuh"

enum {
  FEW_THREADS = 256,
  FEW_WARPS = FEW_THREADS / 32,
  FEW_BLOCKS = 3,   /* at once on a multiprocessor */
  FEW_LOADS = 3,    /* of each row of weights that a thread has in flight */
  FEW_TOGETHER = 2, /* rows that share what is in registers; further ones find it in cache */
  FEW_COLUMNS = 2   /* of the result that a block of few_down makes */
};

/* sum[c][r], zero before, becomes the sum over the warp of COLUMNS rows of weights by ROWS rows of
 * activations; the thread's share are the vectors first, first + step, ... */
template <typename T, int V, int COLUMNS, int ROWS>
__device__ __forceinline__ void few_dots(float (&sum)[COLUMNS][ROWS],
                                         const T *const (&weight)[COLUMNS],
                                         const T *const (&x)[ROWS], int32_t width, int32_t first,
                                         int32_t step) {
  int32_t vectors = width / V;
  for (int32_t from = first; from < vectors; from += FEW_LOADS * step) {
    raw_vec_t<T, V> w[FEW_LOADS][COLUMNS];
#pragma unroll
    for (int i = 0; i < FEW_LOADS; i++)
      if (from + i * step < vectors)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
          w[i][c].template load<true>(weight[c] + (int64_t)(from + i * step) * V);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      raw_vec_t<T, V> a[FEW_LOADS];
#pragma unroll
      for (int i = 0; i < FEW_LOADS; i++)
        if (from + i * step < vectors)
          a[i].template load<false>(x[r] + (int64_t)(from + i * step) * V);
#pragma unroll
      for (int i = 0; i < FEW_LOADS; i++)
        if (from + i * step < vectors)
#pragma unroll
          for (int v = 0; v < V; v++)
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
              sum[c][r] = fmaf(w[i][c].at(v), a[i].at(v), sum[c][r]);
    }
  }
#pragma unroll
  for (int c = 0; c < COLUMNS; c++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[c][r] = warp_sum(sum[c][r]);
}

/* ---- up -------------------------------------------------------------------------------------- */

/* A warp makes column f of ROWS rows from `row` on, of which those before the group's end exist.
 * token: [rows]. */
template <typename T, int V, int ROWS>
__device__ __forceinline__ void few_up_rows(const grouped_t &grouped, const few_up_t &op,
                                            const grouped_place_t &group, const int32_t *token,
                                            int32_t row, int64_t f) {
  int64_t h = grouped.hidden, at = group.expert * grouped.stride + f * h * grouped.apart;
  const T *weight[2] = {(const T *)op.gate + at, (const T *)op.up + at};
  const T *x[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
    x[r] = (const T *)op.x + token[min(row + r, group.end - 1)] * h;
  int32_t lane = threadIdx.x & 31;
  float sum[2][ROWS] = {};
  few_dots<T, V>(sum, weight, x, (int32_t)h, lane, 32);
  float2 bias = grouped_biases<T>(grouped, group.expert, f);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (lane != r || row + r >= group.end) continue;
    int64_t to = (int64_t)(row + r) * grouped.ffn + f;
    float g = sum[0][r] + bias.x, u = sum[1][r] + bias.y;
    if (op.pre) {
      T *pre = (T *)op.pre + to + (row + r) * grouped.ffn;
      pre[0] = from_float<T>(g);
      pre[grouped.ffn] = from_float<T>(u);
    }
    if (op.act) ((T *)op.act)[to] = from_float<T>(glu_act(g, u, grouped.limit));
  }
}

/* Warps share out the columns of all groups that there are. */
template <typename T, int V>
__global__ void __launch_bounds__(FEW_THREADS, FEW_BLOCKS)
    few_up_kernel(const grouped_t grouped, const few_up_t op) {
  __shared__ groups_t<FEW_ROWS> groups;
  __shared__ int32_t token[FEW_ROWS];
  launch_wait();
  launch_next(); /* not sooner: few_down reads the routing before it waits */
  int32_t row = (int32_t)threadIdx.x - 32; /* the first warp finds the groups */
  if (row >= 0 && row < grouped.rows) token[row] = op.row_slot[row] / (int32_t)op.top_k;
  groups_find(grouped, &groups);
  int64_t f = (int64_t)blockIdx.x * FEW_WARPS + threadIdx.x / 32;
  for (int32_t which = 0;; f += (int64_t)gridDim.x * FEW_WARPS) {
    for (; f >= grouped.ffn && which < groups.count; which++) f -= grouped.ffn;
    if (which == groups.count) return;
    grouped_place_t group = groups.at[which];
    if (group.end - group.begin == 1)
      few_up_rows<T, V, 1>(grouped, op, group, token, group.begin, f);
    else
      for (int32_t first = group.begin; first < group.end; first += FEW_TOGETHER)
        few_up_rows<T, V, FEW_TOGETHER>(grouped, op, group, token, first, f);
  }
}

/* ---- down ------------------------------------------------------------------------------------ */

typedef float few_parts_t[FEW_ROWS][FEW_COLUMNS][FEW_WARPS];

template <typename T, int V, int ROWS>
__device__ __forceinline__ void few_down_rows(const grouped_t &grouped, const few_down_t &op,
                                              const grouped_place_t &group, int32_t row,
                                              int64_t column, few_parts_t &part) {
  int64_t f = grouped.ffn;
  const T *weight[FEW_COLUMNS], *act[ROWS];
#pragma unroll
  for (int c = 0; c < FEW_COLUMNS; c++)
    weight[c] = (const T *)op.down + group.expert * grouped.stride +
                min(column + c, grouped.hidden - 1) * f;
#pragma unroll
  for (int r = 0; r < ROWS; r++) act[r] = (const T *)op.act + min(row + r, group.end - 1) * f;
  float sum[FEW_COLUMNS][ROWS] = {};
  few_dots<T, V>(sum, weight, act, (int32_t)f, threadIdx.x, FEW_THREADS);
  if (threadIdx.x & 31) return;
#pragma unroll
  for (int r = 0; r < ROWS; r++)
#pragma unroll
    for (int c = 0; c < FEW_COLUMNS; c++)
      if (row + r < group.end) part[row + r][c][threadIdx.x / 32] = sum[c][r];
}

/* A block makes FEW_COLUMNS columns of all tokens' results. */
template <typename T, int V>
__global__ void __launch_bounds__(FEW_THREADS, FEW_BLOCKS)
    few_down_kernel(const grouped_t grouped, const few_down_t op) {
  __shared__ groups_t<FEW_ROWS> groups;
  __shared__ few_parts_t part;
  __shared__ int32_t slot_row[FEW_ROWS];
  __shared__ float slot_weight[FEW_ROWS];
  int64_t first = (int64_t)blockIdx.x * FEW_COLUMNS;
  int32_t slot = (int32_t)threadIdx.x - 32;
  if (slot >= 0 && slot < grouped.rows) {
    slot_row[slot] = __ldcg(op.slot_row + slot);
    slot_weight[slot] = __ldcg(op.weight + slot);
  }
  groups_find(grouped, &groups);
  launch_wait();
  launch_next(); /* not sooner: what comes next would take memory's time from few_up */
  int64_t token = threadIdx.x / FEW_COLUMNS, c = threadIdx.x % FEW_COLUMNS;
  int64_t at = token * grouped.hidden + first + c;
  bool mine = token < op.n && first + c < grouped.hidden;
  float sum = mine && op.residual ? to_float(((const T *)op.residual)[at]) : 0;
  for (int32_t g = 0; g < groups.count; g++) {
    grouped_place_t group = groups.at[g];
    if (group.end - group.begin == 1)
      few_down_rows<T, V, 1>(grouped, op, group, group.begin, first, part);
    else
      for (int32_t row = group.begin; row < group.end; row += FEW_TOGETHER)
        few_down_rows<T, V, FEW_TOGETHER>(grouped, op, group, row, first, part);
  }
  __syncthreads();
  if (!mine) return;
  for (int32_t i = 0; i < (int32_t)op.top_k; i++) {
    int32_t row = slot_row[token * op.top_k + i];
    if (row < 0) continue;
    float y = 0;
#pragma unroll
    for (int w = 0; w < FEW_WARPS; w++) y += part[row][c][w];
    if (grouped.down_bias)
      y += to_float(((const T *)grouped.down_bias)[op.expert[token * op.top_k + i] *
                                                       grouped.bias_stride + first + c]);
    sum = fmaf(slot_weight[token * op.top_k + i], y, sum);
  }
  ((T *)op.out)[at] = from_float<T>(sum);
}

/* ---- launches -------------------------------------------------------------------------------- */

template <typename T, int V>
static void few_up_run(backend_device_t *device, const grouped_t *grouped, const few_up_t *op) {
  int64_t groups = grouped->rows < grouped->experts ? grouped->rows : grouped->experts;
  int64_t blocks = cuda_blocks(groups * grouped->ffn, FEW_WARPS);
  int64_t wave = (int64_t)FEW_BLOCKS * device->multiprocessors;
  if (blocks > wave) blocks = wave;
  launch_chained(device, few_up_kernel<T, V>, (unsigned)blocks, FEW_THREADS, 0, 0, *grouped, *op);
}

template <typename T, int V>
static void few_down_run(backend_device_t *device, const grouped_t *grouped,
                         const few_down_t *op) {
  launch_chained(device, few_down_kernel<T, V>,
                 (unsigned)cuda_blocks(grouped->hidden, FEW_COLUMNS), FEW_THREADS, 0, 0, *grouped,
                 *op);
}

/* Whether rows of hidden, rows of F and addresses are whole vectors; at: the addresses or-ed. */
static bool few_vectors(int32_t dtype, const grouped_t *grouped, uintptr_t at) {
  int64_t width = 16 / (int64_t)cuda_dtype_bytes(dtype);
  return at % 16 == 0 && grouped->hidden % width == 0 && grouped->ffn % width == 0 &&
         grouped->stride % width == 0;
}

template <typename T>
static void few_up_launch(backend_device_t *device, const grouped_t *grouped, const few_up_t *op,
                          bool vectors) {
  (vectors ? few_up_run<T, vec_t<T>::width> : few_up_run<T, 1>)(device, grouped, op);
}

template <typename T>
static void few_down_launch(backend_device_t *device, const grouped_t *grouped,
                            const few_down_t *op, bool vectors) {
  (vectors ? few_down_run<T, vec_t<T>::width> : few_down_run<T, 1>)(device, grouped, op);
}

nn_status_t few_up(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                   const few_up_t *op) {
  uintptr_t at = (uintptr_t)op->x | (uintptr_t)op->gate | (uintptr_t)op->up;
  bool vectors = few_vectors(dtype, grouped, at);
  CUDA_BY_DTYPE(dtype, few_up_launch, device, grouped, op, vectors);
  return cuda_launched(device, "experts");
}

nn_status_t few_down(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                     const few_down_t *op) {
  bool vectors = few_vectors(dtype, grouped, (uintptr_t)op->act | (uintptr_t)op->down);
  CUDA_BY_DTYPE(dtype, few_down_launch, device, grouped, op, vectors);
  return cuda_launched(device, "experts");
}
