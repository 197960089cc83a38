/* Learning byte-pair merges: equal to counting every pair anew before every merge, over random
 * words with many repeats and ties; the thresholds; long words; allocations that fail. */
#include "fixture.h"

#include <string.h>

#include "base/mem.h"
#include "text/bpe_train.h"
#include "text/bytemap.h"

enum { MOST_WORDS = 40, MOST_BYTES = 24 };

static const word_table_t none;

static nn_status_t go_on(void *user) {
  (void)user;
  return NN_OK;
}

static uint32_t next_random(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(*state >> 33);
}

/* ---- the plain way --------------------------------------------------------------------------- */

typedef struct plain {
  int32_t symbols[MOST_WORDS][MOST_BYTES];
  int length[MOST_WORDS];
  int64_t count[MOST_WORDS];
  int words;
} plain_t;

static void plain_words(const word_table_t *table, plain_t *plain) {
  plain->words = (int)table->word_count;
  for (int w = 0; w < plain->words; w++) {
    plain->length[w] = (int)table->words[w].bytes;
    plain->count[w] = table->words[w].count;
    for (int i = 0; i < plain->length[w]; i++) {
      uint32_t code = bytemap_code((unsigned char)word_text(table, w)[i]);
      plain->symbols[w][i] = 0; /* the byte's rank among the characters of the byte map */
      for (uint32_t c = 0; c < code; c++) plain->symbols[w][i] += bytemap_byte(c) >= 0;
    }
  }
}

static int64_t plain_count(const plain_t *plain, int32_t left, int32_t right) {
  int64_t count = 0;
  for (int w = 0; w < plain->words; w++)
    for (int i = 0; i + 1 < plain->length[w]; i++)
      if (plain->symbols[w][i] == left && plain->symbols[w][i + 1] == right)
        count += plain->count[w];
  return count;
}

/* The pair with the most, of equals that with the lower ids; its count, 0: there is none. */
static int64_t plain_best(const plain_t *plain, int32_t *left, int32_t *right) {
  int64_t most = 0;
  for (int w = 0; w < plain->words; w++)
    for (int i = 0; i + 1 < plain->length[w]; i++) {
      const int32_t a = plain->symbols[w][i], b = plain->symbols[w][i + 1];
      const int64_t count = plain_count(plain, a, b);
      if (count < most || (count == most && (a > *left || (a == *left && b >= *right)))) continue;
      most = count;
      *left = a;
      *right = b;
    }
  return most;
}

static void plain_merge(plain_t *plain, int32_t left, int32_t right, int32_t made) {
  for (int w = 0; w < plain->words; w++) {
    int written = 0;
    for (int i = 0; i < plain->length[w]; i++) {
      int32_t *word = plain->symbols[w];
      const bool pair = i + 1 < plain->length[w] && word[i] == left && word[i + 1] == right;
      word[written++] = pair ? made : word[i];
      i += pair;
    }
    plain->length[w] = written;
  }
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void random_words(uint64_t seed, word_table_t *table) {
  static const char *const alphabets[] = {"a", "ab", "abc", (" \xc3\xa9" "a"), "abcdefghijklmnop"};
  uint64_t state = seed;
  const char *alphabet = alphabets[seed % 5];
  int words = 1 + (int)(next_random(&state) % MOST_WORDS);
  for (int w = 0; w < words; w++) {
    char word[MOST_BYTES];
    size_t bytes = 1 + next_random(&state) % MOST_BYTES;
    for (size_t i = 0; i < bytes; i++) word[i] = alphabet[next_random(&state) % strlen(alphabet)];
    CHECK(word_table_add(table, word, bytes, 1 + next_random(&state) % 4, NULL));
  }
}

static void test_against_plain(void **state) {
  (void)state;
  static plain_t plain;
  int64_t merges = 0;
  for (uint64_t seed = 0; seed < 200; seed++) {
    word_table_t table = {0};
    bpe_trained_t trained = {0};
    random_words(seed, &table);
    const int64_t least = 1 + (int64_t)(seed % 3);
    CHECK(bpe_train(&table, &none, 300, least, go_on, NULL, &trained));
    plain_words(&table, &plain);
    for (size_t i = 0; i < trained.merge_count; i++, merges++) {
      int32_t left = 0, right = 0;
      assert_true(plain_best(&plain, &left, &right) >= least);
      assert_int_equal(trained.merges[i].left, left);
      assert_int_equal(trained.merges[i].right, right);
      assert_int_equal(trained.merges[i].made, 256 + i);
      plain_merge(&plain, left, right, trained.merges[i].made);
    }
    int32_t left = 0, right = 0;
    if (trained.tokens.word_count < 300) assert_true(plain_best(&plain, &left, &right) < least);
    bpe_trained_free(&trained);
    word_table_free(&table);
  }
  assert_true(merges > 2000);
}

static void test_tokens(void **state) {
  (void)state;
  word_table_t table = {0};
  bpe_trained_t trained = {0};
  CHECK(word_table_add(&table, "low", 3, 5, NULL));
  CHECK(word_table_add(&table, "lower", 5, 2, NULL));
  CHECK(bpe_train(&table, &none, 260, 1, go_on, NULL, &trained));
  assert_int_equal(trained.tokens.word_count, 260);
  static const char *const made[] = {"lo", "low", "er", "lower"};
  for (int i = 0; i < 4; i++) {
    assert_int_equal(trained.tokens.words[256 + i].bytes, strlen(made[i]));
    assert_memory_equal(word_text(&trained.tokens, 256 + i), made[i], strlen(made[i]));
  }
  assert_int_equal(word_table_find(&trained.tokens, "lower", 5), 259);
  assert_int_equal(word_table_find(&trained.tokens, "none", 4), -1);
  bpe_trained_free(&trained);
  word_table_free(&table);
}

/* Takes seconds at the most only if merging takes time in proportion to the text. */
static void test_long_word(void **state) {
  (void)state;
  enum { BYTES = 1 << 18 };
  uint64_t random = 1;
  word_table_t table = {0};
  bpe_trained_t trained = {0};
  char *word = fixture_memory(BYTES);
  for (int i = 0; i < BYTES; i++) word[i] = (char)('a' + next_random(&random) % 20);
  CHECK(word_table_add(&table, word, BYTES, 1, NULL));
  CHECK(bpe_train(&table, &none, 8000, 2, go_on, NULL, &trained));
  assert_int_equal(trained.tokens.word_count, 8000);
  bpe_trained_free(&trained);
  word_table_free(&table);
  free(word);
}

static nn_status_t stop(void *user) {
  (void)user;
  return NN_ERR_CANCELLED;
}

static void test_failures(void **state) {
  (void)state;
  word_table_t table = {0};
  random_words(4, &table);
  bpe_trained_t trained = {0};
  CHECK_STATUS(NN_ERR_CANCELLED, bpe_train(&table, &none, 300, 1, stop, NULL, &trained));
  bpe_trained_free(&trained);
  nn_status_t status = NN_ERR_MEMORY;
  for (int64_t i = 0; status != NN_OK; i++) {
    mem_fail_after(i);
    status = bpe_train(&table, &none, 300, 1, go_on, NULL, &trained);
    mem_fail_after(-1);
    if (status != NN_OK) assert_int_equal(status, NN_ERR_MEMORY);
    bpe_trained_free(&trained);
    assert_true(i < 1000);
  }
  word_table_free(&table);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_against_plain), cmocka_unit_test(test_tokens),
      cmocka_unit_test(test_long_word), cmocka_unit_test(test_failures)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
