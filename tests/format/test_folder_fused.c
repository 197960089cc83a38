/* Families' folders: what each one has is saved and read again, and the layout of newer programs,
 * all experts of a layer in one tensor, is read as the published one is. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/family.h"
#include "model_files.h"

static char *folder;

static int setup(void **state) {
  (void)state;
  folder = fixture_folder();
  return 0;
}

static int teardown(void **state) {
  (void)state;
  fixture_folder_remove(folder);
  return 0;
}

static void every_family_is_saved_and_read_again(void **state) {
  (void)state;
  for (int32_t family = 0; family < FAMILIES; family++) {
    if (!families[family].model_type) continue;
    stamped_t model = stamped_make(files_family(family), 1);
    CHECK(stamped_save(&model, folder, 0));
    assert_true(stamped_is(&model, folder));
    CHECK(stamped_save(&model, folder, 3000));
    assert_true(stamped_is(&model, folder));
    /* and as another program writes it: published order, element by element */
    char *other = fixture_folder();
    stamped_write_config(&model, other);
    stamped_write(&model, other, "model.safetensors", (oddity_t){0});
    assert_true(stamped_is(&model, other));
    fixture_folder_remove(other);
    stamped_free(&model);
  }
}

/* ---- the fused layout ------------------------------------------------------------------------ */

typedef struct fusing {
  const stamped_t *model;
  safetensors_entry_t *entries;
  char (*names)[PARAM_NAME_BYTES];
  int64_t (*shapes)[3];
  const param_t **first; /* of expert 0, or the one parameter */
  int64_t count;
} fusing_t;

/* The fused name of a parameter, or NULL. */
static const char *fused_name(const family_t *family, const param_t *param) {
  for (const fused_t *fused = family->fused; fused && fused->name; fused++)
    if (fused->role == param->role) return fused->name;
  return NULL;
}

static void fusing_add(fusing_t *fusing, const param_t *param) {
  const family_t *family = &families[fusing->model->config.family];
  const char *name = param->layer >= 0 ? fused_name(family, param) : NULL;
  if (name && param->expert >= 0 && (param->expert || param->role == PARAM_UP)) return;
  int64_t at = fusing->count++;
  fusing->first[at] = param;
  if (name)
    snprintf(fusing->names[at], PARAM_NAME_BYTES, "%s%lld.%s", family->layer_prefix,
             (long long)param->layer, name);
  else
    snprintf(fusing->names[at], PARAM_NAME_BYTES, "%s", param->name);
  int32_t ndim = param->ndim;
  memcpy(fusing->shapes[at], param->shape, sizeof param->shape);
  if (name && param->expert == 0) {
    ndim = 3;
    fusing->shapes[at][0] = fusing->model->config.experts;
    fusing->shapes[at][1] = param->shape[0] * (param->role == PARAM_GATE ? 2 : 1);
    fusing->shapes[at][2] = param->shape[1];
  }
  fusing->entries[at] = (safetensors_entry_t){
      .name = fusing->names[at], .dtype = NN_F32, .ndim = ndim, .shape = fusing->shapes[at]};
}

static nn_status_t fusing_param(const stamped_t *model, const param_t *param,
                                file_writer_t *writer) {
  for (int64_t i = 0; i < param->elements; i++) {
    int64_t at = param->offset, rest = i;
    for (int32_t d = param->ndim - 1; d >= 0; rest /= param->shape[d--])
      at += rest % param->shape[d] * param->stride[d];
    CHECK(file_writer_write(writer, &model->values[at], sizeof(float)));
  }
  return NN_OK;
}

static nn_status_t fusing_source(void *user, int64_t index, file_writer_t *writer) {
  const fusing_t *fusing = user;
  const param_t *first = fusing->first[index];
  const param_table_t *table = &fusing->model->table;
  if (fusing->entries[index].ndim != 3 || first->expert < 0)
    return fusing_param(fusing->model, first, writer);
  for (int64_t expert = 0; expert < fusing->model->config.experts; expert++)
    for (int up = 0; up < (first->role == PARAM_GATE ? 2 : 1); up++)
      for (int64_t i = 0; i < table->count; i++) {
        const param_t *param = &table->items[i];
        param_role_t role = up ? PARAM_UP : first->role;
        if (param->layer == first->layer && param->expert == expert && param->role == role)
          fusing_param(fusing->model, param, writer);
      }
  return NN_OK;
}

