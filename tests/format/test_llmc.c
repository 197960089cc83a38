/* llm.c checkpoints: files are bit for bit those of an independent writer, models come back from
 * them in either dtype, every file that is not whole or not understood is refused in words, and
 * whatever goes wrong while saving leaves the earlier file. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/device.h"
#include "base/dtype.h"
#include "base/mem.h"
#include "files.h"
#include "format/llmc.h"
#include "model/model.h"

enum { HEADER = 1024, MOST_ALLOCATIONS = 200 };
enum { VERSION = 1, CONTEXT, VOCAB, LAYERS, HEADS, CHANNELS, PADDED, USED, WORDS = 256 };

static char *folder;
static nn_device_t *device;

static int setup(void **state) {
  (void)state;
  folder = fixture_folder();
  device = fixture_device_named("cpu", 1, 0);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  nn_device_destroy(device);
  fixture_folder_remove(folder);
  return 0;
}

static const char *path(void) { return files_path(folder, "model.bin"); }

/* ---- models ---------------------------------------------------------------------------------- */

static nn_model_config_t config_of(int64_t vocab, int64_t layers, int64_t hidden, int64_t heads) {
  nn_model_config_t config = files_gpt2();
  config.vocab_size = vocab, config.layers = layers, config.hidden = hidden, config.heads = heads;
  config.head_dim = 0, config.kv_heads = 0, config.ffn = 4 * hidden;
  CHECK(nn_config_validate(&config));
  return config;
}

/* Every element has bits of its own in F32, and in BF16 those of its neighbours differ. */
static nn_model_t *model_of(nn_model_config_t config, int32_t dtype, int tag) {
  nn_model_t *model;
  CHECK(nn_model_create(device, &config, dtype, 1, &model));
  int64_t count = 0;
  for (int64_t i = 0; i < nn_model_parameter_count(model); i++) {
    nn_tensor_t *tensor;
    nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
    CHECK(nn_model_parameter(model, nn_model_parameter_name(model, i), &tensor));
    CHECK(nn_tensor_info(tensor, &info));
    size_t bytes = (size_t)info.elements * nn_dtype_bytes(dtype);
    unsigned char *values = fixture_memory(bytes);
    for (int64_t j = 0; j < info.elements; j++, count++) {
      float value = (float)tag + (float)count / 65536;
      uint16_t bits = (uint16_t)(7 * count + tag);
      if (dtype == NN_F32) memcpy(values + 4 * j, &value, 4);
      if (dtype == NN_BF16) memcpy(values + 2 * j, &bits, 2);
    }
    CHECK(nn_tensor_copy_in(tensor, values, bytes));
    free(values);
    nn_tensor_destroy(tensor);
  }
  assert_true(count <= 65536);
  return model;
}

static nn_model_t *small_model(int32_t dtype, int tag) {
  return model_of(config_of(131, 2, 12, 3), dtype, tag);
}

/* The parameter in its published shape; freed by the caller. */
static unsigned char *published(const nn_model_t *model, const char *name, nn_tensor_info_t *info,
                                int64_t shape[2]) {
  nn_tensor_t *tensor;
  CHECK(nn_model_parameter(model, name, &tensor));
  CHECK(nn_tensor_info(tensor, info));
  size_t bytes = (size_t)info->elements * nn_dtype_bytes(info->dtype);
  unsigned char *values = fixture_memory(bytes);
  CHECK(nn_tensor_copy_out(tensor, values, bytes));
  for (int i = 0; i < info->ndim; i++) shape[i] = info->shape[i];
  nn_tensor_destroy(tensor);
  return values;
}

/* Every parameter of `got` is that of `want`, converted to got's dtype by way of `through`. */
static void check_same_model(const nn_model_t *got, const nn_model_t *want, int32_t through) {
  assert_memory_equal(&got->config, &want->config, sizeof got->config);
  for (int64_t i = 0; i < nn_model_parameter_count(want); i++) {
    const char *name = nn_model_parameter_name(want, i);
    nn_tensor_info_t got_info = STRUCT(nn_tensor_info_t), want_info = got_info;
    int64_t shape[2];
    unsigned char *a = published(got, name, &got_info, shape);
    unsigned char *b = published(want, name, &want_info, shape);
    size_t bytes = (size_t)got_info.elements * nn_dtype_bytes(got_info.dtype);
    assert_int_equal(got_info.elements, want_info.elements);
    unsigned char *filed = fixture_memory((size_t)want_info.elements * 4);
    unsigned char *expected = fixture_memory((size_t)want_info.elements * 4);
    dtype_convert(filed, through, b, want_info.dtype, want_info.elements);
    dtype_convert(expected, got_info.dtype, filed, through, want_info.elements);
    if (memcmp(a, expected, bytes) != 0) fail_msg("%s differs", name);
    free(a), free(b), free(filed), free(expected);
  }
}

