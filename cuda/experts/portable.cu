/* The experts' grouped products on any device: a block makes 128 rows by 128 columns (or 64 of gate
 * and the same 64 of up) of one expert, which it finds from the offsets. Each sum runs over k in
 * order; 16 bits in whole vectors go through tensor cores, all else through fused multiply-adds. */
#include "experts/grouped.cuh"
#include "experts/portable_tile.cuh"

/* What a block is to do. */
template <typename T>
struct portable_work_t {
  panel_t<T> a, b;
  int32_t k;
  int32_t expert;
  int64_t row;    /* its first */
  int32_t rows;   /* at most PORTABLE_TILE */
  int64_t column; /* its first */
};

/* A product is a struct of arguments with: the form of its panels (a_inner, b_inner, halves,
 * segments: see panel_t), locate() which says what the block does, if anything, and finish() which
 * stores the sums. */
template <class Tile, class Product>
__global__ void __launch_bounds__(PORTABLE_THREADS, Tile::blocks)
    portable_kernel(const Product product) {
  extern __shared__ __align__(16) char portable_shared[];
  portable_work_t<typename Tile::element> work;
  if (!product.locate(&work)) return;
  float acc[8][8] = {};
  Tile::template run<Product>(portable_shared, acc, work.a, work.b, work.k);
  product.template finish<Tile>(acc, work);
}

/* Finds the expert, rows and columns of a row product's block: `width` columns by `step`. */
template <typename T>
__device__ __forceinline__ bool portable_place(const grouped_t &grouped, int64_t width,
                                               int32_t step, portable_work_t<T> *work) {
  unsigned across = (unsigned)((width + step - 1) / step);
  int32_t tile = (int32_t)(blockIdx.x / across);
  grouped_place_t place;
  if (!grouped_find(grouped.offset, grouped.experts, PORTABLE_TILE, tile, &place)) return false;
  work->expert = place.expert;
  work->row = place.begin;
  work->rows = place.end - place.begin;
  work->column = (int64_t)(blockIdx.x % across) * step;
  return true;
}

__device__ __forceinline__ int32_t portable_lines(int64_t left) {
  return (int32_t)min(left, (int64_t)PORTABLE_TILE);
}

/* to[rows, width] = the sums. */
template <class Tile, typename T>
__device__ __forceinline__ void portable_assign(T *to, int64_t width, const float (&acc)[8][8],
                                                const portable_work_t<T> &work) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (Tile::row(i) >= work.rows) continue;
    T *line = to + (work.row + Tile::row(i)) * width;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      int64_t column = work.column + Tile::column(j);
      pair_put<Tile>(line + column, width - column, acc[i][j], acc[i][j + 1]);
    }
  }
}

/* ---- the products ---------------------------------------------------------------------------- */

template <typename T>
struct up_product {
  static constexpr bool a_inner = true, b_inner = true, halves = true;
  static constexpr int segments = 1;
  grouped_t grouped;
  grouped_up_t op;

  __device__ __forceinline__ bool locate(portable_work_t<T> *work) const {
    if (!portable_place(grouped, grouped.ffn, PORTABLE_HALF, work)) return false;
    int64_t h = grouped.hidden, ld = h * grouped.apart;
    int64_t at = work->expert * grouped.stride + work->column * ld;
    const T *x = (const T *)op.x + work->row * h;
    work->k = (int32_t)h;
    work->a = {x, x, h, work->rows};
    work->b = {(const T *)op.gate + at, (const T *)op.up + at, ld,
               portable_lines(grouped.ffn - work->column)};
    return true;
  }

  template <class Tile>
  __device__ __forceinline__ void finish(const float (&acc)[8][8],
                                         const portable_work_t<T> &work) const {
    int64_t f = grouped.ffn;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (Tile::row(i) >= work.rows) continue;
      int64_t row = work.row + Tile::row(i);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        int64_t column = work.column + Tile::column(j), left = f - column;
        float g0 = acc[i][j], g1 = acc[i][j + 1], u0 = acc[i][j + 4], u1 = acc[i][j + 5];
        if (grouped.gate_bias && left > 0) {
          float2 first = grouped_biases<T>(grouped, work.expert, column), second = first;
          if (left > 1) second = grouped_biases<T>(grouped, work.expert, column + 1);
          g0 += first.x, u0 += first.y, g1 += second.x, u1 += second.y;
        }
        if (op.pre) {
          T *pre = (T *)op.pre + row * 2 * f + column;
          pair_put<Tile>(pre, left, g0, g1);
          pair_put<Tile>(pre + f, left, u0, u1);
        }
        if (op.act)
          pair_put<Tile>((T *)op.act + row * f + column, left, glu_act(g0, u0, grouped.limit),
                         glu_act(g1, u1, grouped.limit));
      }
    }
  }
};

