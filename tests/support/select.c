#include "select.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
/* cmocka.h wants the headers above first */
#include <cmocka.h>

void select_tests(void) {
  const char *only = getenv("MOENN_TEST_ONLY");
  if (only) cmocka_set_test_filter(only);
}

int select_case(double work) {
  static long asked;
  const char *share = getenv("MOENN_TEST_SHARE"), *most = getenv("MOENN_TEST_WORK");
  if (most && work > strtod(most, NULL)) return 0;
  if (!share) return 1;
  char *end;
  long own = strtol(share, &end, 10), shares = *end == '/' ? strtol(end + 1, NULL, 10) : 0;
  if (own < 0 || own >= shares) fail_msg("MOENN_TEST_SHARE is \"%s\", not as 2/15", share);
  return asked++ % shares == own;
}

int select_draws(int count) {
  const char *most = getenv("MOENN_TEST_DRAWS");
  return most && atoi(most) > 0 && atoi(most) < count ? atoi(most) : count;
}