/* ---- an independent writer ------------------------------------------------------------------- */

typedef struct checkpoint {
  unsigned char *bytes;
  size_t count;
} checkpoint_t;

static void append(checkpoint_t *file, const void *data, size_t bytes) {
  file->bytes = realloc(file->bytes, file->count + bytes);
  assert_non_null(file->bytes);
  memcpy(file->bytes + file->count, data, bytes);
  file->count += bytes;
}

/* Linear layers of GPT-2 are published as [in, out]; llm.c has [out, in]. */
static void append_parameter(checkpoint_t *file, const nn_model_t *model, const char *name,
                             int linear) {
  nn_tensor_info_t info = STRUCT(nn_tensor_info_t);
  int64_t shape[2] = {0};
  unsigned char *values = published(model, name, &info, shape);
  size_t element = nn_dtype_bytes(info.dtype);
  if (!linear) append(file, values, (size_t)info.elements * element);
  if (linear)
    for (int64_t out = 0; out < shape[1]; out++)
      for (int64_t in = 0; in < shape[0]; in++)
        append(file, values + (size_t)(in * shape[1] + out) * element, element);
  free(values);
}

/* Freed by the caller. Rows that pad the vocabulary are full of the byte `pad`. */
static checkpoint_t checkpoint_make(const nn_model_t *model, int32_t padded_vocab, int pad) {
  static const struct {
    const char *name;
    int linear;
  } parts[] = {{"ln_1.weight", 0},        {"ln_1.bias", 0},        {"attn.c_attn.weight", 1},
               {"attn.c_attn.bias", 0},   {"attn.c_proj.weight", 1}, {"attn.c_proj.bias", 0},
               {"ln_2.weight", 0},        {"ln_2.bias", 0},        {"mlp.c_fc.weight", 1},
               {"mlp.c_fc.bias", 0},      {"mlp.c_proj.weight", 1}, {"mlp.c_proj.bias", 0}};
  const nn_model_config_t *c = &model->config;
  int32_t header[WORDS] = {20240326,
                           model->dtype == NN_F32 ? 3 : 5,
                           (int32_t)c->context,
                           (int32_t)c->vocab_size,
                           (int32_t)c->layers,
                           (int32_t)c->heads,
                           (int32_t)c->hidden,
                           padded_vocab};
  checkpoint_t file = {0};
  append(&file, header, sizeof header);
  append_parameter(&file, model, "transformer.wte.weight", 0);
  size_t padding =
      (size_t)((padded_vocab - c->vocab_size) * c->hidden) * nn_dtype_bytes(model->dtype);
  unsigned char *rows = fixture_memory(padding);
  memset(rows, pad, padding);
  append(&file, rows, padding);
  free(rows);
  append_parameter(&file, model, "transformer.wpe.weight", 0);
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
    for (int64_t layer = 0; layer < c->layers; layer++) {
      char name[PARAM_NAME_BYTES];
      snprintf(name, sizeof name, "transformer.h.%d.%s", (int)layer, parts[i].name);
      append_parameter(&file, model, name, parts[i].linear);
    }
  append_parameter(&file, model, "transformer.ln_f.weight", 0);
  append_parameter(&file, model, "transformer.ln_f.bias", 0);
  return file;
}

/* ---- whole files ----------------------------------------------------------------------------- */

static void check_file_is(const checkpoint_t *want) {
  size_t bytes;
  unsigned char *got = files_read(folder, "model.bin", &bytes);
  assert_non_null(got);
  assert_int_equal(bytes, want->count);
  assert_memory_equal(got, want->bytes, bytes);
  free(got);
  assert_int_equal(files_count(folder), 1); /* nothing is left beside it */
}

static nn_model_t *load(int32_t dtype) {
  nn_model_t *model = NULL;
  CHECK(nn_model_load_llmc(device, path(), dtype, NULL, &model));
  return model;
}

