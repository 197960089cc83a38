/* The products of sm_90a whose results are rows: up, down, dact and dx of grouped.h; assigns. A
 * tile is 128 rows of one expert; where the expert has fewer, the rows of the next ones are
 * multiplied too and not stored. Sums run along K in order. */
#include "grouped.cuh"
#include "sm90.cuh"

/* Pairs of tiles, one above the other, that share the weights of a wave in L2. */
enum { ROWS_BAND = 8, ROWS_PAIR = SM90_PAIR * SM90_M };

typedef struct rows_shape {
  const int32_t *offset;
  int experts, hidden, ffn;
  int across; /* tiles along N */
  int blocks; /* along K */
} rows_shape_t;

typedef struct rows_tile {
  int expert;
  int row, end; /* the tile's first row, maybe at the end; behind the expert's last */
  int across;
} rows_tile_t;

/* Where results go: [rows, parts, cols], and the same as a tensor of a warp's boxes. */
typedef struct rows_matrix {
  CUtensorMap map;
  uint16_t *base; /* NULL: nowhere */
  int parts, cols;
} rows_matrix_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* An expert's pairs in bands of rows; within a band rows rise first. */
__device__ __forceinline__ bool rows_find(const rows_shape_t &shape, sm90_walk_t *walk, int t,
                                          rows_tile_t *tile) {
  for (; walk->expert < shape.experts; walk->expert++) {
    int begin = __ldg(shape.offset + walk->expert), end = __ldg(shape.offset + walk->expert + 1);
    int down = (end - begin + ROWS_PAIR - 1) / ROWS_PAIR, at = t - walk->first;
    if (at >= down * shape.across) {
      walk->first += down * shape.across;
      continue;
    }
    int band = at / (ROWS_BAND * shape.across) * ROWS_BAND, height = min(ROWS_BAND, down - band);
    at -= band * shape.across;
    tile->expert = walk->expert;
    tile->row = begin + (band + at % height) * ROWS_PAIR + sm90_rank() * SM90_M;
    tile->end = end;
    tile->across = at / height;
    return true;
  }
  return false;
}

/* The warp's first row of the tile's rows from `top` on. */
__device__ __forceinline__ int rows_first(const rows_tile_t &tile, int thread, int top) {
  return tile.row + top + thread / 32 * SM90_OUT_ROWS;
}

/* Issues the store of a box after rows_written; columns from col on of a part. Rows of the next
 * expert are left as they are: where a box has some, threads store the others one by one. */
__device__ __forceinline__ void rows_send(const rows_matrix_t &to, const rows_tile_t &tile,
                                          int thread, int top, uint32_t box, int part, int col) {
  int row = rows_first(tile, thread, top), left = tile.end - row, lane = (int)sm90_lane();
  if (left >= SM90_OUT_ROWS) {
    if (lane == 0) hopper_store(to.map, box, col, part, row);
  } else {
#pragma unroll 1
    for (int r = lane / 8; r < left; r += 4) {
      int block = lane % 8;
      uint4 v = sm90_get(box + r * 128 + ((block ^ (r % 8)) << 4));
      if (col + 8 * block < to.cols)
        *reinterpret_cast<uint4 *>(to.base + ((int64_t)(row + r) * to.parts + part) * to.cols +
                                   col + 8 * block) = v;
    }
  }
}

/* What the warp has written to boxes may be sent. */
__device__ __forceinline__ void rows_written() {
  hopper_fence();
  __syncwarp();
}

/* What was sent since the last time is a group. */
__device__ __forceinline__ void rows_sent(int thread) {
  if (thread % 32 == 0) hopper_store_commit();
}

/* Returns once all but the newest `left` groups have been read from boxes. */
template <int left>
__device__ __forceinline__ void rows_wait(int thread) {
  if (thread % 32 == 0) hopper_store_wait<left>();
  __syncwarp();
}

/* The next of the warp's boxes, which the newest group does not have. */
__device__ __forceinline__ uint32_t rows_box(sm90_state_t &state, int thread) {
  uint32_t box = state.room + state.box;
  state.box ^= SM90_OUT_BYTES;
  rows_wait<1>(thread);
  return box;
}

