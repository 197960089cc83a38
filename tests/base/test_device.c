/* Options of a device: paths by mask and by MOENN_CPU, and what is refused. */
#define _POSIX_C_SOURCE 200809L
#include <string.h>

#include "fixture.h"

/* The paths of a device whose options and environment name these. */
static int32_t paths_of(int32_t mask, const char *environment) {
  nn_device_options_t options = STRUCT(nn_device_options_t);
  nn_device_info_t info = STRUCT(nn_device_info_t);
  nn_device_t *device;
  options.threads = 1, options.cpu_paths = mask;
  options.log_level = NN_LOG_ERROR; /* a path may be absent here */
  if (environment)
    setenv("MOENN_CPU", environment, 1);
  else
    unsetenv("MOENN_CPU");
  CHECK(nn_device_create("cpu", &options, &device));
  CHECK(nn_device_info(device, &info));
  nn_device_destroy(device);
  return info.cpu_paths;
}

static void test_environment_names_paths(void **state) {
  (void)state;
  static const struct {
    const char *words;
    int32_t mask, most; /* what the words mean; and what a device may then have */
  } cases[] = {
      {"reference", NN_CPU_REFERENCE, NN_CPU_REFERENCE},
      {"avx2", NN_CPU_AVX2, NN_CPU_REFERENCE | NN_CPU_AVX2},
      {"avx512", NN_CPU_AVX512, NN_CPU_REFERENCE | NN_CPU_AVX512},
      {"avx512bf16", NN_CPU_AVX512_BF16,
       NN_CPU_REFERENCE | NN_CPU_AVX512 | NN_CPU_AVX512_BF16},
      {"avx2,reference", NN_CPU_AVX2, NN_CPU_REFERENCE | NN_CPU_AVX2},
      {"avx2,avx512", NN_CPU_AVX2 | NN_CPU_AVX512,
       NN_CPU_REFERENCE | NN_CPU_AVX2 | NN_CPU_AVX512},
  };
  int32_t all = paths_of(0, NULL);
  assert_int_equal(paths_of(0, ""), all);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int32_t named = paths_of(0, cases[i].words);
    assert_int_equal(named, all & cases[i].most);
    assert_int_equal(named, paths_of(cases[i].mask, NULL));
    /* options come before the environment */
    assert_int_equal(paths_of(NN_CPU_REFERENCE, cases[i].words), NN_CPU_REFERENCE);
  }
  unsetenv("MOENN_CPU");
}

static void refuse(const nn_device_options_t *options, const char *words) {
  nn_device_t *device = NULL;
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_device_create("cpu", options, &device));
  assert_null(device);
  if (!strstr(nn_last_error(), words))
    fail_msg("the message is \"%s\", without \"%s\"", nn_last_error(), words);
}

static void test_words_that_are_no_paths(void **state) {
  (void)state;
  const char *unknown[] = {"avx", "AVX2", "avx2,", ",avx2",
                           "avx2,,avx512", "avx2 avx512", "avx5122"};
  for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
    setenv("MOENN_CPU", unknown[i], 1);
    refuse(NULL, unknown[i]);
  }
  unsetenv("MOENN_CPU");
}

static void test_refused_options(void **state) {
  (void)state;
  static const int32_t affinity[] = {0};
  nn_device_options_t options = STRUCT(nn_device_options_t);
  options.threads = -1;
  refuse(&options, "threads is -1");
  options = STRUCT(nn_device_options_t), options.cpu_paths = 1 << 20;
  refuse(&options, "unknown bits: 0x100000");
  options = STRUCT(nn_device_options_t), options.log_level = 99;
  refuse(&options, "log_level 99");
  options = STRUCT(nn_device_options_t), options.affinity = affinity;
  refuse(&options, "affinity is given");
  options = STRUCT(nn_device_options_t), options.tf32 = 2;
  refuse(&options, "tf32 is 2");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_environment_names_paths),
      cmocka_unit_test(test_words_that_are_no_paths),
      cmocka_unit_test(test_refused_options),
  };
  return cmocka_run_group_tests_name("options of a device", tests, NULL, NULL);
}
