/* Tokenizers of every kind against what the tokenizers package makes of the same texts
 * (golden/tokenizers), ids, offsets, texts and streams; every allocation failing in turn; threads;
 * files that are refused. */
#define _XOPEN_SOURCE 700 /* mkdtemp */
#include "fixture.h"

#include <dirent.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "files.h"
#include "text/load.h"
#include "text/unicode.h"

enum { MOST = 512 };

static const char folder[] = MOENN_TEST_DIR "/golden/tokenizers";

/* A golden file, and the tokenizer in it. */
typedef struct golden_tokenizer {
  json_t *root;
  char *text; /* of its tokenizer.json */
} golden_tokenizer_t;

static golden_tokenizer_t open_golden(const char *name) {
  json_error_t error;
  golden_tokenizer_t golden = {
      .root = json_load_file(files_path(folder, name), JSON_ALLOW_NUL, &error)};
  assert_non_null(golden.root);
  golden.text = json_dumps(json_object_get(golden.root, "tokenizer"), JSON_COMPACT);
  assert_non_null(golden.text);
  return golden;
}

static void close_golden(golden_tokenizer_t *golden) {
  json_decref(golden->root);
  free(golden->text);
}

static nn_status_t make(const char *text, nn_tokenizer_t **tokenizer) {
  return tokenizer_load_memory(text, strlen(text), "a test", tokenizer);
}

/* ---- comparing ------------------------------------------------------------------------------- */

static void check_ids(const json_t *expected, const int32_t *ids, int64_t count) {
  assert_int_equal(count, json_array_size(expected));
  for (int64_t i = 0; i < count; i++)
    assert_int_equal(ids[i], json_integer_value(json_array_get(expected, (size_t)i)));
}

static void check_offsets(const json_t *expected, const int64_t *offsets, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const json_t *pair = json_array_get(expected, (size_t)i);
    assert_int_equal(offsets[2 * i], json_integer_value(json_array_get(pair, 0)));
    assert_int_equal(offsets[2 * i + 1], json_integer_value(json_array_get(pair, 1)));
  }
}

static void check_text(const json_t *expected, const char *text, size_t bytes) {
  assert_int_equal(bytes, json_string_length(expected));
  assert_memory_equal(text, json_string_value(expected), bytes);
}

/* Id by id, each piece whole characters; together the same text. */
static void check_stream(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t count,
                         int32_t keep_special, const json_t *expected) {
  nn_decode_stream_t stream = {.struct_size = sizeof stream, .keep_special = keep_special};
  char text[8 * MOST];
  size_t used = 0, bytes = 0;
  for (int64_t i = 1; i <= count + 1; i++) {
    const int32_t finish = i > count;
    const nn_decode_stream_t before = stream;
    const nn_status_t status = nn_tokenizer_decode_next(
        tokenizer, &stream, ids, finish ? count : i, finish, text + used, 0, &bytes);
    if (status == NN_ERR_CAPACITY) {
      assert_memory_equal(&stream, &before, sizeof stream);
      assert_true(used + bytes <= sizeof text);
      CHECK(nn_tokenizer_decode_next(tokenizer, &stream, ids, finish ? count : i, finish,
                                     text + used, sizeof text - used, &bytes));
    } else {
      CHECK(status);
    }
    assert_int_equal(utf8_valid(text + used, bytes), bytes);
    used += bytes;
  }
  check_text(expected, text, used);
}

static void check_one(const nn_tokenizer_t *tokenizer, const json_t *golden) {
  const json_t *string = json_object_get(golden, "text");
  const char *text = json_string_value(string);
  const size_t length = json_string_length(string);
  nn_encode_options_t all = {sizeof all, .add_special = 1, .parse_special = 1};
  nn_decode_options_t keep = {sizeof keep, .keep_special = 1};
  int32_t ids[MOST], again[MOST];
  int64_t offsets[2 * MOST], count, second;
  char decoded[8 * MOST];
  size_t bytes;
  CHECK(nn_tokenizer_encode_with(tokenizer, text, length, &all, ids, offsets, MOST, &count));
  check_ids(json_object_get(golden, "ids"), ids, count);
  check_offsets(json_object_get(golden, "offsets"), offsets, count);
  for (int round = 0; round < 2; round++) { /* the second finds its words remembered */
    CHECK(nn_tokenizer_encode_with(tokenizer, text, length, &all, again, NULL, MOST, &second));
    check_ids(json_object_get(golden, "ids"), again, second);
  }
  CHECK(nn_tokenizer_encode(tokenizer, text, length, again, MOST, &second));
  if (!json_is_null(json_object_get(golden, "plain")))
    check_ids(json_object_get(golden, "plain"), again, second);
  if (second)
    CHECK_STATUS(NN_ERR_CAPACITY,
                 nn_tokenizer_encode(tokenizer, text, length, again, second - 1, &second));
  CHECK(nn_tokenizer_decode(tokenizer, ids, count, decoded, sizeof decoded, &bytes));
  check_text(json_object_get(golden, "decoded"), decoded, bytes);
  CHECK(nn_tokenizer_decode_with(tokenizer, ids, count, &keep, decoded, sizeof decoded, &bytes));
  check_text(json_object_get(golden, "special"), decoded, bytes);
  check_stream(tokenizer, ids, count, 0, json_object_get(golden, "decoded"));
  check_stream(tokenizer, ids, count, 1, json_object_get(golden, "special"));
}

