#include "format/folder_match.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/dtype.h"
#include "base/mem.h"
#include "base/status.h"
#include "format/mxfp4.h"
#include "format/name_show.h"
#include "model/family.h"

/* ---- all tensors of all files, by name ------------------------------------------------------- */

typedef struct entry {
  const safetensors_tensor_t *tensor;
  const safetensors_t *file;
  bool used;
} entry_t;

typedef struct entries {
  entry_t *items;
  int64_t count;
} entries_t;

static int entry_compare(const void *a, const void *b) {
  return strcmp(((const entry_t *)a)->tensor->name, ((const entry_t *)b)->tensor->name);
}

static entry_t *entries_find(const entries_t *entries, const char *name) {
  safetensors_tensor_t wanted = {.name = name};
  entry_t key = {.tensor = &wanted};
  return bsearch(&key, entries->items, (size_t)entries->count, sizeof key, entry_compare);
}

static nn_status_t entries_collect(const folder_t *folder, entries_t *entries) {
  int64_t total = 0;
  for (int64_t i = 0; i < folder->file_count; i++) total += folder->files[i].count;
  void *items;
  STATUS_TRY(mem_alloc((size_t)total, sizeof(entry_t), &items));
  *entries = (entries_t){.items = items};
  for (int64_t i = 0; i < folder->file_count; i++)
    for (int64_t j = 0; j < folder->files[i].count; j++)
      entries->items[entries->count++] =
          (entry_t){.tensor = &folder->files[i].tensors[j], .file = &folder->files[i]};
  qsort(entries->items, (size_t)total, sizeof(entry_t), entry_compare);
  for (int64_t i = 1; i < total; i++)
    if (entry_compare(&entries->items[i - 1], &entries->items[i]) == 0)
      return status_fail(NN_ERR_FORMAT, "tensor \"%s\" is in two of the files",
                         name_show(entries->items[i].tensor->name).text);
  return NN_OK;
}

/* ---- names ----------------------------------------------------------------------------------- */

static const char gpt2_prefix[] = "transformer.";

/* A tensor's name as this library's tables have it: published GPT-2 files leave the prefix out. */
static const char *name_without_prefix(const char *name) {
  return strncmp(name, gpt2_prefix, sizeof gpt2_prefix - 1) == 0 ? name + sizeof gpt2_prefix - 1
                                                                 : name;
}

/* The layer of "<before>N<rest>" with digits for N, or -1; rest is what follows. */
static int64_t name_layer(const char *name, const char *before, const char **rest) {
  if (strncmp(name, before, strlen(before)) != 0) return -1;
  const char *digits = name + strlen(before);
  size_t length = strspn(digits, "0123456789");
  if (!length || length > 9) return -1;
  *rest = digits + length;
  return strtoll(digits, NULL, 10);
}

/* Tensors that some files have and no model needs: masks and frequencies that follow from the
 * configuration, a copy of the embedding where the head is tied to it, and the layers behind the
 * last one that predict further tokens. */
static bool name_is_redundant(const char *name, const nn_model_config_t *config) {
  const family_t *family = &families[config->family];
  const char *rest = "";
  if (config->tied_head && strcmp(name, "lm_head.weight") == 0) return true;
  if (config->family == NN_FAMILY_GPT2)
    return name_layer(name_without_prefix(name), "h.", &rest) >= 0 &&
           (strcmp(rest, ".attn.bias") == 0 || strcmp(rest, ".attn.masked_bias") == 0);
  int64_t layer = name_layer(name, family->layer_prefix, &rest);
  if (layer >= 0 && strcmp(rest, ".self_attn.rotary_emb.inv_freq") == 0) return true;
  return family->predicting_layers && layer >= config->layers && rest[0] == '.';
}

/* ---- matching tensors with parameters -------------------------------------------------------- */

/* What a tensor must be. */
typedef struct wanted {
  int32_t ndim;
  int64_t shape[4];
} wanted_t;

typedef struct shape_text {
  char text[200];
} shape_text_t;

static shape_text_t shape_show(int32_t ndim, const int64_t *shape) {
  shape_text_t shown = {""};
  for (int32_t i = 0; i < ndim; i++) {
    size_t used = strlen(shown.text);
    snprintf(shown.text + used, sizeof shown.text - used, "%s%lld", i ? ", " : "",
             (long long)shape[i]);
  }
  return shown;
}

