/* Gradients of routing. With p the scores, S the sum of the chosen ones and w_j = scale p_j / S, or
 * w_j = scale p_j,
 *   dprob_j = (scale dweight_j - sum_i dweight_i w_i) / S, or scale dweight_j, for the chosen, and
 *   for all dprob_e += aux_scale aux_share_e / n,
 *   dlogit_e = p_e (dprob_e - sum_i p_i dprob_i) + 2 z_scale lse p_e / n for softmax,
 *   dlogit_e = p_e (1 - p_e) dprob_e for sigmoid,
 * where the sparse mixer, w_j = scale p_j / S_j with a sum for each choice, has instead of dprob_j
 * dlogit_e += scale dweight_j w_j (e == j), less that times p_e / S_j for the e of S_j,
 * and then dx [n, H] += dlogit w, dw [E, H] += dlogit^T x and dbias += dlogit, in fp32. dw sums
 * tokens in order in each block, then blocks as columns.cuh says, and so does dbias.
 *
 * 16 bits and up to ROUTE_STEP experts, without dbias or mixer: one kernel passes once over x and
 * dx, on sm_90a that of route_bwd_sm90.cu. Its products go through the tensor cores, which take
 * dlogit as the sum of numbers of 16 bits: of three for dw, as exact as fp32, and of two for dx,
 * far more exact than its own rounding. bf16 and more experts are route_bwd_many.cu's. Otherwise
 * dlogit, dx and dw have a kernel each, and dx sums over experts in order. */
#include "ops/columns.cuh"
#include "ops/route_dlogit.cuh"

enum {
  ROUTE_OUTER = 16,           /* rows of a thread's block of results; it has two columns */
  ROUTE_OUTER_THREADS = 128,
  ROUTE_OUTER_COLS = 2 * ROUTE_OUTER_THREADS,
  ROUTE_LOADS = 8,            /* in flight per thread */
  ROUTE_STEPS = 64,           /* what shared memory holds of a sum at once */
  ROUTE_SPLITS = 256,         /* most parts of the tokens that dw is summed from */
  ROUTE_SPLIT_TOKENS = 16,    /* least tokens of such a part */
};

static const int64_t route_split_bytes = 32 << 20; /* of dw's parts, where it has more than one */

/* ---- scratch --------------------------------------------------------------------------------- */

static int64_t route_most_splits(int64_t n) {
  int64_t most = cuda_blocks(n, ROUTE_SPLIT_TOKENS);
  return most < ROUTE_SPLITS ? most : (int64_t)ROUTE_SPLITS;
}

/* Grows with all three, so that limits cover what is below them; route_split keeps within it. */
static int64_t route_part_bytes(int64_t n, int64_t experts, int64_t hidden) {
  int64_t one = experts * hidden * (int64_t)sizeof(float), all = route_most_splits(n) * one;
  if (all <= route_split_bytes) return all;
  return one > route_split_bytes ? one : route_split_bytes;
}

static route_bwd_plan_t route_bwd_layout(const backend_device_t *device, cuda_arena_t *arena,
                                         int64_t n, int64_t experts, int64_t hidden) {
  route_bwd_plan_t plan = {};
  plan.dlogit = (float *)cuda_take(arena, n * experts, sizeof(float));
  plan.part = (float *)cuda_take(arena, route_part_bytes(n, experts, hidden), 1);
  plan.bias_part = columns_take(device, arena);
  return plan;
}

size_t route_bwd_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  cuda_arena_t arena = {};
  route_bwd_layout(device, &arena, limits->rows, limits->experts, limits->hidden);
  size_t many = route_bwd_many_scratch(device, limits);
  return arena.used > many ? arena.used : many;
}

/* At most so many parts, of whole units of tokens. */
static void route_split(const op_route_bwd_t *op, int64_t splits, int64_t unit,
                        route_bwd_plan_t *plan) {
  int64_t most = route_most_splits(op->n);
  int64_t room = route_part_bytes(op->n, op->experts, op->hidden) /
                 (op->experts * op->hidden * (int64_t)sizeof(float));
  if (splits > most) splits = most;
  if (splits > room) splits = room;
  if (splits < 1) splits = 1;
  plan->tokens = unit * cuda_blocks(op->n, unit * splits);
  plan->splits = (int)cuda_blocks(op->n, plan->tokens);
}