static void files_are_those_of_llmc(void **state) {
  (void)state;
  /* vocabularies just below, at and just above a multiple of 128 */
  static const struct {
    int64_t vocab, padded, layers, hidden, heads;
  } shapes[] = {
      {127, 128, 1, 6, 2}, {128, 128, 2, 8, 1}, {129, 256, 3, 10, 5}, {1, 128, 2, 2, 2}};
  static const int32_t dtypes[] = {NN_F32, NN_BF16};
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int d = 0; d < 2; d++) {
      nn_model_config_t config =
          config_of(shapes[s].vocab, shapes[s].layers, shapes[s].hidden, shapes[s].heads);
      nn_model_t *model = model_of(config, dtypes[d], 1);
      checkpoint_t want = checkpoint_make(model, (int32_t)shapes[s].padded, 0);
      CHECK(nn_model_save_llmc(model, path(), NULL));
      check_file_is(&want);
      free(want.bytes);
      nn_model_destroy(model);
    }
}

static void models_come_back_in_either_dtype(void **state) {
  (void)state;
  static const int32_t dtypes[] = {NN_F32, NN_BF16};
  for (int from = 0; from < 2; from++) {
    nn_model_t *model = small_model(dtypes[from], 2);
    CHECK(nn_model_save_llmc(model, path(), NULL));
    for (int to = 0; to < 2; to++) {
      nn_model_t *again = load(dtypes[to]);
      assert_int_equal(again->dtype, dtypes[to]);
      check_same_model(again, model, dtypes[from]);
      nn_model_destroy(again);
    }
    nn_model_t *as_filed = load(NN_DTYPE_FILE);
    assert_int_equal(as_filed->dtype, dtypes[from]);
    check_same_model(as_filed, model, dtypes[from]);
    nn_model_destroy(as_filed);
    nn_model_destroy(model);
  }
}

/* Whatever stands in rows behind the vocabulary, and however many there are. */
static void padding_is_skipped(void **state) {
  (void)state;
  static const int32_t padded[] = {131, 132, 256, 1000};
  nn_model_t *model = small_model(NN_F32, 3);
  for (int i = 0; i < 4; i++) {
    checkpoint_t file = checkpoint_make(model, padded[i], 0xff); /* NaN */
    files_write(folder, "model.bin", file.bytes, file.count);
    nn_model_t *again = load(NN_F32);
    check_same_model(again, model, NN_F32);
    nn_model_destroy(again);
    free(file.bytes);
  }
  nn_model_destroy(model);
}

/* A model that transformers wrote goes through a checkpoint and computes the same. */
static void published_models_go_through(void **state) {
  (void)state;
  static const int32_t tokens[] = {1, 5, 30, 7, 7, 36, 0, 2};
  enum { COUNT = sizeof tokens / sizeof *tokens, V = 37 };
  nn_model_t *model, *again;
  CHECK(nn_model_load(device, MOENN_TEST_DIR "/golden/gpt2", NN_F32, NULL, &model));
  CHECK(nn_model_save_llmc(model, path(), NULL));
  checkpoint_t want = checkpoint_make(model, 128, 0);
  check_file_is(&want);
  free(want.bytes);
  again = load(NN_DTYPE_FILE);
  assert_int_equal(again->config.vocab_size, V);
  float *logits[2] = {fixture_memory(COUNT * V * sizeof(float)),
                      fixture_memory(COUNT * V * sizeof(float))};
  fixture_prepare(model, 1, COUNT, NN_RECOMPUTE_NONE);
  fixture_prepare(again, 1, COUNT, NN_RECOMPUTE_NONE);
  CHECK(nn_model_forward(model, tokens, 1, COUNT, logits[0]));
  CHECK(nn_model_forward(again, tokens, 1, COUNT, logits[1]));
  assert_true(fixture_largest(logits[0], COUNT * V) > 0);
  fixture_same("logits", logits[0], logits[1], COUNT * V);
  free(logits[0]), free(logits[1]);
  nn_model_destroy(model);
  nn_model_destroy(again);
}

/* ---- files that are refused ------------------------------------------------------------------ */

