/* Real vocabularies: those of the shared data folder must give the expected ids of every text that
 * stands beside them, and the texts again. Skipped where the folder is not. */
#include <stdio.h>
#include <string.h>

#include "files.h"
#include "text.h"
#include "text/base64.h"
#include "text/bytemap.h"
#include "text/gguf_tokenizer.h"
#include "text/llmc_tokenizer.h"
#include "text/tokenizer.h"

enum { MOST_IDS = 4096, SKIPPED = 77 };

static const char *const folder = MOENN_SHARED_DIR "/tokenizers";

static char *read_whole(const char *name, size_t *bytes) {
  char *data = files_read(folder, name, bytes);
  if (!data) fail_msg("%s/%s cannot be read", folder, name);
  return data;
}

static nn_tokenizer_t *open_gguf(const char *name) {
  size_t bytes;
  char *data = read_whole(name, &bytes);
  pipeline_t pipeline;
  nn_tokenizer_t *tokenizer;
  pipeline_init(&pipeline);
  CHECK(gguf_tokenizer_read((text_t){data, bytes}, &pipeline));
  CHECK(tokenizer_create(&pipeline, &tokenizer));
  free(data); /* nothing of the file is kept */
  return tokenizer;
}

static int64_t read_ids(const char *line, int32_t *ids) {
  int64_t count = 0;
  for (char *end;; line = end) {
    const long id = strtol(line, &end, 10);
    if (end == line) return count;
    assert_true(count < MOST_IDS);
    ids[count++] = (int32_t)id;
  }
}

static void check_text(const nn_tokenizer_t *tokenizer, text_t text, const int32_t *want,
                       int64_t wanted) {
  static int32_t ids[MOST_IDS];
  static char back[1 << 16];
  int64_t count;
  size_t bytes;
  CHECK(nn_tokenizer_encode(tokenizer, text.data, text.bytes, ids, MOST_IDS, &count));
  if (count != wanted || memcmp(ids, want, (size_t)count * sizeof *ids) != 0)
    fail_msg("\"%.*s\" has %lld ids, expected are %lld", (int)text.bytes, text.data,
             (long long)count, (long long)wanted);
  CHECK(nn_tokenizer_decode(tokenizer, ids, count, back, sizeof back, &bytes));
  assert_int_equal(bytes, text.bytes);
  assert_memory_equal(back, text.data, bytes);
}

/* Every text of NAME.gguf.inp; returns how many. */
static int check_texts(const nn_tokenizer_t *tokenizer, const char *name) {
  static const char separator[] = "\n__ggml_vocab_test__\n";
  char file[128];
  size_t bytes;
  static int32_t want[MOST_IDS];
  snprintf(file, sizeof file, "%s.inp", name);
  char *texts = read_whole(file, &bytes);
  snprintf(file, sizeof file, "%s.out", name);
  char *lines = read_whole(file, &bytes), *text = texts, *line = lines;
  int count = 0;
  for (char *end; (end = strstr(text, separator)); text = end + sizeof separator - 1, count++) {
    char *newline = strchr(line, '\n');
    assert_non_null(newline);
    *newline = 0;
    check_text(tokenizer, (text_t){text, (size_t)(end - text)}, want, read_ids(line, want));
    line = newline + 1;
  }
  assert_int_equal(*line, 0);
  free(texts);
  free(lines);
  return count;
}

static void check_gguf(const char *name) {
  nn_tokenizer_t *tokenizer = open_gguf(name);
  assert_int_equal(check_texts(tokenizer, name), 46);
  nn_tokenizer_destroy(tokenizer);
}

static void test_gpt2(void **state) {
  (void)state;
  check_gguf("ggml-vocab-gpt-2.gguf");
}

static void test_llama(void **state) {
  (void)state;
  check_gguf("ggml-vocab-llama-spm.gguf");
}

static void test_deepseek(void **state) {
  (void)state;
  check_gguf("ggml-vocab-deepseek-llm.gguf");
}

/* GPT-2's vocabulary goes through an llm.c file, which has no merges, and encodes the same. */
static void test_llmc(void **state) {
  (void)state;
  char *own = fixture_folder();
  nn_tokenizer_t *tokenizer = open_gguf("ggml-vocab-gpt-2.gguf");
  size_t bytes;
  pipeline_t pipeline;
  CHECK(llmc_tokenizer_save(files_path(own, "tokenizer.bin"), &tokenizer->pipeline));
  nn_tokenizer_destroy(tokenizer);
  char *data = files_read(own, "tokenizer.bin", &bytes);
  pipeline_init(&pipeline);
  CHECK(llmc_tokenizer_read((text_t){data, bytes}, &pipeline));
  CHECK(tokenizer_create(&pipeline, &tokenizer));
  free(data);
  assert_int_equal(nn_tokenizer_vocab_size(tokenizer), 50257);
  assert_int_equal(check_texts(tokenizer, "ggml-vocab-gpt-2.gguf"), 46);
  nn_tokenizer_destroy(tokenizer);
  fixture_folder_remove(own);
}

/* The same as a tiktoken rank file, which is known by its number of tokens. */
static void test_tiktoken(void **state) {
  (void)state;
  char *own = fixture_folder();
  nn_tokenizer_t *tokenizer = open_gguf("ggml-vocab-gpt-2.gguf");
  const model_t *model = &tokenizer->pipeline.model;
  text_bytes_t file = {0};
  for (size_t i = 0; i < model->token_count; i++) {
    const text_t token = model->tokens[i].text;
    char raw[1024], line[2048];
    size_t bytes;
    assert_true(token.bytes < sizeof raw);
    assert_true(bytemap_read(token.data, token.bytes, raw, &bytes));
    base64_encode(raw, bytes, line);
    const size_t encoded = base64_length(bytes);
    const int rank = snprintf(line + encoded, 16, " %d\n", model->tokens[i].id);
    text_put(&file, line, encoded + (size_t)rank);
  }
  nn_tokenizer_destroy(tokenizer);
  files_write(own, "r50k.tiktoken", file.data, file.bytes);
  text_bytes_free(&file);
  CHECK(nn_tokenizer_load(files_path(own, "r50k.tiktoken"), &tokenizer));
  assert_int_equal(nn_tokenizer_id(tokenizer, "<|endoftext|>", 13), 50256);
  assert_int_equal(check_texts(tokenizer, "ggml-vocab-gpt-2.gguf"), 46);
  nn_tokenizer_destroy(tokenizer);
  fixture_folder_remove(own);
}

int main(void) {
  char path[512];
  snprintf(path, sizeof path, "%s/ggml-vocab-gpt-2.gguf", folder);
  FILE *file = fopen(path, "rb");
  if (!file) {
    printf("skipped: there is no %s\n", path);
    return SKIPPED;
  }
  fclose(file);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_gpt2), cmocka_unit_test(test_llama),
                                     cmocka_unit_test(test_deepseek),
                                     cmocka_unit_test(test_llmc), cmocka_unit_test(test_tiktoken)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
