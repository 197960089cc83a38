/* Readers of tokenizer files: what small files of each kind mean, and that files cut anywhere, with
 * any byte changed, or short of memory are refused in words or make a tokenizer that works. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "files.h"
#include "text.h"
#include "text/base64.h"
#include "text/gguf_tokenizer.h"
#include "text/llmc_tokenizer.h"
#include "text/sentencepiece.h"
#include "text/tiktoken.h"
#include "text/tokenizer.h"

static nn_tokenizer_t *make(text_read_fn read, const text_bytes_t *file) {
  pipeline_t pipeline;
  nn_tokenizer_t *tokenizer;
  pipeline_init(&pipeline);
  CHECK(read((text_t){(char *)file->data, file->bytes}, &pipeline));
  CHECK(tokenizer_create(&pipeline, &tokenizer));
  return tokenizer;
}

#define CHECK_REFUSED(want, parts, read, file) check_refused(want, parts, read, file, __LINE__)
static void check_refused(nn_status_t want, const char *parts, text_read_fn read,
                          const text_bytes_t *file, int line) {
  pipeline_t pipeline;
  pipeline_init(&pipeline);
  fixture_check(want, read((text_t){(char *)file->data, file->bytes}, &pipeline), "read", __FILE__,
                line);
  files_check_message(parts, __FILE__, line);
  pipeline_free(&pipeline);
}

enum { MOST_IDS = 64 };

/* The spellings of the text's tokens with bars between them. Returns how many there are. */
static int64_t check_spellings(const nn_tokenizer_t *tokenizer, const char *text, const char *want,
                               int32_t *ids) {
  int64_t count;
  char got[512] = "";
  CHECK(nn_tokenizer_encode(tokenizer, text, strlen(text), ids, MOST_IDS, &count));
  for (int64_t i = 0; i < count; i++) {
    const char *spelled;
    CHECK(nn_tokenizer_token(tokenizer, ids[i], &spelled, NULL));
    if (i) strcat(got, "|");
    strcat(got, spelled);
  }
  assert_string_equal(got, want);
  return count;
}

/* The same, and that they stand for the text. */
static void check_pieces(const nn_tokenizer_t *tokenizer, const char *text, const char *want) {
  int32_t ids[MOST_IDS];
  char back[512];
  size_t bytes;
  int64_t count = check_spellings(tokenizer, text, want, ids);
  CHECK(nn_tokenizer_decode(tokenizer, ids, count, back, sizeof back, &bytes));
  assert_int_equal(bytes, strlen(text));
  assert_memory_equal(back, text, bytes);
}

/* Every beginning of the file, and the file with each byte changed. */
static void check_hostile(text_read_fn read, const text_bytes_t *file) {
  text_bytes_t changed = {0};
  for (size_t bytes = 0; bytes < file->bytes; bytes++) text_try_reader(read, file->data, bytes);
  text_put(&changed, file->data, file->bytes);
  for (size_t i = 0; i < file->bytes; i++) {
    static const unsigned char others[] = {0, 1, 0x7f, 0x80, 0xff};
    for (size_t k = 0; k < sizeof others; k++) {
      changed.data[i] = others[k];
      text_try_reader(read, changed.data, changed.bytes);
    }
    changed.data[i] = file->data[i];
  }
  text_bytes_free(&changed);
}

static void check_allocations(text_read_fn read, const text_bytes_t *file) {
  nn_status_t status = NN_ERR_MEMORY;
  for (int64_t i = 0; status != NN_OK; i++) {
    pipeline_t pipeline;
    nn_tokenizer_t *tokenizer = NULL;
    pipeline_init(&pipeline);
    mem_fail_after(i);
    status = read((text_t){(char *)file->data, file->bytes}, &pipeline);
    if (status == NN_OK) status = tokenizer_create(&pipeline, &tokenizer);
    mem_fail_after(-1);
    if (status != NN_OK) assert_int_equal(status, NN_ERR_MEMORY);
    pipeline_free(&pipeline);
    nn_tokenizer_destroy(tokenizer);
    assert_true(i < 5000);
  }
}

/* ---- SentencePiece --------------------------------------------------------------------------- */

