/* Attention on sm_90a: what its kernels load by the bulk copy engine, their products, and the order
 * in which they take tiles. T bf16 or fp16, keys that are the rows' own. D is the head dim rounded
 * up to a multiple of 64: columns behind the head dim are outside of the tensors, are copied as
 * zeroes and never stored.
 *
 * A tile of queries is `positions` whole positions of a group's heads, so that a box of the tensor
 * [batch, positions, heads, D] is packed rows as attention.h has them. Tiles are operands as
 * hopper.cuh has them, 64 columns at a time: those of more columns are several, each `half` bytes
 * behind the one before. Positions behind a sequence's last are copied as zeroes. */
#ifndef NN_CUDA_ATTENTION_TILES_SM90_CUH
#define NN_CUDA_ATTENTION_TILES_SM90_CUH

#include "attention/tile.cuh"
#include "hopper.cuh"

enum {
  TILES90_COLUMNS = 64,
  TILES90_MOST_GROUP = 48 /* heads of a key-value head */
};
static_assert(TILES90_COLUMNS * sizeof(bf16_t) == HOPPER_ROW_BYTES, "of 16 bits each");

/* ---- host ------------------------------------------------------------------------------------ */

/* run(attention_columns<D>()), as tile_by_head. */
template <typename Run>
static inline auto tiles90_by_head(int64_t head_dim, Run run) {
  if (head_dim <= 64) return run(attention_columns<64>());
  if (head_dim <= 128) return run(attention_columns<128>());
  return head_dim <= 192 ? run(attention_columns<192>()) : run(attention_columns<256>());
}

/* [batch, length, heads, dim] by boxes of [1, box_length, box_heads, 64]; strides in elements. */
static inline hopper_tensor_t tiles90_tensor(const void *base, int64_t batch, int64_t length,
                                             int64_t heads, int64_t dim, int64_t batch_stride,
                                             int64_t stride, int box_length, int box_heads) {
  return {base,
          NN_BF16,
          4,
          {dim, heads, length, batch},
          {dim, stride, batch_stride},
          {TILES90_COLUMNS, box_heads, box_length, 1}};
}

/* Of what backward reads: boxes of so many positions of q and dout, and of so many keys. */
static inline nn_status_t tiles90_maps(backend_device_t *device, const op_attention_bwd_t *op,
                                       const attention_rows_t *rows, int positions, int keys,
                                       CUtensorMap *q, CUtensorMap *dout, CUtensorMap *k,
                                       CUtensorMap *v) {
  int64_t dim = op->head_dim, width = op->heads * dim;
  hopper_tensor_t at = tiles90_tensor(op->q, op->batch, op->q_len, op->heads, dim,
                                      op->q_len * op->ldq, op->ldq, positions, rows->group);
  CUDA_TRY(hopper_map(device, "attention_bwd", &at, q));
  at = tiles90_tensor(op->dout, op->batch, op->q_len, op->heads, dim, op->q_len * width, width,
                      positions, rows->group);
  CUDA_TRY(hopper_map(device, "attention_bwd", &at, dout));
  at = tiles90_tensor(op->k, op->batch, op->q_len, op->kv_heads, dim, op->kv_batch, op->ldkv, keys,
                      1);
  CUDA_TRY(hopper_map(device, "attention_bwd", &at, k));
  at.base = op->v;
  return hopper_map(device, "attention_bwd", &at, v);
}

/* Tiles of packed rows, handed out to persistent blocks. */
typedef struct tiles90 {
  int positions, count; /* positions of a tile; tiles of a sequence and key-value head */
  int pairs;            /* sequences times key-value heads */
} tiles90_t;

static inline tiles90_t tiles90_make(const attention_rows_t *rows, int64_t batch, int most) {
  int positions = most / rows->group;
  return {positions, (int)cuda_blocks(rows->q_len, positions), (int)(batch * rows->kv_heads)};
}

/* Blocks for all of them. */
static inline unsigned tiles90_grid(const backend_device_t *device, const tiles90_t *tiles) {
  int64_t all = (int64_t)tiles->count * tiles->pairs;
  return (unsigned)(all < device->multiprocessors ? all : device->multiprocessors);
}

/* ---- device ---------------------------------------------------------------------------------- */

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/* Copies the box at a head, position and sequence. */
template <int D>
__device__ __forceinline__ void tiles90_copy(const CUtensorMap &map, uint32_t to, uint32_t half,
                                             uint32_t barrier, int head, int position, int batch) {
#pragma unroll
  for (int h = 0; h < D / TILES90_COLUMNS; h++)
    hopper_copy(map, to + h * half, barrier, h * TILES90_COLUMNS, head, position, batch);
}

template <int N>
__device__ __forceinline__ void tiles90_zero(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) d[i] = 0;
}

