/* Routing to more experts than ROUTE_FEW: a product leaves the logits in prob, and a warp turns a
 * token's into scores in place and chooses, or route_sorted.cu does; lane q has experts q + 32 j,
 * j < PER. Up to ROUTE_TILE tokens one block takes to the end, placing included. Sums over tokens
 * are in double: a warp's tokens in order, the warps by halves, then the blocks. */
#include "launch.cuh"
#include "ops/matmul.h"
#include "ops/route_any.cuh"
#include "ops/route_place.cuh"

template <int PER, bool ANY>
static constexpr int many_threads = /* as registers suffice */
    PER <= 4 ? 1024 : PER == 8 ? (ANY ? 512 : 768) : PER == 16 ? 256 : 128;

/* ---- logits of few tokens -------------------------------------------------------------------- */

enum { MANY_ACROSS = 8 /* experts of a block */ };

/* Up to ROUTE_TILE tokens, so that blocks share out the experts and w is read once. */
template <typename T>
static __global__ void __launch_bounds__(ROUTE_THREADS)
    many_logits(const op_route_t op, int vectors) {
  __shared__ alignas(16) float part[16 * ROUTE_WARPS * route_logits_t<1>::stride];
  int64_t first = (int64_t)blockIdx.x * MANY_ACROSS;
  int n = (int)op.n, experts = (int)min(op.experts - first, (int64_t)MANY_ACROSS);
  const T *w = (const T *)op.w + first * op.hidden;
  launch_next();
  if (threadIdx.x < experts)
    launch_prefetch(w + threadIdx.x * op.hidden, op.hidden * (int64_t)sizeof(T));
  launch_wait();
  route_logits_t<1> logits = {part, ROUTE_TILE, 1};
  static_assert(logits.width == MANY_ACROSS, "a block's experts are a product's");
  route_logits(logits, (const T *)op.x, w, op.hidden, n, experts, vectors);
  __syncthreads();
  for (int i = threadIdx.x; i < n * experts; i += ROUTE_THREADS)
    op.prob[i / experts * op.experts + first + i % experts] = logits.at(i / experts, i % experts);
}

template <typename T>
static void many_launch_logits(backend_device_t *device, const op_route_t *op, int vectors) {
  launch_chained(device, many_logits<T>, (unsigned)cuda_blocks(op->experts, MANY_ACROSS),
                 ROUTE_THREADS, 0, 0, *op, vectors);
}

/* ---- the choice ------------------------------------------------------------------------------ */

/* In the order of the numbers, NaN being the least. Never 0, which is what cannot be chosen. */
static __device__ __forceinline__ uint32_t many_key(float x) {
  int32_t bits = __float_as_int(fmaxf(x, -INFINITY));
  return (uint32_t)(bits ^ (bits >> 31 | INT32_MIN));
}