/* Sums of 64 columns as results of T. */
template <typename T>
__device__ __forceinline__ void rows_put(const rows_matrix_t &to, const rows_tile_t &tile,
                                         int thread, int top, sm90_state_t &state, const float *d,
                                         int part, int col) {
  uint32_t box = rows_box(state, thread);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int half = i / 2, piece = i % 2;
    uint32_t w[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const float *pair = d + 4 * (4 * piece + k) + 2 * half;
      w[k] = half_pair<T>(pair[0], pair[1]);
    }
    sm90_put_fragment(sm90_fragment(box, half, piece), w);
  }
  rows_written();
  rows_send(to, tile, thread, top, box, part, col);
  rows_sent(thread);
}

/* A whole tile of 256 columns. */
template <typename T>
__device__ __forceinline__ void rows_put_tile(const rows_matrix_t &to, const rows_tile_t &tile,
                                              int thread, sm90_state_t &state,
                                              const float (&d)[128]) {
#pragma unroll
  for (int box = 0; box < 4; box++)
    rows_put<T>(to, tile, thread, 0, state, d + 32 * box, 0, tile.across * 256 + 64 * box);
}

#endif

/* What every product here has. */
template <typename T>
struct rows_base {
  typedef T element;
  typedef rows_tile_t tile_t;
  static constexpr bool a_mn_major = false, k_grouped = false;
  static constexpr int columns = 256, behind = 1;
  static constexpr bool staged = false;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  template <typename A>
  static __device__ __forceinline__ bool find(const A &args, sm90_walk_t *walk, int t,
                                              rows_tile_t *tile) {
    return rows_find(args.shape, walk, t, tile);
  }
  template <typename A>
  static __device__ __forceinline__ int blocks(const A &args, const rows_tile_t &) {
    return args.shape.blocks;
  }
  static __device__ __forceinline__ int valid(const rows_tile_t &, int) { return SM90_K; }
#endif
};

/* ---- up -------------------------------------------------------------------------------------- */

/* A tile's 128 columns are 64 of gate and the same 64 of up, so that a thread has both sums. PLAIN:
 * without limit and biases. */
template <typename T, bool PLAIN>
struct rows_up : rows_base<T> {
  struct args_t {
    CUtensorMap x, gate, up;
    rows_shape_t shape;
    rows_matrix_t pre, act;
    grouped_t grouped; /* its limit and biases */
  };
  static constexpr int columns = 128, width = columns / 2, behind = 0;
  static constexpr bool b_mn_major = false;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static __device__ __forceinline__ void load(const args_t &args, const rows_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    int k = block * SM90_K, half = sm90_rank();
    hopper_copy(args.x, stage, barrier, k, 0, tile.row);
    hopper_copy_to_both(half ? args.up : args.gate, stage + SM90_A_BYTES + half * SM90_BOX_BYTES,
                        barrier, k, tile.across * width, tile.expert);
  }

  static __device__ __forceinline__ void put_act(const args_t &args, const rows_tile_t &tile,
                                                 int thread, int top, sm90_state_t &state,
                                                 const float *gate, const float *up, int col) {
    uint32_t w[4][4];
    float limit = PLAIN ? 0 : args.grouped.limit;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int at = 4 * (i % 8) + 2 * (i / 8);
      float a0 = glu_act<true>(gate[at], up[at], limit);
      float a1 = glu_act<true>(gate[at + 1], up[at + 1], limit);
      w[i / 8 * 2 + i % 8 / 4][i % 4] = half_pair<T>(a0, a1);
    }
    uint32_t box = rows_box(state, thread);
#pragma unroll
    for (int i = 0; i < 4; i++) sm90_put_fragment(sm90_fragment(box, i / 2, i % 2), w[i]);
    rows_written();
    rows_send(args.act, tile, thread, top, box, 0, col);
    rows_sent(thread);
  }

  static __device__ __forceinline__ void add_biases(const args_t &args, const rows_tile_t &tile,
                                                    float (&d)[128]) {
    int first = tile.across * width + 2 * (int)(sm90_lane() % 4);
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int at = 4 * (i / 2) + i % 2;
      int column = first + 8 * (i / 2) + i % 2;
      if (column >= args.shape.ffn) continue;
      float2 bias = grouped_biases<T>(args.grouped, tile.expert, column);
#pragma unroll
      for (int row = 0; row < 4; row++) { /* of the thread's */
        const int from = at + row / 2 * 64 + row % 2 * 2;
        d[from] += bias.x, d[from + 32] += bias.y;
      }
    }
  }

  static __device__ __forceinline__ void finish(const args_t &args, const rows_tile_t &tile,
                                                int thread, sm90_state_t &state, float (&d)[128]) {
    if (!PLAIN && args.grouped.gate_bias) add_biases(args, tile, d);
#pragma unroll
    for (int top = 0; top < SM90_M; top += 64) {
      const float *gate = d + top, *up = gate + 32;
      int col = tile.across * width;
      if (args.pre.base) {
        rows_put<T>(args.pre, tile, thread, top, state, gate, 0, col);
        rows_put<T>(args.pre, tile, thread, top, state, up, 1, col);
      }
      if (args.act.base) put_act(args, tile, thread, top, state, gate, up, col);
    }
  }
