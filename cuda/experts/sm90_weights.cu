/* The product of sm_90a whose results are gradients of weights: dw of grouped.h. K goes over an
 * expert's rows in order; the sum is added to the gradient once, or becomes it, in fp32, by the
 * copy engine, so that nothing depends on the order of tiles. An expert without rows has no
 * tiles. */
#include "sm90.cuh"

enum { WEIGHTS_GATE, WEIGHTS_UP, WEIGHTS_DOWN };

typedef struct weights_tile {
  int expert;
  int begin, end; /* the expert's rows */
  int matrix;     /* WEIGHTS_ */
  int m, n;       /* first row and column in the matrix */
} weights_tile_t;

/* A and B are both MN-major: rows of dpre and x, or of dy and act. */
template <typename T>
struct weights_dw {
  typedef T element;
  struct args_t {
    CUtensorMap dpre, x, dy, act;
    const int32_t *offset;
    int experts, hidden, ffn;
    CUtensorMap gradient[3]; /* by WEIGHTS_ */
    int assign;
  };
  typedef weights_tile_t tile_t;
  static constexpr int columns = 256, behind = 2;
  static constexpr bool a_mn_major = true, b_mn_major = true, k_grouped = true, staged = false;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  /* The shorter side goes first, so that the other operand's columns come from memory once. */
  static __device__ __forceinline__ bool find(const args_t &args, sm90_walk_t *walk, int t,
                                              weights_tile_t *tile) {
    const int tall = SM90_PAIR * SM90_M;
    int f_tall = (args.ffn + tall - 1) / tall, h_wide = (args.hidden + columns - 1) / columns;
    int h_tall = (args.hidden + tall - 1) / tall, f_wide = (args.ffn + columns - 1) / columns;
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
      tile->m = (down ? at % h_tall : at / h_wide) * tall + sm90_rank() * SM90_M;
      tile->n = (down ? at / h_tall : at % h_wide) * columns;
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

  static __device__ __forceinline__ void load(const args_t &args, const weights_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    bool down = tile.matrix == WEIGHTS_DOWN;
    const CUtensorMap &a = down ? args.dy : args.dpre, &b = down ? args.act : args.x;
    int row = tile.begin + block * SM90_K, part = tile.matrix == WEIGHTS_UP;
#pragma unroll
    for (int box = 0; box < SM90_M / 64; box++)
      hopper_copy(a, stage + box * SM90_BOX_BYTES, barrier, tile.m + 64 * box, part, row);
    const int boxes = columns / 64 / SM90_PAIR;
    int first = sm90_rank() * boxes;
#pragma unroll
    for (int box = first; box < first + boxes; box++)
      hopper_copy_to_both(b, stage + SM90_A_BYTES + box * SM90_BOX_BYTES, barrier,
                          tile.n + 64 * box, 0, row);
  }

  /* Of two blocks of 8 columns an even thread takes 4 columns of the first, its odd neighbour those
   * of the second. */
  static __device__ __forceinline__ uint4 four(const float *first, const float *second, bool odd) {
    float x = __shfl_xor_sync(0xffffffffu, odd ? first[0] : second[0], 1);
    float y = __shfl_xor_sync(0xffffffffu, odd ? first[1] : second[1], 1);
    float4 v = make_float4(x, y, second[0], second[1]);
    if (!odd) v = make_float4(first[0], first[1], x, y);
    return *reinterpret_cast<uint4 *>(&v);
  }

  /* By boxes of 32 columns. */
  static __device__ __forceinline__ void finish(const args_t &args, const weights_tile_t &tile,
                                                int thread, sm90_state_t &state,
                                                const float (&d)[128]) {
    const CUtensorMap &to = args.gradient[tile.matrix];
    uint32_t lane = thread % 32, odd = lane & 1, block = 2 * odd + (lane & 2) / 2;
    int row = tile.m + thread / 32 * SM90_OUT_ROWS;
#pragma unroll
    for (int j = 0; j < columns / 8; j += 4) {
      uint32_t box = state.room + state.box;
      state.box ^= SM90_OUT_BYTES;
      if (lane == 0) hopper_store_wait<1>();
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int half = i / 2, pair = i % 2;
        const float *at = d + 4 * (j + 2 * pair) + 2 * half;
        uint32_t to_row = box + half * 1024 + lane / 4 * 128;
        sm90_put(to_row + (((block + 4 * pair) ^ (lane / 4)) << 4), four(at, at + 4, odd));
      }
      hopper_fence();
      __syncwarp();
      if (lane == 0) {
        if (args.assign)
          hopper_store(to, box, tile.n + 8 * j, row, tile.expert);
        else
          hopper_store_add(to, box, tile.n + 8 * j, row, tile.expert);
        hopper_store_commit();
      }
    }
  }
#endif
};

static nn_status_t weights_map(backend_device_t *device, const grouped_t *grouped, const void *base,
                               int64_t parts, int64_t cols, CUtensorMap *map) {
  hopper_tensor_t tensor = sm90_activations(base, grouped->rows, parts, cols, SM90_K);
  return hopper_map(device, "experts", &tensor, map);
}

static nn_status_t weights_gradient(backend_device_t *device, const grouped_t *grouped, float *base,
                                    int64_t rows, int64_t cols, int64_t apart, CUtensorMap *map) {
  hopper_tensor_t tensor = sm90_gradients(grouped, base, rows, cols, apart);
  return hopper_map(device, "experts", &tensor, map);
}

template <typename T>
static nn_status_t weights_run(backend_device_t *device, const grouped_t *grouped,
                               const grouped_dw_t *dw) {
  int64_t h = grouped->hidden, f = grouped->ffn, apart = grouped->apart;
  typename weights_dw<T>::args_t args;
  args.offset = grouped->offset, args.assign = dw->assign;
  args.experts = (int)grouped->experts;
  args.hidden = (int)h;
  args.ffn = (int)f;
  CUDA_TRY(weights_map(device, grouped, dw->dpre, 2, f, &args.dpre));
  CUDA_TRY(weights_map(device, grouped, dw->x, 1, h, &args.x));
  CUDA_TRY(weights_map(device, grouped, dw->dy, 1, h, &args.dy));
  CUDA_TRY(weights_map(device, grouped, dw->act, 1, f, &args.act));
  CUtensorMap *gradient = args.gradient;
  CUDA_TRY(weights_gradient(device, grouped, dw->dgate, f, h, apart, &gradient[WEIGHTS_GATE]));
  CUDA_TRY(weights_gradient(device, grouped, dw->dup, f, h, apart, &gradient[WEIGHTS_UP]));
  CUDA_TRY(weights_gradient(device, grouped, dw->ddown, h, f, 1, &gradient[WEIGHTS_DOWN]));
  const int tall = SM90_PAIR * SM90_M, wide = weights_dw<T>::columns;
  int64_t pairs = 2 * cuda_blocks(f, tall) * cuda_blocks(h, wide) +
                  cuda_blocks(h, tall) * cuda_blocks(f, wide);
  return sm90_launch<weights_dw<T>>(device, "experts", args, pairs * grouped->experts);
}

nn_status_t sm90_dw(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                    const grouped_dw_t *dw) {
  if (!grouped->rows) return NN_OK;
  return CUDA_BY_HALF(dtype, weights_run, device, grouped, dw);
}
