/* The product of sm_90a whose results are gradients of weights: dw of grouped.h; accumulates. K
 * goes over an expert's rows in order; the sum is added to the gradient once, in fp32, so that
 * nothing depends on the order of tiles. An expert without rows has no tiles. */
#include "sm90.cuh"

/* Blocks along K before a tile's end during which the old gradient is brought into L2. */
enum { WEIGHTS_PREFETCH = 16 };

enum { WEIGHTS_GATE, WEIGHTS_UP, WEIGHTS_DOWN };

typedef struct weights_tile {
  int expert;
  int begin, end; /* the expert's rows */
  int matrix;     /* WEIGHTS_ */
  int m, n;       /* first row and column in the matrix */
} weights_tile_t;

/* A and B are both MN-major: rows of dpre and x, or of dy and act. */
struct weights_dw {
  struct args_t {
    CUtensorMap dpre, x, dy, act;
    const int32_t *offset;
    int experts, hidden, ffn;
    int64_t stride;
    float *gradient[3]; /* by WEIGHTS_ */
  };
  typedef weights_tile_t tile_t;
  static constexpr bool a_mn_major = true, b_mn_major = true, k_grouped = true;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  /* The shorter side goes first, so that the other operand's columns come from memory once. */
  static __device__ __forceinline__ bool find(const args_t &args, sm90_walk_t *walk, int t,
                                              weights_tile_t *tile) {
    int f_tall = (args.ffn + SM90_M - 1) / SM90_M, h_wide = (args.hidden + SM90_N - 1) / SM90_N;
    int h_tall = (args.hidden + SM90_M - 1) / SM90_M, f_wide = (args.ffn + SM90_N - 1) / SM90_N;
    int gate = f_tall * h_wide, all = 2 * gate + h_tall * f_wide;
    for (; walk->expert < args.experts; walk->expert++) {
      tile->begin = __ldg(args.offset + walk->expert);
      tile->end = __ldg(args.offset + walk->expert + 1);
      if (tile->begin >= tile->end) continue;
      int at = t - walk->first;
      if (at >= all) {
        walk->first += all;
        continue;
      }
      tile->expert = walk->expert;
      tile->matrix = min(at / gate, (int)WEIGHTS_DOWN);
      at -= tile->matrix * gate;
      bool down = tile->matrix == WEIGHTS_DOWN;
      tile->m = (down ? at % h_tall : at / h_wide) * SM90_M;
      tile->n = (down ? at / h_tall : at % h_wide) * SM90_N;
      return true;
    }
    return false;
  }

  static __device__ __forceinline__ int blocks(const args_t &, const weights_tile_t &tile) {
    return (tile.end - tile.begin + SM90_K - 1) / SM90_K;
  }

  static __device__ __forceinline__ int valid(const weights_tile_t &tile, int block) {
    return tile.end - tile.begin - block * SM90_K;
  }

  static __device__ __forceinline__ int rows(const args_t &args, const weights_tile_t &tile) {
    return tile.matrix == WEIGHTS_DOWN ? args.hidden : args.ffn;
  }

  static __device__ __forceinline__ int cols(const args_t &args, const weights_tile_t &tile) {
    return tile.matrix == WEIGHTS_DOWN ? args.ffn : args.hidden;
  }

  static __device__ __forceinline__ float *gradient(const args_t &args,
                                                    const weights_tile_t &tile) {
    float *first = tile.matrix == WEIGHTS_GATE ? args.gradient[WEIGHTS_GATE]
                   : tile.matrix == WEIGHTS_UP ? args.gradient[WEIGHTS_UP]
                                               : args.gradient[WEIGHTS_DOWN];
    return first + tile.expert * args.stride;
  }

  static __device__ __forceinline__ void load(const args_t &args, const weights_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    bool down = tile.matrix == WEIGHTS_DOWN;
    const CUtensorMap &a = down ? args.dy : args.dpre, &b = down ? args.act : args.x;
    int row = tile.begin + block * SM90_K, part = tile.matrix == WEIGHTS_UP;
#pragma unroll
    for (int box = 0; box < SM90_M / 64; box++)
      sm90_copy(a, stage + box * SM90_BOX_BYTES, barrier, tile.m + 64 * box, part, row);
#pragma unroll
    for (int box = 0; box < SM90_N / 64; box++)
      sm90_copy(b, stage + SM90_A_BYTES + box * SM90_BOX_BYTES, barrier, tile.n + 64 * box, 0, row);
    prefetch(args, tile, block);
  }