/* ---- dlogit ---------------------------------------------------------------------------------- */

template <int LANES, int PER, bool MIXER>
static __global__ void __launch_bounds__(ROUTE_THREADS, 1)
    route_dlogit(const op_route_bwd_t op, float *dlogit) {
  constexpr int GROUPS = ROUTE_THREADS / LANES, STRIDE = LANES * PER + 4;
  __shared__ float rows[GROUPS * STRIDE];
  int q = threadIdx.x % LANES, group = threadIdx.x / LANES, experts = (int)op.experts;
  int64_t token = (int64_t)blockIdx.x * GROUPS + group;
  float *row = rows + group * STRIDE;
  route_token_t<LANES, PER> from;
  from.load(op, min(token, op.n - 1), q);
  route_dlogit_row<LANES, PER, MIXER>(op, min(token, op.n - 1), from, q, row);
  if (token >= op.n) return;
  for (int e = q; e < experts; e += LANES) dlogit[token * experts + e] = row[e];
}

/* ---- dx and dw ------------------------------------------------------------------------------- */

/* Two neighbouring columns of a row, from column c on; PAIR: one access does it. */
template <bool PAIR, typename T>
__device__ __forceinline__ float2 route_load(const T *row, int64_t c, int64_t hidden) {
  float v[2] = {};
  if (PAIR) {
    wide_load<2>(row + c, v);
  } else {
    v[0] = to_float(row[c]);
    if (c + 1 < hidden) v[1] = to_float(row[c + 1]);
  }
  return make_float2(v[0], v[1]);
}
/* Types that the compiler does not store in halves. */
__device__ __forceinline__ void route_store_pair(float *to, float2 v) { *(float2 *)to = v; }
template <typename T>
__device__ __forceinline__ void route_store_pair(T *to, float2 v) {
  *(uint32_t *)to = half_pair<T>(v.x, v.y);
}

template <bool PAIR, typename T>
__device__ __forceinline__ void route_store(T *row, int64_t c, int64_t hidden, float2 v) {
  if (PAIR) {
    route_store_pair(row + c, v);
  } else {
    row[c] = from_float<T>(v.x);
    if (c + 1 < hidden) row[c + 1] = from_float<T>(v.y);
  }
}

/* Padded so that neighbouring rows begin in other banks, and 16-byte aligned. */
enum { ROUTE_STEP_STRIDE = ROUTE_OUTER + 4 };

/* sum[i] += a[i] * v. */
__device__ __forceinline__ void route_add(float2 (&sum)[ROUTE_OUTER], const float *a, float2 v) {
#pragma unroll
  for (int i = 0; i < ROUTE_OUTER; i += 4) {
    float4 f = *(const float4 *)(a + i);
    sum[i].x = fmaf(f.x, v.x, sum[i].x), sum[i].y = fmaf(f.x, v.y, sum[i].y);
    sum[i + 1].x = fmaf(f.y, v.x, sum[i + 1].x), sum[i + 1].y = fmaf(f.y, v.y, sum[i + 1].y);
    sum[i + 2].x = fmaf(f.z, v.x, sum[i + 2].x), sum[i + 2].y = fmaf(f.z, v.y, sum[i + 2].y);
    sum[i + 3].x = fmaf(f.w, v.x, sum[i + 3].x), sum[i + 3].y = fmaf(f.w, v.y, sum[i + 3].y);
  }
}