/* Calls check with every golden file. */
static void each_golden(void (*check)(const golden_tokenizer_t *golden)) {
  DIR *files = opendir(folder);
  int seen = 0;
  assert_non_null(files);
  for (const struct dirent *file; (file = readdir(files)) != NULL;) {
    if (!strstr(file->d_name, ".json")) continue;
    golden_tokenizer_t golden = open_golden(file->d_name);
    print_message("%s\n", file->d_name);
    check(&golden);
    close_golden(&golden);
    seen++;
  }
  closedir(files);
  assert_int_equal(seen, 16);
}

static void compare(const golden_tokenizer_t *golden) {
  nn_tokenizer_t *tokenizer;
  size_t at;
  const json_t *text;
  CHECK(make(golden->text, &tokenizer));
  json_array_foreach(json_object_get(golden->root, "texts"), at, text) check_one(tokenizer, text);
  for (int32_t id = 0; id < nn_tokenizer_vocab_size(tokenizer); id++) {
    const char *spelled;
    size_t bytes;
    if (nn_tokenizer_token(tokenizer, id, &spelled, &bytes) != NN_OK) continue;
    assert_int_equal(spelled[bytes], 0);
    assert_int_equal(nn_tokenizer_id(tokenizer, spelled, bytes), id);
  }
  nn_tokenizer_destroy(tokenizer);
}

static void test_golden(void **state) {
  (void)state;
  each_golden(compare);
}

/* ---- failing allocations --------------------------------------------------------------------- */

static nn_status_t load_and_use(const char *json) {
  const char *text = "The quick\xff \u00e9\u0323 1234 <s> x <|endoftext|>  LSTRIP y";
  nn_encode_options_t all = {sizeof all, .add_special = 1, .parse_special = 1};
  int32_t ids[MOST];
  int64_t offsets[2 * MOST], count = 0;
  char decoded[8 * MOST];
  size_t bytes;
  nn_tokenizer_t *tokenizer;
  STATUS_TRY(make(json, &tokenizer));
  nn_status_t status = nn_tokenizer_encode_with(tokenizer, text, strlen(text), &all, ids, offsets,
                                                MOST, &count);
  if (status == NN_OK)
    status = nn_tokenizer_encode(tokenizer, text, strlen(text), ids, MOST, &count);
  if (status == NN_OK)
    status = nn_tokenizer_decode(tokenizer, ids, count, decoded, sizeof decoded, &bytes);
  nn_decode_stream_t stream = {.struct_size = sizeof stream};
  if (status == NN_OK)
    status = nn_tokenizer_decode_next(tokenizer, &stream, ids, count, 1, decoded, sizeof decoded,
                                      &bytes);
  nn_tokenizer_destroy(tokenizer);
  return status;
}

static void fail_each(const golden_tokenizer_t *golden) {
  CHECK(load_and_use(golden->text));
  nn_status_t status = NN_ERR_MEMORY;
  /* the vocabulary's growth alone takes most of them: each of the first, then every third */
  for (int64_t after = 0; status != NN_OK; after += after < 150 ? 1 : 3) {
    mem_fail_after(after);
    status = load_and_use(golden->text);
    mem_fail_after(-1);
    if (status != NN_OK && status != NN_ERR_MEMORY)
      fail_msg("allocation %lld: %s: %s", (long long)after, nn_status_name(status),
               nn_last_error());
    assert_true(after < 100000);
  }
}

static void test_memory(void **state) {
  (void)state;
  each_golden(fail_each);
}

/* ---- threads --------------------------------------------------------------------------------- */

typedef struct worker {
  const nn_tokenizer_t *tokenizer;
  const json_t *texts;
} worker_t;

static void *work(void *user) {
  const worker_t *worker = user;
  for (int round = 0; round < 20; round++)
    for (size_t i = 0; i < json_array_size(worker->texts); i++)
      check_one(worker->tokenizer, json_array_get(worker->texts, i));
  return NULL;
}

