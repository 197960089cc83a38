#define _POSIX_C_SOURCE 200809L
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "model/config.h"
#include "model/family.h"

void files_check_message(const char *parts, const char *file, int line) {
  while (*parts) {
    char part[128];
    size_t length = strcspn(parts, "|");
    snprintf(part, sizeof part, "%.*s", (int)length, parts);
    if (!strstr(nn_last_error(), part)) {
      print_error("the message \"%s\" does not say \"%s\"\n", nn_last_error(), part);
      _fail(file, line);
    }
    parts += length + (parts[length] == '|');
  }
}

const char *files_path(const char *folder, const char *name) {
  static char paths[4][600];
  static int next;
  char *path = paths[next++ % 4];
  assert_true((size_t)snprintf(path, sizeof paths[0], "%s/%s", folder, name) < sizeof paths[0]);
  return path;
}

void files_write(const char *folder, const char *name, const void *data, size_t bytes) {
  FILE *file = fopen(files_path(folder, name), "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, bytes, file), bytes);
  assert_int_equal(fclose(file), 0);
}

void files_write_text(const char *folder, const char *name, const char *text) {
  files_write(folder, name, text, strlen(text));
}

void *files_read(const char *folder, const char *name, size_t *bytes) {
  FILE *file = fopen(files_path(folder, name), "rb");
  if (!file) return NULL;
  assert_int_equal(fseek(file, 0, SEEK_END), 0);
  *bytes = (size_t)ftell(file);
  rewind(file);
  char *data = fixture_memory(*bytes + 1);
  assert_int_equal(fread(data, 1, *bytes, file), *bytes);
  fclose(file);
  return data;
}

int files_exists(const char *folder, const char *name) {
  struct stat info;
  return stat(files_path(folder, name), &info) == 0;
}

int files_count(const char *folder) {
  int count = 0;
  DIR *listing = opendir(folder);
  assert_non_null(listing);
  for (const struct dirent *entry; (entry = readdir(listing));)
    count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
  closedir(listing);
  return count;
}

unsigned char *files_safetensors(const char *header, size_t data_bytes, size_t *bytes) {
  uint64_t length = strlen(header);
  *bytes = sizeof length + (size_t)length + data_bytes;
  unsigned char *file = fixture_memory(*bytes);
  memcpy(file, &length, sizeof length);
  memcpy(file + sizeof length, header, (size_t)length);
  return file;
}

nn_model_config_t files_mixtral(void) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  config.vocab_size = 37, config.context = 20, config.layers = 2, config.hidden = 10;
  config.heads = 6, config.kv_heads = 3, config.head_dim = 4, config.ffn = 7;
  config.experts = 3, config.top_k = 2, config.aux_loss_coef = 0.01f;
  CHECK(config_validate(&config));
  return config;
}

nn_model_config_t files_gpt2(void) {
  nn_model_config_t config = STRUCT(nn_model_config_t);
  config.family = NN_FAMILY_GPT2, config.norm = NN_NORM_LAYER,
  config.position = NN_POSITION_LEARNED;
  config.ffn_kind = NN_FFN_GELU_TANH, config.biases = NN_BIAS_ALL, config.tied_head = 1;
  config.vocab_size = 41, config.context = 9, config.layers = 2, config.hidden = 12;
  config.heads = 3, config.ffn = 50;
  CHECK(config_validate(&config));
  return config;
}

