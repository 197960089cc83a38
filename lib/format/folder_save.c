/* Saving model folders: files first, then the one step of staging.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/json_text.h"
#include "base/mem.h"
#include "format/config_json.h"
#include "format/folder.h"
#include "format/folder_carry.h"
#include "format/param_io.h"
#include "format/staging.h"

static const int64_t default_shard_bytes = 50000000000;

typedef struct save {
  const char *place;  /* the folder written to */
  const char *source; /* the folder loaded from, or NULL */
  const param_table_t *table;
  int32_t dtype;
  const void *buffer;
  const param_t **params;       /* [table->count] in the order of the buffer */
  safetensors_entry_t *entries; /* [table->count] of these */
  int64_t *file_end;            /* [files] one past the last parameter of each file */
  int64_t files;
  int64_t first; /* parameter of the file being written */
  transfer_t transfer;
} save_t;

static nn_status_t save_param(void *user, int64_t index, file_writer_t *writer) {
  save_t *save = user;
  return param_io_write(save->params[save->first + index], save->dtype, save->buffer, writer,
                        &save->transfer);
}

/* ---- files ----------------------------------------------------------------------------------- */

static int param_by_offset(const void *a, const void *b) {
  const param_t *left = *(const param_t *const *)a, *right = *(const param_t *const *)b;
  return left->offset < right->offset ? -1 : left->offset > right->offset;
}

/* Parameters in their order, a new file whenever the next one would pass the bound. */
static void save_divide(save_t *save, int64_t shard_bytes) {
  int64_t filled = 0, element = (int64_t)nn_dtype_bytes(save->dtype);
  for (int64_t i = 0; i < save->table->count; i++) save->params[i] = &save->table->items[i];
  qsort(save->params, (size_t)save->table->count, sizeof *save->params, param_by_offset);
  for (int64_t i = 0; i < save->table->count; i++) {
    const param_t *param = save->params[i];
    int64_t bytes = param->elements * element;
    if (i && bytes > shard_bytes - filled) {
      save->file_end[save->files++] = i;
      filled = 0;
    }
    filled += bytes;
    save->entries[i] = (safetensors_entry_t){
        .name = param->name, .dtype = save->dtype, .ndim = param->ndim, .shape = param->shape};
  }
  save->file_end[save->files++] = save->table->count;
  save->transfer.total = save->table->elements * element;
}

typedef struct file_name {
  char text[64];
} file_name_t;

static file_name_t save_file_name(const save_t *save, int64_t file) {
  file_name_t name;
  if (save->files == 1)
    snprintf(name.text, sizeof name.text, STAGING_WEIGHTS);
  else
    snprintf(name.text, sizeof name.text, STAGING_SHARD, (int)file + 1, (int)save->files);
  return name;
}

static nn_status_t save_weights(save_t *save) {
  for (int64_t file = 0; file < save->files; file++) {
    char *path;
    STATUS_TRY(file_join(save->place, save_file_name(save, file).text, &path));
    save->first = file ? save->file_end[file - 1] : 0;
    nn_status_t status =
        safetensors_write(path, save->entries + save->first, save->file_end[file] - save->first,
                          NULL, 0, save_param, save);
    mem_free(path);
    STATUS_TRY(status);
  }
  return NN_OK;
}

static nn_status_t save_text(const save_t *save, const char *name, const char *text, size_t bytes) {
  char *path;
  STATUS_TRY(file_join(save->place, name, &path));
  file_writer_t writer = {0};
  nn_status_t status = file_writer_open(path, &writer);
  mem_free(path);
  STATUS_TRY(status);
  status = file_writer_write(&writer, text, bytes);
  if (status == NN_OK) return file_writer_commit(&writer);
  file_writer_discard(&writer);
  return status;
}

/* The index as JSON, or NULL when memory is short. */
static json_t *save_build_index(const save_t *save) {
  json_t *map = json_object();
  int failed = !map;
  for (int64_t i = 0, file = 0; !failed && i < save->table->count; i++) {
    if (i == save->file_end[file]) file++;
    failed = json_object_set_new(map, save->params[i]->name,
                                 json_string(save_file_name(save, file).text));
  }
  if (failed) {
    json_decref(map);
    map = NULL;
  }
  return json_pack("{s:{s:I, s:I}, s:o}", "metadata", "total_parameters",
                   (json_int_t)save->table->elements, "total_size",
                   (json_int_t)save->transfer.total, "weight_map", map);
}

