/* Cuts the groups of a product into items and computes each: panels of b and a are packed into
 * the thread's scratch, block by block along k, and the register kernel goes over them; operands
 * whose rows run along k are read where they lie. Other items are those of gemm_by_rows.c, and few
 * rows, which stream. How items are cut depends on the threads; no element's sum does. */
#include "vec/gemm_item.h"

_Static_assert(GEMM_MB % GEMM_MR == 0 && GEMM_NB % GEMM_NR == 0 && GEMM_NC % GEMM_NR == 0 &&
                   GEMM_WIDTH_MOST % GEMM_NR == 0, "blocks are whole panels");
_Static_assert(GEMM_THIN_COLUMNS % GEMM_NR == 0 && GEMM_NR * GEMM_NR <= GEMM_SUM_FLOATS,
               "items of few rows are whole tiles, and one has room");
_Static_assert((int)GEMM_FOURS_FLOATS <= (int)GEMM_A_FLOATS &&
                   (int)GEMM_FOURS_FLOATS <= (int)GEMM_SUM_FLOATS,
               "rows by fours of k have room, widened and packed");
_Static_assert((int)GEMM_STREAM_WIDE <= (int)GEMM_A_FLOATS, "a widened row has room");
_Static_assert(4 * (GEMM_A_FLOATS + GEMM_B_FLOATS + GEMM_SUM_FLOATS) <= GEMM_THREAD_BYTES,
               "a thread's panels and sums fit in its scratch");

static const gemm_form_t form_numbers = {1, VEC(gemm_pack), VEC(gemm_kernel)};
#if VEC_AVX512
static const gemm_form_t form_pairs = {2, VEC(gemm_pack_bf16), VEC(gemm_kernel_bf16)};
#endif

/* Packed steps of so much of k. */
static int64_t gemm_steps(const gemm_t *gemm, int64_t k) {
  return vec_blocks(k, gemm->form->numbers);
}

/* ---- one item -------------------------------------------------------------------------------- */

static int64_t panel_row(const gemm_item_t *item, int64_t panel) {
  return panel * item->low_rows + vec_min(panel, item->high_panels);
}

/* How much of k to pack at a time: rows along k are read in runs through all panels, so that
 * each is read from end to end while its page and lines are at hand. */
static int64_t pack_step(const gemm_operand_t *operand, int64_t k) {
  return operand->along_k ? GEMM_PACK_STEP : k;
}

/* Whether an operand can be read where it lies: in rows one stride apart. From step to step in rows
 * along k, lines are then a stride apart, and the same is true of rows across: caches hold these as
 * well as packed ones unless the stride maps them all to a few sets. */
static bool gemm_in_place(const gemm_t *gemm, const gemm_operand_t *operand) {
  return gemm_of_numbers(gemm) && operand->dtype == NN_F32 && !operand->gather &&
         operand->ld * 4 % GEMM_BAD_STRIDE != 0;
}

static bool gemm_a_in_place(const gemm_t *gemm, const gemm_group_t *group) {
  return gemm_in_place(gemm, &group->a) && (group->a.along_k || gemm_by_rows(gemm, group));
}

static bool gemm_b_in_place(const gemm_t *gemm, const gemm_group_t *group) {
  const gemm_operand_t *b = &group->b;
  return gemm_in_place(gemm, b) && b->along_k && (!b->second || gemm_by_rows(gemm, group));
}

static void gemm_item_pack_a(const gemm_item_t *item, int64_t k0, int64_t k) {
  const gemm_operand_t *a = &item->group->a;
  int64_t steps = gemm_steps(item->gemm, k);
  if (item->a_in_place) return;
  for (int64_t p = 0, step = pack_step(a, k); p < k; p += step)
    for (int64_t q = 0; q < item->row_panels; q++) {
      int64_t row = panel_row(item, q), rows = panel_row(item, q + 1) - row;
      item->gemm->form->pack(a, item->i + row, rows, rows, k0 + p, vec_min(step, k - p),
                             item->a + row * steps + gemm_steps(item->gemm, p) * rows);
    }
}

