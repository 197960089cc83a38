/* The safetensors reader against every hostile header that it names, the writer against it. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "files.h"
#include "format/safetensors.h"

static void check_refused(const unsigned char *data, size_t bytes, const char *parts) {
  safetensors_t file = {0};
  CHECK_FAILS(NN_ERR_FORMAT, parts, safetensors_parse(data, bytes, &file));
  assert_null(file.header);
  assert_null(file.tensors);
}

static void refused(const char *header, size_t data_bytes, const char *parts) {
  size_t bytes;
  unsigned char *data = files_safetensors(header, data_bytes, &bytes);
  check_refused(data, bytes, parts);
  free(data);
}

static safetensors_t accepted(const char *header, size_t data_bytes, unsigned char **data) {
  size_t bytes;
  safetensors_t file = {0};
  *data = files_safetensors(header, data_bytes, &bytes);
  CHECK(safetensors_parse(*data, bytes, &file));
  return file;
}

#define T(name, dtype, shape, begin, end)                                                          \
  "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]" \
                                                                                               "}"

static void a_good_header_is_read(void **state) {
  (void)state;
  unsigned char *data;
  safetensors_t file =
      accepted("{\"__metadata__\":{\"format\":\"pt\"}," T("b", "F32", "[2,3]", "8", "32") "," T(
                   "a", "BF16", "[4]", "0", "8") "," T("none", "I64", "[0,5]", "8",
                                                       "8") "," T("scalar", "F8_E4M3", "[]", "32",
                                                                  "33") "}   ",
               33, &data);
  assert_int_equal(file.count, 4);
  assert_string_equal(file.tensors[0].name, "a");
  assert_string_equal(file.tensors[1].name, "none");
  assert_int_equal(file.tensors[1].elements, 0);
  assert_string_equal(file.tensors[2].name, "b");
  assert_int_equal(file.tensors[2].dtype, NN_F32);
  assert_int_equal(file.tensors[2].ndim, 2);
  assert_int_equal(file.tensors[2].shape[1], 3);
  assert_int_equal(file.tensors[2].elements, 6);
  assert_ptr_equal(file.tensors[2].data, file.tensors[0].data + 8);
  assert_int_equal(file.tensors[3].dtype, -1);
  assert_string_equal(file.tensors[3].dtype_name, "F8_E4M3");
  assert_int_equal(file.tensors[3].elements, 1);
  assert_string_equal(safetensors_metadata(&file, "format"), "pt");
  assert_null(safetensors_metadata(&file, "other"));
  safetensors_close(&file);
  safetensors_close(&file);
  free(data);

  file = accepted("{}", 0, &data);
  assert_int_equal(file.count, 0);
  assert_null(safetensors_metadata(&file, "format"));
  safetensors_close(&file);
  free(data);
}

static void truncated_files_are_refused(void **state) {
  (void)state;
  size_t bytes;
  unsigned char *data = files_safetensors("{" T("a", "F32", "[2]", "0", "8") "}", 8, &bytes);
  for (size_t kept = 0; kept < bytes; kept++) {
    unsigned char *part = fixture_memory(kept); /* of its exact size, for the sanitizer's sake */
    memcpy(part, data, kept);
    check_refused(part, kept, "");
    free(part);
  }
  free(data);
}