#endif
};

/* ---- down ------------------------------------------------------------------------------------ */

template <typename T>
struct rows_down : rows_base<T> {
  struct args_t {
    CUtensorMap act, down;
    rows_shape_t shape;
    rows_matrix_t y;
  };
  static constexpr int columns = rows_base<T>::columns;
  static constexpr bool b_mn_major = false;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static __device__ __forceinline__ void load(const args_t &args, const rows_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    int k = block * SM90_K, half = sm90_rank();
    hopper_copy(args.act, stage, barrier, k, 0, tile.row);
    hopper_copy_to_both(args.down, stage + SM90_A_BYTES + half * (columns / 128) * SM90_BOX_BYTES,
                        barrier, k, tile.across * columns + half * (columns / 2), tile.expert);
  }

  static __device__ __forceinline__ void finish(const args_t &args, const rows_tile_t &tile,
                                                int thread, sm90_state_t &state,
                                                const float (&d)[128]) {
    rows_put_tile<T>(args.y, tile, thread, state, d);
  }
#endif
};

/* Copies the block's half of the columns from n on, of 64 rows from k on of an expert's matrix. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <int columns>
__device__ __forceinline__ void rows_load_mn_major(const CUtensorMap &map, uint32_t to,
                                                   uint32_t barrier, int n, int k, int expert) {
  const int boxes = columns / 64 / SM90_PAIR;
  int first = sm90_rank() * boxes;
#pragma unroll
  for (int box = first; box < first + boxes; box++)
    hopper_copy_to_both(map, to + box * SM90_BOX_BYTES, barrier, n + 64 * box, k, expert);
}
#endif

/* ---- dact ------------------------------------------------------------------------------------ */

/* pre comes by boxes of 64 columns of g and the same of u, over which the epilogue writes its
 * results and stores them from there. PLAIN: without a limit. */
template <typename T, bool PLAIN>
struct rows_dact : rows_base<T> {
  struct args_t {
    CUtensorMap dy, down;
    CUtensorMap pre_in; /* in boxes of a whole tile's rows */
    rows_shape_t shape;
    const float *weight;
    rows_matrix_t pre, act;
    float *dot;
    float limit;
  };
  static constexpr int columns = 128, behind = 0;
  static constexpr bool b_mn_major = true, staged = true;
  static_assert(columns == GROUPED_SLICE, "a tile has one slice of dot");

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static __device__ __forceinline__ void load(const args_t &args, const rows_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    int n = tile.across * columns, k = block * SM90_K;
    hopper_copy(args.dy, stage, barrier, k, 0, tile.row);
    rows_load_mn_major<columns>(args.down, stage + SM90_A_BYTES, barrier, n, k, tile.expert);
  }

  static __device__ __forceinline__ void load_staged(const args_t &args, const rows_tile_t &tile,
                                                     int part, uint32_t at, uint32_t barrier) {
    int n = tile.across * columns + 64 * part;
    hopper_copy(args.pre_in, at, barrier, n, 0, tile.row);
    hopper_copy(args.pre_in, at + 2 * SM90_BOX_BYTES, barrier, n, 1, tile.row);
  }