/* Columns [j, j + n) of the product. */
static void gemm_item_pack_b(const gemm_item_t *item, int64_t j, int64_t n, int64_t k0, int64_t k) {
  const gemm_operand_t *b = &item->group->b;
  int64_t steps = gemm_steps(item->gemm, k);
  /* Part of a panel is packed all the same, for it needs its zeros. */
  int64_t first = item->b_in_place ? n / GEMM_NR * GEMM_NR : 0;
  for (int64_t p = 0, step = pack_step(b, k); p < k; p += step)
    for (int64_t q = first; q < n; q += GEMM_NR)
      item->gemm->form->pack(b, j + q, vec_min(n - q, GEMM_NR), GEMM_NR, k0 + p,
                             vec_min(step, k - p),
                             item->b + q * steps + gemm_steps(item->gemm, p) * GEMM_NR);
}

/* Row r of the product, `columns` of it from column j on, takes a row of a tile. */
VEC_INLINE void gemm_put_row(const gemm_group_t *group, int64_t r, int64_t j, int64_t columns,
                             const float *tile, int32_t dtype) {
  for (int64_t q = 0; q < columns; q += VEC_WIDTH) {
    vf v = vf_load(tile + q);
    if (group->c)
      v = vf_add(v, vf_load_as_next(group->c, r * group->ldc + j + q, columns - q, dtype));
    vf_store_as_next(group->d, r * group->ldd + j + q, columns - q, dtype, v);
  }
}

void VEC(gemm_put)(const gemm_t *gemm, const gemm_group_t *group, int64_t i, int64_t rows,
                   int64_t j, int64_t columns, const float *tile) {
  if (gemm->store) {
    gemm->store(gemm->context, group - gemm->groups, i, rows, j, columns, tile);
    return;
  }
  for (int64_t r = i; r < i + rows; r++, tile += GEMM_NR)
    VEC_BY_ACT(group->d_dtype, gemm_put_row(group, r, j, columns, tile, VEC_ACT));
}

/* Where an item's tiles are: columns [column, column + n) of it in the block [k0, k0 + k). */
typedef struct gemm_stripe {
  const gemm_item_t *item;
  int64_t column, n, k0, k;
} gemm_stripe_t;

static gemm_stripe_t gemm_stripe(const gemm_item_t *item, int64_t column, int64_t k0) {
  int64_t k = item->group->k;
  return (gemm_stripe_t){item, column, vec_min(GEMM_NC, item->n - column), k0,
                         vec_min(gemm_k_block(k), k - k0)};
}

static gemm_part_t gemm_part_a(const gemm_stripe_t *stripe) {
  const gemm_item_t *item = stripe->item;
  return (gemm_part_t){&item->group->a, item->i, item->m, stripe->k0, stripe->k};
}

static gemm_part_t gemm_part_b(const gemm_stripe_t *stripe) {
  const gemm_item_t *item = stripe->item;
  return (gemm_part_t){&item->group->b, item->j + stripe->column, stripe->n, stripe->k0, stripe->k};
}

/* Where a tile's sums are between two blocks of k. */
static float *gemm_stripe_sum(const gemm_stripe_t *stripe, int64_t panel, int64_t column) {
  const gemm_item_t *item = stripe->item;
  return item->sum + (column / GEMM_NR * item->row_panels + panel) * GEMM_TILE_FLOATS;
}

/* The tile of a panel of rows and one of columns, the latter at `column` of the item. Where only
 * the operation itself knows what becomes of a tile, or it is not whole, the kernel leaves it in
 * item->sum. */
