/* RMS norm and layer norm over rows of [n, hidden].
 *
 * Forward assigns y = xhat w + b with xhat = (x - mean) rstd (mean 0 for RMS); the variance comes
 * from a second pass over the row. Backward, g = dy w:
 *   dx += rstd (g - mean(g) - xhat mean(g xhat)), without mean(g) for RMS,
 *   dw += sum of dy xhat and db += sum of dy over the rows.
 * Rows that allow vectors and are short enough belong to a warp, which keeps them in registers; its
 * lanes also keep the sums of dw and db over the warp's rows. Other rows belong to a block, which
 * reads them once per pass. Order of the sums over rows: a warp's rows, a block's warps, then as
 * columns.cuh says. */
#include "launch.cuh"
#include "ops/columns.cuh"

enum {
  NORM_THREADS = 256,
  NORM_WARPS = NORM_THREADS / 32,
  NORM_MOST = 2048, /* elements of a row that a warp keeps */
  /* The same backward, where registers limit: small blocks fill a multiprocessor best. */
  NORM_BWD_THREADS = 128,
  NORM_BWD_WARPS = NORM_BWD_THREADS / 32,
  NORM_BWD_MOST = 1024
};

/* ---- forward --------------------------------------------------------------------------------- */

static __device__ __forceinline__ void norm_statistics(const op_norm_t &op, int64_t row, float mean,
                                                       float rstd) {
  if (op.mean && op.kind == NN_NORM_LAYER) op.mean[row] = mean;
  if (op.rstd) op.rstd[row] = rstd;
}

/* x = x rstd w + b for W columns from c on; x comes with the mean taken off. */
template <typename T, int W>
static __device__ __forceinline__ void norm_scale(const op_norm_t &op, int64_t c, float rstd,
                                                  const T (&w)[W], float (&x)[W]) {
  float b[W] = {0};
  if (op.b) wide_load<W>((const T *)op.b + c, b);
#pragma unroll
  for (int j = 0; j < W; j++) x[j] = x[j] * rstd * to_float(w[j]) + b[j];
}

/* A row to a warp, at most PER elements to a lane. */
template <typename T, int PER>
static __global__ void __launch_bounds__(NORM_THREADS, (PER <= 24 ? 4 : 1))
    norm_warp_kernel(const op_norm_t op) {
  constexpr int W = vec_t<T>::width, CHUNKS = PER / W;
  constexpr bool EARLY = PER * sizeof(T) <= 48; /* registers have room for w beside x */
  int lane = threadIdx.x & 31, hidden = (int)op.hidden;
  int64_t row = (int64_t)blockIdx.x * NORM_WARPS + (threadIdx.x >> 5);
  launch_next();
  if (row == 0 && lane == 0) launch_prefetch(op.w, hidden * (int64_t)sizeof(T));
  launch_wait();
  if (row >= op.n) return;
  const T *from = (const T *)op.x + row * hidden;
  float x[CHUNKS][W] = {}, mean = 0, square = 0;
  T w[CHUNKS][W] = {};
#pragma unroll
  for (int i = 0; i < CHUNKS; i++)
    if ((i * 32 + lane) * W < hidden) wide_load<W>(from + (i * 32 + lane) * W, x[i]);
#pragma unroll
  for (int i = 0; EARLY && i < CHUNKS; i++)
    if ((i * 32 + lane) * W < hidden) wide_read<W>((const T *)op.w + (i * 32 + lane) * W, w[i]);
  if (op.kind == NN_NORM_LAYER) {
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int j = 0; j < W; j++) mean += x[i][j];
    mean = warp_sum(mean) / (float)hidden;
  }
#pragma unroll
  for (int i = 0; i < CHUNKS; i++) {
    if ((i * 32 + lane) * W >= hidden) continue;
#pragma unroll
    for (int j = 0; j < W; j++) x[i][j] -= mean, square += x[i][j] * x[i][j];
  }
  float rstd = __frsqrt_rn(warp_sum(square) / (float)hidden + op.eps);
  /* All of w is read before the first store, which it could not pass. */
#pragma unroll
  for (int i = 0; i < CHUNKS; i++) {
    int c = (i * 32 + lane) * W;
    if (c >= hidden) continue;
    if (!EARLY) wide_read<W>((const T *)op.w + c, w[i]);
    norm_scale<T, W>(op, c, rstd, w[i], x[i]);
  }
  T *to = (T *)op.y + row * hidden;
#pragma unroll
  for (int i = 0; i < CHUNKS; i++)
    if ((i * 32 + lane) * W < hidden) wide_store<W>(to + (i * 32 + lane) * W, x[i]);
  if (lane == 0) norm_statistics(op, row, mean, rstd);
}

