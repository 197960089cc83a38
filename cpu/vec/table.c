/* The table of this instruction set: every operation but router_loss, sample and fill_normal, which
 * stay plain C, and project and moe, which call the table's operations one after the other. */
#include "vec/gemm.h"
#include "vec/ops.h"

void VEC_JOIN(VEC_ISA, table)(backend_t *table) {
  table->embed = VEC(embed);
  table->embed_bwd = VEC(embed_bwd);
  table->norm = VEC(norm);
  table->norm_bwd = VEC(norm_bwd);
  table->matmul = VEC(matmul);
  table->column_sum = VEC(column_sum);
  table->clip = VEC(clip);
  table->clip_bwd = VEC(clip_bwd);
  table->copy_heads = VEC(copy_heads);
  table->rope = VEC(rope);
  table->attention = VEC(attention);
  table->attention_bwd = VEC(attention_bwd);
  table->kv_store = VEC(kv_store);
  table->route = VEC(route);
  table->route_bwd = VEC(route_bwd);
  table->glu = VEC(glu);
  table->glu_bwd = VEC(glu_bwd);
  table->row_gate = VEC(row_gate);
  table->row_gate_bwd = VEC(row_gate_bwd);
  table->experts = VEC(experts);
  table->experts_bwd = VEC(experts_bwd);
  table->head_loss = VEC(head_loss);
  table->softmax = VEC(softmax);
  table->grad_norm = VEC(grad_norm);
  table->adamw = VEC(adamw);
}