/* sum[i] += a[s, i] * b[s, c .. c + 1] over steps s in order; a in shared memory. */
template <typename T, bool PAIR>
__device__ __forceinline__ void route_outer(float2 (&sum)[ROUTE_OUTER], const float *a, const T *b,
                                            int steps, int64_t c, int64_t hidden) {
  int s = 0;
  for (; s + ROUTE_LOADS <= steps; s += ROUTE_LOADS) {
    float2 v[ROUTE_LOADS];
#pragma unroll
    for (int u = 0; u < ROUTE_LOADS; u++)
      v[u] = route_load<PAIR>(b + (s + u) * hidden, c, hidden);
#pragma unroll
    for (int u = 0; u < ROUTE_LOADS; u++) route_add(sum, a + (s + u) * ROUTE_STEP_STRIDE, v[u]);
  }
  for (; s < steps; s++)
    route_add(sum, a + s * ROUTE_STEP_STRIDE, route_load<PAIR>(b + s * hidden, c, hidden));
}

/* A block: ROUTE_OUTER tokens, ROUTE_OUTER_COLS columns. */
template <typename T, bool PAIR>
static __global__ void __launch_bounds__(ROUTE_OUTER_THREADS)
    route_dx(const op_route_bwd_t op, const float *dlogit) {
  __shared__ alignas(16) float a[ROUTE_STEPS * ROUTE_STEP_STRIDE];
  int64_t first = (int64_t)blockIdx.x * ROUTE_OUTER;
  int64_t c = (int64_t)blockIdx.y * ROUTE_OUTER_COLS + 2 * threadIdx.x;
  int rows = (int)min(op.n - first, (int64_t)ROUTE_OUTER);
  float2 sum[ROUTE_OUTER] = {};
  for (int64_t e0 = 0; e0 < op.experts; e0 += ROUTE_STEPS) {
    int steps = (int)min(op.experts - e0, (int64_t)ROUTE_STEPS);
    __syncthreads();
    for (int i = threadIdx.x; i < ROUTE_OUTER * steps; i += ROUTE_OUTER_THREADS) {
      int row = i / steps, e = i % steps;
      a[e * ROUTE_STEP_STRIDE + row] =
          row < rows ? dlogit[(first + row) * op.experts + e0 + e] : 0.0f;
    }
    __syncthreads();
    if (c < op.hidden)
      route_outer<T, PAIR>(sum, a, (const T *)op.w + e0 * op.hidden, steps, c, op.hidden);
  }
  if (c >= op.hidden) return;
  T *dx = (T *)op.dx + first * op.hidden;
#pragma unroll
  for (int i = 0; i < ROUTE_OUTER; i++) { /* all rows are on their way before the first is stored */
    if (i >= rows) continue;
    float2 old = route_load<PAIR>(dx + i * op.hidden, c, op.hidden);
    sum[i].x += old.x, sum[i].y += old.y;
  }
#pragma unroll
  for (int i = 0; i < ROUTE_OUTER; i++)
    if (i < rows) route_store<PAIR>(dx + i * op.hidden, c, op.hidden, sum[i]);
}

/* A block: a split of the tokens, ROUTE_OUTER_COLS columns, ROUTE_OUTER experts. */
template <typename T, bool PAIR>
static __global__ void __launch_bounds__(ROUTE_OUTER_THREADS)
    route_dw(const op_route_bwd_t op, const route_bwd_plan_t plan) {
  __shared__ alignas(16) float a[ROUTE_STEPS * ROUTE_STEP_STRIDE];
  int64_t begin = blockIdx.x * plan.tokens, end = min(begin + plan.tokens, op.n);
  int64_t c = (int64_t)blockIdx.y * ROUTE_OUTER_COLS + 2 * threadIdx.x;
  int64_t first = (int64_t)blockIdx.z * ROUTE_OUTER;
  int experts = (int)min(op.experts - first, (int64_t)ROUTE_OUTER);
  float2 sum[ROUTE_OUTER] = {};
  for (int64_t t = begin; t < end; t += ROUTE_STEPS) {
    int steps = (int)min(end - t, (int64_t)ROUTE_STEPS);
    __syncthreads();
    for (int i = threadIdx.x; i < ROUTE_OUTER * steps; i += ROUTE_OUTER_THREADS) {
      int row = i / ROUTE_OUTER, e = i % ROUTE_OUTER;
      a[row * ROUTE_STEP_STRIDE + e] =
          e < experts ? plan.dlogit[(t + row) * op.experts + first + e] : 0.0f;
    }
    __syncthreads();
    if (c < op.hidden)
      route_outer<T, PAIR>(sum, a, (const T *)op.x + t * op.hidden, steps, c, op.hidden);
  }
  if (c >= op.hidden) return;
#pragma unroll
  for (int i = 0; i < ROUTE_OUTER; i++) {
    if (i >= experts) continue;
    float *row = plan.part + (blockIdx.x * op.experts + first + i) * op.hidden;
    route_store<PAIR>(row, c, op.hidden, sum[i]);
  }
}