  /* Two columns: g and u become dg and du; returns weight a, packed, and adds to dot. */
  static __device__ __forceinline__ uint32_t derive(float limit, float weight, const float *d,
                                                    uint32_t *gate, uint32_t *up, float *dot) {
    float2 g = half_unpack<T>(*gate), u = half_unpack<T>(*up), by_g, by_u;
    if (!PLAIN) __builtin_assume(limit != 0);
    float a0 = glu_slopes<true>(g.x, u.x, limit, &by_g.x, &by_u.x);
    float a1 = glu_slopes<true>(g.y, u.y, limit, &by_g.y, &by_u.y);
    float da0 = weight * d[0], da1 = weight * d[1];
    *dot += d[0] * a0;
    *dot += d[1] * a1;
    *gate = half_pair<T>(da0 * by_g.x, da1 * by_g.y);
    *up = half_pair<T>(da0 * by_u.x, da1 * by_u.y);
    return half_pair<T>(weight * a0, weight * a1);
  }

  /* The warp's boxes of 64 columns; d: of their sums. */
  static __device__ __forceinline__ void derive_boxes(uint32_t gate_box, uint32_t up_box,
                                                      uint32_t act_box, float limit,
                                                      const float *d, const float *weight,
                                                      float *dot) {
    uint32_t gate[4][4], up[4][4], act[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t at = sm90_fragment(0, i / 2, i % 2);
      half_matrices(gate[i], gate_box + at);
      half_matrices(up[i], up_box + at);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int half = i / 8, j = i % 8;
      act[i / 4][j % 4] = derive(limit, weight[half], d + 4 * j + 2 * half, &gate[i / 4][j % 4],
                                 &up[i / 4][j % 4], &dot[half]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t at = sm90_fragment(0, i / 2, i % 2);
      sm90_put_fragment(gate_box + at, gate[i]);
      sm90_put_fragment(up_box + at, up[i]);
      sm90_put_fragment(act_box + at, act[i]);
    }
  }

  static __device__ __forceinline__ void finish(const args_t &args, const rows_tile_t &tile,
                                                int thread, sm90_state_t &state,
                                                const float (&d)[128]) {
    int n = tile.across * columns, row = rows_first(tile, thread, 0) + thread % 32 / 4;
    float dot[4] = {0, 0, 0, 0}; /* of the thread's rows */
    uint32_t warp_at = thread / 32 * SM90_OUT_BYTES;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int part = i / 2, m = i % 2;
      if (m == 0)
        hopper_wait(sm90_staged_full<rows_dact>(state.ring, state.tile, part),
                    state.tile / 2 & 1);
      uint32_t gate = sm90_staged_at<rows_dact>(state.ring, part) + m * SM90_BOX_BYTES + warp_at;
      uint32_t up = gate + 2 * SM90_BOX_BYTES, act = rows_box(state, thread);
      /* the first part's groups are the last but one and before */
      if (i == 3 && thread % 32 == 0)
        hopper_arrive_at(sm90_staged_empty<rows_dact>(state.ring, 0), sm90_rank());
      float weight[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        int at = row + 64 * m + 8 * j;
        weight[j] = at < tile.end ? __ldg(args.weight + at) : 0;
      }
      derive_boxes(gate, up, act, PLAIN ? 0 : args.limit, d + 64 * m + 32 * part, weight,
                   dot + 2 * m);
      rows_written();
      rows_send(args.pre, tile, thread, 64 * m, gate, 0, n + 64 * part);
      rows_send(args.pre, tile, thread, 64 * m, up, 1, n + 64 * part);
      rows_send(args.act, tile, thread, 64 * m, act, 0, n + 64 * part);
      rows_sent(thread);
    }
    int slices = (args.shape.ffn + GROUPED_SLICE - 1) / GROUPED_SLICE;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int at = row + 64 * (i / 2) + 8 * (i % 2);
      dot[i] += __shfl_xor_sync(0xffffffffu, dot[i], 1);
      dot[i] += __shfl_xor_sync(0xffffffffu, dot[i], 2);
      if (thread % 4 == 0 && at < tile.end)
        args.dot[(int64_t)at * slices + tile.across] = dot[i];
    }
    rows_wait<0>(thread);
    if (thread % 32 == 0)
      hopper_arrive_at(sm90_staged_empty<rows_dact>(state.ring, 1), sm90_rank());
  }
