/* Devices by name, and what becomes of plugins that are missing, foreign or of another release. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

static void expect(nn_status_t want, const char *name, const char *words) {
  nn_device_t *device = NULL;
  CHECK_STATUS(want, nn_device_create(name, NULL, &device));
  assert_null(device);
  if (!strstr(nn_last_error(), words))
    fail_msg("\"%s\": the message is \"%s\", without \"%s\"", name, nn_last_error(), words);
}

static void test_names(void **state) {
  (void)state;
  const char *unknown[] = {"", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:123", "cudas"};
  for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
    expect(NN_ERR_NOT_FOUND, unknown[i], "there are \"cpu\" and \"cuda:N\"");
}

static void test_no_plugin(void **state) {
  (void)state;
  char *folder = fixture_folder();
  setenv("MOENN_PLUGIN_PATH", folder, 1);
  expect(NN_ERR_NOT_FOUND, "cuda:0", folder);
  fixture_folder_remove(folder);
  expect(NN_ERR_NOT_FOUND, "cuda", "MOENN_PLUGIN_PATH");
}

static void test_foreign_plugin(void **state) {
  (void)state;
  setenv("MOENN_PLUGIN_PATH", MOENN_PLUGIN_NONE, 1);
  expect(NN_ERR_UNSUPPORTED, "cuda:0", "moenn_cuda_open");
}

static void test_other_release(void **state) {
  (void)state;
  setenv("MOENN_PLUGIN_PATH", MOENN_PLUGIN_OLD, 1);
  expect(NN_ERR_UNSUPPORTED, "cuda:0", "ABI version");
  expect(NN_ERR_NOT_FOUND, "cuda:7", "there is no device 7");
  void *plugin = dlopen(MOENN_PLUGIN_OLD "/libmoenn_cuda.so", RTLD_NOW);
  assert_non_null(plugin);
  int (*closed)(void);
  void *found = dlsym(plugin, "old_closed");
  memcpy(&closed, &found, sizeof found);
  assert_int_equal(closed(), 1); /* the device that could not be used was given back */
  dlclose(plugin);
}

/* The real plugin, where it was built: a device, or a clear status where no GPU answers. */
static void test_real_plugin(void **state) {
  (void)state;
  unsetenv("MOENN_PLUGIN_PATH");
#ifdef MOENN_PLUGIN_CUDA
  setenv("MOENN_PLUGIN_PATH", MOENN_PLUGIN_CUDA, 1);
#endif
  nn_device_t *device = NULL;
  nn_status_t status = nn_device_create("cuda:0", NULL, &device);
  if (status == NN_OK) {
    nn_device_info_t info = STRUCT(nn_device_info_t);
    CHECK(nn_device_info(device, &info));
    assert_string_equal(info.name, "cuda:0");
    assert_true(strlen(info.model) > 0);
    nn_device_destroy(device);
    expect(NN_ERR_NOT_FOUND, "cuda:99", "cuda:99");
  } else {
    assert_int_equal(status, NN_ERR_NOT_FOUND);
    assert_true(strlen(nn_last_error()) > 20);
    print_message("%s\n", nn_last_error());
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_names),         cmocka_unit_test(test_no_plugin),
      cmocka_unit_test(test_foreign_plugin), cmocka_unit_test(test_other_release),
      cmocka_unit_test(test_real_plugin),
  };
  return cmocka_run_group_tests_name("plugins", tests, NULL, NULL);
}
