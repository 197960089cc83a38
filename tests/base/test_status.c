/* Option and result structs of every age, through the functions that read and write them: no public
 * struct has grown yet, so this test makes one that has. And messages. */
#include "fixture.h"

#include <string.h>

#include "base/status.h"

/* The struct as its first release had it, as the library knows it, and as a newer header has it. */
typedef struct first {
  size_t struct_size;
  int64_t a;
} first_t;

typedef struct known {
  size_t struct_size;
  int64_t a, b;
} known_t;

typedef struct newer {
  size_t struct_size;
  int64_t a, b, c;
} newer_t;

static nn_status_t read_struct(known_t *target, const void *source) {
  return status_read_options(target, sizeof *target, sizeof(first_t), source, "known_t");
}

static void options_of_every_age(void **state) {
  (void)state;
  known_t got;
  CHECK(read_struct(&got, NULL));
  assert_int_equal(got.struct_size, sizeof got);
  assert_int_equal(got.a | got.b, 0);

  first_t older = {sizeof older, 1};
  memset(&got, 0xff, sizeof got);
  CHECK(read_struct(&got, &older));
  assert_int_equal(got.struct_size, sizeof got);
  assert_int_equal(got.a, 1);
  assert_int_equal(got.b, 0);

  newer_t newer = {sizeof newer, 1, 2, 0};
  CHECK(read_struct(&got, &newer));
  assert_int_equal(got.b, 2);
  newer.c = 1;
  CHECK_STATUS(NN_ERR_STRUCT_SIZE, read_struct(&got, &newer));
}

static void sizes_that_no_release_had(void **state) {
  (void)state;
  static const size_t sizes[] = {0, 1, sizeof(size_t), sizeof(first_t) - 1,
                                 (size_t)1 << 20, SIZE_MAX};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    known_t got, source = {.struct_size = sizes[i]};
    CHECK_STATUS(NN_ERR_STRUCT_SIZE, read_struct(&got, &source));
    CHECK_STATUS(NN_ERR_STRUCT_SIZE, status_check_result(&source, sizeof(first_t), "known_t"));
  }
}

static void results_of_every_age(void **state) {
  (void)state;
  const known_t result = {sizeof result, 1, 2};
  newer_t target = {sizeof(first_t), -1, -2, -3};
  status_write_result(&target, &result, sizeof result);
  assert_int_equal(target.struct_size, sizeof(first_t));
  assert_int_equal(target.a, 1);
  assert_int_equal(target.b, -2);
  target.struct_size = sizeof target;
  status_write_result(&target, &result, sizeof result);
  assert_int_equal(target.struct_size, sizeof target);
  assert_int_equal(target.b, 2);
  assert_int_equal(target.c, 0);
}

/* A message can be shown on a terminal, whatever it quotes. */
static void messages_are_one_line_of_text(void **state) {
  (void)state;
  nn_model_config_t config = STRUCT(nn_model_config_t);
  static const char text[] = "{\"model_type\":\033[2J";
  CHECK_STATUS(NN_ERR_FORMAT, nn_config_from_json(text, strlen(text), &config));
  assert_null(strchr(nn_last_error(), '\033'));
  CHECK_STATUS(NN_ERR_IO, status_fail(NN_ERR_IO, "a\nb\tc\x7f d\xc3\xa9"));
  assert_string_equal(nn_last_error(), "a?b?c? d\xc3\xa9");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(options_of_every_age),
      cmocka_unit_test(sizes_that_no_release_had),
      cmocka_unit_test(results_of_every_age),
      cmocka_unit_test(messages_are_one_line_of_text),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
