/* The table of plain C operations, and the scratch of those that a table still holds. */
#include "ref.h"

void ref_table(backend_t *table) {
  table->embed = ref_embed;
  table->embed_bwd = ref_embed_bwd;
  table->norm = ref_norm;
  table->norm_bwd = ref_norm_bwd;
  table->matmul = ref_matmul;
  table->column_sum = ref_column_sum;
  table->clip = ref_clip;
  table->clip_bwd = ref_clip_bwd;
  table->copy_heads = ref_copy_heads;
  table->rope = ref_rope;
  table->attention = ref_attention;
  table->attention_bwd = ref_attention_bwd;
  table->kv_store = ref_kv_store;
  table->route = ref_route;
  table->route_bwd = ref_route_bwd;
  table->router_loss = ref_router_loss;
  table->glu = ref_glu;
  table->glu_bwd = ref_glu_bwd;
  table->row_gate = ref_row_gate;
  table->row_gate_bwd = ref_row_gate_bwd;
  table->experts = ref_experts;
  table->experts_bwd = ref_experts_bwd;
  table->head_loss = ref_head_loss;
  table->softmax = ref_softmax;
  table->grad_norm = ref_grad_norm;
  table->adamw = ref_adamw;
  table->sample = ref_sample;
  table->fill_normal = ref_fill_normal;
  table->project = ref_project;
  table->moe = ref_moe;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

size_t ref_scratch(const backend_t *table, const backend_limits_t *limits) {
  size_t bytes = 0;
  if (table->attention_bwd == ref_attention_bwd) bytes = ref_attention_scratch(limits);
  if (table->route == ref_route || table->route_bwd == ref_route_bwd)
    bytes = larger(bytes, ref_route_scratch(limits));
  if (table->experts == ref_experts || table->experts_bwd == ref_experts_bwd)
    bytes = larger(bytes, ref_experts_scratch(limits));
  if (table->head_loss == ref_head_loss) bytes = larger(bytes, ref_loss_scratch(limits));
  if (table->sample == ref_sample) bytes = larger(bytes, ref_sample_scratch(limits));
  return bytes;
}
