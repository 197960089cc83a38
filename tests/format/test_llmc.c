/* llm.c checkpoints: files are bit for bit those of an independent writer, models come back from
 * them in either dtype, and every file that is not whole or not understood is refused in words. */
#include <stdio.h>
#include <string.h>

#include "llmc_files.h"

/* Words of the header. */
enum { VERSION = 1, CONTEXT, VOCAB, LAYERS, HEADS, CHANNELS, PADDED, USED };

/* ---- whole files ----------------------------------------------------------------------------- */

static nn_model_t *load(int32_t dtype) {
  nn_model_t *model = NULL;
  CHECK(nn_model_load_llmc(llmc_device, llmc_path(), dtype, NULL, &model));
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
          llmc_config(shapes[s].vocab, shapes[s].layers, shapes[s].hidden, shapes[s].heads);
      nn_model_t *model = llmc_model(config, dtypes[d], 1);
      checkpoint_t want = checkpoint_make(model, (int32_t)shapes[s].padded, 0);
      CHECK(nn_model_save_llmc(model, llmc_path(), NULL));
      llmc_file_is(&want);
      free(want.bytes);
      nn_model_destroy(model);
    }
}

static void models_come_back_in_either_dtype(void **state) {
  (void)state;
  static const int32_t dtypes[] = {NN_F32, NN_BF16};
  for (int from = 0; from < 2; from++) {
    nn_model_t *model = llmc_small_model(dtypes[from], 2);
    CHECK(nn_model_save_llmc(model, llmc_path(), NULL));
    for (int to = 0; to < 2; to++) {
      nn_model_t *again = load(dtypes[to]);
      assert_int_equal(again->dtype, dtypes[to]);
      llmc_same_model(again, model, dtypes[from]);
      nn_model_destroy(again);
    }
    nn_model_t *as_filed = load(NN_DTYPE_FILE);
    assert_int_equal(as_filed->dtype, dtypes[from]);
    llmc_same_model(as_filed, model, dtypes[from]);
    nn_model_destroy(as_filed);
    nn_model_destroy(model);
  }
}

