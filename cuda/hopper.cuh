/* PTX of sm_90a in one place: barriers in shared memory, the bulk copy engine, and products by
 * warpgroups (wgmma) with their operands in shared memory.
 *
 * Addresses are of shared memory. Operands lie in rows of 128 bytes with the 128-byte swizzle, from
 * a multiple of 1024 on: K-major (a row is 64 numbers along K) or MN-major (a row is 64 along M or
 * N, one row a k), groups of 8 rows following one another. Tensor maps: hopper.h. */
#ifndef NN_CUDA_HOPPER_CUH
#define NN_CUDA_HOPPER_CUH

#include "hopper.h"
#include "kernel.cuh"

enum {
  HOPPER_GROUP = 128, /* threads of a warpgroup */
  HOPPER_ROW_BYTES = 128,
  HOPPER_ALIGN = 1024
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* ---- barriers -------------------------------------------------------------------------------- */

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

/* At the barrier of the same place in the block `rank` of the cluster. */
__device__ __forceinline__ void hopper_arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
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

__device__ __forceinline__ void hopper_named_arrive(int name, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

__device__ __forceinline__ void hopper_named_sync(int name, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

/* All threads of the cluster. */
__device__ __forceinline__ void hopper_cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/* Makes the thread's reads and writes of shared memory known to the copy engine and to products,
 * before what they do there. */
__device__ __forceinline__ void hopper_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The registers of each thread of a warpgroup from here on, a multiple of 8. */
template <int count>
__device__ __forceinline__ void hopper_give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
__device__ __forceinline__ void hopper_take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* Has a map at hand before the first copy. */
__device__ __forceinline__ void hopper_prefetch(const CUtensorMap &map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

/* Copies the box at these coordinates; what is outside of the tensor becomes 0 and counts as bytes
 * all the same. */
__device__ __forceinline__ void hopper_copy(const CUtensorMap &map, uint32_t to, uint32_t barrier,
                                            int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

/* The same of what is not read again soon: it leaves the second-level cache first. */
__device__ __forceinline__ void hopper_copy_once(const CUtensorMap &map, uint32_t to,
                                                 uint32_t barrier, int c0, int c1, int c2) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void hopper_copy(const CUtensorMap &map, uint32_t to, uint32_t barrier,
                                            int c0, int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

/* The same to the same place in both blocks of a cluster of two, whose barriers both count it. */
__device__ __forceinline__ void hopper_copy_to_both(const CUtensorMap &map, uint32_t to,
                                                    uint32_t barrier, int c0, int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "h"((uint16_t)3)
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

/* Stores the part of a box that is inside of the tensor. */
__device__ __forceinline__ void hopper_store(const CUtensorMap &map, uint32_t from, int c0, int c1,
                                             int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(
          &map),
      "r"(from), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

/* Adds it to what is there. */
__device__ __forceinline__ void hopper_store_add(const CUtensorMap &map, uint32_t from, int c0,
                                                 int c1, int c2) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group"
      " [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(from), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

__device__ __forceinline__ void hopper_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Returns once all but the newest `left` groups of the thread's stores have read shared memory. */
template <int left>
__device__ __forceinline__ void hopper_store_wait() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(left) : "memory");
}

/* ---- products -------------------------------------------------------------------------------- */

/* The descriptor of an operand. chunk_bytes: MN-major, from 64 along M or N to the next 64; 16
 * where there are none. 16 more along K are HOPPER_NEXT_K further in a K-major operand, and
 * HOPPER_NEXT_ROWS in an MN-major one. */
enum { HOPPER_NEXT_K = 32 >> 4, HOPPER_NEXT_ROWS = 16 * HOPPER_ROW_BYTES >> 4 };

__device__ __forceinline__ uint64_t hopper_operand(uint32_t address, uint32_t chunk_bytes) {
  const uint64_t swizzle_128 = 1ull << 62, eight_rows = (uint64_t)(1024 >> 4) << 32;
  return swizzle_128 | eight_rows | (uint64_t)(chunk_bytes >> 4) << 16 | (address & 0x3ffff) >> 4;
}

/* Of an operand without a swizzle: core matrices, 8 rows of 16 bytes each, that follow one another
 * in so many bytes along K, and along M or N. */
__device__ __forceinline__ uint64_t hopper_core_operand(uint32_t address, uint32_t next_k,
                                                        uint32_t next_rows) {
  return (uint64_t)(next_rows >> 4) << 32 | (uint64_t)(next_k >> 4) << 16 |
         (address & 0x3ffff) >> 4;
}

/* A product of T, bf16 or fp16. shape: the instruction's; adds: the operand that says whether d is
 * added; body: the operands; behind it what asm is told of them. */
#define HOPPER_MULTIPLY(T, shape, adds, body, ...)               \
  if constexpr (half_is_f16<T>)                                  \
    HOPPER_WGMMA(shape ".f32.f16.f16 ", adds, body, __VA_ARGS__); \
  else                                                           \
    HOPPER_WGMMA(shape ".f32.bf16.bf16 ", adds, body, __VA_ARGS__)
#define HOPPER_WGMMA(kind, adds, body, ...)                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " adds ", 0;\n"         \
               "wgmma.mma_async.sync.aligned." kind body ";\n}" __VA_ARGS__)

#define HOPPER_TIED8(d, i)                                                                    \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

/* d = a b (+ d where add): 64 rows of as many columns as the name says, with 16 along K. Thread t
 * of the warpgroup holds in d[4 j + i] the row 16 (t / 32) + t % 32 / 4 + 8 (i / 2) and the column
 * 8 j + 2 (t % 4) + i % 2. */
template <typename T, bool a_mn_major, bool b_mn_major>
__device__ __forceinline__ void hopper_multiply_256(float *d, uint64_t a, uint64_t b, int add) {
  HOPPER_MULTIPLY(
      T, "m64n256k16", "%130",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127}, "
      "%128, %129, p, 1, 1, %131, %132",
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24),
        HOPPER_TIED8(d, 32), HOPPER_TIED8(d, 40), HOPPER_TIED8(d, 48), HOPPER_TIED8(d, 56),
        HOPPER_TIED8(d, 64), HOPPER_TIED8(d, 72), HOPPER_TIED8(d, 80), HOPPER_TIED8(d, 88),
        HOPPER_TIED8(d, 96), HOPPER_TIED8(d, 104), HOPPER_TIED8(d, 112), HOPPER_TIED8(d, 120)
      : "l"(a), "l"(b), "r"(add), "n"(a_mn_major ? 1 : 0), "n"(b_mn_major ? 1 : 0));
}

template <typename T, bool a_mn_major, bool b_mn_major>
__device__ __forceinline__ void hopper_multiply_128(float *d, uint64_t a, uint64_t b, int add) {
  HOPPER_MULTIPLY(
      T, "m64n128k16", "%66",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, p, 1, 1, %67, %68",
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24),
        HOPPER_TIED8(d, 32), HOPPER_TIED8(d, 40), HOPPER_TIED8(d, 48), HOPPER_TIED8(d, 56)
      : "l"(a), "l"(b), "r"(add), "n"(a_mn_major ? 1 : 0), "n"(b_mn_major ? 1 : 0));
}

template <typename T, bool a_mn_major, bool b_mn_major>
__device__ __forceinline__ void hopper_multiply_96(float *d, uint64_t a, uint64_t b, int add) {
  HOPPER_MULTIPLY(
      T, "m64n96k16", "%50",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47}, "
      "%48, %49, p, 1, 1, %51, %52",
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24),
        HOPPER_TIED8(d, 32), HOPPER_TIED8(d, 40)
      : "l"(a), "l"(b), "r"(add), "n"(a_mn_major ? 1 : 0), "n"(b_mn_major ? 1 : 0));
}

