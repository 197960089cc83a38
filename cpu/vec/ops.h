/* The operations of this folder other than matrix products, experts and loss: one declaration
 * per entry of backend_t. table.c puts them into the table of its path; ops_scratch.h has their
 * scratch. */
#ifndef NN_CPU_VEC_OPS_H
#define NN_CPU_VEC_OPS_H

#include "vec/ops_scratch.h"
#include "vec/vec.h"

#define VEC_OP(name, args) \
  nn_status_t VEC(name)(backend_device_t *device, const args *op, backend_scratch_t scratch)

VEC_OP(embed, op_embed_t);
VEC_OP(embed_bwd, op_embed_bwd_t);
VEC_OP(norm, op_norm_t);
VEC_OP(norm_bwd, op_norm_bwd_t);
VEC_OP(column_sum, op_column_sum_t);
VEC_OP(clip, op_clip_t);
VEC_OP(clip_bwd, op_clip_bwd_t);
VEC_OP(copy_heads, op_copy_heads_t);
VEC_OP(rope, op_rope_t);
VEC_OP(attention, op_attention_t);
VEC_OP(attention_bwd, op_attention_bwd_t);
VEC_OP(kv_store, op_kv_store_t);
VEC_OP(route, op_route_t);
VEC_OP(route_bwd, op_route_bwd_t);
VEC_OP(glu, op_glu_t);
VEC_OP(glu_bwd, op_glu_bwd_t);
VEC_OP(row_gate, op_row_gate_t);
VEC_OP(row_gate_bwd, op_row_gate_bwd_t);
VEC_OP(grad_norm, op_grad_norm_t);
VEC_OP(adamw, op_adamw_t);

#endif