/* ---- through the tensor cores ---------------------------------------------------------------- */

/* Where a lane's pieces lie from a split's first token on. */
typedef struct route_pieces_at_t {
  const uint16_t *x;
  uint16_t *dx;
  int hidden;
  int x_end, dx_end[2]; /* the split's tokens from the lane's first on; 0 without columns */
} route_pieces_at_t;

static __device__ __forceinline__ route_pieces_at_t route_find(const op_route_bwd_t &op,
                                                               int64_t begin, int64_t tokens,
                                                               int64_t column) {
  int lane = threadIdx.x & 31;
  int64_t x = column + (lane >> 2) * 8, dx = column + (lane & 3) * 8;
  return {(const uint16_t *)op.x + (begin + (lane & 3) * 2) * op.hidden + x,
          (uint16_t *)op.dx + (begin + (lane >> 2)) * op.hidden + dx, (int)op.hidden,
          x < op.hidden ? (int)tokens - (lane & 3) * 2 : 0,
          {dx < op.hidden ? (int)tokens - (lane >> 2) : 0,
           dx + 32 < op.hidden ? (int)tokens - (lane >> 2) : 0}};
}

/* A step of x: four tokens' 8 columns from 8 g on, g = lane / 4. first: its first token in the
 * split. */
static __device__ __forceinline__ void route_load_x(const route_pieces_at_t &at, int first,
                                                    uint4 (&x)[4]) {
  const uint16_t *from = at.x + (int64_t)first * at.hidden;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int row = i % 2 + i / 2 * 8;
    x[i] = make_uint4(0, 0, 0, 0);
    if (first + row < at.x_end) x[i] = *(const uint4 *)(from + (int64_t)row * at.hidden);
  }
}

/* A step of dx: two tokens' 8 columns from 8 t and from 32 + 8 t on, t = lane % 4. */
static __device__ __forceinline__ void route_load_dx(const route_pieces_at_t &at, int first,
                                                     uint4 (&dx)[4]) {
  const uint16_t *from = at.dx + (int64_t)first * at.hidden;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int row = i / 2 * 8;
    dx[i] = make_uint4(0, 0, 0, 0);
    if (first + row < at.dx_end[i % 2])
      dx[i] = *(const uint4 *)(from + (int64_t)row * at.hidden + i % 2 * 32);
  }
}

/* dx of a step. w: fragments; product 4 h + j has columns 32 h + 8 t + 2 j, + 1 of the strip. */
template <typename T>
static __device__ __forceinline__ void route_dx_step(const route_pieces_at_t &at, int first,
                                                     const uint32_t (&w)[8][2],
                                                     const route_fragments_t &dlogit,
                                                     const uint4 (&dx)[4]) {
  int lane = threadIdx.x & 31;
  uint4 a[2] = {dlogit.by_token[0][lane], dlogit.by_token[1][lane]};
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float sum[4][4] = {};
    route_dx_product<T>(a, w, h, sum);
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (first + 8 * i < at.dx_end[h])
        *(uint4 *)(at.dx + (int64_t)(first + 8 * i) * at.hidden + 32 * h) =
            route_dx_add<T>(dlogit, dx[2 * i + h], sum, i);
  }
}

