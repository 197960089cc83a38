/* Tiles of bf16 or fp16 (T) in shared memory and products of 16 x 8 x 16 by tensor cores
 * (mma.m16n8k16).
 *
 * A tile has rows of D numbers, a multiple of 32, of which those behind the head dim are zeros:
 * they add nothing to a product and are not stored. Rows are a multiple of 128 bytes apart; the
 * 16-byte chunks of row r lie at chunk ^ (r & 7), so that the eight rows of an 8 x 8 matrix meet
 * all banks once. In a fragment, lane = 4 g + t
 * holds of A (rows g, g + 8; columns 2t, 2t + 1, and 8 more), of B the same of its transpose, and
 * of a result c[0], c[1]: row g, columns 2t, 2t + 1; c[2], c[3]: row g + 8. The result of one
 * product is thus the A of the next without a move between lanes. */
#ifndef NN_CUDA_ATTENTION_TILE_CUH
#define NN_CUDA_ATTENTION_TILE_CUH

#include "attention/rows.cuh"

enum { TILE_THREADS = 128, TILE_WARPS = 4 };

/* run(attention_columns<D>()): D columns are those of the compiled kernels that a head takes. */
template <typename Run>
static inline void tile_by_head(int64_t head_dim, Run run) {
  if (head_dim <= 32)
    run(attention_columns<32>());
  else if (head_dim <= 64)
    run(attention_columns<64>());
  else if (head_dim <= 96)
    run(attention_columns<96>());
  else if (head_dim <= 128)
    run(attention_columns<128>());
  else if (head_dim <= 192)
    run(attention_columns<192>());
  else
    run(attention_columns<256>());
}

/* Bytes from a row to the next. */
template <int D>
constexpr uint32_t tile_pitch = (D + 63) / 64 * 128;

/* ---- instructions ---------------------------------------------------------------------------- */

__device__ __forceinline__ uint32_t tile_address(const void *shared) {
  return (uint32_t)__cvta_generic_to_shared(shared);
}

/* 16 bytes to shared memory, or 16 zeros. */
__device__ __forceinline__ void tile_copy(uint32_t to, const void *from, bool take) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(take ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void tile_copy_end() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
__device__ __forceinline__ void tile_copy_wait() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}

template <typename T>
__device__ __forceinline__ void tile_mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  half_multiply<T>(c, a[0], a[1], a[2], a[3], b0, b1);
}

__device__ __forceinline__ float tile_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* Over the four lanes that share rows of a result. */
__device__ __forceinline__ float tile_row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float tile_row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

/* ---- fragments ------------------------------------------------------------------------------- */

/* Byte offset of this lane's row for ldmatrix, of 16 rows x 16 columns at row 0 and column 0.
 * Columns 16 k are tile_columns(offset, k); rows 16 k are offset + 16 * k * tile_pitch<D>. By rows:
 * matrices are rows 0-7, rows 8-15, and the same of the right half: A's order, and that of B stored
 * [k, n], read transposed. By columns: left, right of rows 0-7, then of rows 8-15: two of B stored
 * [n, k]. */
template <int D>
__device__ __forceinline__ uint32_t tile_by_rows() {
  uint32_t lane = threadIdx.x & 31;
  return (lane & 15) * tile_pitch<D> + (((lane >> 4) ^ (lane & 7)) << 4);
}
template <int D>
__device__ __forceinline__ uint32_t tile_by_columns() {
  uint32_t lane = threadIdx.x & 31;
  return ((lane >> 4) * 8 + (lane & 7)) * tile_pitch<D> + ((((lane >> 3) & 1) ^ (lane & 7)) << 4);
}

/* 64 columns on are 128 bytes on; within these, k turns the swizzled chunks. */
__device__ __forceinline__ uint32_t tile_columns(uint32_t at, int k) {
  return (at ^ (k % 4 << 5)) + k / 4 * 128;
}

/* A of 16 M rows x D from shared memory. */
template <int D, int M>
__device__ __forceinline__ void tile_load_a(uint32_t (&a)[D / 16][M][4], uint32_t tile) {
#pragma unroll
  for (int k = 0; k < D / 16; k++)
#pragma unroll
    for (int m = 0; m < M; m++)
      half_matrices(a[k][m], tile + tile_columns(tile_by_rows<D>(), k) + m * 16 * tile_pitch<D>);
}

/* s += a b^T: a 16 M rows in registers, b 16 N rows in shared memory, both of D columns. */
template <typename T, int D, int M, int N>
__device__ __forceinline__ void tile_dot(float (&s)[M][2 * N][4], const uint32_t (&a)[D / 16][M][4],
                                         uint32_t b) {
#pragma unroll
  for (int k = 0; k < D / 16; k++)
#pragma unroll
    for (int n = 0; n < N; n++) {
      uint32_t y[4];
      half_matrices(y, b + tile_columns(tile_by_columns<D>(), k) + n * 16 * tile_pitch<D>);
#pragma unroll
      for (int m = 0; m < M; m++) {
        tile_mma<T>(s[m][2 * n], a[k][m], y[0], y[1]);
        tile_mma<T>(s[m][2 * n + 1], a[k][m], y[2], y[3]);
      }
    }
}

