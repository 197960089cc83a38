/* Devices by name, and what becomes of plugins that are missing, foreign or of another release. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend.h"
#include "base/plugin.h"
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
  const char *unknown[] = {"", "gpu", "CPU", "cuda:", "cuda:x",
                           "cuda:-1", "cuda:1x", "cuda:123", "cudas"};
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

/* A file of that name which the system cannot load. */
static void test_broken_plugin(void **state) {
  (void)state;
  char *folder = fixture_folder(), path[600];
  snprintf(path, sizeof path, "%s/libmoenn_cuda.so", folder);
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs("no shared object\n", file);
  fclose(file);
  setenv("MOENN_PLUGIN_PATH", folder, 1);
  expect(NN_ERR_NOT_FOUND, "cuda:0", "could not be opened");
  expect(NN_ERR_NOT_FOUND, "cuda:0", path);
  fixture_folder_remove(folder);
}

static void test_other_release(void **state) {
  (void)state;
  setenv("MOENN_PLUGIN_PATH", MOENN_PLUGIN_OLD, 1);
  expect(NN_ERR_UNSUPPORTED, "cuda:0", "ABI version");
  expect(NN_ERR_UNSUPPORTED, "cuda:8", "a table of 16 bytes");
  expect(NN_ERR_NOT_FOUND, "cuda:7", "there is no device 7");
  void *plugin = dlopen(MOENN_PLUGIN_OLD "/libmoenn_cuda.so", RTLD_NOW);
  assert_non_null(plugin);
  int (*closed)(void);
  void *found = dlsym(plugin, "old_closed");
  memcpy(&closed, &found, sizeof found);
  assert_int_equal(closed(), 2); /* devices that could not be used were given back */
  dlclose(plugin);
}

/* The real plugin, where it was built. */
static void choose_real_plugin(void) {
  unsetenv("MOENN_PLUGIN_PATH");
#ifdef MOENN_PLUGIN_CUDA
  setenv("MOENN_PLUGIN_PATH", MOENN_PLUGIN_CUDA, 1);
#endif
}

/* A driver that shows no GPU, or no driver; in a process of its own, for a driver looks around
 * once. */
static void test_no_gpu(void **state) {
  (void)state;
  fflush(stdout);
  pid_t child = fork();
  assert_true(child >= 0);
  if (!child) {
    choose_real_plugin();
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    nn_device_t *device = NULL;
    _exit(nn_device_create("cuda:0", NULL, &device) == NN_ERR_NOT_FOUND && !device ? 0 : 1);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

#ifdef MOENN_PLUGIN_CUDA
static nn_status_t note_failure(nn_status_t status, const char *message) {
  print_message("%s\n", message);
  return status;
}
#endif

/* The plugin refuses a library that knows fewer options. */
static void test_older_library(void **state) {
  (void)state;
#ifdef MOENN_PLUGIN_CUDA
  backend_open_fn open;
  const backend_options_t older = {.struct_size = offsetof(backend_options_t, fast_fp32),
                                   .fail = note_failure};
  const backend_t *table = NULL;
  backend_device_t *device = NULL;
  choose_real_plugin();
  CHECK(plugin_open(CUDA_BACKEND_LIBRARY, CUDA_BACKEND_OPEN, &open));
  assert_int_equal(open(&older, &table, &device), NN_ERR_UNSUPPORTED);
  assert_null(device);
#else
  skip();
#endif
}

/* A device, or a clear status where no GPU answers. */
static void test_real_plugin(void **state) {
  (void)state;
  choose_real_plugin();
  nn_device_t *device = NULL;
  nn_status_t status = nn_device_create("cuda:0", NULL, &device);
  if (status == NN_OK) {
    nn_device_info_t info = STRUCT(nn_device_info_t);
    CHECK(nn_device_info(device, &info));
    assert_string_equal(info.name, "cuda:0");
    assert_true(strlen(info.model) > 0);
    nn_device_destroy(device);
    expect(NN_ERR_NOT_FOUND, "cuda:99", "cuda:99");
    return;
  }
  assert_int_equal(status, NN_ERR_NOT_FOUND);
  assert_true(strlen(nn_last_error()) > 20);
  print_message("%s\n", nn_last_error());
#ifdef MOENN_PLUGIN_CUDA
  void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
  if (!driver) assert_non_null(strstr(nn_last_error(), "there is no NVIDIA driver"));
  if (driver) dlclose(driver);
#endif
}

/* A program that runs with its owner's rights must not load what its caller's environment names:
 * this program, owned by somebody and run by nobody, calls itself. */
static void test_other_rights(void **state) {
  (void)state;
  enum { OWNER = 1, NOBODY = 65534, NOT_RUN = 77 };
  char *folder = fixture_folder(), command[1400];
  snprintf(command, sizeof command,
           "chmod 755 %s && cp /proc/%d/exe %s/p && chown %d %s/p && chmod 4755 %s/p", folder,
           (int)getpid(), folder, OWNER, folder, folder);
  if (geteuid() != 0 || system(command)) {
    fixture_folder_remove(folder);
    skip();
  }
  fflush(stdout);
  pid_t child = fork();
  assert_true(child >= 0);
  if (!child) {
    snprintf(command, sizeof command, "%s/p", folder);
    setenv("MOENN_PLUGIN_PATH", MOENN_PLUGIN_NONE, 1);
    if (!setgid(NOBODY) && !setuid(NOBODY)) execl(command, command, "rights", (char *)NULL);
    _exit(NOT_RUN);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  fixture_folder_remove(folder);
  assert_true(WIFEXITED(status));
  if (WEXITSTATUS(status) == NOT_RUN) skip();
  assert_int_equal(WEXITSTATUS(status), 0);
}

/* What test_other_rights runs; 77 where the file system gives no rights. A sanitizer has not the
 * rights to look for leaks at its end. */
static void run_with_other_rights(void) {
  if (geteuid() == getuid()) _exit(77);
  nn_device_t *device = NULL;
  if (nn_device_create("cuda:0", NULL, &device) == NN_OK) nn_device_destroy(device);
  _exit(strstr(nn_last_error(), MOENN_PLUGIN_NONE) != NULL);
}

int main(int count, char **words) {
  if (count > 1 && !strcmp(words[1], "rights")) run_with_other_rights();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_names),         cmocka_unit_test(test_no_plugin),
      cmocka_unit_test(test_foreign_plugin), cmocka_unit_test(test_broken_plugin),
      cmocka_unit_test(test_other_release), cmocka_unit_test(test_no_gpu),
      cmocka_unit_test(test_older_library), cmocka_unit_test(test_real_plugin),
      cmocka_unit_test(test_other_rights),
  };
  return cmocka_run_group_tests_name("plugins", tests, NULL, NULL);
}
