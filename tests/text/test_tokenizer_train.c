/* Learning tokenizers through the public interface: what is learnt is written and read as the same,
 * texts and files of lines are the same, options are checked, progress can cancel, allocations
 * fail. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "files.h"

static char *folder;

static int setup(void **state) {
  (void)state;
  folder = fixture_folder();
  return 0;
}

static int teardown(void **state) {
  (void)state;
  fixture_folder_remove(folder);
  return 0;
}

enum { SPECIALS = 4, TEXTS = 400, MOST_TEXT = 128 };
static const char *const specials[SPECIALS] = {"<pad>", "<unk>", "<s>", "</s>"};

static nn_tokenizer_train_options_t options_of(int32_t kind, int64_t vocab_size) {
  nn_tokenizer_train_options_t options = STRUCT(nn_tokenizer_train_options_t);
  options.kind = kind;
  options.vocab_size = vocab_size;
  options.specials = specials;
  options.special_count = SPECIALS;
  return options;
}

/* Lines of words made of syllables, with accents, digits, and specials spelled out. */
static size_t make_text(int line, char *text) {
  static const char *const parts[] = {"ka", "to", "mi", " ", "the ", "\xc3\xa9lu", " ze", "r", "12",
                                      ", ", "<s>", "nos", " qwy", "\xe5\xad\x97", "</s>", "  "};
  uint32_t state = (uint32_t)line * 2654435761u + 1;
  text[0] = 0;
  for (int i = 0; i < 16; i++) {
    state = state * 1664525 + 1013904223;
    strcat(text, parts[state >> 28]);
  }
  strcat(text, "\n");
  return strlen(text);
}

typedef struct texts {
  char data[TEXTS][MOST_TEXT];
  const char *pointers[TEXTS];
  size_t bytes[TEXTS];
} texts_t;

static const texts_t *all_texts(void) {
  static texts_t texts;
  for (int i = 0; i < TEXTS; i++) {
    texts.bytes[i] = make_text(i, texts.data[i]);
    texts.pointers[i] = texts.data[i];
  }
  return &texts;
}

static nn_tokenizer_t *train(const nn_tokenizer_train_options_t *options) {
  const texts_t *texts = all_texts();
  nn_tokenizer_t *tokenizer;
  CHECK(nn_tokenizer_train(texts->pointers, texts->bytes, TEXTS, options, &tokenizer));
  return tokenizer;
}

static int64_t encode(const nn_tokenizer_t *tokenizer, const char *text, int32_t *ids) {
  int64_t count;
  CHECK(nn_tokenizer_encode(tokenizer, text, strlen(text), ids, MOST_TEXT, &count));
  return count;
}

/* Both encode every text as the same ids, none of them special, which decode to the text. */
static void check_same(const nn_tokenizer_t *a, const nn_tokenizer_t *b) {
  const texts_t *texts = all_texts();
  for (int i = 0; i < TEXTS; i++) {
    int32_t ids[MOST_TEXT], others[MOST_TEXT];
    char back[MOST_TEXT];
    size_t bytes;
    const int64_t count = encode(a, texts->pointers[i], ids);
    assert_int_equal(encode(b, texts->pointers[i], others), count);
    assert_memory_equal(ids, others, (size_t)count * sizeof *ids);
    for (int64_t k = 0; k < count; k++) assert_true(ids[k] >= SPECIALS);
    if (texts->data[i][0] == ' ') continue; /* Unigram loses it */
    CHECK(nn_tokenizer_decode(a, ids, count, back, sizeof back, &bytes));
    assert_int_equal(bytes, texts->bytes[i]);
    assert_memory_equal(back, texts->pointers[i], bytes);
  }
}

