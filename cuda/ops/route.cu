/* Routing: logits = x w^T and their scores in fp32, the k best experts (ties to the lower index), the
 * weights of op_router_t, and slots sorted by expert, then by token; assigns. Where capacity bounds
 * an expert, its first tokens stay. Kernels come twice: for the softmax of the products alone, which
 * chooses by what it weighs by, and for ANY score, bias and groups (route_any.cuh).
 *
 * x [n, H], w [E, H]. A block takes ROUTE_TILE tokens at a time. Products of 16 bits go through the
 * tensor cores, which multiply exactly and add in fp32; warps share out rows and, the fewer rows
 * there are, the columns. route_rows counts the experts of each block, route_place turns these
 * counts into first rows and places the slots; up to ROUTE_TILE tokens, one block does it all in
 * one launch, and route_few.cu where experts are few too. Sums over tokens are in double: tokens in
 * a thread, threads in a warp, warps, blocks, each in one order. Only integers are added by
 * atomics. */
#include "launch.cuh"
#include "ops/route_any.cuh"
#include "ops/wide.cuh"

enum {
  ROUTE_BLOCKS = 256, /* most blocks: each reads the counts of all */
  ROUTE_EXPERTS = 1024
};

typedef struct route_plan {
  int64_t tokens;  /* of a block, a multiple of ROUTE_TILE */
  int blocks;
  int wide;        /* threads side by side over experts: the power of two from E on, at most all */
  int vectors;     /* x and w may be read in 16 bytes */
  int32_t *count;  /* [blocks, E] slots of each block's tokens that chose e */
  double *prob;    /* [blocks, E] sums over each block's tokens */
  double *lse2;    /* [blocks] */
} route_plan_t;

static route_plan_t route_layout(cuda_arena_t *arena, int64_t n, int64_t experts) {
  route_plan_t plan = {};
  int64_t most = cuda_blocks(n, ROUTE_TILE);
  if (most > ROUTE_BLOCKS) most = ROUTE_BLOCKS;
  plan.tokens = ROUTE_TILE * cuda_blocks(n, (int64_t)ROUTE_TILE * ROUTE_BLOCKS);
  plan.blocks = plan.tokens ? (int)cuda_blocks(n, plan.tokens) : 0;
  for (plan.wide = 1; plan.wide < experts && plan.wide < ROUTE_THREADS;) plan.wide *= 2;
  plan.count = (int32_t *)cuda_take(arena, most * experts, sizeof(int32_t));
  plan.prob = (double *)cuda_take(arena, most * experts, sizeof(double));
  plan.lse2 = (double *)cuda_take(arena, most, sizeof(double));
  return plan;
}

size_t cuda_route_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  cuda_arena_t arena = {};
  route_layout(&arena, limits->rows, limits->experts);
  size_t backward = limits->training ? route_bwd_scratch(device, limits) : 0;
  return arena.used > backward ? arena.used : backward;
}

/* ---- logits ---------------------------------------------------------------------------------- */

/* More experts than shared memory has columns: their logits wait in prob. */
template <int NT, typename T>
static __device__ void route_logits_wide(const op_route_t &op, route_logits_t<NT> &out,
                                         int64_t first, int rows, int vectors) {
  for (int64_t e0 = 0; e0 < op.experts; e0 += out.width) {
    int experts = (int)min(op.experts - e0, (int64_t)out.width);
    route_logits(out, (const T *)op.x + first * op.hidden, (const T *)op.w + e0 * op.hidden,
                 op.hidden, rows, experts, vectors);
    __syncthreads();
    for (int i = threadIdx.x; i < rows * experts; i += ROUTE_THREADS)
      op.prob[(first + i / experts) * op.experts + e0 + i % experts] =
          out.at(i / experts, i % experts);
    __syncthreads();
  }
}

/* ---- the choice ------------------------------------------------------------------------------ */

/* A key grows with the probability and, among equals, falls with the index; NaN counts as 0. */
template <int LANES, int PER>
static __device__ __forceinline__ void route_keys(const float (&p)[PER], int q, int experts,
                                                  uint64_t (&key)[PER]) {
#pragma unroll
  for (int j = 0; j < PER; j++) {
    uint32_t e = q + LANES * j;
    uint64_t high = p[j] > 0 ? __float_as_uint(p[j]) : 0;
    key[j] = e < experts ? high << 32 | ~e : 0;
  }
}

