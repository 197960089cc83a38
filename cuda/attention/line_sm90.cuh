/* How dk and dv on sm_90a are shared out. A key block of a pair (sequence and key-value head) takes
 * as many steps as hold rows that see it; the steps of all of them stand in one line, by key blocks
 * and in each by pairs, which is cut evenly over the device. */
#ifndef NN_CUDA_ATTENTION_LINE_SM90_CUH
#define NN_CUDA_ATTENTION_LINE_SM90_CUH

#include "attention/rows.cuh"

enum {
  LINE90_KEYS = 128, /* of a key block */
  LINE90_START = 3   /* steps that the time to begin and end a key block is worth */
};

typedef struct line90 {
  int positions, tiles; /* positions of a step; steps of a sequence and key-value head */
  int window;           /* most keys of a row */
  int pairs, total;     /* length of the line */
  int share;            /* a block's of it */
} line90_t;

/* The first step whose rows see a key block. */
static __host__ __device__ inline int line90_first(const line90_t &line, int block) {
  return block * LINE90_KEYS / line.positions;
}

/* Steps whose rows see it; its length in the line is LINE90_START more. */
static __host__ __device__ inline int line90_steps(const line90_t &line, int block) {
  int end = line.tiles, first = line90_first(line, block);
  if (line.window != ATTENTION_ALL) {
    int behind = ((block + 1) * LINE90_KEYS - 2 + line.window) / line.positions + 1;
    end = behind < end ? behind : end;
  }
  return end - first;
}

static inline int line90_key_blocks(const attention_rows_t *rows) {
  return (int)cuda_blocks(rows->q_len, LINE90_KEYS);
}

/* sharers: most blocks that share a key block, on average. */
static inline line90_t line90_make(const backend_device_t *device, const attention_rows_t *rows,
                                   int64_t batch, int positions, int sharers) {
  line90_t line = {};
  line.positions = positions;
  line.tiles = (int)cuda_blocks(rows->q_len, positions);
  line.window = rows->window;
  line.pairs = (int)(batch * rows->kv_heads);
  int key_blocks = line90_key_blocks(rows), items = key_blocks * line.pairs;
  for (int block = 0; block < key_blocks; block++)
    line.total += (line90_steps(line, block) + LINE90_START) * line.pairs;
  int64_t most = device->multiprocessors;
  int64_t grid = items < most / sharers ? items * sharers : most;
  line.share = (int)cuda_blocks(line.total, grid);
  return line;
}

/* The first and the last of the blocks that share a pair's key block, for all threads of a block,
 * which add up the lengths of the key blocks before it together. */
__device__ __forceinline__ void line90_sharers(const line90_t &line, int block, int pair,
                                               int *first, int *last) {
  __shared__ int sums[32];
  int sum = 0;
  for (int x = threadIdx.x; x < block; x += blockDim.x)
    sum += line90_steps(line, x) + LINE90_START;
  sum = __reduce_add_sync(0xffffffffu, sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  int length = line90_steps(line, block) + LINE90_START, begin = pair * length;
  for (int warp = 0; warp < (int)blockDim.x / 32; warp++) begin += sums[warp] * line.pairs;
  *first = (begin + LINE90_START) / line.share;
  *last = (begin + length - 1) / line.share;
}

/* Where a block has come to. */
typedef struct line90_walk {
  int at, stop;
  int block, start; /* a key block, and where it begins */
} line90_walk_t;

/* Its next steps of one key block. */
typedef struct line90_piece {
  int block, pair;
  int first, count;  /* steps; count 0: nothing is left */
  int begins, whole; /* at the key block's first step; all of its steps */
} line90_piece_t;

__device__ __forceinline__ line90_walk_t line90_begin(const line90_t &line) {
  int at = min((int)blockIdx.x * line.share, line.total);
  return {at, min(at + line.share, line.total), 0, 0};
}

__device__ __forceinline__ bool line90_next(const line90_t &line, line90_walk_t *walk,
                                            line90_piece_t *piece) {
  piece->count = 0;
  while (piece->count == 0 && walk->at < walk->stop) {
    int length = line90_steps(line, walk->block) + LINE90_START;
    while (walk->at >= walk->start + length * line.pairs) {
      walk->start += length * line.pairs;
      length = line90_steps(line, ++walk->block) + LINE90_START;
    }
    int inside = walk->at - walk->start, at = inside % length;
    int stop = min(length, at + walk->stop - walk->at);
    int from = max(at, (int)LINE90_START), steps = length - LINE90_START;
    walk->at += stop - at;
    piece->block = walk->block;
    piece->pair = inside / length;
    piece->count = max(stop - from, 0);
    piece->first = line90_first(line, walk->block) + from - LINE90_START;
    piece->begins = from == LINE90_START;
    piece->whole = piece->count == steps;
  }
  return piece->count > 0;
}

#endif
