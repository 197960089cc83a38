/* Routing: logits = x w^T and their scores in fp32, the k best experts (ties to the lower index), the
 * weights of op_router_t, and slots sorted by expert, then by token; assigns. Where capacity bounds
 * an expert, its first tokens stay. Kernels come twice: for the softmax of the products alone, which
 * chooses by what it weighs by, and for ANY score, bias and groups (route_any.cuh).
 *
 * x [n, H], w [E, H]. A block takes ROUTE_TILE tokens at a time. Products of 16 bits go through the
 * tensor cores, which multiply exactly and add in fp32; warps share out rows and, the fewer rows
 * there are, the columns. route_rows counts the experts of each block, route_place turns these
 * counts into first rows and places the slots; up to ROUTE_TILE tokens, one block does it all in
 * one launch, and route_few.cu where experts are few too. route_sm90.cu has route_rows's part where
 * the bulk copy engine can bring x. Sums over tokens are in double: tokens in a thread, threads in
 * a warp, warps, blocks, each in one order. Only integers are added by atomics. */
#include "launch.cuh"
#include "ops/route_choose.cuh"
#include "ops/wide.cuh"

enum {
  ROUTE_BLOCKS = 256, /* most blocks: each reads the counts of all */
  ROUTE_LEAST = 16,   /* tokens of a block */
  ROUTE_EXPERTS = 1024
};

static route_plan_t route_layout(cuda_arena_t *arena, int64_t n, int64_t experts) {
  route_plan_t plan = {};
  int64_t most = cuda_blocks(n, ROUTE_LEAST);
  if (most > ROUTE_BLOCKS) most = ROUTE_BLOCKS;
  plan.tokens = ROUTE_TILE * cuda_blocks(n, (int64_t)ROUTE_TILE * ROUTE_BLOCKS);
  plan.blocks = plan.tokens ? (int)cuda_blocks(n, plan.tokens) : 0;
  for (plan.wide = 1; plan.wide < experts && plan.wide < ROUTE_THREADS;) plan.wide *= 2;
  plan.count = (int32_t *)cuda_take(arena, most * experts, sizeof(int32_t));
  plan.sums = (double *)cuda_take(arena, most * (experts + 1), sizeof(double));
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

/* ---- sorting --------------------------------------------------------------------------------- */

/* Shared memory of placing by so many threads, in int32_t per expert. */
static inline int route_room_ints(int threads) { return 4 + threads / 64; }

typedef struct route_room {
  int32_t *chosen; /* [E] slots of all blocks */
  int32_t *cursor; /* [E] the row that the next slot would get */
  int32_t *limit;  /* [E] the row behind the last */
  int32_t *added;  /* [E] slots of a chunk */
  uint16_t *warp;  /* [warps, E] slots of a chunk in the warps before */
} route_room_t;

__device__ __forceinline__ route_room_t route_room(int32_t *from, int64_t experts) {
  return {from, from + experts, from + 2 * experts, from + 3 * experts,
          (uint16_t *)(from + 4 * experts)};
}

/* What slot number i of a block chose; -1 behind the last. */
static __device__ __forceinline__ int32_t route_expert(const op_route_t &op,
                                                       const route_plan_t &plan, int block,
                                                       int64_t i) {
  int64_t begin = block * plan.tokens, end = min(begin + plan.tokens, op.n);
  i += begin * op.top_k;
  return i < end * op.top_k ? op.out.expert[i] : -1;
}

/* Ranks a chunk of slots, of which the thread's chose e: returns how many of its warp's lower lanes
 * chose the same; once a barrier follows, room.warp and room.added say the rest. */
template <int THREADS>
static __device__ __forceinline__ int route_rank(int experts, int32_t e, const route_room_t &room) {
  constexpr int WARPS = THREADS / 32;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int j = threadIdx.x; j < WARPS * experts; j += THREADS) room.warp[j] = 0;
  __syncthreads();
  uint32_t same = __match_any_sync(0xffffffffu, e);
  int rank = __popc(same & ((1u << lane) - 1));
  if (e >= 0 && rank == 0) room.warp[warp * experts + e] = (uint16_t)__popc(same);
  __syncthreads();
  for (int j = threadIdx.x; j < experts; j += THREADS) {
    int32_t sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      int32_t here = room.warp[w * experts + j];
      room.warp[w * experts + j] = (uint16_t)sum;
      sum += here;
    }
    room.added[j] = sum;
  }
  return rank;
}

