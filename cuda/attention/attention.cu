/* The choice among the ways of attention, and what backward needs to know of each query row. */
#include "attention/rows.cuh"
#include "launch.cuh"

/* ---- what the ways share --------------------------------------------------------------------- */

attention_rows_t attention_rows(int64_t q_len, int64_t heads, int64_t kv_heads, int64_t window,
                                int64_t keys) {
  attention_rows_t rows = {(int32_t)q_len, (int32_t)heads, (int32_t)kv_heads, 0, 0, 0, 0,
                           ATTENTION_ALL};
  if (window && window < keys) rows.window = (int32_t)window;
  rows.group = rows.heads / rows.kv_heads;
  rows.count = rows.q_len * rows.group;
  uint64_t group = (uint64_t)rows.group;
  while ((1ull << rows.shift) < group) rows.shift++;
  rows.divide = (uint32_t)((((1ull << rows.shift) - group) << 32) / group + 1);
  return rows;
}

int attention_aligned(const void *const *pointers, int count, const int64_t *strides,
                      int stride_count, int64_t dim, int32_t dtype) {
  int64_t bytes = (int64_t)cuda_dtype_bytes(dtype);
  uint64_t bits = (uint64_t)(dim * bytes);
  for (int i = 0; i < count; i++) bits |= (uint64_t)(uintptr_t)pointers[i];
  for (int i = 0; i < stride_count; i++) bits |= (uint64_t)(strides[i] * bytes);
  return bits % 16 == 0;
}