/* The score of the expert with this key, in all lanes of the group. */
template <int LANES, int PER, bool ANY>
static __device__ __forceinline__ float route_score(const float (&p)[PER],
                                                    const uint64_t (&key)[PER], uint64_t best) {
  if (!ANY) return __uint_as_float((uint32_t)(best >> 32));
  float score = 0;
#pragma unroll
  for (int j = 0; j < PER; j++) score = key[j] == best ? p[j] : score;
  return lanes_sum<LANES>(score);
}

/* The k largest keys in falling order. Once taken, a key is 0. row: shared, of the token, used with
 * lse where ANY. */
template <typename T, int LANES, int PER, bool ANY>
static __device__ void route_choose(const op_route_t &op, const float (&p)[PER], int q,
                                    int64_t token, bool live, float lse, float *row,
                                    int32_t *count) {
  constexpr int KEEP = PER < 64 / LANES ? PER : 64 / LANES;
  uint64_t key[PER];
  if constexpr (ANY)
    route_any_keys<T, LANES>(op.router, p, q, (int)op.experts, live, row, key);
  else
    route_keys<LANES>(p, q, (int)op.experts, key);
  uint64_t mine[KEEP] = {};
  float score[KEEP] = {}, sum = 0, first = 0, second = 0;
  int first_expert = 0;
#pragma unroll
  for (int i = 0; i < KEEP; i++) {
    for (int l = 0; l < LANES && i * LANES + l < op.top_k; l++) {
      uint64_t best = 0;
#pragma unroll
      for (int j = 0; j < PER; j++) best = key[j] > best ? key[j] : best;
#pragma unroll
      for (int step = LANES / 2; step; step >>= 1) {
        uint64_t other = __shfl_xor_sync(0xffffffffu, best, step);
        best = other > best ? other : best;
      }
      float taken = route_score<LANES, PER, ANY>(p, key, best);
#pragma unroll
      for (int j = 0; j < PER; j++) key[j] = key[j] == best ? 0 : key[j];
      sum += taken;
      if (q == l) mine[i] = best, score[i] = taken;
      if (ANY && i == 0 && l == 0) first = taken, first_expert = (int)~(uint32_t)best;
      if (ANY && i == 0 && l == 1) second = taken;
    }
  }
  sum = route_divisor(op.router, sum, isnan(p[0]));
  if (ANY && op.router.score == NN_SCORE_SPARSE_MIXER) {
    uint32_t near;
    float one = route_any_near<LANES>(op.router, p, lse, q, 0, first_expert, first, &near);
    float two = route_any_near<LANES>(op.router, p, lse, q, 1, first_expert, second, &near);
    sum = q ? two : one; /* lanes 0 and 1 have the two choices */
  }
#pragma unroll
  for (int i = 0; i < KEEP; i++) {
    int64_t j = i * LANES + q;
    if (!live || j >= op.top_k) continue;
    uint32_t e = ~(uint32_t)mine[i];
    op.out.expert[token * op.top_k + j] = (int32_t)e;
    op.out.weight[token * op.top_k + j] = route_weight(op.router, score[i], sum);
    atomicAdd(&count[e], 1);
  }
}

/* ---- sorting --------------------------------------------------------------------------------- */

/* Shared memory of placing, in int32_t, eight per expert. */
typedef struct route_room {
  int32_t *chosen; /* [E] slots of all blocks */
  int32_t *cursor; /* [E] the row that the next slot would get */
  int32_t *limit;  /* [E] the row behind the last */
  int32_t *added;  /* [E] slots of a chunk */
  uint16_t *warp;  /* [ROUTE_WARPS, E] slots of a chunk in the warps before */
} route_room_t;

__device__ __forceinline__ route_room_t route_room(int32_t *from, int64_t experts) {
  return {from, from + experts, from + 2 * experts, from + 3 * experts,
          (uint16_t *)(from + 4 * experts)};
}

