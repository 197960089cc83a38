/* What the products of sm_90a share: the pipeline and the persistent kernel.
 *
 * Two blocks of a cluster walk over pairs of tiles of 128 x n results, one above the other: each
 * copies its own A and half of the B that both need. One thread copies operands by the bulk copy
 * engine into a ring of stages, 64 along K each, and runs ahead over the ends of tiles. Two
 * warpgroups multiply, summing in fp32 along K in order. What hides an epilogue:
 * n = 256: a warpgroup has 64 x 256 of the tile. The second goes some stages behind the first, so
 *          that one's epilogue runs under products of the other. For a long K.
 * n = 128: the warpgroups have every other tile each, and one's whole epilogue runs under the
 *          products of the other. For a short K with a long epilogue.
 *
 * A stage holds boxes of 64 x 64, 8 KB each, in rows of 128 bytes with the 128-byte swizzle: 2 of
 * A, then n / 64 of B. An operand is K-major (a row is 64 along K; boxes follow one another along M
 * or N, so that several can be copied as one) or MN-major (a row is 64 along M or N, one row a k).
 *
 * Results go through shared memory in boxes of 16 rows of 128 bytes, a warp's each, by the copy
 * engine too. */
#ifndef NN_CUDA_SM90_CUH
#define NN_CUDA_SM90_CUH

#include "experts/grouped.h"
#include "hopper.cuh"

enum {
  SM90_PAIR = 2, /* blocks of a cluster */
  SM90_M = 128,
  SM90_K = 64,
  SM90_BOX_BYTES = 64 * 64 * 2,
  SM90_A_BYTES = SM90_M / 64 * SM90_BOX_BYTES,
  SM90_CONSUMERS = 256,
  SM90_THREADS = 128 + SM90_CONSUMERS,
  SM90_OUT_ROWS = 16,
  SM90_OUT_BYTES = SM90_OUT_ROWS * 128
};

/* What follows from a tile's columns, and from whether its epilogue has operands of its own, as
 * large as two stages. A warp has two boxes for results. */
template <int columns, bool staged>
struct sm90_size {
  static_assert(columns == 256 || columns == 128, "registers are counted for these");
  static constexpr bool alternate = columns == 128;
  static constexpr int stages = !alternate ? 4 : staged ? 4 : 6;
  static constexpr int stage_bytes = SM90_A_BYTES + columns / 64 * SM90_BOX_BYTES;
  static constexpr int staged_at = stages * stage_bytes;
  static constexpr int room_at = staged_at + (staged ? 2 * stage_bytes : 0);
  static constexpr int barriers_at = room_at + SM90_CONSUMERS / 32 * 2 * SM90_OUT_BYTES;
  static constexpr int barriers = 2 * stages + (alternate ? 2 : 0) + (staged ? 6 : 0);
  static constexpr int shared_bytes = barriers_at + 8 * barriers;
  static constexpr int consumer_warps = (alternate ? 128 : SM90_CONSUMERS) / 32; /* of a stage */
};

template <typename P>
using sm90_plan = sm90_size<P::columns, P::staged>;

enum { SM90_SHARED = sm90_size<128, true>::shared_bytes }; /* the most */
static_assert(sm90_size<128, false>::shared_bytes <= SM90_SHARED, "see sm90_fits");
static_assert(sm90_size<256, false>::shared_bytes <= SM90_SHARED, "see sm90_fits");

/* ---- host ------------------------------------------------------------------------------------ */

/* Activations [rows, parts, cols], box_rows rows of 64 columns of one part at a time. */
static inline hopper_tensor_t sm90_activations(const void *base, int64_t rows, int64_t parts,
                                               int64_t cols, int box_rows) {
  return {base, NN_BF16, 3, {cols, parts, rows}, {cols, parts * cols}, {64, 1, box_rows}};
}

/* Weights [experts, rows, cols]; apart: from one row to the next, in rows. */
static inline hopper_tensor_t sm90_weights(const grouped_t *grouped, const void *base, int64_t rows,
                                           int64_t cols, int64_t apart, int box_rows) {
  int64_t ld = apart * cols, stride = grouped->experts > 1 ? grouped->stride : rows * ld;
  return {base, NN_BF16, 3, {cols, rows, grouped->experts}, {ld, stride}, {64, box_rows, 1}};
}

/* Gradients [experts, rows, cols] as boxes of results. */
static inline hopper_tensor_t sm90_gradients(const grouped_t *grouped, const void *base,
                                             int64_t rows, int64_t cols, int64_t apart) {
  hopper_tensor_t tensor = sm90_weights(grouped, base, rows, cols, apart, SM90_OUT_ROWS);
  tensor.dtype = NN_F32, tensor.box[0] = 32;
  return tensor;
}

/* ---- device ---------------------------------------------------------------------------------- */