static void test_threads(void **state) {
  (void)state;
  enum { THREADS = 4 };
  golden_tokenizer_t golden = open_golden("llama3.json");
  nn_tokenizer_t *tokenizer;
  pthread_t threads[THREADS];
  CHECK(make(golden.text, &tokenizer));
  worker_t worker = {tokenizer, json_object_get(golden.root, "texts")};
  for (int i = 0; i < THREADS; i++)
    assert_int_equal(pthread_create(&threads[i], NULL, work, &worker), 0);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  nn_tokenizer_destroy(tokenizer);
  close_golden(&golden);
}

/* ---- files ----------------------------------------------------------------------------------- */

#define WORDS "\"model\": {\"type\": \"WordLevel\", \"vocab\": {\"a\": 0, \"b\": 1, \"?\": 2}, " \
              "\"unk_token\": \"?\"}"

static void test_folder(void **state) {
  (void)state;
  char *path = fixture_folder();
  nn_tokenizer_t *tokenizer;
  CHECK_FAILS(NN_ERR_NOT_FOUND, "holds no tokenizer.json", nn_tokenizer_load(path, &tokenizer));
  CHECK_FAILS(NN_ERR_NOT_FOUND, "cannot be opened",
              nn_tokenizer_load(files_path(path, "none.json"), &tokenizer));
  const char *once = strstr(nn_last_error(), "none.json");
  assert_true(once && !strstr(once + 1, "none.json"));
  files_write_text(path, "tokenizer.json", "{\"model\": {\"type\": \"Words\"}}");
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "/tokenizer.json: the model \"Words\" is not understood; BPE",
              nn_tokenizer_load(path, &tokenizer));
  files_write_text(path, "tokenizer.json", "{" WORDS "}");
  files_write_text(path, "tokenizer_config.json",
                   "{\"bos_token\": \"a\", \"eos_token\": {\"content\": \"b\"}, \"pad_token\": "
                   "\"none\", \"unk_token\": null}");
  CHECK(nn_tokenizer_load(path, &tokenizer));
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_BOS), 0);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_EOS), 1);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_PAD), -1);
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_UNK), 2);
  assert_int_equal(nn_tokenizer_special(tokenizer, 4), -1);
  nn_tokenizer_destroy(tokenizer);
  CHECK(nn_tokenizer_load(files_path(path, "tokenizer.json"), &tokenizer));
  assert_int_equal(nn_tokenizer_special(tokenizer, NN_TOKEN_EOS), -1);
  nn_tokenizer_destroy(tokenizer);
  files_write_text(path, "tokenizer_config.json", "[");
  CHECK_FAILS(NN_ERR_FORMAT, "tokenizer_config.json", nn_tokenizer_load(path, &tokenizer));
  fixture_folder_remove(path);
}

