/* What kernels over grouped rows share: finding a block's tile from the offsets on the device, and
 * biases. */
#ifndef NN_CUDA_GROUPED_CUH
#define NN_CUDA_GROUPED_CUH

#include "experts/grouped.h"
#include "kernel.cuh"
#include "ops/glu.cuh"

typedef struct grouped_place {
  int32_t expert;
  int32_t begin, end; /* the tile's rows */
} grouped_place_t;

/* Finds the tile-th of all experts' tiles of tile_rows rows; 0 where there are fewer. Asked by
 * whole warps, each thread of which gets the answer. */
__device__ __forceinline__ int grouped_find(const int32_t *offset, int64_t experts,
                                            int32_t tile_rows, int32_t tile,
                                            grouped_place_t *place) {
  const unsigned all = 0xffffffffu;
  int lane = threadIdx.x & 31;
  for (int32_t first = 0; first < experts; first += 32) {
    int inside = first + lane < experts;
    int32_t begin = inside ? offset[first + lane] : 0, end = inside ? offset[first + lane + 1] : 0;
    int32_t tiles = (end - begin + tile_rows - 1) / tile_rows, sum = tiles;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
      int32_t before = __shfl_up_sync(all, sum, step);
      if (lane >= step) sum += before;
    }
    unsigned reached = __ballot_sync(all, sum > tile);
    if (reached) {
      int at = __ffs((int)reached) - 1;
      place->expert = first + at;
      place->begin = __shfl_sync(all, begin, at) +
                     (tile - __shfl_sync(all, sum - tiles, at)) * tile_rows;
      place->end = min(__shfl_sync(all, end, at), place->begin + tile_rows);
      return 1;
    }
    tile -= __shfl_sync(all, sum, 31);
  }
  return 0;
}

/* Enough blocks for every way in which the rows may be spread over the experts. */
static inline int64_t grouped_tiles(const grouped_t *grouped, int64_t tile_rows) {
  int64_t tiles = grouped->rows / tile_rows + grouped->experts;
  return tiles < grouped->rows ? tiles : grouped->rows;
}

/* Biases of an expert's column f. */
template <typename T>
__device__ __forceinline__ float2 grouped_biases(const grouped_t &grouped, int32_t expert,
                                                 int64_t f) {
  if (!grouped.gate_bias) return make_float2(0, 0);
  int64_t at = expert * grouped.bias_stride + f * grouped.apart;
  return make_float2(to_float(((const T *)grouped.gate_bias)[at]),
                     to_float(((const T *)grouped.up_bias)[at]));
}

#endif
