/* The parameter table: every element of the buffer belongs to exactly one parameter, decayed ones
 * first; the neighbourhoods that the block code relies on; names and shapes as the families publish
 * them. */
#include <string.h>

#include "base/mem.h"
#include "files.h"
#include "model/family.h"

/* The parameter of a role, or NULL. */
static const param_t *param_get(const param_table_t *table, param_role_t role, int64_t layer,
                                int64_t expert) {
  for (int64_t i = 0; i < table->count; i++) {
    const param_t *param = &table->items[i];
    if (param->layer == layer && param->role == role && param->expert == expert) return param;
  }
  return NULL;
}

static void check_cover(const nn_model_config_t *config) {
  param_table_t table = files_table(config), counts;
  CHECK(param_table_count(config, &counts));
  assert_null(counts.items);
  assert_int_equal(table.count, counts.count);
  assert_int_equal(table.elements, counts.elements);
  assert_int_equal(table.decayed, counts.decayed);
  assert_int_equal(table.active, counts.active);

  unsigned char *taken = fixture_memory((size_t)table.elements);
  for (int64_t i = 0; i < table.count; i++) {
    const param_t *param = &table.items[i];
    int64_t elements = 1;
    for (int32_t d = 0; d < param->ndim; d++) elements *= param->shape[d];
    assert_int_equal(param->elements, elements);
    assert_int_equal(param->offset < table.decayed, param->ndim - (param->run_stride != 0) >= 2);
    /* published element (p, r, c) is at offset + p stride[0] + r stride[1] + c stride[2] */
    for (int64_t e = 0; e < elements; e++) {
      int64_t at = param->offset, rest = e;
      for (int32_t d = param->ndim - 1; d >= 0; rest /= param->shape[d--])
        at += rest % param->shape[d] * param->stride[d];
      assert_in_range(at, 0, table.elements - 1);
      assert_int_equal(taken[at]++, 0);
      int64_t within = at - param->offset;
      if (param->run_stride) within %= param->run_stride;
      assert_in_range(within, 0, elements / param->runs - 1);
    }
    assert_ptr_equal(param_find(&table, param->name), param);
    assert_ptr_equal(param_get(&table, param->role, param->layer, param->expert), param);
  }
  for (int64_t i = 0; i < table.elements; i++) assert_int_equal(taken[i], 1);
  free(taken);
  param_table_free(&table);
  assert_null(table.items);
}

static void every_element_belongs_to_one_parameter(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  check_cover(&config);
  config.tied_head = 1;
  check_cover(&config);
  for (int32_t family = 0; family < FAMILIES; family++) {
    if (!families[family].model_type) continue;
    config = files_family(family);
    check_cover(&config);
  }
}

static void check_adjacent(const param_t *first, const param_t *next) {
  assert_non_null(first);
  assert_non_null(next);
  assert_int_equal(first->offset + first->elements, next->offset);
}

static void neighbours_are_where_the_blocks_want_them(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  param_table_t table = files_table(&config);
  for (int64_t layer = 0; layer < config.layers; layer++) {
    const param_t *value = param_get(&table, PARAM_V, layer, -1);
    check_adjacent(param_get(&table, PARAM_Q, layer, -1), param_get(&table, PARAM_K, layer, -1));
    check_adjacent(param_get(&table, PARAM_K, layer, -1), value);
    const param_t *first = param_get(&table, PARAM_GATE, layer, 0);
    for (int64_t e = 0; e < config.experts; e++) {
      const param_t *gate = param_get(&table, PARAM_GATE, layer, e);
      check_adjacent(gate, param_get(&table, PARAM_UP, layer, e));
      check_adjacent(param_get(&table, PARAM_UP, layer, e),
                     param_get(&table, PARAM_DOWN, layer, e));
      assert_int_equal(gate->offset - first->offset, e * 3 * config.ffn * config.hidden);
    }
  }
  assert_null(param_get(&table, PARAM_QKV, 0, -1));
  assert_null(param_get(&table, PARAM_Q, config.layers, -1));
  assert_null(param_get(&table, PARAM_GATE, 0, config.experts));
  assert_null(param_find(&table, "model.layers.2.self_attn.q_proj.weight"));
  param_table_free(&table);
}

static void gates_and_ups_are_one_matrix(void **state) {
  (void)state;
  nn_model_config_t config = files_family(NN_FAMILY_QWEN2_MOE);
  param_table_t table = files_table(&config);
  check_adjacent(param_get(&table, PARAM_Q_BIAS, 2, -1), param_get(&table, PARAM_K_BIAS, 2, -1));
  check_adjacent(param_get(&table, PARAM_K_BIAS, 2, -1), param_get(&table, PARAM_V_BIAS, 2, -1));
  check_adjacent(param_get(&table, PARAM_DENSE_GATE, 2, -1),
                 param_get(&table, PARAM_DENSE_UP, 2, -1));
  check_adjacent(param_get(&table, PARAM_SHARED_GATE, 1, -1),
                 param_get(&table, PARAM_SHARED_UP, 1, -1));
  check_adjacent(param_get(&table, PARAM_GATE, 1, 2), param_get(&table, PARAM_UP, 1, 2));
  assert_int_equal(param_get(&table, PARAM_DENSE_GATE, 0, -1)->shape[0], 9);
  assert_null(param_get(&table, PARAM_DENSE_GATE, 1, -1));
  assert_null(param_get(&table, PARAM_ROUTER, 0, -1));
  param_table_free(&table);

  config = files_family(NN_FAMILY_LLAMA);
  table = files_table(&config);
  check_adjacent(param_get(&table, PARAM_DENSE_GATE_BIAS, 1, -1),
                 param_get(&table, PARAM_DENSE_UP_BIAS, 1, -1));
  param_table_free(&table);

  config = files_family(NN_FAMILY_GRANITEMOE);
  table = files_table(&config);
  const param_t *gate_up =
      param_find(&table, "model.layers.1.block_sparse_moe.input_linear.weight");
  const param_t *down = param_find(&table, "model.layers.1.block_sparse_moe.output_linear.weight");
  assert_int_equal(gate_up->run_stride, 3 * config.ffn * config.hidden);
  assert_int_equal(down->offset - gate_up->offset, 2 * config.ffn * config.hidden);
  param_table_free(&table);
}