static void check_kind(int32_t kind, int64_t vocab_size) {
  nn_tokenizer_train_options_t options = options_of(kind, vocab_size);
  options.coverage = 1;
  nn_tokenizer_t *tokenizer = train(&options), *again;
  assert_int_equal(nn_tokenizer_vocab_size(tokenizer), vocab_size);
  for (int i = 0; i < SPECIALS; i++)
    assert_int_equal(nn_tokenizer_id(tokenizer, specials[i], strlen(specials[i])), i);
  CHECK(nn_tokenizer_save(tokenizer, folder));
  CHECK(nn_tokenizer_load(folder, &again));
  check_same(tokenizer, again);
  for (int32_t i = NN_TOKEN_BOS; i <= NN_TOKEN_UNK; i++)
    assert_int_equal(nn_tokenizer_special(again, i), nn_tokenizer_special(tokenizer, i));
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_BOS), 2);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_EOS), 3);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_PAD), 0);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_UNK), 1);

  size_t bytes, others;
  char *first = files_read(folder, "tokenizer.json", &bytes);
  CHECK(nn_tokenizer_save(again, files_path(folder, "again.json")));
  char *second = files_read(folder, "again.json", &others);
  assert_int_equal(bytes, others);
  assert_memory_equal(first, second, bytes);
  free(first);
  free(second);
  nn_tokenizer_destroy(tokenizer);
  nn_tokenizer_destroy(again);
}

static void test_bpe(void **state) {
  (void)state;
  check_kind(NN_TOKENIZER_BPE, 330);
}

static void test_unigram(void **state) {
  (void)state;
  check_kind(NN_TOKENIZER_UNIGRAM, 60);
}

/* Files of the same lines give the same file, byte for byte. */
static void test_files(void **state) {
  (void)state;
  const texts_t *texts = all_texts();
  char data[TEXTS * MOST_TEXT / 2];
  for (int part = 0; part < 2; part++) {
    size_t bytes = 0;
    for (int i = part * TEXTS / 2; i < (part + 1) * TEXTS / 2; i++) {
      memcpy(data + bytes, texts->data[i], texts->bytes[i]);
      bytes += texts->bytes[i];
    }
    files_write(folder, part ? "second" : "first", data, bytes);
  }
  for (int32_t kind = NN_TOKENIZER_BPE; kind <= NN_TOKENIZER_UNIGRAM; kind++) {
    const nn_tokenizer_train_options_t options = options_of(kind, kind ? 60 : 330);
    const char *const paths[] = {files_path(folder, "first"), files_path(folder, "second")};
    nn_tokenizer_t *of_texts = train(&options), *of_files;
    CHECK(nn_tokenizer_train_files(paths, 2, &options, &of_files));
    CHECK(nn_tokenizer_save(of_texts, files_path(folder, "texts.json")));
    CHECK(nn_tokenizer_save(of_files, files_path(folder, "files.json")));
    size_t bytes, others;
    char *a = files_read(folder, "texts.json", &bytes);
    char *b = files_read(folder, "files.json", &others);
    assert_int_equal(bytes, others);
    assert_memory_equal(a, b, bytes);
    free(a);
    free(b);
    nn_tokenizer_destroy(of_texts);
    nn_tokenizer_destroy(of_files);
  }
  nn_tokenizer_t *tokenizer;
  const char *const absent[] = {files_path(folder, "absent")};
  CHECK_FAILS(NN_ERR_NOT_FOUND, "absent", nn_tokenizer_train_files(absent, 1, NULL, &tokenizer));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_train_files(absent, 0, NULL, &tokenizer));
}

/* Any bytes, and a pattern of its own. */
static void test_bytes(void **state) {
  (void)state;
  nn_tokenizer_train_options_t options = STRUCT(nn_tokenizer_train_options_t);
  options.vocab_size = 258;
  options.min_frequency = 1;
  static const char text[] = "\xff\xfe\0 \xff\xfe\0 ab";
  const char *const texts[] = {text};
  const size_t bytes[] = {sizeof text - 1};
  nn_tokenizer_t *tokenizer;
  CHECK(nn_tokenizer_train(texts, bytes, 1, &options, &tokenizer));
  int32_t ids[16];
  int64_t count;
  char back[16];
  size_t size;
  CHECK(nn_tokenizer_encode(tokenizer, text, sizeof text - 1, ids, 16, &count));
  assert_int_equal(count, 6); /* FF FE 00, a space, the same again, two letters */
  CHECK(nn_tokenizer_decode(tokenizer, ids, count, back, sizeof back, &size));
  assert_int_equal(size, sizeof text - 1);
  assert_memory_equal(back, text, size);
  nn_tokenizer_destroy(tokenizer);
  options.pattern = "."; /* every word a character */
  CHECK(nn_tokenizer_train(texts, bytes, 1, &options, &tokenizer));
  assert_int_equal(nn_tokenizer_vocab_size(tokenizer), 256);
  nn_tokenizer_destroy(tokenizer);
  options.pattern = "(";
  CHECK_STATUS(NN_ERR_FORMAT, nn_tokenizer_train(texts, bytes, 1, &options, &tokenizer));
  CHECK(nn_tokenizer_train(NULL, NULL, 0, NULL, &tokenizer)); /* every byte, and no more */
  assert_int_equal(nn_tokenizer_vocab_size(tokenizer), 256);
  nn_tokenizer_destroy(tokenizer);
}