static void gemm_tile_at(const gemm_stripe_t *stripe, int64_t panel, int64_t column,
                         int64_t request_step, gemm_run_t **runs) {
  const gemm_item_t *item = stripe->item;
  const gemm_t *gemm = item->gemm;
  const gemm_group_t *group = item->group;
  int64_t row = panel_row(item, panel), rows = panel_row(item, panel + 1) - row;
  int64_t i = item->i + row, j = item->j + column, columns = vec_min(GEMM_NR, item->n - column);
  int first = stripe->k0 == 0, last = stripe->k0 + stripe->k == group->k;
  int direct = last && item->direct && columns == GEMM_NR;
  float *tile = first && last ? item->sum : gemm_stripe_sum(stripe, panel, column);
  int64_t steps = gemm_steps(gemm, stripe->k);
  int b_in_place = item->b_in_place && columns == GEMM_NR;
  gemm_panels_t panels = {.k = steps,
                          .a = item->a_in_place ? gemm_place(&group->a, stripe->k0, i)
                                                : item->a + row * steps,
                          .lda = item->a_in_place ? group->a.ld : rows,
                          .b = b_in_place ? gemm_place(&group->b, stripe->k0, j)
                                          : item->b + (column - stripe->column) * steps,
                          .ldb = b_in_place ? group->b.ld : GEMM_NR,
                          .sum = first ? NULL : tile,
                          .c = direct && group->c ? (const float *)group->c + i * group->ldc + j
                                                  : NULL,
                          .d = direct ? (float *)group->d + i * group->ldd + j : tile,
                          .ldc = group->ldc,
                          .ldd = direct ? group->ldd : GEMM_NR,
                          .request_step = request_step,
                          .bypass = direct && group->bypass};
  gemm->form->kernel(rows, &panels, runs);
  if (last && !direct) VEC(gemm_put)(gemm, group, i, rows, j, columns, tile);
}

/* The tiles of a panel of rows. */
static void gemm_stripe_panel(const gemm_stripe_t *stripe, int64_t panel, gemm_ahead_t ahead[2]) {
  const gemm_item_t *item = stripe->item;
  const gemm_group_t *group = item->group;
  int64_t row = panel_row(item, panel), rows = panel_row(item, panel + 1) - row;
  int64_t j = item->j + stripe->column;
  gemm_requests_t requests;
  gemm_requests_begin(&requests,
                      gemm_steps(item->gemm, stripe->k) * vec_blocks(stripe->n, GEMM_NR));
  for (int64_t q = 0; stripe->k0 > 0 && q < stripe->n; q += GEMM_NR)
    gemm_request_bytes(&requests, gemm_stripe_sum(stripe, panel, stripe->column + q),
                       rows * GEMM_NR * (int64_t)sizeof(float));
  if (stripe->k0 + stripe->k == group->k)
    gemm_request_result(&requests, group, item->i + row, rows, j, stripe->n);
  gemm_request_ahead(&requests, &ahead[0]);
  gemm_request_ahead(&requests, &ahead[1]);
  int64_t request_step = gemm_requests_end(&requests, item->sum);
  gemm_run_t *runs = requests.run;
  for (int64_t q = 0; q < stripe->n; q += GEMM_NR)
    gemm_tile_at(stripe, panel, stripe->column + q, request_step, &runs);
}

/* `after` is the item that this thread is likely to do next, or NULL. */
static void gemm_item_packed(const gemm_item_t *item, const gemm_item_t *after) {
  int64_t k = item->group->k, k0 = 0;
  do {
    gemm_stripe_t stripe = gemm_stripe(item, 0, k0), then = {0}; /* then: the next block's first */
    if (k0 + stripe.k < k) then = gemm_stripe(item, 0, k0 + stripe.k);
    else if (after) then = gemm_stripe(after, 0, 0);
    gemm_item_pack_a(item, k0, stripe.k);
    gemm_ahead_t ahead[2] = {0};
    if (then.item)
      ahead[0] = gemm_ahead(gemm_part_a(&then), item->row_panels * vec_blocks(item->n, GEMM_NC));
    for (int64_t column = 0; column < item->n; column += GEMM_NC) {
      stripe = gemm_stripe(item, column, k0);
      gemm_item_pack_b(item, item->j + column, stripe.n, k0, stripe.k);
      gemm_stripe_t next = then;
      if (column + GEMM_NC < item->n) next = gemm_stripe(item, column + GEMM_NC, k0);
      ahead[1] = (gemm_ahead_t){0};
      if (next.item)
        ahead[1] = gemm_ahead(gemm_part_b(&next), item->row_panels);
      for (int64_t panel = 0; panel < item->row_panels; panel++)
        gemm_stripe_panel(&stripe, panel, ahead);
    }
    k0 += stripe.k;
  } while (k0 < k);
  if (item->group->bypass) _mm_sfence(); /* before other threads are told that the item is done */
}