static void oversized_headers_are_refused(void **state) {
  (void)state;
  static const uint64_t lengths[] = {3, 100000001, UINT64_MAX, (uint64_t)1 << 63, UINT64_MAX - 7};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    unsigned char data[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    memcpy(data, &lengths[i], 8);
    check_refused(data, sizeof data, "its header claims|the file has 2");
  }
  unsigned char zero[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
  check_refused(zero, sizeof zero, "does not begin with {");
}

static void headers_that_are_no_json_object_are_refused(void **state) {
  (void)state;
  refused("[]", 0, "begin with {");
  refused(" {}", 0, "begin with {");
  refused("{", 0, "JSON");
  refused("{}x", 0, "JSON");
  refused("{\"a\":}", 0, "JSON");
  refused("{\"a\xff\":{}}", 0, "JSON");         /* not UTF-8 */
  refused("{\"a\xed\xa0\x80\":{}}", 0, "JSON"); /* a surrogate in UTF-8 */
  refused("{\"a\\u0000b\":{}}", 0, "JSON");
  refused("{" T("a", "U8", "[1]", "0", "1") "," T("a", "U8", "[1]", "1", "2") "}", 2, "duplicate");
  refused("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
          "duplicate");

  static char deep[100002] = "{\"a\":";
  memset(deep + 5, '[', 99990);
  refused(deep, 0, "JSON");
  unsigned char nul[10] = {2, 0, 0, 0, 0, 0, 0, 0, '{', 0};
  check_refused(nul, sizeof nul, "JSON");
}

static void entries_are_checked(void **state) {
  (void)state;
  refused("{\"a\":1}", 0, "\"a\"|dtype, shape and data_offsets");
  refused("{\"a\":{}}", 0, "\"a\"");
  refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "\"a\"");
  refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"more\":0}}", 1, "alone");
  refused("{\"a\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "\"a\"|dtype");
  refused("{" T("a", "F31", "[1]", "0", "1") "}", 1, "\"a\"|\"F31\"|not known");
  refused("{" T("a", "f32", "[1]", "0", "4") "}", 4, "\"f32\"");
  refused("{" T("a", "U8", "1", "0", "1") "}", 1, "shape is not a list");
  refused("{" T("a", "U8", "[-1]", "0", "1") "}", 1, "shape");
  refused("{" T("a", "U8", "[1.0]", "0", "1") "}", 1, "shape");
  refused("{" T("a", "U8", "[\"1\"]", "0", "1") "}", 1, "shape");
  refused("{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", "0", "1") "}", 1, "9 dimensions|at most 8");
  refused("{" T("a", "U8", "[9223372036854775807,2]", "0", "1") "}", 1, "overflows");
  refused("{" T("a", "U8", "[9223372036854775808]", "0", "1") "}", 1, "JSON");
  /* 2^62 elements of 4 bytes: the element count fits, the bytes wrap to 0 */
  refused("{" T("a", "F32", "[4611686018427387904]", "0", "0") "}", 0, "another number");
  refused("{\"__metadata__\":5}", 0, "__metadata__");
  refused("{\"__metadata__\":{\"a\":5}}", 0, "__metadata__|\"a\"");
}

static void offsets_are_checked(void **state) {
  (void)state;
  refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, "data_offsets");
  refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1, "data_offsets");
  refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":7}}", 1, "data_offsets");
  refused("{" T("a", "U8", "[1]", "0.0", "1") "}", 1, "data_offsets");
  refused("{" T("a", "U8", "[1]", "-1", "0") "}", 1, "\"a\"|-1");
  refused("{" T("a", "U8", "[1]", "1", "0") "}", 1, "1 and 0");
  refused("{" T("a", "U8", "[2]", "0", "2") "}", 1, "2|1 bytes of data");
  refused("{" T("a", "U8", "[1]", "9223372036854775806", "9223372036854775807") "}", 1,
          "data_offsets");
  refused("{" T("a", "F32", "[2]", "0", "7") "}", 7, "hold 7 bytes|2 elements of F32");
  refused("{" T("a", "F32", "[2]", "0", "9") "}", 9, "hold 9 bytes");
  refused("{" T("a", "U8", "[4]", "0", "4") "," T("b", "U8", "[4]", "3", "7") "}", 7,
          "\"b\"|overlaps");
  refused("{" T("a", "U8", "[4]", "0", "4") "," T("b", "U8", "[4]", "0", "4") "}", 4,
          "\"b\"|overlaps");
  refused("{" T("a", "U8", "[4]", "0", "4") "," T("b", "U8", "[2]", "1", "3") "}", 4,
          "\"b\"|overlaps");
  refused("{" T("a", "U8", "[4]", "0", "4") "," T("b", "U8", "[4]", "5", "9") "}", 9, "\"b\"|hole");
  refused("{" T("a", "U8", "[4]", "1", "5") "}", 5, "\"a\"|hole");
  refused("{" T("a", "U8", "[4]", "0", "4") "}", 5, "1 bytes of data follow");
  refused("{}", 1, "1 bytes of data follow");
  refused("{" T("a", "U8", "[0]", "2", "2") "," T("b", "U8", "[4]", "0", "4") "}", 4, "overlaps");
}

/* ---- writing --------------------------------------------------------------------------------- */

static const int64_t shape_a[] = {3, 5}, shape_b[] = {7};
static const safetensors_entry_t entries[] = {
    {.name = "first \"\\\xc3\xa9", .dtype = NN_F32, .ndim = 2, .shape = shape_a},
    {.name = "second", .dtype = NN_BF16, .ndim = 1, .shape = shape_b},
    {.name = "scalar", .dtype = NN_U8, .ndim = 0},
};
static const size_t entry_bytes[] = {60, 14, 1};

