/* Items of products of numbers whose a is read by its rows, where they lie or copied: all rows of
 * the item by one panel of columns after the other, each packed when its turn comes, if at all. */
#include "vec/gemm_item.h"

/* Copies what the item reads of a in [k0, k0 + k), row by row. */
static void gemm_item_copy_a(const gemm_item_t *item, int64_t k0, int64_t k) {
  const gemm_operand_t *a = &item->group->a;
  int64_t rows = a->along_k ? k : item->m, width = a->along_k ? item->m : k;
  int64_t first = a->along_k ? k0 : item->i, from = a->along_k ? item->i : k0;
  float *to = item->a;
  for (int64_t r = 0; r < rows; r++, to += width) {
    const float *row = vec_row(gemm_row(a, first + r), from, width, a->dtype, to);
    if (row != to) memcpy(to, row, (size_t)width * sizeof *to);
  }
}

_Static_assert(GEMM_ROWS_K * GEMM_NR + VEC_WIDTH <= GEMM_B_FLOATS,
               "a panel of columns has room for the longest block of k");

/* What is multiplied at once: a panel of columns, k from k0 on of the block [begin, end) that a is
 * read or copied by. Where it is read in place, a block is as long as a panel has room for: sums
 * stay in registers. item NULL: nothing. */
typedef struct gemm_slice {
  const gemm_item_t *item;
  int64_t column, begin, end, k0, k;
} gemm_slice_t;

static void gemm_slice(gemm_slice_t *slice, const gemm_item_t *item, int64_t column, int64_t begin,
                       int64_t k0) {
  int64_t all = item->group->k, block = item->a_in_place ? GEMM_ROWS_K : gemm_k_block(all);
  int64_t end = item->few_rows ? all : vec_min(begin + block, all);
  int64_t k = end - k0;
  if (item->few_rows && k > GEMM_FEW_K) k = GEMM_FEW_K;
  slice->item = item, slice->column = column;
  slice->begin = begin, slice->end = end, slice->k0 = k0, slice->k = k;
}

/* The slice behind another one, and behind the item's last one the first of the item `after`. */
static void gemm_slice_after(gemm_slice_t *next, const gemm_slice_t *slice,
                             const gemm_item_t *after) {
  const gemm_item_t *item = slice->item;
  int64_t k0 = slice->k0 + slice->k;
  if (k0 < slice->end) gemm_slice(next, item, slice->column, slice->begin, k0);
  else if (slice->column + GEMM_NR < item->n)
    gemm_slice(next, item, slice->column + GEMM_NR, slice->begin, slice->begin);
  else if (k0 < item->group->k) gemm_slice(next, item, 0, k0, k0);
  else if (after) gemm_slice(next, after, 0, 0, 0);
  else next->item = NULL;
}

/* What a slice packs and is not near: a share of it beside each of `parts` parts of the one before
 * it. */
static gemm_ahead_t gemm_slice_ahead(const gemm_slice_t *slice, int64_t parts) {
  const gemm_item_t *item = slice->item;
  if (!item || !item->far) return (gemm_ahead_t){0};
  return gemm_ahead((gemm_part_t){.operand = &item->group->b,
                                  .first = item->j + slice->column,
                                  .count = vec_min(GEMM_NR, item->n - slice->column),
                                  .k0 = slice->k0,
                                  .k = slice->k},
                    parts);
}

/* All rows of a slice by its panel of columns. What the kernel cannot write where it belongs is put
 * there after a few rows, which are then in the first cache; as often, lines are requested. */
