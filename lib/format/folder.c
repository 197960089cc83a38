/* Opening and reading model folders. */
#include "format/folder.h"

#include <stdlib.h>
#include <string.h>

#include "base/json_text.h"
#include "base/mem.h"
#include "format/config_json.h"
#include "format/folder_match.h"
#include "format/name_show.h"
#include "format/param_io.h"
#include "format/staging.h"

enum { MOST_INDEX = 100 * 1000 * 1000, MOST_ATTEMPTS = 10 };

/* ---- files ----------------------------------------------------------------------------------- */

static nn_status_t folder_load_config(const char *path, const file_map_t *map, folder_t *folder) {
  nn_status_t status = config_json_read(map->data, map->bytes, &folder->config);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", file_show(path).text);
}

/* Adds one file, mapped already, to folder->files, which has room. */
static nn_status_t folder_add_file(const char *path, const char *name, file_map_t *map,
                                   folder_t *folder) {
  nn_status_t status = safetensors_take(name, map, &folder->files[folder->file_count]);
  if (status != NN_OK) return status_prefix(status, "%s", file_show(path).text);
  folder->file_count++;
  return NN_OK;
}

/* A file of the same folder, not a path to somewhere else. */
static bool index_name_is_plain(const char *name) {
  static const char suffix[] = ".safetensors";
  size_t length = strlen(name);
  return name[0] != '.' && !strchr(name, '/') && !strchr(name, '\\') &&
         length > sizeof suffix - 1 && strcmp(name + length - (sizeof suffix - 1), suffix) == 0;
}