/* sum += dw of a step; product j has columns 8 n + j of the strip, n < 8. */
template <typename T>
static __device__ __forceinline__ void route_dw_step(const route_fragments_t &dlogit,
                                                     const uint4 (&rows)[4], float (&sum)[8][4]) {
  int lane = threadIdx.x & 31;
  uint4 a[3] = {dlogit.by_expert[0][lane], dlogit.by_expert[1][lane], dlogit.by_expert[2][lane]};
  uint32_t x[4][4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    x[i][0] = rows[i].x, x[i][1] = rows[i].y, x[i][2] = rows[i].z, x[i][3] = rows[i].w;
  }
#pragma unroll
  for (int h = 0; h < 8; h += 2) {
    uint32_t b[2][2];
#pragma unroll
    for (int j = 0; j < 4; j++)
      b[j / 2][j % 2] = __byte_perm(x[j % 2 * 2][h / 2], x[j % 2 * 2 + 1][h / 2],
                                    j / 2 ? 0x7632 : 0x5410);
    route_dw_product<T>(dlogit, a, b, sum + h);
  }
}

/* A block: a split of the tokens, ROUTE_STRIP columns for each of its warps. */
template <typename T>
static __global__ void __launch_bounds__(32 * ROUTE_STRIPS)
    route_bwd_mma(const op_route_bwd_t op, const route_bwd_plan_t plan) {
  __shared__ alignas(16) float rows[ROUTE_CHUNK * ROUTE_CHUNK_STRIDE];
  __shared__ alignas(16) route_fragments_t fragments[ROUTE_CHUNK / ROUTE_STEP];
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, experts = (int)op.experts;
  int64_t begin = blockIdx.x * plan.tokens, end = min(begin + plan.tokens, op.n);
  int64_t column = ((int64_t)blockIdx.y * (blockDim.x / 32) + (threadIdx.x >> 5)) * ROUTE_STRIP;
  launch_next();
  launch_wait();
  int tokens = (int)(end - begin);
  route_pieces_at_t at = route_find(op, begin, tokens, column);
  uint4 x[4], dx[4];
  route_load_x(at, 0, x), route_load_dx(at, 0, dx);
  route_dx_rows_t w_rows;
  uint32_t w[8][2];
  route_dx_read(op, column, w_rows), route_dx_pack(w_rows, w);
  float sum[8][4] = {};
  for (int first = 0; first < tokens; first += ROUTE_STEP) {
    int step = first % ROUTE_CHUNK / ROUTE_STEP;
    if (step == 0) {
      route_tokens_t chunk = {begin + first, ROUTE_STEP, min(tokens - first, (int)ROUTE_CHUNK)};
      route_chunk_token_t token;
      route_chunk_read(op, chunk, token);
      route_chunk<T>(op, chunk, token, rows, fragments);
    }
    uint4 next[4];
    route_load_x(at, first + ROUTE_STEP, next);
    route_dx_step<T>(at, first, w, fragments[step], dx);
    route_load_dx(at, first + ROUTE_STEP, dx);
    route_dw_step<T>(fragments[step], x, sum);
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = next[i];
  }
#pragma unroll
  for (int i = 0; i < 4; i++) { /* expert g (+ 8), columns 16 t (+ 8) ... */
    int e = g + i / 2 * 8;
    int64_t c = column + 16 * t + i % 2 * 8;
    if (e >= experts || c >= op.hidden) continue;
    float *to = plan.part + (blockIdx.x * op.experts + e) * op.hidden + c, out[8];
#pragma unroll
    for (int j = 0; j < 8; j++) out[j] = sum[j][i];
    wide_store<8>(to, out);
  }
}

/* ---- the operation --------------------------------------------------------------------------- */

static nn_status_t route_launch_mma(backend_device_t *device, const op_route_bwd_t *op,
                                    route_bwd_plan_t *plan) {
  int64_t strips = cuda_blocks(op->hidden, ROUTE_STRIP), across = cuda_blocks(strips, ROUTE_STRIPS);
  int64_t warps = cuda_blocks(strips, across);
  route_split(op, device->multiprocessors * (ROUTE_STRIPS / warps) / across, ROUTE_STEP, plan);
  if (route90_bwd_takes(device)) return route90_bwd_launch(device, op, plan, warps, across);
  dim3 grid((unsigned)plan->splits, (unsigned)across);
  auto kernel = op->act_dtype == NN_F16 ? route_bwd_mma<f16_t> : route_bwd_mma<bf16_t>;
  launch_chained(device, kernel, grid, 32 * (unsigned)warps, 0, 0, *op, *plan);
  return NN_OK;
}