/* Where a walk over tiles in rising order has come to. */
typedef struct sm90_walk {
  int expert;
  int first; /* tile of the expert */
} sm90_walk_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ int sm90_rank() { return (int)(blockIdx.x % SM90_PAIR); }

/* Named barriers: of the two consuming warpgroups of a team; from SM90_GROUP on, one of each alone.
 * For products of one team. */
enum { SM90_STAGGER = 1, SM90_GROUP = 2 };

/* Asked anew each time, so that what follows from it is not kept in registers all along. */
__device__ __forceinline__ uint32_t sm90_lane() {
  uint32_t lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

/* A warp's box of results: 16 rows of 128 bytes, 64 columns, whose blocks of 16 bytes are
 * swizzled. A fragment is 8 rows (the first or the second half) of 32 columns (of one of two
 * pieces); its word i of a thread has the columns 8 i + 2 (lane % 4) and the next of the row
 * lane / 4. */
__device__ __forceinline__ uint32_t sm90_fragment(uint32_t box, int half, int piece) {
  uint32_t lane = sm90_lane(), row = lane % 8, block = lane / 8 + 4 * piece;
  return box + half * 1024 + row * 128 + ((block ^ row) << 4);
}

__device__ __forceinline__ void sm90_put_fragment(uint32_t at, const uint32_t (&w)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),
               "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
               : "memory");
}

__device__ __forceinline__ uint4 sm90_get(uint32_t at) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}

