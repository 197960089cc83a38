/* Gradients of routing. With p the probabilities, S the sum of the chosen ones and w_j = p_j / S,
 *   dprob_j = (dweight_j - sum_i dweight_i w_i) / S for the chosen, and for all
 *   dprob_e += aux_scale aux_share_e / n,
 *   dlogit_e = p_e (dprob_e - sum_i p_i dprob_i) + 2 z_scale lse p_e / n,
 * and then dx [n, H] += dlogit w and dw [E, H] += dlogit^T x, both in fp32. dx sums over experts in
 * order. dw sums tokens in order in each block, then blocks: eight interleaved sums, in order. */
#include "ops/route.cuh"
#include "ops/wide.cuh"

enum {
  ROUTE_OUTER = 16,           /* rows of a thread's block of results; it has two columns */
  ROUTE_OUTER_THREADS = 128,
  ROUTE_OUTER_COLS = 2 * ROUTE_OUTER_THREADS,
  ROUTE_LOADS = 8,            /* in flight per thread */
  ROUTE_STEPS = 64,           /* what shared memory holds of a sum at once */
  ROUTE_SPLITS = 256,         /* most parts of the tokens that dw is summed from */
  ROUTE_SPLIT_TOKENS = 16,    /* least tokens of such a part */
  ROUTE_SUM_COLS = 32,
  ROUTE_SUM_PARTS = ROUTE_THREADS / ROUTE_SUM_COLS
};

static const int64_t route_split_bytes = 32 << 20; /* of dw's parts, where it has more than one */

/* ---- scratch --------------------------------------------------------------------------------- */

typedef struct route_bwd_plan {
  float *dlogit; /* [n, E] */
  float *part;   /* [splits, E, H] */
  int splits;
  int64_t tokens; /* of a split */
} route_bwd_plan_t;

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

static route_bwd_plan_t route_bwd_layout(cuda_arena_t *arena, int64_t n, int64_t experts,
                                         int64_t hidden) {
  route_bwd_plan_t plan = {};
  plan.dlogit = (float *)cuda_take(arena, n * experts, sizeof(float));
  plan.part = (float *)cuda_take(arena, route_part_bytes(n, experts, hidden), 1);
  return plan;
}

size_t route_bwd_scratch(const backend_limits_t *limits) {
  cuda_arena_t arena = {};
  route_bwd_layout(&arena, limits->rows, limits->experts, limits->hidden);
  return arena.used;
}

/* As many parts as fill the device once, four blocks to a multiprocessor. */
static void route_split(const backend_device_t *device, const op_route_bwd_t *op,
                        route_bwd_plan_t *plan) {
  int64_t across =
      cuda_blocks(op->hidden, ROUTE_OUTER_COLS) * cuda_blocks(op->experts, ROUTE_OUTER);
  int64_t fill = 4 * device->multiprocessors / across, most = route_most_splits(op->n);
  int64_t room = route_part_bytes(op->n, op->experts, op->hidden) /
                 (op->experts * op->hidden * (int64_t)sizeof(float));
  int64_t splits = fill < most ? fill : most;
  if (splits > room) splits = room;
  if (splits < 1) splits = 1;
  plan->tokens = cuda_blocks(op->n, splits);
  plan->splits = (int)cuda_blocks(op->n, plan->tokens);
}

/* ---- dlogit ---------------------------------------------------------------------------------- */