template <typename T, bool a_mn_major, bool b_mn_major>
__device__ __forceinline__ void hopper_multiply_64(float *d, uint64_t a, uint64_t b, int add) {
  HOPPER_MULTIPLY(
      T, "m64n64k16", "%34",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, p, 1, 1, %35, %36",
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24)
      : "l"(a), "l"(b), "r"(add), "n"(a_mn_major ? 1 : 0), "n"(b_mn_major ? 1 : 0));
}

template <typename T, bool a_mn_major, bool b_mn_major>
__device__ __forceinline__ void hopper_multiply_48(float *d, uint64_t a, uint64_t b, int add) {
  HOPPER_MULTIPLY(
      T, "m64n48k16", "%26",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23}, "
      "%24, %25, p, 1, 1, %27, %28",
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16)
      : "l"(a), "l"(b), "r"(add), "n"(a_mn_major ? 1 : 0), "n"(b_mn_major ? 1 : 0));
}

template <typename T, bool a_mn_major, bool b_mn_major>
__device__ __forceinline__ void hopper_multiply_16(float *d, uint64_t a, uint64_t b, int add) {
  HOPPER_MULTIPLY(T, "m64n16k16", "%10",
                  "{%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, %11, %12",
                  : HOPPER_TIED8(d, 0)
                  : "l"(a), "l"(b), "r"(add), "n"(a_mn_major ? 1 : 0), "n"(b_mn_major ? 1 : 0));
}

/* The same with a, 64 x 16, in registers: a[0] and a[1] are where d[0], d[1] and d[2], d[3] would
 * be, packed; a[2] and a[3] the same of 8 columns further. b: MN-major. */
template <typename T>
__device__ __forceinline__ void hopper_multiply_64_registers(float *d, const uint32_t *a,
                                                             uint64_t b, int add) {
  HOPPER_MULTIPLY(
      T, "m64n64k16", "%37",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, 1",
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

template <typename T>
__device__ __forceinline__ void hopper_multiply_128_registers(float *d, const uint32_t *a,
                                                              uint64_t b, int add) {
  HOPPER_MULTIPLY(
      T, "m64n128k16", "%69",
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, p, 1, 1, 1",
      : HOPPER_TIED8(d, 0), HOPPER_TIED8(d, 8), HOPPER_TIED8(d, 16), HOPPER_TIED8(d, 24),
        HOPPER_TIED8(d, 32), HOPPER_TIED8(d, 40), HOPPER_TIED8(d, 48), HOPPER_TIED8(d, 56)
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

/* Of one number: what follows from it is computed behind this place, and not kept from before. */
__device__ __forceinline__ void hopper_hold(uint32_t &x) { asm volatile("" : "+r"(x)::"memory"); }

#endif

#endif