/* Fills chosen, cursor and limit for a block from the counts of all. */
static __device__ void route_first_rows(const op_route_t &op, const route_plan_t &plan, int block,
                                        const int32_t *count, const route_room_t &room) {
  int experts = (int)op.experts, lane = threadIdx.x & 31;
  for (int e = threadIdx.x; e < experts; e += ROUTE_THREADS) room.chosen[e] = room.cursor[e] = 0;
  __syncthreads();
  int parts = ROUTE_THREADS / plan.wide, part = threadIdx.x / plan.wide;
  for (int e = threadIdx.x % plan.wide; e < experts; e += plan.wide) {
    int32_t all = 0, before = 0;
#pragma unroll 16
    for (int b = part; b < plan.blocks; b += parts) {
      int32_t here = count[b * experts + e];
      all += here, before += b < block ? here : 0;
    }
    atomicAdd(&room.chosen[e], all);
    atomicAdd(&room.cursor[e], before);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int32_t first = 0;
    for (int e = lane; e - lane < experts; e += 32) {
      int32_t kept = e < experts ? room.chosen[e] : 0;
      if (op.capacity && op.capacity < kept) kept = (int32_t)op.capacity;
      int32_t end = kept;
#pragma unroll
      for (int step = 1; step < 32; step <<= 1) {
        int32_t other = __shfl_up_sync(0xffffffffu, end, step);
        end += lane >= step ? other : 0;
      }
      if (e < experts) room.cursor[e] += first + end - kept, room.limit[e] = first + end;
      first += __shfl_sync(0xffffffffu, end, 31);
    }
  }
  __syncthreads();
}

/* Gives a block's slots their rows: ROUTE_THREADS at a time, in order. A slot comes behind those of
 * its expert in earlier blocks, chunks and warps, and in lower lanes. */
static __device__ void route_place_slots(const op_route_t &op, const route_plan_t &plan, int block,
                                         const route_room_t &room) {
  int experts = (int)op.experts, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int64_t begin = block * plan.tokens, end = min(begin + plan.tokens, op.n) * op.top_k;
  for (int64_t base = begin * op.top_k; base < end; base += ROUTE_THREADS) {
    for (int i = threadIdx.x; i < ROUTE_WARPS * experts; i += ROUTE_THREADS) room.warp[i] = 0;
    __syncthreads();
    int64_t slot = base + threadIdx.x;
    int32_t e = slot < end ? op.out.expert[slot] : -1;
    uint32_t same = __match_any_sync(0xffffffffu, e);
    int rank = __popc(same & ((1u << lane) - 1));
    if (e >= 0 && rank == 0) room.warp[warp * experts + e] = (uint16_t)__popc(same);
    __syncthreads();
    for (int i = threadIdx.x; i < experts; i += ROUTE_THREADS) {
      int32_t sum = 0;
#pragma unroll
      for (int w = 0; w < ROUTE_WARPS; w++) {
        int32_t here = room.warp[w * experts + i];
        room.warp[w * experts + i] = (uint16_t)sum;
        sum += here;
      }
      room.added[i] = sum;
    }
    __syncthreads();
    if (e >= 0) {
      int32_t row = room.cursor[e] + room.warp[warp * experts + e] + rank;
      bool kept = row < room.limit[e];
      op.out.slot_row[slot] = kept ? row : -1;
      if (kept) op.out.row_slot[row] = (int32_t)slot;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < experts; i += ROUTE_THREADS) room.cursor[i] += room.added[i];
  }
}

/* ---- statistics ------------------------------------------------------------------------------ */

enum { ROUTE_STATISTICS_ROOM = ROUTE_THREADS + 32 }; /* doubles */

/* What was chosen; run by one block. */
static __device__ void route_shares(const op_route_t &op, const route_room_t &room) {
  int experts = (int)op.experts;
  int64_t slots = op.n * op.top_k;
  for (int e = threadIdx.x; e < experts; e += ROUTE_THREADS) {
    op.out.offset[e + 1] = room.limit[e];
    op.share[e] = (float)((double)room.chosen[e] / (double)slots);
    if (op.stat_count) op.stat_count[e] += room.chosen[e];
  }
  if (threadIdx.x == 0) {
    op.out.offset[0] = 0;
    if (op.stat_count) op.stat_count[experts] += slots - room.limit[experts - 1];
  }
}