/* The smallest file that has every tensor in more than one element, and padding. */
static checkpoint_t tiny_checkpoint(void) {
  nn_model_t *model = model_of(config_of(3, 1, 2, 1), NN_F32, 1);
  checkpoint_t file = checkpoint_make(model, 5, 0);
  nn_model_destroy(model);
  return file;
}

static void check_refused(const checkpoint_t *file, nn_status_t status, const char *parts) {
  nn_model_t *model = NULL;
  nn_memory_t before = fixture_device_memory(device), after;
  files_write(folder, "model.bin", file->bytes, file->count);
  CHECK_FAILS(status, parts, nn_model_load_llmc(device, path(), NN_F32, NULL, &model));
  files_check_message("model.bin: ", __FILE__, __LINE__);
  assert_null(model);
  after = fixture_device_memory(device);
  assert_int_equal(after.allocations, before.allocations); /* refused before memory is taken */
}

static void every_truncation_is_refused(void **state) {
  (void)state;
  checkpoint_t file = tiny_checkpoint();
  nn_model_t *model = NULL;
  files_write(folder, "model.bin", file.bytes, file.count);
  CHECK(nn_model_load_llmc(device, path(), NN_F32, NULL, &model));
  nn_model_destroy(model);
  for (size_t bytes = 0; bytes < file.count; bytes++) {
    /* memory that ends where the file does, for the address sanitizer */
    unsigned char *cut = fixture_memory(bytes);
    llmc_t parsed;
    memcpy(cut, file.bytes, bytes);
    CHECK_FAILS(NN_ERR_FORMAT, bytes < HEADER ? "too few|1024" : "asks for|follow it",
                llmc_parse(cut, bytes, &parsed));
    free(cut);
  }
  static const size_t kept[] = {0, 1, HEADER - 1, HEADER, HEADER + 1};
  checkpoint_t cut = file;
  for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
    cut.count = kept[i];
    check_refused(&cut, NN_ERR_FORMAT, "bytes");
  }
  cut.count = file.count - 1;
  check_refused(&cut, NN_ERR_FORMAT, "follow it");
  append(&file, "", 1);
  check_refused(&file, NN_ERR_FORMAT, "follow it");
  free(file.bytes);
}

/* A word of the header that has another value is refused in words that name it. */
static void corrupted_headers_are_refused(void **state) {
  (void)state;
  static const struct {
    int word;
    int32_t value;
    nn_status_t status;
    const char *parts;
  } cases[] = {
      {0, 20240520, NN_ERR_FORMAT, "magic number is 20240520|20240326"},
      {0, 0, NN_ERR_FORMAT, "magic number"},
      {VERSION, 0, NN_ERR_UNSUPPORTED, "version 0|3 (fp32)|5 (bf16)"},
      {VERSION, 1, NN_ERR_UNSUPPORTED, "version 1"},
      {VERSION, 2, NN_ERR_UNSUPPORTED, "version 2"},
      {VERSION, 4, NN_ERR_UNSUPPORTED, "version 4"},
      {VERSION, -3, NN_ERR_UNSUPPORTED, "version -3"},
      {VERSION, 5, NN_ERR_FORMAT, "follow it"}, /* half as many bytes */
      {CONTEXT, 0, NN_ERR_FORMAT, "max_seq_len is 0"},
      {CONTEXT, -9, NN_ERR_FORMAT, "max_seq_len is -9"},
      {CONTEXT, 10, NN_ERR_FORMAT, "follow it"},
      {CONTEXT, INT32_MAX, NN_ERR_FORMAT, "follow it"},
      {VOCAB, 0, NN_ERR_FORMAT, "vocab_size is 0"},
      {VOCAB, INT32_MIN, NN_ERR_FORMAT, "vocab_size is -2147483648"},
      {VOCAB, 6, NN_ERR_FORMAT, "padded_vocab_size is 5|vocab_size, which is 6"},
      {LAYERS, 0, NN_ERR_FORMAT, "num_layers is 0"},
      {LAYERS, -1, NN_ERR_FORMAT, "num_layers is -1"},
      {LAYERS, 2, NN_ERR_FORMAT, "follow it"},
      {LAYERS, INT32_MAX, NN_ERR_FORMAT, "follow it"},
      {HEADS, 0, NN_ERR_FORMAT, "num_heads is 0"},
      {HEADS, -1, NN_ERR_FORMAT, "num_heads is -1"},
      {HEADS, 3, NN_ERR_FORMAT, "channels is 2|num_heads, which is 3"},
      {CHANNELS, 0, NN_ERR_FORMAT, "channels is 0"},
      {CHANNELS, -2, NN_ERR_FORMAT, "channels is -2"},
      {CHANNELS, 1, NN_ERR_FORMAT, "follow it"},
      {CHANNELS, 4, NN_ERR_FORMAT, "follow it"},
      {CHANNELS, 257, NN_ERR_UNSUPPORTED, "head_dim is 257"},
      {CHANNELS, INT32_MAX, NN_ERR_UNSUPPORTED, "head_dim is"},
      {PADDED, 0, NN_ERR_FORMAT, "padded_vocab_size is 0"},
      {PADDED, 2, NN_ERR_FORMAT, "padded_vocab_size is 2|vocab_size, which is 3"},
      {PADDED, 6, NN_ERR_FORMAT, "follow it"},
      {PADDED, INT32_MAX, NN_ERR_FORMAT, "follow it"},
  };
  checkpoint_t file = tiny_checkpoint();
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    unsigned char *word = file.bytes + 4 * cases[i].word, kept[4];
    memcpy(kept, word, 4);
    memcpy(word, &cases[i].value, 4);
    check_refused(&file, cases[i].status, cases[i].parts);
    memcpy(word, kept, 4);
  }
  for (int word = USED; word < WORDS; word++) {
    char parts[32];
    snprintf(parts, sizeof parts, "word %d of the header", word);
    file.bytes[4 * word + word % 4] = 1;
    check_refused(&file, NN_ERR_UNSUPPORTED, parts);
    file.bytes[4 * word + word % 4] = 0;
  }
  free(file.bytes);
}