typedef struct expected {
  const char *name;
  int64_t rows, cols;
} expected_t;

static void check_names(const nn_model_config_t *config, const expected_t *expected,
                        int64_t count) {
  param_table_t table = files_table(config);
  assert_int_equal(table.count, count);
  for (int64_t i = 0; i < count; i++) {
    const param_t *param = &table.items[i];
    assert_string_equal(param->name, expected[i].name);
    assert_int_equal(param->ndim, expected[i].cols ? 2 : 1);
    assert_int_equal(param->shape[0], expected[i].rows);
    if (expected[i].cols) assert_int_equal(param->shape[1], expected[i].cols);
  }
  param_table_free(&table);
}

static void mixtral_has_its_published_names(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  config.layers = 1, config.experts = 2;
  static const expected_t expected[] = {
      {"model.embed_tokens.weight", 37, 10},
      {"model.layers.0.self_attn.q_proj.weight", 24, 10},
      {"model.layers.0.self_attn.k_proj.weight", 12, 10},
      {"model.layers.0.self_attn.v_proj.weight", 12, 10},
      {"model.layers.0.self_attn.o_proj.weight", 10, 24},
      {"model.layers.0.block_sparse_moe.gate.weight", 2, 10},
      {"model.layers.0.block_sparse_moe.experts.0.w1.weight", 7, 10},
      {"model.layers.0.block_sparse_moe.experts.0.w2.weight", 10, 7},
      {"model.layers.0.block_sparse_moe.experts.0.w3.weight", 7, 10},
      {"model.layers.0.block_sparse_moe.experts.1.w1.weight", 7, 10},
      {"model.layers.0.block_sparse_moe.experts.1.w2.weight", 10, 7},
      {"model.layers.0.block_sparse_moe.experts.1.w3.weight", 7, 10},
      {"model.layers.0.input_layernorm.weight", 10, 0},
      {"model.layers.0.post_attention_layernorm.weight", 10, 0},
      {"model.norm.weight", 10, 0},
      {"lm_head.weight", 37, 10},
  };
  check_names(&config, expected, sizeof expected / sizeof *expected);
  config.tied_head = 1;
  check_names(&config, expected, sizeof expected / sizeof *expected - 1);
}

static void gpt2_has_its_published_names(void **state) {
  (void)state;
  nn_model_config_t config = files_gpt2();
  config.layers = 1;
  static const expected_t expected[] = {
      {"transformer.wte.weight", 41, 12},
      {"transformer.wpe.weight", 9, 12},
      {"transformer.h.0.ln_1.weight", 12, 0},
      {"transformer.h.0.ln_1.bias", 12, 0},
      {"transformer.h.0.attn.c_attn.weight", 12, 36},
      {"transformer.h.0.attn.c_attn.bias", 36, 0},
      {"transformer.h.0.attn.c_proj.weight", 12, 12},
      {"transformer.h.0.attn.c_proj.bias", 12, 0},
      {"transformer.h.0.ln_2.weight", 12, 0},
      {"transformer.h.0.ln_2.bias", 12, 0},
      {"transformer.h.0.mlp.c_fc.weight", 12, 50},
      {"transformer.h.0.mlp.c_fc.bias", 50, 0},
      {"transformer.h.0.mlp.c_proj.weight", 50, 12},
      {"transformer.h.0.mlp.c_proj.bias", 12, 0},
      {"transformer.ln_f.weight", 12, 0},
      {"transformer.ln_f.bias", 12, 0},
  };
  check_names(&config, expected, sizeof expected / sizeof *expected);
  /* linear layers are stored [out, in], which these files publish turned */
  param_table_t table = files_table(&config);
  const param_t *qkv = param_get(&table, PARAM_QKV, 0, -1);
  const param_t *proj = param_get(&table, PARAM_PROJ, 0, -1);
  assert_int_equal(qkv->stride[0], 1);
  assert_int_equal(qkv->stride[1], 12);
  assert_int_equal(proj->stride[0], 1);
  assert_int_equal(proj->stride[1], 50);
  param_table_free(&table);
}

static void a_table_needs_its_memory(void **state) {
  (void)state;
  nn_model_config_t config = files_mixtral();
  param_table_t table = {0};
  mem_fail_after(0);
  CHECK_STATUS(NN_ERR_MEMORY, param_table_build(&config, &table));
  mem_fail_after(-1);
  assert_null(table.items);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_element_belongs_to_one_parameter),
      cmocka_unit_test(neighbours_are_where_the_blocks_want_them),
      cmocka_unit_test(gates_and_ups_are_one_matrix),
      cmocka_unit_test(mixtral_has_its_published_names),
      cmocka_unit_test(gpt2_has_its_published_names),
      cmocka_unit_test(a_table_needs_its_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
