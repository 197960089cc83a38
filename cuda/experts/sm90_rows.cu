/* The products of sm_90a whose results are rows: up, down, dact and dx of grouped.h; assigns. A
 * tile is 128 rows of one expert; where the expert has fewer, the rows of the next ones are
 * multiplied too and not stored. Sums run along K in order. */
#include "sm90.cuh"

/* Tiles of rows that share the weights of a wave in L2. */
enum { ROWS_BAND = 16 };

typedef struct rows_shape {
  const int32_t *offset;
  int experts, hidden, ffn;
  int across; /* tiles along N */
  int blocks; /* along K */
} rows_shape_t;

typedef struct rows_tile {
  int expert;
  int row, end; /* the tile's first row; behind the expert's last */
  int across;
} rows_tile_t;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* An expert's tiles in bands of rows; within a band rows rise first. */
__device__ __forceinline__ bool rows_find(const rows_shape_t &shape, sm90_walk_t *walk, int t,
                                          rows_tile_t *tile) {
  for (; walk->expert < shape.experts; walk->expert++) {
    int begin = __ldg(shape.offset + walk->expert), end = __ldg(shape.offset + walk->expert + 1);
    int down = (end - begin + SM90_M - 1) / SM90_M, at = t - walk->first;
    if (at >= down * shape.across) {
      walk->first += down * shape.across;
      continue;
    }
    int band = at / (ROWS_BAND * shape.across) * ROWS_BAND, height = min(ROWS_BAND, down - band);
    at -= band * shape.across;
    tile->expert = walk->expert;
    tile->row = begin + (band + at % height) * SM90_M;
    tile->end = end;
    tile->across = at / height;
    return true;
  }
  return false;
}

/* A thread's columns of one of its two rows (the second is the eighth after the first): 8 of every
 * 32, so that the offset of the i-th is 32 i. Those below left are inside of the matrix and the
 * expert. */
typedef struct rows_span {
  int64_t row;
  int64_t col;
  int left;
} rows_span_t;

__device__ __forceinline__ rows_span_t rows_span(const rows_tile_t &tile, int thread, int half,
                                                 int first, int cols) {
  int col = first + 8 * (thread % 4);
  int64_t row = tile.row + thread / 32 * 16 + thread % 32 / 4 + 8 * half;
  return {row, col, row < tile.end ? cols - col : 0};
}

/* 1 / (1 + e^-g), by approximations within a few units in the last place of fp32. */
__device__ __forceinline__ float rows_sigmoid(float g) {
  float s;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(g * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1 + s));
  return s;
}

/* Two columns of one of the thread's two rows: of the block of 8 columns j. */
__device__ __forceinline__ const float *rows_pair(const float (&d)[128], int j, int half) {
  return d + 4 * j + 2 * half;
}

/* Stores `count` pieces to where the span's columns from offset on lie. */
template <int count>
__device__ __forceinline__ void rows_store(const sm90_room_t &room, int piece, bf16_t *to,
                                           const rows_span_t &span, int offset) {
#pragma unroll
  for (int i = 0; i < count; i++) {
    uint32_t w[4];
    sm90_get_row(room, piece + i, w);
    if (offset + 32 * i < span.left) sm90_store(to + offset + 32 * i, w);
  }
}

/* A whole tile, 256 columns from first on, to the matrix of `cols` columns. */
__device__ __forceinline__ void rows_store_tile(const rows_tile_t &tile, int thread,
                                                const sm90_room_t &room, const float (&d)[128],
                                                bf16_t *to, int first, int cols) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    rows_span_t span = rows_span(tile, thread, half, first, cols);
    __syncwarp();
#pragma unroll
    for (int piece = 0; piece < SM90_PIECES; piece++) {
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float *pair = rows_pair(d, 4 * piece + i, half);
        w[i] = sm90_pack(pair[0], pair[1]);
      }
      sm90_put_fragment(room, piece, w);
    }
    __syncwarp();
    rows_store<SM90_PIECES>(room, 0, to + span.row * cols + span.col, span, 0);
  }
}

#endif

/* What every product here has. */
struct rows_base {
  typedef rows_tile_t tile_t;
  static constexpr bool a_mn_major = false, k_grouped = false;

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
  template <typename A>
  static __device__ __forceinline__ void early(const A &, const rows_tile_t &, int,
                                               const sm90_room_t &) {}
#endif
};