static nn_status_t save_index(const save_t *save) {
  enum { FLAGS = JSON_INDENT(2) | JSON_SORT_KEYS };
  json_t *index = save_build_index(save);
  char *text = NULL;
  size_t bytes;
  nn_status_t status = json_text_write(index, FLAGS, 1, &text, &bytes);
  if (status == NN_OK) {
    text[bytes] = '\n';
    status = save_text(save, STAGING_INDEX, text, bytes + 1);
  }
  mem_free(text);
  json_decref(index);
  return status;
}

static nn_status_t save_config(const save_t *save, const nn_model_config_t *config) {
  char *text = NULL;
  size_t bytes = 0;
  json_t *tokens = NULL;
  if (save->source) STATUS_TRY(folder_carry_tokens(save->source, &tokens));
  nn_status_t status = config_json_write(config, save->dtype, tokens, &text, &bytes);
  if (status == NN_OK) status = save_text(save, STAGING_CONFIG, text, bytes);
  mem_free(text);
  json_decref(tokens);
  return status;
}

/* Says that nothing is known of how to generate; what a folder says already is left as it is. */
static nn_status_t save_generation_config(const save_t *save, const char *folder) {
  static const char name[] = "generation_config.json";
  static const char text[] = "{\n  \"_from_model_config\": true\n}\n";
  const char *const places[] = {folder, save->place}; /* the second: carried over */
  bool there = false;
  for (int i = 0; i < 2 && !there; i++) {
    char *path;
    STATUS_TRY(file_join(places[i], name, &path));
    there = file_exists(path);
    mem_free(path);
  }
  return there ? NN_OK : save_text(save, name, text, sizeof text - 1);
}

/* ---- the folder ------------------------------------------------------------------------------ */

static nn_status_t save_files(save_t *save, const char *folder, const nn_model_config_t *config,
                              int64_t shard_bytes) {
  size_t count = (size_t)save->table->count;
  void *entries = NULL, *ends = NULL, *params = NULL;
  nn_status_t status = mem_alloc(count, sizeof *save->entries, &entries);
  if (status == NN_OK) status = mem_alloc(count, sizeof *save->file_end, &ends);
  if (status == NN_OK) status = mem_alloc(count, sizeof *save->params, &params);
  if (status == NN_OK) {
    save->params = params;
    save->entries = entries;
    save->file_end = ends;
    save_divide(save, shard_bytes);
    /* five digits in the names */
    if (save->files > 99999)
      status = status_fail(NN_ERR_ARGUMENT,
                           "shard_bytes is %lld; that makes %lld files, and 99999 are "
                           "the limit",
                           (long long)shard_bytes, (long long)save->files);
  }
  if (status == NN_OK) status = save_weights(save);
  if (status == NN_OK && save->files > 1) status = save_index(save);
  if (status == NN_OK) status = save_config(save, config);
  if (status == NN_OK && save->source) status = folder_carry(save->source, folder, save->place);
  if (status == NN_OK) status = save_generation_config(save, folder);
  mem_free(params);
  mem_free(entries);
  mem_free(ends);
  return status;
}

nn_status_t folder_save(const char *path, const nn_model_config_t *config,
                        const param_table_t *table, int32_t dtype, const void *buffer,
                        int64_t shard_bytes, nn_progress_fn progress, void *user,
                        const atomic_int *cancel, nn_device_t *device, const char *source) {
  if (shard_bytes < 0)
    return status_fail(NN_ERR_ARGUMENT, "shard_bytes is %lld; it must not be negative",
                       (long long)shard_bytes);
  save_t save = {.table = table, .dtype = dtype, .buffer = buffer, .source = source};
  save.transfer = (transfer_t){.progress = progress, .user = user, .cancel = cancel,
                         .device = device};
  staging_t staging;
  STATUS_TRY(staging_begin(path, &staging));
  save.place = staging.saving;
  nn_status_t status =
      save_files(&save, path, config, shard_bytes ? shard_bytes : default_shard_bytes);
  return status == NN_OK ? staging_commit(&staging) : staging_abandon(&staging, status);
}