/* Whatever stands in rows behind the vocabulary, and however many there are. */
static void padding_is_skipped(void **state) {
  (void)state;
  static const int32_t padded[] = {131, 132, 256, 1000};
  nn_model_t *model = llmc_small_model(NN_F32, 3);
  for (int i = 0; i < 4; i++) {
    checkpoint_t file = checkpoint_make(model, padded[i], 0xff); /* NaN */
    files_write(llmc_folder, "model.bin", file.bytes, file.count);
    nn_model_t *again = load(NN_F32);
    llmc_same_model(again, model, NN_F32);
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
  CHECK(nn_model_load(llmc_device, MOENN_TEST_DIR "/golden/gpt2", NN_F32, NULL, &model));
  CHECK(nn_model_save_llmc(model, llmc_path(), NULL));
  checkpoint_t want = checkpoint_make(model, 128, 0);
  llmc_file_is(&want);
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
  nn_model_t *model = llmc_model(llmc_config(3, 1, 2, 1), NN_F32, 1);
  checkpoint_t file = checkpoint_make(model, 5, 0);
  nn_model_destroy(model);
  return file;
}

static void check_refused(const checkpoint_t *file, nn_status_t status, const char *parts) {
  nn_model_t *model = NULL;
  nn_memory_t before = fixture_device_memory(llmc_device), after;
  files_write(llmc_folder, "model.bin", file->bytes, file->count);
  CHECK_FAILS(status, parts, nn_model_load_llmc(llmc_device, llmc_path(), NN_F32, NULL, &model));
  files_check_message("model.bin: ", __FILE__, __LINE__);
  assert_null(model);
  after = fixture_device_memory(llmc_device);
  assert_int_equal(after.allocations, before.allocations); /* refused before memory is taken */
}

static void every_truncation_is_refused(void **state) {
  (void)state;
  checkpoint_t file = tiny_checkpoint();
  nn_model_t *model = NULL;
  files_write(llmc_folder, "model.bin", file.bytes, file.count);
  CHECK(nn_model_load_llmc(llmc_device, llmc_path(), NN_F32, NULL, &model));
  nn_model_destroy(model);
  for (size_t bytes = 0; bytes < file.count; bytes++) {
    /* memory that ends where the file does, for the address sanitizer */
    unsigned char *cut = fixture_memory(bytes);
    llmc_t parsed;
    memcpy(cut, file.bytes, bytes);
    CHECK_FAILS(NN_ERR_FORMAT, bytes < LLMC_HEADER ? "too few|1024" : "asks for|follow it",
                llmc_parse(cut, bytes, &parsed));
    free(cut);
  }
  static const size_t kept[] = {0, 1, LLMC_HEADER - 1, LLMC_HEADER, LLMC_HEADER + 1};
  checkpoint_t cut = file;
  for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
    cut.count = kept[i];
    check_refused(&cut, NN_ERR_FORMAT, "bytes");
  }
  cut.count = file.count - 1;
  check_refused(&cut, NN_ERR_FORMAT, "follow it");
  checkpoint_append(&file, "", 1);
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
      {LAYERS, 1 << 16, NN_ERR_FORMAT, "follow it"},
      {LAYERS, INT32_MAX, NN_ERR_UNSUPPORTED, "layers is"},
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
  for (int word = USED; word < LLMC_WORDS; word++) {
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
  for (int bit = 0; bit < 8 * LLMC_HEADER; bit++) {
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
  nn_model_t *model = llmc_small_model(NN_F32, 1), *loaded = NULL;
  nn_file_options_t options = STRUCT(nn_file_options_t);
  options.shard_bytes = 1000;
  CHECK_FAILS(NN_ERR_NOT_FOUND, "model.bin",
              nn_model_load_llmc(llmc_device, llmc_path(), NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_IO, "regular",
              nn_model_load_llmc(llmc_device, llmc_folder, NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "empty", nn_model_load_llmc(llmc_device, "", NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "device", nn_model_load_llmc(NULL,
              llmc_path(), NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path",
              nn_model_load_llmc(llmc_device, NULL, NN_F32, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "model", nn_model_load_llmc(llmc_device,
              llmc_path(), NN_F32, NULL, NULL));
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "dtype",
              nn_model_load_llmc(llmc_device, llmc_path(), NN_F64, NULL, &loaded));
  CHECK_FAILS(NN_ERR_ARGUMENT, "dtype", nn_model_load_llmc(llmc_device,
              llmc_path(), 99, NULL, &loaded));
  assert_null(loaded);
  CHECK_FAILS(NN_ERR_ARGUMENT, "empty", nn_model_save_llmc(model, "", NULL));
  CHECK_FAILS(NN_ERR_IO, "is a folder", nn_model_save_llmc(model, llmc_folder, NULL));
  CHECK_FAILS(NN_ERR_NOT_FOUND, "nowhere",
              nn_model_save_llmc(model, files_path(llmc_folder, "nowhere/model.bin"), NULL));
  CHECK_FAILS(NN_ERR_ARGUMENT, "model", nn_model_save_llmc(NULL, llmc_path(), NULL));
  CHECK_FAILS(NN_ERR_ARGUMENT, "path", nn_model_save_llmc(model, NULL, NULL));
  CHECK_FAILS(NN_ERR_ARGUMENT, "shard_bytes is 1000",
              nn_model_save_llmc(model, llmc_path(), &options));
  assert_int_equal(files_count(llmc_folder), 0);
  nn_model_destroy(model);
}

static void models_of_another_form_are_not_saved(void **state) {
  (void)state;
  nn_model_config_t configs[] = {files_mixtral(), llmc_config(131, 2, 12, 3),
                                 llmc_config(131, 2, 12, 3)};
  static const char *const parts[] = {"family is 0|NN_FAMILY_GPT2", "ffn is 50|hidden|48",
                                      "norm_eps is 1e-06|1e-05"};
  configs[1].ffn = 50;
  configs[2].norm_eps = 1e-6f;
  for (int i = 0; i < 3; i++) {
    nn_model_t *model = fixture_model(llmc_device, &configs[i], 1);
    CHECK_FAILS(NN_ERR_UNSUPPORTED, parts[i], nn_model_save_llmc(model, llmc_path(), NULL));
    assert_int_equal(files_count(llmc_folder), 0);
    nn_model_destroy(model);
  }
  nn_model_t *half;
  nn_model_config_t fits = llmc_config(131, 2, 12, 3);
  CHECK(nn_model_create(llmc_device, &fits, NN_F16, 1, &half));
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "fp16", nn_model_save_llmc(half, llmc_path(), NULL));
  assert_int_equal(files_count(llmc_folder), 0);
  nn_model_destroy(half);
  /* too large to be made here, so the format alone is asked: a padded vocabulary is an int32 */
  nn_model_config_t config = llmc_config(INT32_MAX, 1, 1, 1);
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "vocab_size is 2147483647|2147483520",
              llmc_save(llmc_path(), &config, NULL, NN_F32, NULL, NULL, NULL, NULL, NULL));
  assert_int_equal(files_count(llmc_folder), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, llmc_setup, llmc_teardown)

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
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