  /* A share of the old gradient's rows, over the last blocks. */
  static __device__ __forceinline__ void prefetch(const args_t &args, const weights_tile_t &tile,
                                                  int block) {
    int count = blocks(args, tile), over = min(count, (int)WEIGHTS_PREFETCH);
    int share = (SM90_M + over - 1) / over, at = (block - (count - over)) * share;
    if (at < 0) return;
    int tall = min(min(at + share, (int)SM90_M), rows(args, tile) - tile.m);
    int wide = cols(args, tile), bytes = min((int)SM90_N, wide - tile.n) * (int)sizeof(float);
    const float *from = gradient(args, tile) + (int64_t)tile.m * wide + tile.n;
    for (; at < tall; at++) sm90_prefetch_bytes(from + (int64_t)at * wide, bytes);
  }

  static __device__ __forceinline__ void early(const args_t &, const weights_tile_t &, int,
                                               const sm90_room_t &) {}

  /* Of two blocks of 8 columns an even thread takes 4 columns of the first, its odd neighbour those
   * of the second. */
  static __device__ __forceinline__ float4 four(const float *first, const float *second, bool odd) {
    float x = __shfl_xor_sync(0xffffffffu, odd ? first[0] : second[0], 1);
    float y = __shfl_xor_sync(0xffffffffu, odd ? first[1] : second[1], 1);
    return odd ? make_float4(x, y, second[0], second[1]) : make_float4(first[0], first[1], x, y);
  }

  static __device__ __forceinline__ void finish(const args_t &args, const weights_tile_t &tile,
                                                int thread, const sm90_room_t &,
                                                const float (&d)[128]) {
    const int batch = 8; /* loads under way at once */
    int wide = cols(args, tile), quad = thread % 4;
    int col = tile.n + 8 * (quad & 1) + 2 * (quad & 2);
#pragma unroll
    for (int part = 0; part < 4; part++) {
      int half = part / 2, j = part % 2 * 2 * batch;
      int row = tile.m + thread / 32 * 16 + thread % 32 / 4 + 8 * half;
      bool inside = row < rows(args, tile);
      float *to = gradient(args, tile) + (int64_t)row * wide + col + 8 * j;
      float4 old[batch];
#pragma unroll
      for (int i = 0; i < batch; i++)
        if (inside && col + 8 * j + 16 * i < wide)
          old[i] = __ldcs(reinterpret_cast<const float4 *>(to + 16 * i));
#pragma unroll
      for (int i = 0; i < batch; i++) {
        const float *at = d + 4 * (j + 2 * i) + 2 * half;
        float4 sum = four(at, at + 4, quad & 1);
        if (!inside || col + 8 * j + 16 * i >= wide) continue;
        sum.x += old[i].x;
        sum.y += old[i].y;
        sum.z += old[i].z;
        sum.w += old[i].w;
        __stcs(reinterpret_cast<float4 *>(to + 16 * i), sum);
      }
    }
  }
#endif
};

static nn_status_t weights_map(backend_device_t *device, const grouped_t *grouped, const void *base,
                               int64_t parts, int64_t cols, CUtensorMap *map) {
  sm90_tensor_t tensor = sm90_activations(base, grouped->rows, parts, cols, SM90_K);
  return sm90_map(device, "experts", &tensor, map);
}

nn_status_t sm90_dw(backend_device_t *device, const grouped_t *grouped, const grouped_dw_t *dw) {
  if (!grouped->rows) return NN_OK;
  int64_t h = grouped->hidden, f = grouped->ffn;
  weights_dw::args_t args;
  args.offset = grouped->offset;
  args.experts = (int)grouped->experts;
  args.hidden = (int)h;
  args.ffn = (int)f;
  args.stride = grouped->stride;
  args.gradient[WEIGHTS_GATE] = dw->dgate;
  args.gradient[WEIGHTS_UP] = dw->dup;
  args.gradient[WEIGHTS_DOWN] = dw->ddown;
  CUDA_TRY(weights_map(device, grouped, dw->dpre, 2, f, &args.dpre));
  CUDA_TRY(weights_map(device, grouped, dw->x, 1, h, &args.x));
  CUDA_TRY(weights_map(device, grouped, dw->dy, 1, h, &args.dy));
  CUDA_TRY(weights_map(device, grouped, dw->act, 1, f, &args.act));
  int64_t tiles = 2 * cuda_blocks(f, SM90_M) * cuda_blocks(h, SM90_N) +
                  cuda_blocks(h, SM90_M) * cuda_blocks(f, SM90_N);
  return sm90_launch<weights_dw>(device, "experts", args, tiles * grouped->experts);
}
