/* Tiles of 128 by 128 sums, made by 256 threads of 8 by 8 each, for portable.cu: by tensor cores
 * from 16 bits in whole vectors (mma_tile), or by fused multiply-adds for any type, size and
 * alignment (fma_tile). A thread's columns 4 to 7 lie 64 right of its columns 0 to 3. Each sum runs
 * over k in order: 16 at a time, within which the order is the tensor core's, or one by one. */
#ifndef NN_CUDA_PORTABLE_TILE_CUH
#define NN_CUDA_PORTABLE_TILE_CUH

#include "kernel.cuh"

enum { PORTABLE_TILE = 128, PORTABLE_HALF = 64, PORTABLE_THREADS = 256 };

/* One side of a tile: 128 lines, the first `lines` of which exist (others count as zero), by k.
 * Inner: element k of line i is at[i * ld + k]; otherwise at[k * ld + i]. With halves, lines 64 to
 * 127 are the lines 0 to 63 of `also`; without, `also` is what the second segment of k reads. */
template <typename T>
struct panel_t {
  const T *at, *also;
  int64_t ld;
  int32_t lines;
};

/* The panel's part from k on, of one segment. */
template <bool INNER, bool HALVES, typename T>
__device__ __forceinline__ panel_t<T> panel_from(const panel_t<T> &panel, bool second, int32_t k) {
  panel_t<T> part = panel;
  int64_t by = INNER ? k : k * panel.ld;
  part.at = (second && !HALVES ? panel.also : panel.at) + by;
  if (HALVES) part.also = panel.also + by;
  return part;
}

/* Stores columns that lie side by side; left: how many columns exist from the first on. A tile in
 * pairs has all or none of the two, at an address fit for both. */
__device__ __forceinline__ void pair_store(float *to, float a, float b) {
  *reinterpret_cast<float2 *>(to) = make_float2(a, b);
}
template <typename T>
__device__ __forceinline__ void pair_store(T *to, float a, float b) {
  *reinterpret_cast<uint32_t *>(to) = half_pair<T>(a, b);
}
template <class Tile, typename T>
__device__ __forceinline__ void pair_put(T *to, int64_t left, float a, float b) {
  if (Tile::pairs) {
    if (left > 0) pair_store(to, a, b);
  } else {
    if (left > 0) to[0] = from_float<T>(a);
    if (left > 1) to[1] = from_float<T>(b);
  }
}

/* Loads two such columns, 0 where there is none. */
__device__ __forceinline__ float2 pair_load(const float *from) {
  return *reinterpret_cast<const float2 *>(from);
}
template <typename T>
__device__ __forceinline__ float2 pair_load(const T *from) {
  return half_unpack<T>(*reinterpret_cast<const uint32_t *>(from));
}
template <class Tile, typename T>
__device__ __forceinline__ float2 pair_get(const T *from, int64_t left) {
  float2 v = make_float2(0, 0);
  if (Tile::pairs) {
    if (left > 0) v = pair_load(from);
  } else {
    if (left > 0) v.x = to_float(from[0]);
    if (left > 1) v.y = to_float(from[1]);
  }
  return v;
}

/* ---- tensor cores ---------------------------------------------------------------------------- */

/* Eight warps, two down and four across: a warp has 64 rows by 16 columns of either half. A stage
 * holds 32 of k: lines of k (inner) or lines along the panel, padded so that the eight rows of a
 * fragment lie in different banks. */
template <typename T>
struct mma_tile {
  typedef T element;
  static constexpr bool pairs = true;
  static constexpr int blocks = 2; /* at once on a multiprocessor */
  static constexpr int lanes_across = 4, warps_across = 4;
  static constexpr int depth = 32, stages = 3, inner_ld = depth + 8, outer_ld = PORTABLE_TILE + 8;
  static constexpr int panel_bytes = PORTABLE_TILE * inner_ld * 2;
  static constexpr int shared_bytes = stages * 2 * panel_bytes;
  static_assert(depth * outer_ld <= PORTABLE_TILE * inner_ld, "either layout fits a panel");

  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int across() { return threadIdx.x >> 5 & 3; }
  static __device__ __forceinline__ int down() { return threadIdx.x >> 7; }
  static __device__ __forceinline__ int row(int i) {
    return down() * 64 + (i >> 1) * 16 + (i & 1) * 8 + (lane() >> 2);
  }
  static __device__ __forceinline__ int column(int j) {
    return (j >> 2) * PORTABLE_HALF + across() * 16 + (j >> 1 & 1) * 8 + (lane() & 3) * 2 + (j & 1);
  }

