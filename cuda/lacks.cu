/* What the CUDA backend does not compute, in one place: operations that it lacks, and members of the
 * others that must be zero here. Each answers NN_ERR_UNSUPPORTED and names what was asked. */
#include <stdio.h>

#include "device.h"

static nn_status_t lacks(backend_device_t *device, const char *operation, const char *what) {
  char message[192];
  snprintf(message, sizeof message,
           "cuda:%d: %s: %s is not computed on a GPU by this release; use the CPU", device->index,
           operation, what);
  device->failed = 1;
  return device->options.fail(NN_ERR_UNSUPPORTED, message);
}

/* An operation that is not there at all. */
#define LACKS_OP(name, args)                                                                        \
  static nn_status_t lacks_##name(backend_device_t *device, const args *op,                         \
                                  backend_scratch_t scratch) {                                      \
    (void)op, (void)scratch;                                                                        \
    return lacks(device, #name, "this operation");                                                  \
  }

/* An operation that computes but for what a condition asks of it. */
#define LACKS_PART(name, args, condition, what)                                                     \
  static nn_status_t lacks_##name(backend_device_t *device, const args *op,                         \
                                  backend_scratch_t scratch) {                                      \
    if (condition) return lacks(device, #name, what);                                               \
    return cuda_##name(device, op, scratch);                                                        \
  }

static int factor(float alpha) { return backend_factor(alpha) != 1.0f; }

static int router(const op_router_t *r) {
  return r->score != NN_SCORE_SOFTMAX || r->norm != NN_ROUTER_NORM_SUM || r->groups ||
         factor(r->scale) || r->bias || r->choice_bias;
}

LACKS_OP(clip, op_clip_t)
LACKS_OP(clip_bwd, op_clip_bwd_t)
LACKS_OP(glu, op_glu_t)
LACKS_OP(glu_bwd, op_glu_bwd_t)
LACKS_OP(row_gate, op_row_gate_t)
LACKS_OP(row_gate_bwd, op_row_gate_bwd_t)
LACKS_PART(embed, op_embed_t, factor(op->alpha), "a scale of embeddings")
LACKS_PART(embed_bwd, op_embed_bwd_t, factor(op->alpha), "a scale of embeddings")
LACKS_PART(norm, op_norm_t, op->groups > 1 || op->ldx || op->ldy, "a norm of parts of a row")
LACKS_PART(norm_bwd, op_norm_bwd_t, op->groups > 1 || op->ldx || op->ldy || op->assign,
           "a norm of parts of a row")
LACKS_PART(matmul, op_matmul_t, factor(op->alpha), "a factor of a product")
LACKS_PART(column_sum, op_column_sum_t, factor(op->alpha), "a factor of a sum")
LACKS_PART(rope, op_rope_t,
           op->interleaved || (op->rotary_dim && op->rotary_dim != op->head_dim),
           "a rotation of neighbours or of a part of a head")
LACKS_PART(attention, op_attention_t, op->window || op->sinks, "a window or sinks")
LACKS_PART(attention_bwd, op_attention_bwd_t, op->window || op->sinks, "a window or sinks")
LACKS_PART(route, op_route_t, router(&op->router),
           "routing other than by softmax with weights that sum to 1")
LACKS_PART(route_bwd, op_route_bwd_t, router(&op->router),
           "routing other than by softmax with weights that sum to 1")
LACKS_PART(experts, op_experts_t, op->limit != 0.0f || op->gate_bias, "a clamped or biased expert")
LACKS_PART(experts_bwd, op_experts_bwd_t, op->limit != 0.0f || op->down_bias,
           "a clamped or biased expert")
LACKS_PART(head_loss, op_head_loss_t, factor(op->alpha), "a scale of logits")

void cuda_lacks_table(backend_t *table) {
  table->clip = lacks_clip;
  table->clip_bwd = lacks_clip_bwd;
  table->glu = lacks_glu;
  table->glu_bwd = lacks_glu_bwd;
  table->row_gate = lacks_row_gate;
  table->row_gate_bwd = lacks_row_gate_bwd;
  table->embed = lacks_embed;
  table->embed_bwd = lacks_embed_bwd;
  table->norm = lacks_norm;
  table->norm_bwd = lacks_norm_bwd;
  table->matmul = lacks_matmul;
  table->column_sum = lacks_column_sum;
  table->rope = lacks_rope;
  table->attention = lacks_attention;
  table->attention_bwd = lacks_attention_bwd;
  table->route = lacks_route;
  table->route_bwd = lacks_route_bwd;
  table->experts = lacks_experts;
  table->experts_bwd = lacks_experts_bwd;
  table->head_loss = lacks_head_loss;
}
