/* The plain C operations, one file per subject, and what they share. They define what every other
 * path is compared with, so sums are taken in double and rounded once, and they run programs on
 * processors without a path of their own, so loops follow the cache. */
#ifndef NN_CPU_REF_H
#define NN_CPU_REF_H

#include <stdint.h>
#include <string.h>

#include "base/dtype.h"
#include "cpu.h"

/* ---- small things ---------------------------------------------------------------------------- */

static inline int64_t ref_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ref_max(int64_t a, int64_t b) { return a > b ? a : b; }

/* How many blocks of a size cover n. */
static inline int64_t ref_blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* Element i of an array of NN_F32, NN_BF16 or NN_F16. */
static inline float ref_load(const void *data, int32_t dtype, int64_t i) {
  if (dtype == NN_F32) return ((const float *)data)[i];
  if (dtype == NN_F16) return dtype_f16_to_f32(((const uint16_t *)data)[i]);
  uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* The same, written; rounded to nearest, ties to even. */
static inline void ref_store(void *data, int32_t dtype, int64_t i, float value) {
  if (dtype == NN_F32) ((float *)data)[i] = value;
  else if (dtype == NN_F16) ((uint16_t *)data)[i] = dtype_f32_to_f16(value);
  else ((uint16_t *)data)[i] = dtype_f32_to_bf16(value);
}

/* n elements from element `at` on as floats: where they lie, or in room [n]. */
static inline const float *ref_row(const void *data, int32_t dtype, int64_t at, int64_t n,
                                   float *room) {
  if (dtype == NN_F32) return (const float *)data + at;
  for (int64_t i = 0; i < n; i++) room[i] = ref_load(data, dtype, at + i);
  return room;
}

/* <a, b> in double, eight interleaved partial sums. */
double ref_dot(const float *a, const float *b, int64_t n);

/* Scratch is cut into 64-byte aligned pieces of rows x cols elements. A product that overflows
 * becomes a size that no memory has, and of which several can still be added. */
static inline size_t ref_piece(int64_t rows, int64_t cols, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow((size_t)rows, (size_t)cols, &bytes) ||
      __builtin_mul_overflow(bytes, size, &bytes) || bytes > PTRDIFF_MAX / 8)
    return PTRDIFF_MAX / 8 / 64 * 64;
  return (bytes + 63) / 64 * 64;
}
static inline void *ref_take(char **at, int64_t rows, int64_t cols, size_t size) {
  void *piece = *at;
  *at += ref_piece(rows, cols, size);
  return piece;
}

/* ---- matmul.c: the tile that every matrix product is made of --------------------------------- */

enum { REF_TILE_ROWS = 16, REF_TILE_COLS = 64 };

/* A matrix where it lies: element (i, j) is data[at + r * row + j * col] with r = index[i], or i
 * where index is NULL. */
typedef struct ref_matrix {
  const void *data;
  int32_t dtype;
  int64_t row, col;
  const int32_t *index;
  int64_t at;
} ref_matrix_t;

typedef struct ref_tile {
  double sum[REF_TILE_ROWS][REF_TILE_COLS];
} ref_tile_t;

/* tile += rows i .. i + REF_TILE_ROWS of a [m, k] times columns j .. j + REF_TILE_COLS of b [k, n],
 * with what lies beyond m or n taken as zero. Each element sums over k in order. */
void ref_tile_add(ref_tile_t *tile, const ref_matrix_t *a, const ref_matrix_t *b, int64_t m,
                  int64_t n, int64_t k, int64_t i, int64_t j);

/* Where a product [m, n] goes: element (i, j) to data[at + i * row + j * col]. */
typedef struct ref_place {
  void *data;
  int32_t dtype;
  int64_t at, row, col;
} ref_place_t;

/* Rows i .. and columns j .. take the tile, or add it. */
void ref_tile_assign(const ref_tile_t *tile, const ref_place_t *out, int64_t m, int64_t n,
                     int64_t i, int64_t j);
void ref_tile_accumulate(const ref_tile_t *tile, const ref_place_t *out, int64_t m, int64_t n,
                         int64_t i, int64_t j);

/* ---- glu.c: the activation of gated linear units --------------------------------------------- */

/* act(g, u) as op_glu_t defines it. */
double ref_act(double g, double u, double limit);

/* Its derivatives by g and u. */
void ref_act_slopes(double g, double u, double limit, double *by_g, double *by_u);

/* ---- scratch --------------------------------------------------------------------------------- */

/* Bytes that suffice, within the limits, for every operation below that the table holds. */
size_t ref_scratch(const backend_t *table, const backend_limits_t *limits);

size_t ref_attention_scratch(const backend_limits_t *limits);
size_t ref_route_scratch(const backend_limits_t *limits);
size_t ref_experts_scratch(const backend_limits_t *limits);
size_t ref_loss_scratch(const backend_limits_t *limits);
size_t ref_sample_scratch(const backend_limits_t *limits);

/* ---- operations, as backend.h defines them --------------------------------------------------- */

#define REF_OP(name, args) \
  nn_status_t ref_##name(backend_device_t *device, const args *op, backend_scratch_t scratch)

REF_OP(embed, op_embed_t);
REF_OP(embed_bwd, op_embed_bwd_t);
REF_OP(norm, op_norm_t);
REF_OP(norm_bwd, op_norm_bwd_t);
REF_OP(matmul, op_matmul_t);
REF_OP(column_sum, op_column_sum_t);
REF_OP(clip, op_clip_t);
REF_OP(clip_bwd, op_clip_bwd_t);
REF_OP(copy_heads, op_copy_heads_t);
REF_OP(rope, op_rope_t);
REF_OP(attention, op_attention_t);
REF_OP(attention_bwd, op_attention_bwd_t);
REF_OP(kv_store, op_kv_store_t);
REF_OP(route, op_route_t);
REF_OP(route_bwd, op_route_bwd_t);
REF_OP(router_loss, op_router_loss_t);
REF_OP(glu, op_glu_t);
REF_OP(glu_bwd, op_glu_bwd_t);
REF_OP(row_gate, op_row_gate_t);
REF_OP(row_gate_bwd, op_row_gate_bwd_t);
REF_OP(experts, op_experts_t);
REF_OP(experts_bwd, op_experts_bwd_t);
REF_OP(head_loss, op_head_loss_t);
REF_OP(softmax, op_softmax_t);
REF_OP(grad_norm, op_grad_norm_t);
REF_OP(adamw, op_adamw_t);
REF_OP(sample, op_sample_t);
REF_OP(fill_normal, op_fill_normal_t);
REF_OP(project, op_project_t);
REF_OP(moe, op_moe_t);

#endif
