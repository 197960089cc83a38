/* Every family against what transformers writes (golden/configs, made by make_configs.py): its
 * config.json, in the spelling of version 5 and of version 4, means what transformers makes of it,
 * survives being written, and names the tensors that transformers saves. */
#include <dirent.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "files.h"
#include "golden.h"
#include "model/family.h"

typedef struct member {
  const char *name;
  size_t offset;
  char kind; /* i: int32_t, l: int64_t, f: float, w: four words, r: RoPE's factors */
} member_t;

static const member_t members[] = {
#define INT(member) {#member, offsetof(nn_model_config_t, member), 'i'}
#define LONG(member) {#member, offsetof(nn_model_config_t, member), 'l'}
#define FLOAT(member) {#member, offsetof(nn_model_config_t, member), 'f'}
#define WORDS(member) {#member, offsetof(nn_model_config_t, member), 'w'}
#define FACTORS(member) {#member, offsetof(nn_model_config_t, member), 'r'}
    INT(family), INT(norm), INT(position), INT(ffn_kind), LONG(vocab_size), LONG(context),
    LONG(layers), LONG(hidden), LONG(heads), LONG(kv_heads), LONG(head_dim), LONG(ffn),
    LONG(experts), LONG(top_k), INT(biases), INT(tied_head), FLOAT(norm_eps), FLOAT(rope_theta),
    FLOAT(rope_ntk_alpha), FLOAT(init_std), FLOAT(aux_loss_coef), INT(aux_loss),
    FLOAT(z_loss_coef), FLOAT(capacity_factor), LONG(dense_ffn), WORDS(dense_layers), LONG(window),
    WORDS(window_layers), INT(qk_norm), FLOAT(qkv_clip), LONG(shared_ffn), INT(shared_gate),
    INT(router_score), INT(router_norm), FLOAT(router_scale), INT(router_choice_bias),
    INT(router_group_score), LONG(router_groups), LONG(router_top_groups), FLOAT(router_eps),
    INT(attention_sinks), FLOAT(embedding_scale), FLOAT(residual_scale), FLOAT(attention_scale),
    FLOAT(logit_scale), LONG(rotary_dim), INT(rope_interleaved), INT(rope_scaling),
    LONG(rope_original_context), FLOAT(rope_factor), FLOAT(rope_beta_fast), FLOAT(rope_beta_slow),
    FLOAT(rope_low_freq), FLOAT(rope_high_freq), FLOAT(rope_attention_factor), FLOAT(rope_mscale),
    FLOAT(rope_mscale_all_dim), INT(rope_no_truncate), FLOAT(swiglu_limit), LONG(q_rank),
    LONG(kv_rank), LONG(rope_head_dim), LONG(value_head_dim), FLOAT(rope_short_mscale),
    FLOAT(rope_long_mscale), FACTORS(rope_short_factors), FACTORS(rope_long_factors),
};

enum { MEMBERS = sizeof members / sizeof *members };

/* The meaning as a configuration. A member that is not said is 0, or what validation writes. */
static nn_model_config_t meaning(const json_t *means) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  const char *name;
  json_t *value;
  json_object_foreach((json_t *)means, name, value) {
    const member_t *member = members;
    while (member < members + MEMBERS && strcmp(member->name, name) != 0) member++;
    if (member == members + MEMBERS) fail_msg("there is no member %s", name);
    char *at = (char *)&config + member->offset;
    int32_t small = (int32_t)json_integer_value(value);
    int64_t large = json_integer_value(value);
    float real = (float)json_number_value(value);
    switch (member->kind) {
      case 'i': memcpy(at, &small, sizeof small); break;
      case 'l': memcpy(at, &large, sizeof large); break;
      case 'f': memcpy(at, &real, sizeof real); break;
      case 'r':
        for (size_t j = 0; j < json_array_size(value); j++)
          ((float *)(void *)at)[j] = (float)json_number_value(json_array_get(value, j));
        break;
      default:
        for (size_t word = 0; word < 4; word++)
          ((uint64_t *)(void *)at)[word] =
              (uint64_t)json_integer_value(json_array_get(value, word));
    }
  }
  CHECK(nn_config_validate(&config));
  return config;
}