static void put_varint(text_bytes_t *to, uint64_t value) {
  for (; value >= 128; value >>= 7) text_put(to, &(uint8_t){(uint8_t)(value | 128)}, 1);
  text_put(to, &(uint8_t){(uint8_t)value}, 1);
}

static void put_field(text_bytes_t *to, uint64_t number, uint64_t value) {
  put_varint(to, number << 3);
  put_varint(to, value);
}

static void put_message(text_bytes_t *to, uint64_t number, text_bytes_t *message) {
  put_varint(to, number << 3 | 2);
  put_varint(to, message->bytes);
  text_put(to, message->data, message->bytes);
  text_bytes_free(message);
}

static void put_piece(text_bytes_t *to, const char *text, float score, uint64_t type) {
  text_bytes_t piece = {0};
  put_varint(&piece, 1 << 3 | 2);
  put_varint(&piece, strlen(text));
  text_put(&piece, text, strlen(text));
  put_varint(&piece, 2 << 3 | 5);
  text_put(&piece, &score, sizeof score);
  put_field(&piece, 3, type);
  put_message(to, 1, &piece);
}

/* model_type: an SP_MODEL_ number. */
static void put_specification(text_bytes_t *to, uint64_t model_type, bool byte_fallback) {
  text_bytes_t trainer = {0}, normalizer = {0};
  put_field(&trainer, 3, model_type);
  put_field(&trainer, 35, byte_fallback);
  put_field(&trainer, 999, 1); /* of a later version */
  put_message(to, 2, &trainer);
  put_field(&normalizer, 4, 0); /* remove_extra_whitespaces */
  put_message(to, 3, &normalizer);
}

static void put_model(text_bytes_t *to, uint64_t model_type, bool byte_fallback) {
  static const char *const pieces[] = {"\xe2\x96\x81", "a", "b", "c", "ab", "bc",
                                       ("\xe2\x96\x81" "ab"), "abc"};
  put_piece(to, "<unk>", 0, SP_UNKNOWN);
  put_piece(to, "<s>", 0, SP_CONTROL);
  put_piece(to, "</s>", 0, SP_CONTROL);
  put_piece(to, "cab", 0, SP_USER_DEFINED);
  for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
    put_piece(to, pieces[i], -1 - (float)i, SP_NORMAL);
  for (unsigned byte = 0; byte_fallback && byte < 256; byte++) {
    char name[8];
    snprintf(name, sizeof name, "<0x%02X>", byte);
    put_piece(to, name, 0, SP_BYTE);
  }
  put_specification(to, model_type, byte_fallback);
}

static void test_sentencepiece_bpe(void **state) {
  (void)state;
  text_bytes_t file = {0};
  put_model(&file, SP_MODEL_BPE, false);
  nn_tokenizer_t *tokenizer = make(sentencepiece_read, &file);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_BOS), 1);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_EOS), 2);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_UNK), 0);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_PAD), -1);
  /* "ab" is made before "bc", and with what stands before it before "abc" */
  check_pieces(tokenizer, "abc", "\xe2\x96\x81" "ab|c");
  check_pieces(tokenizer, "cabc  b", "\xe2\x96\x81|cab|c|\xe2\x96\x81|\xe2\x96\x81|b");
  nn_tokenizer_destroy(tokenizer);
  check_allocations(sentencepiece_read, &file);
  check_hostile(sentencepiece_read, &file);
  text_bytes_free(&file);
}

static void test_sentencepiece_unigram(void **state) {
  (void)state;
  text_bytes_t file = {0};
  put_model(&file, SP_MODEL_UNIGRAM, false);
  nn_tokenizer_t *tokenizer = make(sentencepiece_read, &file);
  check_pieces(tokenizer, "abc", "\xe2\x96\x81|abc"); /* 1 + 8 as much as 1 + 2 + 6 */
  check_pieces(tokenizer, "cabb", "\xe2\x96\x81|cab|b");
  nn_tokenizer_destroy(tokenizer);
  check_allocations(sentencepiece_read, &file);
  check_hostile(sentencepiece_read, &file);
  text_bytes_free(&file);
}

