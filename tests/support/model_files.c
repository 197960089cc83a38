#include "model_files.h"

#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "format/config_json.h"

stamped_t stamped_make(nn_model_config_t config, int tag) {
  stamped_t model = {.config = config, .table = files_table(&config)};
  assert_true(model.table.elements <= 65536 && tag < 8);
  model.values = fixture_memory((size_t)model.table.elements * sizeof(float));
  for (int64_t i = 0; i < model.table.elements; i++)
    model.values[i] = (float)tag + (float)i / 65536;
  return model;
}

void stamped_free(stamped_t *model) {
  param_table_free(&model->table);
  free(model->values);
}

nn_status_t stamped_save(const stamped_t *model, const char *folder, int64_t shard_bytes) {
  return folder_save(folder, &model->config, &model->table, NN_F32, model->values, shard_bytes,
                     NULL, NULL, NULL, NULL, NULL);
}

int stamped_is(const stamped_t *model, const char *path) {
  folder_t folder = {0};
  CHECK(folder_open(path, &folder));
  float *values = fixture_memory((size_t)folder.table.elements * sizeof(float));
  CHECK(folder_read(&folder, NN_F32, values, NULL, NULL, NULL, NULL));
  int same = memcmp(&folder.config, &model->config, sizeof model->config) == 0 &&
             memcmp(values, model->values, (size_t)model->table.elements * sizeof(float)) == 0;
  free(values);
  folder_close(&folder);
  return same;
}

typedef struct writing {
  const stamped_t *model;
  const param_t **params; /* of each entry; NULL: two zeros */
  const safetensors_entry_t *entries;
} writing_t;

/* Element by element in published order, straight from the strides. */
static nn_status_t writing_source(void *user, int64_t index, file_writer_t *writer) {
  const writing_t *writing = user;
  const param_t *param = writing->params[index];
  int32_t dtype = writing->entries[index].dtype;
  if (!param) return file_writer_write(writer, (char[8]){0}, 8);
  for (int64_t i = 0; i < param->elements; i++) {
    int64_t at = param->offset, rest = i;
    for (int32_t d = param->ndim - 1; d >= 0; rest /= param->shape[d--])
      at += rest % param->shape[d] * param->stride[d];
    float value = writing->model->values[at];
    double wide = (double)value;
    uint16_t narrow = dtype == NN_BF16 ? dtype_f32_to_bf16(value) : dtype_f32_to_f16(value);
    const void *bytes = dtype == NN_F32 ? (const void *)&value : &narrow;
    if (nn_dtype_bytes(dtype) != 2 && dtype != NN_F32) bytes = &wide; /* its number is of no use */
    nn_status_t status = file_writer_write(writer, bytes, nn_dtype_bytes(dtype));
    if (status != NN_OK) return status;
  }
  return NN_OK;
}

static int params_compare(const void *a, const void *b) {
  const param_t *left = *(const param_t *const *)a, *right = *(const param_t *const *)b;
  return left->offset < right->offset ? -1 : 1;
}

void stamped_write(const stamped_t *model, const char *folder, const char *name, oddity_t oddity) {
  static const int64_t two[] = {2};
  const param_table_t *table = &model->table;
  size_t most = (size_t)table->count + 3;
  safetensors_entry_t *entries = fixture_memory(most * sizeof *entries);
  const param_t **params = fixture_memory(most * sizeof *params);
  const param_t **sorted = fixture_memory(most * sizeof *params); /* as a save has them */
  int64_t count = 0;
  for (int64_t i = 0; i < table->count; i++) sorted[i] = &table->items[i];
  qsort(sorted, (size_t)table->count, sizeof *sorted, params_compare);
  for (int64_t i = 0; i < table->count; i++) {
    const param_t *param = sorted[i];
    if (oddity.skip && strcmp(param->name, oddity.skip) == 0) continue;
    params[count] = param;
    safetensors_entry_t *entry = &entries[count++];
    *entry = (safetensors_entry_t){
        .name = param->name, .dtype = oddity.dtype, .ndim = param->ndim, .shape = param->shape};
    if (oddity.bare) entry->name += strlen("transformer.");
    if (oddity.rename && strcmp(param->name, oddity.rename) == 0) entry->name = oddity.to;
    if (oddity.retype && strcmp(param->name, oddity.retype) == 0)
      entry->dtype = oddity.to_dtype ? oddity.to_dtype : NN_F64;
    if (oddity.reshape && strcmp(param->name, oddity.reshape) == 0) {
      entry->ndim = 1;
      entry->shape = &param->elements;
    }
  }
  for (int i = 0; i < 3 && oddity.extra[i]; i++)
    entries[count++] =
        (safetensors_entry_t){.name = oddity.extra[i], .dtype = NN_F32, .ndim = 1, .shape = two};
  writing_t writing = {.model = model, .params = params, .entries = entries};
  CHECK(safetensors_write(files_path(folder, name), entries, count, NULL, 0, writing_source,
                          &writing));
  free(entries);
  free(params);
  free(sorted);
}

void stamped_write_config(const stamped_t *model, const char *folder) {
  char *text;
  CHECK(config_json_write(&model->config, NN_F32, NULL, &text, NULL));
  files_write_text(folder, "config.json", text);
  mem_free(text);
}
