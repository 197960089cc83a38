/* Matrix products with fp32 sums over a list of groups: v = a [m, k] . b [k, n] per group, added to
 * a matrix or handed to the operation's own function tile by tile. Dense products are a list of
 * one; experts are one group each.
 *
 * Order of summation: k is cut into equal blocks of at most GEMM_KC, a function of k alone; a
 * block is summed in order by fused multiply-adds from zero, blocks are added in order. Groups
 * computed by rows (see gemm_by_rows) sum all of k as one block. Groups that take the streaming
 * path (see gemm_streams) sum each VEC_WIDTH-th product in order, or fewer of them in some chains
 * (see gemm_lines), then the lanes, or each fourth (see gemm_by_fours); gemm_bf16.c says what
 * products of bf16 do. None depends on the threads, nor an element on its neighbours. */
#ifndef NN_CPU_VEC_GEMM_H
#define NN_CPU_VEC_GEMM_H

#include "vec/ops.h"
#include "vec/vec_scratch.h"

/* A tile is GEMM_MR x GEMM_NR at most: two vectors wide, as high as the registers allow with two
 * for b and one for a. */
#if VEC_AVX512
enum { GEMM_MR = 14 };
#else
enum { GEMM_MR = 6 };
#endif
enum {
  GEMM_NR = 2 * VEC_WIDTH,
  GEMM_PACK_STEP = 16,  /* rows along k that are packed together */
  GEMM_STREAM_WIDE = 1 << 17, /* longest rows of 16 bits there */
  GEMM_ROWS_REQUEST = 16, /* most multiply-adds of GEMM_NR columns there between two requests */
  GEMM_STREAM_ROWS = 16, /* most rows of a group that takes the streaming path; */
  GEMM_STREAM_FEW = 8,   /* with more than these, only where */
  GEMM_STREAM_SHORT = 128, /* k is longer: the sums over lanes take their time too */
  GEMM_FOURS_LEAST = 7, /* rows from which on sums of fours take less, and weights are read once, */
  GEMM_FOURS_ROWS = 16, /* up to so many; */
  GEMM_FOURS_LONG = 256, /* from this k on */
  GEMM_FOURS_MOST = 64, /* up to so many, in passes of at most the former */
  GEMM_FOURS_FLOATS = 192 << 10, /* by panels of at most this size, */
  GEMM_FOURS_WHOLE = 8, /* and whole blocks of so many columns */
  GEMM_NEAR = 320 << 10   /* bytes that stay in a cache beside others */
};

/* A matrix as it is stored: rows of dtype, ld elements apart, that run along the rows or columns of
 * the product (along_k = 0) or along its sum (along_k = 1). */
typedef struct gemm_operand {
  const void *data;
  const void *second; /* where not NULL: stored rows from split on; with pair: see there */
  int64_t ld, split;
  const int32_t *gather; /* where not NULL: stored row r is row gather[r] of data */
  int32_t dtype; /* NN_F32, NN_BF16 or NN_F16 */
  int32_t along_k;
  /* b only, not along k: the number p of rows of both data and second. The columns of the
   * product are VEC_WIDTH of data, then the same VEC_WIDTH of second, and so on; n =
   * gemm_pair_columns(p). */
  int64_t pair;
} gemm_operand_t;

typedef struct gemm_group {
  int64_t m, n, k; /* m = 0: nothing to do */
  gemm_operand_t a, b;
  /* d[i, j] = v + c[i, j] (c may be NULL, or d) where there is no store function. One that reads c
   * or writes d at the same places names them too, so that they are requested in time. ldc is that
   * of d where c is NULL and both a and b run along k. */
  const void *c;
  void *d;
  int64_t ldc, ldd;
  int32_t d_dtype; /* of c and d: NN_F32 or NN_BF16 */
  /* Set by gemm_run. bypass: what is written of d as whole tiles does not stay in the caches. */
  int64_t first_item, row_blocks;
  int bypass;
} gemm_group_t;

/* Takes rows [i, i + rows) x columns [j, j + columns) of a group's product; row r of the tile
 * begins at tile + r * GEMM_NR. j is a multiple of GEMM_NR, columns is at most GEMM_NR. */
typedef void (*gemm_store_fn)(void *context, int64_t group, int64_t i, int64_t rows, int64_t j,
                              int64_t columns, const float *tile);

typedef struct gemm_form gemm_form_t; /* gemm_item.h */