/* Words and characters, of the same pieces. */
static void test_sentencepiece_words(void **state) {
  (void)state;
  text_bytes_t file = {0};
  put_model(&file, SP_MODEL_WORD, false);
  nn_tokenizer_t *tokenizer = make(sentencepiece_read, &file);
  int32_t ids[MOST_IDS];
  check_spellings(tokenizer, "ab abc  ab",
                  "\xe2\x96\x81" "ab|<unk>|\xe2\x96\x81|\xe2\x96\x81" "ab", ids);
  check_spellings(tokenizer, "cab x ab", "<unk>|\xe2\x96\x81" "ab", ids);
  check_pieces(tokenizer, "ab  ab", "\xe2\x96\x81" "ab|\xe2\x96\x81|\xe2\x96\x81" "ab");
  CHECK_STATUS(NN_ERR_UNSUPPORTED, nn_tokenizer_save(tokenizer, "/nowhere/tokenizer.json"));
  nn_tokenizer_destroy(tokenizer);
  check_allocations(sentencepiece_read, &file);
  check_hostile(sentencepiece_read, &file);
  text_bytes_free(&file);
  put_model(&file, SP_MODEL_WORD, true);
  tokenizer = make(sentencepiece_read, &file);
  check_spellings(tokenizer, "ab x", "\xe2\x96\x81" "ab|<0xE2>|<0x96>|<0x81>|<0x78>", ids);
  nn_tokenizer_destroy(tokenizer);
  text_bytes_free(&file);
}

static void test_sentencepiece_characters(void **state) {
  (void)state;
  text_bytes_t file = {0};
  put_model(&file, SP_MODEL_CHAR, false);
  nn_tokenizer_t *tokenizer = make(sentencepiece_read, &file);
  int32_t ids[MOST_IDS];
  check_spellings(tokenizer, "abc cabxyb", "\xe2\x96\x81|a|b|c|\xe2\x96\x81|cab|<unk>|b", ids);
  check_pieces(tokenizer, "abc cab", "\xe2\x96\x81|a|b|c|\xe2\x96\x81|cab");
  nn_tokenizer_destroy(tokenizer);
  check_allocations(sentencepiece_read, &file);
  check_hostile(sentencepiece_read, &file);
  text_bytes_free(&file);
}

/* A text that spells a byte is no byte; ids of bytes that are no character are U+FFFD. */
static void test_sentencepiece_bytes(void **state) {
  (void)state;
  static const int32_t bytes[] = {12 + 0xc3, 12 + 0xa9, 12 + 0xc3, 5};
  for (uint64_t type = SP_MODEL_UNIGRAM; type <= SP_MODEL_BPE; type++) {
    text_bytes_t file = {0};
    char text[32];
    size_t size;
    put_model(&file, type, true);
    nn_tokenizer_t *tokenizer = make(sentencepiece_read, &file);
    check_pieces(tokenizer, "a\xc3\xa9", "\xe2\x96\x81|a|<0xC3>|<0xA9>");
    check_pieces(tokenizer, "<0xc>",
                 "\xe2\x96\x81|<0x3C>|<0x30>|<0x78>|c|<0x3E>");
    CHECK(nn_tokenizer_decode(tokenizer, bytes, 4, text, sizeof text, &size));
    assert_int_equal(size, 6);
    assert_memory_equal(text, "\xc3\xa9\xef\xbf\xbd" "a", size);
    nn_tokenizer_destroy(tokenizer);
    text_bytes_free(&file);
  }
}

