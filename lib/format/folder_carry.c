#include "format/folder_carry.h"

#include "base/json_text.h"
#include "base/mem.h"
#include "base/status.h"
#include "format/staging.h"

static const char *const names[] = {
    "generation_config.json", "tokenizer.json",     "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "tokenizer.model.v3",     "tekken.json",        "spiece.model",
    "vocab.json",             "merges.txt",         "vocab.txt",
    "chat_template.jinja",    "chat_template.json",
};

static nn_status_t carry_write(const file_map_t *map, const char *place, const char *name) {
  char *path;
  STATUS_TRY(file_join(place, name, &path));
  file_writer_t writer = {0};
  nn_status_t status = file_writer_open(path, &writer);
  mem_free(path);
  STATUS_TRY(status);
  status = file_writer_write(&writer, map->data, map->bytes);
  if (status == NN_OK) return file_writer_commit(&writer);
  file_writer_discard(&writer);
  return status;
}

static nn_status_t carry_file(const char *source, const char *target, const char *place,
                              const char *name) {
  char *there;
  STATUS_TRY(file_join(target, name, &there));
  bool kept = file_exists(there);
  mem_free(there);
  if (kept) return NN_OK;
  file_map_t map = {0};
  int32_t which;
  nn_status_t status = staging_map(source, &name, 1, &map, &which);
  if (status == NN_ERR_NOT_FOUND) return NN_OK;
  if (status == NN_OK) status = carry_write(&map, place, name);
  file_unmap(&map);
  return status;
}

nn_status_t folder_carry(const char *source, const char *target, const char *place) {
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    STATUS_TRY(carry_file(source, target, place, names[i]));
  return NN_OK;
}

nn_status_t folder_carry_tokens(const char *source, json_t **tokens) {
  static const char *const keys[] = {"bos_token_id", "eos_token_id", "pad_token_id"};
  static const char *const config[] = {STAGING_CONFIG};
  json_t *root = NULL, *kept = json_object();
  file_map_t map = {0};
  int32_t which;
  nn_status_t status = staging_map(source, config, 1, &map, &which);
  if (status == NN_OK) status = json_text_read(map.data, map.bytes, 0, &root);
  file_unmap(&map);
  int failed = !kept;
  for (size_t i = 0; i < sizeof keys / sizeof *keys && !failed; i++) {
    json_t *value = json_object_get(root, keys[i]);
    failed = value && json_object_set(kept, keys[i], value);
  }
  json_decref(root);
  if (status != NN_ERR_MEMORY) status = NN_OK; /* what cannot be read names no ids */
  if (status == NN_OK && failed)
    status = status_fail(NN_ERR_MEMORY, "memory for the ids of tokens could not be had");
  if (status == NN_OK) *tokens = kept;
  else json_decref(kept);
  return status;
}
