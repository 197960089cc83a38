/* Attention on CUDA, as its files see one another.
 *
 * The query rows that read one key-value head are packed: row r = i * group + h is query i of a
 * sequence and the h-th of the group = A / K heads. A tile of packed rows shares each tile of keys,
 * and its rows see nearly the same keys.
 *
 * Each product exists for any dtype and shape (general.cu, general_bwd.cu), for 16 bits by
 * tensor cores (flash*.cu), and for few rows against a cache by reading keys straight
 * into fragments (decode.cu). attention.cu chooses. The grid of a launch follows shapes and
 * capacity, never what device memory holds. */
#ifndef NN_CUDA_ATTENTION_H
#define NN_CUDA_ATTENTION_H

#include "device.h"

typedef struct attention_rows {
  int32_t q_len, heads, kv_heads, group;
  int32_t count;           /* packed rows of a sequence and key-value head: q_len * group */
  uint32_t divide, shift;  /* r / group = (high word of r * divide + r) >> shift, r < 2^31 */
  int32_t window;          /* most keys of a row; ATTENTION_ALL without a window */
} attention_rows_t;

enum { ATTENTION_ALL = 1 << 30 };

/* Of an operation, whose sequences have at most `keys` keys: a window of as many is none. */
attention_rows_t attention_rows(int64_t q_len, int64_t heads, int64_t kv_heads, int64_t window,
                                int64_t keys);
static inline int attention_windowed(const attention_rows_t *rows) {
  return rows->window != ATTENTION_ALL;
}

/* Where the keys of a sequence are shared out over blocks, what each of them found: sums of values
 * weighted by exp(score - largest), that largest scaled score, and the sum of those weights. */
enum { ATTENTION_PARTS = 256 };
typedef struct attention_parts {
  int64_t count; /* at most ATTENTION_PARTS; 1: the result goes straight out, no memory is used */
  float *sum; /* [count, batch * q_len, A, D]; not written where no key was seen */
  float2 *weight; /* [count, batch * q_len, A] largest, sum of weights; -infinity, 0 without keys */
} attention_parts_t;

#define ATTENTION_LOG2_E 1.4426950408889634f
#define ATTENTION_LN_2 0.6931471805599453f

/* Backward's numbers of each packed row, by sequence and key-value head, rows up to a multiple of
 * ATTENTION_STAT_ROWS: factor * lse, and <dout, o>; (infinity, 0) behind the last row. */
enum { ATTENTION_STAT_ROWS = 64 };

/* What flash_bwd_sm90.cu adds to a packed row's products with keys and values: -lse / scale and
 * -<dout, o>, each the sum of three bf16 and so exact to 24 bits, and two zeros. As many as
 * statistics; zeros behind the last row. */
typedef uint4 attention_terms_t;

static __host__ __device__ inline int64_t attention_stat_count(const attention_rows_t &rows) {
  return ((int64_t)rows.count + ATTENTION_STAT_ROWS - 1) / ATTENTION_STAT_ROWS *
         ATTENTION_STAT_ROWS;
}

/* general.cu: parts->count blocks share the keys. attention_general_rows is how many of `count`
 * packed rows one block takes, at most ATTENTION_BLOCK_ROWS. */
enum { ATTENTION_BLOCK_ROWS = 64 };
int64_t attention_general_rows(int64_t count, int64_t head_dim);
void attention_general(backend_device_t *device, const op_attention_t *op,
                       const attention_parts_t *parts);

/* general_bwd.cu; stats with factor 1. */
void attention_general_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                           const float2 *stats);

/* Whether rows of `dim` numbers at these pointers and strides are whole aligned 16 bytes. */
int attention_aligned(const void *const *pointers, int count, const int64_t *strides,
                      int stride_count, int64_t dim, int32_t dtype);

/* flash.cu, flash_bwd.cu and decode.cu take 16 bits, head dims up to ATTENTION_FLASH_DIM, rows of
 * whole aligned 16 bytes, and forward a positive scale. They are compiled for a few head dims, D;
 * one between takes the next, with zeros behind its numbers where these are tiles. */
enum { ATTENTION_FLASH_DIM = 256 };

/* One of these D, as an argument. */
template <int D>
struct attention_columns {
  static constexpr int count = D;
};

/* flash.cu */
void attention_flash(backend_device_t *device, const op_attention_t *op);

/* flash_sm90.cu: of what flash.cu takes, without a cache on compute capability 9.0. */
int attention_flash90_takes(const backend_device_t *device, const op_attention_t *op);
nn_status_t attention_flash90(backend_device_t *device, const op_attention_t *op);

/* flash_bwd.cu; stats with factor log2(e). partial: room for the sums of key blocks whose rows are
 * shared out, as much as attention_flash_bwd_partial says for the most rows and sequences. */
int64_t attention_flash_bwd_partial(const backend_device_t *device, int64_t rows, int64_t batch,
                                    int64_t kv_heads, int64_t head_dim);
void attention_flash_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                         const float2 *stats, float *partial);

/* flash_bwd_rows_sm90.cu: dq, for flash_bwd_sm90.cu. */
int attention_flash90_bwd_rows_takes(const backend_device_t *device);
nn_status_t attention_flash90_bwd_rows(backend_device_t *device, const op_attention_bwd_t *op,
                                       const float2 *stats);

/* flash_bwd_sm90.cu: of what flash_bwd.cu takes, on compute capability 9.0; stats and
 * partial as there. */
int attention_flash90_bwd_takes(const backend_device_t *device, const op_attention_bwd_t *op);
nn_status_t attention_flash90_bwd(backend_device_t *device, const op_attention_bwd_t *op,
                                  const float2 *stats, const attention_terms_t *terms,
                                  float *partial);

/* decode.cu: a block for each DECODE_ROWS rows and part. With cluster,
 * the parts (at most DECODE_CLUSTER) are blocks of one cluster that put their sums together. */
enum { DECODE_ROWS = 16, DECODE_CLUSTER = 8 };
void attention_decode(backend_device_t *device, const op_attention_t *op,
                      const attention_parts_t *parts, int cluster);

/* decode.cu: o and lse from parts, in the order of the parts. */
void attention_merge(backend_device_t *device, const op_attention_t *op,
                     const attention_parts_t *parts);

#endif