/* Copies 256 columns from n on of 64 rows from k on of an expert's matrix. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
__device__ __forceinline__ void rows_load_mn_major(const CUtensorMap &map, uint32_t to,
                                                   uint32_t barrier, int n, int k, int expert) {
#pragma unroll
  for (int box = 0; box < SM90_N / 64; box++)
    sm90_copy(map, to + box * SM90_BOX_BYTES, barrier, n + 64 * box, k, expert);
}
#endif

/* ---- up -------------------------------------------------------------------------------------- */

/* A tile's 256 columns are 128 of gate and the same 128 of up, so that a thread has both sums. */
struct rows_up : rows_base {
  struct args_t {
    CUtensorMap x, gate, up;
    rows_shape_t shape;
    bf16_t *pre, *act;
  };
  static constexpr bool b_mn_major = false;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static __device__ __forceinline__ void load(const args_t &args, const rows_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    int k = block * SM90_K, f = tile.across * (SM90_N / 2);
    uint32_t b = stage + SM90_A_BYTES;
    sm90_copy(args.x, stage, barrier, k, 0, tile.row);
    sm90_copy(args.gate, b, barrier, k, f, tile.expert);
    sm90_copy(args.up, b + SM90_N / 128 * SM90_BOX_BYTES, barrier, k, f, tile.expert);
  }

  /* One row of the thread. */
  static __device__ __forceinline__ void finish_row(const args_t &args, const rows_tile_t &tile,
                                                    int thread, const sm90_room_t &room,
                                                    const float (&d)[128], int half) {
    int64_t ffn = args.shape.ffn;
    rows_span_t span = rows_span(tile, thread, half, tile.across * (SM90_N / 2), args.shape.ffn);
    uint32_t act[4][4];
    __syncwarp();
#pragma unroll
    for (int piece = 0; piece < 4; piece++) {
      uint32_t gate[4], up[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float *g = rows_pair(d, 4 * piece + i, half);
        const float *u = rows_pair(d, 16 + 4 * piece + i, half);
        gate[i] = sm90_pack(g[0], g[1]);
        up[i] = sm90_pack(u[0], u[1]);
        act[piece][i] =
            sm90_pack(g[0] * rows_sigmoid(g[0]) * u[0], g[1] * rows_sigmoid(g[1]) * u[1]);
      }
      sm90_put_fragment(room, piece, gate);
      sm90_put_fragment(room, 4 + piece, up);
    }
    __syncwarp();
    if (args.pre) {
      bf16_t *pre = args.pre + span.row * 2 * ffn + span.col;
      rows_store<4>(room, 0, pre, span, 0);
      rows_store<4>(room, 4, pre + ffn, span, 0);
      __syncwarp();
    }
    if (!args.act) return;
#pragma unroll
    for (int piece = 0; piece < 4; piece++) sm90_put_fragment(room, piece, act[piece]);
    __syncwarp();
    rows_store<4>(room, 0, args.act + span.row * ffn + span.col, span, 0);
  }

  static __device__ __forceinline__ void finish(const args_t &args, const rows_tile_t &tile,
                                                int thread, const sm90_room_t &room,
                                                const float (&d)[128]) {
    finish_row(args, tile, thread, room, d, 0);
    finish_row(args, tile, thread, room, d, 1);
  }
#endif
};

/* ---- down ------------------------------------------------------------------------------------ */

struct rows_down : rows_base {
  struct args_t {
    CUtensorMap act, down;
    rows_shape_t shape;
    bf16_t *y;
  };
  static constexpr bool b_mn_major = false;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static __device__ __forceinline__ void load(const args_t &args, const rows_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    int k = block * SM90_K;
    sm90_copy(args.act, stage, barrier, k, 0, tile.row);
    sm90_copy(args.down, stage + SM90_A_BYTES, barrier, k, tile.across * SM90_N, tile.expert);
  }

  static __device__ __forceinline__ void finish(const args_t &args, const rows_tile_t &tile,
                                                int thread, const sm90_room_t &room,
                                                const float (&d)[128]) {
    rows_store_tile(tile, thread, room, d, args.y, tile.across * SM90_N, args.shape.hidden);
  }
#endif
};

