/* GGUF metadata: values of every type are found, files cut anywhere and sizes beyond the file are
 * refused in words. */
#include <string.h>

#include "files.h"
#include "format/gguf.h"

typedef struct builder {
  unsigned char data[4096];
  size_t bytes;
} builder_t;

static void put(builder_t *builder, const void *data, size_t bytes) {
  memcpy(builder->data + builder->bytes, data, bytes);
  builder->bytes += bytes;
}

static void put_u32(builder_t *builder, uint32_t value) { put(builder, &value, sizeof value); }
static void put_u64(builder_t *builder, uint64_t value) { put(builder, &value, sizeof value); }

static void put_string(builder_t *builder, const char *text) {
  put_u64(builder, strlen(text));
  put(builder, text, strlen(text));
}

static void put_header(builder_t *builder, uint32_t version, uint64_t pairs) {
  put(builder, "GGUF", 4);
  put_u32(builder, version);
  put_u64(builder, 5); /* tensors, which nobody looks at */
  put_u64(builder, pairs);
}

static void put_number(builder_t *builder, const char *key, uint32_t type, const void *value,
                       size_t bytes) {
  put_string(builder, key);
  put_u32(builder, type);
  put(builder, value, bytes);
}

static void build(builder_t *builder) {
  put_header(builder, 3, 9);
  put_number(builder, "u8", GGUF_U8, &(uint8_t){200}, 1);
  put_number(builder, "i8", GGUF_I8, &(int8_t){-2}, 1);
  put_number(builder, "u16", GGUF_U16, &(uint16_t){60000}, 2);
  put_number(builder, "i16", GGUF_I16, &(int16_t){-300}, 2);
  put_number(builder, "u32", GGUF_U32, &(uint32_t){4000000000u}, 4);
  put_number(builder, "i64", GGUF_I64, &(int64_t){-5000000000}, 8);
  put_number(builder, "true", GGUF_BOOL, &(uint8_t){1}, 1);
  put_string(builder, "texts");
  put_u32(builder, GGUF_ARRAY);
  put_u32(builder, GGUF_STRING);
  put_u64(builder, 3);
  put_string(builder, "one");
  put_string(builder, "");
  put_string(builder, "three");
  put_string(builder, "scores");
  put_u32(builder, GGUF_ARRAY);
  put_u32(builder, GGUF_F32);
  put_u64(builder, 2);
  put(builder, (float[]){1.5f, -2}, 8);
}

static int64_t integer(const gguf_t *file, const char *key) {
  int64_t number;
  CHECK(gguf_integer(file, key, -7, &number));
  return number;
}

static void test_values(void **state) {
  (void)state;
  builder_t builder = {.bytes = 0};
  gguf_t file;
  gguf_value_t value;
  bool found;
  build(&builder);
  CHECK(gguf_parse(builder.data, builder.bytes, &file));
  assert_int_equal(integer(&file, "u8"), 200);
  assert_int_equal(integer(&file, "i8"), -2);
  assert_int_equal(integer(&file, "u16"), 60000);
  assert_int_equal(integer(&file, "i16"), -300);
  assert_int_equal(integer(&file, "u32"), 4000000000);
  assert_int_equal(integer(&file, "i64"), -5000000000);
  assert_int_equal(integer(&file, "true"), 1);
  assert_int_equal(integer(&file, "absent"), -7);

  CHECK(gguf_find_as(&file, "texts", true, GGUF_STRING, &value, &found));
  assert_true(found && value.count == 3);
  const unsigned char *place = value.data;
  static const char *const texts[] = {"one", "", "three"};
  for (int i = 0; i < 3; i++) {
    const char *data;
    size_t bytes;
    gguf_next_string(&place, &data, &bytes);
    assert_int_equal(bytes, strlen(texts[i]));
    assert_memory_equal(data, texts[i], bytes);
  }
  assert_ptr_equal(place, value.data + value.bytes);
  CHECK(gguf_find_as(&file, "scores", true, GGUF_F32, &value, &found));
  assert_true(found && value.count == 2 && value.bytes == 8);
  CHECK(gguf_find_as(&file, "absent", true, GGUF_F32, &value, &found));
  assert_false(found);

  int64_t number;
  CHECK_FAILS(NN_ERR_FORMAT, "scores|integer", gguf_integer(&file, "scores", 0, &number));
  CHECK_FAILS(NN_ERR_FORMAT, "u8", gguf_find_as(&file, "u8", true, GGUF_U8, &value, &found));
  CHECK_FAILS(NN_ERR_FORMAT, "scores|6|8",
              gguf_find_as(&file, "scores", true, GGUF_STRING, &value, &found));
}

static void test_cut_short(void **state) {
  (void)state;
  builder_t builder = {.bytes = 0};
  gguf_t file;
  build(&builder);
  for (size_t bytes = 0; bytes < builder.bytes; bytes++) {
    unsigned char *copy = fixture_memory(bytes + 1); /* its own, for the address sanitizer */
    memcpy(copy, builder.data, bytes);
    CHECK_STATUS(NN_ERR_FORMAT, gguf_parse(copy, bytes, &file));
    free(copy);
  }
}

static void test_refused(void **state) {
  (void)state;
  gguf_t file;
  builder_t version = {.bytes = 0}, nested = {.bytes = 0}, large = {.bytes = 0}, odd = {.bytes = 0};
  put_header(&version, 1, 0);
  CHECK_FAILS(NN_ERR_UNSUPPORTED, "version 1|2 and 3",
              gguf_parse(version.data, version.bytes, &file));
  put_header(&nested, 3, 1);
  put_string(&nested, "key");
  put_u32(&nested, GGUF_ARRAY);
  put_u32(&nested, GGUF_ARRAY);
  put_u64(&nested, 0);
  CHECK_STATUS(NN_ERR_UNSUPPORTED, gguf_parse(nested.data, nested.bytes, &file));
  put_header(&large, 2, 1);
  put_string(&large, "key");
  put_u32(&large, GGUF_ARRAY);
  put_u32(&large, GGUF_U64);
  put_u64(&large, UINT64_MAX / 8 + 2); /* times 8 is small again */
  put_u64(&large, 0);
  CHECK_STATUS(NN_ERR_FORMAT, gguf_parse(large.data, large.bytes, &file));
  put_header(&odd, 3, 1);
  put_string(&odd, "key");
  put_u32(&odd, 13);
  CHECK_FAILS(NN_ERR_FORMAT, "type 13", gguf_parse(odd.data, odd.bytes, &file));
  CHECK_FAILS(NN_ERR_FORMAT, "GGUF", gguf_parse((const unsigned char *)"ggufabcd", 8, &file));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_values),
                                     cmocka_unit_test(test_cut_short),
                                     cmocka_unit_test(test_refused)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
