/* The paths that the library finds are those that the kernel says this processor has; and a device
 * has those that MOENN_CPU names, if the program was started with it. */
#include <string.h>

#include "dispatch.h"
#include "fixture.h"
#include "processor.h"

enum { SKIPPED = 77 };

static void test_every_path_of_the_processor_is_found(void **state) {
  (void)state;
  assert_int_equal(dispatch_paths(), processor_paths());
}

/* What the environment names, of fixture_path; 0 for nothing. */
static int32_t path_asked_for(void) {
  const char *name = getenv("MOENN_CPU");
  for (int p = 0; name && p < FIXTURE_PATHS; p++)
    if (!strcmp(name, fixture_path_name(fixture_path[p]))) return fixture_path[p];
  return 0;
}

static void test_a_device_has_what_is_asked_for(void **state) {
  (void)state;
  int32_t asked = path_asked_for();
  nn_device_t *device = fixture_device_named("cpu", 1, 0);
  nn_device_info_t info = STRUCT(nn_device_info_t);
  CHECK(nn_device_info(device, &info));
  assert_int_equal(info.cpu_paths, asked ? NN_CPU_REFERENCE | asked : processor_paths());
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_path_of_the_processor_is_found),
      cmocka_unit_test(test_a_device_has_what_is_asked_for),
  };
  int32_t asked = path_asked_for();
  if (processor_paths() < 0) {
    print_message("skipped: no flags in /proc/cpuinfo\n");
    return SKIPPED;
  }
  if (!processor_has(asked)) {
    print_message("skipped: this processor has no %s\n", fixture_path_name(asked));
    return SKIPPED;
  }
  return cmocka_run_group_tests_name("paths", tests, NULL, NULL);
}