/* Of those whose rows are whole aligned 16 bytes. */
static int attention_flash_shape(int32_t dtype, int64_t head_dim) {
  return cuda_is_half(dtype) && head_dim <= ATTENTION_FLASH_DIM;
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* Blocks that keep every multiprocessor loading. */
static int64_t attention_blocks(const backend_device_t *device) {
  return 2 * (int64_t)device->multiprocessors;
}

/* How many parts of at least `keys` keys: blocks times parts is at most attention_blocks, where
 * there is more than one part. */
static int64_t attention_part_count(const backend_device_t *device, int64_t blocks,
                                    int64_t capacity, int64_t keys) {
  int64_t parts = attention_blocks(device) / blocks;
  if (parts > cuda_blocks(capacity, keys)) parts = cuda_blocks(capacity, keys);
  if (parts > ATTENTION_PARTS) parts = ATTENTION_PARTS;
  return parts < 1 ? 1 : parts;
}

/* The most rows of all parts together, for so many of one; a block has ATTENTION_BLOCK_ROWS. */
static int64_t attention_part_rows(const backend_device_t *device, int64_t rows) {
  int64_t most = attention_blocks(device) * ATTENTION_BLOCK_ROWS;
  int64_t all = rows * ATTENTION_PARTS;
  return all < most ? all : most;
}

static void attention_parts_take(cuda_arena_t *arena, attention_parts_t *parts, int64_t rows,
                                 int64_t head_dim) {
  parts->weight = (float2 *)cuda_take(arena, rows, sizeof(float2));
  parts->sum = (float *)cuda_take(arena, rows * head_dim, sizeof(float));
}

/* ---- forward --------------------------------------------------------------------------------- */

/* Packed rows up to which decode.cu is used: it reads the keys once for each DECODE_ROWS. */
static const int64_t attention_decode_rows = 4 * DECODE_ROWS;

/* Keys that the warps of a block take at once, and that one block reads in about the time which
 * another kernel, to merge parts, costs. */
static const int64_t attention_turn_keys = 256, attention_block_keys = 1024;

static int attention_flash_takes(const op_attention_t *op) {
  const void *pointers[] = {op->q, op->k, op->v, op->o};
  const int64_t strides[] = {op->ldq, op->ldkv, op->kv_batch};
  return attention_flash_shape(op->act_dtype, op->head_dim) && op->scale > 0 &&
         attention_aligned(pointers, 4, strides, 3, op->head_dim, op->act_dtype);
}

/* How many blocks of one cluster share the keys; 0: a cluster would leave the device idle. */
static int64_t attention_cluster(const backend_device_t *device, int64_t blocks, int64_t capacity) {
  if (device->capability < 90) return 0;
  int64_t parts = 1;
  while (parts < DECODE_CLUSTER && parts * attention_turn_keys < capacity &&
         blocks * parts < attention_blocks(device))
    parts *= 2;
  int64_t enough = device->multiprocessors;
  return capacity <= parts * attention_block_keys || blocks * parts >= enough ? parts : 0;
}

static void attention_against_cache(backend_device_t *device, const op_attention_t *op,
                                    int64_t capacity, cuda_arena_t *arena) {
  int64_t pairs = op->batch * op->kv_heads, count = op->q_len * (op->heads / op->kv_heads);
  if (op->window && op->window < capacity - op->q_len) capacity = op->window + op->q_len;
  attention_parts_t parts = {0, NULL, NULL};
  int flash = attention_flash_takes(op);
  int64_t block_rows = flash ? (int64_t)DECODE_ROWS : attention_general_rows(count, op->head_dim);
  int64_t blocks = pairs * cuda_blocks(count, block_rows);
  if (flash) parts.count = attention_cluster(device, blocks, capacity);
  if (parts.count) {
    attention_decode(device, op, &parts, parts.count > 1);
    return;
  }
  parts.count = attention_part_count(device, blocks, capacity, attention_turn_keys);
  if (parts.count > 1)
    attention_parts_take(arena, &parts, parts.count * op->batch * op->q_len * op->heads,
                         op->head_dim);
  if (flash)
    attention_decode(device, op, &parts, 0);
  else
    attention_general(device, op, &parts);
  if (parts.count > 1) attention_merge(device, op, &parts);
}

nn_status_t cuda_attention(backend_device_t *device, const op_attention_t *op,
                           backend_scratch_t scratch) {
  CUDA_TRY(cuda_enter(device, "attention"));
  if (op->batch == 0 || op->q_len == 0) return NN_OK;
  int64_t count = op->q_len * (op->heads / op->kv_heads);
  cuda_arena_t arena = {(char *)scratch.data, 0};
  const attention_parts_t whole = {1, NULL, NULL};
  int flash = attention_flash_takes(op);
  if (op->kv_len && (!flash || count <= attention_decode_rows))
    attention_against_cache(device, op, op->kv_batch / op->ldkv, &arena);
  else if (flash && attention_flash90_takes(device, op))
    CUDA_TRY(attention_flash90(device, op));
  else if (flash)
    attention_flash(device, op);
  else
    attention_general(device, op, &whole);
  return cuda_launched(device, "attention");
}

/* ---- backward -------------------------------------------------------------------------------- */

enum { STAT_THREADS = 256, STAT_LANES = 8, STAT_BLOCK_ROWS = STAT_THREADS / STAT_LANES };

/* x as attention_terms_t has it. */
__device__ __forceinline__ void attention_split(bf16_t *to, float x) {
  for (int i = 0; i < 3; i++) {
    to[i] = from_float<bf16_t>(x);
    x -= to_float(to[i]);
  }
}

/* stats, and terms unless NULL, of 32 packed rows, eight threads a row. Blocks: pairs of sequence
 * and key-value head, in each its rows. <dout, o> sums in order within a thread, then over
 * threads. */
template <typename T>
__global__ void __launch_bounds__(STAT_THREADS)
    attention_stat_rows(const op_attention_bwd_t op, const attention_rows_t rows, int blocks,
                        float factor, int vector, float2 *stats, attention_terms_t *terms) {
  launch_next();
  constexpr int width = vec_t<T>::width;
  int pair = blockIdx.x / blocks, lane = threadIdx.x % STAT_LANES, dim = (int)op.head_dim;
  int r = blockIdx.x % blocks * STAT_BLOCK_ROWS + threadIdx.x / STAT_LANES;
  bool inside = r < rows.count;
  int64_t out = inside ? rows_out(rows, pair / rows.kv_heads, pair % rows.kv_heads, r) : 0;
  const T *o = (const T *)op.o + out * dim, *dout = (const T *)op.dout + out * dim;
  float sum = 0, lse = inside ? op.lse[out] : 0; /* asked for together */
  for (int d = lane * width; inside && d < dim; d += STAT_LANES * width) {
    vec_t<T> x, y;
    if (vector) {
      x = vec_load(o + d), y = vec_load(dout + d);
    } else {
      for (int i = 0; i < width; i++) {
        x.at[i] = d + i < dim ? o[d + i] : from_float<T>(0);
        y.at[i] = d + i < dim ? dout[d + i] : from_float<T>(0);
      }
    }
    for (int i = 0; i < width; i++) sum = fmaf(to_float(x.at[i]), to_float(y.at[i]), sum);
  }
#pragma unroll
  for (int step = STAT_LANES / 2; step; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane) return;
  int64_t at = pair * attention_stat_count(rows) + r;
  stats[at] = inside ? make_float2(lse * factor, sum) : make_float2(INFINITY, 0);
  if (!terms) return;
  vec_t<bf16_t> row;
  attention_split(row.at, -lse / op.scale);
  attention_split(row.at + 3, -sum);
  row.at[6] = row.at[7] = from_float<bf16_t>(0);
  vec_store((bf16_t *)(terms + at), row);
}

template <typename T>
static void attention_stat_launch(backend_device_t *device, const op_attention_bwd_t *op,
                                  const attention_rows_t *rows, float factor, float2 *stats,
                                  attention_terms_t *terms) {
  const void *pointers[] = {op->o, op->dout};
  int vector = attention_aligned(pointers, 2, NULL, 0, op->head_dim, op->act_dtype);
  int64_t blocks = attention_stat_count(*rows) / STAT_BLOCK_ROWS;
  unsigned grid = (unsigned)(blocks * op->batch * op->kv_heads);
  attention_stat_rows<T>
      <<<grid, STAT_THREADS, 0, device->stream>>>(*op, *rows, (int)blocks, factor, vector, stats,
                                                  terms);
}

/* dsinks of a head: less the sum over rows of exp(sink - lse) delta. A thread's rows in order, then
 * the block's threads. */
template <typename T>
__global__ void __launch_bounds__(STAT_THREADS)
    attention_sinks_rows(const op_attention_bwd_t op, const attention_rows_t rows,
                         const float2 *stats) {
  __shared__ float room[32];
  int head = blockIdx.x, kv_head = head / rows.group, inside = head % rows.group;
  float sink = to_float(((const T *)op.sinks)[head]), sum = 0;
  for (int64_t at = threadIdx.x; at < op.batch * op.q_len; at += STAT_THREADS) {
    int64_t b = at / rows.q_len, r = at % rows.q_len * rows.group + inside;
    float delta = stats[(b * rows.kv_heads + kv_head) * attention_stat_count(rows) + r].y;
    sum += expf(sink - op.lse[at * rows.heads + head]) * delta;
  }
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) op.dsinks[head] -= sum;
}