/* A row to a block. */
template <typename T, int W>
static __global__ void __launch_bounds__(NORM_THREADS) norm_block_kernel(const op_norm_t op) {
  __shared__ float room[32];
  int64_t row = blockIdx.x, begin = threadIdx.x * W;
  const T *from = (const T *)op.x + row * op.hidden;
  float x[W], mean = 0, square = 0;
  launch_next();
  launch_wait();
  if (op.kind == NN_NORM_LAYER) {
    for (int64_t c = begin; c < op.hidden; c += NORM_THREADS * W) {
      wide_load<W>(from + c, x);
#pragma unroll
      for (int j = 0; j < W; j++) mean += x[j];
    }
    mean = block_sum(mean, room) / (float)op.hidden;
  }
  for (int64_t c = begin; c < op.hidden; c += NORM_THREADS * W) {
    wide_load<W>(from + c, x);
#pragma unroll
    for (int j = 0; j < W; j++) square += (x[j] - mean) * (x[j] - mean);
  }
  float rstd = __frsqrt_rn(block_sum(square, room) / (float)op.hidden + op.eps);
  for (int64_t c = begin; c < op.hidden; c += NORM_THREADS * W) {
    T w[W];
    wide_read<W>((const T *)op.w + c, w);
    wide_load<W>(from + c, x);
#pragma unroll
    for (int j = 0; j < W; j++) x[j] -= mean;
    norm_scale<T, W>(op, c, rstd, w, x);
    wide_store<W>((T *)op.y + row * op.hidden + c, x);
  }
  if (threadIdx.x == 0) norm_statistics(op, row, mean, rstd);
}

template <typename T>
static void norm_launch(backend_device_t *device, const op_norm_t *op) {
  constexpr int W = vec_t<T>::width;
  bool wide = op->hidden % W == 0 && wide_aligned(op->x, op->w, op->b, op->y);
  unsigned rows = (unsigned)op->n, grid = (unsigned)cuda_blocks(op->n, NORM_WARPS);
  if (wide && op->hidden <= 768)
    launch_chained(device, norm_warp_kernel<T, 24>, grid, NORM_THREADS, 0, 0, *op);
  else if (wide && op->hidden <= NORM_MOST)
    launch_chained(device, norm_warp_kernel<T, NORM_MOST / 32>, grid, NORM_THREADS, 0, 0, *op);
  else if (wide)
    launch_chained(device, norm_block_kernel<T, W>, rows, NORM_THREADS, 0, 0, *op);
  else
    launch_chained(device, norm_block_kernel<T, 1>, rows, NORM_THREADS, 0, 0, *op);
}

CUDA_OP(norm, op_norm_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "norm"));
  if (op->n == 0) return NN_OK;
  CUDA_BY_DTYPE(op->act_dtype, norm_launch, device, op);
  return cuda_launched(device, "norm");
}

/* ---- backward: a row to a warp --------------------------------------------------------------- */

/* Blocks of a multiprocessor, by the elements of a lane. */
static constexpr int norm_bwd_blocks(int per) { return per <= 24 ? 3 : 2; }

/* Sums of PER / W chunks of W columns per lane over the block's warps, in order, into to [hidden];
 * room: shared, [32 * PER]. */
template <int PER, int W>
static __device__ __forceinline__ void norm_put(const float (&sum)[PER / W][W], float *room,
                                                int hidden, float *to) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int turn = 0; turn < NORM_BWD_WARPS; turn++) {
    if (warp == turn) {
#pragma unroll
      for (int i = 0; i < PER; i++) {
        float *at = room + i * 32 + lane;
        *at = turn ? *at + sum[i / W][i % W] : sum[i / W][i % W];
      }
    }
    __syncthreads();
  }
  for (int c = threadIdx.x; c < hidden; c += NORM_BWD_THREADS)
    to[c] = room[(c / (32 * W) * W + c % W) * 32 + c / W % 32];
  __syncthreads();
}

/* The grid's warps take rows in turn. BIAS: db is wanted. Partial sums go to row blockIdx.x of
 * dw_part and db_part, [blocks, hidden]. */