/* ---- dact ------------------------------------------------------------------------------------ */

/* The epilogue goes by units of one of a thread's two rows and 64 columns: g in two pieces of the
 * room and u in two more. Two units are in the room at a time, and the next is fetched under the
 * work on one. */
enum { DACT_UNITS = 8, DACT_ROW_UNITS = DACT_UNITS / 2, DACT_COLS = 64, DACT_PIECES = 2 };

struct rows_dact : rows_base {
  struct args_t {
    CUtensorMap dy, down;
    CUtensorMap pre; /* only to bring it into L2 */
    rows_shape_t shape;
    const float *weight;
    bf16_t *pre_at, *act;
    float *dot;
  };
  static constexpr bool b_mn_major = true;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static __device__ __forceinline__ void load(const args_t &args, const rows_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    int n = tile.across * SM90_N;
    sm90_copy(args.dy, stage, barrier, block * SM90_K, 0, tile.row);
    rows_load_mn_major(args.down, stage + SM90_A_BYTES, barrier, n, block * SM90_K, tile.expert);
    if (block == 0)
      for (int box = 0; box < 2 * SM90_N / 64; box++)
        sm90_prefetch(args.pre, n + box / 2 * 64, box % 2, tile.row);
  }

  static __device__ __forceinline__ rows_span_t row_span(const args_t &args,
                                                         const rows_tile_t &tile, int thread,
                                                         int half) {
    return rows_span(tile, thread, half, tile.across * SM90_N, args.shape.ffn);
  }

  /* By unit of a row: the offset of its columns; its first piece. */
  static constexpr __device__ int unit_offset(int unit) {
    return unit % DACT_ROW_UNITS * DACT_COLS;
  }
  static constexpr __device__ int unit_piece(int unit) { return unit % 2 * 2 * DACT_PIECES; }

  /* What is not inside becomes 0, and then so do its results. */
  static __device__ __forceinline__ void fetch(const args_t &args, const rows_span_t &span,
                                               const sm90_room_t &room, int unit) {
    const bf16_t *g = args.pre_at + span.row * 2 * args.shape.ffn + span.col;
    const bf16_t *u = g + args.shape.ffn;
#pragma unroll
    for (int i = 0; i < DACT_PIECES; i++) {
      int offset = unit_offset(unit) + 32 * i, piece = unit_piece(unit) + i;
      sm90_fetch_row(room, piece, g + offset, offset < span.left);
      sm90_fetch_row(room, piece + DACT_PIECES, u + offset, offset < span.left);
    }
    sm90_fetch_commit();
  }

  static __device__ __forceinline__ void early(const args_t &args, const rows_tile_t &tile,
                                               int thread, const sm90_room_t &room) {
    __syncwarp();
    rows_span_t span = row_span(args, tile, thread, 0);
    fetch(args, span, room, 0);
    fetch(args, span, room, 1);
  }

  static __device__ __forceinline__ float2 unpack(uint32_t pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  }

  /* Two columns: g and u become dg and du; returns weight a, packed, and adds to dot. */
  static __device__ __forceinline__ uint32_t derive(float weight, const float *d, uint32_t *gate,
                                                    uint32_t *up, float *dot) {
    float2 g = unpack(*gate), u = unpack(*up);
    float s0 = rows_sigmoid(g.x), s1 = rows_sigmoid(g.y);
    float silu0 = g.x * s0, silu1 = g.y * s1;
    float a0 = silu0 * u.x, a1 = silu1 * u.y;
    float da0 = weight * d[0], da1 = weight * d[1];
    *dot += d[0] * a0;
    *dot += d[1] * a1;
    *gate = sm90_pack(da0 * u.x * (s0 + silu0 * (1 - s0)), da1 * u.y * (s1 + silu1 * (1 - s1)));
    *up = sm90_pack(da0 * silu0, da1 * silu1);
    return sm90_pack(weight * a0, weight * a1);
  }

