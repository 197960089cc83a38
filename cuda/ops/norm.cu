/* RMS norm and layer norm over rows of [n, hidden]. A row's groups are normed like rows: below, a
 * row is one group, and n counts the groups of all rows.
 *
 * Forward assigns y = xhat w + b with xhat = (x - mean) rstd (mean 0 for RMS); the variance comes
 * from a second pass over the row. Backward, g = dy w:
 *   dx += rstd (g - mean(g) - xhat mean(g xhat)), without mean(g) for RMS,
 *   dw += sum of dy xhat and db += sum of dy over the rows.
 * Rows that allow vectors and are short enough belong to a warp, or to a part of its lanes, which
 * keeps them in registers; its lanes also keep the sums of dw and db over their rows. Other rows
 * belong to a block, which reads them once per pass. Order of the sums over rows: the rows of the
 * same lanes, a warp's lanes, pairs of a block's warps, these pairs, then as columns.cuh says. dw
 * and db come first, since dx may be dy. */
#include "launch.cuh"
#include "ops/columns.cuh"

enum {
  NORM_THREADS = 256,
  NORM_SHORT = 128, /* elements of a row that one vector a lane holds */
  NORM_MOST = 2048, /* elements of a row that a warp keeps */
  NORM_BWD_MOST = 1024 /* the same backward */
};

/* Lanes of a short row. */
template <typename T>
static constexpr int norm_lanes = NORM_SHORT / vec_t<T>::width;

/* The operation with groups as rows: n counts them, and a row has whole strides. Where there are no
 * gaps, each is a row of its own. */
template <typename Op>
static Op norm_groups(const Op *op) {
  Op all = *op;
  all.groups = op->groups ? op->groups : 1;
  if (!all.ldx) all.ldx = all.groups * op->hidden;
  if (!all.ldy) all.ldy = all.groups * op->hidden;
  all.n = op->n * all.groups;
  if (all.ldx == all.groups * op->hidden && all.ldy == all.ldx)
    all.groups = 1, all.ldx = all.ldy = op->hidden;
  return all;
}

/* Where such a row begins, in matrices of ldx and of ldy. */
typedef struct norm_place {
  int64_t x, y;
} norm_place_t;

template <typename Op>
static __device__ __forceinline__ norm_place_t norm_at(const Op &op, int64_t row) {
  if (op.groups == 1) return {row * op.ldx, row * op.ldy};
  uint32_t outer = (uint32_t)row / (uint32_t)op.groups; /* a launch has fewer than 2^31 rows */
  uint32_t inner = ((uint32_t)row - outer * (uint32_t)op.groups) * (uint32_t)op.hidden;
  return {outer * op.ldx + inner, outer * op.ldy + inner};
}

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

/* A row to LANES lanes of a warp, at most PER elements to a lane. */
template <typename T, int PER, int LANES>
static __global__ void __launch_bounds__(NORM_THREADS, (PER <= 24 ? 4 : 1))
    norm_warp_kernel(const op_norm_t op) {
  constexpr int W = vec_t<T>::width, CHUNKS = PER / W;
  constexpr bool EARLY = PER * sizeof(T) <= 48; /* registers have room for w beside x */
  int lane = threadIdx.x % LANES, hidden = (int)op.hidden;
  int64_t row = (int64_t)blockIdx.x * (NORM_THREADS / LANES) + threadIdx.x / LANES;
  launch_next();
  if (row == 0 && lane == 0) launch_prefetch(op.w, hidden * (int64_t)sizeof(T));
  launch_wait();
  bool live = row < op.n;
  if (LANES == 32 && !live) return;
  if (!live) row = op.n - 1; /* a warp's lanes add up together */
  norm_place_t at = norm_at(op, row);
  const T *from = (const T *)op.x + at.x;
  float x[CHUNKS][W] = {}, mean = 0, square = 0;
  T w[CHUNKS][W] = {};
#pragma unroll
  for (int i = 0; i < CHUNKS; i++)
    if ((i * LANES + lane) * W < hidden) wide_load<W>(from + (i * LANES + lane) * W, x[i]);
#pragma unroll
  for (int i = 0; EARLY && i < CHUNKS; i++)
    if ((i * LANES + lane) * W < hidden)
      wide_read<W>((const T *)op.w + (i * LANES + lane) * W, w[i]);
  if (op.kind == NN_NORM_LAYER) {
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int j = 0; j < W; j++) mean += x[i][j];
    mean = lanes_sum<LANES>(mean) / (float)hidden;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int j = 0; j < W; j++)
        if ((i * LANES + lane) * W < hidden) x[i][j] -= mean;
  }