template <typename T>
struct down_product {
  static constexpr bool a_inner = true, b_inner = true, halves = false;
  static constexpr int segments = 1;
  grouped_t grouped;
  grouped_down_t op;

  __device__ __forceinline__ bool locate(portable_work_t<T> *work) const {
    if (!portable_place(grouped, grouped.hidden, PORTABLE_TILE, work)) return false;
    int64_t f = grouped.ffn;
    const T *act = (const T *)op.act + work->row * f;
    const T *down = (const T *)op.down + work->expert * grouped.stride + work->column * f;
    work->k = (int32_t)f;
    work->a = {act, act, f, work->rows};
    work->b = {down, down, f, portable_lines(grouped.hidden - work->column)};
    return true;
  }

  template <class Tile>
  __device__ __forceinline__ void finish(const float (&acc)[8][8],
                                         const portable_work_t<T> &work) const {
    portable_assign<Tile>((T *)op.y, grouped.hidden, acc, work);
  }
};

template <typename T>
struct dx_product {
  static constexpr bool a_inner = true, b_inner = false, halves = false;
  static constexpr int segments = 2;
  grouped_t grouped;
  grouped_dx_t op;

  __device__ __forceinline__ bool locate(portable_work_t<T> *work) const {
    if (!portable_place(grouped, grouped.hidden, PORTABLE_TILE, work)) return false;
    int64_t f = grouped.ffn, at = work->expert * grouped.stride + work->column;
    const T *dpre = (const T *)op.dpre + work->row * 2 * f;
    work->k = (int32_t)f;
    work->a = {dpre, dpre + f, 2 * f, work->rows};
    work->b = {(const T *)op.gate + at, (const T *)op.up + at, grouped.hidden * grouped.apart,
               portable_lines(grouped.hidden - work->column)};
    return true;
  }

  template <class Tile>
  __device__ __forceinline__ void finish(const float (&acc)[8][8],
                                         const portable_work_t<T> &work) const {
    portable_assign<Tile>((T *)op.dx, grouped.hidden, acc, work);
  }
};

template <typename T>
struct dact_product {
  static constexpr bool a_inner = true, b_inner = false, halves = false;
  static constexpr int segments = 1;
  static_assert((int)GROUPED_SLICE == (int)PORTABLE_TILE, "a tile makes one slice of dot");
  grouped_t grouped;
  grouped_dact_t op;

  __device__ __forceinline__ bool locate(portable_work_t<T> *work) const {
    if (!portable_place(grouped, grouped.ffn, PORTABLE_TILE, work)) return false;
    int64_t h = grouped.hidden;
    const T *dy = (const T *)op.dy + work->row * h;
    const T *down = (const T *)op.down + work->expert * grouped.stride + work->column;
    work->k = (int32_t)h;
    work->a = {dy, dy, h, work->rows};
    work->b = {down, down, grouped.ffn, portable_lines(grouped.ffn - work->column)};
    return true;
  }