/* Counts that a thread has on their way early. */
template <int THREADS>
static constexpr int route_early = THREADS > ROUTE_THREADS ? 8 : 1;

/* The counts [blocks, E] of all blocks into chosen and cursor, which are 0, of one expert by a
 * thread and its neighbours that are plan.wide apart. early: what the thread has read already. */
template <int THREADS>
static __device__ __forceinline__ void
route_add_counts(const op_route_t &op, const route_plan_t &plan, int block, const int32_t *count,
                 int e, const int32_t (&early)[route_early<THREADS>], const route_room_t &room) {
  int parts = THREADS / plan.wide, b = threadIdx.x / plan.wide, experts = (int)op.experts;
  int32_t all = 0, before = 0;
#pragma unroll
  for (int i = 0; i < route_early<THREADS>; i++, b += parts)
    all += early[i], before += b < block ? early[i] : 0;
#pragma unroll 8
  for (; b < plan.blocks; b += parts) {
    int32_t here = count[b * experts + e];
    all += here, before += b < block ? here : 0;
  }
  atomicAdd(&room.chosen[e], all);
  atomicAdd(&room.cursor[e], before);
}

template <int THREADS>
static __device__ __forceinline__ void route_read_counts(const op_route_t &op,
                                                         const route_plan_t &plan,
                                                         const int32_t *count, int e,
                                                         int32_t (&early)[route_early<THREADS>]) {
  int parts = THREADS / plan.wide, b = threadIdx.x / plan.wide, experts = (int)op.experts;
#pragma unroll
  for (int i = 0; i < route_early<THREADS>; i++, b += parts)
    early[i] = e < experts && b < plan.blocks ? count[b * experts + e] : 0;
}

/* From how often experts were chosen, in chosen, and before the block, in cursor: the first rows
 * and the last ones; by a warp. */