/* Whether a group has too few rows for weights to be packed, but too many to stream. */
static int gemm_thin(const gemm_t *gemm, const gemm_group_t *group) {
#if VEC_AVX512
  return gemm->form == &form_pairs && group->b.dtype == NN_BF16 && !group->a.along_k &&
         !group->b.along_k && group->m > GEMM_STREAM_ROWS && group->m <= GEMM_THIN_MOST &&
         VEC(gemm_thin_steps)(group->k) <= GEMM_A_FLOATS;
#else
  (void)gemm, (void)group;
  return 0;
#endif
}

#if VEC_AVX512
/* As many panels of rows at a time as fit; their columns follow each other, so that weights of the
 * item are in a cache when the next panels come. */
static void gemm_item_thin(gemm_item_t *item) {
  const gemm_t *gemm = item->gemm;
  const gemm_group_t *group = item->group;
  int64_t panel = VEC(gemm_thin_steps)(group->k), panels = GEMM_A_FLOATS / panel;
  for (int64_t begin = 0; begin < group->m; begin += panels * GEMM_NR) {
    int64_t end = vec_min(group->m, begin + panels * GEMM_NR);
    for (int64_t row = begin; row < end; row += GEMM_NR)
      VEC(gemm_pack_bf16)(&group->a, row, vec_min(end - row, GEMM_NR), GEMM_NR, 0, group->k,
                          item->a + (row - begin) / GEMM_NR * panel);
    for (int64_t column = 0; column < item->n; column += GEMM_NR)
      for (int64_t row = begin; row < end; row += GEMM_NR) {
        int64_t columns = vec_min(item->n - column, GEMM_NR);
        VEC(gemm_thin_bf16)(group, item->a + (row - begin) / GEMM_NR * panel, item->j + column,
                            columns, item->sum);
        VEC(gemm_put)(gemm, group, row, vec_min(end - row, GEMM_NR), item->j + column, columns,
                      item->sum);
      }
  }
}
#endif

#if VEC_AVX512
/* Rows of the next pass by fours where so many are left: three vectors of four, if two remain. */
static int64_t gemm_fours_pass(int64_t left) { return left > GEMM_FOURS_ROWS ? 12 : left; }

/* As gemm_item_stream, by fours of k. */
static void gemm_item_fours(const gemm_item_t *item, const gemm_group_t *part, int64_t row) {
  int64_t m = part->m, k = part->k;
  for (int64_t r = 0, rows; r < m; r += rows) {
    rows = gemm_fours_pass(m - r);
    VEC(gemm_fours_pack)(part, r, rows, item->sum + r * k);
  }
  for (int64_t column = 0; column < item->n; column += GEMM_NR) {
    int64_t columns = vec_min(item->n - column, GEMM_NR), j = item->j + column;
    for (int64_t r = 0, rows; r < m; r += rows) {
      rows = gemm_fours_pass(m - r);
      bool direct = item->direct && columns == GEMM_NR && !part->c;
      float *d = direct ? (float *)part->d + (row + r) * part->ldd + j : item->b;
      VEC(gemm_fours)(part, rows, item->sum + r * k, j, columns, d, direct ? part->ldd : GEMM_NR);
      if (!direct) VEC(gemm_put)(item->gemm, item->group, row + r, rows, j, columns, item->b);
    }
  }
}
#endif

