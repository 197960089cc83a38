/* An application as it was written for libmoenn 0.1: a device, a small model, one training step,
 * saving, loading, generating. test_old_client.sh compiles it with the headers of earlier releases,
 * so it uses nothing newer than 0.1. The argument is a folder that it may write in. */
#include <stdio.h>
#include <string.h>

#include "moenn.h"

#define TRY(call)                                                                         \
  do {                                                                                    \
    nn_status_t status_ = (call);                                                         \
    if (status_ != NN_OK) {                                                               \
      fprintf(stderr, "%s: %s: %s\n", #call, nn_status_name(status_), nn_last_error());   \
      return 1;                                                                           \
    }                                                                                     \
  } while (0)

#define CHECK(condition)                                      \
  do {                                                        \
    if (!(condition)) {                                       \
      fprintf(stderr, "does not hold: %s\n", #condition);     \
      return 1;                                               \
    }                                                         \
  } while (0)

enum { BATCH = 2, SEQ_LEN = 16, TOKENS = 64 };

/* Structs of other sizes: one shorter than any release had is refused, and a longer one when the
 * unknown part is not zero. */
static int check_struct_sizes(nn_device_t *device) {
  nn_memory_t memory;
  memset(&memory, 0x5a, sizeof memory);
  memory.struct_size = sizeof(nn_memory_t *);
  CHECK(nn_device_memory(device, &memory) == NN_ERR_STRUCT_SIZE);
  CHECK(memory.current_bytes == 0x5a5a5a5a5a5a5a5a);

  struct {
    nn_device_options_t known;
    int64_t unknown[64]; /* further than the struct has grown since */
  } newer;
  memset(&newer, 0, sizeof newer);
  newer.known.struct_size = sizeof newer;
  newer.known.threads = 1;
  nn_device_t *second = NULL;
  TRY(nn_device_create("cpu", &newer.known, &second));
  nn_device_destroy(second);
  newer.unknown[63] = 1;
  second = NULL;
  CHECK(nn_device_create("cpu", &newer.known, &second) == NN_ERR_STRUCT_SIZE);
  CHECK(second == NULL);
  return 0;
}

static int train_one_step(nn_model_t *model) {
  int32_t ids[TOKENS], tokens[BATCH * SEQ_LEN], targets[BATCH * SEQ_LEN];
  for (int i = 0; i < TOKENS; i++) ids[i] = i % 7;

  nn_dataset_options_t data_options = {
      .struct_size = sizeof data_options, .batch = BATCH, .seq_len = SEQ_LEN};
  nn_dataset_t *dataset;
  TRY(nn_dataset_from_tokens(ids, TOKENS, &data_options, &dataset));
  TRY(nn_dataset_next(dataset, tokens, targets));

  nn_train_options_t train = {.struct_size = sizeof train, .batch = BATCH, .seq_len = SEQ_LEN};
  TRY(nn_model_prepare(model, &train));
  nn_optim_options_t adamw = {.struct_size = sizeof adamw, .grad_clip = 1.0f};
  nn_optim_t *optim;
  TRY(nn_optim_create(model, &adamw, &optim));

  nn_loss_t before = {.struct_size = sizeof before}, after = {.struct_size = sizeof after};
  TRY(nn_model_zero_grad(model));
  TRY(nn_model_backward(model, tokens, targets, BATCH, SEQ_LEN, 1.0f, &before));
  double norm = 0;
  TRY(nn_optim_step(optim, 1e-3f, &norm));
  TRY(nn_model_evaluate(model, tokens, targets, BATCH, SEQ_LEN, &after));
  CHECK(norm > 0);
  CHECK(after.loss < before.loss);
  nn_optim_destroy(optim);
  nn_dataset_destroy(dataset);
  return 0;
}

static int generate(nn_model_t *model, int32_t *out, int64_t capacity) {
  const int32_t prompt[] = {1, 2, 3};
  nn_session_options_t options = {.struct_size = sizeof options, .batch = 1};
  nn_session_t *session;
  TRY(nn_session_create(model, &options, &session));
  nn_generate_options_t how = {.struct_size = sizeof how, .max_tokens = capacity};
  int64_t count = 0;
  int32_t reason = 0;
  TRY(nn_session_generate(session, 0, prompt, 3, &how, out, capacity, &count, &reason));
  CHECK(count == capacity);
  CHECK(reason == NN_STOP_LENGTH);
  nn_session_destroy(session);
  return 0;
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  CHECK(nn_abi_version() == NN_ABI_VERSION);

  nn_device_options_t options = {.struct_size = sizeof options, .threads = 1};
  nn_device_t *device;
  TRY(nn_device_create("cpu", &options, &device));
  if (check_struct_sizes(device)) return 1;

  nn_model_config_t config = {.struct_size = sizeof config, .vocab_size = 16, .context = 32,
                              .layers = 2, .hidden = 16, .heads = 2, .ffn = 32,
                              .experts = 4, .top_k = 2};
  nn_model_t *model, *loaded;
  TRY(nn_model_create(device, &config, NN_F32, 1, &model));
  if (train_one_step(model)) return 1;

  char folder[4096];
  snprintf(folder, sizeof folder, "%s/model", argv[1]);
  TRY(nn_model_save(model, folder, NULL));
  TRY(nn_model_load(device, folder, NN_F32, NULL, &loaded));

  int32_t first[8], second[8];
  if (generate(model, first, 8) || generate(loaded, second, 8)) return 1;
  CHECK(memcmp(first, second, sizeof first) == 0);

  nn_model_destroy(loaded);
  nn_model_destroy(model);
  nn_device_destroy(device);
  return 0;
}
