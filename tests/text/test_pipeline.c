/* The description of a tokenizer: the byte map, the index of strings, tokens, merges, every
 * allocation failing in turn. */
#include "fixture.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "text/bytemap.h"
#include "text/pipeline.h"

static void test_bytemap(void **state) {
  (void)state;
  int seen[BYTEMAP_END] = {0};
  for (int byte = 0; byte < 256; byte++) {
    const uint32_t code = bytemap_code((unsigned char)byte);
    char text[2];
    assert_true(code < BYTEMAP_END);
    assert_int_equal(seen[code]++, 0);
    assert_int_equal(bytemap_byte(code), byte);
    assert_int_equal(bytemap_write((unsigned char)byte, text), code < 0x80 ? 1 : 2);
  }
  assert_int_equal(bytemap_code(' '), 0x120);
  assert_int_equal(bytemap_code('\n'), 0x10A);
  assert_int_equal(bytemap_byte(' '), -1);
  assert_int_equal(bytemap_byte(173), -1);
  assert_int_equal(bytemap_byte(BYTEMAP_END), -1);
}

static void test_index(void **state) {
  (void)state;
  enum { COUNT = 1000 };
  static char texts[COUNT][8];
  text_index_t index = {0};
  assert_int_equal(text_index_get(&index, TEXT("x")), -1);
  for (int i = 0; i < COUNT; i++) {
    const size_t bytes = (size_t)snprintf(texts[i], sizeof texts[i], "%d", i);
    CHECK(text_index_put(&index, (text_t){texts[i], bytes}, i));
  }
  CHECK(text_index_put(&index, TEXT(""), 7));
  CHECK(text_index_put(&index, TEXT("12"), 13)); /* in place of 12 */
  for (int i = 0; i < COUNT; i++)
    assert_int_equal(text_index_get(&index, (text_t){texts[i], strlen(texts[i])}),
                     i == 12 ? 13 : i);
  assert_int_equal(text_index_get(&index, TEXT("")), 7);
  assert_int_equal(text_index_get(&index, TEXT("1000")), -1);
  assert_int_equal(index.count, COUNT + 1);
  text_index_free(&index);
}

static nn_status_t add(pipeline_t *pipeline, text_t text) {
  return pipeline_add_token(pipeline, text, (int32_t)pipeline->model.token_count + 5, 0);
}

static void test_merges(void **state) {
  (void)state;
  pipeline_t pipeline;
  pipeline_init(&pipeline);
  CHECK(add(&pipeline, TEXT("a")));
  CHECK(add(&pipeline, TEXT("b")));
  CHECK(add(&pipeline, TEXT("ab")));
  CHECK(add(&pipeline, TEXT("aba")));
  CHECK(add(&pipeline, TEXT("ba")));
  CHECK(pipeline_add_merge(&pipeline, TEXT("a"), TEXT("b")));
  CHECK(pipeline_add_merge(&pipeline, TEXT("ab"), TEXT("a")));
  CHECK_STATUS(NN_ERR_FORMAT, pipeline_add_merge(&pipeline, TEXT("b"), TEXT("b")));
  CHECK_STATUS(NN_ERR_FORMAT, pipeline_add_merge(&pipeline, TEXT("c"), TEXT("b")));
  assert_int_equal(pipeline.model.merge_count, 2);
  const merge_t last = pipeline.model.merges[1];
  assert_int_equal(last.left, 7);
  assert_int_equal(last.right, 5);
  assert_int_equal(last.result, 8);
  assert_int_equal(last.rank, 1);
  /* every cut of "ab", "aba" and "ba" into two tokens */
  const uint32_t rank[] = {UINT32_MAX, UINT32_MAX, 4, 2, 9};
  pipeline.model.merge_count = 0;
  CHECK(pipeline_rank_merges(&pipeline, rank));
  assert_int_equal(pipeline.model.merge_count, 4);
  pipeline_free(&pipeline);
}

static void test_byte_token(void **state) {
  (void)state;
  pipeline_t pipeline;
  text_t spelled;
  pipeline_init(&pipeline);
  CHECK(pipeline_byte_token(&pipeline, TEXT(" a\n\xFF"), &spelled));
  assert_string_equal(spelled.data, "\xC4\xA0" "a" "\xC4\x8A" "\xC3\xBF");
  assert_int_equal(spelled.bytes, 7);
  pipeline_free(&pipeline);
  pipeline_free(&pipeline);
}

static nn_status_t fill(pipeline_t *pipeline) {
  for (int i = 0; i < 100; i++) {
    char text[8];
    const size_t bytes = (size_t)snprintf(text, sizeof text, "%d", i);
    STATUS_TRY(add(pipeline, (text_t){text, bytes}));
    STATUS_TRY(pipeline_add_prefix(pipeline, i));
    STATUS_TRY(pipeline_add_suffix(pipeline, i));
  }
  STATUS_TRY(pipeline_add_merge(pipeline, TEXT("1"), TEXT("2")));
  STATUS_TRY(pipeline_add_added(pipeline, &(added_token_t){.content = TEXT("<s>"), .id = 1}));
  STATUS_TRY(pipeline_add_normalizer(pipeline, &(normalizer_step_t){.content = TEXT("x")}));
  STATUS_TRY(pipeline_add_pre(pipeline, &(pre_step_t){.content = TEXT("x")}));
  return pipeline_add_decoder(pipeline, &(decoder_step_t){.content = TEXT("x")});
}

static void test_memory(void **state) {
  (void)state;
  nn_status_t status = NN_ERR_MEMORY;
  for (int64_t after = 0; status != NN_OK; after++) {
    pipeline_t pipeline;
    pipeline_init(&pipeline);
    mem_fail_after(after);
    status = fill(&pipeline);
    mem_fail_after(-1);
    if (status != NN_OK) assert_int_equal(status, NN_ERR_MEMORY);
    pipeline_free(&pipeline);
    assert_true(after < 1000);
  }
}

static void test_ids(void **state) {
  (void)state;
  pipeline_t pipeline;
  pipeline_init(&pipeline);
  CHECK_STATUS(NN_ERR_FORMAT, pipeline_add_token(&pipeline, TEXT("a"), -1, 0));
  CHECK_STATUS(NN_ERR_FORMAT, pipeline_add_token(&pipeline, TEXT("a"), PIPELINE_MAX_ID + 1, 0));
  CHECK_STATUS(NN_ERR_FORMAT, pipeline_add_added(&pipeline, &(added_token_t){.id = -1}));
  pipeline_free(&pipeline);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_bytemap),    cmocka_unit_test(test_index),
      cmocka_unit_test(test_merges),     cmocka_unit_test(test_byte_token),
      cmocka_unit_test(test_memory),     cmocka_unit_test(test_ids),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
