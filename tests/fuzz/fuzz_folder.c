/* Matching a file's tensors with the parameters of config.json: any pair is refused, or every
 * parameter can be read from the file. The input is the text of config.json, a NUL, and a
 * safetensors file without the length that it begins with: a header up to its first newline, and
 * data. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "format/config_json.h"
#include "format/folder_match.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const folder_t *folder) {
  float *values = malloc((size_t)folder->table.elements * sizeof *values + 1);
  if (!values) return;
  if (folder_read(folder, NN_F32, values, NULL, NULL, NULL, NULL) != NN_OK) abort();
  free(values);
}

static void match(const nn_model_config_t *config, const uint8_t *data, size_t size) {
  safetensors_t *file = calloc(1, sizeof *file);
  if (!file) return;
  if (safetensors_parse(data, size, file) != NN_OK) {
    free(file);
    return;
  }
  folder_t folder = {.config = *config, .files = file, .file_count = 1};
  if (folder_match(&folder) == NN_OK) read_all(&folder);
  folder_close(&folder); /* frees the file too */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
  nn_model_config_t config;
  if (!nul || config_json_read((const char *)data, (size_t)(nul - data), &config) != NN_OK)
    return 0;
  const uint8_t *header = nul + 1, *end = data + size;
  const uint8_t *newline = header < end ? memchr(header, '\n', (size_t)(end - header)) : NULL;
  if (!newline) return 0;
  uint64_t length = (uint64_t)(newline - header);
  size_t rest = (size_t)(end - newline - 1), bytes = sizeof length + (size_t)length + rest;
  uint8_t *file = malloc(bytes);
  if (!file) return 0;
  memcpy(file, &length, sizeof length);
  memcpy(file + sizeof length, header, (size_t)length);
  memcpy(file + sizeof length + length, newline + 1, rest);
  match(&config, file, bytes);
  free(file);
  return 0;
}