#pragma unroll
  for (int i = 0; i < CHUNKS; i++)
#pragma unroll
    for (int j = 0; j < W; j++) square += x[i][j] * x[i][j]; /* zeros behind the row */
  float rstd = __frsqrt_rn(lanes_sum<LANES>(square) / (float)hidden + op.eps);
  /* All of w is read before the first store, which it could not pass. */
#pragma unroll
  for (int i = 0; i < CHUNKS; i++) {
    int c = (i * LANES + lane) * W;
    if (c >= hidden) continue;
    if (!EARLY) wide_read<W>((const T *)op.w + c, w[i]);
    norm_scale<T, W>(op, c, rstd, w[i], x[i]);
  }
  if (!live) return;
  T *to = (T *)op.y + at.y;
#pragma unroll
  for (int i = 0; i < CHUNKS; i++)
    if ((i * LANES + lane) * W < hidden) wide_store<W>(to + (i * LANES + lane) * W, x[i]);
  if (lane == 0) norm_statistics(op, row, mean, rstd);
}

/* A row to a block. */
template <typename T, int W>
static __global__ void __launch_bounds__(NORM_THREADS) norm_block_kernel(const op_norm_t op) {
  __shared__ float room[32];
  int64_t row = blockIdx.x, begin = threadIdx.x * W;
  norm_place_t at = norm_at(op, row);
  const T *from = (const T *)op.x + at.x;
  T *to = (T *)op.y + at.y;
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
    wide_store<W>(to + c, x);
  }
  if (threadIdx.x == 0) norm_statistics(op, row, mean, rstd);
}

template <typename T, int PER, int LANES>
static void norm_warps(backend_device_t *device, const op_norm_t *op) {
  unsigned grid = (unsigned)cuda_blocks(op->n, NORM_THREADS / LANES);
  launch_chained(device, norm_warp_kernel<T, PER, LANES>, grid, NORM_THREADS, 0, 0, *op);
}

template <typename T>
static void norm_launch(backend_device_t *device, const op_norm_t *op) {
  constexpr int W = vec_t<T>::width;
  bool wide = op->hidden % W == 0 && op->ldx % W == 0 && op->ldy % W == 0 &&
              wide_aligned(op->x, op->w, op->b, op->y);
  unsigned rows = (unsigned)op->n;
  if (wide && op->hidden <= NORM_SHORT)
    norm_warps<T, W, norm_lanes<T>>(device, op);
  else if (wide && op->hidden <= 768)
    norm_warps<T, 24, 32>(device, op);
  else if (wide && op->hidden <= NORM_MOST)
    norm_warps<T, NORM_MOST / 32, 32>(device, op);
  else if (wide)
    launch_chained(device, norm_block_kernel<T, W>, rows, NORM_THREADS, 0, 0, *op);
  else
    launch_chained(device, norm_block_kernel<T, 1>, rows, NORM_THREADS, 0, 0, *op);
}

CUDA_OP(norm, op_norm_t) {
  (void)scratch;
  CUDA_TRY(cuda_enter(device, "norm"));
  if (op->n == 0) return NN_OK;
  op_norm_t all = norm_groups(op);
  CUDA_BY_DTYPE(op->act_dtype, norm_launch, device, &all);
  return cuda_launched(device, "norm");
}

/* ---- backward: a row to a warp --------------------------------------------------------------- */

template <typename T, int PER, bool BIAS>
struct norm_bwd_plan_t {
  /* Rows of more than one vector a lane lie one behind the other, and dx accumulates: registers
   * have no room for more. */
  static constexpr bool plain = PER > vec_t<T>::width;
  static constexpr bool ahead = sizeof(T) == 2; /* registers have room for the next row */
  /* Warps of a block, which has a multiprocessor to itself: as many as registers allow. */
  static constexpr int warps = PER <= 8 ? 24 : PER > 24 || BIAS ? 8 : 12;
};