static __device__ __forceinline__ float many_number(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

/* What is added to a lane's logits and, for the choice, to its scores. */
template <int PER>
struct many_bias_t {
  float logit[PER], choice[PER];

  template <typename T>
  __device__ __forceinline__ void load(const op_router_t &router, int q, int experts) {
#pragma unroll
    for (int j = 0; j < PER; j++) {
      bool live = q + 32 * j < experts;
      logit[j] = live && router.bias ? to_float(((const T *)router.bias)[q + 32 * j]) : 0;
      choice[j] =
          live && router.choice_bias ? to_float(((const T *)router.choice_bias)[q + 32 * j]) : 0;
    }
  }
};

/* Turns a token's logits, -INFINITY behind the last expert, into scores; returns the log-sum-exp of
 * the biased logits. share: what makes the scores sum to 1. */
template <int PER, bool ANY>
static __device__ __forceinline__ float many_scores(const op_router_t &router, float (&p)[PER],
                                                    float *share) {
  float most = -INFINITY, sum = 0, scores = 0;
#pragma unroll
  for (int j = 0; j < PER; j++) most = fmaxf(most, p[j]);
  most = many_number(__reduce_max_sync(0xffffffffu, many_key(most)));
  if (ANY && router.score == NN_SCORE_SIGMOID) {
#pragma unroll
    for (int j = 0; j < PER; j++) {
      sum += expf(p[j] - most);
      p[j] = __fdividef(1, 1 + expf(-p[j]));
      scores += p[j];
    }
    *share = 1 / lanes_sum<32>(scores);
    return most + logf(lanes_sum<32>(sum));
  }
#pragma unroll
  for (int j = 0; j < PER; j++) sum += p[j] = expf(p[j] - most);
  sum = lanes_sum<32>(sum);
  float part = 1 / sum; /* of at least 1 */
#pragma unroll
  for (int j = 0; j < PER; j++) p[j] *= part;
  return most + logf(sum);
}

/* As route_any_groups, for groups of whole rows of 32 experts. */
template <int PER>
static __device__ __forceinline__ uint32_t many_groups(const op_router_t &router,
                                                       const uint32_t (&key)[PER], int q,
                                                       int size) {
  int groups = (int)router.groups, across = size / 32;
  bool two = router.group_score == NN_GROUP_TOP2;
  uint32_t best[PER], next[PER] = {};
#pragma unroll
  for (int j = 0; j < PER; j++) best[j] = __reduce_max_sync(0xffffffffu, key[j]);
  if (two) {
#pragma unroll
    for (int j = 0; j < PER; j++) {
      int who = __ffs(__ballot_sync(0xffffffffu, key[j] == best[j])) - 1;
      next[j] = __reduce_max_sync(0xffffffffu, q == who ? 0 : key[j]);
    }
  }
  uint32_t first = 0, second = 0;
  float score = -INFINITY;
#pragma unroll
  for (int j = 0, group = 0, left = across; j < PER; j++) {
    second = max(second, max(min(first, best[j]), next[j])), first = max(first, best[j]);
    if (--left) continue;
    if (q == group) score = many_number(first) + (two ? many_number(second) : 0);
    first = second = 0, left = across, group++;
  }
  int better = 0;
#pragma unroll
  for (int i = 0; i < PER; i++) {
    float other = __shfl_sync(0xffffffffu, score, i);
    if (i < groups) better += other > score || (other == score && i < q);
  }
  uint32_t remain = __ballot_sync(0xffffffffu, q < groups && better < router.top_groups);
  uint32_t mine = 0;
#pragma unroll
  for (int j = 0, group = 0, left = across; j < PER; j++) {
    mine |= (remain >> group & 1) << j;
    if (--left == 0) left = across, group++;
  }
  return mine;
}

/* Keys of what may be chosen. row: shared, of the warp. */
template <int PER, bool ANY>
static __device__ __forceinline__ void many_keys(const op_router_t &router, const float (&p)[PER],
                                                 const many_bias_t<PER> &bias, int q, int experts,
                                                 float *row, uint32_t (&key)[PER]) {
  float c[PER];
#pragma unroll
  for (int j = 0; j < PER; j++) {
    c[j] = ANY ? p[j] + bias.choice[j] : p[j];
    key[j] = q + 32 * j < experts ? many_key(c[j]) : 0;
  }
  if (!ANY || !router.groups || router.groups == router.top_groups) return;
  int size = experts / (int)router.groups;
  uint32_t remain = size % 32 ? route_any_groups<32>(router, c, q, experts, true, row)
                              : many_groups(router, key, q, size);
#pragma unroll
  for (int j = 0; j < PER; j++)
    if (!(remain >> j & 1)) key[j] = 0;
}

/* The two best that are left of a lane's keys; equals follow their expert, and 0 is none. */
typedef struct many_best {
  uint32_t key[2];
  int expert[2];
} many_best_t;

template <int PER>
static __device__ __forceinline__ many_best_t many_find(const uint32_t (&key)[PER], int q,
                                                        uint32_t taken) {
  many_best_t best = {};
#pragma unroll
  for (int j = 0; j < PER; j++) {
    uint32_t x = taken >> j & 1 ? 0 : key[j];
    bool first = x > best.key[0], second = x > best.key[1];
    best.key[1] = first ? best.key[0] : second ? x : best.key[1];
    best.expert[1] = first ? best.expert[0] : second ? q + 32 * j : best.expert[1];
    best.key[0] = first ? x : best.key[0];
    best.expert[0] = first ? q + 32 * j : best.expert[0];
  }
  return best;
}

/* The k largest keys in falling order, among equals the lower expert first: choice i goes to lane
 * i % 32 as expert[i / 32]. */
template <int PER>
static __device__ __forceinline__ void many_choose(const uint32_t (&key)[PER], int q, int k,
                                                   int (&expert)[2]) {
  many_best_t best = many_find(key, q, 0);
  uint32_t taken = 0;
  for (int i = 0; i < k; i++) {
    uint32_t most = __reduce_max_sync(0xffffffffu, best.key[0]);
    uint32_t own = best.key[0] == most ? (uint32_t)best.expert[0] : 0xffffffffu;
    int e = (int)__reduce_min_sync(0xffffffffu, own);
    if (q == i) expert[0] = e;
    if (q + 32 == i) expert[1] = e;
    if ((e & 31) != q) continue;
    taken |= 1u << (e >> 5);
    best.key[0] = best.key[1], best.expert[0] = best.expert[1], best.key[1] = 0;
    if (!best.key[0]) best = many_find(key, q, taken);
  }
}

/* ---- the kernel ------------------------------------------------------------------------------ */

/* From logits to prob, lse and the choice with its weights; calls chosen(expert). Returns the
 * log-sum-exp; share: as many_scores has it. row: shared, of the warp. */
template <int PER, bool ANY, typename F>
static __device__ __forceinline__ float many_token(const op_route_t &op, int64_t token,
                                                   float (&p)[PER], const many_bias_t<PER> &bias,
                                                   int q, float *row, float *share, F chosen) {
  int experts = (int)op.experts, k = (int)op.top_k, expert[2] = {};
  float score[2] = {};
  uint32_t key[PER];
#pragma unroll
  for (int j = 0; ANY && j < PER; j++) p[j] += bias.logit[j];
  float lse = many_scores<PER, ANY>(op.router, p, share), *prob = op.prob + token * experts + q;
  many_keys<PER, ANY>(op.router, p, bias, q, experts, row, key);
  __syncwarp(); /* groups may have been read there */
#pragma unroll
  for (int j = 0; j < PER; j++) {
    row[q + 32 * j] = p[j];
    if (q + 32 * j < experts) prob[32 * j] = p[j];
  }
  if (q == 0) op.lse[token] = lse;
  many_choose(key, q, k, expert);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; i++)
    if (q + 32 * i < k) score[i] = row[expert[i]];
  __syncwarp();
  float sum = lanes_sum<32>(score[0] + score[1]);
  if (ANY && op.router.score == NN_SCORE_SPARSE_MIXER) {
    uint32_t near;
    int first = __shfl_sync(0xffffffffu, expert[0], 0);
    float one = __shfl_sync(0xffffffffu, score[0], 0), two = __shfl_sync(0xffffffffu, score[0], 1);
    one = route_any_near<32>(op.router, p, lse, q, 0, first, one, &near);
    two = route_any_near<32>(op.router, p, lse, q, 1, first, two, &near);
    sum = q ? two : one; /* lanes 0 and 1 have the two choices */
  } else {
    sum = route_divisor(op.router, sum, isnan(p[0]));
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    if (q + 32 * i >= k) continue;
    int64_t slot = token * k + q + 32 * i;
    op.out.expert[slot] = expert[i];
    op.out.weight[slot] = route_weight(op.router, score[i], sum);
    chosen(expert[i]);
  }
  return lse;
}