/* Writes a model as newer programs keep it in memory; skip: a name to leave out, or NULL. */
static void write_fused(const stamped_t *model, const char *skip) {
  size_t most = (size_t)model->table.count;
  fusing_t fusing = {.model = model,
                     .entries = fixture_memory(most * sizeof *fusing.entries),
                     .names = fixture_memory(most * sizeof *fusing.names),
                     .shapes = fixture_memory(most * sizeof *fusing.shapes),
                     .first = fixture_memory(most * sizeof *fusing.first)};
  for (int64_t i = 0; i < model->table.count; i++) {
    fusing_add(&fusing, &model->table.items[i]);
    if (skip && strcmp(fusing.names[fusing.count - 1], skip) == 0) fusing.count--;
  }
  stamped_write_config(model, folder);
  CHECK(safetensors_write(files_path(folder, "model.safetensors"), fusing.entries, fusing.count,
                          NULL, 0, fusing_source, &fusing));
  free(fusing.entries), free(fusing.names), free(fusing.shapes), free(fusing.first);
}

static void all_experts_in_one_tensor_are_read(void **state) {
  (void)state;
  int read = 0;
  for (int32_t family = 0; family < FAMILIES; family++) {
    if (!families[family].fused) continue;
    stamped_t model = stamped_make(files_family(family), 2);
    write_fused(&model, NULL);
    assert_true(stamped_is(&model, folder));
    stamped_free(&model);
    read++;
  }
  assert_in_range(read, 9, FAMILIES);
}

static void refuse(const char *parts) {
  folder_t opened = {0};
  CHECK_FAILS(NN_ERR_FORMAT, parts, folder_open(folder, &opened));
}

static void fused_tensors_must_fit(void **state) {
  (void)state;
  stamped_t model = stamped_make(files_family(NN_FAMILY_QWEN2_MOE), 3);
  write_fused(&model, "model.layers.1.mlp.experts.down_proj");
  refuse("\"model.layers.1.mlp.experts.0.down_proj.weight\"|missing");
  write_fused(&model, NULL);
  stamped_t other = stamped_make(files_family(NN_FAMILY_QWEN2_MOE), 3);
  other.config.experts = 4;
  stamped_write_config(&other, folder);
  refuse("mlp.gate.weight|[4, 10]");
  other.config.experts = 3, other.config.ffn = 8;
  stamped_write_config(&other, folder);
  refuse("mlp.experts.gate_up_proj|[3, 16, 10]");
  stamped_free(&other);
  stamped_free(&model);
}

static void layers_that_predict_more_tokens_are_left_unread(void **state) {
  (void)state;
  stamped_t model = stamped_make(files_family(NN_FAMILY_GLM4_MOE), 4);
  stamped_write_config(&model, folder);
  stamped_write(&model, folder, "model.safetensors",
                (oddity_t){.extra = {"model.layers.3.eh_proj.weight", "model.layers.3.enorm.weight",
                                     "model.layers.0.self_attn.rotary_emb.inv_freq"}});
  assert_true(stamped_is(&model, folder));
  stamped_write(&model, folder, "model.safetensors",
                (oddity_t){.extra = {"model.layers.2.eh_proj.weight"}});
  refuse("\"model.layers.2.eh_proj.weight\"|no parameter");
  stamped_free(&model);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(every_family_is_saved_and_read_again, setup, teardown),
      cmocka_unit_test_setup_teardown(all_experts_in_one_tensor_are_read, setup, teardown),
      cmocka_unit_test_setup_teardown(fused_tensors_must_fit, setup, teardown),
      cmocka_unit_test_setup_teardown(layers_that_predict_more_tokens_are_left_unread, setup,
                                      teardown),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