/* All of them but a smaller vocabulary and another division into heads, which make a file of the
 * same size that is as good. */
static void every_flipped_bit_of_the_header_is_seen(void **state) {
  (void)state;
  checkpoint_t file = tiny_checkpoint();
  llmc_t parsed;
  for (int bit = 0; bit < 8 * HEADER; bit++) {
    int32_t vocab, heads;
    file.bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    memcpy(&vocab, file.bytes + 4 * VOCAB, 4);
    memcpy(&heads, file.bytes + 4 * HEADS, 4);
    int good = (bit / 32 == VOCAB && vocab >= 1 && vocab <= 5) ||
               (bit / 32 == HEADS && (heads == 1 || heads == 2));
    nn_status_t status = llmc_parse(file.bytes, file.count, &parsed);
    if ((status == NN_OK) != good) fail_msg("bit %d: %s", bit, nn_status_name(status));
    file.bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
  }
  free(file.bytes);
}

/* Sizes whose products pass 64 bits, or come near, are refused like any others. */
static void sizes_that_overflow_are_refused(void **state) {
  (void)state;
  static const int32_t sizes[][USED - CONTEXT] = {
      /* max_seq_len, vocab, layers, heads, channels, padded vocab */
      {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX},
      {1, 1, INT32_MAX, 1 << 24, 1 << 28, 1},
      {1, 1, 1, 1 << 21, 1 << 28, INT32_MAX},
      {1, INT32_MAX, 1, 1 << 22, 1 << 29, INT32_MAX},
      {INT32_MAX, 1, 1, 1 << 22, 1 << 29, INT32_MAX},
      {1, 1, 1, 1 << 22, 1 << 30, 1},
  };
  checkpoint_t file = tiny_checkpoint();
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    llmc_t parsed;
    memcpy(file.bytes + 4 * CONTEXT, sizes[i], sizeof sizes[i]);
    nn_status_t status = llmc_parse(file.bytes, file.count, &parsed);
    if (status != NN_ERR_FORMAT && status != NN_ERR_UNSUPPORTED)
      fail_msg("sizes %d: %s", (int)i, nn_status_name(status));
  }
  free(file.bytes);
}