/* Tensor i is bytes of value i + 1, written in two parts; user: how many bytes too many. */
static nn_status_t source(void *user, int64_t index, file_writer_t *writer) {
  unsigned char bytes[64];
  size_t total = entry_bytes[index] + (index == 1 ? *(size_t *)user : 0), half = total / 2;
  memset(bytes, (int)index + 1, sizeof bytes);
  nn_status_t status = file_writer_write(writer, bytes, half);
  return status == NN_OK ? file_writer_write(writer, bytes, total - half) : status;
}

static nn_status_t write_file(const char *path, size_t surplus) {
  static const safetensors_pair_t pair = {"step", "12"};
  return safetensors_write(path, entries, 3, &pair, 1, source, &surplus);
}

static void what_is_written_is_read_again(void **state) {
  (void)state;
  char *folder = fixture_folder();
  const char *path = files_path(folder, "a.safetensors");
  CHECK(write_file(path, 0));
  safetensors_t file = {0};
  CHECK(safetensors_open(path, &file));
  assert_int_equal(file.count, 3);
  assert_int_equal(((uintptr_t)file.tensors[0].data - (uintptr_t)file.map.data) % 64, 0);
  assert_string_equal(safetensors_metadata(&file, "format"), "pt");
  assert_string_equal(safetensors_metadata(&file, "step"), "12");
  for (int i = 0; i < 3; i++) {
    const safetensors_tensor_t *tensor = &file.tensors[i];
    assert_string_equal(tensor->name, entries[i].name);
    assert_int_equal(tensor->dtype, entries[i].dtype);
    assert_int_equal(tensor->ndim, entries[i].ndim);
    for (int d = 0; d < tensor->ndim; d++) assert_int_equal(tensor->shape[d], entries[i].shape[d]);
    assert_int_equal(tensor->bytes, entry_bytes[i]);
    for (size_t b = 0; b < tensor->bytes; b++) assert_int_equal(tensor->data[b], i + 1);
  }
  safetensors_close(&file);
  fixture_folder_remove(folder);
}

static void a_source_of_another_length_is_refused(void **state) {
  (void)state;
  char *folder = fixture_folder();
  CHECK_FAILS(NN_ERR_ARGUMENT, "\"second\"", write_file(files_path(folder, "a"), 1));
  assert_int_equal(files_count(folder), 0);
  fixture_folder_remove(folder);
}

static void writing_fails_whole(void **state) {
  (void)state;
  char *folder = fixture_folder();
  CHECK(write_file(files_path(folder, "a"), 0));
  size_t bytes = 0, now = 0;
  void *before = files_read(folder, "a", &bytes);
  int64_t after = 0;
  for (nn_status_t status = NN_ERR_MEMORY; status != NN_OK; after++) {
    mem_fail_after(after);
    status = write_file(files_path(folder, "a"), 0);
    mem_fail_after(-1);
    if (status != NN_OK) CHECK_STATUS(NN_ERR_MEMORY, status);
    assert_int_equal(files_count(folder), 1);
  }
  assert_true(after > 2);
  for (int64_t room = 0; room < (int64_t)bytes; room += 16) {
    files_tap_t tap;
    files_tap_begin(&tap, FILES_FULL, room);
    CHECK_FAILS(NN_ERR_IO, "No space left", write_file(files_path(folder, "a"), 0));
    files_tap_end();
    void *data = files_read(folder, "a", &now);
    assert_int_equal(now, bytes);
    assert_memory_equal(data, before, bytes);
    free(data);
    assert_int_equal(files_count(folder), 1);
  }
  free(before);
  fixture_folder_remove(folder);
}

static void opening_fails_whole(void **state) {
  (void)state;
  char *folder = fixture_folder();
  const char *path = files_path(folder, "a");
  safetensors_t file = {0};
  CHECK_FAILS(NN_ERR_NOT_FOUND, "/a", safetensors_open(path, &file));
  files_write_text(folder, "a", "");
  CHECK_FAILS(NN_ERR_FORMAT, "/a|0 bytes", safetensors_open(path, &file));
  CHECK(write_file(path, 0));
  mem_fail_after(0);
  CHECK_STATUS(NN_ERR_MEMORY, safetensors_open(path, &file));
  mem_fail_after(-1);
  assert_null(file.header);
  fixture_folder_remove(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_good_header_is_read),
      cmocka_unit_test(truncated_files_are_refused),
      cmocka_unit_test(oversized_headers_are_refused),
      cmocka_unit_test(headers_that_are_no_json_object_are_refused),
      cmocka_unit_test(entries_are_checked),
      cmocka_unit_test(offsets_are_checked),
      cmocka_unit_test(what_is_written_is_read_again),
      cmocka_unit_test(a_source_of_another_length_is_refused),
      cmocka_unit_test(writing_fails_whole),
      cmocka_unit_test(opening_fails_whole),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
