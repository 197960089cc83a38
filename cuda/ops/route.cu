/* Routing: logits = x w^T and their scores in fp32, the k best experts (ties to the lower index),
 * the weights of op_router_t, and slots sorted by expert, then by token; assigns. Where capacity
 * bounds an expert, its first tokens stay. Kernels come twice: for the softmax of the products
 * alone, which chooses by what it weighs by, and for ANY score, bias and groups (route_any.cuh).
 *
 * x [n, H], w [E, H]. A block takes ROUTE_TILE tokens at a time. Products of 16 bits go through the
 * tensor cores, which multiply exactly and add in fp32; warps share out rows and, the fewer rows
 * there are, the columns. route_rows counts the experts of each block, route_place turns these
 * counts into first rows and places the slots; up to ROUTE_TILE tokens, one block does it all in
 * one launch, and route_few.cu where experts are few too. route_rows's part is route_sm90.cu's
 * where the bulk copy engine can bring x, and route_many.cu's or route_sorted.cu's where there are
 * more experts than ROUTE_FEW; route_place's is route_place_many.cu's then. Sums over tokens are in
 * double: tokens in a thread, threads in a warp, warps, blocks, each in one order. Only integers
 * are added by atomics. */
#include "launch.cuh"
#include "ops/route_choose.cuh"
#include "ops/route_place.cuh"
#include "ops/wide.cuh"

enum {
  ROUTE_RANKED_THREADS = 256,
  ROUTE_RANKED_SLOTS = 2, /* of a thread */
  ROUTE_RANKED_PIECE = ROUTE_RANKED_SLOTS * ROUTE_RANKED_THREADS /* slots of a block */
};

static route_plan_t route_layout(cuda_arena_t *arena, int64_t n, int64_t experts) {
  route_plan_t plan = {};
  int64_t most = cuda_blocks(n, ROUTE_LEAST);
  if (most > ROUTE_BLOCKS) most = ROUTE_BLOCKS;
  plan.tokens = ROUTE_TILE * cuda_blocks(n, (int64_t)ROUTE_TILE * ROUTE_BLOCKS);
  plan.blocks = plan.tokens ? (int)cuda_blocks(n, plan.tokens) : 0;
  for (plan.wide = 1; plan.wide < experts && plan.wide < ROUTE_THREADS;) plan.wide *= 2;
  int64_t columns = experts > ROUTE_RANKED ? experts : (int64_t)ROUTE_RANKED;
  plan.count = (int32_t *)cuda_take(arena, most * columns, sizeof(int32_t));
  plan.sums = (double *)cuda_take(arena, most * (experts + 1), sizeof(double));
  return plan;
}

size_t cuda_route_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  cuda_arena_t arena = {};
  route_layout(&arena, limits->rows, limits->experts);
  size_t backward = limits->training ? route_bwd_scratch(device, limits) : 0;
  return arena.used > backward ? arena.used : backward;
}

/* ---- kernels --------------------------------------------------------------------------------- */

template <typename T, bool ANY>
static __global__ void __launch_bounds__(ROUTE_THREADS, 2)
    route_rows(const op_route_t op, const route_plan_t plan) {
  constexpr int LANES = 4, PER = 4, NT = 2, MOST = LANES * PER, GROUPS = ROUTE_THREADS / LANES;
  constexpr int PART = 16 * ROUTE_WARPS * route_logits_t<NT>::stride;
  static_assert(8 * MOST <= PART, "placing and the choice work where the logits were");
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
    route_logits(logits, (const T *)op.x + first * op.hidden, (const T *)op.w, op.hidden, rows,
                 experts, plan.vectors);
    __syncthreads();
    for (int i = threadIdx.x / LANES; i - (int)threadIdx.x / LANES < rows; i += GROUPS) {
      bool live = i < rows;
      int64_t token = first + i;
      float p[PER];
#pragma unroll
      for (int j = 0; j < PER; j++) {
        int e = q + LANES * j;
        p[j] = 0;
        if (live && e < experts) p[j] = logits.at(i, e);
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
      route_choose<T, LANES, PER, ANY>(op, p, q, token, live, lse, part + i * logits.stride, count);
    }
  }
  route_add_warps<LANES>(prob_sum, lse2_sum, experts, ROUTE_WARPS, total);
  if (ANY && plan.blocks == 1) { /* else route_few.cu has done it */
    route_room_t room = route_room((int32_t *)part, experts);
    for (int e = threadIdx.x; e <= experts; e += ROUTE_THREADS)
      route_mean(op, e, total[e], op.stat_prob && e < experts ? op.stat_prob[e] : 0);
    route_place_slots<ROUTE_THREADS>(op, plan, 0, count, room);
    __syncthreads();
    route_shares<ROUTE_THREADS>(op, room);
    return;
  }
  for (int e = threadIdx.x; e <= experts; e += ROUTE_THREADS) {
    if (e < experts) plan.count[blockIdx.x * experts + e] = count[e];
    plan.sums[blockIdx.x * (experts + 1) + e] = total[e];
  }
}