/* From the sums of the blocks, prob [blocks, E] and lse2 [blocks]; run by one block. */
static __device__ void route_statistics(const op_route_t &op, const route_plan_t &plan,
                                        const double *prob, const double *lse2, double *sums) {
  int experts = (int)op.experts;
  double n = (double)op.n, square = 0;
  for (int b = threadIdx.x; b < plan.blocks; b += ROUTE_THREADS) square += lse2[b];
  square = block_sum(square, sums + ROUTE_THREADS);
  if (threadIdx.x == 0) *op.mean_lse2 = (float)(square / n);
  int parts = ROUTE_THREADS / plan.wide, part = threadIdx.x / plan.wide;
  for (int e = threadIdx.x % plan.wide; e - (int)threadIdx.x % plan.wide < experts;
       e += plan.wide) {
    double sum = 0;
    if (e < experts) {
#pragma unroll 16
      for (int b = part; b < plan.blocks; b += parts) sum += prob[b * experts + e];
    }
    __syncthreads();
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (part || e >= experts) continue;
    for (int i = 1; i < parts; i++) sum += sums[i * plan.wide + threadIdx.x];
    op.mean_prob[e] = (float)(sum / n);
    if (op.stat_prob) op.stat_prob[e] += sum;
  }
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* Sums over a block's tokens: of the warps' sums, one warp after the other. */
template <int LANES, int PER>
static __device__ void route_add_warps(double (&prob)[PER], double lse2, int experts,
                                       double *total) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
  for (int step = LANES; step < 32; step <<= 1) {
#pragma unroll
    for (int j = 0; j < PER; j++) prob[j] += __shfl_xor_sync(0xffffffffu, prob[j], step);
    lse2 += __shfl_xor_sync(0xffffffffu, lse2, step);
  }
  for (int w = 0; w < ROUTE_WARPS; w++) {
    if (warp == w && lane < LANES) {
#pragma unroll
      for (int j = 0; j < PER; j++) {
        int e = lane + LANES * j;
        if (e < experts) total[e] = w ? total[e] + prob[j] : prob[j];
      }
      if (lane == 0) total[experts] = w ? total[experts] + lse2 : lse2;
    }
    __syncthreads();
  }
}

template <typename T, int LANES, int PER, bool ANY>
static __global__ void __launch_bounds__(ROUTE_THREADS, PER <= 8 ? 2 : 1)
    route_rows(const op_route_t op, const route_plan_t plan) {
  constexpr int MOST = LANES * PER, NT = MOST <= 16 ? 2 : 8, GROUPS = ROUTE_THREADS / LANES;
  constexpr int PART = 16 * ROUTE_WARPS * route_logits_t<NT>::stride;
  /* where the statistics' room begins: behind what they read of the placing's */
  constexpr int BEHIND = NT == 2 ? 1024 : 4 * ROUTE_EXPERTS;
  static_assert(8 * MOST <= PART && BEHIND + 2 * ROUTE_STATISTICS_ROOM <= PART &&
                    BEHIND >= 3 * MOST && (MOST <= 64 || GROUPS * MOST <= PART),
                "placing, statistics and the choice work where the logits were");
  __shared__ alignas(16) float part[PART];
  __shared__ double total[MOST + 1];
  __shared__ int32_t count[MOST];
  int experts = (int)op.experts, q = threadIdx.x % LANES;
  for (int e = threadIdx.x; e < experts; e += ROUTE_THREADS) count[e] = 0;
  launch_next();
  int64_t begin = blockIdx.x * plan.tokens, end = min(begin + plan.tokens, op.n);
  if (threadIdx.x < min(end - begin, (int64_t)ROUTE_TILE)) /* more than registers can wait for */
    launch_prefetch((const T *)op.x + (begin + threadIdx.x) * op.hidden,
                    op.hidden * (int64_t)sizeof(T));
  launch_wait();
  route_logits_t<NT> logits = {part, ROUTE_TILE, 1};
  double prob_sum[PER] = {}, lse2_sum = 0;
  for (int64_t first = begin; first < end; first += ROUTE_TILE) {
    int rows = (int)min(end - first, (int64_t)ROUTE_TILE);
    __syncthreads();
    if (MOST <= 64) {
      route_logits(logits, (const T *)op.x + first * op.hidden, (const T *)op.w, op.hidden, rows,
                   experts, plan.vectors);
      __syncthreads();
    } else {
      route_logits_wide<NT, T>(op, logits, first, rows, plan.vectors);
    }
    for (int i = threadIdx.x / LANES; i - (int)threadIdx.x / LANES < rows; i += GROUPS) {
      bool live = i < rows;
      int64_t token = first + i;
      float p[PER];
#pragma unroll
      for (int j = 0; j < PER; j++) {
        int e = q + LANES * j;
        p[j] = 0;
        if (live && e < experts) p[j] = MOST <= 64 ? logits.at(i, e) : op.prob[token * experts + e];
      }
      float lse, share = 1;
      if constexpr (ANY)
        lse = route_any_scores<T, LANES>(op.router, p, q, experts, &share);
      else
        lse = route_softmax<LANES>(p, q, experts);
#pragma unroll
      for (int j = 0; j < PER; j++) {
        int e = q + LANES * j;
        if (!live || e >= experts) continue;
        op.prob[token * experts + e] = p[j];
        prob_sum[j] += ANY ? share * p[j] : p[j];
      }
      if (live && q == 0) op.lse[token] = lse;
      if (live) lse2_sum += (double)lse * lse;
      float *row = part + (MOST <= 64 ? i * logits.stride : (int)threadIdx.x / LANES * MOST);
      route_choose<T, LANES, PER, ANY>(op, p, q, token, live, lse, row, count);
    }
  }
  route_add_warps<LANES>(prob_sum, lse2_sum, experts, total);
  if (plan.blocks == 1) {
    route_room_t room = route_room((int32_t *)part, experts);
    route_first_rows(op, plan, 0, count, room);
    route_place_slots(op, plan, 0, room);
    __syncthreads();
    route_shares(op, room);
    route_statistics(op, plan, total, total + experts, (double *)(part + BEHIND));
    return;
  }
  for (int e = threadIdx.x; e < experts; e += ROUTE_THREADS) {
    plan.count[blockIdx.x * experts + e] = count[e];
    plan.prob[blockIdx.x * experts + e] = total[e];
  }
  if (threadIdx.x == 0) plan.lse2[blockIdx.x] = total[experts];
}

