/* What the products of sm_90a share: PTX wrappers, the pipeline and the persistent kernel.
 *
 * A block walks over tiles of 128 x 256 results. One thread copies operands by the bulk copy engine
 * into a ring of stages, 64 along K each, and runs ahead over the ends of tiles. Two warpgroups
 * multiply, 64 x 256 each, summing in fp32 along K in order. The second begins a stage behind the
 * first, so that the epilogue of one runs under products of the other.
 *
 * A stage holds boxes of 64 x 64, 8 KB each, in rows of 128 bytes with the 128-byte swizzle: 2 of
 * A, then 4 of B. An operand is K-major (a row is 64 along K; boxes follow one another along M or
 * N, so that several can be copied as one) or MN-major (a row is 64 along M or N, one row a k). */
#ifndef NN_CUDA_SM90_CUH
#define NN_CUDA_SM90_CUH

#include <cuda.h>

#include "experts/grouped.h"
#include "kernel.cuh"

enum {
  SM90_M = 128,
  SM90_N = 256,
  SM90_K = 64,
  SM90_STAGES = 4,
  SM90_BOX_BYTES = 64 * 64 * 2,
  SM90_A_BYTES = SM90_M / 64 * SM90_BOX_BYTES,
  SM90_STAGE_BYTES = SM90_A_BYTES + SM90_N / 64 * SM90_BOX_BYTES,
  SM90_RING_BYTES = SM90_STAGES * SM90_STAGE_BYTES,
  SM90_CONSUMERS = 256,
  SM90_PIECES = 8, /* of a warp's room */
  SM90_PIECE_BYTES = 32 * 16,
  SM90_ROOM_BYTES = SM90_CONSUMERS / 32 * SM90_PIECES * SM90_PIECE_BYTES,
  SM90_SHARED = 1024 /* to align the ring */ + SM90_RING_BYTES + SM90_ROOM_BYTES +
                2 * SM90_STAGES * 8 /* barriers */,
  SM90_THREADS = 128 + SM90_CONSUMERS
};

/* ---- host ------------------------------------------------------------------------------------ */

/* A tensor of bf16 [dim[2], dim[1], dim[0]], rows of dim[0] packed, as boxes of box[]; stride: in
 * elements, of dim[1] and dim[2]. */
typedef struct sm90_tensor {
  const void *base;
  int64_t dim[3], stride[2];
  int box[3];
} sm90_tensor_t;

/* Activations [rows, parts, cols], rows rows of 64 columns of one part at a time. */
static inline sm90_tensor_t sm90_activations(const void *base, int64_t rows, int64_t parts,
                                             int64_t cols, int box_rows) {
  return {base, {cols, parts, rows}, {cols, parts * cols}, {64, 1, box_rows}};
}

/* Weights [experts, rows, cols]. */
static inline sm90_tensor_t sm90_weights(const grouped_t *grouped, const void *base, int64_t rows,
                                         int64_t cols, int box_rows) {
  int64_t stride = grouped->experts > 1 ? grouped->stride : rows * cols;
  return {base, {cols, rows, grouped->experts}, {cols, stride}, {64, box_rows, 1}};
}

/* sm90.cu */
nn_status_t sm90_map(backend_device_t *device, const char *operation, const sm90_tensor_t *tensor,
                     CUtensorMap *map);

/* ---- device ---------------------------------------------------------------------------------- */

/* Where a walk over tiles in rising order has come to. */
typedef struct sm90_walk {
  int expert;
  int first; /* tile of the expert */
} sm90_walk_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void sm90_barrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void sm90_barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void sm90_barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Returns once the phase of this parity is over; a new barrier is past parity 1. */
__device__ __forceinline__ void sm90_barrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!done);
}

/* Named barriers of the two consuming warpgroups. */
enum { SM90_STAGGER = 1, SM90_TAIL = 2 };

__device__ __forceinline__ void sm90_named_arrive(int name) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(name), "n"((int)SM90_CONSUMERS) : "memory");
}

__device__ __forceinline__ void sm90_named_sync(int name) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(name), "n"((int)SM90_CONSUMERS) : "memory");
}

/* Copies the box at (c0, c1, c2) to shared memory; what lies outside of the tensor becomes 0 and
 * counts as bytes all the same. */