static void gemm_slice_rows(const gemm_slice_t *slice, const gemm_slice_t *next,
                            gemm_panels_t *panels, bool result, bool put) {
  const gemm_item_t *item = slice->item;
  const gemm_group_t *group = item->group;
  int64_t columns = vec_min(GEMM_NR, item->n - slice->column), j = item->j + slice->column;
  int across = !group->a.along_k;
  bool whole = item->few_rows && !put;
  int64_t step = whole ? item->m : GEMM_PART_ROWS;
  gemm_ahead_t ahead = gemm_slice_ahead(next, whole ? 1 : vec_blocks(item->m, GEMM_PART_ROWS));
  for (int64_t r = 0; r < item->m; r += step) {
    int64_t rows = vec_min(item->m - r, step), i = item->i + r;
    gemm_requests_t requests;
    /* Beside fewer rows than a panel of weights has, two as often: else some would be left out. */
    panels->request_step = item->few_rows && rows < GEMM_NR ? 1 : 2;
    gemm_requests_begin(&requests,
                        rows * slice->k / GEMM_ROWS_REQUEST * (3 - panels->request_step));
    if (result) gemm_request_result(&requests, group, i, rows, j, columns);
    gemm_request_ahead(&requests, &ahead);
    gemm_requests_end(&requests, item->sum);
    gemm_run_t *runs = requests.run;
    VEC(gemm_kernel_rows)(rows, across, panels, &runs);
    if (put) VEC(gemm_put)(item->gemm, group, i, rows, j, columns, panels->d);
    panels->a += across ? rows * panels->lda : rows;
    if (panels->c) panels->c += rows * panels->ldc;
    if (!put || panels->sum) panels->d += rows * panels->ldd;
    if (panels->sum) panels->sum += rows * GEMM_NR;
  }
}

/* One slice; a in its block of k is at `a`. */
static void gemm_item_slice(const gemm_slice_t *slice, const gemm_slice_t *next, const float *a,
                            int64_t lda) {
  const gemm_item_t *item = slice->item;
  const gemm_group_t *group = item->group;
  int64_t column = slice->column, columns = vec_min(GEMM_NR, item->n - column);
  int64_t i = item->i, j = item->j + column;
  const gemm_operand_t *b = &group->b;
  int across = !group->a.along_k, whole = columns == GEMM_NR, in_place = whole && item->b_in_place;
  if (b->second && slice->k0 < b->split && slice->k0 + slice->k > b->split) in_place = 0;
  if (!in_place) VEC(gemm_pack)(b, j, columns, GEMM_NR, slice->k0, slice->k, item->b);
  gemm_panels_t panels = {.k = slice->k,
                          .a = a + (slice->k0 - slice->begin) * (across ? 1 : lda),
                          .lda = lda,
                          .b = in_place ? (const float *)gemm_row(b, slice->k0) + j : item->b,
                          .ldb = in_place ? b->ld : GEMM_NR,
                          .ldd = GEMM_NR};
  panels.d = item->sum + (slice->begin == 0 && slice->end == group->k ? 0 : column * item->m);
  panels.sum = slice->k0 ? panels.d : NULL;
  int last = slice->k0 + slice->k == group->k, direct = last && item->direct && whole;
  if (direct) {
    panels.c = group->c ? (const float *)group->c + i * group->ldc + j : NULL;
    panels.ldc = group->ldc;
    panels.d = (float *)group->d + i * group->ldd + j;
    panels.ldd = group->ldd;
  }
  gemm_slice_rows(slice, next, &panels, last && item->far && !item->few_rows, last && !direct);
}

void VEC(gemm_item_rows)(const gemm_item_t *item, const gemm_item_t *after) {
  const gemm_operand_t *a = &item->group->a;
  gemm_slice_t slices[2], *slice = &slices[0], *next = &slices[1];
  gemm_slice(slice, item, 0, 0, 0);
  while (slice->item == item) {
    int64_t k0 = slice->begin, k = slice->end - k0, lda = a->along_k ? item->m : k;
    const float *at = item->a;
    if (item->a_in_place) {
      at = a->along_k ? gemm_place(a, k0, item->i) : gemm_place(a, item->i, k0);
      lda = a->ld;
    } else if (slice->column == 0 && slice->k0 == k0) {
      gemm_item_copy_a(item, k0, k);
    }
    gemm_slice_after(next, slice, after);
    gemm_item_slice(slice, next, at, lda);
    gemm_slice_t *done = slice;
    slice = next, next = done;
  }
}