/* The same with a in shared memory. */
template <typename T, int D, int M, int N>
__device__ __forceinline__ void tile_dot_shared(float (&s)[M][2 * N][4], uint32_t a, uint32_t b) {
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint32_t x[M][4];
#pragma unroll
    for (int m = 0; m < M; m++)
      half_matrices(x[m], a + tile_columns(tile_by_rows<D>(), k) + m * 16 * tile_pitch<D>);
#pragma unroll
    for (int n = 0; n < N; n++) {
      uint32_t y[4];
      half_matrices(y, b + tile_columns(tile_by_columns<D>(), k) + n * 16 * tile_pitch<D>);
#pragma unroll
      for (int m = 0; m < M; m++) {
        tile_mma<T>(s[m][2 * n], x[m], y[0], y[1]);
        tile_mma<T>(s[m][2 * n + 1], x[m], y[2], y[3]);
      }
    }
  }
}

/* acc += p b: p 16 M rows x 16 columns, results of a product, rounded to T; b 16 rows of D in
 * shared memory. `first`: which 16 columns of s are p. */
template <typename T, int D, int M, int N>
__device__ __forceinline__ void tile_add(float (&acc)[M][D / 8][4], const float (&s)[M][2 * N][4],
                                         int first, uint32_t b) {
  uint32_t p[M][4];
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      p[m][2 * half] = half_pair<T>(s[m][2 * first + half][0], s[m][2 * first + half][1]);
      p[m][2 * half + 1] = half_pair<T>(s[m][2 * first + half][2], s[m][2 * first + half][3]);
    }
#pragma unroll
  for (int n = 0; n < D / 16; n++) {
    uint32_t y[4];
    half_matrices<true>(y, b + tile_columns(tile_by_rows<D>(), n));
#pragma unroll
    for (int m = 0; m < M; m++) {
      tile_mma<T>(acc[m][2 * n], p[m], y[0], y[1]);
      tile_mma<T>(acc[m][2 * n + 1], p[m], y[2], y[3]);
    }
  }
}

template <int M, int N>
__device__ __forceinline__ void tile_zero(float (&acc)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int x = 0; x < 4; x++) acc[m][n][x] = 0;
}

/* ---- tiles from and to device memory, by all TILE_THREADS threads ---------------------------- */

template <int D>
__device__ __forceinline__ uint32_t tile_chunk(int row, int chunk) {
  return row * tile_pitch<D> + ((chunk ^ (row & 7)) << 4);
}

/* ROWS rows, `dim` numbers of each: at(row) is where it begins, NULL for zeros. ANEW: what follows
 * from the thread is not kept in registers from one tile to the next. */
template <int D, int ROWS, bool ANEW, typename At>
__device__ __forceinline__ void tile_load_at(uint32_t tile, int dim, const void *any, At at) {
  constexpr int chunks = D / 8;
  static_assert(ROWS * chunks % TILE_THREADS == 0, "all threads have the same number of them");
  int thread = (int)threadIdx.x;
  if constexpr (ANEW) asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
#pragma unroll
  for (int x = 0; x < ROWS * chunks / TILE_THREADS; x++) {
    int i = thread, row = i / chunks + x * (TILE_THREADS / chunks), chunk = i % chunks;
    if constexpr (TILE_THREADS % chunks != 0)
      i += x * TILE_THREADS, row = i / chunks, chunk = i % chunks;
    auto from = at(row);
    bool take = from && chunk * 8 < dim;
    tile_copy(tile + tile_chunk<D>(row, chunk), take ? (const void *)(from + chunk * 8) : any,
              take);
  }
}

/* Rows first .. first + ROWS of a matrix with stride ld; zeros from row `end` on. */
template <int D, int ROWS, bool ANEW = false, typename T>
__device__ __forceinline__ void tile_load(uint32_t tile, const T *from, int64_t ld, int dim,
                                          int first, int end) {
  tile_load_at<D, ROWS, ANEW>(tile, dim, from, [&](int row) {
    return first + row < end ? from + (first + row) * ld : NULL;
  });
}

/* Packed rows first .. first + ROWS; zeros behind the last. */
template <int D, int ROWS, typename T>
__device__ __forceinline__ void tile_load_rows(uint32_t tile, const T *from, int64_t stride,
                                               int dim, const attention_rows_t &rows, int first) {
  tile_load_at<D, ROWS, false>(tile, dim, from, [&](int row) {
    return first + row < rows.count ? from + rows_at(rows, first + row, stride, dim) : NULL;
  });
}

/* One warp writes its 16 M packed rows from `first` on, acc times scale[m][row half], through its
 * own rows of a tile. */
template <int D, int M, typename T>
__device__ __forceinline__ void tile_store_rows(unsigned char *tile, T *to, int64_t stride, int dim,
                                                const attention_rows_t &rows, int first,
                                                const float (&acc)[M][D / 8][4],
                                                const float (&scale)[M][2]) {
  constexpr int chunks = D / 8;
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint32_t pair = half_pair<T>(acc[m][n][2 * half] * scale[m][half],
                                  acc[m][n][2 * half + 1] * scale[m][half]);
        *(uint32_t *)(tile + tile_chunk<D>(m * 16 + half * 8 + g, n) + t * 4) = pair;
      }
  __syncwarp();
#pragma unroll
  for (int x = 0; x < M * 16 * chunks / 32; x++) {
    int row = (x * 32 + lane) / chunks, chunk = (x * 32 + lane) % chunks;
    if (first + row < rows.count && chunk * 8 < dim)
      *(uint4 *)(to + rows_at(rows, first + row, stride, dim) + chunk * 8) =
          *(const uint4 *)(tile + tile_chunk<D>(row, chunk));
  }
}

#endif