  /* The thread's columns of a row; returns their part of <d, a>. */
  template <class Tile>
  __device__ __forceinline__ float gradient(int64_t row, int64_t first, const float (&d)[8]) const {
    int64_t f = grouped.ffn;
    T *pre = (T *)op.pre + row * 2 * f, *act = (T *)op.act + row * f;
    float weight = op.weight[row], sum = 0;
    float2 g[4], u[4]; /* all are asked for before the first is stored over */
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int64_t column = first + Tile::column(2 * j);
      g[j] = pair_get<Tile>(pre + column, f - column);
      u[j] = pair_get<Tile>(pre + f + column, f - column);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int64_t column = first + Tile::column(2 * j), left = f - column;
      float g0, g1, u0, u1; /* derivatives of the activation */
      float a0 = glu_slopes(g[j].x, u[j].x, grouped.limit, &g0, &u0);
      float a1 = glu_slopes(g[j].y, u[j].y, grouped.limit, &g1, &u1);
      float da0 = weight * d[2 * j], da1 = weight * d[2 * j + 1];
      pair_put<Tile>(pre + column, left, da0 * g0, da1 * g1);
      pair_put<Tile>(pre + f + column, left, da0 * u0, da1 * u1);
      pair_put<Tile>(act + column, left, weight * a0, weight * a1);
      sum += d[2 * j] * a0 + d[2 * j + 1] * a1;
    }
    return sum;
  }

  template <class Tile>
  __device__ __forceinline__ void finish(const float (&acc)[8][8],
                                         const portable_work_t<T> &work) const {
    __shared__ float part[PORTABLE_TILE][Tile::warps_across];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float sum = 0;
      if (Tile::row(i) < work.rows)
        sum = gradient<Tile>(work.row + Tile::row(i), work.column, acc[i]);
#pragma unroll
      for (int step = Tile::lanes_across / 2; step; step >>= 1)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (Tile::lane() % Tile::lanes_across == 0) part[Tile::row(i)][Tile::across()] = sum;
    }
    __syncthreads();
    if ((int32_t)threadIdx.x >= work.rows) return;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < Tile::warps_across; w++) sum += part[threadIdx.x][w];
    int64_t slices = (grouped.ffn + GROUPED_SLICE - 1) / GROUPED_SLICE;
    op.dot[(work.row + threadIdx.x) * slices + work.column / GROUPED_SLICE] = sum;
  }
};

/* Here the tile's rows are lines of a weight, its columns the other side, and k is the expert's
 * rows. For each expert: dgate, dup, ddown, each in tiles of F by tiles of hidden. */
template <typename T>
struct dw_product {
  static constexpr bool a_inner = false, b_inner = false, halves = false;
  static constexpr int segments = 1;
  grouped_t grouped;
  grouped_dw_t op;

  __device__ __forceinline__ bool locate(portable_work_t<T> *work) const {
    int64_t h = grouped.hidden, f = grouped.ffn;
    unsigned wide = (unsigned)((h + PORTABLE_TILE - 1) / PORTABLE_TILE);
    unsigned tiles = (unsigned)((f + PORTABLE_TILE - 1) / PORTABLE_TILE) * wide;
    int which = (int)(blockIdx.x / tiles % 3);
    int64_t i = (int64_t)(blockIdx.x % tiles / wide) * PORTABLE_TILE;
    int64_t j = (int64_t)(blockIdx.x % wide) * PORTABLE_TILE;
    work->expert = (int32_t)(blockIdx.x / tiles / 3);
    int64_t begin = grouped.offset[work->expert];
    work->k = (int32_t)(grouped.offset[work->expert + 1] - begin);
    if (work->k == 0) return false;
    const T *of_f = which == 2 ? (const T *)op.act + begin * f
                               : (const T *)op.dpre + begin * 2 * f + which * f;
    const T *of_h = (const T *)(which == 2 ? op.dy : op.x) + begin * h;
    panel_t<T> across_f = {of_f + i, of_f + i, which == 2 ? f : 2 * f, portable_lines(f - i)};
    panel_t<T> across_h = {of_h + j, of_h + j, h, portable_lines(h - j)};
    work->a = which == 2 ? across_h : across_f;
    work->b = which == 2 ? across_f : across_h;
    work->row = which == 2 ? j : i;
    work->rows = work->a.lines;
    work->column = which == 2 ? i : j;
    return true;
  }

  template <class Tile>
  __device__ __forceinline__ void finish(const float (&acc)[8][8],
                                         const portable_work_t<T> &work) const {
    unsigned tiles = (unsigned)(((grouped.hidden + PORTABLE_TILE - 1) / PORTABLE_TILE) *
                                ((grouped.ffn + PORTABLE_TILE - 1) / PORTABLE_TILE));
    int which = (int)(blockIdx.x / tiles % 3);
    float *to = (which == 0 ? op.dgate : which == 1 ? op.dup : op.ddown) +
                work.expert * grouped.stride;
    int64_t width = which == 2 ? grouped.ffn : grouped.hidden;
    int64_t ld = which == 2 ? width : width * grouped.apart;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (Tile::row(i) >= work.rows) continue;
      float *line = to + (work.row + Tile::row(i)) * ld;
      float2 before[4]; /* all are asked for before the first is stored over */
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int64_t column = work.column + Tile::column(2 * j);
        before[j] = pair_get<Tile>(line + column, op.assign ? 0 : width - column);
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int64_t column = work.column + Tile::column(2 * j);
        pair_put<Tile>(line + column, width - column, before[j].x + acc[i][2 * j],
                       before[j].y + acc[i][2 * j + 1]);
      }
    }
  }
};