static void other_files_and_arguments_are_refused(void **state) {
  (void)state;
  nn_model_t *model = small_model(NN_F32, 1), *loaded = NULL;
  nn_file_options_t options = STRUCT(nn_file_options_t);
  options.shard_bytes = 1000;
  CHECK_FAILS(NN_ERR_NOT_FOUND, "model.bin",
              nn_model_load_llmc(device, path(), NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_IO, "regular", nn_model_load_llmc(device, folder, NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "empty", nn_model_load_llmc(device, "", NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "device", nn_model_load_llmc(NULL, path(), NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path", nn_model_load_llmc(device, NULL, NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "model", nn_model_load_llmc(device, path(), NN_F32, NULL, NULL));
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "dtype",
              nn_model_load_llmc(device, path(), NN_F64, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "dtype", nn_model_load_llmc(device, path(), 99, NULL, &loaded));
  assert_null(loaded);
  CHECK_FAILS(NN_ERR_ARGUMENT, "empty", nn_model_save_llmc(model, "", NULL));
  CHECK_FAILS(NN_ERR_IO, "is a folder", nn_model_save_llmc(model, folder, NULL));
  CHECK_FAILS(NN_ERR_NOT_FOUND, "nowhere",
              nn_model_save_llmc(model, files_path(folder, "nowhere/model.bin"), NULL));
  CHECK_FAILS(NN_ERR_ARGUMENT, "model", nn_model_save_llmc(NULL, path(), NULL));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path", nn_model_save_llmc(model, NULL, NULL));
  CHECK_FAILS(NN_ERR_ARGUMENT, "shard_bytes is 1000",
              nn_model_save_llmc(model, path(), &options));
  assert_int_equal(files_count(folder), 0);
  nn_model_destroy(model);
}

static void models_of_another_form_are_not_saved(void **state) {
  (void)state;
  nn_model_config_t configs[] = {files_mixtral(), config_of(131, 2, 12, 3),
                                 config_of(131, 2, 12, 3)};
  static const char *const parts[] = {"family is 0|NN_FAMILY_GPT2", "ffn is 50|hidden|48",
                                      "norm_eps is 1e-06|1e-05"};
  configs[1].ffn = 50;
  configs[2].norm_eps = 1e-6f;
  for (int i = 0; i < 3; i++) {
    nn_model_t *model = fixture_model(device, &configs[i], 1);
    CHECK_FAILS(NN_ERR_UNSUPPORTED, parts[i], nn_model_save_llmc(model, path(), NULL));
    assert_int_equal(files_count(folder), 0);
    nn_model_destroy(model);
  }
  nn_model_t *half;
  nn_model_config_t fits = config_of(131, 2, 12, 3);
  CHECK(nn_model_create(device, &fits, NN_F16, 1, &half));
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "fp16", nn_model_save_llmc(half, path(), NULL));
  assert_int_equal(files_count(folder), 0);
  nn_model_destroy(half);
  /* too large to be made here, so the format alone is asked: a padded vocabulary is an int32 */
  nn_model_config_t config = config_of(INT32_MAX, 1, 1, 1);
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "vocab_size is 2147483647|2147483520",
              llmc_save(path(), &config, NULL, NN_F32, NULL, NULL, NULL, NULL, NULL));
  assert_int_equal(files_count(folder), 0);
}

/* ---- what goes wrong while saving and loading ------------------------------------------------ */

/* An earlier file and a model to save over it. */
typedef struct change {
  nn_model_t *old, *new;
  checkpoint_t old_file, new_file;
} change_t;

static change_t change_open(void) {
  change_t change = {.old = small_model(NN_F32, 1),
                     .new = model_of(config_of(150, 3, 8, 2), NN_BF16, 5)};
  change.old_file = checkpoint_make(change.old, 256, 0);
  change.new_file = checkpoint_make(change.new, 256, 0);
  CHECK(nn_model_save_llmc(change.old, path(), NULL));
  return change;
}

static void change_close(change_t *change) {
  nn_model_destroy(change->old);
  nn_model_destroy(change->new);
  free(change->old_file.bytes);
  free(change->new_file.bytes);
}

static void saving_needs_its_memory(void **state) {
  (void)state;
  change_t change = change_open();
  int64_t i = 0;
  for (;; i++) {
    assert_true(i < MOST_ALLOCATIONS);
    mem_fail_after(i);
    nn_status_t status = nn_model_save_llmc(change.new, path(), NULL);
    mem_fail_after(-1);
    if (status == NN_OK) break;
    CHECK_STATUS(NN_ERR_MEMORY, status);
    check_file_is(&change.old_file);
  }
  assert_int_equal(i, 4); /* three names and the padding */
  check_file_is(&change.new_file);
  change_close(&change);
}

static void loading_needs_its_memory(void **state) {
  (void)state;
  change_t change = change_open();
  nn_memory_t before = fixture_device_memory(device);
  nn_model_t *loaded = NULL;
  int64_t i = 0;
  for (;; i++) {
    assert_true(i < MOST_ALLOCATIONS);
    mem_fail_after(i);
    nn_status_t status = nn_model_load_llmc(device, path(), NN_BF16, NULL, &loaded);
    mem_fail_after(-1);
    if (status == NN_OK) break;
    CHECK_STATUS(NN_ERR_MEMORY, status);
    assert_null(loaded);
    assert_int_equal(fixture_device_memory(device).current_bytes, before.current_bytes);
  }
  assert_true(i >= 4); /* handle, table, buffer, pointers */
  check_same_model(loaded, change.old, NN_F32);
  nn_model_destroy(loaded);
  change_close(&change);
}

static void errors_leave_one_file(void **state) {
  (void)state;
  enum { LOCK = 1 }; /* the operation that may fail: some file systems have no locks */
  change_t change = change_open();
  files_tap_t tap;
  files_tap_begin(&tap, FILES_COUNT, 0);
  CHECK(nn_model_save_llmc(change.new, path(), NULL));
  files_tap_end();
  int64_t operations = tap.operations;
  assert_true(operations > 40);
  for (int64_t at = 0; at < operations; at++) {
    CHECK(nn_model_save_llmc(change.old, path(), NULL));
    files_tap_begin(&tap, FILES_FAIL, at);
    CHECK_STATUS(at == LOCK ? NN_OK : NN_ERR_IO, nn_model_save_llmc(change.new, path(), NULL));
    files_tap_end();
    /* the last two sync the folder, with the new file in place */
    int in_place = at == LOCK || at >= operations - 2;
    check_file_is(in_place ? &change.new_file : &change.old_file);
  }
  CHECK(nn_model_save_llmc(change.old, path(), NULL));
  for (int64_t room = 0; room < (int64_t)change.new_file.count; room += 1 + room) {
    files_tap_begin(&tap, FILES_FULL, room);
    CHECK_FAILS(NN_ERR_IO, "No space left", nn_model_save_llmc(change.new, path(), NULL));
    files_tap_end();
    check_file_is(&change.old_file);
  }
  change_close(&change);
}

static nn_file_options_t watched(files_watch_t *watch, int64_t stop_at) {
  nn_file_options_t options = STRUCT(nn_file_options_t);
  *watch = (files_watch_t){.stop_at = stop_at};
  options.progress = files_watch_progress;
  options.progress_user = watch;
  return options;
}

static void a_cancelled_save_leaves_the_earlier_file(void **state) {
  (void)state;
  change_t change = change_open();
  files_watch_t watch;
  nn_file_options_t options = watched(&watch, 0);
  nn_device_cancel(device, 1);
  CHECK_STATUS(NN_ERR_CANCELLED, nn_model_save_llmc(change.new, path(), NULL));
  nn_device_cancel(device, 0);
  check_file_is(&change.old_file);
  CHECK(nn_model_save_llmc(change.new, path(), &options));
  assert_int_equal(watch.done, watch.total);
  assert_int_equal(watch.total, change.new_file.count - HEADER);
  int64_t calls = watch.calls;
  CHECK(nn_model_save_llmc(change.old, path(), NULL));
  for (int64_t stop = 1; stop <= calls; stop++) {
    options = watched(&watch, stop);
    CHECK_FAILS(NN_ERR_CANCELLED, "callback cancelled",
                nn_model_save_llmc(change.new, path(), &options));
    assert_int_equal(watch.calls, stop);
    check_file_is(&change.old_file);
  }
  atomic_int flag = 1; /* raised while the first tensor is written */
  CHECK_STATUS(NN_ERR_CANCELLED,
               llmc_save(path(), &change.new->config, &change.new->params, NN_BF16,
                         change.new->buffer->data, NULL, NULL, &flag, NULL));
  check_file_is(&change.old_file);
  change_close(&change);
}

static void a_cancelled_load_makes_no_model(void **state) {
  (void)state;
  change_t change = change_open();
  nn_memory_t before = fixture_device_memory(device);
  nn_model_t *loaded = NULL;
  files_watch_t watch;
  nn_file_options_t options = watched(&watch, 0);
  CHECK(nn_model_load_llmc(device, path(), NN_BF16, &options, &loaded));
  assert_int_equal(watch.done, change.old_file.count - HEADER);
  nn_model_destroy(loaded);
  loaded = NULL;
  for (int64_t calls = watch.calls, stop = 1; stop <= calls; stop++) {
    options = watched(&watch, stop);
    CHECK_STATUS(NN_ERR_CANCELLED,
                 nn_model_load_llmc(device, path(), NN_BF16, &options, &loaded));
    assert_null(loaded);
  }
  nn_device_cancel(device, 1);
  CHECK_STATUS(NN_ERR_CANCELLED, nn_model_load_llmc(device, path(), NN_BF16, NULL, &loaded));
  nn_device_cancel(device, 0);
  assert_null(loaded);
  assert_int_equal(fixture_device_memory(device).current_bytes, before.current_bytes);
  change_close(&change);
}

/* ---- memory that only copies reach ----------------------------------------------------------- */

/* Stands for a device whose memory the host cannot touch: addresses of pages without access, and
 * what they hold. */
static struct {
  unsigned char *address, *content;
  size_t bytes;
  int fails;
} away;

static size_t away_offset(const void *data, size_t bytes) {
  size_t offset = (size_t)((const unsigned char *)data - away.address);
  assert_true(offset <= away.bytes && bytes <= away.bytes - offset);
  return offset;
}

static nn_status_t away_in(backend_device_t *place, void *data, const void *host, size_t bytes) {
  (void)place;
  memcpy(away.content + away_offset(data, bytes), host, bytes);
  return away.fails ? NN_ERR_DEVICE : NN_OK;
}

static nn_status_t away_out(backend_device_t *place, void *host, const void *data, size_t bytes) {
  (void)place;
  memcpy(host, away.content + away_offset(data, bytes), bytes);
  return away.fails ? NN_ERR_DEVICE : NN_OK;
}

static void device_memory_is_reached_by_copies(void **state) {
  (void)state;
  const backend_t backend = {.copy_in = away_in, .copy_out = away_out};
  nn_device_t gpu = {.backend = &backend};
  nn_model_t *model = small_model(NN_F32, 4);
  const param_table_t *table = &model->params;
  checkpoint_t want = checkpoint_make(model, 256, 0);
  away.bytes = (size_t)table->elements * sizeof(float);
  away.content = fixture_memory(away.bytes);
  away.address =
      mmap(NULL, away.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  assert_true(away.address != MAP_FAILED);

  files_write(folder, "model.bin", want.bytes, want.count);
  llmc_t file;
  CHECK(llmc_open(path(), &file));
  CHECK(llmc_read(&file, table, NN_F32, away.address, NULL, NULL, NULL, &gpu));
  assert_memory_equal(away.content, model->buffer->data, away.bytes);
  assert_int_equal(unlink(path()), 0);
  CHECK(llmc_save(path(), &model->config, table, NN_F32, away.address, NULL, NULL, NULL, &gpu));
  check_file_is(&want);

  away.fails = 1;
  CHECK_STATUS(NN_ERR_DEVICE,
               llmc_read(&file, table, NN_F32, away.address, NULL, NULL, NULL, &gpu));
  CHECK_STATUS(NN_ERR_DEVICE, llmc_save(path(), &model->config, table, NN_F32, away.address, NULL,
                                        NULL, NULL, &gpu));
  check_file_is(&want);
  llmc_close(&file);
  away.fails = 0;
  munmap(away.address, away.bytes);
  free(away.content);
  free(want.bytes);
  nn_model_destroy(model);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
  const struct CMUnitTest tests[] = {
      TEST(files_are_those_of_llmc),
      TEST(models_come_back_in_either_dtype),
      TEST(padding_is_skipped),
      TEST(published_models_go_through),
      TEST(every_truncation_is_refused),
      TEST(corrupted_headers_are_refused),
      TEST(every_flipped_bit_of_the_header_is_seen),
      TEST(sizes_that_overflow_are_refused),
      TEST(other_files_and_arguments_are_refused),
      TEST(models_of_another_form_are_not_saved),
      TEST(saving_needs_its_memory),
      TEST(loading_needs_its_memory),
      TEST(errors_leave_one_file),
      TEST(a_cancelled_save_leaves_the_earlier_file),
      TEST(a_cancelled_load_makes_no_model),
      TEST(device_memory_is_reached_by_copies),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