static void check_same(const nn_model_config_t *found, const nn_model_config_t *wanted,
                       const char *file, const char *form) {
  static const size_t bytes[] = {['i'] = 4, ['l'] = 8, ['f'] = 4, ['w'] = 32, ['r'] = 512};
  for (const member_t *member = members; member < members + MEMBERS; member++)
    if (memcmp((const char *)found + member->offset, (const char *)wanted + member->offset,
               bytes[(int)member->kind]) != 0) {
      float real[2];
      int32_t small[2];
      memcpy(real, (const char *)found + member->offset, 4);
      memcpy(real + 1, (const char *)wanted + member->offset, 4);
      memcpy(small, real, sizeof small);
      fail_msg("%s, %s: %s is %d or %g, and should be %d or %g", file, form, member->name, small[0],
               (double)real[0], small[1], (double)real[1]);
    }
  assert_memory_equal(found, wanted, sizeof *found); /* nothing is left out above */
}

static nn_model_config_t read_json(const json_t *object) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  char *text = json_dumps(object, 0);
  assert_non_null(text);
  CHECK(nn_config_from_json(text, strlen(text), &config));
  free(text);
  return config;
}

static void check_written(const nn_model_config_t *config, const char *file) {
  size_t required = 0;
  CHECK_STATUS(NN_ERR_CAPACITY, nn_config_to_json(config, NULL, 0, &required));
  char *text = fixture_memory(required);
  CHECK(nn_config_to_json(config, text, required, &required));
  nn_model_config_t again = STRUCT(nn_model_config_t);
  CHECK(nn_config_from_json(text, strlen(text), &again));
  check_same(&again, config, file, "written here");
  free(text);
}

static void check_tensors(const nn_model_config_t *config, const json_t *tensors,
                          const char *file) {
  param_table_t table = files_table(config);
  const char *name;
  json_t *shape;
  json_object_foreach((json_t *)tensors, name, shape) {
    const param_t *param = param_find(&table, name);
    if (!param) {
      fail_msg("%s: no parameter is called %s", file, name);
      continue;
    }
    assert_int_equal(param->ndim, json_array_size(shape));
    for (int32_t i = 0; i < param->ndim; i++)
      if (param->shape[i] != json_integer_value(json_array_get(shape, (size_t)i)))
        fail_msg("%s: %s has another shape", file, name);
  }
  for (int64_t i = 0; i < table.count; i++)
    if (!json_object_get(tensors, table.items[i].name))
      fail_msg("%s: transformers has no %s", file, table.items[i].name);
  assert_int_equal(table.count, json_object_size(tensors));
  param_table_free(&table);
}

static void check_file(const char *file, int *seen) {
  size_t bytes;
  char *text = golden_text("configs", file, &bytes);
  json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
  assert_non_null(root);
  nn_model_config_t wanted = meaning(json_object_get(root, "means"));
  static const char *const forms[] = {"written", "older"};
  for (size_t i = 0; i < 2; i++) {
    nn_model_config_t found = read_json(json_object_get(root, forms[i]));
    check_same(&found, &wanted, file, forms[i]);
  }
  check_written(&wanted, file);
  check_tensors(&wanted, json_object_get(root, "tensors"), file);
  seen[wanted.family]++;
  json_decref(root);
  free(text);
}

static void every_family_is_as_transformers_writes_it(void **state) {
  (void)state;
  int seen[FAMILIES] = {0};
  DIR *folder = opendir(MOENN_TEST_DIR "/golden/configs");
  assert_non_null(folder);
  for (struct dirent *entry; (entry = readdir(folder));)
    if (strstr(entry->d_name, ".json")) check_file(entry->d_name, seen);
  closedir(folder);
  for (int family = 0; family < FAMILIES; family++)
    if (families[family].model_type) assert_in_range(seen[family], 2, 100);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_family_is_as_transformers_writes_it),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