/* d = a b^T (+ d where add) over head dim: 64 rows of a, 2 N rows of b. */
template <typename T, int D, int N>
__device__ __forceinline__ void tiles90_dot(float (&d)[N], uint32_t a, uint32_t a_half, uint32_t b,
                                            uint32_t b_half, int add = 0) {
  static_assert(N == 24 || N == 32 || N == 48 || N == 64, "there are products for these");
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    uint64_t x = hopper_operand(a + k / 4 * a_half, 16) + k % 4 * HOPPER_NEXT_K;
    uint64_t y = hopper_operand(b + k / 4 * b_half, 16) + k % 4 * HOPPER_NEXT_K;
    if constexpr (N == 24) hopper_multiply_48<T, false, false>(d, x, y, k || add);
    if constexpr (N == 32) hopper_multiply_64<T, false, false>(d, x, y, k || add);
    if constexpr (N == 48) hopper_multiply_96<T, false, false>(d, x, y, k || add);
    if constexpr (N == 64) hopper_multiply_128<T, false, false>(d, x, y, k || add);
  }
}

/* d = a b (+ d where add): a 64 x 4 N in registers, as tiles90_round makes it; b 4 N rows. */
template <typename T, int D, int N>
__device__ __forceinline__ void tiles90_add(float (&d)[D / 2], const uint32_t (&a)[N], uint32_t b,
                                            uint32_t b_half, int add) {
#pragma unroll
  for (int k = 0; k < N / 4; k++) {
#pragma unroll
    for (int h = 0; h < D / 128; h++)
      hopper_multiply_128_registers<T>(
          d + h * 64, a + 4 * k,
          hopper_operand(b + 2 * h * b_half, b_half) + k * HOPPER_NEXT_ROWS, k || add);
    if constexpr (D % 128 != 0)
      hopper_multiply_64_registers<T>(
          d + D / 128 * 64, a + 4 * k,
          hopper_operand(b + D / 64 * b_half - b_half, 16) + k * HOPPER_NEXT_ROWS, k || add);
  }
}

/* A result becomes the left operand of another product: no number moves to another thread. */
template <typename T, int N>
__device__ __forceinline__ void tiles90_round(uint32_t (&p)[N], const float (&s)[2 * N]) {
#pragma unroll
  for (int i = 0; i < N; i++) p[i] = half_pair<T>(s[2 * i], s[2 * i + 1]);
}

/* The tile of a block's round, from the last tile of rows, which sees the most keys, to the first;
 * false: none is left. Every other round goes backwards over blocks, so that all have about the
 * same number of keys. */
typedef struct tiles90_tile {
  int pair, position; /* the first */
} tiles90_tile_t;

__device__ __forceinline__ bool tiles90_find(const tiles90_t &tiles, int round,
                                             tiles90_tile_t *tile) {
  int blocks = gridDim.x, block = blockIdx.x;
  int at = round * blocks + (round & 1 ? blocks - 1 - block : block);
  if (at >= tiles.count * tiles.pairs) return false; /* and so in all later rounds */
  tile->pair = at % tiles.pairs;
  tile->position = (tiles.count - 1 - at / tiles.pairs) * tiles.positions;
  return true;
}

/* A warp writes its 16 packed rows of `dim` numbers from `first` on, those before `end`: acc times
 * a scale for each of the thread's two, through its own rows of a tile in shared memory. */
template <typename T, int D>
__device__ __forceinline__ void tiles90_store(unsigned char *own, uint32_t half, T *to,
                                              int64_t stride, int dim,
                                              const attention_rows_t &rows, int first, int end,
                                              const float (&acc)[D / 2], float scale0,
                                              float scale1) {
  int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
  for (int n = 0; n < D / 8; n++) {
    unsigned char *at = own + n / 8 * half + t * 4;
    *(uint32_t *)(at + tile_chunk<64>(g, n % 8)) =
        half_pair<T>(acc[4 * n] * scale0, acc[4 * n + 1] * scale0);
    *(uint32_t *)(at + tile_chunk<64>(8 + g, n % 8)) =
        half_pair<T>(acc[4 * n + 2] * scale1, acc[4 * n + 3] * scale1);
  }
  __syncwarp();
#pragma unroll
  for (int x = 0; x < 4; x++) {
    int row = x * 4 + lane / 8, chunk = lane % 8;
#pragma unroll
    for (int h = 0; h < D / TILES90_COLUMNS; h++) {
      uint4 numbers = *(const uint4 *)(own + h * half + tile_chunk<64>(row, chunk));
      int d = h * TILES90_COLUMNS + chunk * 8;
      if (first + row < end && d < dim)
        *(uint4 *)(to + rows_at(rows, first + row, stride, dim) + d) = numbers;
    }
  }
}

#endif

#endif
