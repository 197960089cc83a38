/* Attention on sm_90a: PTX wrappers, what its kernels load by the bulk copy engine, and the order
 * in which they take tiles. bf16, head dim 64, keys that are the rows' own.
 *
 * A tile of queries is `positions` whole positions of a group's heads, so that one box of the
 * tensor [batch, positions, heads, 64] is packed rows as attention.h has them. Tiles lie in shared
 * memory in rows of 128 bytes with the 128-byte swizzle, each from a multiple of 1024 on. Positions
 * behind a sequence's last are copied as zeroes. */
#ifndef NN_CUDA_ATTENTION_HOPPER_CUH
#define NN_CUDA_ATTENTION_HOPPER_CUH

#include <cuda.h>

#include "attention/tile.cuh"

enum {
  HOPPER_DIM = 64,
  HOPPER_ROW_BYTES = HOPPER_DIM * 2,
  HOPPER_GROUP = 128,     /* threads of a warpgroup */
  HOPPER_ROWS = 192,      /* packed rows of a block that holds rows, 64 a warpgroup */
  HOPPER_MOST_GROUP = 48, /* heads of a key-value head */
  HOPPER_ALIGN = 1024
};

/* ---- host ------------------------------------------------------------------------------------ */

/* hopper.cu: the map of [batch, length, heads, 64] by boxes of [1, box_length, box_heads, 64];
 * strides in elements. */
typedef struct hopper_tensor {
  const void *base;
  int64_t batch, length, heads;
  int64_t batch_stride, stride;
  int box_length, box_heads;
} hopper_tensor_t;

nn_status_t hopper_map(backend_device_t *device, const char *operation,
                       const hopper_tensor_t *tensor, CUtensorMap *map);

/* Whole positions in so many packed rows, an even number of them: statistics of a tile begin at a
 * multiple of 16 bytes. */
static inline int hopper_positions(const attention_rows_t *rows, int most) {
  return most / rows->group / 2 * 2;
}

/* Tiles of packed rows, handed out to persistent blocks. */
typedef struct hopper_tiles {
  int positions, count; /* positions of a tile; tiles of a sequence and key-value head */
  int pairs;            /* sequences times key-value heads */
} hopper_tiles_t;

/* ---- device ---------------------------------------------------------------------------------- */

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void hopper_barrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

/* Makes new barriers known to the copy engine. */
__device__ __forceinline__ void hopper_barrier_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void hopper_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void hopper_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Returns once the phase of this parity is over; a new barrier is past parity 1. */
__device__ __forceinline__ void hopper_wait(uint32_t barrier, uint32_t parity) {
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

__device__ __forceinline__ void hopper_named_sync(int name, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

/* Orders shared memory that was read and written by the thread before what the copy engine and
 * products do there. */
__device__ __forceinline__ void hopper_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* Copies the box at a head, position and sequence to shared memory. */
__device__ __forceinline__ void hopper_copy(const CUtensorMap &map, uint32_t to, uint32_t barrier,
                                            int head, int position, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(0), "r"(head), "r"(position), "r"(batch)
      : "memory");
}

/* Copies bytes, a multiple of 16 at multiples of 16. */
__device__ __forceinline__ void hopper_copy_bytes(const void *from, uint32_t to, uint32_t barrier,
                                                  uint32_t bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to), "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
      : "memory");
}

/* The descriptor of rows of 64 numbers in shared memory, groups of 8 rows 1024 bytes apart: K-major
 * where the product sums over the 64 (16 more: HOPPER_NEXT_K further), MN-major where it sums over
 * rows (16 more: HOPPER_NEXT_ROWS). */
enum { HOPPER_NEXT_K = 32 >> 4, HOPPER_NEXT_ROWS = 16 * HOPPER_ROW_BYTES >> 4 };

__device__ __forceinline__ uint64_t hopper_operand(uint32_t address) {
  const uint64_t swizzle_128 = 1ull << 62, eight_rows = (uint64_t)(1024 >> 4) << 32;
  return swizzle_128 | eight_rows | 1ull << 16 | (address & 0x3ffff) >> 4;
}

#define HOPPER_TIED8(d, i)                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

/* d = a b^T (+ d where add), 16 of the sum: 64 rows of a, 2 N of b for N numbers of d. Thread t of
 * the warpgroup holds in d[4 j + i] the row 16 (t / 32) + t % 32 / 4 + 8 (i / 2) and the column
 * 8 j + 2 (t % 4) + i % 2. */
__device__ __forceinline__ void hopper_multiply(float (&d)[64], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, 0, 0;\n"
      "}"
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24),
        HOPPER_TIED8(d, 32), HOPPER_TIED8(d, 40), HOPPER_TIED8(d, 48), HOPPER_TIED8(d, 56)
      : "l"(a), "l"(b), "r"(add));
}