/* The columns of an item for the rows of the group from `row` on that `part` has, as floats. */
static void gemm_item_stream(const gemm_item_t *item, const gemm_group_t *part, int64_t row) {
#if VEC_AVX512
  if (gemm_by_fours(part)) {
    gemm_item_fours(item, part, row);
    return;
  }
#endif
  for (int64_t column = 0; column < item->n; column += GEMM_NR) {
    int64_t columns = vec_min(item->n - column, GEMM_NR);
    VEC(gemm_stream)(part, item->j + column, columns, item->sum);
    VEC(gemm_put)(item->gemm, item->group, row, part->m, item->j + column, columns, item->sum);
  }
}

/* Rows of 16 bits are widened, as many at a time as fit where panels are packed. */
static void gemm_item_stream_wide(const gemm_item_t *item) {
  const gemm_group_t *group = item->group;
  int64_t step = GEMM_A_FLOATS / group->k;
  gemm_group_t part = *group;
  part.a = (gemm_operand_t){.data = item->a, .ld = group->k, .dtype = NN_F32};
  for (int64_t row = 0; row < group->m; row += part.m) {
    part.m = vec_min(step, group->m - row);
    for (int64_t r = 0; r < part.m; r++)
      vec_row(gemm_row(&group->a, row + r), 0, group->k, group->a.dtype, item->a + r * group->k);
    gemm_item_stream(item, &part, row);
  }
}

#if VEC_AVX512
/* Whether rows of a, rounded, fit where panels are packed. */
static int gemm_streams_pairs(const gemm_t *gemm, const gemm_group_t *group) {
  return gemm->form == &form_pairs && group->b.dtype == NN_BF16 &&
         group->m * VEC(gemm_stream_pairs)(group->k) <= GEMM_A_FLOATS;
}

static void gemm_item_stream_pairs(const gemm_item_t *item) {
  VEC(gemm_stream_round)(item->group, item->a);
  for (int64_t column = 0; column < item->n; column += GEMM_NR) {
    int64_t columns = vec_min(item->n - column, GEMM_NR);
    VEC(gemm_stream_bf16)(item->group, item->a, item->j + column, columns, item->sum);
    VEC(gemm_put)(item->gemm, item->group, 0, item->m, item->j + column, columns, item->sum);
  }
}
#endif

static void gemm_item_streamed(const gemm_item_t *item) {
#if VEC_AVX512
  if (gemm_streams_pairs(item->gemm, item->group)) {
    gemm_item_stream_pairs(item);
    return;
  }
#endif
  if (item->group->a.dtype == NN_F32) gemm_item_stream(item, item->group, 0);
  else gemm_item_stream_wide(item);
}

static const gemm_group_t *gemm_group_of(const gemm_t *gemm, int64_t item) {
  int64_t low = 0, high = gemm->count; /* first_item of low <= item < that of high */
  while (high - low > 1) {
    int64_t middle = (low + high) / 2;
    if (gemm->groups[middle].first_item <= item)
      low = middle;
    else
      high = middle;
  }
  return &gemm->groups[low];
}

/* As many columns as leave every thread so many items: the longer the run of weights that a thread
 * reads, the faster memory gives them, and what an item packs serves all of its columns. */
static int64_t gemm_stream_width(const gemm_t *gemm, const gemm_group_t *group, int64_t each) {
  int64_t items = gemm->threads > 1 ? each * gemm->threads : 1;
  int64_t width = vec_round_up(vec_blocks(group->n, items), GEMM_NR);
  return vec_min(width > 0 ? width : GEMM_NR, GEMM_WIDTH_MOST);
}

/* Columns of an item of the group. Of one that streams each thread has two items where another
 * group follows, 32 of the last one, so that threads finish together, and eight of the only one. */
static int64_t gemm_width(const gemm_t *gemm, const gemm_group_t *group) {
  if (gemm_by_fours(group)) return gemm_stream_width(gemm, group, 2);
  if (gemm_streams(group))
    return gemm_stream_width(gemm, group, !gemm->last ? 8 : group == gemm->last ? 32 : 2);
  return gemm_thin(gemm, group) ? GEMM_THIN_COLUMNS : gemm->block_n;
}