__device__ __forceinline__ void sm90_put(uint32_t at, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

/* ---- the pipeline ---------------------------------------------------------------------------- */

/* A product P has: element (bf16_t or f16_t), args_t, tile_t, columns (of a tile), a_mn_major,
 * b_mn_major, k_grouped (K runs over rows), behind (256 columns, else 0: stages that the second
 * warpgroup goes behind the first), staged (128 columns: the epilogue has operands of its own), and
 *   find(args, walk, t, tile)                 the block's tile of the t-th pair, false behind the
 *                                             last
 *   blocks(args, tile)                        blocks along K, at least 1; 128 columns: as many for
 *                                             all tiles
 *   load(args, tile, block, stage, barrier)   copies one stage: A, and half of B to both blocks
 *   load_staged(args, tile, part, at, barrier)  copies one of two parts
 *   finish(args, tile, thread, state, d)      the epilogue; thread: of those that have the tile
 *   valid(tile, block)                        k_grouped: rows of the block, more than 0 */

/* What a consuming thread carries from tile to tile. */
typedef struct sm90_state {
  uint32_t ring;
  uint32_t step; /* stages taken */
  uint32_t tile; /* the block's tiles so far */
  uint32_t room; /* the warp's boxes */
  uint32_t box;  /* which of them is next, in bytes */
} sm90_state_t;

template <typename P>
__device__ __forceinline__ uint32_t sm90_slot(uint32_t step) {
  return step % sm90_plan<P>::stages;
}

template <typename P>
__device__ __forceinline__ uint32_t sm90_stage_at(uint32_t ring, uint32_t step) {
  return ring + sm90_slot<P>(step) * sm90_plan<P>::stage_bytes;
}

template <typename P>
__device__ __forceinline__ uint32_t sm90_full(uint32_t ring, uint32_t step) {
  return ring + sm90_plan<P>::barriers_at + 8 * sm90_slot<P>(step);
}

template <typename P>
__device__ __forceinline__ uint32_t sm90_empty(uint32_t ring, uint32_t step) {
  return sm90_full<P>(ring, step) + 8 * sm90_plan<P>::stages;
}

/* 128 columns: the other warpgroup has taken all stages of the tile before. Else a warpgroup that
 * has none of these might find a phase of a stage over that is not yet its own. */
template <typename P>
__device__ __forceinline__ uint32_t sm90_turn(uint32_t ring, uint32_t tile) {
  return ring + sm90_plan<P>::barriers_at + 8 * (2 * sm90_plan<P>::stages + tile % 2);
}

/* Each warpgroup has one of its own of each part, for the same reason. */
template <typename P>
__device__ __forceinline__ uint32_t sm90_staged_full(uint32_t ring, uint32_t tile, int part) {
  return ring + sm90_plan<P>::barriers_at +
         8 * (2 * sm90_plan<P>::stages + 2 + 2 * part + tile % 2);
}

template <typename P>
__device__ __forceinline__ uint32_t sm90_staged_empty(uint32_t ring, int part) {
  return ring + sm90_plan<P>::barriers_at + 8 * (2 * sm90_plan<P>::stages + 6 + part);
}

template <typename P>
__device__ __forceinline__ uint32_t sm90_staged_at(uint32_t ring, int part) {
  return ring + sm90_plan<P>::staged_at + part * sm90_plan<P>::stage_bytes;
}

/* The warp has done with the stage; both blocks fill it again. */
template <typename P>
__device__ __forceinline__ void sm90_release(uint32_t ring, uint32_t step) {
  uint32_t lane = threadIdx.x % 32;
  if (lane < SM90_PAIR) hopper_arrive_at(sm90_empty<P>(ring, step), lane);
}

/* The walk over pairs of tiles. */
__device__ __forceinline__ int sm90_first() { return (int)blockIdx.x / SM90_PAIR; }
__device__ __forceinline__ int sm90_stride() { return (int)gridDim.x / SM90_PAIR; }

template <typename P>
__device__ __forceinline__ void sm90_produce(const typename P::args_t &args, uint32_t ring) {
  sm90_walk_t walk = {0, 0};
  typename P::tile_t tile;
  uint32_t step = 0;
  for (int t = sm90_first(); P::find(args, &walk, t, &tile); t += sm90_stride()) {
    int blocks = P::blocks(args, tile);
    for (int block = 0; block < blocks; block++, step++) {
      hopper_wait(sm90_empty<P>(ring, step), (step / sm90_plan<P>::stages & 1) ^ 1);
      hopper_expect(sm90_full<P>(ring, step), sm90_plan<P>::stage_bytes);
      P::load(args, tile, block, sm90_stage_at<P>(ring, step), sm90_full<P>(ring, step));
    }
  }
}

template <typename P>
__device__ __forceinline__ void sm90_produce_staged(const typename P::args_t &args, uint32_t ring) {
  sm90_walk_t walk = {0, 0};
  typename P::tile_t tile;
  uint32_t count = 0;
  for (int t = sm90_first(); P::find(args, &walk, t, &tile); t += sm90_stride(), count++)
    for (int part = 0; part < 2; part++) {
      uint32_t full = sm90_staged_full<P>(ring, count, part);
      hopper_wait(sm90_staged_empty<P>(ring, part), (count & 1) ^ 1);
      hopper_expect(full, sm90_plan<P>::stage_bytes);
      P::load_staged(args, tile, part, sm90_staged_at<P>(ring, part), full);
    }
}

/* Zeroes the rows from valid on of the boxes of an MN-major stage that the warpgroup reads: they
 * are another expert's, or nobody's and may hold NaN. Both warpgroups zero B, so that neither waits
 * for the other. */
template <typename P>
__device__ __forceinline__ void sm90_cut(uint32_t stage, int valid, int group, int thread) {
  for (int box = 0; box < 1 + P::columns / 64; box++) {
    uint32_t at = stage;
    at += box ? SM90_A_BYTES + (box - 1) * SM90_BOX_BYTES : group * SM90_BOX_BYTES;
    for (int i = valid * 128 + thread % 128 * 16; i < SM90_BOX_BYTES; i += 128 * 16)
      sm90_put(at + i, make_uint4(0, 0, 0, 0));
  }
  hopper_fence();
  hopper_named_sync(SM90_GROUP + group, 128);
}

/* The products of one stage, issued. */
template <typename P>
__device__ __forceinline__ void sm90_products(float (&d)[128], uint32_t stage, int group, int add) {
  const uint32_t a_step = P::a_mn_major ? HOPPER_NEXT_ROWS : HOPPER_NEXT_K;
  const uint32_t b_step = P::b_mn_major ? HOPPER_NEXT_ROWS : HOPPER_NEXT_K;
  const uint32_t box = SM90_BOX_BYTES >> 4; /* in a descriptor's units */
  uint64_t a = hopper_operand(stage, P::a_mn_major ? SM90_BOX_BYTES : 16);
  uint64_t b = hopper_operand(stage, P::b_mn_major ? SM90_BOX_BYTES : 16);
  b += SM90_A_BYTES >> 4;
  if (!sm90_plan<P>::alternate) a += group * box;
  typedef typename P::element T;
#pragma unroll
  for (int k = 0; k < SM90_K / 16; k++) {
    uint64_t a_k = a + k * a_step, b_k = b + k * b_step;
    if (!sm90_plan<P>::alternate) {
      hopper_multiply_256<T, P::a_mn_major, P::b_mn_major>(d, a_k, b_k, k || add);
    } else {
      hopper_multiply_128<T, P::a_mn_major, P::b_mn_major>(d, a_k, b_k, k || add);
      hopper_multiply_128<T, P::a_mn_major, P::b_mn_major>(d + 64, a_k + box, b_k, k || add);
    }
  }
}

template <typename P>
__device__ __forceinline__ void sm90_consume(const typename P::args_t &args, uint32_t ring) {
  typedef sm90_plan<P> plan;
  static_assert(!(plan::alternate && (P::behind || P::k_grouped)), "of 256 columns alone");
  int thread = (int)threadIdx.x - 128, group = thread / 128;
  sm90_state_t state = {
      ring, 0, 0, ring + plan::room_at + thread / 32 * (2 * SM90_OUT_BYTES), 0};
  float d[128];
  sm90_walk_t walk = {0, 0};
  typename P::tile_t tile;
  int t = sm90_first();
  for (; P::find(args, &walk, t, &tile); t += sm90_stride(), state.tile++) {
    int blocks = P::blocks(args, tile);
    if (plan::alternate && (state.tile & 1) != (uint32_t)group) { /* the other's */
      state.step += blocks;
      continue;
    }
    if (plan::alternate && state.tile)
      hopper_wait(sm90_turn<P>(ring, state.tile), (state.tile - 1) / 2 & 1);
    int behind = state.tile == 0 && P::behind ? min(P::behind, blocks - 1) : -1;
    if (behind >= 0 && group == 1) hopper_named_sync(SM90_STAGGER, SM90_CONSUMERS);
    for (int block = 0; block < blocks; block++, state.step++) {
      uint32_t stage = sm90_stage_at<P>(ring, state.step);
      hopper_wait(sm90_full<P>(ring, state.step), state.step / plan::stages & 1);
      if (block == behind && group == 0) hopper_named_arrive(SM90_STAGGER, SM90_CONSUMERS);
      if (P::k_grouped && P::valid(tile, block) < SM90_K)
        sm90_cut<P>(stage, P::valid(tile, block), group, thread);
      hopper_hold(d);
      hopper_begin();
      sm90_products<P>(d, stage, group, block);
      hopper_commit();
      hopper_hold(d);
      hopper_done<1>();
      if (block) sm90_release<P>(ring, state.step - 1);
    }
    if (plan::alternate && thread % 32 == 0)
      hopper_arrive_at(sm90_turn<P>(ring, state.tile + 1), sm90_rank());
    hopper_done<0>();
    hopper_hold(d);
    sm90_release<P>(ring, state.step - 1);
    P::finish(args, tile, plan::alternate ? thread % 128 : thread, state, d);
  }
  hopper_store_wait<0>();
}

#endif

template <typename P>
__global__ void __launch_bounds__(SM90_THREADS, 1)
    sm90_run(const __grid_constant__ typename P::args_t args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  typedef sm90_plan<P> plan;
  extern __shared__ __align__(1024) uint8_t sm90_shared[];
  uint32_t ring = (uint32_t)__cvta_generic_to_shared(sm90_shared);
  if (threadIdx.x == 0) {
    for (uint32_t slot = 0; slot < plan::stages; slot++) {
      hopper_barrier_init(sm90_full<P>(ring, slot), 1);
      hopper_barrier_init(sm90_empty<P>(ring, slot), SM90_PAIR * plan::consumer_warps);
    }
    for (int i = 0; i < 2; i++) {
      if (plan::alternate) hopper_barrier_init(sm90_turn<P>(ring, i), plan::consumer_warps);
      if (!P::staged) continue;
      hopper_barrier_init(sm90_staged_full<P>(ring, 0, i), 1);
      hopper_barrier_init(sm90_staged_full<P>(ring, 1, i), 1);
      hopper_barrier_init(sm90_staged_empty<P>(ring, i), plan::consumer_warps);
    }
    hopper_barrier_ready();
  }
  __syncthreads();
  hopper_cluster_sync();
  /* Neither block leaves while the other may copy to it or arrive at its barriers. 168 registers a
   * thread at the start; 128 * 40 + 256 * 232 fit into the 65536 too. */
  if (threadIdx.x < 128) {
    hopper_give_registers<40>();
    if (threadIdx.x == 0) sm90_produce<P>(args, ring);
    if constexpr (P::staged)
      if (threadIdx.x == 32) sm90_produce_staged<P>(args, ring);
    hopper_cluster_sync();
  } else {
    hopper_take_registers<232>();
    sm90_consume<P>(args, ring);
    hopper_cluster_sync();
  }
#endif
}

/* The grid depends on shapes alone: pairs is the most that the rows can make. */
template <typename P>
static nn_status_t sm90_launch(backend_device_t *device, const char *operation,
                               const typename P::args_t &args, int64_t pairs) {
  const int bytes = sm90_plan<P>::shared_bytes;
  CUDA_TRY(cuda_check(device, operation,
                      cudaFuncSetAttribute(sm90_run<P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           bytes)));
  int64_t room = device->multiprocessors / SM90_PAIR;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = SM90_PAIR;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((unsigned)(SM90_PAIR * (pairs < room ? pairs : room)));
  config.blockDim = dim3(SM90_THREADS);
  config.dynamicSmemBytes = bytes;
  config.stream = device->stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  void *parameter[] = {const_cast<typename P::args_t *>(&args)};
  CUDA_TRY(cuda_check(device, operation,
                      cudaLaunchKernelExC(&config, (const void *)sm90_run<P>, parameter)));
  return cuda_launched(device, operation);
}

#endif
