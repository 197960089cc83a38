/* The experts' forward where each has few rows (decoding many sequences), T bf16 or fp16: bound by
 * reading weights, which go from memory straight into tensor-core products as their left factor, 16
 * columns of the result at a time; up to 8 THIN_TILES rows are the right one and share what was
 * read.
 *
 * A sum over columns may run in any order if both factors agree: lane 4g + t reads columns 8t .. 8t
 * + 7 of 32 of row g, which are its fragments of two products of 16 columns. In thin_up a warp has
 * the whole sum; in thin_down the warps take turns at 32 columns, and are added in order. */
#include "experts/groups.cuh"
#include "launch.cuh"

enum {
  THIN_THREADS = 256,
  THIN_WARPS = THIN_THREADS / 32,
  THIN_BLOCKS = 2, /* at once on a multiprocessor */
  THIN_TILES = 2,  /* of 8 rows that share what is in registers; further ones find it in cache */
  THIN_AHEAD = 3,  /* steps of 32 columns that a warp has in flight */
  THIN_SHARE = 8 * THIN_TILES, /* rows of an expert, on average, up to which this path gains */
  THIN_ROWS = 1024,            /* in all */
  THIN_COLUMNS = 32,           /* of the result that a block of thin_down makes */
  THIN_PITCH = THIN_COLUMNS + 4
};

/* A weight passes through once: it leaves the first-level cache to the rows. */
template <typename T>
__device__ __forceinline__ uint4 thin_load_once(const T *from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(from)));
  return v;
}

/* Adds the products of two tiles of 16 weight rows with TILES tiles of 8 rows, over columns first,
 * first + step, ... (32 of each) of `width`. weight: a lane's place in row g of each tile, with row
 * g + 8 `below` elements further; x: its place in row g of each tile. sum[m][j]: columns of the
 * result g, g + 8 (last index / 2) by rows 2t, 2t + 1 (last index % 2). */
template <typename T, int TILES>
__device__ __forceinline__ void thin_products(float (&sum)[2][TILES][4],
                                              const T *const (&weight)[2], int64_t below,
                                              const T *const (&x)[TILES], int32_t first,
                                              int32_t step, int32_t width) {
  for (int32_t from = first; from < width; from += THIN_AHEAD * step) {
    uint4 w[THIN_AHEAD][2][2];
#pragma unroll
    for (int u = 0; u < THIN_AHEAD; u++)
      if (from + u * step < width)
#pragma unroll
        for (int m = 0; m < 2; m++) {
          w[u][m][0] = thin_load_once(weight[m] + from + u * step);
          w[u][m][1] = thin_load_once(weight[m] + below + from + u * step);
        }
#pragma unroll
    for (int u = 0; u < THIN_AHEAD; u++)
      if (from + u * step < width)
#pragma unroll
        for (int j = 0; j < TILES; j++) {
          uint4 b = *(const uint4 *)(x[j] + from + u * step);
#pragma unroll
          for (int m = 0; m < 2; m++) {
            const uint4 &top = w[u][m][0], &low = w[u][m][1];
            half_multiply<T>(sum[m][j], top.x, low.x, top.y, low.y, b.x, b.y);
            half_multiply<T>(sum[m][j], top.z, low.z, top.w, low.w, b.z, b.w);
          }
        }
  }
}

/* ---- up -------------------------------------------------------------------------------------- */

/* A warp makes columns f .. f + 15 of the group's rows from `row` on. */
template <typename T, int TILES>
__device__ __forceinline__ void thin_up_rows(const grouped_t &grouped, const few_up_t &op,
                                             const grouped_place_t &group, int32_t row, int64_t f) {
  int32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  int64_t h = grouped.hidden, ld = h * grouped.apart;
  int64_t at = group.expert * grouped.stride + (f + g) * ld + 8 * t;
  const T *weight[2] = {(const T *)op.gate + at, (const T *)op.up + at};
  const T *x[TILES];
#pragma unroll
  for (int j = 0; j < TILES; j++) {
    int32_t slot = op.row_slot[min(row + 8 * j + g, group.end - 1)];
    x[j] = (const T *)op.x + slot / (int32_t)op.top_k * h + 8 * t;
  }
  float sum[2][TILES][4] = {};
  thin_products<T, TILES>(sum, weight, 8 * ld, x, 0, 32, (int32_t)h);
  float2 bias[2] = {grouped_biases<T>(grouped, group.expert, f + g),
                    grouped_biases<T>(grouped, group.expert, f + g + 8)};
#pragma unroll
  for (int j = 0; j < TILES; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int64_t to = row + 8 * j + 2 * t + i % 2, column = f + g + i / 2 * 8;
      if (to >= group.end) continue;
      float gate = sum[0][j][i] + bias[i / 2].x, up = sum[1][j][i] + bias[i / 2].y;
      if (op.pre) {
        T *pre = (T *)op.pre + to * 2 * grouped.ffn + column;
        pre[0] = from_float<T>(gate);
        pre[grouped.ffn] = from_float<T>(up);
      }
      if (op.act)
        ((T *)op.act)[to * grouped.ffn + column] = from_float<T>(glu_act(gate, up, grouped.limit));
    }
}