static __device__ __forceinline__ void route_first_rows(const op_route_t &op,
                                                        const route_room_t &room) {
  int experts = (int)op.experts, lane = threadIdx.x & 31;
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

/* Gives a block's slots their rows: THREADS at a time, in order. A slot comes behind those of its
 * expert in earlier blocks, chunks and warps, and in lower lanes. A block behind the last has no
 * slots. count [blocks, E]: of all blocks, on its way while the first slots are ranked. Ends with
 * chosen and limit filled in. */
template <int THREADS>
static __device__ void route_place_slots(const op_route_t &op, const route_plan_t &plan, int block,
                                         const int32_t *count, const route_room_t &room) {
  int experts = (int)op.experts, warp = threadIdx.x >> 5, own = threadIdx.x % plan.wide;
  int64_t begin = block * plan.tokens;
  int64_t first = begin * op.top_k, slots = (min(begin + plan.tokens, op.n) - begin) * op.top_k;
  int32_t early[route_early<THREADS>], e = route_expert(op, plan, block, threadIdx.x);
  route_read_counts<THREADS>(op, plan, count, own, early);
  for (int j = threadIdx.x; j < experts; j += THREADS) room.chosen[j] = room.cursor[j] = 0;
  int rank = route_rank<THREADS>(experts, e, room);
  for (int j = own; j < experts; j += plan.wide) {
    if (j != own) route_read_counts<THREADS>(op, plan, count, j, early);
    route_add_counts<THREADS>(op, plan, block, count, j, early, room);
  }
  __syncthreads();
  if (threadIdx.x < 32) route_first_rows(op, room);
  __syncthreads();
  for (int64_t i = threadIdx.x;; i += THREADS) {
    if (e >= 0) {
      int32_t row = room.cursor[e] + room.warp[warp * experts + e] + rank;
      bool kept = row < room.limit[e];
      op.out.slot_row[first + i] = kept ? row : -1;
      if (kept) op.out.row_slot[row] = (int32_t)(first + i);
    }
    if (i - threadIdx.x + THREADS >= slots) break;
    e = route_expert(op, plan, block, i + THREADS);
    __syncthreads();
    for (int j = threadIdx.x; j < experts; j += THREADS) room.cursor[j] += room.added[j];
    rank = route_rank<THREADS>(experts, e, room);
    __syncthreads();
  }
}

/* ---- statistics ------------------------------------------------------------------------------ */

/* What was chosen; run by one block. */
template <int THREADS>
static __device__ void route_shares(const op_route_t &op, const route_room_t &room) {
  int experts = (int)op.experts;
  int64_t slots = op.n * op.top_k;
  for (int e = threadIdx.x; e < experts; e += THREADS) {
    int64_t count = op.stat_count ? op.stat_count[e] : 0;
    op.out.offset[e + 1] = room.limit[e];
    op.share[e] = (float)((double)room.chosen[e] / (double)slots);
    if (op.stat_count) op.stat_count[e] = count + room.chosen[e];
  }
  if (threadIdx.x == 0) {
    op.out.offset[0] = 0;
    if (op.stat_count) op.stat_count[experts] += slots - room.limit[experts - 1];
  }
}

/* From the sums of the blocks [blocks, E + 1], probabilities and squares of log-sum-exps; run by
 * one block. room: shared, [THREADS]. */
template <int THREADS>
static __device__ void route_statistics(const op_route_t &op, const route_plan_t &plan,
                                        const double *sums, double *room) {
  int columns = (int)op.experts + 1, wide = plan.wide;
  if (wide < columns && wide < THREADS) wide *= 2;
  int parts = THREADS / wide, part = threadIdx.x / wide, own = threadIdx.x % wide;
  for (int e = own; e - own < columns; e += wide) {
    double sum = 0, old = 0;
    if (e < columns) {
      if (op.stat_prob && !part && e < op.experts) old = op.stat_prob[e];
#pragma unroll 8
      for (int b = part; b < plan.blocks; b += parts) sum += sums[b * columns + e];
    }
    __syncthreads();
    room[threadIdx.x] = sum;
    __syncthreads();
    if (part || e >= columns) continue;
#pragma unroll 8
    for (int i = 1; i < parts; i++) sum += room[i * wide + own];
    float mean = (float)(sum / (double)op.n);
    if (e == op.experts) *op.mean_lse2 = mean;
    else op.mean_prob[e] = mean;
    if (op.stat_prob && e < op.experts) op.stat_prob[e] = old + sum;
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
  static_assert(8 * MOST <= PART && BEHIND + 2 * ROUTE_THREADS <= PART &&
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
  if ((ANY || MOST > ROUTE_FEW) && plan.blocks == 1) { /* else route_few.cu has done it */
    route_room_t room = route_room((int32_t *)part, experts);
    route_place_slots<ROUTE_THREADS>(op, plan, 0, count, room);
    __syncthreads();
    route_shares<ROUTE_THREADS>(op, room);
    route_statistics<ROUTE_THREADS>(op, plan, total, (double *)(part + BEHIND));
    return;
  }
  for (int e = threadIdx.x; e <= experts; e += ROUTE_THREADS) {
    if (e < experts) plan.count[blockIdx.x * experts + e] = count[e];
    plan.sums[blockIdx.x * (experts + 1) + e] = total[e];
  }
}

/* A block per block of the kernel before, and two more for the statistics. Dynamic shared memory:
 * the room of placing. */
template <int THREADS>
static __global__ void __launch_bounds__(THREADS, 1)
    route_place(const op_route_t op, const route_plan_t plan) {
  extern __shared__ int32_t ints[];
  __shared__ double sums[THREADS];
  route_room_t room = route_room(ints, op.experts);
  launch_next();
  launch_wait();
  if (blockIdx.x > plan.blocks) {
    route_statistics<THREADS>(op, plan, plan.sums, sums);
    return;
  }
  route_place_slots<THREADS>(op, plan, blockIdx.x, plan.count, room);
  if (blockIdx.x == plan.blocks) route_shares<THREADS>(op, room);
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
  if (route90_takes(device, &whole, &plan))
    CUDA_TRY(route90(device, &whole, &plan));
  else
    CUDA_BY_DTYPE(op->act_dtype, route_launch, device, &whole, &plan);
  if (plan.blocks > 1) {
    bool few = op->experts <= ROUTE_THREADS; /* shared memory has room for more threads */
    int threads = few ? 2 * ROUTE_THREADS : ROUTE_THREADS;
    size_t shared = route_room_ints(threads) * (size_t)op->experts * sizeof(int32_t);
    launch_chained(device, few ? route_place<2 * ROUTE_THREADS> : route_place<ROUTE_THREADS>,
                   (unsigned)plan.blocks + 2, threads, shared, 0, whole, plan);
  }
  return cuda_launched(device, "route");
}