template <typename T>
static __device__ __forceinline__ void norm_unpack(const uint4 &raw, float (&x)[vec_t<T>::width]) {
  const T *at = reinterpret_cast<const T *>(&raw);
#pragma unroll
  for (int j = 0; j < vec_t<T>::width; j++) x[j] = to_float(at[j]);
}

/* What a lane has of a row. */
template <typename T, int PER, int LANES>
struct norm_bwd_row_t {
  static constexpr int W = vec_t<T>::width, CHUNKS = PER / W;
  static constexpr bool PLAIN = norm_bwd_plan_t<T, PER, false>::plain;
  uint4 x[CHUNKS], dy[CHUNKS], dx[CHUNKS];
  float mean, rstd;

  /* What lies behind the row is zero in dy, and adds nothing. */
  __device__ __forceinline__ void load(const op_norm_bwd_t &op, int64_t row) {
    int hidden = (int)op.hidden, lane = threadIdx.x % LANES;
    int64_t from = (PLAIN ? row * hidden : norm_at(op, row).x) + lane * W;
    int64_t at = PLAIN ? from : norm_at(op, row).y + lane * W;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      if ((i * LANES + lane) * W >= hidden) continue;
      x[i] = *(const uint4 *)((const T *)op.x + from + i * LANES * W);
      dy[i] = *(const uint4 *)((const T *)op.dy + at + i * LANES * W);
      if (PLAIN || !op.assign) dx[i] = *(const uint4 *)((const T *)op.dx + at + i * LANES * W);
    }
    mean = op.kind == NN_NORM_LAYER ? op.mean[row] : 0;
    rstd = op.rstd[row];
  }

  /* The compiler keeps nothing that was computed from the row, nor what shared memory holds. */
  __device__ __forceinline__ void forget() {
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      asm volatile("" : "+r"(x[i].x), "+r"(x[i].y), "+r"(x[i].z), "+r"(x[i].w) : : "memory");
      asm volatile("" : "+r"(dy[i].x), "+r"(dy[i].y), "+r"(dy[i].z), "+r"(dy[i].w) : : "memory");
    }
  }
};

/* Sums of PER / W chunks of W columns per lane, LANES of which have a row, over the block's warps
 * into to [hidden]: a warp's lanes of the same columns, warp i with warp i + WARPS / 2, then these
 * in order. room: shared, [WARPS / 2 * 32 * PER]. */
template <int PER, int W, int LANES, int WARPS>
static __device__ __forceinline__ void norm_put(float (&sum)[PER / W][W], float *room, int hidden,
                                                float *to) {
  constexpr int HALF = WARPS / 2;
#pragma unroll
  for (int step = LANES; step < 32; step <<= 1)
#pragma unroll
    for (int i = 0; i < PER; i++)
      sum[i / W][i % W] += __shfl_xor_sync(0xffffffffu, sum[i / W][i % W], step);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float *own = room + warp % HALF * 32 * PER + lane;
  __syncthreads();
  if (warp >= HALF) {
#pragma unroll
    for (int i = 0; i < PER; i++) own[i * 32] = sum[i / W][i % W];
  }
  __syncthreads();
  if (warp < HALF) {
#pragma unroll
    for (int i = 0; i < PER; i++) own[i * 32] += sum[i / W][i % W];
  }
  __syncthreads();
  for (int c = threadIdx.x; c < hidden; c += 32 * WARPS) {
    const float *from = room + (c / (LANES * W) * W + c % W) * 32 + c / W % LANES;
    float total = 0;
#pragma unroll
    for (int i = 0; i < HALF; i++) total += from[i * 32 * PER];
    to[c] = total;
  }
}

/* A block has neighbouring rows, as many as any other to the nearest one, which its groups of LANES
 * lanes take in turn; the next row may be on its way while one is worked on. BIAS: db is wanted.
 * Partial sums go to row blockIdx.x of dw_part and db_part [blocks, hidden]. */