  /* A unit that has been fetched; adds the thread's part of the row's dot. */
  static __device__ __forceinline__ void finish_unit(const args_t &args, const rows_span_t &span,
                                                     const sm90_room_t &room, int unit,
                                                     const float (&d)[128], float weight,
                                                     float *dot) {
    const int g = unit_piece(unit), u = g + DACT_PIECES, offset = unit_offset(unit);
    const int half = unit / DACT_ROW_UNITS;
    int64_t ffn = args.shape.ffn;
    bf16_t *pre = args.pre_at + span.row * 2 * ffn + span.col;
    uint32_t act[DACT_PIECES][4];
#pragma unroll
    for (int piece = 0; piece < DACT_PIECES; piece++) {
      uint32_t gate[4], up[4];
      sm90_get_fragment(room, g + piece, gate);
      sm90_get_fragment(room, u + piece, up);
#pragma unroll
      for (int i = 0; i < 4; i++)
        act[piece][i] = derive(weight, rows_pair(d, offset / 8 + 4 * piece + i, half), &gate[i],
                               &up[i], dot);
      __syncwarp();
      sm90_put_fragment(room, g + piece, gate);
      sm90_put_fragment(room, u + piece, up);
    }
    __syncwarp();
    rows_store<DACT_PIECES>(room, g, pre, span, offset);
    rows_store<DACT_PIECES>(room, u, pre + ffn, span, offset);
    __syncwarp();
#pragma unroll
    for (int piece = 0; piece < DACT_PIECES; piece++)
      sm90_put_fragment(room, g + piece, act[piece]);
    __syncwarp();
    rows_store<DACT_PIECES>(room, g, args.act + span.row * ffn + span.col, span, offset);
  }

  static __device__ __forceinline__ void store_dot(const args_t &args, const rows_span_t &span,
                                                   int offset, int thread, float dot) {
    int slices = (args.shape.ffn + GROUPED_SLICE - 1) / GROUPED_SLICE;
    dot += __shfl_xor_sync(0xffffffffu, dot, 1);
    dot += __shfl_xor_sync(0xffffffffu, dot, 2);
    if (thread % 4 == 0 && offset < span.left)
      args.dot[span.row * slices + (span.col + offset) / GROUPED_SLICE] = dot;
  }

  static __device__ __forceinline__ void finish(const args_t &args, const rows_tile_t &tile,
                                                int thread, const sm90_room_t &room,
                                                const float (&d)[128]) {
    float weight[2], dot = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      rows_span_t span = row_span(args, tile, thread, half);
      weight[half] = span.row < tile.end ? __ldg(args.weight + span.row) : 0;
    }
#pragma unroll
    for (int unit = 0; unit < DACT_UNITS; unit++) {
      const int half = unit / DACT_ROW_UNITS, next = unit + 2;
      const bool ends_slice = (unit_offset(unit) + DACT_COLS) % GROUPED_SLICE == 0;
      rows_span_t span = row_span(args, tile, thread, half);
      if (unit + 1 < DACT_UNITS)
        sm90_fetch_wait<1>();
      else
        sm90_fetch_wait<0>();
      __syncwarp();
      finish_unit(args, span, room, unit, d, weight[half], &dot);
      if (ends_slice) {
        store_dot(args, span, unit_offset(unit) + DACT_COLS - GROUPED_SLICE, thread, dot);
        dot = 0;
      }
      if (next >= DACT_UNITS) continue;
      __syncwarp();
      fetch(args, row_span(args, tile, thread, next / DACT_ROW_UNITS), room, next);
    }
  }
#endif
};

/* ---- dx -------------------------------------------------------------------------------------- */

/* K is gate's F, then up's, each in blocks of its own. */
struct rows_dx : rows_base {
  struct args_t {
    CUtensorMap dpre, gate, up;
    rows_shape_t shape;
    bf16_t *dx;
  };
  static constexpr bool b_mn_major = true;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static __device__ __forceinline__ void load(const args_t &args, const rows_tile_t &tile,
                                              int block, uint32_t stage, uint32_t barrier) {
    int blocks = args.shape.blocks / 2, part = block >= blocks;
    int k = (block - part * blocks) * SM90_K;
    sm90_copy(args.dpre, stage, barrier, k, part, tile.row);
    rows_load_mn_major(part ? args.up : args.gate, stage + SM90_A_BYTES, barrier,
                       tile.across * SM90_N, k, tile.expert);
  }

  static __device__ __forceinline__ void finish(const args_t &args, const rows_tile_t &tile,
                                                int thread, const sm90_room_t &room,
                                                const float (&d)[128]) {
    rows_store_tile(tile, thread, room, d, args.dx, tile.across * SM90_N, args.shape.hidden);
  }
#endif
};