static void test_sentencepiece_refused(void **state) {
  (void)state;
  text_bytes_t file = {0};
  put_piece(&file, "<unk>", 0, SP_UNKNOWN);
  put_piece(&file, "a", NAN, SP_NORMAL);
  CHECK_REFUSED(NN_ERR_FORMAT, "piece 1|score", sentencepiece_read, &file);
  file.bytes = 0;
  put_piece(&file, "<unk>", 0, SP_UNKNOWN);
  put_piece(&file, "", 0, SP_NORMAL);
  CHECK_REFUSED(NN_ERR_FORMAT, "piece 1|no text", sentencepiece_read, &file);
  file.bytes = 0;
  put_piece(&file, "<unk>", 0, SP_UNKNOWN);
  put_piece(&file, "a", 0, SP_NORMAL);
  put_piece(&file, "a", 0, SP_NORMAL);
  CHECK_REFUSED(NN_ERR_FORMAT, "piece 2|another", sentencepiece_read, &file);
  file.bytes = 0;
  put_piece(&file, "a", 0, SP_NORMAL);
  CHECK_REFUSED(NN_ERR_FORMAT, "unknown", sentencepiece_read, &file);
  file.bytes = 0;
  put_piece(&file, "<unk>", 0, SP_UNKNOWN);
  put_specification(&file, SP_MODEL_CHAR + 1, false);
  CHECK_REFUSED(NN_ERR_UNSUPPORTED, "type 5", sentencepiece_read, &file);
  file.bytes = 0;
  CHECK_REFUSED(NN_ERR_FORMAT, "0 pieces", sentencepiece_read, &file);
  file.bytes = 0;
  put_piece(&file, "<unk>", 0, SP_UNKNOWN);
  put_specification(&file, SP_MODEL_BPE, true);
  CHECK_REFUSED(NN_ERR_FORMAT, "<0x00>", sentencepiece_read, &file);
  file.bytes = 0;
  char large[1026];
  memset(large, 'a', sizeof large);
  large[sizeof large - 1] = 0;
  put_piece(&file, "<unk>", 0, SP_UNKNOWN);
  put_piece(&file, large, 0, SP_USER_DEFINED);
  CHECK_REFUSED(NN_ERR_UNSUPPORTED, "piece 1|1025 bytes", sentencepiece_read, &file);
  file.bytes = 0;
  put_piece(&file, "<unk>", 0, SP_UNKNOWN);
  put_piece(&file, "\xff", 0, SP_NORMAL);
  CHECK_REFUSED(NN_ERR_FORMAT, "piece 1|UTF-8", sentencepiece_read, &file);
  text_bytes_free(&file);
}

/* ---- tiktoken -------------------------------------------------------------------------------- */

static void put_rank(text_bytes_t *to, const char *token, size_t bytes, int rank) {
  char encoded[64] = "", line[96];
  base64_encode(token, bytes, encoded);
  text_put(to, line, (size_t)snprintf(line, sizeof line, "%s %d\n", encoded, rank));
}

static void put_byte_ranks(text_bytes_t *to) {
  for (int byte = 0; byte < 256; byte++) put_rank(to, &(char){(char)byte}, 1, byte);
}

static nn_status_t read_ranks(text_t file, pipeline_t *pipeline) {
  return tiktoken_read(file, TEXT("[a-z]+|."), pipeline);
}

static nn_status_t read_published(text_t file, pipeline_t *pipeline) {
  return tiktoken_read(file, TEXT(""), pipeline);
}

static void test_tiktoken(void **state) {
  (void)state;
  text_bytes_t file = {0};
  put_byte_ranks(&file);
  put_rank(&file, "bc", 2, 300);
  put_rank(&file, "ab", 2, 301);
  put_rank(&file, "abc", 3, 302);
  put_rank(&file, "xyz", 3, 303); /* no merge makes it: it is a token of whole words alone */
  nn_tokenizer_t *tokenizer = make(read_ranks, &file);
  check_pieces(tokenizer, "abc abcd bcab", "abc|\xc4\xa0|abc|d|\xc4\xa0|bc|ab");
  check_pieces(tokenizer, "xyz xyzx", "xyz|\xc4\xa0|x|y|z|x");
  check_pieces(tokenizer, "\xff\xc3", "\xc3\xbf|\xc3\x83");
  nn_tokenizer_destroy(tokenizer);
  CHECK_REFUSED(NN_ERR_UNSUPPORTED, "260 tokens|pattern", read_published, &file);
  check_allocations(read_ranks, &file);
  put_rank(&file, "bc", 2, 400);
  CHECK_REFUSED(NN_ERR_FORMAT, "line 261|before", read_ranks, &file);
  file.bytes = 0;
  put_rank(&file, "a", 1, 0);
  CHECK_REFUSED(NN_ERR_FORMAT, "byte 0", read_ranks, &file);
  check_hostile(read_ranks, &file);
  file.bytes = 0;
  text_put(&file, "YQ== x\n", 7);
  CHECK_REFUSED(NN_ERR_FORMAT, "line 1|rank", read_ranks, &file);
  text_bytes_free(&file);
}