/* Sums over a block's tokens into total [E + 1]: of its first `warps` warps' sums, the upper half
 * added to the lower until one is left, and of lse2 in order. room, squares: shared, [warps / 2,
 * 32 PER] and [warps]. */
template <int PER>
static __device__ __forceinline__ void many_add_warps(double (&prob)[PER], double lse2, int experts,
                                                      int warps, double *room, double *squares,
                                                      double *total) {
  int warp = threadIdx.x >> 5, q = threadIdx.x & 31, left = warps;
  if (q == 0) squares[warp] = lse2;
  while (left > 1) {
    int half = (left + 1) / 2;
    double *at = room + (warp < half ? warp : warp - half) * 32 * PER + q;
    __syncthreads();
#pragma unroll
    for (int j = 0; j < PER; j++)
      if (warp >= half && warp < left) at[32 * j] = prob[j];
    __syncthreads();
#pragma unroll
    for (int j = 0; j < PER; j++)
      if (warp < left - half) prob[j] += at[32 * j];
    left = half;
  }
  if (warp == 0) {
#pragma unroll
    for (int j = 0; j < PER; j++)
      if (q + 32 * j < experts) total[q + 32 * j] = prob[j];
    if (q == 0) {
      for (int i = 1; i < warps; i++) lse2 += squares[i];
      total[experts] = lse2;
    }
  }
  __syncthreads();
}