/* ---- host ------------------------------------------------------------------------------------ */

static rows_shape_t rows_make_shape(const grouped_t *grouped, int64_t across, int64_t blocks) {
  return {grouped->offset,    (int)grouped->experts, (int)grouped->hidden,
          (int)grouped->ffn, (int)across,           (int)blocks};
}

static int64_t rows_tiles(const grouped_t *grouped, int64_t across) {
  return (grouped->rows / SM90_M + grouped->experts) * across;
}

static nn_status_t rows_map(backend_device_t *device, const sm90_tensor_t &tensor,
                            CUtensorMap *map) {
  return sm90_map(device, "experts", &tensor, map);
}

nn_status_t sm90_up(backend_device_t *device, const grouped_t *grouped, const grouped_up_t *up) {
  if (!grouped->rows) return NN_OK;
  int64_t h = grouped->hidden, f = grouped->ffn, across = cuda_blocks(f, SM90_N / 2);
  rows_up::args_t args;
  args.shape = rows_make_shape(grouped, across, cuda_blocks(h, SM90_K));
  args.pre = (bf16_t *)up->pre;
  args.act = (bf16_t *)up->act;
  CUDA_TRY(rows_map(device, sm90_activations(up->x, grouped->rows, 1, h, SM90_M), &args.x));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, up->gate, f, h, SM90_N / 2), &args.gate));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, up->up, f, h, SM90_N / 2), &args.up));
  return sm90_launch<rows_up>(device, "experts", args, rows_tiles(grouped, across));
}

nn_status_t sm90_down(backend_device_t *device, const grouped_t *grouped,
                      const grouped_down_t *down) {
  if (!grouped->rows) return NN_OK;
  int64_t h = grouped->hidden, f = grouped->ffn, across = cuda_blocks(h, SM90_N);
  rows_down::args_t args;
  args.shape = rows_make_shape(grouped, across, cuda_blocks(f, SM90_K));
  args.y = (bf16_t *)down->y;
  CUDA_TRY(rows_map(device, sm90_activations(down->act, grouped->rows, 1, f, SM90_M), &args.act));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, down->down, h, f, SM90_N), &args.down));
  return sm90_launch<rows_down>(device, "experts", args, rows_tiles(grouped, across));
}

nn_status_t sm90_dact(backend_device_t *device, const grouped_t *grouped,
                      const grouped_dact_t *dact) {
  if (!grouped->rows) return NN_OK;
  int64_t h = grouped->hidden, f = grouped->ffn, across = cuda_blocks(f, SM90_N);
  rows_dact::args_t args;
  args.shape = rows_make_shape(grouped, across, cuda_blocks(h, SM90_K));
  args.weight = dact->weight;
  args.pre_at = (bf16_t *)dact->pre;
  args.act = (bf16_t *)dact->act;
  args.dot = dact->dot;
  CUDA_TRY(rows_map(device, sm90_activations(dact->dy, grouped->rows, 1, h, SM90_M), &args.dy));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, dact->down, h, f, SM90_K), &args.down));
  CUDA_TRY(rows_map(device, sm90_activations(dact->pre, grouped->rows, 2, f, SM90_M), &args.pre));
  return sm90_launch<rows_dact>(device, "experts", args, rows_tiles(grouped, across));
}

nn_status_t sm90_dx(backend_device_t *device, const grouped_t *grouped, const grouped_dx_t *dx) {
  if (!grouped->rows) return NN_OK;
  int64_t h = grouped->hidden, f = grouped->ffn, across = cuda_blocks(h, SM90_N);
  rows_dx::args_t args;
  args.shape = rows_make_shape(grouped, across, 2 * cuda_blocks(f, SM90_K));
  args.dx = (bf16_t *)dx->dx;
  CUDA_TRY(rows_map(device, sm90_activations(dx->dpre, grouped->rows, 2, f, SM90_M), &args.dpre));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, dx->gate, f, h, SM90_K), &args.gate));
  CUDA_TRY(rows_map(device, sm90_weights(grouped, dx->up, f, h, SM90_K), &args.up));
  return sm90_launch<rows_dx>(device, "experts", args, rows_tiles(grouped, across));
}