template <typename T, int PER, int LANES, bool BIAS>
static __global__ void __launch_bounds__(32 * norm_bwd_plan_t<T, PER, BIAS>::warps, 1)
    norm_bwd_warp_kernel(const op_norm_bwd_t op, float *dw_part, float *db_part) {
  constexpr int W = vec_t<T>::width, CHUNKS = PER / W, WARPS = norm_bwd_plan_t<T, PER, BIAS>::warps;
  constexpr bool AHEAD = norm_bwd_plan_t<T, PER, BIAS>::ahead;
  constexpr bool PLAIN = norm_bwd_plan_t<T, PER, BIAS>::plain;
  __shared__ alignas(16) float room[WARPS / 2 * 32 * PER];
  __shared__ alignas(16) T weight[32 * PER]; /* registers are for rows */
  int lane = threadIdx.x % LANES, hidden = (int)op.hidden;
  float share = 1 / (float)hidden;
  bool layer = op.kind == NN_NORM_LAYER;
  float dw[CHUNKS][W] = {}, db[CHUNKS][W] = {};
  constexpr int ROWS = 32 / LANES * WARPS; /* of a block at once */
  int end = (int)(op.n * (blockIdx.x + 1) / gridDim.x);
  int row = (int)(op.n * blockIdx.x / gridDim.x) + threadIdx.x / LANES;
  norm_bwd_row_t<T, PER, LANES> now = {}, next = {};
  launch_next();
  launch_wait();
  if (AHEAD && row < end) next.load(op, row);
  for (int c = threadIdx.x; c < 32 * PER; c += 32 * WARPS)
    weight[c] = c < hidden ? ((const T *)op.w)[c] : from_float<T>(0);
  __syncthreads();
  for (; row - threadIdx.x % 32 / LANES < end; row += ROWS) {
    bool live = LANES == 32 || row < end; /* a warp's lanes add up together */
    if (AHEAD) now = next;
    if (!AHEAD && live) now.load(op, row);
    if (LANES < 32 && !live) now = {};
    if (AHEAD && row + ROWS < end) next.load(op, row + ROWS);
    float sum = 0, dot = 0;
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      float x[W], dy[W], w[W];
      norm_unpack<T>(now.x[i], x), norm_unpack<T>(now.dy[i], dy);
      wide_load<W>(weight + (i * LANES + lane) * W, w);
#pragma unroll
      for (int j = 0; j < W; j++) {
        float xhat = (x[j] - now.mean) * now.rstd, g = dy[j] * w[j];
        sum += g;
        dot += g * xhat;
        dw[i][j] += dy[j] * xhat;
        if (BIAS) db[i][j] += dy[j];
      }
    }
    sum = layer ? lanes_sum<LANES>(sum) * share : 0;
    dot = lanes_sum<LANES>(dot) * share;
    now.forget();
#pragma unroll
    for (int i = 0; i < CHUNKS; i++) {
      if ((i * LANES + lane) * W >= hidden || !live) continue;
      float x[W], dy[W], w[W], to[W] = {};
      norm_unpack<T>(now.x[i], x), norm_unpack<T>(now.dy[i], dy);
      if (PLAIN || !op.assign) norm_unpack<T>(now.dx[i], to);
      wide_load<W>(weight + (i * LANES + lane) * W, w);
#pragma unroll
      for (int j = 0; j < W; j++) {
        float xhat = (x[j] - now.mean) * now.rstd;
        to[j] += now.rstd * (dy[j] * w[j] - sum - xhat * dot);
      }
      int64_t at = PLAIN ? (int64_t)row * hidden : norm_at(op, row).y;
      wide_store<W>((T *)op.dx + at + (i * LANES + lane) * W, to);
    }
  }
  norm_put<PER, W, LANES, WARPS>(dw, room, hidden, dw_part + (int64_t)blockIdx.x * hidden);
  if (BIAS)
    norm_put<PER, W, LANES, WARPS>(db, room, hidden, db_part + (int64_t)blockIdx.x * hidden);
}