/* T is not used: probabilities are fp32. */
template <typename T, int LANES, int PER>
static __global__ void __launch_bounds__(ROUTE_THREADS)
    route_dlogit(const op_route_bwd_t op, float *dlogit) {
  constexpr int GROUPS = ROUTE_THREADS / LANES, STRIDE = LANES * PER + 4;
  __shared__ float rows[GROUPS * STRIDE];
  int q = threadIdx.x % LANES, group = threadIdx.x / LANES, experts = (int)op.experts;
  int64_t token = (int64_t)blockIdx.x * GROUPS + group;
  bool live = token < op.n;
  if (!live) token = op.n - 1;
  const int32_t *expert = op.routing.expert + token * op.top_k;
  const float *weight = op.routing.weight + token * op.top_k;
  const float *dweight = op.dweight + token * op.top_k, *prob = op.prob + token * experts;
  float *dprob = rows + group * STRIDE;
  double n = (double)op.n, chosen = 0, mean = 0, dot = 0;
  for (int64_t j = q; j < op.top_k; j += LANES) {
    chosen += prob[expert[j]];
    mean += (double)dweight[j] * weight[j];
  }
  chosen = route_group_sum<LANES>(chosen), mean = route_group_sum<LANES>(mean);
  for (int e = q; e < experts; e += LANES)
    dprob[e] = (float)((double)(op.aux_scale * op.aux_share[e]) / n);
  __syncwarp();
  for (int64_t j = q; j < op.top_k; j += LANES)
    dprob[expert[j]] = (float)(dprob[expert[j]] + (dweight[j] - mean) / chosen);
  __syncwarp();
  for (int e = q; e < experts; e += LANES) dot += (double)prob[e] * dprob[e];
  dot = route_group_sum<LANES>(dot);
  double z = 2.0 * op.z_scale * op.lse[token] / n;
  if (!live) return;
  for (int e = q; e < experts; e += LANES)
    dlogit[token * experts + e] = (float)(prob[e] * (dprob[e] - dot + z));
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
__device__ __forceinline__ void route_store_pair(bf16_t *to, float2 v) {
  *(__nv_bfloat162 *)to = __floats2bfloat162_rn(v.x, v.y);
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

static __global__ void __launch_bounds__(ROUTE_THREADS)
    route_dw_sum(const float *part, float *dw, int64_t count, int splits) {
  __shared__ float room[ROUTE_THREADS];
  int64_t i = (int64_t)blockIdx.x * ROUTE_SUM_COLS + threadIdx.x % ROUTE_SUM_COLS;
  float sum = 0;
  if (i < count) {
#pragma unroll 8
    for (int s = threadIdx.x / ROUTE_SUM_COLS; s < splits; s += ROUTE_SUM_PARTS)
      sum += part[s * count + i];
  }
  room[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x >= ROUTE_SUM_COLS || i >= count) return;
  for (int s = 1; s < ROUTE_SUM_PARTS; s++) sum += room[s * ROUTE_SUM_COLS + threadIdx.x];
  dw[i] += sum;
}

/* ---- the operation --------------------------------------------------------------------------- */

template <typename T, int LANES, int PER>
static void route_launch_dlogit(cudaStream_t stream, const op_route_bwd_t *op, float *dlogit) {
  int64_t blocks = cuda_blocks(op->n, ROUTE_THREADS / LANES);
  route_dlogit<T, LANES, PER><<<(unsigned)blocks, ROUTE_THREADS, 0, stream>>>(*op, dlogit);
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

template <typename T>
static void route_launch_bwd(cudaStream_t stream, const op_route_bwd_t *op,
                             const route_bwd_plan_t *plan) {
  uintptr_t bits = (uintptr_t)op->x | (uintptr_t)op->w | (uintptr_t)op->dx;
  if (op->hidden % 2 == 0 && bits % (2 * sizeof(T)) == 0)
    route_launch_outer<T, true>(stream, op, plan);
  else
    route_launch_outer<T, false>(stream, op, plan);
}

CUDA_OP(route_bwd, op_route_bwd_t) {
  CUDA_TRY(cuda_enter(device, "route_bwd"));
  if (op->n == 0) return NN_OK;
  cuda_arena_t arena = {(char *)scratch.data, 0};
  route_bwd_plan_t plan = route_bwd_layout(&arena, op->n, op->experts, op->hidden);
  route_split(device, op, &plan);
  ROUTE_BY_EXPERTS(op->experts, float, route_launch_dlogit, device->stream, op, plan.dlogit);
  CUDA_BY_DTYPE(op->act_dtype, route_launch_bwd, device->stream, op, &plan);
  int64_t count = op->experts * op->hidden;
  route_dw_sum<<<(unsigned)cuda_blocks(count, ROUTE_SUM_COLS), ROUTE_THREADS, 0, device->stream>>>(
      plan.part, op->dw, count, plan.splits);
  return cuda_launched(device, "route_bwd");
}