/* The rows and columns of an item. */
VEC_APART gemm_item_t gemm_item_at(const gemm_t *gemm, int64_t index) {
  const gemm_group_t *group = gemm_group_of(gemm, index);
  gemm_item_t item = {.gemm = gemm, .group = group, .few_rows = gemm_few_rows(gemm, group)};
  item.far = item.few_rows || gemm_many_rows(gemm, group);
  item.a_in_place = gemm_a_in_place(gemm, group);
  int64_t width = gemm_width(gemm, group);
  index -= group->first_item;
  /* Row blocks of the same columns follow each other, so that b is still in a cache. */
  int64_t row_block = index % group->row_blocks;
  item.i = group->m * row_block / group->row_blocks;
  item.m = group->m * (row_block + 1) / group->row_blocks - item.i;
  item.j = index / group->row_blocks * width;
  item.n = vec_min(width, group->n - item.j);
  return item;
}

static void gemm_item(void *context, int64_t index, int32_t thread) {
  const gemm_t *gemm = context;
  gemm_item_t item = gemm_item_at(gemm, index);
  item.a = gemm->scratch + (int64_t)thread * (GEMM_THREAD_BYTES / 4);
  item.b = item.a + GEMM_A_FLOATS;
  item.sum = item.b + GEMM_B_FLOATS;
  item.direct = !gemm->store && item.group->d_dtype == NN_F32;
  if (gemm_streams(item.group)) {
    gemm_item_streamed(&item);
    return;
  }
#if VEC_AVX512
  if (gemm_thin(gemm, item.group)) {
    gemm_item_thin(&item);
    return;
  }
#endif
  int by_rows = gemm_by_rows(gemm, item.group);
  item.b_in_place = gemm_b_in_place(gemm, item.group);
  /* Most likely this thread's next one: items go to threads in turn. */
  int64_t next = index + gemm->threads;
  gemm_item_t following;
  if (next < gemm->items) following = gemm_item_at(gemm, next);
  const gemm_item_t *after = next < gemm->items ? &following : NULL;
  if (by_rows) {
    VEC(gemm_item_rows)(&item, after);
    return;
  }
  item.row_panels = vec_blocks(item.m, GEMM_MR);
  item.low_rows = item.m / item.row_panels;
  item.high_panels = item.m % item.row_panels;
  gemm_item_packed(&item, after);
}

/* ---- the cut --------------------------------------------------------------------------------- */

static int64_t gemm_count_items(gemm_t *gemm) {
  int64_t items = 0;
  for (int64_t g = 0; g < gemm->count; g++) {
    gemm_group_t *group = &gemm->groups[g];
    int whole = gemm_streams(group) || gemm_thin(gemm, group); /* all rows in each item */
    group->first_item = items;
    group->row_blocks = whole ? group->m > 0 : vec_blocks(group->m, gemm->block_m);
    items += group->row_blocks * vec_blocks(group->n, gemm_width(gemm, group));
  }
  return items;
}

/* The i-th number of parts to try: the least, as many for each thread, twice as many, and so on. */
static int64_t gemm_cuts(int64_t least, int64_t i, int32_t threads) {
  return i ? vec_round_up(least << (i - 1), threads) : least;
}

/* How long threads take that claim all `items` one after the other, in quarters of a cycle: the
 * kernel does two multiply-adds of a vector in a cycle, packing moves about four elements in one.
 * A group that streams or is thin counts as if it were packed. */
static int64_t gemm_span(const gemm_t *gemm, int64_t items, int64_t threads) {
  int64_t before = 0, span = 0; /* work of the groups so far; when the last of these is done */
  for (int64_t g = 0; g < gemm->count; g++) {
    const gemm_group_t *group = &gemm->groups[g];
    int64_t own = (g + 1 < gemm->count ? group[1].first_item : items) - group->first_item;
    if (own == 0) continue;
    int64_t columns = vec_min(group->n, gemm_width(gemm, group));
    int64_t rows = vec_blocks(group->m, group->row_blocks);
    int64_t packed = gemm_a_in_place(gemm, group) ? 0 : rows;
    packed += gemm_b_in_place(gemm, group) ? 0 : columns;
    int64_t cost = group->k * (rows * columns * 2 / VEC_WIDTH + packed);
    int64_t end = before / threads + vec_blocks(own, threads) * cost;
    span = end > span ? end : span;
    before += own * cost;
  }
  return span > before / threads ? span : before / threads;
}

