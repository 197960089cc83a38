/* Sums over the rows of a matrix, column by column, in two stages of one fixed order. The rows are
 * cut into parts by the matrix's sizes and the device's multiprocessors alone; a block sums a part
 * of a tile of columns: each warp every eighth row in order, then its warps in order. The second
 * stage adds the parts: each of 32 groups every 32nd part in order, then the groups in order. */
#ifndef NN_CUDA_COLUMNS_CUH
#define NN_CUDA_COLUMNS_CUH

#include "launch.cuh"
#include "ops/wide.cuh"

enum {
  COLUMNS_WARPS = 8,
  COLUMNS_THREADS = 32 * COLUMNS_WARPS,
  COLUMNS_MOST_WIDE = 8, /* columns of a thread, at most */
  COLUMNS_BLOCKS = 4,    /* of a multiprocessor */
  COLUMNS_LEAST = 32,    /* rows of a part */
  COLUMNS_GROUPS = 32,
  COLUMNS_AHEAD = 8 /* parts that a group reads at once */
};

typedef struct columns_plan {
  int64_t tiles, parts;
  int64_t rows; /* of a part */
} columns_plan_t;

/* Where there is more than one part, parts * tiles is at most COLUMNS_BLOCKS a multiprocessor. */
static inline columns_plan_t columns_plan(const backend_device_t *device, int64_t n, int64_t width,
                                          int per_thread) {
  columns_plan_t plan;
  plan.tiles = cuda_blocks(width, 32 * per_thread);
  plan.parts = (int64_t)COLUMNS_BLOCKS * device->multiprocessors / plan.tiles;
  if (plan.parts > cuda_blocks(n, COLUMNS_LEAST)) plan.parts = cuda_blocks(n, COLUMNS_LEAST);
  if (plan.parts < 1) plan.parts = 1;
  plan.rows = cuda_blocks(n, plan.parts);
  plan.parts = cuda_blocks(n, plan.rows);
  return plan;
}

/* Floats for the parts of any matrix; a single part needs none. */
static inline int64_t columns_scratch(const backend_device_t *device) {
  return (int64_t)COLUMNS_BLOCKS * device->multiprocessors * 32 * COLUMNS_MOST_WIDE;
}

/* The scratch for them: cuda_column_sum_scratch, whatever the operation. */
static inline float *columns_take(const backend_device_t *device, cuda_arena_t *arena) {
  return (float *)cuda_take(arena, columns_scratch(device), sizeof(float));
}

/* The end of the first stage: sum holds a thread's W columns from (blockIdx.x * 32 + lane) * W on.
 * The block's sums are assigned to row blockIdx.y of part or, where part is NULL, added to out;
 * room: shared, [COLUMNS_WARPS * 32 * W]. */
template <int W>
__device__ __forceinline__ void columns_put(const float (&sum)[W], float *room, int64_t width,
                                            float *part, float *out) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < W; j++) room[(warp * W + j) * 32 + lane] = sum[j];
  __syncthreads();
  int64_t column = (int64_t)blockIdx.x * 32 * W + threadIdx.x;
  if (threadIdx.x >= 32 * W || column >= width) return;
  float total = 0;
  for (int i = 0; i < COLUMNS_WARPS; i++)
    total += room[(i * W + threadIdx.x % W) * 32 + threadIdx.x / W];
  if (part)
    part[blockIdx.y * width + column] = total;
  else
    out[column] += total;
}

/* Numbers of a part, which are not read again: they leave the second-level cache first. */
template <int W>
__device__ __forceinline__ void columns_read(const float *from, float (&x)[W]) {
  static_assert(W == 1 || W == 4, "one access does it");
  if constexpr (W == 4) {
    float4 v = __ldcs((const float4 *)from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
    x[0] = __ldcs(from);
  }
}

template <int W>
static __global__ void __launch_bounds__(32 * COLUMNS_GROUPS)
    columns_finish_kernel(const float *part, int64_t parts, int64_t width, float *out) {
  __shared__ alignas(16) float room[COLUMNS_GROUPS][32 * W];
  int lane = threadIdx.x & 31, group = threadIdx.x >> 5;
  int64_t begin = (int64_t)blockIdx.x * 32 * W, column = begin + lane * W;
  int64_t mine = begin + threadIdx.x;
  float sum[W] = {};
  bool last = threadIdx.x < 32 * W && mine < width;
  launch_next();
  launch_wait();
  float old = last ? out[mine] : 0;
  for (int64_t first = group; first < parts; first += COLUMNS_GROUPS * COLUMNS_AHEAD) {
    float x[COLUMNS_AHEAD][W] = {};
#pragma unroll
    for (int i = 0; i < COLUMNS_AHEAD; i++) {
      int64_t row = first + i * COLUMNS_GROUPS;
      if (row < parts && column < width) columns_read<W>(part + row * width + column, x[i]);
    }
#pragma unroll
    for (int i = 0; i < COLUMNS_AHEAD; i++)
#pragma unroll
      for (int j = 0; j < W; j++) sum[j] += x[i][j];
  }
  wide_write<W>(&room[group][lane * W], sum);
  __syncthreads();
  if (!last) return;
  float total = 0;
#pragma unroll
  for (int i = 0; i < COLUMNS_GROUPS; i++) total += room[i][threadIdx.x];
  out[mine] = old + total;
}

/* The second stage: out[c] += the sum of part[0 .. parts)[c]. Wide matrices by four columns a
 * thread, which changes no order. */
static inline void columns_finish(backend_device_t *device, const float *part, int64_t parts,
                                  int64_t width, float *out) {
  bool four = width % 4 == 0 && width >= 64 * device->multiprocessors && wide_aligned(part);
  launch_chained(device, four ? columns_finish_kernel<4> : columns_finish_kernel<1>,
                 (unsigned)cuda_blocks(width, four ? 128 : 32), 32 * COLUMNS_GROUPS, 0, 0, part,
                 parts, width, out);
}

#endif