#endif
};

/* ---- dx -------------------------------------------------------------------------------------- */

/* K is gate's F, then up's, each in blocks of its own. */
template <typename T>
struct rows_dx : rows_base<T> {
  struct args_t {
    CUtensorMap dpre, gate, up;
    rows_shape_t shape;
    rows_matrix_t dx;
  };
  static constexpr int columns = rows_base<T>::columns;
  static constexpr bool b_mn_major = true;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static __device__ __forceinline__ void load(const args_t &args, const rows_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    int blocks = args.shape.blocks / 2, part = block >= blocks;
    int k = (block - part * blocks) * SM90_K;
    hopper_copy(args.dpre, stage, barrier, k, part, tile.row);
    rows_load_mn_major<columns>(part ? args.up : args.gate, stage + SM90_A_BYTES, barrier,
                                tile.across * columns, k, tile.expert);
  }

  static __device__ __forceinline__ void finish(const args_t &args, const rows_tile_t &tile,
                                                int thread, sm90_state_t &state,
                                                const float (&d)[128]) {
    rows_put_tile<T>(args.dx, tile, thread, state, d);
  }
#endif
};

/* ---- host ------------------------------------------------------------------------------------ */

static rows_shape_t rows_make_shape(const grouped_t *grouped, int64_t across, int64_t blocks) {
  return {grouped->offset,    (int)grouped->experts, (int)grouped->hidden,
          (int)grouped->ffn, (int)across,           (int)blocks};
}

static int64_t rows_pairs(const grouped_t *grouped, int64_t across) {
  return (grouped->rows / ROWS_PAIR + grouped->experts) * across;
}

static nn_status_t rows_map(backend_device_t *device, const hopper_tensor_t &tensor,
                            CUtensorMap *map) {
  return hopper_map(device, "experts", &tensor, map);
}

static nn_status_t rows_result(backend_device_t *device, const grouped_t *grouped, void *base,
                               int64_t parts, int64_t cols, rows_matrix_t *matrix) {
  matrix->base = (uint16_t *)base;
  matrix->parts = (int)parts;
  matrix->cols = (int)cols;
  if (!base) return NN_OK;
  return rows_map(device, sm90_activations(base, grouped->rows, parts, cols, SM90_OUT_ROWS),
                  &matrix->map);
}

template <typename P>
static nn_status_t rows_run_up_as(backend_device_t *device, const grouped_t *grouped,
                                  const grouped_up_t *up) {
  int64_t h = grouped->hidden, f = grouped->ffn, apart = grouped->apart;
  int64_t across = cuda_blocks(f, P::width);
  typename P::args_t args;
  args.shape = rows_make_shape(grouped, across, cuda_blocks(h, SM90_K));
  args.grouped = *grouped;
  CUDA_TRY(rows_map(device, sm90_activations(up->x, grouped->rows, 1, h, SM90_M), &args.x));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, up->gate, f, h, apart, P::width), &args.gate));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, up->up, f, h, apart, P::width), &args.up));
  CUDA_TRY(rows_result(device, grouped, up->pre, 2, f, &args.pre));
  CUDA_TRY(rows_result(device, grouped, up->act, 1, f, &args.act));
  return sm90_launch<P>(device, "experts", args, rows_pairs(grouped, across));
}

template <typename T>
static nn_status_t rows_run_up(backend_device_t *device, const grouped_t *grouped,
                               const grouped_up_t *up) {
  if (grouped->limit == 0 && !grouped->gate_bias)
    return rows_run_up_as<rows_up<T, true>>(device, grouped, up);
  return rows_run_up_as<rows_up<T, false>>(device, grouped, up);
}

