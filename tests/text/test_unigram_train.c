/* Learning a Unigram vocabulary: what every result must be, words that stand out are found,
 * characters beyond the coverage are left out, repeats give the same bits, and allocations that
 * fail. */
#include "fixture.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "text/unigram_train.h"

static const word_table_t none;

static nn_status_t go_on(void *user) {
  (void)user;
  return NN_OK;
}

static void add(word_table_t *table, const char *word, int64_t count) {
  CHECK(word_table_add(table, word, strlen(word), count, NULL));
}

/* Words made of a few syllables, the first ones often. */
static void add_syllables(word_table_t *table, int words) {
  static const char *const syllables[] = {"ka", "tomi", "ze", "\xc3\xa9lu", "r", "nos", "qwy", "x"};
  uint32_t state = 7;
  for (int w = 0; w < words; w++) {
    char word[64] = "";
    for (int part = 0; part < 4; part++) {
      state = state * 1664525 + 1013904223;
      uint32_t r = state >> 24;
      strcat(word, syllables[r < 128 ? r % 3 : r % 8]);
    }
    add(table, word, 1 + w % 5);
  }
}

static int64_t find(const word_table_t *table, const unigram_trained_t *trained, const char *text) {
  for (size_t i = 0; i < trained->count; i++)
    if ((size_t)trained->pieces[i].bytes == strlen(text) &&
        memcmp(table->text + trained->pieces[i].begin, text, strlen(text)) == 0)
      return (int64_t)i;
  return -1;
}

static void check_vocabulary(const unigram_trained_t *trained, int64_t most) {
  double sum = 0;
  assert_true((int64_t)trained->count <= most);
  for (size_t i = 0; i < trained->count; i++) {
    const unigram_piece_t *piece = &trained->pieces[i];
    assert_true(piece->bytes >= 1 && piece->chars >= 1 && piece->chars <= piece->bytes);
    assert_true(piece->score < 0);
    if (i) assert_true(piece->score <= trained->pieces[i - 1].score);
    sum += exp(piece->score);
  }
  assert_true(sum < 1.0 + 1e-9); /* probabilities, and digamma(x) < log(x); the rest is rounding */
}

static void test_syllables(void **state) {
  (void)state;
  static const char *const expected[] = {"ka", "tomi", "ze", "\xc3\xa9lu", "nos", "qwy"};
  word_table_t table = {0};
  unigram_trained_t trained;
  add_syllables(&table, 600);
  CHECK(unigram_train(&table, &none, 40, 1, 1, go_on, NULL, &trained));
  assert_int_equal(trained.count, 40);
  check_vocabulary(&trained, 40);
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
    assert_true(find(&table, &trained, expected[i]) >= 0);
  static const char *const characters[] = {"k", "a", "t", "o", "m", "i", "z", "e", "\xc3\xa9",
                                           "l", "u", "r", "n", "s", "q", "w", "y", "x"};
  for (size_t i = 0; i < sizeof characters / sizeof *characters; i++)
    assert_true(find(&table, &trained, characters[i]) >= 0);
  unigram_trained_free(&trained);
  word_table_free(&table);
}

static void test_coverage(void **state) {
  (void)state;
  word_table_t table = {0};
  unigram_trained_t trained;
  add(&table, "common", 1000);
  add(&table, "comb", 1000);
  add(&table, "z\xe2\x82\xac" "com", 3);
  CHECK(unigram_train(&table, &none, 100, 0.999, 1, go_on, NULL, &trained));
  assert_true(find(&table, &trained, "com") >= 0);
  for (size_t i = 0; i < trained.count; i++) {
    const unigram_piece_t *piece = &trained.pieces[i];
    assert_null(memchr(table.text + piece->begin, '\xe2', (size_t)piece->bytes));
  }
  unigram_trained_free(&trained);
  CHECK(unigram_train(&table, &none, 100, 1, 1, go_on, NULL, &trained));
  assert_true(find(&table, &trained, "\xe2\x82\xac") >= 0);
  unigram_trained_free(&trained);
  word_table_free(&table);
}

/* Fewer ids than characters: the most frequent ones. */
static void test_small(void **state) {
  (void)state;
  word_table_t table = {0};
  unigram_trained_t trained;
  CHECK(unigram_train(&table, &none, 5, 1, 1, go_on, NULL, &trained));
  assert_int_equal(trained.count, 0);
  unigram_trained_free(&trained);
  add(&table, "aaaabbbccd", 2);
  CHECK(unigram_train(&table, &none, 3, 1, 1, go_on, NULL, &trained));
  assert_int_equal(trained.count, 3);
  assert_true(find(&table, &trained, "a") >= 0);
  assert_true(find(&table, &trained, "d") < 0);
  unigram_trained_free(&trained);
  word_table_free(&table);
}

/* Longer than a chunk, of one character, and of bytes that are no UTF-8. */
static void test_odd_words(void **state) {
  (void)state;
  enum { BYTES = 20000 };
  word_table_t table = {0};
  unigram_trained_t trained;
  char *word = fixture_memory(BYTES);
  memset(word, 'a', BYTES);
  CHECK(word_table_add(&table, word, BYTES, 3, NULL));
  memset(word, 0x80, BYTES);
  CHECK(word_table_add(&table, word, BYTES, 1, NULL));
  for (int i = 0; i < BYTES; i++) word[i] = (char)(i * 7919 >> 3);
  CHECK(word_table_add(&table, word, BYTES, 1, NULL));
  CHECK(unigram_train(&table, &none, 500, 1, 1, go_on, NULL, &trained));
  check_vocabulary(&trained, 500);
  assert_true(find(&table, &trained, "aaaaaaaa") >= 0);
  unigram_trained_free(&trained);
  word_table_free(&table);
  free(word);
}

static void test_repeat(void **state) {
  (void)state;
  word_table_t table = {0};
  unigram_trained_t first, second;
  add_syllables(&table, 300);
  CHECK(unigram_train(&table, &none, 60, 1, 2, go_on, NULL, &first));
  CHECK(unigram_train(&table, &none, 60, 1, 2, go_on, NULL, &second));
  assert_int_equal(first.count, second.count);
  for (size_t i = 0; i < first.count; i++) {
    assert_int_equal(first.pieces[i].begin, second.pieces[i].begin);
    assert_memory_equal(&first.pieces[i].score, &second.pieces[i].score, sizeof(double));
  }
  unigram_trained_free(&first);
  unigram_trained_free(&second);
  word_table_free(&table);
}

static nn_status_t stop(void *user) { return --*(int *)user < 0 ? NN_ERR_CANCELLED : NN_OK; }

static void test_failures(void **state) {
  (void)state;
  word_table_t table = {0};
  unigram_trained_t trained;
  add_syllables(&table, 100);
  for (int polls = 0; polls < 6; polls++) {
    int left = polls;
    CHECK_STATUS(NN_ERR_CANCELLED, unigram_train(&table, &none, 30, 1, 1, stop, &left, &trained));
  }
  nn_status_t status = NN_ERR_MEMORY;
  for (int64_t i = 0; status != NN_OK; i++) {
    mem_fail_after(i);
    status = unigram_train(&table, &none, 30, 1, 1, go_on, NULL, &trained);
    mem_fail_after(-1);
    if (status != NN_OK) assert_int_equal(status, NN_ERR_MEMORY);
    assert_true(i < 1000);
  }
  unigram_trained_free(&trained);
  word_table_free(&table);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_syllables), cmocka_unit_test(test_coverage),
      cmocka_unit_test(test_small),     cmocka_unit_test(test_odd_words),
      cmocka_unit_test(test_repeat),    cmocka_unit_test(test_failures)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