static nn_status_t check_shape(const safetensors_tensor_t *tensor, const wanted_t *wanted) {
  bool fits = tensor->ndim == wanted->ndim;
  for (int32_t i = 0; fits && i < wanted->ndim; i++) fits = tensor->shape[i] == wanted->shape[i];
  if (fits) return NN_OK;
  return status_fail(NN_ERR_FORMAT, "tensor \"%s\": its shape is [%s]; config.json makes it [%s]",
                     name_show(tensor->name).text, shape_show(tensor->ndim, tensor->shape).text,
                     shape_show(wanted->ndim, wanted->shape).text);
}

static nn_status_t check_tensor(const safetensors_tensor_t *tensor, const wanted_t *wanted) {
  STATUS_TRY(check_shape(tensor, wanted));
  if (dtype_is_float(tensor->dtype)) return NN_OK;
  return status_fail(NN_ERR_UNSUPPORTED,
                     "tensor \"%s\": its dtype is %s; F32, BF16 and F16 are read",
                     name_show(tensor->name).text, tensor->dtype_name);
}

/* The tensor that newer programs keep a parameter in: under another name, and where it is an
 * expert's, behind those of the experts before it. NULL: there is none. */
static entry_t *find_fused(const nn_model_config_t *config, const param_t *param,
                           const entries_t *entries, wanted_t *wanted, int64_t *begin) {
  const family_t *family = &families[config->family];
  const fused_t *fused = family->fused;
  while (fused && fused->name && fused->role != param->role) fused++;
  if (!fused || !fused->name) return NULL;
  char name[PARAM_NAME_BYTES];
  snprintf(name, sizeof name, "%s%lld.%s", family->layer_prefix, (long long)param->layer,
           fused->name);
  if (param->expert >= 0) {
    bool pair = param->role == PARAM_GATE || param->role == PARAM_UP;
    int64_t rows = param->shape[0] * (pair ? 2 : 1);
    *wanted = (wanted_t){3, {config->experts, rows, param->shape[1]}};
    *begin = param->expert * rows * param->shape[1];
    if (param->role == PARAM_UP) *begin += param->elements;
  }
  return entries_find(entries, name);
}

/* One of the two tensors that hold a parameter as MXFP4. */
static entry_t *find_packed(const param_t *param, const char *suffix, const entries_t *entries) {
  char name[PARAM_NAME_BYTES + 8];
  snprintf(name, sizeof name, "%s%s", param->name, suffix);
  return entries_find(entries, name);
}

/* Whether all experts' blocks and scales are there in place of a parameter that stacks transposes:
 * the stored rows, block by block. */
static nn_status_t match_packed(const param_t *param, const entries_t *entries,
                                param_source_t *source, bool *found) {
  entry_t *blocks = find_packed(param, "_blocks", entries);
  entry_t *scales = find_packed(param, "_scales", entries);
  *found = blocks && scales && param->ndim == 3 && param->stride[1] == 1;
  if (!*found) return NN_OK;
  const int64_t cols = param->shape[1];
  if (cols % MXFP4_BLOCK)
    return status_fail(NN_ERR_FORMAT, "tensor \"%s\": its rows of %lld are no whole blocks of %d",
                       name_show(blocks->tensor->name).text, (long long)cols, MXFP4_BLOCK);
  const wanted_t wanted = {
      4, {param->shape[0], param->shape[2], cols / MXFP4_BLOCK, MXFP4_BLOCK_BYTES}};
  const wanted_t wanted_scales = {3, {param->shape[0], param->shape[2], cols / MXFP4_BLOCK}};
  STATUS_TRY(check_shape(blocks->tensor, &wanted));
  STATUS_TRY(check_shape(scales->tensor, &wanted_scales));
  const safetensors_tensor_t *other =
      blocks->tensor->dtype != NN_U8 ? blocks->tensor : scales->tensor;
  if (other->dtype != NN_U8)
    return status_fail(NN_ERR_UNSUPPORTED, "tensor \"%s\": its dtype is %s; MXFP4 is read as U8",
                       name_show(other->name).text, other->dtype_name);
  blocks->used = scales->used = true;
  *source = (param_source_t){.map = &blocks->file->map,
                             .dtype = NN_U8,
                             .data = blocks->tensor->data,
                             .scales = scales->tensor->data};
  return NN_OK;
}