template <typename T, int PER, bool BIAS>
static __global__ void __launch_bounds__(NORM_BWD_THREADS, (norm_bwd_blocks(PER)))
    norm_bwd_warp_kernel(const op_norm_bwd_t op, float *dw_part, float *db_part) {
  constexpr int W = vec_t<T>::width, CHUNKS = PER / W;
  __shared__ float room[32 * PER];
  int lane = threadIdx.x & 31, hidden = (int)op.hidden;
  float share = 1 / (float)hidden;
  bool layer = op.kind == NN_NORM_LAYER;
  T w[CHUNKS][W] = {};
  float dw[CHUNKS][W] = {}, db[CHUNKS][W] = {};
#pragma unroll
  for (int i = 0; i < CHUNKS; i++)
    if ((i * 32 + lane) * W < hidden) wide_read<W>((const T *)op.w + (i * 32 + lane) * W, w[i]);

  int64_t row = (int64_t)blockIdx.x * NORM_BWD_WARPS + (threadIdx.x >> 5);
  for (; row < op.n; row += (int64_t)gridDim.x * NORM_BWD_WARPS) {
    int64_t from = row * hidden + lane * W;
    T x[CHUNKS][W] = {}, dy[CHUNKS][W] = {}, dx[CHUNKS][W] = {};
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      if ((i * 32 + lane) * W >= hidden) continue;
      wide_read<W>((const T *)op.x + from + i * 32 * W, x[i]);
      wide_read<W>((const T *)op.dy + from + i * 32 * W, dy[i]);
      wide_read<W>((const T *)op.dx + from + i * 32 * W, dx[i]);
    }
    float mean = layer ? op.mean[row] : 0, rstd = op.rstd[row], sum = 0, dot = 0;
    /* What lies behind the row is zero in dy and w, and adds nothing. */
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
#pragma unroll
      for (int j = 0; j < W; j++) {
        float xhat = (to_float(x[i][j]) - mean) * rstd, d = to_float(dy[i][j]);
        float g = d * to_float(w[i][j]);
        sum += g;
        dot += g * xhat;
        dw[i][j] += d * xhat;
        if (BIAS) db[i][j] += d;
      }
    }
    sum = layer ? warp_sum(sum) * share : 0;
    dot = warp_sum(dot) * share;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      if ((i * 32 + lane) * W >= hidden) continue;
      float to[W];
#pragma unroll
      for (int j = 0; j < W; j++) {
        float xhat = (to_float(x[i][j]) - mean) * rstd;
        float g = to_float(dy[i][j]) * to_float(w[i][j]);
        to[j] = to_float(dx[i][j]) + rstd * (g - sum - xhat * dot);
      }
      wide_store<W>((T *)op.dx + from + i * 32 * W, to);
    }
  }
  norm_put<PER, W>(dw, room, hidden, dw_part + (int64_t)blockIdx.x * hidden);
  if (BIAS) norm_put<PER, W>(db, room, hidden, db_part + (int64_t)blockIdx.x * hidden);
}

template <typename T, int PER>
static void norm_bwd_warp(backend_device_t *device, const op_norm_bwd_t *op, float *dw_part,
                          float *db_part) {
  int64_t parts = (int64_t)norm_bwd_blocks(PER) * device->multiprocessors;
  if (parts > cuda_blocks(op->n, NORM_BWD_WARPS)) parts = cuda_blocks(op->n, NORM_BWD_WARPS);
  unsigned grid = (unsigned)parts;
  if (op->db)
    norm_bwd_warp_kernel<T, PER, true>
        <<<grid, NORM_BWD_THREADS, 0, device->stream>>>(*op, dw_part, db_part);
  else
    norm_bwd_warp_kernel<T, PER, false>
        <<<grid, NORM_BWD_THREADS, 0, device->stream>>>(*op, dw_part, db_part);
  columns_finish(device, dw_part, parts, op->hidden, op->dw);
  if (op->db) columns_finish(device, db_part, parts, op->hidden, op->db);
}

/* ---- backward: a row to a block, columns apart ----------------------------------------------- */

/* xhat and g of W columns from c on. */
template <typename T, int W>
static __device__ __forceinline__ void norm_bwd_load(const op_norm_bwd_t &op, int64_t row,
                                                     int64_t c, float mean, float rstd,
                                                     float (&xhat)[W], float (&g)[W]) {
  float w[W];
  wide_load<W>((const T *)op.x + row * op.hidden + c, xhat);
  wide_load<W>((const T *)op.dy + row * op.hidden + c, g);
  wide_load<W>((const T *)op.w + c, w);
#pragma unroll
  for (int j = 0; j < W; j++) xhat[j] = (xhat[j] - mean) * rstd, g[j] *= w[j];
}

template <typename T, int W>
static __global__ void __launch_bounds__(NORM_THREADS)
    norm_bwd_block_kernel(const op_norm_bwd_t op) {
  __shared__ float room[32];
  int64_t row = blockIdx.x, begin = threadIdx.x * W;
  bool layer = op.kind == NN_NORM_LAYER;
  float mean = layer ? op.mean[row] : 0, rstd = op.rstd[row], sum = 0, dot = 0, xhat[W], g[W];
  for (int64_t c = begin; c < op.hidden; c += NORM_THREADS * W) {
    norm_bwd_load<T, W>(op, row, c, mean, rstd, xhat, g);
#pragma unroll
    for (int j = 0; j < W; j++) sum += g[j], dot += g[j] * xhat[j];
  }
  sum = layer ? block_sum(sum, room) / (float)op.hidden : 0;
  dot = block_sum(dot, room) / (float)op.hidden;
  T *to = (T *)op.dx + row * op.hidden;
  for (int64_t c = begin; c < op.hidden; c += NORM_THREADS * W) {
    float dx[W];
    norm_bwd_load<T, W>(op, row, c, mean, rstd, xhat, g);
    wide_load<W>(to + c, dx);
#pragma unroll
    for (int j = 0; j < W; j++) dx[j] += rstd * (g[j] - sum - xhat[j] * dot);
    wide_store<W>(to + c, dx);
  }
}