/* A block per block of the kernel before, one for the offsets, and for every ROUTE_COLUMNS of the
 * statistics one. Dynamic shared memory: the room of placing. */
template <int THREADS>
static __global__ void __launch_bounds__(THREADS, 1)
    route_place(const op_route_t op, const route_plan_t plan) {
  extern __shared__ int32_t ints[];
  __shared__ double sums[THREADS];
  route_room_t room = route_room(ints, op.experts);
  launch_next();
  launch_wait();
  if (blockIdx.x > plan.blocks) {
    route_statistics<THREADS>(op, plan, (blockIdx.x - plan.blocks - 1) * ROUTE_COLUMNS, sums);
    return;
  }
  route_place_slots<THREADS>(op, plan, blockIdx.x, plan.count, room);
  if (blockIdx.x == plan.blocks) route_shares<THREADS>(op, room);
}

/* The counts of a thread's four experts and their neighbours', of all blocks and of those before,
 * into a row of its warp's. All are on their way at once. */
static __device__ __forceinline__ void route_ranked_counts(const route_plan_t &plan, int block,
                                                           int32_t *row) {
  constexpr int STEP = ROUTE_RANKED_THREADS / 4, MOST = ROUTE_BLOCKS / STEP; /* of blocks */
  int own = threadIdx.x % 4 * 4, first = threadIdx.x / 4;
  int32_t all[4] = {}, before[4] = {};
  int4 count[MOST];
#pragma unroll
  for (int j = 0; j < MOST; j++) {
    count[j] = make_int4(0, 0, 0, 0);
    int b = first + j * STEP;
    if (b < plan.blocks) count[j] = *(const int4 *)(plan.count + b * ROUTE_RANKED + own);
  }
#pragma unroll
  for (int j = 0; j < MOST; j++) {
    const int32_t here[4] = {count[j].x, count[j].y, count[j].z, count[j].w};
#pragma unroll
    for (int i = 0; i < 4; i++)
      all[i] += here[i], before[i] += first + j * STEP < block ? here[i] : 0;
  }
  /* a lane keeps half of what it has at each step, the lane at the other end of it the rest */
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int32_t given = lane & 16 ? all[i] : before[i];
    all[i] = (lane & 16 ? before[i] : all[i]) + __shfl_xor_sync(0xffffffffu, given, 16);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int32_t given = lane & 8 ? all[i] : all[i + 2];
    all[i] = (lane & 8 ? all[i + 2] : all[i]) + __shfl_xor_sync(0xffffffffu, given, 8);
  }
  int32_t given = lane & 4 ? all[0] : all[1];
  all[0] = (lane & 4 ? all[1] : all[0]) + __shfl_xor_sync(0xffffffffu, given, 4);
  row[lane / 16 * ROUTE_RANKED + own + (lane & 8) / 4 + (lane & 4) / 4] = all[0];
}

static_assert((int)ROUTE_RANKED < (int)ROUTE_COLUMNS, "one block has all of the statistics");

/* The same where slots are ranked; several blocks share out the slots of one of the kernel before.
 * Lane e of each warp knows expert e's rows. */