/* A block per block of route_rows, and two more for the statistics. */
static __global__ void __launch_bounds__(ROUTE_THREADS)
    route_place(const op_route_t op, const route_plan_t plan) {
  __shared__ int32_t ints[8 * ROUTE_EXPERTS];
  __shared__ double sums[ROUTE_STATISTICS_ROOM];
  route_room_t room = route_room(ints, op.experts);
  launch_next();
  launch_wait();
  if (blockIdx.x > plan.blocks) {
    route_statistics(op, plan, plan.prob, plan.lse2, sums);
    return;
  }
  route_first_rows(op, plan, blockIdx.x, plan.count, room);
  if (blockIdx.x < plan.blocks)
    route_place_slots(op, plan, blockIdx.x, room);
  else
    route_shares(op, room);
}

/* ---- the operation --------------------------------------------------------------------------- */

template <typename T, int LANES, int PER>
static void route_launch_rows(backend_device_t *device, const op_route_t *op,
                              const route_plan_t *plan) {
  auto kernel = route_plain(&op->router) ? route_rows<T, LANES, PER, false>
                                         : route_rows<T, LANES, PER, true>;
  launch_chained(device, kernel, (unsigned)plan->blocks, ROUTE_THREADS, 0, 0, *op, *plan);
}

template <typename T>
static void route_launch(backend_device_t *device, const op_route_t *op, const route_plan_t *plan) {
  ROUTE_BY_EXPERTS(op->experts, T, route_launch_rows, device, op, plan);
}

CUDA_OP(route, op_route_t) {
  CUDA_TRY(cuda_enter(device, "route"));
  if (op->n == 0) return NN_OK;
  op_route_t whole = *op;
  whole.router.scale = backend_factor(op->router.scale);
  cuda_arena_t arena = {(char *)scratch.data, 0};
  route_plan_t plan = route_layout(&arena, op->n, op->experts);
  plan.vectors = op->hidden % 8 == 0 && wide_aligned(op->x, op->w);
  if (op->n <= ROUTE_TILE && op->experts <= ROUTE_FEW && route_plain(&op->router)) {
    route_few(device, &whole, plan.vectors);
    return cuda_launched(device, "route");
  }
  CUDA_BY_DTYPE(op->act_dtype, route_launch, device, &whole, &plan);
  if (plan.blocks > 1)
    launch_chained(device, route_place, (unsigned)plan.blocks + 2, ROUTE_THREADS, 0, 0, whole,
                   plan);
  return cuda_launched(device, "route");
}
