#include "model/weights.h"

#include "base/mem.h"
#include "base/status.h"

/* Where a role's pointer lives; NULL for roles that another one covers. */
static void **weights_place(weights_t *weights, const param_t *param) {
  block_weights_t *block = param->layer >= 0 ? &weights->blocks[param->layer] : NULL;
  switch (param->role) {
    case PARAM_WTE: return &weights->wte;
    case PARAM_WPE: return &weights->wpe;
    case PARAM_NORM1: return &block->norm1;
    case PARAM_NORM1_BIAS: return &block->norm1_bias;
    case PARAM_Q:
    case PARAM_QKV: return &block->qkv;
    case PARAM_Q_BIAS:
    case PARAM_QKV_BIAS: return &block->qkv_bias;
    case PARAM_Q_A: return &block->q_a;
    case PARAM_Q_A_NORM: return &block->q_a_norm;
    case PARAM_Q_B: return &block->q_b;
    case PARAM_KV_A: return &block->kv_a;
    case PARAM_KV_A_NORM: return &block->kv_a_norm;
    case PARAM_KV_B: return &block->kv_b;
    case PARAM_Q_NORM: return &block->q_norm;
    case PARAM_K_NORM: return &block->k_norm;
    case PARAM_SINKS: return &block->sinks;
    case PARAM_O: return &block->o;
    case PARAM_O_BIAS: return &block->o_bias;
    case PARAM_NORM2: return &block->norm2;
    case PARAM_NORM2_BIAS: return &block->norm2_bias;
    case PARAM_ROUTER: return &block->router;
    case PARAM_ROUTER_BIAS: return &block->router_bias;
    case PARAM_ROUTER_CHOICE_BIAS: return &block->choice_bias;
    case PARAM_DENSE_GATE: return &block->dense_gate_up;
    case PARAM_DENSE_GATE_BIAS: return &block->dense_gate_up_bias;
    case PARAM_DENSE_DOWN: return &block->dense_down;
    case PARAM_DENSE_DOWN_BIAS: return &block->dense_down_bias;
    case PARAM_SHARED_GATE: return &block->shared_gate_up;
    case PARAM_SHARED_DOWN: return &block->shared_down;
    case PARAM_SHARED_EXPERT_GATE: return &block->shared_expert_gate;
    case PARAM_GATE_UP:
    case PARAM_GATE: return param->expert > 0 ? NULL : &block->gate;
    case PARAM_UP: return param->expert ? NULL : &block->up;
    case PARAM_GATE_UP_BIAS: return &block->gate_bias;
    case PARAM_DOWN: return param->expert > 0 ? NULL : &block->down;
    case PARAM_DOWN_BIAS: return &block->down_bias;
    case PARAM_FC: return &block->fc;
    case PARAM_FC_BIAS: return &block->fc_bias;
    case PARAM_PROJ: return &block->proj;
    case PARAM_PROJ_BIAS: return &block->proj_bias;
    case PARAM_NORM_FINAL: return &weights->norm_final;
    case PARAM_NORM_FINAL_BIAS: return &weights->norm_final_bias;
    case PARAM_HEAD: return &weights->head;
    case PARAM_HEAD_BIAS: return &weights->head_bias;
    case PARAM_K: /* behind Q, and so on */
    case PARAM_V:
    case PARAM_K_BIAS:
    case PARAM_V_BIAS:
    case PARAM_DENSE_UP:
    case PARAM_DENSE_UP_BIAS:
    case PARAM_SHARED_UP: return NULL;
  }
  return NULL;
}

nn_status_t weights_bind(const nn_model_config_t *config, const param_table_t *table, void *buffer,
                         size_t element_bytes, weights_t *weights) {
  *weights = (weights_t){0};
  void *got = NULL;
  STATUS_TRY(mem_alloc((size_t)config->layers, sizeof(block_weights_t), &got));
  weights->blocks = got;
  weights->expert_stride = table->expert_elements;
  weights->expert_bias_stride = table->expert_vector_elements;
  weights->interleaved = config->ffn_kind == NN_FFN_SWIGLU_CLAMPED;
  for (int64_t i = 0; i < table->count; i++) {
    const param_t *param = &table->items[i];
    void **place = weights_place(weights, param);
    if (place) *place = (char *)buffer + (size_t)param->offset * element_bytes;
    if (param->role == PARAM_GATE_UP) { /* both in one parameter */
      int64_t up = config->ffn_kind == NN_FFN_SWIGLU_CLAMPED ? config->hidden
                                                             : config->ffn * config->hidden;
      weights->blocks[param->layer].up =
          (char *)buffer + (size_t)(param->offset + up) * element_bytes;
    }
    if (param->role == PARAM_GATE_UP_BIAS)
      weights->blocks[param->layer].up_bias =
          (char *)buffer + (size_t)(param->offset + 1) * element_bytes;
  }
  if (!weights->head) weights->head = weights->wte;
  return NN_OK;
}

void weights_free(weights_t *weights) {
  mem_free(weights->blocks);
  *weights = (weights_t){0};
}