template <typename T, int PER, int LANES, bool BIAS>
static void norm_bwd_warp(backend_device_t *device, const op_norm_bwd_t *op, float *dw_part,
                          float *db_part) {
  constexpr int WARPS = norm_bwd_plan_t<T, PER, BIAS>::warps;
  int64_t parts = cuda_blocks(op->n, 32 / LANES * WARPS);
  if (parts > device->multiprocessors) parts = device->multiprocessors;
  launch_chained(device, norm_bwd_warp_kernel<T, PER, LANES, BIAS>, (unsigned)parts, 32 * WARPS, 0,
                 0, *op, dw_part, db_part);
  columns_finish(device, dw_part, parts, op->hidden, op->dw);
  if (BIAS) columns_finish(device, db_part, parts, op->hidden, op->db);
}

/* ---- backward: a row to a block, columns apart ----------------------------------------------- */

/* xhat and g of W columns from c on. */
template <typename T, int W>
static __device__ __forceinline__ void norm_bwd_load(const op_norm_bwd_t &op, int64_t row,
                                                     int64_t c, float mean, float rstd,
                                                     float (&xhat)[W], float (&g)[W]) {
  float w[W];
  wide_load<W>((const T *)op.x + norm_at(op, row).x + c, xhat);
  wide_load<W>((const T *)op.dy + norm_at(op, row).y + c, g);
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
  T *to = (T *)op.dx + norm_at(op, row).y;
  for (int64_t c = begin; c < op.hidden; c += NORM_THREADS * W) {
    float dx[W] = {};
    norm_bwd_load<T, W>(op, row, c, mean, rstd, xhat, g);
    if (!op.assign) wide_load<W>(to + c, dx);
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
      wide_load<W>((const T *)op.x + norm_at(op, row).x + column, x);
      wide_load<W>((const T *)op.dy + norm_at(op, row).y + column, dy);
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
  norm_bwd_columns_kernel<T, W>
      <<<grid, NORM_THREADS, 0, device->stream>>>(*op, plan.rows, dw_part, db_part);
  norm_bwd_block_kernel<T, W><<<rows, NORM_THREADS, 0, device->stream>>>(*op);
  if (!dw_part) return;
  columns_finish(device, dw_part, plan.parts, op->hidden, op->dw);
  if (op->db) columns_finish(device, db_part, plan.parts, op->hidden, op->db);
}

/* ---- backward -------------------------------------------------------------------------------- */

template <typename T, int PER, int LANES>
static void norm_bwd_warps(backend_device_t *device, const op_norm_bwd_t *op, float *dw_part,
                           float *db_part) {
  if (op->db)
    norm_bwd_warp<T, PER, LANES, true>(device, op, dw_part, db_part);
  else
    norm_bwd_warp<T, PER, LANES, false>(device, op, dw_part, db_part);
}

template <typename T>
static void norm_bwd_launch(backend_device_t *device, const op_norm_bwd_t *op, float *dw_part,
                            float *db_part) {
  constexpr int W = vec_t<T>::width;
  bool wide = op->hidden % W == 0 && op->ldx % W == 0 && op->ldy % W == 0 &&
              wide_aligned(op->x, op->dy, op->w, op->dx);
  bool plain = op->ldx == op->hidden && op->ldy == op->hidden && !op->assign;
  if (wide && op->hidden <= NORM_SHORT)
    norm_bwd_warps<T, W, norm_lanes<T>>(device, op, dw_part, db_part);
  else if (wide && plain && op->hidden <= 768)
    norm_bwd_warps<T, 24, 32>(device, op, dw_part, db_part);
  else if (wide && plain && op->hidden <= NORM_BWD_MOST)
    norm_bwd_warps<T, NORM_BWD_MOST / 32, 32>(device, op, dw_part, db_part);
  else if (wide)
    norm_bwd_block<T, W>(device, op, dw_part, db_part);
  else
    norm_bwd_block<T, 1>(device, op, dw_part, db_part);
}

/* Parts of dw or db, for rows of any length: short rows make at most so many blocks. */
static float *norm_layout(const backend_device_t *device, cuda_arena_t *arena) {
  int64_t count = (int64_t)device->multiprocessors * NORM_BWD_MOST;
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
  op_norm_bwd_t all = norm_groups(op);
  CUDA_BY_DTYPE(op->act_dtype, norm_bwd_launch, device, &all, dw_part, db_part);
  return cuda_launched(device, "norm_bwd");
}
