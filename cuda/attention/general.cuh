/* Tiles of fp32 in shared memory for attention of any shape and either dtype, by 256 threads as 16
 * x 16: thread (y, x) has rows y + 16 r of one side and rows x + 16 c of the other, or numbers 4 x
 * + 64 c .. + 3 of the head dim. The sixteen threads of a y are half a warp. D is the head dim
 * rounded up to 64, 128 or 256; numbers behind the head dim are zeros. */
#ifndef NN_CUDA_ATTENTION_GENERAL_CUH
#define NN_CUDA_ATTENTION_GENERAL_CUH

#include "attention/rows.cuh"

enum { GENERAL_THREADS = 256 };

/* Of a row of a tile: rows are 16-byte aligned, and eight of them meet different banks. */
template <int D>
constexpr int general_pitch = D + 4;

/* A matrix tile of N rows in device memory becomes fp32: at(row) is where a row begins, NULL for
 * zeros. vector: rows are whole aligned 16 bytes. */
template <typename T, int D, int N, typename At>
__device__ __forceinline__ void general_load(float *to, int dim, int vector, At at) {
  constexpr int width = vec_t<T>::width, chunks = D / width;
#pragma unroll 4
  for (int i = 0; i < N * chunks; i += GENERAL_THREADS) { /* a count that is known ahead */
    int x = i + (int)threadIdx.x, row = x / chunks, d = x % chunks * width;
    if (N * chunks % GENERAL_THREADS && x >= N * chunks) break;
    const T *from = at(row);
    float *out = to + row * general_pitch<D> + d;
    vec_t<T> y;
    if (vector && from && d < dim) {
      y = vec_load(from + d);
    } else {
#pragma unroll
      for (int i = 0; i < width; i++)
        y.at[i] = from && d + i < dim ? from[d + i] : from_float<T>(0);
    }
#pragma unroll
    for (int i = 0; i < width; i += 4)
      *(float4 *)(out + i) = make_float4(to_float(y.at[i]), to_float(y.at[i + 1]),
                                         to_float(y.at[i + 2]), to_float(y.at[i + 3]));
  }
}

/* s[r][c] = <row y + 16 r of a, row x + 16 c of b>, summed in order. */
template <int D, int R, int C>
__device__ __forceinline__ void general_dot(float (&s)[R][C], const float *a, const float *b,
                                            int dim) {
  constexpr int pitch = general_pitch<D>;
  a += threadIdx.x / 16 * pitch, b += threadIdx.x % 16 * pitch;
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int c = 0; c < C; c++) s[r][c] = 0;
#pragma unroll 2
  for (int d = 0; d < dim; d += 4) {
    float4 y[C];
#pragma unroll
    for (int c = 0; c < C; c++) y[c] = *(const float4 *)(b + c * 16 * pitch + d);
#pragma unroll
    for (int r = 0; r < R; r++) {
      float4 x = *(const float4 *)(a + r * 16 * pitch + d);
#pragma unroll
      for (int c = 0; c < C; c++) {
        s[r][c] = fmaf(x.x, y[c].x, s[r][c]);
        s[r][c] = fmaf(x.y, y[c].y, s[r][c]);
        s[r][c] = fmaf(x.z, y[c].z, s[r][c]);
        s[r][c] = fmaf(x.w, y[c].w, s[r][c]);
      }
    }
  }
}

/* The weights of rows y + 16 r to shared memory [16 R][16 C + 4]; only the half warp of y reads
 * them. */
template <int R, int C>
__device__ __forceinline__ void general_put(float *p, const float (&s)[R][C]) {
  __syncwarp(); /* what was there has been read */
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int c = 0; c < C; c++)
      p[(threadIdx.x / 16 + r * 16) * (16 * C + 4) + threadIdx.x % 16 + c * 16] = s[r][c];
  __syncwarp();
}

/* acc[r] += sum over the other side's rows, in order, of p[y + 16 r][row] * b[row]. */
template <int D, int R, int C>
__device__ __forceinline__ void general_add(float4 (&acc)[R][D / 64], const float *p,
                                            const float *b) {
  constexpr int pitch = general_pitch<D>;
  p += threadIdx.x / 16 * (16 * C + 4), b += threadIdx.x % 16 * 4;
#pragma unroll 2
  for (int j = 0; j < 16 * C; j += 4) {
    float4 x[R];
#pragma unroll
    for (int r = 0; r < R; r++) x[r] = *(const float4 *)(p + r * 16 * (16 * C + 4) + j);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int c = 0; c < D / 64; c++) {
        float4 y = *(const float4 *)(b + (j + i) * pitch + c * 64);
#pragma unroll
        for (int r = 0; r < R; r++) {
          float w = i == 0 ? x[r].x : i == 1 ? x[r].y : i == 2 ? x[r].z : x[r].w;
          acc[r][c].x = fmaf(w, y.x, acc[r][c].x);
          acc[r][c].y = fmaf(w, y.y, acc[r][c].y);
          acc[r][c].z = fmaf(w, y.z, acc[r][c].z);
          acc[r][c].w = fmaf(w, y.w, acc[r][c].w);
        }
      }
  }
}

template <int R, int C>
__device__ __forceinline__ void general_zero(float4 (&acc)[R][C]) {
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int c = 0; c < C; c++) acc[r][c] = make_float4(0, 0, 0, 0);
}

/* This thread's numbers of one row, times scale, to where the row lies. */
template <typename T, int D>
__device__ __forceinline__ void general_store(T *to, const float4 (&acc)[D / 64], int dim,
                                              float scale) {
#pragma unroll
  for (int c = 0; c < D / 64; c++) {
    const float y[4] = {acc[c].x, acc[c].y, acc[c].z, acc[c].w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int d = threadIdx.x % 16 * 4 + c * 64 + i;
      if (d < dim) to[d] = from_float<T>(y[i] * scale);
    }
  }
}

/* Over the sixteen threads of a y, the same in all. */
__device__ __forceinline__ float general_row_sum(float x) {
#pragma unroll
  for (int step = 8; step; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ __forceinline__ float general_row_max(float x) {
#pragma unroll
  for (int step = 8; step; step >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

#endif