__device__ __forceinline__ void sm90_copy(const CUtensorMap &map, uint32_t to, uint32_t barrier,
                                          int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

/* Brings the box into L2. */
__device__ __forceinline__ void sm90_prefetch(const CUtensorMap &map, int c0, int c1, int c2) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(&map),
               "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}

/* The same for bytes, a multiple of 16, in one piece at a multiple of 16. */
__device__ __forceinline__ void sm90_prefetch_bytes(const void *from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)),
               "r"(bytes)
               : "memory");
}

/* A wgmma descriptor of the operand at a shared address whose boxes begin at multiples of 1024.
 * K-major: groups of 8 rows are 1024 bytes apart. MN-major: groups of 8 k are 1024 bytes apart,
 * chunks of 64 along M or N a box. */
template <bool mn_major>
__device__ __forceinline__ uint64_t sm90_operand(uint32_t address) {
  const uint64_t swizzle_128 = 1ull << 62, eight_rows = (uint64_t)(1024 >> 4) << 32;
  const uint64_t chunk = (uint64_t)(mn_major ? SM90_BOX_BYTES >> 4 : 1) << 16;
  return swizzle_128 | eight_rows | chunk | (address & 0x3ffff) >> 4;
}

#define SM90_TIED8(d, i)                                                                      \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

/* d = a b (+ d where add), 64 x 256 with 16 along K. Thread t of the warpgroup holds in d[4 j + i]
 * the row 16 (t / 32) + t % 32 / 4 + 8 (i / 2) and the column 8 j + 2 (t % 4) + i % 2. */
template <bool a_mn_major, bool b_mn_major>
__device__ __forceinline__ void sm90_multiply(float (&d)[128], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127}, "
      "%128, %129, p, 1, 1, %131, %132;\n"
      "}"
      : SM90_TIED8(d, 0), SM90_TIED8(d, 8), SM90_TIED8(d, 16), SM90_TIED8(d, 24),
        SM90_TIED8(d, 32), SM90_TIED8(d, 40), SM90_TIED8(d, 48), SM90_TIED8(d, 56),
        SM90_TIED8(d, 64), SM90_TIED8(d, 72), SM90_TIED8(d, 80), SM90_TIED8(d, 88),
        SM90_TIED8(d, 96), SM90_TIED8(d, 104), SM90_TIED8(d, 112), SM90_TIED8(d, 120)
      : "l"(a), "l"(b), "r"(add), "n"(a_mn_major ? 1 : 0), "n"(b_mn_major ? 1 : 0));
}

__device__ __forceinline__ void sm90_multiply_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void sm90_multiply_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Returns once all but the newest `left` groups of products are done. */
template <int left>
__device__ __forceinline__ void sm90_multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

/* Keeps the compiler from moving what reads or writes d over this place: it knows of products only
 * where they are issued. */
__device__ __forceinline__ void sm90_hold(float (&d)[128]) {
#pragma unroll
  for (int i = 0; i < 128; i++) asm volatile("" : "+f"(d[i])::"memory");
}

__device__ __forceinline__ uint32_t sm90_pack(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t *>(&pair);
}

/* Shared memory of one warp, in pieces, to turn the layout of products into that of memory and
 * back. A piece is 8 rows of 32 columns of bf16. As a fragment a thread holds, in word i, the
 * columns 8 i + 2 (lane % 4) and the next of the row lane / 4; as a row it holds 8 columns from
 * 8 (lane % 4) on of the same row. Between putting and getting lies __syncwarp(). */
typedef struct sm90_room {
  uint32_t row;      /* the thread's 16 bytes of the first piece */
  uint32_t fragment; /* the 16 bytes of the row lane % 8, columns from 8 (lane / 8) on */
} sm90_room_t;

/* Blocks of 16 bytes are swapped in pairs of rows, so that 8 rows' lie in all banks. */
__device__ __forceinline__ sm90_room_t sm90_room(uint32_t ring, int thread) {
  uint32_t warp = thread / 32, lane = thread % 32, row = lane / 4, block = lane % 4;
  uint32_t first = ring + SM90_RING_BYTES + warp * (SM90_PIECES * SM90_PIECE_BYTES);
  sm90_room_t room;
  room.row = first + 16 * (4 * row + (block ^ (row / 2)));
  row = lane % 8;
  block = lane / 8;
  room.fragment = first + 16 * (4 * row + (block ^ (row / 2)));
  return room;
}