  /* Bytes from a panel's start in shared memory. */
  template <bool INNER>
  static __device__ __forceinline__ uint32_t place(int line, int k) {
    return 2 * (INNER ? line * inner_ld + k : k * outer_ld + line);
  }

  /* Starts the copy of a panel's next 32 of k, k_left of which exist; what does not becomes 0. */
  template <bool INNER, bool HALVES>
  static __device__ __forceinline__ void fetch(uint32_t to, const panel_t<T> &panel,
                                               int32_t k_left) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int chunk = threadIdx.x + i * PORTABLE_THREADS;
      int line = INNER ? chunk >> 2 : (chunk & 15) * 8, k = INNER ? (chunk & 3) * 8 : chunk >> 4;
      uint32_t at = to + place<INNER>(line, k);
      bool other = HALVES && line >= PORTABLE_HALF;
      int from = HALVES ? line & (PORTABLE_HALF - 1) : line;
      bool inside = from < panel.lines && k < k_left;
      const T *source = other ? panel.also : panel.at;
      if (inside) source += INNER ? from * panel.ld + k : k * panel.ld + from;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at),
                   "l"(__cvta_generic_to_global(source)), "r"(inside ? 16 : 0)
                   : "memory");
    }
  }

  static __device__ __forceinline__ void multiply(float &c0, float &c1, float &c2, float &c3,
                                                  const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
    half_multiply<T>(c0, c1, c2, c3, a[0], a[1], a[2], a[3], b0, b1);
  }

  /* One stage: a and b are its panels in shared memory. */
  template <bool A_INNER, bool B_INNER>
  static __device__ __forceinline__ void step(float (&acc)[8][8], uint32_t a, uint32_t b) {
    int l = lane();
    int a_line = down() * 64 + (A_INNER ? l & 15 : l & 8);
    int a_k = (A_INNER ? 0 : l & 7) + (l >> 4) * 8;
    int b_line = across() * 16 + (B_INNER ? l & 7 : 0) + (l >> 4) * 8;
    int b_k = B_INNER ? l & 8 : l & 15;
#pragma unroll
    for (int k = 0; k < depth; k += 16) {
      uint32_t fa[4][4], fb[2][4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        half_matrices<!A_INNER>(fa[i], a + place<A_INNER>(a_line + i * 16, a_k + k));
#pragma unroll
      for (int j = 0; j < 2; j++)
        half_matrices<!B_INNER>(fb[j], b + place<B_INNER>(b_line + j * PORTABLE_HALF, b_k + k));
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          multiply(acc[2 * i][2 * j], acc[2 * i][2 * j + 1], acc[2 * i + 1][2 * j],
                   acc[2 * i + 1][2 * j + 1], fa[i], fb[j >> 1][(j & 1) * 2],
                   fb[j >> 1][(j & 1) * 2 + 1]);
    }
  }

  /* acc += over `segments` runs of k, with three stages in flight. */
  template <class Form>
  static __device__ __forceinline__ void run(char *shared, float (&acc)[8][8],
                                             const panel_t<T> &a, const panel_t<T> &b, int32_t k) {
    uint32_t room = (uint32_t)__cvta_generic_to_shared(shared);
    int32_t once = (k + depth - 1) / depth, steps = once * Form::segments;
    auto start = [&](int32_t step, int stage) {
      if (step < steps) {
        bool second = Form::segments > 1 && step >= once;
        int32_t from = (step - (second ? once : 0)) * depth;
        uint32_t to = room + stage * 2 * panel_bytes;
        fetch<Form::a_inner, false>(to, panel_from<Form::a_inner, false>(a, second, from),
                                    k - from);
        fetch<Form::b_inner, Form::halves>(
            to + panel_bytes, panel_from<Form::b_inner, Form::halves>(b, second, from), k - from);
      }
      asm volatile("cp.async.commit_group;\n" ::: "memory");
    };
    for (int stage = 0; stage < stages - 1; stage++) start(stage, stage);
    int now = 0, next = stages - 1;
    for (int32_t at = 0; at < steps; at++) {
      asm volatile("cp.async.wait_group %0;\n" ::"n"(stages - 2) : "memory");
      __syncthreads(); /* the stage is there for all, and all have left the one that comes next */
      start(at + stages - 1, next);
      uint32_t from = room + now * 2 * panel_bytes;
      step<Form::a_inner, Form::b_inner>(acc, from, from + panel_bytes);
      now = now + 1 < stages ? now + 1 : 0;
      next = next + 1 < stages ? next + 1 : 0;
    }
  }
};