typedef struct gemm {
  gemm_group_t *groups;
  int64_t count;
  gemm_store_fn store; /* or NULL */
  void *context;
  float *scratch; /* GEMM_THREAD_BYTES for each thread */
  int32_t rounds; /* 1: inputs may be rounded to bf16, and are where the processor multiplies
                     that */
  /* Set by gemm_run: rows and columns of an item, how many items there are, and threads. */
  int64_t block_m, block_n, items, threads;
  const gemm_form_t *form;
  const gemm_group_t *last; /* with rows, of several such groups; else NULL */
} gemm_t;

/* Columns of a product whose b is a pair of p rows each. */
static inline int64_t gemm_pair_columns(int64_t p) { return 2 * vec_round_up(p, VEC_WIDTH); }

/* Whether a group has more weights than stay in a cache. They are requested into the L2 cache: the
 * first one waits for too few lines at a time to keep memory busy. */
static inline int gemm_far(const gemm_group_t *group) {
  return group->n * group->b.ld * vec_dtype_bytes(group->b.dtype) > GEMM_NEAR;
}

/* Whether a group takes the streaming path by fours of k: rows are few and k is short, or weights
 * come from far. */
static inline int gemm_by_fours(const gemm_group_t *group) {
  const gemm_operand_t *b = &group->b;
  int64_t k = group->k, columns = b->pair ? b->pair : group->n;
  if (VEC_WIDTH < 16 || group->m < GEMM_FOURS_LEAST ||
      group->m > (k < GEMM_FOURS_LONG ? GEMM_FOURS_ROWS : GEMM_FOURS_MOST) ||
      vec_round_up(group->m, 4) * k > GEMM_FOURS_FLOATS || k % VEC_WIDTH ||
      columns % GEMM_FOURS_WHOLE)
    return 0;
  if (group->a.along_k || b->along_k || b->dtype != NN_F32 || (b->second && !b->pair) || b->gather)
    return 0;
  return k <= GEMM_STREAM_SHORT || gemm_far(group);
}

/* Whether a group takes the streaming path: weights stored along k, and few rows or fours. Rows of
 * 16 bits are widened before, where there is room for at least one. */
static inline int gemm_streams(const gemm_group_t *group) {
  if (gemm_by_fours(group)) return 1;
  if (group->a.dtype != NN_F32 && group->k > GEMM_STREAM_WIDE) return 0;
  return group->m <= GEMM_STREAM_ROWS && !group->a.along_k && !group->b.along_k &&
         (group->m <= GEMM_STREAM_FEW || group->k > GEMM_STREAM_SHORT);
}

/* Computes all groups in one region of the pool. */
nn_status_t VEC(gemm_run)(backend_device_t *device, gemm_t *gemm);

/* count > 0 lines of memory to be requested, step bytes apart; they need not exist. */
typedef struct gemm_run {
  uintptr_t line;
  int64_t step, count;
} gemm_run_t;

/* d[rows, GEMM_NR] = a . b + sum + c, in this order; 1 <= rows <= GEMM_MR. */
typedef struct gemm_panels {
  int64_t k;
  const float *a;   /* [k, rows], steps lda apart */
  const float *b;   /* [k, GEMM_NR], steps ldb apart */
  const float *sum; /* [rows, GEMM_NR] or NULL; may be d */
  const float *c;   /* rows ldc apart, or NULL; may be d */
  float *d;         /* rows ldd apart */
  int64_t lda, ldb, ldc, ldd;
  int64_t request_step;
  int bypass; /* d, aligned as vectors, is written past the caches; of gemm_kernel_rows: 0 */
} gemm_panels_t;

/* A line of *runs is requested every request_step steps; what is left of them stays there. */
void VEC(gemm_kernel)(int64_t rows, const gemm_panels_t *panels, gemm_run_t **runs);

/* d[m, GEMM_NR] = sum + a . b + c for any number m of rows, the products added to sum one by one.
 * With across, a is [m, k], rows lda apart, and a line of *runs is requested every request_step (1
 * or 2) steps of a tile's k, with 2 at least each GEMM_ROWS_REQUEST multiply-adds; what is left of
 * them stays there. */
void VEC(gemm_kernel_rows)(int64_t m, int across, const gemm_panels_t *panels, gemm_run_t **runs);

/* Packs count rows or columns of an operand from `first` on, restricted to k0 .. k0 + k - 1, as
 * out[k, width]. For a, width is count; for b it is GEMM_NR, and what is absent becomes 0. From
 * rows along the product, up to VEC_WIDTH floats are written past the end; k > 0 for rows along
 * k. */
void VEC(gemm_pack)(const gemm_operand_t *operand, int64_t first, int64_t count, int64_t width,
                    int64_t k0, int64_t k, float *out);