template <typename T>
static nn_status_t rows_run_down(backend_device_t *device, const grouped_t *grouped,
                                 const grouped_down_t *down) {
  int64_t h = grouped->hidden, f = grouped->ffn, across = cuda_blocks(h, rows_down<T>::columns);
  int half = rows_down<T>::columns / SM90_PAIR;
  typename rows_down<T>::args_t args;
  args.shape = rows_make_shape(grouped, across, cuda_blocks(f, SM90_K));
  CUDA_TRY(rows_map(device, sm90_activations(down->act, grouped->rows, 1, f, SM90_M), &args.act));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, down->down, h, f, 1, half), &args.down));
  CUDA_TRY(rows_result(device, grouped, down->y, 1, h, &args.y));
  return sm90_launch<rows_down<T>>(device, "experts", args, rows_pairs(grouped, across));
}

template <typename P>
static nn_status_t rows_run_dact_as(backend_device_t *device, const grouped_t *grouped,
                                    const grouped_dact_t *dact) {
  int64_t h = grouped->hidden, f = grouped->ffn, across = cuda_blocks(f, P::columns);
  typename P::args_t args;
  args.shape = rows_make_shape(grouped, across, cuda_blocks(h, SM90_K));
  args.weight = dact->weight;
  args.dot = dact->dot;
  args.limit = grouped->limit;
  CUDA_TRY(rows_map(device, sm90_activations(dact->dy, grouped->rows, 1, h, SM90_M), &args.dy));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, dact->down, h, f, 1, SM90_K), &args.down));
  CUDA_TRY(rows_map(device, sm90_activations(dact->pre, grouped->rows, 2, f, SM90_M),
                    &args.pre_in));
  CUDA_TRY(rows_result(device, grouped, dact->pre, 2, f, &args.pre));
  CUDA_TRY(rows_result(device, grouped, dact->act, 1, f, &args.act));
  return sm90_launch<P>(device, "experts", args, rows_pairs(grouped, across));
}

template <typename T>
static nn_status_t rows_run_dact(backend_device_t *device, const grouped_t *grouped,
                                 const grouped_dact_t *dact) {
  if (grouped->limit == 0)
    return rows_run_dact_as<rows_dact<T, true>>(device, grouped, dact);
  return rows_run_dact_as<rows_dact<T, false>>(device, grouped, dact);
}

template <typename T>
static nn_status_t rows_run_dx(backend_device_t *device, const grouped_t *grouped,
                               const grouped_dx_t *dx) {
  int64_t h = grouped->hidden, f = grouped->ffn, apart = grouped->apart;
  int64_t across = cuda_blocks(h, rows_dx<T>::columns);
  typename rows_dx<T>::args_t args;
  args.shape = rows_make_shape(grouped, across, 2 * cuda_blocks(f, SM90_K));
  CUDA_TRY(rows_map(device, sm90_activations(dx->dpre, grouped->rows, 2, f, SM90_M), &args.dpre));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, dx->gate, f, h, apart, SM90_K), &args.gate));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, dx->up, f, h, apart, SM90_K), &args.up));
  CUDA_TRY(rows_result(device, grouped, dx->dx, 1, h, &args.dx));
  return sm90_launch<rows_dx<T>>(device, "experts", args, rows_pairs(grouped, across));
}

nn_status_t sm90_up(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                    const grouped_up_t *up) {
  if (!grouped->rows) return NN_OK;
  return CUDA_BY_HALF(dtype, rows_run_up, device, grouped, up);
}

nn_status_t sm90_down(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                      const grouped_down_t *down) {
  if (!grouped->rows) return NN_OK;
  return CUDA_BY_HALF(dtype, rows_run_down, device, grouped, down);
}

nn_status_t sm90_dact(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                      const grouped_dact_t *dact) {
  if (!grouped->rows) return NN_OK;
  return CUDA_BY_HALF(dtype, rows_run_dact, device, grouped, dact);
}

nn_status_t sm90_dx(backend_device_t *device, int32_t dtype, const grouped_t *grouped,
                    const grouped_dx_t *dx) {
  if (!grouped->rows) return NN_OK;
  return CUDA_BY_HALF(dtype, rows_run_dx, device, grouped, dx);
}