static void test_base64(void **state) {
  (void)state;
  static const char *const wrong[] = {"A", "AB==C", "A===", "AB=", "AB$D", "AC==", "AAB="};
  for (size_t bytes = 0; bytes < 40; bytes++) {
    char raw[40] = "", text[64], back[64];
    size_t decoded;
    for (size_t i = 0; i < bytes; i++) raw[i] = (char)(i * 37 + bytes);
    base64_encode(raw, bytes, text);
    assert_true(base64_decode((text_t){text, base64_length(bytes)}, back, &decoded));
    assert_int_equal(decoded, bytes);
    if (bytes) assert_memory_equal(raw, back, bytes);
  }
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    char back[16];
    size_t decoded;
    assert_false(base64_decode((text_t){wrong[i], strlen(wrong[i])}, back, &decoded));
  }
}

/* ---- GGUF ------------------------------------------------------------------------------------ */

static void put_text(text_bytes_t *to, const char *text) {
  text_put_u64(to, strlen(text));
  text_put(to, text, strlen(text));
}

static void put_string(text_bytes_t *to, const char *key, const char *value) {
  put_text(to, key);
  text_put_u32(to, 8);
  put_text(to, value);
}

static void put_array(text_bytes_t *to, const char *key, uint32_t type, uint64_t count) {
  put_text(to, key);
  text_put_u32(to, 9);
  text_put_u32(to, type);
  text_put_u64(to, count);
}

static void put_strings(text_bytes_t *to, const char *key, const char *const *texts,
                        uint64_t count) {
  put_array(to, key, 8, count);
  for (uint64_t i = 0; i < count; i++) put_text(to, texts[i]);
}

static void put_gguf(text_bytes_t *to, uint64_t pairs) {
  text_put(to, "GGUF", 4);
  text_put_u32(to, 3);
  text_put_u64(to, 0);
  text_put_u64(to, pairs);
}

static void put_gguf_bytes(text_bytes_t *to, const char *pre) {
  static const char *const tokens[] = {"a", "b", "c", "\xc4\xa0", "ab", ("\xc4\xa0" "ab"), "<end>"};
  static const char *const merges[] = {"a b", "\xc4\xa0 ab"};
  put_gguf(to, 6);
  put_string(to, "tokenizer.ggml.model", "gpt2");
  put_string(to, "tokenizer.ggml.pre", pre);
  put_strings(to, "tokenizer.ggml.tokens", tokens, 7);
  put_array(to, "tokenizer.ggml.token_type", 5, 7);
  for (uint32_t i = 0; i < 7; i++) text_put_u32(to, i == 6 ? SP_CONTROL : SP_NORMAL);
  put_strings(to, "tokenizer.ggml.merges", merges, 2);
  put_text(to, "tokenizer.ggml.eos_token_id");
  text_put_u32(to, 4);
  text_put_u32(to, 6);
}

static void test_gguf(void **state) {
  (void)state;
  text_bytes_t file = {0};
  put_gguf_bytes(&file, "gpt-2");
  nn_tokenizer_t *tokenizer = make(gguf_tokenizer_read, &file);
  check_pieces(tokenizer, "abc ab ac", "ab|c|\xc4\xa0" "ab|\xc4\xa0|a|c");
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_EOS), 6);
  nn_tokenizer_destroy(tokenizer);
  check_allocations(gguf_tokenizer_read, &file);
  check_hostile(gguf_tokenizer_read, &file);
  file.bytes = 0;
  put_gguf_bytes(&file, "mystery");
  CHECK_REFUSED(NN_ERR_UNSUPPORTED, "tokenizer.ggml.pre|mystery", gguf_tokenizer_read, &file);
  file.bytes = 0;
  put_gguf(&file, 1);
  put_string(&file, "tokenizer.ggml.model", "bert");
  CHECK_REFUSED(NN_ERR_FORMAT, "tokenizer.ggml.tokens", gguf_tokenizer_read, &file);
  file.bytes = 0;
  put_gguf(&file, 0);
  CHECK_REFUSED(NN_ERR_FORMAT, "tokenizer.ggml.model", gguf_tokenizer_read, &file);
  text_bytes_free(&file);
}