template <int LANES, int PER>
static void route_launch_dlogit(cudaStream_t stream, const op_route_bwd_t *op, float *dlogit) {
  int64_t blocks = cuda_blocks(op->n, ROUTE_THREADS / LANES);
  auto kernel = op->router.score == NN_SCORE_SPARSE_MIXER ? route_dlogit<LANES, PER, true>
                                                          : route_dlogit<LANES, PER, false>;
  kernel<<<(unsigned)blocks, ROUTE_THREADS, 0, stream>>>(*op, dlogit);
}

template <typename T, bool PAIR>
static void route_launch_outer(cudaStream_t stream, const op_route_bwd_t *op,
                               const route_bwd_plan_t *plan) {
  unsigned across = (unsigned)cuda_blocks(op->hidden, ROUTE_OUTER_COLS);
  dim3 dx((unsigned)cuda_blocks(op->n, ROUTE_OUTER), across);
  dim3 dw((unsigned)plan->splits, across, (unsigned)cuda_blocks(op->experts, ROUTE_OUTER));
  route_dx<T, PAIR><<<dx, ROUTE_OUTER_THREADS, 0, stream>>>(*op, plan->dlogit);
  route_dw<T, PAIR><<<dw, ROUTE_OUTER_THREADS, 0, stream>>>(*op, *plan);
}

/* As many parts as fill the device once, four blocks to a multiprocessor. */
template <typename T>
static void route_launch_bwd(backend_device_t *device, const op_route_bwd_t *op,
                             route_bwd_plan_t *plan) {
  int64_t across =
      cuda_blocks(op->hidden, ROUTE_OUTER_COLS) * cuda_blocks(op->experts, ROUTE_OUTER);
  uintptr_t bits = (uintptr_t)op->x | (uintptr_t)op->w | (uintptr_t)op->dx;
  route_split(op, 4 * device->multiprocessors / across, 1, plan);
  auto launch_dlogit = op->experts <= 16   ? route_launch_dlogit<4, 4>
                       : op->experts <= 64 ? route_launch_dlogit<8, 8>
                                           : route_launch_dlogit<32, 32>;
  launch_dlogit(device->stream, op, plan->dlogit);
  if (op->hidden % 2 == 0 && bits % (2 * sizeof(T)) == 0)
    route_launch_outer<T, true>(device->stream, op, plan);
  else
    route_launch_outer<T, false>(device->stream, op, plan);
}

CUDA_OP(route_bwd, op_route_bwd_t) {
  CUDA_TRY(cuda_enter(device, "route_bwd"));
  if (op->n == 0) return NN_OK;
  cuda_arena_t arena = {(char *)scratch.data, 0};
  route_bwd_plan_t plan = route_bwd_layout(device, &arena, op->n, op->experts, op->hidden);
  op_route_bwd_t whole = *op;
  whole.router.scale = backend_factor(op->router.scale);
  if (route_bwd_many_takes(op)) return route_bwd_many(device, &whole, scratch);
  if (cuda_is_half(op->act_dtype) && op->experts <= ROUTE_STEP && op->hidden % 8 == 0 &&
      !op->dbias && op->router.score != NN_SCORE_SPARSE_MIXER && wide_aligned(op->x, op->w, op->dx))
    CUDA_TRY(route_launch_mma(device, &whole, &plan));
  else
    CUDA_BY_DTYPE(op->act_dtype, route_launch_bwd, device, &whole, &plan);
  columns_finish(device, plan.part, plan.splits, op->experts * op->hidden, op->dw);
  CUDA_TRY(cuda_launched(device, "route_bwd"));
  if (!op->dbias) return NN_OK;
  op_column_sum_t sum = {};
  sum.n = op->n, sum.width = sum.ldx = op->experts, sum.act_dtype = NN_F32;
  sum.x = plan.dlogit, sum.out = op->dbias;
  return cuda_column_sum(device, &sum, {plan.bias_part, scratch.bytes});
}