static void test_refused(void **state) {
  (void)state;
#define BPE(members) "{\"model\": {\"type\": \"BPE\", " members "}}"
  static const struct {
    nn_status_t status;
    const char *says, *text;
  } cases[] = {
      {NN_ERR_FORMAT, "line", "{"},
      {NN_ERR_FORMAT, "model", "{}"},
      {NN_ERR_UNSUPPORTED, "surprise", "{\"surprise\": 1, " WORDS "}"},
      {NN_ERR_UNSUPPORTED, "dropout", BPE("\"dropout\": 0.1, \"vocab\": {}, \"merges\": []")},
      {NN_ERR_UNSUPPORTED, "Alien", "{\"model\": {\"type\": \"Alien\"}}"},
      {NN_ERR_UNSUPPORTED, "normalizer|Alien",
       "{\"normalizer\": {\"type\": \"Alien\"}, " WORDS "}"},
      {NN_ERR_UNSUPPORTED, "UnicodeScripts",
       "{\"pre_tokenizer\": {\"type\": \"UnicodeScripts\"}, " WORDS "}"},
      {NN_ERR_UNSUPPORTED, "decoder|Alien", "{\"decoder\": {\"type\": \"Alien\"}, " WORDS "}"},
      {NN_ERR_UNSUPPORTED, "post-processor|Alien",
       "{\"post_processor\": {\"type\": \"Alien\"}, " WORDS "}"},
      {NN_ERR_FORMAT, "no tokens", BPE("\"vocab\": {}, \"merges\": []")},
      {NN_ERR_FORMAT, "merge 0", BPE("\"vocab\": {\"a\": 0}, \"merges\": [\"a a\"]")},
      {NN_ERR_FORMAT, "merge 0", BPE("\"vocab\": {\"a\": 0}, \"merges\": [\"a\"]")},
      {NN_ERR_FORMAT, "id", BPE("\"vocab\": {\"a\": -1}, \"merges\": []")},
      {NN_ERR_FORMAT, "gaps", BPE("\"vocab\": {\"a\": 16000000}, \"merges\": []")},
      {NN_ERR_FORMAT, "pattern",
       "{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(\"}, \"behavior\": "
       "\"Isolated\", \"invert\": false}, " WORDS "}"},
      {NN_ERR_UNSUPPORTED, "intersection",
       "{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"[\\\\w&&[^a]]\"}, "
       "\"behavior\": \"Isolated\", \"invert\": false}, " WORDS "}"},
      {NN_ERR_FORMAT, "charsmap",
       "{\"normalizer\": {\"type\": \"Precompiled\", \"precompiled_charsmap\": \"AAAA\"}, " WORDS
       "}"},
      {NN_ERR_FORMAT, "unk_id", "{\"model\": {\"type\": \"Unigram\", \"unk_id\": 1, \"vocab\": "
                                "[[\"a\", -1.0]]}}"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    nn_tokenizer_t *tokenizer = NULL;
    CHECK_FAILS(cases[i].status, cases[i].says, make(cases[i].text, &tokenizer));
    assert_null(tokenizer);
  }
}

/* A pattern that takes exponential time is given up, with a status. */
static void test_slow_pattern(void **state) {
  (void)state;
  nn_tokenizer_t *tokenizer;
  char text[64];
  int32_t ids[64];
  int64_t count;
  memset(text, 'a', sizeof text);
  CHECK(make("{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"(a+)+[bc]\"}, "
             "\"behavior\": \"Isolated\", \"invert\": false}, " WORDS "}", &tokenizer));
  CHECK_STATUS(NN_ERR_UNSUPPORTED,
               nn_tokenizer_encode(tokenizer, text, sizeof text, ids, 64, &count));
  CHECK(nn_tokenizer_encode(tokenizer, "b", 1, ids, 64, &count)); /* usable after */
  assert_int_equal(ids[0], 1);
  nn_tokenizer_destroy(tokenizer);
}

/* A stream keeps few ids in its window, also where each is a space that a first token loses. */
static void test_window(void **state) {
  (void)state;
  enum { SPACES = 200 };
  nn_tokenizer_t *tokenizer;
  CHECK(make("{\"decoder\": {\"type\": \"Metaspace\", \"replacement\": \"\\u2581\", "
             "\"prepend_scheme\": \"always\"}, \"model\": {\"type\": \"BPE\", "
             "\"vocab\": {\"\\u2581\": 0, \"y\": 1}, \"merges\": []}}", &tokenizer));
  nn_decode_stream_t stream = STRUCT(nn_decode_stream_t);
  int32_t ids[SPACES + 1] = {[SPACES] = 1};
  for (int64_t i = 1; i <= SPACES + 1; i++) {
    char text[8];
    size_t bytes;
    CHECK(nn_tokenizer_decode_next(tokenizer, &stream, ids, i, 0, text, sizeof text, &bytes));
    assert_int_equal(bytes, i > 1);
    if (bytes) assert_int_equal(text[0], i > SPACES ? 'y' : ' ');
    assert_true(i - stream.first <= 3);
  }
  nn_tokenizer_destroy(tokenizer);
}

/* Composing loses none of the marks on a letter, however many, nor what follows them. */
static void test_many_marks(void **state) {
  (void)state;
  enum { MARKS = 200 };
  nn_tokenizer_t *tokenizer;
  CHECK(make("{\"normalizer\": {\"type\": \"NFC\"}, \"model\": {\"type\": \"BPE\", \"vocab\": "
             "{\"x\": 0, \"\\u0301\": 1, \"y\": 2}, \"merges\": []}}", &tokenizer));
  for (int marks = 0; marks <= MARKS; marks++) {
    char text[2 * MARKS + 2];
    int32_t ids[MARKS + 2];
    int64_t count;
    text[0] = 'x';
    for (int i = 0; i < marks; i++) memcpy(text + 1 + 2 * i, "\xcc\x81", 2);
    text[1 + 2 * marks] = 'y';
    CHECK(nn_tokenizer_encode(tokenizer, text, 2 + 2 * (size_t)marks, ids, MARKS + 2, &count));
    assert_int_equal(count, marks + 2);
    assert_int_equal(ids[0], 0);
    for (int i = 0; i < marks; i++) assert_int_equal(ids[1 + i], 1);
    assert_int_equal(ids[1 + marks], 2);
  }
  nn_tokenizer_destroy(tokenizer);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_many_marks), cmocka_unit_test(test_window),
      cmocka_unit_test(test_golden), cmocka_unit_test(test_memory),
      cmocka_unit_test(test_threads), cmocka_unit_test(test_folder),
      cmocka_unit_test(test_refused), cmocka_unit_test(test_slow_pattern),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