/* tile[m, GEMM_NR] = columns j .. j + columns - 1 of a group that streams. */
void VEC(gemm_stream)(const gemm_group_t *group, int64_t j, int64_t columns, float *tile);

/* The same by fours for 5 <= m <= GEMM_FOURS_ROWS rows, where a is fp32, from a panel that
 * gemm_fours_pack has made of these. Columns of d up to the next whole vector are written. */
void VEC(gemm_fours_pack)(const gemm_group_t *group, int64_t first, int64_t m, float *panel);
void VEC(gemm_fours)(const gemm_group_t *group, int64_t m, const float *panel, int64_t j,
                     int64_t columns, float *d, int64_t ldd);

/* gemm_bf16.c: the same on pairs of bf16. Panels are [ceil(k / 2), width] pairs, and the kernel's k
 * counts pairs. Streaming reads rows of a that gemm_stream_round has made: m x gemm_stream_pairs(k)
 * pairs. */
void VEC(gemm_kernel_bf16)(int64_t rows, const gemm_panels_t *panels, gemm_run_t **runs);
void VEC(gemm_pack_bf16)(const gemm_operand_t *operand, int64_t first, int64_t count,
                         int64_t width, int64_t k0, int64_t k, float *out);
int64_t VEC(gemm_stream_pairs)(int64_t k);
void VEC(gemm_stream_round)(const gemm_group_t *group, float *x);
/* tile[GEMM_NR rows, GEMM_NR] = columns j .. of a group of few rows, from a panel of GEMM_NR of its
 * rows packed over all of k: gemm_thin_steps(k) floats. */
int64_t VEC(gemm_thin_steps)(int64_t k);
void VEC(gemm_thin_bf16)(const gemm_group_t *group, const float *panel, int64_t j, int64_t columns,
                         float *tile);
void VEC(gemm_stream_bf16)(const gemm_group_t *group, const float *x, int64_t j, int64_t columns,
                           float *tile);

/* Stored row r of an operand. */
VEC_INLINE const void *gemm_row(const gemm_operand_t *operand, int64_t r) {
  const char *data = operand->data;
  if (operand->gather) {
    r = operand->gather[r];
  } else if (operand->second && r >= operand->split) {
    data = operand->second;
    r -= operand->split;
  }
  return data + r * operand->ld * vec_dtype_bytes(operand->dtype);
}

/* Stored row r behind the product's columns or rows, or its sum; *even becomes how many rows from
 * it on are equally far apart, which may be more than there are. Past a pair's end it is 0. */
VEC_INLINE const void *gemm_even_rows(const gemm_operand_t *operand, int64_t r, int64_t *even) {
  if (operand->pair) {
    int64_t j = r / GEMM_NR * VEC_WIDTH + r % VEC_WIDTH, left = operand->pair - j;
    const char *half = r % GEMM_NR < VEC_WIDTH ? operand->data : operand->second;
    *even = left < 0 ? 0 : vec_min(left, VEC_WIDTH - r % VEC_WIDTH);
    return half + j * operand->ld * vec_dtype_bytes(operand->dtype);
  }
  *even = operand->gather ? 1 : INT64_MAX;
  if (!operand->gather && operand->second && r < operand->split) *even = operand->split - r;
  return gemm_row(operand, r);
}

/* Pointers to the stored rows behind columns (or rows) j .. of the product, at most `left` and
 * at most VEC_WIDTH; for a pair none beyond the vector that j lies in may be asked for. Returns how
 * many there are: 0 past a pair's end. */
VEC_INLINE int64_t gemm_rows(const gemm_operand_t *operand, int64_t j, int64_t left,
                             const void *row[VEC_WIDTH]) {
  int64_t count = vec_min(left, VEC_WIDTH);
  if (operand->pair) {
    gemm_operand_t half = *operand;
    if (j % GEMM_NR >= VEC_WIDTH) half.data = operand->second;
    half.second = NULL;
    j = j / GEMM_NR * VEC_WIDTH + j % VEC_WIDTH;
    count = vec_min(count, operand->pair - j);
    for (int64_t i = 0; i < count; i++) row[i] = gemm_row(&half, j + i);
  } else {
    for (int64_t i = 0; i < count; i++) row[i] = gemm_row(operand, j + i);
  }
  return count < 0 ? 0 : count;
}

/* ---- operations made of products ------------------------------------------------------------- */

VEC_OP(matmul, op_matmul_t);
VEC_OP(experts, op_experts_t);
VEC_OP(experts_bwd, op_experts_bwd_t);
VEC_OP(head_loss, op_head_loss_t);
VEC_OP(softmax, op_softmax_t);

#endif
