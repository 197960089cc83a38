/* Routing's second half: from what blocks of tokens chose to sorted slots and statistics. A block's
 * experts are counted before, its tokens follow those of the blocks before it. */
#ifndef NN_CUDA_ROUTE_PLACE_CUH
#define NN_CUDA_ROUTE_PLACE_CUH

#include "ops/route.cuh"

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

/* From a column's sum over all tokens: of expert e's probabilities or, where e is E, of squares of
 * log-sum-exps. old: what stat_prob was. */
static __device__ __forceinline__ void route_mean(const op_route_t &op, int e, double sum,
                                                  double old) {
  float mean = (float)(sum / (double)op.n);
  if (e == op.experts) *op.mean_lse2 = mean;
  else op.mean_prob[e] = mean;
  if (op.stat_prob && e < op.experts) op.stat_prob[e] = old + sum;
}

/* Means of columns from .. from + ROUTE_COLUMNS - 1 of the blocks' sums [blocks, E + 1]; run by one
 * block. room: shared, [THREADS]. */
enum { ROUTE_COLUMNS = 32 };

template <int THREADS>
static __device__ void route_statistics(const op_route_t &op, const route_plan_t &plan, int from,
                                        double *room) {
  constexpr int PARTS = THREADS / ROUTE_COLUMNS;
  int columns = (int)op.experts + 1, part = threadIdx.x / ROUTE_COLUMNS;
  int e = from + threadIdx.x % ROUTE_COLUMNS;
  double sum = 0, old = 0;
  if (e < columns) {
    if (op.stat_prob && !part && e < op.experts) old = op.stat_prob[e];
#pragma unroll 8
    for (int b = part; b < plan.blocks; b += PARTS) sum += plan.sums[(int64_t)b * columns + e];
  }
  room[threadIdx.x] = sum;
  __syncthreads();
  if (part || e >= columns) return;
#pragma unroll
  for (int i = 1; i < PARTS; i++) sum += room[i * ROUTE_COLUMNS + threadIdx.x];
  route_mean(op, e, sum, old);
}

/* Sums over a block's tokens: of the sums of its first `warps` warps, one after the other. */
template <int LANES, int PER>
static __device__ void route_add_warps(double (&prob)[PER], double lse2, int experts, int warps,
                                       double *total) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll
  for (int step = LANES; step < 32; step <<= 1) {
#pragma unroll
    for (int j = 0; j < PER; j++) prob[j] += __shfl_xor_sync(0xffffffffu, prob[j], step);
    lse2 += __shfl_xor_sync(0xffffffffu, lse2, step);
  }
  for (int w = 0; w < warps; w++) {
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

#endif