/* Chooses the shape of items, of at most most_n columns, for groups of at most m x n, by what all
 * would take. */
static void gemm_cut(gemm_t *gemm, int64_t m, int64_t n, int64_t most_n, int32_t threads) {
  int64_t best = INT64_MAX, block_m = 0, block_n = 0;
  int64_t cuts = threads > 1 ? 5 : 1;
  for (int64_t i = 0; i < cuts; i++) {
    for (int64_t j = 0; j < cuts; j++) {
      gemm->block_m = vec_blocks(m, gemm_cuts(vec_blocks(m, GEMM_MB), i, threads));
      gemm->block_n = vec_round_up(vec_blocks(n, gemm_cuts(vec_blocks(n, most_n), j, threads)),
                                   GEMM_NR);
      int64_t cost = cuts > 1 ? gemm_span(gemm, gemm_count_items(gemm), threads) : 0;
      if (cost < best) {
        best = cost;
        block_m = gemm->block_m;
        block_n = gemm->block_n;
      }
    }
  }
  gemm->block_m = block_m;
  gemm->block_n = block_n;
}

/* A weight's gradient that is assigned, with more than GEMM_BYPASS bytes in all groups: other
 * gradients displace it from the caches before it is read again, and its lines need not be read to
 * be written. */
static void gemm_choose_bypass(gemm_t *gemm) {
  int64_t bytes = 0;
  for (int64_t g = 0; g < gemm->count; g++)
    bytes += gemm->groups[g].m * gemm->groups[g].n * (int64_t)sizeof(float);
  for (int64_t g = 0; g < gemm->count; g++) {
    gemm_group_t *group = &gemm->groups[g];
    int gradient = group->a.along_k && group->b.along_k && group->d_dtype == NN_F32;
    group->bypass = bytes > GEMM_BYPASS && gradient && !group->c && !gemm->store &&
                    (uintptr_t)group->d % GEMM_LINE == 0 && group->ldd * 4 % GEMM_LINE == 0;
  }
}

nn_status_t VEC(gemm_run)(backend_device_t *device, gemm_t *gemm) {
  gemm->form = &form_numbers;
#if VEC_AVX512
  if (gemm->rounds && (device->cpu_paths & NN_CPU_AVX512_BF16)) gemm->form = &form_pairs;
#endif
  gemm_choose_bypass(gemm);
  int64_t m = 0, n = 0, work = 0; /* the largest packed group; all work, in cycles */
  int64_t most_n = GEMM_NB;
  int64_t used = 0; /* groups with rows */
  gemm->last = NULL;
  for (int64_t g = 0; g < gemm->count; g++) {
    const gemm_group_t *group = &gemm->groups[g];
    if (group->m > 0 && used++) gemm->last = group;
    if (gemm_streams(group)) {
      work += group->m ? group->n * group->k : 0;
    } else {
      work += vec_blocks(group->m * group->n, GEMM_NR) * group->k;
      if (gemm_thin(gemm, group)) continue;
      if (gemm_many_rows(gemm, group)) most_n = GEMM_ROWS_NB;
      m = m > group->m ? m : group->m;
      n = n > group->n ? n : group->n;
    }
  }
  gemm->block_m = gemm->block_n = 1; /* of no meaning where every group streams */
  gemm->threads = work < VEC_SMALL ? 1 : device->threads;
  if (m > 0) gemm_cut(gemm, m, n, most_n, (int32_t)gemm->threads);
  gemm->items = gemm_count_items(gemm);
  return vec_run(device, gemm->items, work, gemm_item, gemm);
}
