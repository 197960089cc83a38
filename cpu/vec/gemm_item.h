/* What gemm.c and gemm_by_rows.c share of an item: its sizes, its place, and how it is computed. */
#ifndef NN_CPU_VEC_GEMM_ITEM_H
#define NN_CPU_VEC_GEMM_ITEM_H

#include "vec/gemm_ahead.h"

enum {
  GEMM_KC = 384,            /* most of k in a block */
  GEMM_MB = 546,            /* most rows of an item */
  GEMM_NB = 768,            /* most columns of an item */
  GEMM_NC = 128,            /* columns whose packed panels stay in the L2 cache */
  GEMM_WIDTH_MOST = 2048,   /* most columns of a streaming item */
  GEMM_THIN_COLUMNS = 192,  /* columns of an item of few rows */
  GEMM_BAD_STRIDE = 4096,   /* bytes: lines so far apart compete for few places in a cache */
  GEMM_ROWS_M = 256,        /* rows that suffice to read a in place by weights from anywhere, */
  GEMM_ROWS_K = 1536,       /* up to this k, of which a panel of b has room, */
  GEMM_ROWS_NB = 256,       /* and most columns of such an item: its sums stay in the L2 cache */
  GEMM_PART_ROWS = 64,      /* rows that are computed, then put where they belong */
  GEMM_FEW_ROWS = 128,      /* rows that are few: weights from anywhere are packed for them */
  GEMM_FEW_K = 128,         /* by so much of k, which stays in the first cache, packed and before */
  GEMM_THIN_MOST = 255,     /* rows that are few: of experts, whose weights come from memory */
  GEMM_BYPASS = 4 << 20,    /* bytes of gradients that caches do not hold until they are read */

  GEMM_TILE_FLOATS = GEMM_MR * GEMM_NR,
  GEMM_A_FLOATS = GEMM_MB * GEMM_KC + VEC_WIDTH, /* with the slack of packing */
  GEMM_B_FLOATS = GEMM_NC * GEMM_KC + VEC_WIDTH,
  GEMM_SUM_FLOATS = GEMM_MB * GEMM_NB
};

/* How panels are packed and multiplied: number by number, or in pairs of bf16. */
struct gemm_form {
  int64_t numbers; /* of k in a packed step */
  void (*pack)(const gemm_operand_t *operand, int64_t first, int64_t count, int64_t width,
               int64_t k0, int64_t k, float *out);
  void (*kernel)(int64_t rows, const gemm_panels_t *panels, gemm_run_t **runs);
};

static inline bool gemm_of_numbers(const gemm_t *gemm) { return gemm->form->numbers == 1; }

/* Rows [i, i + m) x columns [j, j + n) of a group. So that no panel is nearly empty, panels of
 * rows are equally high: the first high_panels have low_rows + 1 rows, the others low_rows. */
typedef struct gemm_item {
  const gemm_t *gemm;
  const gemm_group_t *group;
  int64_t i, m, j, n, row_panels, low_rows, high_panels;
  bool a_in_place, b_in_place, direct; /* direct: the kernel writes what it can where it belongs */
  bool few_rows; /* see gemm_few_rows */
  bool far; /* items by rows: weights, and results, need not be near */
  float *a, *b, *sum;
} gemm_item_t;

static inline const float *gemm_place(const gemm_operand_t *operand, int64_t row, int64_t i) {
  return (const float *)operand->data + row * operand->ld + i;
}

/* Length of the blocks of k but the last: a function of k alone, a multiple of the widest
 * vector. */
static inline int64_t gemm_k_block(int64_t k) {
  int64_t blocks = vec_blocks(k, GEMM_KC);
  return blocks > 1 ? vec_round_up(vec_blocks(k, blocks), 16) : k;
}

/* Bytes from the first to the last of so many stored rows. */
static inline int64_t gemm_extent(const gemm_operand_t *operand, int64_t rows) {
  return rows * operand->ld * vec_dtype_bytes(operand->dtype);
}

/* Whether a has so many rows across that packing b, in as few blocks of k, takes little of it. */
static inline int gemm_many_rows(const gemm_t *gemm, const gemm_group_t *group) {
  const gemm_operand_t *a = &group->a;
  return gemm_of_numbers(gemm) && !a->along_k && !a->gather &&
         !group->b.along_k && group->m >= GEMM_ROWS_M && group->k > GEMM_KC &&
         group->k <= GEMM_ROWS_K;
}

/* Whether weights are packed by slices of little of k, each requested beside the one before; a is
 * read in place or copied as a whole. */
static inline int gemm_few_rows(const gemm_t *gemm, const gemm_group_t *group) {
  return gemm_of_numbers(gemm) && group->m <= GEMM_FEW_ROWS && !group->a.along_k &&
         !group->b.along_k && group->m * group->k <= GEMM_A_FLOATS;
}

/* Whether a group is computed so: all but the rows of an a across, which come one after the other,
 * is near enough that nothing need be requested in time, or these are many, or few. */
static inline int gemm_by_rows(const gemm_t *gemm, const gemm_group_t *group) {
  const gemm_operand_t *a = &group->a, *b = &group->b;
  if (gemm_many_rows(gemm, group)) return 1;
  /* A weight's gradient has the same bits whether zeros are added to it or nothing. */
  int adds = group->c || (a->along_k && b->along_k);
  return gemm_of_numbers(gemm) && (!a->along_k || gemm_extent(a, group->k) <= GEMM_NEAR) &&
         (gemm_few_rows(gemm, group) ||
          gemm_extent(b, b->along_k ? group->k : group->n) <= GEMM_NEAR) &&
         (!adds || group->m * group->ldc * vec_dtype_bytes(group->d_dtype) <= GEMM_NEAR);
}

/* Hands a tile of the product to where it goes. */
void VEC(gemm_put)(const gemm_t *gemm, const gemm_group_t *group, int64_t i, int64_t rows,
                   int64_t j, int64_t columns, const float *tile);

/* Computes an item of a group for which gemm_by_rows is true. `after` is the item that this thread
 * is likely to do next, or NULL. */
void VEC(gemm_item_rows)(const gemm_item_t *item, const gemm_item_t *after);

#endif