/* Places the slots of up to ROUTE_TILE tokens and finishes the statistics; by a block. tokens:
 * shared, a bit each that chose e; total: shared, columns' sums; first: shared, [E]. */
template <int PER>
static __device__ __forceinline__ void many_place(const op_route_t &op,
                                                  const unsigned long long *tokens,
                                                  const double *total, int32_t *first) {
  int experts = (int)op.experts, k = (int)op.top_k, slots = (int)op.n * k;
  int bound = op.capacity ? (int)min(op.capacity, op.n) : (int)op.n, lane = threadIdx.x & 31;
  if (threadIdx.x < 32) { /* PER neighbours a lane */
    int kept[PER], sum = 0;
#pragma unroll
    for (int j = 0; j < PER; j++) sum += kept[j] = min(__popcll(tokens[lane * PER + j]), bound);
    int end = sum;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
      int other = __shfl_up_sync(0xffffffffu, end, step);
      end += lane >= step ? other : 0;
    }
    end -= sum;
#pragma unroll
    for (int j = 0; j < PER; j++) first[lane * PER + j] = end, end += kept[j];
  }
  __syncthreads();
  for (int slot = threadIdx.x; slot < slots; slot += blockDim.x) {
    int e = op.out.expert[slot], before = __popcll(tokens[e] & ((1ull << slot / k) - 1));
    op.out.slot_row[slot] = before < bound ? first[e] + before : -1;
    if (before < bound) op.out.row_slot[first[e] + before] = slot;
  }
  for (int e = threadIdx.x; e <= experts; e += blockDim.x) {
    bool counts = op.stat_count && e < experts;
    route_mean(op, e, total[e], counts ? op.stat_prob[e] : 0);
    op.out.offset[e] = e < experts ? first[e] : first[e - 1] + min(__popcll(tokens[e - 1]), bound);
    if (e < experts) op.share[e] = (float)__popcll(tokens[e]) / (float)slots; /* rounded once */
    if (counts) op.stat_count[e] += __popcll(tokens[e]);
    if (op.stat_count && e == experts)
      op.stat_count[e] += slots - first[e - 1] - min(__popcll(tokens[e - 1]), bound);
  }
}