static __global__ void __launch_bounds__(ROUTE_RANKED_THREADS, 1)
    route_place_ranked(const op_route_t op, const route_plan_t plan, int pieces) {
  constexpr int WARPS = ROUTE_RANKED_THREADS / 32;
  __shared__ alignas(16) int32_t counts[WARPS][2 * ROUTE_RANKED];
  __shared__ int32_t ints[4 * ROUTE_RANKED];
  __shared__ double sums[ROUTE_RANKED_THREADS];
  int lane = threadIdx.x & 31, block = blockIdx.x / pieces;
  bool placing = block < plan.blocks, means = blockIdx.x > plan.blocks * pieces;
  int64_t slot = block * plan.tokens * op.top_k + threadIdx.x;
  int64_t end = min((block + 1) * plan.tokens, op.n) * op.top_k;
  slot += blockIdx.x % pieces * ROUTE_RANKED_PIECE;
  launch_wait();
  launch_next(); /* not before: by 0.1 us slower with many blocks waiting beside these */
  if (means) {
    route_statistics<ROUTE_RANKED_THREADS>(op, plan, 0, sums);
    return;
  }
  int32_t ranked[ROUTE_RANKED_SLOTS];
#pragma unroll
  for (int i = 0; i < ROUTE_RANKED_SLOTS; i++) {
    int64_t at = slot + i * ROUTE_RANKED_THREADS;
    ranked[i] = placing && at < end ? op.out.slot_row[at] : 0;
  }
  route_ranked_counts(plan, block, counts[threadIdx.x / 32]);
  __syncthreads();
  int32_t count = 0; /* lane e: of all blocks; lane e + ROUTE_RANKED: of those before */
#pragma unroll
  for (int w = 0; w < WARPS; w++) count += counts[w][lane];
  int32_t kept = op.capacity && op.capacity < count ? (int32_t)op.capacity : count, limit = kept;
#pragma unroll
  for (int step = 1; step < ROUTE_RANKED; step <<= 1) {
    int32_t other = __shfl_up_sync(0xffffffffu, limit, step);
    limit += lane >= step ? other : 0;
  }
  int32_t first = limit - kept + __shfl_down_sync(0xffffffffu, count, ROUTE_RANKED);
  if (!placing) {
    route_room_t room = route_room(ints, ROUTE_RANKED);
    if (threadIdx.x < ROUTE_RANKED) room.chosen[lane] = count, room.limit[lane] = limit;
    __syncthreads();
    route_shares<ROUTE_RANKED_THREADS>(op, room);
    return;
  }
#pragma unroll
  for (int i = 0; i < ROUTE_RANKED_SLOTS; i++, slot += ROUTE_RANKED_THREADS) {
    int e = ranked[i] % ROUTE_RANKED;
    int32_t row = __shfl_sync(0xffffffffu, first, e) + ranked[i] / ROUTE_RANKED;
    bool fits = row < __shfl_sync(0xffffffffu, limit, e);
    if (slot < end) op.out.slot_row[slot] = fits ? row : -1;
    if (slot < end && fits) op.out.row_slot[row] = (int32_t)slot;
  }
}

/* ---- the operation --------------------------------------------------------------------------- */

template <typename T>
static void route_launch(backend_device_t *device, const op_route_t *op, const route_plan_t *plan) {
  auto kernel = route_plain(&op->router) ? route_rows<T, false> : route_rows<T, true>;
  launch_chained(device, kernel, (unsigned)plan->blocks, ROUTE_THREADS, 0, 0, *op, *plan);
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
  if (op->experts > ROUTE_FEW)
    CUDA_TRY(route_many(device, &whole, &plan, scratch));
  else if (route90_takes(device, &whole, &plan))
    CUDA_TRY(route90(device, &whole, &plan));
  else
    CUDA_BY_DTYPE(op->act_dtype, route_launch, device, &whole, &plan);
  if (plan.ranked) {
    int pieces = (int)cuda_blocks(plan.tokens * op->top_k, ROUTE_RANKED_PIECE);
    launch_chained(device, route_place_ranked, (unsigned)(plan.blocks * pieces + 2),
                   ROUTE_RANKED_THREADS, 0, 0, whole, plan, pieces);
  } else if (plan.blocks > 1 && op->experts > ROUTE_FEW && op->experts <= ROUTE_PLACE_MANY) {
    route_place_many(device, &whole, &plan);
  } else if (plan.blocks > 1) {
    bool wide = op->experts > ROUTE_THREADS; /* shared memory has room for fewer threads */
    auto place = wide ? route_place<ROUTE_THREADS> : route_place<2 * ROUTE_THREADS>;
    int threads = wide ? ROUTE_THREADS : 2 * ROUTE_THREADS;
    size_t shared = route_room_ints(threads) * (size_t)op->experts * sizeof(int32_t);
    unsigned blocks = (unsigned)(plan.blocks + 1 + cuda_blocks(op->experts + 1, ROUTE_COLUMNS));
    launch_chained(device, place, blocks, threads, shared, 0, whole, plan);
  }
  return cuda_launched(device, "route");
}