static nn_status_t param_match(const nn_model_config_t *config, const param_t *param,
                               const entries_t *entries, param_source_t *source) {
  entry_t *entry = entries_find(entries, param->name);
  const char *bare = name_without_prefix(param->name);
  wanted_t wanted = {param->ndim, {param->shape[0], param->shape[1], param->shape[2]}};
  int64_t begin = 0;
  if (config->family == NN_FAMILY_GPT2 && bare != param->name) {
    entry_t *other = entries_find(entries, bare);
    if (entry && other)
      return status_fail(NN_ERR_FORMAT, "tensor \"%s\" is there with and without its prefix",
                         name_show(bare).text);
    if (other) entry = other;
  }
  if (!entry) entry = find_fused(config, param, entries, &wanted, &begin);
  if (!entry) {
    bool packed = false;
    STATUS_TRY(match_packed(param, entries, source, &packed));
    if (packed) return NN_OK;
    *source = (param_source_t){0};
    return NN_OK;
  }
  STATUS_TRY(check_tensor(entry->tensor, &wanted));
  entry->used = true;
  size_t element = nn_dtype_bytes(entry->tensor->dtype);
  *source = (param_source_t){.map = &entry->file->map,
                             .dtype = entry->tensor->dtype,
                             .data = entry->tensor->data + (size_t)begin * element};
  return NN_OK;
}

/* What follows the first of so many names. */
typedef struct more {
  char text[40];
} more_t;

static more_t more_show(int64_t count) {
  more_t more = {""};
  if (count > 1) snprintf(more.text, sizeof more.text, " and %lld more", (long long)count - 1);
  return more;
}

/* Every parameter has a source, and every tensor was used or is of no use. */
static nn_status_t check_complete(const folder_t *folder, const entries_t *entries) {
  const char *missing = NULL, *unused = NULL;
  int64_t missing_count = 0, unused_count = 0;
  for (int64_t i = 0; i < folder->table.count; i++) {
    if (folder->sources[i].data) continue;
    if (!missing_count++) missing = folder->table.items[i].name;
  }
  for (int64_t i = 0; i < entries->count; i++) {
    const char *name = entries->items[i].tensor->name;
    if (entries->items[i].used || name_is_redundant(name, &folder->config)) continue;
    if (!unused_count++) unused = name;
  }
  const more_t missing_more = more_show(missing_count), unused_more = more_show(unused_count);
  if (missing && unused)
    return status_fail(
        NN_ERR_FORMAT,
        "missing: tensor \"%s\"%s; no parameter of config.json's model: tensor \"%s\"%s", missing,
        missing_more.text, name_show(unused).text, unused_more.text);
  if (missing)
    return status_fail(NN_ERR_FORMAT, "missing: tensor \"%s\"%s", missing, missing_more.text);
  if (unused)
    return status_fail(NN_ERR_FORMAT, "no parameter of config.json's model: tensor \"%s\"%s",
                       name_show(unused).text, unused_more.text);
  return NN_OK;
}

static nn_status_t match_entries(folder_t *folder, const entries_t *entries) {
  param_table_t counts;
  STATUS_TRY(param_table_count(&folder->config, &counts));
  /* the table takes memory in proportion to what the files hold, not to what config.json claims;
   * of all experts together there may be one tensor */
  int64_t least = counts.count / 4, bytes = 0;
  if (folder->config.experts) least /= folder->config.experts;
  for (int64_t i = 0; i < entries->count; i++) bytes += (int64_t)entries->items[i].tensor->bytes;
  if (least > entries->count || counts.elements / 2 > bytes)
    return status_fail(NN_ERR_FORMAT,
                       "config.json asks for %lld tensors of %lld elements in all, and %lld of "
                       "%lld bytes are there",
                       (long long)counts.count, (long long)counts.elements,
                       (long long)entries->count, (long long)bytes);
  STATUS_TRY(param_table_build(&folder->config, &folder->table));
  void *sources;
  STATUS_TRY(mem_alloc((size_t)folder->table.count, sizeof *folder->sources, &sources));
  folder->sources = sources;
  for (int64_t i = 0; i < folder->table.count; i++)
    STATUS_TRY(param_match(&folder->config, &folder->table.items[i], entries,
                           &folder->sources[i]));
  STATUS_TRY(check_complete(folder, entries));
  folder->dtype = folder->sources[0].dtype;
  return NN_OK;
}

nn_status_t folder_match(folder_t *folder) {
  entries_t entries = {0};
  nn_status_t status = entries_collect(folder, &entries);
  if (status == NN_OK) status = match_entries(folder, &entries);
  mem_free(entries.items);
  return status;
}