static void check_refused(const char *parts, nn_tokenizer_train_options_t options) {
  nn_tokenizer_t *tokenizer;
  CHECK_FAILS(NN_ERR_ARGUMENT, parts, nn_tokenizer_train(NULL, NULL, 0, &options, &tokenizer));
}

static void test_refused(void **state) {
  (void)state;
  static const char *const twice[] = {"<a>", "<a>"};
  static const char *const empty[] = {""}, *const broken[] = {"\xff"};
  nn_tokenizer_train_options_t options = options_of(2, 0);
  check_refused("kind is 2", options);
  check_refused("vocab_size is 259", options_of(NN_TOKENIZER_BPE, 259));
  check_refused("vocab_size is -1", options_of(NN_TOKENIZER_BPE, -1));
  options = options_of(NN_TOKENIZER_BPE, 0);
  options.min_frequency = -1;
  check_refused("min_frequency", options);
  options = options_of(NN_TOKENIZER_UNIGRAM, 0);
  options.coverage = 1.5f;
  check_refused("coverage", options);
  options = options_of(NN_TOKENIZER_UNIGRAM, 0);
  options.pattern = ".";
  check_refused("pattern", options);
  options = options_of(NN_TOKENIZER_UNIGRAM, 0);
  options.unk = "<other>";
  check_refused("<other>|unknown", options);
  options = options_of(NN_TOKENIZER_BPE, 0);
  options.specials = twice, options.special_count = 2;
  check_refused("special 1|<a>", options);
  options.specials = empty, options.special_count = 1;
  check_refused("special 0", options);
  options.specials = broken;
  check_refused("special 0", options);
  options.special_count = -1;
  check_refused("special_count", options);
}

static int32_t stop(int64_t done, int64_t total, void *user) {
  assert_true(done <= total);
  return --*(int *)user < 0;
}

static void test_cancelled(void **state) {
  (void)state;
  const texts_t *texts = all_texts();
  for (int32_t kind = NN_TOKENIZER_BPE; kind <= NN_TOKENIZER_UNIGRAM; kind++)
    for (int calls = 0; calls < 5; calls++) {
      nn_tokenizer_train_options_t options = options_of(kind, kind ? 60 : 330);
      nn_tokenizer_t *tokenizer;
      int left = calls;
      options.progress = stop;
      options.progress_user = &left;
      CHECK_STATUS(NN_ERR_CANCELLED, nn_tokenizer_train(texts->pointers, texts->bytes, TEXTS,
                                                        &options, &tokenizer));
    }
}

static void test_allocations(void **state) {
  (void)state;
  const texts_t *texts = all_texts();
  for (int32_t kind = NN_TOKENIZER_BPE; kind <= NN_TOKENIZER_UNIGRAM; kind++) {
    const nn_tokenizer_train_options_t options = options_of(kind, kind ? 40 : 270);
    nn_status_t status = NN_ERR_MEMORY;
    for (int64_t i = 0; status != NN_OK; i++) {
      nn_tokenizer_t *tokenizer = NULL;
      mem_fail_after(i);
      status = nn_tokenizer_train(texts->pointers, texts->bytes, 20, &options, &tokenizer);
      if (status == NN_OK) status = nn_tokenizer_save(tokenizer, files_path(folder, "faults.json"));
      mem_fail_after(-1);
      if (status != NN_OK) assert_int_equal(status, NN_ERR_MEMORY);
      nn_tokenizer_destroy(tokenizer);
      assert_true(i < 5000);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_bpe),     cmocka_unit_test(test_unigram),
      cmocka_unit_test(test_files),   cmocka_unit_test(test_bytes),
      cmocka_unit_test(test_refused), cmocka_unit_test(test_cancelled),
      cmocka_unit_test(test_allocations)};
  return cmocka_run_group_tests(tests, setup, teardown);
}
