/* The byte tokenizer: every byte there and back, specials, buffers too small, bad arguments. */
#include "fixture.h"

#include <string.h>

#include "base/mem.h"

enum { BYTES = 256 };

static nn_tokenizer_t *make(void) {
  nn_tokenizer_t *tokenizer = NULL;
  CHECK(nn_tokenizer_create_bytes(&tokenizer));
  return tokenizer;
}

static void test_round_trip(void **state) {
  (void)state;
  nn_tokenizer_t *tokenizer = make();
  char text[BYTES], back[BYTES];
  int32_t ids[BYTES];
  int64_t count = 0;
  size_t bytes = 0;
  for (int i = 0; i < BYTES; i++) text[i] = (char)(unsigned char)i;
  assert_int_equal(nn_tokenizer_vocab_size(tokenizer), NN_BYTE_VOCAB);
  CHECK(nn_tokenizer_encode(tokenizer, text, BYTES, ids, BYTES, &count));
  assert_int_equal(count, BYTES);
  for (int i = 0; i < BYTES; i++) assert_int_equal(ids[i], i);
  CHECK(nn_tokenizer_decode(tokenizer, ids, BYTES, back, BYTES, &bytes));
  assert_int_equal(bytes, BYTES);
  assert_memory_equal(text, back, BYTES);
  nn_tokenizer_destroy(tokenizer);
}

static void test_specials(void **state) {
  (void)state;
  nn_tokenizer_t *tokenizer = make();
  const int32_t ids[] = {NN_BYTE_BOS, 'h', NN_BYTE_PAD, 'i', NN_BYTE_EOS};
  char text[2];
  size_t bytes = 0;
  CHECK(nn_tokenizer_decode(tokenizer, ids, 5, text, 2, &bytes));
  assert_int_equal(bytes, 2);
  assert_memory_equal(text, "hi", 2);
  nn_tokenizer_destroy(tokenizer);
}

static void test_empty(void **state) {
  (void)state;
  nn_tokenizer_t *tokenizer = make();
  int64_t count = 7;
  size_t bytes = 7;
  CHECK(nn_tokenizer_encode(tokenizer, NULL, 0, NULL, 0, &count));
  assert_int_equal(count, 0);
  CHECK(nn_tokenizer_decode(tokenizer, NULL, 0, NULL, 0, &bytes));
  assert_int_equal(bytes, 0);
  nn_tokenizer_destroy(tokenizer);
}

static void test_capacity(void **state) {
  (void)state;
  nn_tokenizer_t *tokenizer = make();
  int32_t ids[3] = {-5, -5, -5};
  char text[3] = "xy";
  int64_t count = 0;
  size_t bytes = 0;
  CHECK_STATUS(NN_ERR_CAPACITY, nn_tokenizer_encode(tokenizer, "abc", 3, NULL, 0, &count));
  assert_int_equal(count, 3);
  count = 0;
  CHECK_STATUS(NN_ERR_CAPACITY, nn_tokenizer_encode(tokenizer, "abc", 3, ids, 2, &count));
  assert_int_equal(count, 3);
  assert_int_equal(ids[2], -5); /* nothing past the capacity is written */
  const int32_t abc[] = {'a', NN_BYTE_BOS, 'b', 'c'};
  CHECK_STATUS(NN_ERR_CAPACITY, nn_tokenizer_decode(tokenizer, abc, 4, text, 2, &bytes));
  assert_int_equal(bytes, 3);
  assert_string_equal(text, "xy");
  CHECK(nn_tokenizer_decode(tokenizer, abc, 4, text, 3, &bytes));
  assert_memory_equal(text, "abc", 3);
  nn_tokenizer_destroy(tokenizer);
}

static void test_bad_ids(void **state) {
  (void)state;
  nn_tokenizer_t *tokenizer = make();
  const int32_t bad[] = {-1, NN_BYTE_VOCAB, INT32_MIN, INT32_MAX};
  for (int i = 0; i < 4; i++) {
    const int32_t ids[] = {'a', bad[i]};
    char text[2] = "x";
    size_t bytes = 9;
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_decode(tokenizer, ids, 2, text, 2, &bytes));
    assert_int_equal(bytes, 9);
    assert_int_equal(text[0], 'x');
  }
  nn_tokenizer_destroy(tokenizer);
}

static void test_null(void **state) {
  (void)state;
  nn_tokenizer_t *tokenizer = make();
  int32_t id = 'a';
  char byte = 'a';
  int64_t count;
  size_t bytes;
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_create_bytes(NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_encode(NULL, &byte, 1, &id, 1, &count));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_encode(tokenizer, NULL, 1, &id, 1, &count));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_encode(tokenizer, &byte, 1, NULL, 1, &count));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_encode(tokenizer, &byte, 1, &id, 1, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_decode(NULL, &id, 1, &byte, 1, &bytes));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_decode(tokenizer, NULL, 1, &byte, 1, &bytes));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_decode(tokenizer, &id, 1, NULL, 1, &bytes));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_decode(tokenizer, &id, 1, &byte, 1, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_encode(tokenizer, &byte, 1, &id, -1, &count));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_tokenizer_decode(tokenizer, &id, -1, &byte, 1, &bytes));
  assert_int_equal(nn_tokenizer_vocab_size(NULL), 0);
  nn_tokenizer_destroy(NULL);
  nn_tokenizer_destroy(tokenizer);
}

static void test_memory(void **state) {
  (void)state;
  nn_tokenizer_t *tokenizer = NULL;
  mem_fail_after(0);
  CHECK_STATUS(NN_ERR_MEMORY, nn_tokenizer_create_bytes(&tokenizer));
  mem_fail_after(-1);
  assert_null(tokenizer);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_round_trip), cmocka_unit_test(test_specials),
      cmocka_unit_test(test_empty),      cmocka_unit_test(test_capacity),
      cmocka_unit_test(test_bad_ids),    cmocka_unit_test(test_null),
      cmocka_unit_test(test_memory),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