/* ---- fused multiply-adds --------------------------------------------------------------------- */

/* Sixteen by sixteen threads; a stage holds 16 of k as fp32, always with the lines side by side. */
template <typename T>
struct fma_tile {
  typedef T element;
  static constexpr bool pairs = false;
  static constexpr int blocks = 1;
  static constexpr int lanes_across = 16, warps_across = 1;
  static constexpr int depth = 16, ld = PORTABLE_TILE + 4, panel = depth * ld;
  static constexpr int each = PORTABLE_TILE * depth / PORTABLE_THREADS;
  static constexpr int shared_bytes = 2 * 2 * panel * (int)sizeof(float);

  static __device__ __forceinline__ int lane() { return threadIdx.x & 31; }
  static __device__ __forceinline__ int across() { return 0; }
  static __device__ __forceinline__ int row(int i) {
    return (i >> 2) * 64 + (threadIdx.x >> 4) * 4 + (i & 3);
  }
  static __device__ __forceinline__ int column(int j) {
    return (j >> 2) * PORTABLE_HALF + (threadIdx.x & 15) * 4 + (j & 3);
  }

  /* Which element of a panel's stage the thread's i-th is. */
  template <bool INNER>
  static __device__ __forceinline__ void element_of(int i, int *line, int *k) {
    int at = threadIdx.x + i * PORTABLE_THREADS;
    *line = INNER ? at / depth : at % PORTABLE_TILE;
    *k = INNER ? at % depth : at / PORTABLE_TILE;
  }
  template <bool INNER, bool HALVES>
  static __device__ __forceinline__ void fetch(float (&v)[each], const panel_t<T> &panel,
                                               int32_t k_left) {
#pragma unroll
    for (int i = 0; i < each; i++) {
      int line, k;
      element_of<INNER>(i, &line, &k);
      const T *source = HALVES && line >= PORTABLE_HALF ? panel.also : panel.at;
      int from = HALVES ? line & (PORTABLE_HALF - 1) : line;
      v[i] = 0;
      if (from < panel.lines && k < k_left)
        v[i] = to_float(source[INNER ? from * panel.ld + k : k * panel.ld + from]);
    }
  }
  template <bool INNER>
  static __device__ __forceinline__ void keep(float *to, const float (&v)[each]) {
#pragma unroll
    for (int i = 0; i < each; i++) {
      int line, k;
      element_of<INNER>(i, &line, &k);
      to[k * ld + line] = v[i];
    }
  }

  static __device__ __forceinline__ void step(float (&acc)[8][8], const float *a,
                                              const float *b) {
#pragma unroll 4
    for (int k = 0; k < depth; k++) {
      alignas(16) float va[8], vb[8];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        *reinterpret_cast<float4 *>(va + 4 * h) =
            *reinterpret_cast<const float4 *>(a + k * ld + row(4 * h));
        *reinterpret_cast<float4 *>(vb + 4 * h) =
            *reinterpret_cast<const float4 *>(b + k * ld + column(4 * h));
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) acc[i][j] = fmaf(va[i], vb[j], acc[i][j]);
    }
  }

  template <class Form>
  static __device__ __forceinline__ void run(char *shared, float (&acc)[8][8], const panel_t<T> &a,
                                             const panel_t<T> &b, int32_t k) {
    float *room = reinterpret_cast<float *>(shared);
    int32_t once = (k + depth - 1) / depth, steps = once * Form::segments;
    float va[each], vb[each];
    auto load = [&](int32_t step) {
      bool second = Form::segments > 1 && step >= once;
      int32_t from = (step - (second ? once : 0)) * depth;
      fetch<Form::a_inner, false>(va, panel_from<Form::a_inner, false>(a, second, from), k - from);
      fetch<Form::b_inner, Form::halves>(
          vb, panel_from<Form::b_inner, Form::halves>(b, second, from), k - from);
    };
    load(0);
    for (int32_t at = 0; at < steps; at++) {
      float *now = room + (at & 1) * 2 * panel;
      keep<Form::a_inner>(now, va);
      keep<Form::b_inner>(now + panel, vb);
      __syncthreads(); /* the other stage, filled next, was left by all before they came here */
      if (at + 1 < steps) load(at + 1);
      step(acc, now, now + panel);
    }
  }
};

#endif