__device__ __forceinline__ void sm90_get_row(const sm90_room_t &room, int piece,
                                             uint32_t (&w)[4]) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
               : "r"(room.row + piece * SM90_PIECE_BYTES)
               : "memory");
}

__device__ __forceinline__ void sm90_put_fragment(const sm90_room_t &room, int piece,
                                                  const uint32_t (&w)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   room.fragment + piece * SM90_PIECE_BYTES),
               "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
               : "memory");
}

__device__ __forceinline__ void sm90_get_fragment(const sm90_room_t &room, int piece,
                                                  uint32_t (&w)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
               : "r"(room.fragment + piece * SM90_PIECE_BYTES)
               : "memory");
}

/* Sixteen bytes from global memory to the thread's row, or zeroes, asynchronously. */
__device__ __forceinline__ void sm90_fetch_row(const sm90_room_t &room, int piece,
                                               const bf16_t *from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(room.row +
                                                                     piece * SM90_PIECE_BYTES),
               "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void sm90_fetch_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Returns once all but the newest `left` groups of the thread's fetches are done. */
template <int left>
__device__ __forceinline__ void sm90_fetch_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

/* Results go past the caches' favour: they are larger than L2, and the weights should stay. */
__device__ __forceinline__ void sm90_store(bf16_t *to, const uint32_t (&w)[4]) {
  __stcs(reinterpret_cast<uint4 *>(to), make_uint4(w[0], w[1], w[2], w[3]));
}

__device__ __forceinline__ uint32_t sm90_full(uint32_t ring, uint32_t slot) {
  return ring + SM90_RING_BYTES + SM90_ROOM_BYTES + 8 * slot;
}

__device__ __forceinline__ uint32_t sm90_empty(uint32_t ring, uint32_t slot) {
  return sm90_full(ring, SM90_STAGES + slot);
}

/* A product P has: args_t, tile_t, a_mn_major, b_mn_major, k_grouped (K runs over rows), and
 *   find(args, walk, t, tile)                 the t-th tile, false behind the last
 *   blocks(args, tile)                        blocks along K, at least 1
 *   load(args, tile, block, stage, barrier)   copies one stage, whole boxes
 *   early(args, tile, thread, room)           asks for what the epilogue reads
 *   finish(args, tile, thread, room, d)       the epilogue; thread: 0 .. 255
 *   valid(tile, block)                        k_grouped: rows of the block, more than 0 */

template <typename P>
__device__ __forceinline__ void sm90_produce(const typename P::args_t &args, uint32_t ring) {
  sm90_walk_t walk = {0, 0};
  typename P::tile_t tile;
  uint32_t step = 0;
  for (int t = (int)blockIdx.x; P::find(args, &walk, t, &tile); t += (int)gridDim.x) {
    int blocks = P::blocks(args, tile);
    for (int block = 0; block < blocks; block++, step++) {
      uint32_t slot = step % SM90_STAGES, parity = step / SM90_STAGES & 1;
      sm90_barrier_wait(sm90_empty(ring, slot), parity ^ 1);
      sm90_barrier_expect(sm90_full(ring, slot), SM90_STAGE_BYTES);
      P::load(args, tile, block, ring + slot * SM90_STAGE_BYTES, sm90_full(ring, slot));
    }
  }
}

/* Zeroes the rows from valid on of all boxes of an MN-major stage: they are another expert's, or
 * nobody's and may hold NaN. Both warpgroups take part. */
__device__ __forceinline__ void sm90_cut(uint32_t stage, int valid, int thread) {
  for (int box = 0; box < SM90_STAGE_BYTES / SM90_BOX_BYTES; box++)
    for (int at = valid * 128 + thread * 16; at < SM90_BOX_BYTES; at += SM90_CONSUMERS * 16)
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(stage + box * SM90_BOX_BYTES +
                                                                   at),
                   "r"(0)
                   : "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  sm90_named_sync(SM90_TAIL);
}

/* The products of one stage, issued. */
template <typename P>
__device__ __forceinline__ void sm90_stage(float (&d)[128], uint32_t stage, int group, int add) {
  const uint32_t k_major_step = 32, mn_major_step = 16 * 128; /* bytes of 16 along K */
  uint32_t a = stage + group * SM90_BOX_BYTES, b = stage + SM90_A_BYTES;
#pragma unroll
  for (int k = 0; k < SM90_K / 16; k++)
    sm90_multiply<P::a_mn_major, P::b_mn_major>(
        d, sm90_operand<P::a_mn_major>(a + k * (P::a_mn_major ? mn_major_step : k_major_step)),
        sm90_operand<P::b_mn_major>(b + k * (P::b_mn_major ? mn_major_step : k_major_step)),
        k || add);
}

template <typename P>
__device__ __forceinline__ void sm90_consume(const typename P::args_t &args, uint32_t ring) {
  int thread = (int)threadIdx.x - 128, group = thread / 128;
  bool signals = thread % 32 == 0;
  sm90_room_t room = sm90_room(ring, thread);
  float d[128];
  sm90_walk_t walk = {0, 0};
  typename P::tile_t tile;
  uint32_t step = 0;
  for (int t = (int)blockIdx.x; P::find(args, &walk, t, &tile); t += (int)gridDim.x) {
    int blocks = P::blocks(args, tile);
    int behind = t == (int)blockIdx.x ? min(1, blocks - 1) : -1;
    if (behind >= 0 && group == 1) sm90_named_sync(SM90_STAGGER);
    P::early(args, tile, thread, room);
    for (int block = 0; block < blocks; block++, step++) {
      uint32_t slot = step % SM90_STAGES, stage = ring + slot * SM90_STAGE_BYTES;
      sm90_barrier_wait(sm90_full(ring, slot), step / SM90_STAGES & 1);
      /* before what waits for the other group */
      if (block == behind && group == 0) sm90_named_arrive(SM90_STAGGER);
      if (P::k_grouped && P::valid(tile, block) < SM90_K)
        sm90_cut(stage, P::valid(tile, block), thread);
      sm90_hold(d);
      sm90_multiply_begin();
      sm90_stage<P>(d, stage, group, block);
      sm90_multiply_commit();
      sm90_hold(d);
      sm90_multiply_wait<1>();
      if (block && signals) sm90_barrier_arrive(sm90_empty(ring, (step - 1) % SM90_STAGES));
    }
    sm90_multiply_wait<0>();
    sm90_hold(d);
    if (signals) sm90_barrier_arrive(sm90_empty(ring, (step - 1) % SM90_STAGES));
    P::finish(args, tile, thread, room, d);
  }
}

#endif

template <typename P>
__global__ void __launch_bounds__(SM90_THREADS, 1)
    sm90_run(const __grid_constant__ typename P::args_t args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ uint8_t sm90_shared[];
  uint32_t ring = ((uint32_t)__cvta_generic_to_shared(sm90_shared) + 1023) & ~1023u;
  if (threadIdx.x == 0) {
    for (uint32_t slot = 0; slot < SM90_STAGES; slot++) {
      sm90_barrier_init(sm90_full(ring, slot), 1);
      sm90_barrier_init(sm90_empty(ring, slot), SM90_CONSUMERS / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  /* 168 registers a thread at the start; 128 * 40 + 256 * 232 fit into the 65536 too. */
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) sm90_produce<P>(args, ring);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    sm90_consume<P>(args, ring);
  }
#endif
}

/* The grid depends on shapes alone: tiles is the most that the rows can make. */
template <typename P>
static nn_status_t sm90_launch(backend_device_t *device, const char *operation,
                               const typename P::args_t &args, int64_t tiles) {
  CUDA_TRY(cuda_check(device, operation,
                      cudaFuncSetAttribute(sm90_run<P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           SM90_SHARED)));
  unsigned grid = (unsigned)(tiles < device->multiprocessors ? tiles : device->multiprocessors);
  sm90_run<P><<<grid, SM90_THREADS, SM90_SHARED, device->stream>>>(args);
  return cuda_launched(device, operation);
}

#endif