template <typename T, int PER, bool ANY>
static __global__ void __launch_bounds__(many_threads<PER, ANY>, 1)
    many_rows(const op_route_t op, const route_plan_t plan) {
  constexpr int MOST = 32 * PER, THREADS = many_threads<PER, ANY>, WARPS = THREADS / 32;
  __shared__ alignas(16) float row[WARPS * MOST];
  __shared__ double total[MOST + 1], squares[WARPS];
  __shared__ unsigned long long chose[MOST]; /* how many tokens or, where a block is all, which */
  int experts = (int)op.experts, q = threadIdx.x & 31, warps = blockDim.x / 32;
  int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); /* known to be one in all lanes */
  bool alone = plan.blocks == 1;
  for (int e = threadIdx.x; e < MOST; e += blockDim.x) chose[e] = 0;
  launch_next();
  launch_wait();
  __syncthreads();
  int64_t begin = blockIdx.x * plan.tokens, end = min(begin + plan.tokens, op.n);
  double prob_sum[PER] = {}, lse2_sum = 0;
  many_bias_t<PER> bias;
  constexpr bool HOLDS = !ANY || PER <= 16; /* registers biases, and the next token's logits */
  if constexpr (ANY && HOLDS) bias.template load<T>(op.router, q, experts);
  float next[PER];
  auto load = [&](int64_t token) {
    const float *logit = op.prob + token * experts + q;
#pragma unroll
    for (int j = 0; j < PER; j++)
      next[j] = token < end && q + 32 * j < experts ? logit[32 * j] : -INFINITY;
  };
  load(begin + warp);
  for (int64_t token = begin + warp; token < end; token += warps) {
    float p[PER], share = 1;
#pragma unroll
    for (int j = 0; j < PER; j++) p[j] = next[j];
    if constexpr (HOLDS) load(token + warps);
    else bias.template load<T>(op.router, q, experts);
    auto chosen = [&](int e) {
      if (alone) atomicOr(&chose[e], 1ull << token);
      else atomicAdd((unsigned *)&chose[e], 1u);
    };
    float lse = many_token<PER, ANY>(op, token, p, bias, q, row + warp * MOST, &share, chosen);
#pragma unroll
    for (int j = 0; j < PER; j++) prob_sum[j] += ANY ? share * p[j] : p[j];
    lse2_sum += (double)lse * lse;
    if constexpr (!HOLDS) load(token + warps);
  }
  many_add_warps(prob_sum, lse2_sum, experts, (int)min(end - begin, (int64_t)warps), (double *)row,
                 squares, total);
  if (alone) {
    many_place<PER>(op, chose, total, (int32_t *)row);
    return;
  }
  for (int e = threadIdx.x; e <= experts; e += blockDim.x) {
    if (e < experts) plan.count[blockIdx.x * experts + e] = (int32_t)chose[e];
    plan.sums[blockIdx.x * (experts + 1) + e] = total[e];
  }
}

/* ---- launching ------------------------------------------------------------------------------- */

template <typename T, int PER>
static void many_launch_per(backend_device_t *device, const op_route_t *op,
                            const route_plan_t *plan) {
  bool plain = route_plain(&op->router);
  auto kernel = plain ? many_rows<float, PER, false> : many_rows<T, PER, true>;
  int threads = plain ? many_threads<PER, false> : many_threads<PER, true>;
  if (op->n * 32 < threads) threads = op->n < 4 ? 128 : (int)op->n * 32; /* a warp a token */
  launch_chained(device, kernel, (unsigned)plan->blocks, threads, 0, 0, *op, *plan);
}

template <typename T>
static void many_launch(backend_device_t *device, const op_route_t *op, const route_plan_t *plan) {
  auto launch = op->experts <= 32    ? many_launch_per<T, 1>
                : op->experts <= 64  ? many_launch_per<T, 2>
                : op->experts <= 128 ? many_launch_per<T, 4>
                : op->experts <= 256 ? many_launch_per<T, 8>
                : op->experts <= 512 ? many_launch_per<T, 16>
                                     : many_launch_per<T, 32>;
  launch(device, op, plan);
}

static nn_status_t many_product(backend_device_t *device, const op_route_t *op,
                                backend_scratch_t scratch) {
  op_matmul_t product = {};
  product.m = op->n, product.n = op->experts, product.k = op->hidden, product.trans_b = 1;
  product.a = op->x, product.b = op->w, product.lda = product.ldb = op->hidden;
  product.a_dtype = op->act_dtype, product.b_dtype = op->weight_dtype, product.d_dtype = NN_F32;
  product.d = op->prob, product.ldd = op->experts;
  return matmul_exact(device, &product, scratch);
}

/* A block to a multiprocessor, or one for what one has the tokens of. */
nn_status_t route_many(backend_device_t *device, const op_route_t *op, route_plan_t *plan,
                       backend_scratch_t scratch) {
  if (op->n > ROUTE_TILE) {
    CUDA_TRY(many_product(device, op, scratch));
    int64_t most = min(device->multiprocessors, (int)ROUTE_BLOCKS), each = cuda_blocks(op->n, most);
    plan->tokens = ROUTE_LEAST * cuda_blocks(each, ROUTE_LEAST);
    plan->blocks = (int)cuda_blocks(op->n, plan->tokens);
    if (route_sorts(op)) return route_sorted(device, op, plan);
  } else {
    CUDA_BY_DTYPE(op->act_dtype, many_launch_logits, device, op, plan->vectors);
  }
  CUDA_BY_DTYPE(op->act_dtype, many_launch, device, op, plan);
  return NN_OK;
}