/* Every way to cut text compiles. */
static void test_gguf_cuts(void **state) {
  (void)state;
  static const char *const names[] = {"default",      "gpt-2",       "olmo",   "llama-bpe",
                                      "qwen2",        "deepseek-llm", "deepseek-v3", "gpt-4o",
                                      "glm4",         "chatglm-bpe", "refact", "tekken"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    text_bytes_t file = {0};
    put_gguf_bytes(&file, names[i]);
    nn_tokenizer_t *tokenizer = make(gguf_tokenizer_read, &file);
    check_pieces(tokenizer, "ab ab", "ab|\xc4\xa0" "ab");
    nn_tokenizer_destroy(tokenizer);
    text_bytes_free(&file);
  }
}

/* ---- llm.c ----------------------------------------------------------------------------------- */

static void put_llmc(text_bytes_t *to, uint32_t version, uint32_t tokens, uint32_t end) {
  const uint32_t header[256] = {20240328, version, tokens, end};
  text_put(to, header, sizeof header);
}

static void put_token(text_bytes_t *to, const char *text, size_t bytes) {
  text_put(to, &(uint8_t){(uint8_t)bytes}, 1);
  text_put(to, text, bytes);
}

static void put_llmc_whole(text_bytes_t *to) {
  put_llmc(to, 2, 260, 259);
  for (int byte = 0; byte < 256; byte++) put_token(to, &(char){(char)byte}, 1);
  put_token(to, "ab", 2);
  put_token(to, " ab", 3);
  put_token(to, "bc", 2);
  put_token(to, "<|end|>", 7);
}

static void test_llmc(void **state) {
  (void)state;
  text_bytes_t file = {0};
  put_llmc_whole(&file);
  nn_tokenizer_t *tokenizer = make(llmc_tokenizer_read, &file);
  check_pieces(tokenizer, "abc ab bc", "ab|c|\xc4\xa0" "ab|\xc4\xa0|bc");
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_EOS), 259);

  char *folder = fixture_folder();
  size_t bytes;
  CHECK(nn_tokenizer_save_llmc(tokenizer, files_path(folder, "tokenizer.bin")));
  unsigned char *again = files_read(folder, "tokenizer.bin", &bytes);
  assert_int_equal(bytes, file.bytes);
  assert_memory_equal(again, file.data, bytes);
  free(again);
  nn_tokenizer_destroy(tokenizer);
  fixture_folder_remove(folder);

  check_allocations(llmc_tokenizer_read, &file);
  file.data[4] = 3;
  CHECK_REFUSED(NN_ERR_UNSUPPORTED, "version 3", llmc_tokenizer_read, &file);
  file.data[4] = 1;
  CHECK_REFUSED(NN_ERR_FORMAT, "50256|260", llmc_tokenizer_read, &file);
  file.data[4] = 2;
  text_put(&file, "x", 1);
  CHECK_REFUSED(NN_ERR_FORMAT, "1 bytes follow", llmc_tokenizer_read, &file);
  file.bytes -= 2;
  CHECK_REFUSED(NN_ERR_FORMAT, "token 259", llmc_tokenizer_read, &file);
  file.bytes = 0;
  put_llmc(&file, 2, UINT32_MAX, 0);
  CHECK_REFUSED(NN_ERR_FORMAT, "token 0", llmc_tokenizer_read, &file);
  check_hostile(llmc_tokenizer_read, &file);
  text_bytes_free(&file);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_sentencepiece_bpe),     cmocka_unit_test(test_sentencepiece_unigram),
      cmocka_unit_test(test_sentencepiece_words),
      cmocka_unit_test(test_sentencepiece_characters),
      cmocka_unit_test(test_sentencepiece_bytes),   cmocka_unit_test(test_sentencepiece_refused),
      cmocka_unit_test(test_tiktoken),
      cmocka_unit_test(test_base64),                cmocka_unit_test(test_gguf),
      cmocka_unit_test(test_gguf_cuts),             cmocka_unit_test(test_llmc)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
