/* What cgo cannot say itself: options that hold pointers are put together in C, for Go's rules keep
 * pointers to Go memory out of Go structs that C reads; and callbacks get their cgo.Handle, an
 * integer, through the user pointer. */
#ifndef MOENN_GO_BRIDGE_H
#define MOENN_GO_BRIDGE_H

#include <moenn.h>

/* The exported Go functions of callbacks.go, with the integer in place of the pointer. */
int32_t moenn_token(int32_t token, int64_t index, void *user);
int32_t moenn_progress(int64_t done, int64_t total, void *user);
int32_t moenn_learning(int64_t done, int64_t total, void *user);
void moenn_log(int32_t level, const char *message, void *user);

static inline nn_status_t moenn_device_create(const char *name, int32_t threads, int32_t cpu_paths,
                                              const int32_t *affinity, uintptr_t log,
                                              int32_t log_level, int32_t tf32,
                                              nn_device_t **device) {
  const nn_device_options_t options = {
      .struct_size = sizeof options, .threads = threads, .cpu_paths = cpu_paths,
      .affinity = affinity, .log = log ? moenn_log : NULL, .log_user = (void *)log,
      .log_level = log_level, .tf32 = tf32};
  return nn_device_create(name, &options, device);
}

static inline nn_file_options_t moenn_file_options(int64_t shard_bytes, uintptr_t user) {
  return (nn_file_options_t){.struct_size = sizeof(nn_file_options_t), .shard_bytes = shard_bytes,
                             .progress = moenn_progress, .progress_user = (void *)user};
}

typedef nn_status_t (*moenn_load_fn)(nn_device_t *device, const char *path, int32_t dtype,
                                     const nn_file_options_t *options, nn_model_t **model);
typedef nn_status_t (*moenn_save_fn)(const nn_model_t *model, const char *path,
                                     const nn_file_options_t *options);

static inline nn_status_t moenn_load(moenn_load_fn load, nn_device_t *device, const char *path,
                                     int32_t dtype, uintptr_t user, nn_model_t **model) {
  const nn_file_options_t options = moenn_file_options(0, user);
  return load(device, path, dtype, &options, model);
}

static inline nn_status_t moenn_save(moenn_save_fn save, const nn_model_t *model, const char *path,
                                     int64_t shard_bytes, uintptr_t user) {
  const nn_file_options_t options = moenn_file_options(shard_bytes, user);
  return save(model, path, &options);
}

/* texts, or without bytes paths of files; every pointer in C's memory. */
static inline nn_status_t moenn_tokenizer_train(const char *const *texts, const size_t *bytes,
                                                int64_t count, int32_t kind, int64_t vocab_size,
                                                int64_t min_frequency, const char *const *specials,
                                                int64_t special_count, float coverage,
                                                const char *const *names, uintptr_t user,
                                                nn_tokenizer_t **tokenizer) {
  const nn_tokenizer_train_options_t options = {
      .struct_size = sizeof options, .kind = kind, .vocab_size = vocab_size,
      .min_frequency = min_frequency, .specials = specials, .special_count = special_count,
      .coverage = coverage, .pattern = names[0], .bos = names[1], .eos = names[2],
      .pad = names[3], .unk = names[4], .progress = moenn_learning, .progress_user = (void *)user};
  return bytes ? nn_tokenizer_train(texts, bytes, count, &options, tokenizer)
               : nn_tokenizer_train_files(texts, count, &options, tokenizer);
}

static inline nn_status_t moenn_generate(nn_session_t *session, int64_t sequence,
                                         const int32_t *prompt, int64_t prompt_count,
                                         const nn_sample_options_t *sampling, int64_t max_tokens,
                                         const int32_t *stop_ids, int64_t stop_count,
                                         uintptr_t user, int32_t *tokens, int64_t capacity,
                                         int64_t *count, int32_t *reason) {
  const nn_generate_options_t options = {
      .struct_size = sizeof options, .sampling = sampling, .max_tokens = max_tokens,
      .stop_ids = stop_ids, .stop_count = stop_count, .on_token = moenn_token,
      .on_token_user = (void *)user};
  return nn_session_generate(session, sequence, prompt, prompt_count, &options, tokens, capacity,
                             count, reason);
}

#endif
