/* Gradients of the experts' biases, and what a bias gives the weight of its slot; see grouped.h. A
 * block sums a tile of columns over an expert's rows: each warp every eighth row in order, then the
 * warps in order. All accumulate. */
#include "experts/grouped.cuh"
#include "ops/wide.cuh"

enum { BIAS_THREADS = 256, BIAS_WARPS = BIAS_THREADS / 32 };

/* to[expert, c * apart] += the sum of weight x[r, c] over the expert's rows r. */
typedef struct bias_sum {
  const int32_t *offset;
  const void *x;
  int64_t ldx, width;
  const float *weight; /* [rows], or NULL: 1 */
  float *to;
  int64_t stride, apart;
} bias_sum_t;

template <typename T>
static __global__ void __launch_bounds__(BIAS_THREADS) bias_sum_kernel(const bias_sum_t op) {
  __shared__ float room[BIAS_WARPS][32];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, expert = blockIdx.y;
  int64_t column = (int64_t)blockIdx.x * 32 + lane;
  int begin = op.offset[expert], end = op.offset[expert + 1];
  if (begin == end) return;
  float sum = 0;
#pragma unroll 4
  for (int64_t row = begin + warp; row < end; row += BIAS_WARPS)
    if (column < op.width)
      sum = fmaf(op.weight ? op.weight[row] : 1, to_float(((const T *)op.x)[row * op.ldx + column]),
                 sum);
  room[warp][lane] = sum;
  __syncthreads();
  if (warp || column >= op.width) return;
  sum = 0;
#pragma unroll
  for (int i = 0; i < BIAS_WARPS; i++) sum += room[i][lane];
  op.to[expert * op.stride + column * op.apart] += sum;
}

template <typename T>
static void bias_sum(backend_device_t *device, int64_t experts, const bias_sum_t *op) {
  dim3 grid((unsigned)cuda_blocks(op->width, 32), (unsigned)experts);
  bias_sum_kernel<T><<<grid, BIAS_THREADS, 0, device->stream>>>(*op);
}

/* A warp has a slot. */
template <typename T>
static __global__ void __launch_bounds__(BIAS_THREADS)
    bias_dweight_kernel(const grouped_t grouped, const grouped_bias_t op) {
  int lane = threadIdx.x & 31;
  int64_t slot = (int64_t)blockIdx.x * BIAS_WARPS + (threadIdx.x >> 5);
  if (slot >= op.slots || op.slot_row[slot] < 0) return;
  const T *dy = (const T *)op.dy + op.slot_row[slot] * grouped.hidden;
  const T *bias = (const T *)grouped.down_bias + op.expert[slot] * grouped.bias_stride;
  float sum = 0;
#pragma unroll 4
  for (int64_t c = lane; c < grouped.hidden; c += 32)
    sum = fmaf(to_float(dy[c]), to_float(bias[c]), sum);
  sum = warp_sum(sum);
  if (lane == 0) op.dweight[slot] += sum;
}

template <typename T>
static void bias_bwd(backend_device_t *device, const grouped_t *grouped, const grouped_bias_t *op) {
  int64_t f = grouped->ffn, h = grouped->hidden;
  bias_sum_t gate = {grouped->offset, op->dpre, 2 * f, f, NULL, op->dgate_bias,
                     grouped->bias_stride, grouped->apart};
  bias_sum_t up = gate, down = gate;
  up.x = (const T *)op->dpre + f, up.to = op->dup_bias;
  down.x = op->dy, down.ldx = down.width = h, down.weight = op->weight;
  down.to = op->ddown_bias, down.apart = 1;
  bias_sum<T>(device, grouped->experts, &gate);
  bias_sum<T>(device, grouped->experts, &up);
  bias_sum<T>(device, grouped->experts, &down);
  bias_dweight_kernel<T><<<(unsigned)cuda_blocks(op->slots, BIAS_WARPS), BIAS_THREADS, 0,
                           device->stream>>>(*grouped, *op);
}

nn_status_t grouped_bias_bwd(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                             const grouped_bias_t *op) {
  CUDA_BY_DTYPE(dtype, bias_bwd, device, grouped, op);
  return cuda_launched(device, "experts_bwd");
}