__device__ __forceinline__ void hopper_multiply(float (&d)[48], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %50, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
      "%48, %49, p, 1, 1, 0, 0;\n"
      "}"
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24),
        HOPPER_TIED8(d, 32), HOPPER_TIED8(d, 40)
      : "l"(a), "l"(b), "r"(add));
}

__device__ __forceinline__ void hopper_multiply(float (&d)[32], uint64_t a, uint64_t b, int add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, 0, 0;\n"
      "}"
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24)
      : "l"(a), "l"(b), "r"(add));
}

/* d = a b (+ d where add): a 64 x 16 in registers, b 16 rows. */
__device__ __forceinline__ void hopper_multiply_rows(float (&d)[32], const uint32_t *a, uint64_t b,
                                                     int add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1;\n"
      "}"
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

__device__ __forceinline__ void hopper_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void hopper_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Returns once all but the newest `left` groups of products are done. */
template <int left>
__device__ __forceinline__ void hopper_done() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}

/* Keeps the compiler from moving what reads or writes d over this place: it knows of products only
 * where they are issued. */
template <int N>
__device__ __forceinline__ void hopper_hold(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ __forceinline__ void hopper_hold(uint32_t (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(d[i])::"memory");
}

template <int N>
__device__ __forceinline__ void hopper_zero(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) d[i] = 0;
}

/* d = a b^T over head dim: 64 rows of a, 2 N rows of b. */
template <int N>
__device__ __forceinline__ void hopper_dot(float (&d)[N], uint32_t a, uint32_t b) {
  uint64_t x = hopper_operand(a), y = hopper_operand(b);
#pragma unroll
  for (int k = 0; k < HOPPER_DIM / 16; k++)
    hopper_multiply(d, x + k * HOPPER_NEXT_K, y + k * HOPPER_NEXT_K, k);
}

/* d = a b (+ d where add): a 64 x 4 N in registers, as hopper_round makes it; b 4 N rows. */
template <int N>
__device__ __forceinline__ void hopper_add(float (&d)[32], const uint32_t (&a)[N], uint32_t b,
                                           int add) {
  uint64_t y = hopper_operand(b);
#pragma unroll
  for (int k = 0; k < N / 4; k++)
    hopper_multiply_rows(d, a + 4 * k, y + k * HOPPER_NEXT_ROWS, k || add);
}

/* A result becomes the left operand of another product: no number moves to another thread. */
template <int N>
__device__ __forceinline__ void hopper_round(uint32_t (&p)[N], const float (&s)[2 * N]) {
#pragma unroll
  for (int i = 0; i < N; i++) p[i] = tile_pair(s[2 * i], s[2 * i + 1]);
}

/* ---- tiles of rows --------------------------------------------------------------------------- */

/* The tile of a block's round, from the last tile of rows, which sees the most keys, to the first;
 * false: none is left. Every other round goes backwards over blocks, so that all have about the
 * same number of keys. */
typedef struct hopper_tile {
  int pair, position; /* the first */
} hopper_tile_t;

__device__ __forceinline__ bool hopper_find(const hopper_tiles_t &tiles, int round,
                                            hopper_tile_t *tile) {
  int blocks = gridDim.x, block = blockIdx.x;
  int at = round * blocks + (round & 1 ? blocks - 1 - block : block);
  if (at >= tiles.count * tiles.pairs) return false; /* and so in all later rounds */
  tile->pair = at % tiles.pairs;
  tile->position = (tiles.count - 1 - at / tiles.pairs) * tiles.positions;
  return true;
}

/* A warp writes its 16 packed rows from `first` on, those before `end`: acc times a scale for each
 * of the thread's two, through its own rows of a tile in shared memory. */
__device__ __forceinline__ void hopper_store(unsigned char *own, bf16_t *to, int64_t stride,
                                             const attention_rows_t &rows, int first, int end,
                                             const float (&acc)[32], float scale0, float scale1) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int n = 0; n < 8; n++) {
    *(uint32_t *)(own + tile_chunk<64>(g, n) + t * 4) =
        tile_pair(acc[4 * n] * scale0, acc[4 * n + 1] * scale0);
    *(uint32_t *)(own + tile_chunk<64>(8 + g, n) + t * 4) =
        tile_pair(acc[4 * n + 2] * scale1, acc[4 * n + 3] * scale1);
  }
  __syncwarp();
#pragma unroll
  for (int x = 0; x < 4; x++) {
    int row = x * 4 + lane / 8, chunk = lane % 8;
    uint4 numbers = *(const uint4 *)(own + tile_chunk<64>(row, chunk));
    if (first + row < end)
      *(uint4 *)(to + rows_at(rows, first + row, stride, 64) + chunk * 8) = numbers;
  }
}

#endif

#endif