/* ---- launches -------------------------------------------------------------------------------- */

template <class Tile, class Product>
static nn_status_t portable_launch(backend_device_t *device, int64_t blocks,
                                   const Product &product) {
  CUDA_TRY(cuda_check(device, "experts",
                      cudaFuncSetAttribute(portable_kernel<Tile, Product>,
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           Tile::shared_bytes)));
  portable_kernel<Tile, Product>
      <<<(unsigned)blocks, PORTABLE_THREADS, Tile::shared_bytes, device->stream>>>(product);
  return cuda_launched(device, "experts");
}

template <typename T, template <typename> class Product, typename Args>
static nn_status_t portable_half(backend_device_t *device, const grouped_t *grouped,
                                 const Args *op, int64_t blocks, uintptr_t at) {
  if (at % 16 || grouped->hidden % 8 || grouped->ffn % 8 || grouped->stride % 8)
    return portable_launch<fma_tile<T>>(device, blocks, Product<T>{*grouped, *op});
  return portable_launch<mma_tile<T>>(device, blocks, Product<T>{*grouped, *op});
}

/* at: the product's addresses, one or-ed with the other. */
template <template <typename> class Product, typename Args>
static nn_status_t portable_run(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                                const Args *op, int64_t blocks, uintptr_t at) {
  if (dtype == NN_BF16)
    return portable_half<bf16_t, Product>(device, grouped, op, blocks, at);
  if (dtype == NN_F16) return portable_half<f16_t, Product>(device, grouped, op, blocks, at);
  return portable_launch<fma_tile<float>>(device, blocks, Product<float>{*grouped, *op});
}

static int64_t portable_blocks(const grouped_t *grouped, int64_t width, int64_t step) {
  return grouped_tiles(grouped, PORTABLE_TILE) * cuda_blocks(width, step);
}

nn_status_t portable_up(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                        const grouped_up_t *op) {
  uintptr_t at = (uintptr_t)op->x | (uintptr_t)op->gate | (uintptr_t)op->up | (uintptr_t)op->pre |
                 (uintptr_t)op->act;
  return portable_run<up_product>(device, dtype, grouped, op,
                                  portable_blocks(grouped, grouped->ffn, PORTABLE_HALF), at);
}

nn_status_t portable_down(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                          const grouped_down_t *op) {
  uintptr_t at = (uintptr_t)op->act | (uintptr_t)op->down | (uintptr_t)op->y;
  return portable_run<down_product>(device, dtype, grouped, op,
                                    portable_blocks(grouped, grouped->hidden, PORTABLE_TILE), at);
}

nn_status_t portable_dact(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                          const grouped_dact_t *op) {
  uintptr_t at =
      (uintptr_t)op->dy | (uintptr_t)op->down | (uintptr_t)op->pre | (uintptr_t)op->act;
  return portable_run<dact_product>(device, dtype, grouped, op,
                                    portable_blocks(grouped, grouped->ffn, PORTABLE_TILE), at);
}

nn_status_t portable_dx(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                        const grouped_dx_t *op) {
  uintptr_t at =
      (uintptr_t)op->dpre | (uintptr_t)op->gate | (uintptr_t)op->up | (uintptr_t)op->dx;
  return portable_run<dx_product>(device, dtype, grouped, op,
                                  portable_blocks(grouped, grouped->hidden, PORTABLE_TILE), at);
}

nn_status_t portable_dw(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                        const grouped_dw_t *op) {
  uintptr_t at = (uintptr_t)op->dpre | (uintptr_t)op->x | (uintptr_t)op->dy | (uintptr_t)op->act |
                 (uintptr_t)op->dgate | (uintptr_t)op->dup | (uintptr_t)op->ddown;
  int64_t blocks = 3 * grouped->experts * cuda_blocks(grouped->ffn, PORTABLE_TILE) *
                   cuda_blocks(grouped->hidden, PORTABLE_TILE);
  return portable_run<dw_product>(device, dtype, grouped, op, blocks, at);
}