/* The first stage of dw and db: a part of the rows, a tile of the columns. */
template <typename T, int W>
static __global__ void __launch_bounds__(NORM_THREADS)
    norm_bwd_columns_kernel(const op_norm_bwd_t op, int64_t rows, float *dw_part, float *db_part) {
  __shared__ float room[COLUMNS_WARPS * 32 * W];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int64_t column = ((int64_t)blockIdx.x * 32 + lane) * W;
  int64_t row = blockIdx.y * rows, end = min(op.n, row + rows);
  bool layer = op.kind == NN_NORM_LAYER;
  float dw[W] = {0}, db[W] = {0};
  if (column < op.hidden) {
#pragma unroll 2
    for (row += warp; row < end; row += COLUMNS_WARPS) {
      float x[W], dy[W], mean = layer ? op.mean[row] : 0, rstd = op.rstd[row];
      wide_load<W>((const T *)op.x + row * op.hidden + column, x);
      wide_load<W>((const T *)op.dy + row * op.hidden + column, dy);
#pragma unroll
      for (int j = 0; j < W; j++) dw[j] += dy[j] * ((x[j] - mean) * rstd), db[j] += dy[j];
    }
  }
  columns_put<W>(dw, room, op.hidden, dw_part, op.dw);
  if (op.db) columns_put<W>(db, room, op.hidden, db_part, op.db);
}

template <typename T, int W>
static void norm_bwd_block(backend_device_t *device, const op_norm_bwd_t *op, float *dw_part,
                           float *db_part) {
  columns_plan_t plan = columns_plan(device, op->n, op->hidden, W);
  if (plan.parts == 1) dw_part = db_part = NULL;
  dim3 grid((unsigned)plan.tiles, (unsigned)plan.parts);
  unsigned rows = (unsigned)op->n;
  norm_bwd_block_kernel<T, W><<<rows, NORM_THREADS, 0, device->stream>>>(*op);
  norm_bwd_columns_kernel<T, W>
      <<<grid, NORM_THREADS, 0, device->stream>>>(*op, plan.rows, dw_part, db_part);
  if (!dw_part) return;
  columns_finish(device, dw_part, plan.parts, op->hidden, op->dw);
  if (op->db) columns_finish(device, db_part, plan.parts, op->hidden, op->db);
}

/* ---- backward -------------------------------------------------------------------------------- */

template <typename T>
static void norm_bwd_launch(backend_device_t *device, const op_norm_bwd_t *op, float *dw_part,
                            float *db_part) {
  constexpr int W = vec_t<T>::width;
  bool wide = op->hidden % W == 0 && wide_aligned(op->x, op->dy, op->w, op->dx);
  if (wide && op->hidden <= 768)
    norm_bwd_warp<T, 24>(device, op, dw_part, db_part);
  else if (wide && op->hidden <= NORM_BWD_MOST)
    norm_bwd_warp<T, NORM_BWD_MOST / 32>(device, op, dw_part, db_part);
  else if (wide)
    norm_bwd_block<T, W>(device, op, dw_part, db_part);
  else
    norm_bwd_block<T, 1>(device, op, dw_part, db_part);
}

/* Parts of dw or db, for rows of any length: short rows make at most so many blocks. */
static float *norm_layout(const backend_device_t *device, cuda_arena_t *arena) {
  int64_t count = (int64_t)norm_bwd_blocks(24) * device->multiprocessors * NORM_BWD_MOST;
  if (count < columns_scratch(device)) count = columns_scratch(device);
  return (float *)cuda_take(arena, count, sizeof(float));
}

size_t cuda_norm_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  cuda_arena_t arena = {NULL, 0};
  if (!limits->training) return 0;
  norm_layout(device, &arena);
  norm_layout(device, &arena);
  return arena.used;
}

CUDA_OP(norm_bwd, op_norm_bwd_t) {
  CUDA_TRY(cuda_enter(device, "norm_bwd"));
  if (op->n == 0) return NN_OK;
  cuda_arena_t arena = {(char *)scratch.data, 0};
  float *dw_part = norm_layout(device, &arena), *db_part = norm_layout(device, &arena);
  CUDA_BY_DTYPE(op->act_dtype, norm_bwd_launch, device, op, dw_part, db_part);
  return cuda_launched(device, "norm_bwd");
}