nn_model_config_t files_family(int32_t family) {
  nn_model_config_t config = files_mixtral();
  config.family = family;
  config.layers = 3;
  config.tied_head = 0;
  const family_t *row = &families[family];
  config.norm = row->norm;
  config.biases = row->biases | row->attention_biases | row->ffn_biases | row->head_biases;
  if (!row->sparse)
    config.experts = config.top_k = 0, config.aux_loss_coef = 0, config.aux_loss = 0;
  switch (family) {
    case NN_FAMILY_GPT2: config = files_gpt2(); break;
    case NN_FAMILY_OLMOE: config.qk_norm = NN_QK_NORM_FULL; break;
    case NN_FAMILY_QWEN3: config.qk_norm = NN_QK_NORM_HEAD; break;
    case NN_FAMILY_QWEN2_MOE:
      config.shared_ffn = 5, config.shared_gate = 1;
      config.dense_layers[0] = 5, config.dense_ffn = 9;
      break;
    case NN_FAMILY_QWEN3_MOE:
      config.qk_norm = NN_QK_NORM_HEAD;
      config.dense_layers[0] = 2, config.dense_ffn = 9;
      break;
    case NN_FAMILY_DEEPSEEK_V2:
    case NN_FAMILY_DEEPSEEK_V3:
      config.kv_heads = config.heads;
      config.q_rank = 5, config.kv_rank = 3, config.rope_head_dim = 2, config.value_head_dim = 3;
      config.dense_layers[0] = 1, config.shared_ffn = 14, config.rope_interleaved = 1;
      config.router_norm = NN_ROUTER_NORM_NONE;
      if (family == NN_FAMILY_DEEPSEEK_V3)
        config.router_score = NN_SCORE_SIGMOID, config.router_choice_bias = 1,
        config.router_group_score = NN_GROUP_TOP2;
      break;
    case NN_FAMILY_GLM4_MOE:
      config.qk_norm = NN_QK_NORM_HEAD;
      config.dense_layers[0] = 1, config.shared_ffn = 14;
      config.router_score = NN_SCORE_SIGMOID, config.router_choice_bias = 1;
      config.router_group_score = NN_GROUP_TOP2;
      break;
    case NN_FAMILY_GPT_OSS:
      config.ffn_kind = NN_FFN_SWIGLU_CLAMPED, config.swiglu_limit = 2;
      config.attention_sinks = 1, config.biases = NN_BIAS_ALL | NN_BIAS_ROUTER;
      config.window = 3, config.window_layers[0] = 1;
      break;
    case NN_FAMILY_PHIMOE:
      config.router_score = NN_SCORE_SPARSE_MIXER, config.router_norm = NN_ROUTER_NORM_NONE;
      config.router_eps = 0.01f;
      config.rope_scaling = NN_ROPE_LONG, config.rope_original_context = 8;
      config.rope_short_mscale = 1.25f, config.rope_long_mscale = 1.5f;
      for (int i = 0; i < 2; i++)
        config.rope_short_factors[i] = 1.1f + (float)i, config.rope_long_factors[i] = 3;
      break;
    default: break;
  }
  CHECK(config_validate(&config));
  return config;
}

param_table_t files_table(const nn_model_config_t *config) {
  param_table_t table;
  CHECK(param_table_build(config, &table));
  return table;
}

int32_t files_watch_progress(int64_t done, int64_t total, void *user) {
  files_watch_t *watch = user;
  assert_true(done > watch->done && done <= total);
  watch->done = done;
  watch->total = total;
  return ++watch->calls == watch->stop_at;
}

/* ---- faults ---------------------------------------------------------------------------------- */

static int files_tapped(void *user, const char *operation, const char *path, size_t *bytes) {
  files_tap_t *tap = user;
  (void)operation, (void)path;
  int64_t number = tap->operations++;
  if (tap->fault == FILES_FAIL && number == tap->at) return EIO;
  if (tap->fault == FILES_EXIT && number == tap->at) _exit(FILES_EXIT_CODE);
  if (!bytes) return 0;
  if (tap->fault == FILES_SHORT_WRITE && *bytes > (size_t)tap->at) *bytes = (size_t)tap->at;
  if (tap->fault == FILES_FULL) {
    if (tap->written >= tap->at) return ENOSPC;
    if (tap->written + (int64_t)*bytes > tap->at) *bytes = (size_t)(tap->at - tap->written);
  }
  tap->written += (int64_t)*bytes;
  return 0;
}

void files_tap_begin(files_tap_t *tap, files_fault_t fault, int64_t at) {
  *tap = (files_tap_t){.fault = fault, .at = at};
  file_tap(files_tapped, tap);
}

void files_tap_end(void) { file_tap(NULL, NULL); }