static int index_compare(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The distinct file names of a weight map, sorted; names live as long as the map. */
static nn_status_t index_files(json_t *weight_map, const char **names, int64_t *count) {
  const char *tensor;
  json_t *file;
  int64_t all = 0;
  json_object_foreach(weight_map, tensor, file) {
    const char *name = json_string_value(file);
    if (!name || !index_name_is_plain(name))
      return status_fail(
          NN_ERR_FORMAT,
          "weight_map has \"%s\" in \"%s\", which is no safetensors file of the folder",
          name_show(tensor).text, name_show(name ? name : "?").text);
    names[all++] = name;
  }
  qsort(names, (size_t)all, sizeof *names, index_compare);
  *count = 0;
  for (int64_t i = 0; i < all; i++)
    if (!i || strcmp(names[i], names[*count - 1]) != 0) names[(*count)++] = names[i];
  return NN_OK;
}

/* Every tensor of a shard is listed as being in it, and no other is. */
static nn_status_t index_check(json_t *weight_map, const char **names, const folder_t *folder) {
  int64_t tensors = 0;
  for (int64_t i = 0; i < folder->file_count; i++) {
    const safetensors_t *file = &folder->files[i];
    for (int64_t j = 0; j < file->count; j++) {
      const char *listed = json_string_value(json_object_get(weight_map, file->tensors[j].name));
      if (!listed || strcmp(listed, names[i]) != 0)
        return status_fail(NN_ERR_FORMAT, "tensor \"%s\" is in %s, and weight_map says %s",
                           name_show(file->tensors[j].name).text, name_show(names[i]).text,
                           name_show(listed ? listed : "nothing of it").text);
    }
    tensors += file->count;
  }
  if (tensors != (int64_t)json_object_size(weight_map))
    return status_fail(NN_ERR_FORMAT, "weight_map lists %zu tensors, and its files hold %lld",
                       json_object_size(weight_map), (long long)tensors);
  return NN_OK;
}

static nn_status_t index_failed(nn_status_t status, const char *path) {
  return status == NN_OK ? NN_OK
                         : status_prefix(status, "%s/" STAGING_INDEX, file_show(path).text);
}

static nn_status_t folder_open_shards(const char *path, json_t *weight_map, folder_t *folder) {
  if (!json_is_object(weight_map) || !json_object_size(weight_map))
    return index_failed(status_fail(NN_ERR_FORMAT, "weight_map is missing or empty"), path);
  void *names_memory, *files;
  STATUS_TRY(mem_alloc(json_object_size(weight_map), sizeof(char *), &names_memory));
  const char **names = names_memory;
  int64_t count = 0;
  nn_status_t status = index_failed(index_files(weight_map, names, &count), path);
  if (status == NN_OK) status = mem_alloc((size_t)count, sizeof *folder->files, &files);
  if (status == NN_OK) folder->files = files;
  for (int64_t i = 0; status == NN_OK && i < count; i++) {
    file_map_t map = {0};
    int32_t which;
    status = staging_map(path, &names[i], 1, &map, &which);
    if (status == NN_OK) status = folder_add_file(path, names[i], &map, folder);
    file_unmap(&map);
  }
  if (status == NN_OK) status = index_failed(index_check(weight_map, names, folder), path);
  mem_free(names_memory);
  return status;
}

static nn_status_t folder_open_index(const char *path, const file_map_t *map, folder_t *folder) {
  if (map->bytes > MOST_INDEX)
    return status_fail(NN_ERR_FORMAT, "%s/" STAGING_INDEX ": has %zu bytes; at most %d are read",
                       file_show(path).text, map->bytes, MOST_INDEX);
  json_t *index;
  nn_status_t status = json_text_read(map->data, map->bytes, 0, &index);
  if (status != NN_OK) return status_prefix(status, "%s/" STAGING_INDEX, file_show(path).text);
  status = folder_open_shards(path, json_object_get(index, "weight_map"), folder);
  json_decref(index);
  return status;
}

static nn_status_t folder_open_weights(const char *path, folder_t *folder) {
  static const char *const forms[] = {STAGING_WEIGHTS, STAGING_INDEX};
  file_map_t map = {0};
  int32_t form;
  STATUS_TRY(staging_map(path, forms, 2, &map, &form));
  nn_status_t status;
  if (form == 0) {
    void *files;
    status = mem_alloc(1, sizeof *folder->files, &files);
    if (status == NN_OK) {
      folder->files = files;
      status = folder_add_file(path, STAGING_WEIGHTS, &map, folder);
    }
  } else {
    status = folder_open_index(path, &map, folder);
  }
  file_unmap(&map);
  return status;
}

static nn_status_t folder_check(const char *path, folder_t *folder) {
  nn_status_t status = folder_match(folder);
  return status == NN_OK ? NN_OK : status_prefix(status, "%s", file_show(path).text);
}

/* Opens config.json, then the weights, and says whether both were of one model. */
static nn_status_t folder_open_files(const char *path, folder_t *folder, bool *same) {
  static const char *const config_name[] = {STAGING_CONFIG};
  file_map_t config = {0};
  int32_t which;
  *same = true;
  STATUS_TRY(staging_map(path, config_name, 1, &config, &which));
  nn_status_t status = folder_load_config(path, &config, folder);
  if (status == NN_OK) status = folder_open_weights(path, folder);
  nn_status_t compared = staging_map_is(&config, path, STAGING_CONFIG, same);
  file_unmap(&config);
  return compared == NN_OK ? status : compared;
}

nn_status_t folder_open(const char *path, folder_t *folder) {
  STATUS_TRY(file_check_folder(path));
  /* a save that becomes the folder's model while its files are opened replaces config.json: then
   * those opened may be of two models, and are opened again */
  for (int attempt = 0; attempt < MOST_ATTEMPTS; attempt++) {
    folder_t opened = {0};
    bool same;
    nn_status_t status = folder_open_files(path, &opened, &same);
    if (status == NN_OK && same) status = folder_check(path, &opened);
    if (status == NN_OK && same) {
      *folder = opened;
      return NN_OK;
    }
    folder_close(&opened);
    if (status == NN_ERR_MEMORY || same) return status;
  }
  return status_fail(NN_ERR_IO, "%s: its files were replaced each of the %d times they were opened",
                     file_show(path).text, MOST_ATTEMPTS);
}

void folder_close(folder_t *folder) {
  for (int64_t i = 0; i < folder->file_count; i++) safetensors_close(&folder->files[i]);
  mem_free(folder->files);
  mem_free(folder->sources);
  param_table_free(&folder->table);
  *folder = (folder_t){0};
}

/* ---- data ------------------------------------------------------------------------------------ */

/* Where a buffer would begin whose element `offset` is at data. */
static uintptr_t buffer_begin(const unsigned char *data, int64_t offset, size_t element) {
  return (uintptr_t)data - (uintptr_t)offset * element;
}

/* Whether the files' data is the parameter buffer of dtype, byte for byte. */
static bool folder_is_buffer(const folder_t *folder, int32_t dtype, uintptr_t *begin) {
  enum { ALIGNMENT = 64 }; /* as the backend's own memory */
  const size_t element = nn_dtype_bytes(dtype);
  if (folder->file_count != 1 || !folder->files[0].map.bytes) return false;
  for (int64_t i = 0; i < folder->table.count; i++) {
    const param_t *param = &folder->table.items[i];
    const param_source_t *source = &folder->sources[i];
    uintptr_t found = buffer_begin(source->data, param->offset, element);
    if (!i) *begin = found;
    /* read in another order than stored: runs, or a transpose of more than one column */
    bool turned = param->ndim == 2 && param->stride[0] == 1 && param->shape[1] > 1;
    if (source->dtype != dtype || param->run_stride || turned || found != *begin) return false;
  }
  return *begin % ALIGNMENT == 0;
}

static void folder_unmap(void *owner) {
  file_unmap(owner);
  mem_free(owner);
}

nn_status_t folder_map(folder_t *folder, nn_device_t *device, int32_t dtype, storage_t **buffer) {
  uintptr_t begin = 0;
  *buffer = NULL;
  if (!device->host_memory || !folder_is_buffer(folder, dtype, &begin)) return NN_OK;
  file_map_t *map = &folder->files[0].map;
  if (!file_map_own(map)) return NN_OK;
  void *owner;
  STATUS_TRY(mem_alloc(1, sizeof *map, &owner));
  nn_status_t status = storage_wrap_counted(
      device, (void *)begin, (size_t)folder->table.elements * nn_dtype_bytes(dtype), folder_unmap,
      owner, buffer);
  if (status != NN_OK) {
    mem_free(owner);
    return status;
  }
  memcpy(owner, map, sizeof *map);
  *map = (file_map_t){0};
  return NN_OK;
}

/* Which parameters are still to be read. */
typedef struct rest {
  const folder_t *folder;
  int64_t next;
  int32_t dtype;
  void *buffer;
} rest_t;

static bool rest_next(void *user, param_item_t *item) {
  rest_t *rest = user;
  if (rest->next == rest->folder->table.count) return false;
  *item = (param_item_t){.param = rest->folder->table.items[rest->next],
                         .dtype = rest->dtype,
                         .buffer = rest->buffer,
                         .source = rest->folder->sources[rest->next]};
  rest->next++;
  return true;
}

nn_status_t folder_read(const folder_t *folder, int32_t dtype, void *buffer,
                        nn_progress_fn progress, void *user, const atomic_int *cancel,
                        nn_device_t *device) {
  transfer_t transfer = {.progress = progress, .user = user, .cancel = cancel,
                         .device = device};
  const param_t *params = folder->table.items;
  for (int64_t i = 0; i < folder->table.count; i++)
    transfer.total += param_io_bytes(&params[i], &folder->sources[i]);
  if (!buffer) return transfer_advance(&transfer, transfer.total);
  rest_t rest = {.folder = folder, .dtype = dtype, .buffer = buffer};
  return param_io_read(rest_next, &rest, &transfer);
}
