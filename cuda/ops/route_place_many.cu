/* Placing for more experts than ROUTE_FEW and up to ROUTE_PLACE_MANY: as route_place, but a block
 * knows of some tokens at a time by a bit each which chose an expert, so that a slot's rank is how
 * many bits are below its own. */
#include "launch.cuh"
#include "ops/route_place.cuh"

enum {
  PLACE_THREADS = 512,
  PLACE_WARPS = PLACE_THREADS / 32,
  PLACE_TOKENS = 256, /* of a block, at most, at a time */
  PLACE_SLOTS = 4,    /* of a thread at a time */
  PLACE_WORDS = PLACE_TOKENS / 32,
  PLACE_ROUND = 8 /* blocks whose counts are on their way to a thread */
};

/* How many slots chose each expert, of all blocks and of those before. A thread has four
 * neighbours of every PARTS-th block; part: shared, [2, THREADS, 4]. */
template <int MOST>
static __device__ __forceinline__ void place_counts(const op_route_t &op, const route_plan_t &plan,
                                                    int block, int4 *part) {
  constexpr int ACROSS = MOST / 4, PARTS = PLACE_THREADS / ACROSS;
  int experts = (int)op.experts, e = threadIdx.x % ACROSS * 4;
  int32_t all[4] = {}, before[4] = {};
  for (int first = threadIdx.x / ACROSS; first < plan.blocks; first += PARTS * PLACE_ROUND) {
    int32_t here[PLACE_ROUND][4];
#pragma unroll
    for (int j = 0; j < PLACE_ROUND; j++) {
      int b = first + j * PARTS;
      const int32_t *at = plan.count + (int64_t)b * experts + e;
      if (experts % 4 == 0) {
        int4 x = make_int4(0, 0, 0, 0);
        if (b < plan.blocks && e < experts) x = *(const int4 *)at;
        here[j][0] = x.x, here[j][1] = x.y, here[j][2] = x.z, here[j][3] = x.w;
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
          here[j][i] = b < plan.blocks && e + i < experts ? at[i] : 0;
      }
    }
#pragma unroll
    for (int j = 0; j < PLACE_ROUND; j++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        all[i] += here[j][i], before[i] += first + j * PARTS < block ? here[j][i] : 0;
  }
  part[threadIdx.x] = make_int4(all[0], all[1], all[2], all[3]);
  part[PLACE_THREADS + threadIdx.x] = make_int4(before[0], before[1], before[2], before[3]);
}

/* A block per block of the kernel before, one for the offsets, and for every ROUTE_COLUMNS of the
 * statistics one. */
template <int MOST>
static __global__ void __launch_bounds__(PLACE_THREADS, 1)
    place_many(const op_route_t op, const route_plan_t plan) {
  constexpr int PARTS = 4 * PLACE_THREADS / MOST;
  __shared__ int4 part[2 * PLACE_THREADS];
  __shared__ uint32_t mask[PLACE_WORDS][MOST]; /* which of 32 tokens chose e */
  __shared__ uint16_t below[PLACE_WORDS][MOST]; /* how many in the words before */
  __shared__ int32_t cursor[MOST], limit[MOST], chosen[MOST], warp_end[PLACE_WARPS];
  int k = (int)op.top_k, block = blockIdx.x;
  int warp = threadIdx.x / 32, lane = threadIdx.x & 31, e = threadIdx.x;
  auto clear = [&] {
    for (int i = threadIdx.x; i < PLACE_WORDS * MOST; i += PLACE_THREADS) mask[0][i] = 0;
  };
  clear();
  launch_next();
  launch_wait();
  if (block > plan.blocks) {
    route_statistics<PLACE_THREADS>(op, plan, (block - plan.blocks - 1) * ROUTE_COLUMNS,
                                    (double *)part);
    return;
  }
  int tokens = min((int)PLACE_TOKENS, PLACE_SLOTS * PLACE_THREADS / k); /* of a round */
  int64_t begin = block * plan.tokens, end = min(begin + plan.tokens, op.n);
  int32_t chose[PLACE_SLOTS]; /* expert and token of the round; -1: none */
  auto load = [&](int64_t from) {
    int slots = (int)max(min(end - from, (int64_t)tokens), (int64_t)0) * k;
#pragma unroll
    for (int i = 0; i < PLACE_SLOTS; i++) {
      int slot = threadIdx.x + i * PLACE_THREADS;
      chose[i] = slot < slots ? op.out.expert[from * k + slot] : -1;
    }
  };
  auto mark = [&] {
#pragma unroll
    for (int i = 0; i < PLACE_SLOTS; i++) {
      if (chose[i] < 0) continue;
      int token = (int)(threadIdx.x + i * PLACE_THREADS) / k;
      atomicOr(&mask[token / 32][chose[i]], 1u << token % 32);
      chose[i] |= token << 16;
    }
  };
  /* returns how many chose e */
  auto add = [&] {
    int sum = 0;
#pragma unroll
    for (int w = 0; w < PLACE_WORDS; w++) below[w][e] = (uint16_t)sum, sum += __popc(mask[w][e]);
    return sum;
  };
  load(begin);
  place_counts<MOST>(op, plan, block, part);
  __syncthreads();
  mark();
  __syncthreads();
  int32_t count = 0, before = 0, kept = 0, stop = 0, added = 0;
  if (e < MOST) {
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
      count += ((const int32_t *)part)[i * MOST + e];
      before += ((const int32_t *)(part + PLACE_THREADS))[i * MOST + e];
    }
    stop = kept = op.capacity && op.capacity < count ? (int32_t)op.capacity : count;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
      int32_t other = __shfl_up_sync(0xffffffffu, stop, step);
      stop += lane >= step ? other : 0;
    }
    if (lane == 31) warp_end[warp] = stop;
    added = add();
  }
  __syncthreads();
  if (e < MOST) {
    for (int w = 0; w < warp; w++) stop += warp_end[w];
    cursor[e] = stop - kept + before, limit[e] = stop, chosen[e] = count;
  }
  __syncthreads();
  if (block == plan.blocks) {
    route_room_t room = {chosen, cursor, limit};
    route_shares<PLACE_THREADS>(op, room);
    return;
  }
  for (int64_t from = begin;;) {
#pragma unroll
    for (int i = 0; i < PLACE_SLOTS; i++) {
      if (chose[i] < 0) continue;
      int at = chose[i] & 0xffff, token = chose[i] >> 16, word = token / 32;
      uint32_t earlier = mask[word][at] & ((1u << token % 32) - 1);
      int row = cursor[at] + below[word][at] + __popc(earlier);
      int64_t slot = from * k + threadIdx.x + i * PLACE_THREADS;
      bool fits = row < limit[at];
      op.out.slot_row[slot] = fits ? row : -1;
      if (fits) op.out.row_slot[row] = (int32_t)slot;
    }
    if ((from += tokens) >= end) break;
    __syncthreads();
    clear();
    load(from);
    __syncthreads();
    mark();
    __syncthreads();
    if (e < MOST) cursor[e] += added, added = add();
    __syncthreads();
  }
}

void route_place_many(backend_device_t *device, const op_route_t *op, const route_plan_t *plan) {
  auto kernel = op->experts <= 64    ? place_many<64>
                : op->experts <= 128 ? place_many<128>
                                     : place_many<256>;
  unsigned blocks = (unsigned)(plan->blocks + 1 + cuda_blocks(op->experts + 1, ROUTE_COLUMNS));
  launch_chained(device, kernel, blocks, PLACE_THREADS, 0, 0, *op, *plan);
}