template <typename T>
static void attention_sinks_launch(backend_device_t *device, const op_attention_bwd_t *op,
                                   const attention_rows_t *rows, const float2 *stats) {
  attention_sinks_rows<T>
      <<<(unsigned)op->heads, STAT_THREADS, 0, device->stream>>>(*op, *rows, stats);
}

static int attention_flash_bwd_takes(const op_attention_bwd_t *op) {
  const void *pointers[] = {op->q, op->k, op->v, op->dout, op->dq, op->dk, op->dv};
  const int64_t strides[] = {op->ldq, op->ldkv, op->kv_batch};
  return attention_flash_shape(op->act_dtype, op->head_dim) &&
         attention_aligned(pointers, 7, strides, 3, op->head_dim, op->act_dtype);
}

/* Room for the statistics of all rows, and for terms and partial sums where tensor cores may be
 * used. */
typedef struct attention_bwd_room {
  float2 *stats;
  attention_terms_t *terms;
  float *partial;
} attention_bwd_room_t;

static void attention_bwd_take(const backend_device_t *device, cuda_arena_t *arena, int64_t rows,
                               int64_t batch, int64_t heads, int64_t kv_heads,
                               int64_t head_dim, int flash, attention_bwd_room_t *room) {
  int64_t count = rows * heads + batch * kv_heads * ATTENTION_STAT_ROWS;
  int64_t partial = flash ? attention_flash_bwd_partial(device, rows, batch, kv_heads, head_dim)
                          : 0;
  room->stats = (float2 *)cuda_take(arena, count, sizeof(float2));
  room->terms = (attention_terms_t *)cuda_take(arena, flash && device->capability == 90 ? count : 0,
                                               sizeof(attention_terms_t));
  room->partial = (float *)cuda_take(arena, partial, sizeof(float));
}

nn_status_t cuda_attention_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                               backend_scratch_t scratch) {
  CUDA_TRY(cuda_enter(device, "attention_bwd"));
  if (op->batch == 0 || op->q_len == 0) return NN_OK;
  attention_rows_t rows =
      attention_rows(op->q_len, op->heads, op->kv_heads, op->window, op->q_len);
  int flash = attention_flash_bwd_takes(op);
  cuda_arena_t arena = {(char *)scratch.data, 0};
  attention_bwd_room_t room;
  attention_bwd_take(device, &arena, op->batch * op->q_len, op->batch, op->heads, op->kv_heads,
                     op->head_dim, flash, &room);
  float factor = flash ? ATTENTION_LOG2_E : 1;
  float2 *stats = room.stats;
  int flash90 = flash && attention_flash90_bwd_takes(device, op);
  CUDA_BY_DTYPE(op->act_dtype, attention_stat_launch, device, op, &rows, factor, stats,
                flash90 ? room.terms : NULL);
  if (op->sinks) CUDA_BY_DTYPE(op->act_dtype, attention_sinks_launch, device, op, &rows, stats);
  if (flash90)
    CUDA_TRY(attention_flash90_bwd(device, op, stats, room.terms, room.partial));
  else if (flash)
    attention_flash_bwd(device, op, stats, room.partial);
  else
    attention_general_bwd(device, op, stats);
  return cuda_launched(device, "attention_bwd");
}

/* ---- scratch --------------------------------------------------------------------------------- */

size_t cuda_attention_scratch(const backend_device_t *device, const backend_limits_t *limits) {
  cuda_arena_t forward = {NULL, 0}, backward = {NULL, 0};
  if (limits->kv_len) {
    attention_parts_t parts;
    attention_parts_take(&forward, &parts,
                         attention_part_rows(device, limits->rows * limits->heads),
                         limits->head_dim);
  }
  if (limits->training) {
    attention_bwd_room_t room;
    int flash = attention_flash_shape(limits->weight_dtype, limits->head_dim);
    attention_bwd_take(device, &backward, limits->rows, limits->batch, limits->heads,
                       limits->kv_heads, limits->head_dim, flash, &room);
  }
  return forward.used > backward.used ? forward.used : backward.used;
}