/* A warp has 16 columns of one group. */
template <typename T>
__global__ void __launch_bounds__(THIN_THREADS, THIN_BLOCKS)
    thin_up_kernel(const grouped_t grouped, const few_up_t op) {
  __shared__ groups_t<THIN_ROWS> groups;
  launch_wait();
  launch_next(); /* not sooner: thin_down reads the routing before it waits */
  groups_find(grouped, &groups);
  int32_t tiles = (int32_t)(grouped.ffn / 16);
  int32_t item = blockIdx.x * THIN_WARPS + threadIdx.x / 32;
  if (item >= groups.count * tiles) return;
  grouped_place_t group = groups.at[item / tiles];
  int64_t f = item % tiles * 16;
  if (group.end - group.begin <= 8)
    thin_up_rows<T, 1>(grouped, op, group, group.begin, f);
  else
    for (int32_t row = group.begin; row < group.end; row += 8 * THIN_TILES)
      thin_up_rows<T, THIN_TILES>(grouped, op, group, row, f);
}

/* ---- down ------------------------------------------------------------------------------------ */

typedef float thin_parts_t[THIN_WARPS][8 * THIN_TILES][THIN_PITCH];

/* A block makes columns first .. first + 31 of the group's rows from `row` on. */
template <typename T, int TILES>
__device__ __forceinline__ void thin_down_rows(const grouped_t &grouped, const grouped_down_t &op,
                                               const grouped_place_t &group, int32_t row,
                                               int64_t first, thin_parts_t &part) {
  int32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  int64_t f = grouped.ffn;
  const T *down =
      (const T *)op.down + group.expert * grouped.stride + (first + g) * f + 8 * t;
  const T *weight[2] = {down, down + 16 * f}, *act[TILES];
#pragma unroll
  for (int j = 0; j < TILES; j++)
    act[j] = (const T *)op.act + min(row + 8 * j + g, group.end - 1) * f + 8 * t;
  float sum[2][TILES][4] = {};
  thin_products<T, TILES>(sum, weight, 8 * f, act, 32 * warp, 32 * THIN_WARPS, (int32_t)f);
  __syncthreads(); /* the parts before have been read */
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        part[warp][8 * j + 2 * t + i % 2][16 * m + g + i / 2 * 8] = sum[m][j][i];
  __syncthreads();
  for (int32_t at = threadIdx.x; at < 8 * TILES * THIN_COLUMNS; at += THIN_THREADS) {
    int32_t to = at / THIN_COLUMNS, column = at % THIN_COLUMNS;
    if (row + to >= group.end) break;
    float y = 0;
#pragma unroll
    for (int w = 0; w < THIN_WARPS; w++) y += part[w][to][column];
    ((T *)op.y)[(row + to) * grouped.hidden + first + column] = from_float<T>(y);
  }
}

/* A block has THIN_COLUMNS columns of one group. */
template <typename T>
__global__ void __launch_bounds__(THIN_THREADS, THIN_BLOCKS)
    thin_down_kernel(const grouped_t grouped, const grouped_down_t op) {
  __shared__ groups_t<THIN_ROWS> groups;
  __shared__ thin_parts_t part;
  launch_next();
  groups_find(grouped, &groups);
  int32_t tiles = (int32_t)(grouped.hidden / THIN_COLUMNS), which = blockIdx.x / tiles;
  int64_t first = blockIdx.x % tiles * THIN_COLUMNS;
  bool some = which < groups.count;
  grouped_place_t group = groups.at[some ? which : 0];
  launch_wait();
  if (!some) return;
  if (group.end - group.begin <= 8)
    thin_down_rows<T, 1>(grouped, op, group, group.begin, first, part);
  else
    for (int32_t row = group.begin; row < group.end; row += 8 * THIN_TILES)
      thin_down_rows<T, THIN_TILES>(grouped, op, group, row, first, part);
}

/* ---- launches -------------------------------------------------------------------------------- */

int thin_fits(const grouped_t *grouped, uintptr_t at) {
  return at % 16 == 0 && grouped->hidden % 32 == 0 && grouped->ffn % 32 == 0 &&
         grouped->stride % 8 == 0 && grouped->rows <= THIN_ROWS &&
         grouped->rows <= THIN_SHARE * grouped->experts;
}

static int64_t thin_groups(const grouped_t *grouped) {
  return grouped->rows < grouped->experts ? grouped->rows : grouped->experts;
}

template <typename T>
static void thin_up_launch(backend_device_t *device, const grouped_t *grouped, const few_up_t *op) {
  unsigned blocks =
      (unsigned)cuda_blocks(thin_groups(grouped) * (grouped->ffn / 16), THIN_WARPS);
  launch_chained(device, thin_up_kernel<T>, blocks, THIN_THREADS, 0, 0, *grouped, *op);
}

template <typename T>
static void thin_down_launch(backend_device_t *device, const grouped_t *grouped,
                             const grouped_down_t *op) {
  unsigned blocks = (unsigned)(thin_groups(grouped) * (grouped->hidden / THIN_COLUMNS));
  launch_chained(device, thin_down_kernel<T>, blocks, THIN_THREADS, 0, 0, *grouped, *op);
}

nn_status_t thin_up(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                    const few_up_t *op) {
  CUDA_BY_HALF(dtype, thin_up_launch, device, grouped, op);
  return cuda_launched(device, "experts");
}

nn_status_t thin_down(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                      const grouped_down_t *op) {
  CUDA_BY_HALF(dtype, thin_down_launch, device, grouped, op);
  return cuda_launched(device, "experts");
}
