/* Published patterns matched by hand give what PCRE2 gives, on every order of a few classes of
 * characters and on random strings. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "fixture.h"

#include <string.h>

#include "base/random.h"
#include "text/scan.h"
#include "text/unicode.h"

/* One or two of every kind that a pattern tells apart. */
static const char *const letters[] = {
    "a", "B", "s", "T", "'", "\u017f", "\u00e9", "\u0391", "\u4e2d", "\u3042", "\u30fc", "\u02b0",
    "\u01c5", "\u0301", "\u0903", "7", "\u0663", "\u00b2", "\u2163", " ", "\u00a0", "\t", "\n",
    "\r", "\u2028", ".", "!", "/", "$", "+", "\u20ac", "\u3002", "\U0001f600", "\u200d", "\x01",
    "_", "\u0e33", "l", "L", "e", "r"};
enum { LETTERS = sizeof letters / sizeof *letters, MOST = 12 };

typedef struct pattern_pair {
  scan_fn scan;
  pcre2_code *code;
  pcre2_match_data *match;
} pattern_pair_t;

/* Every match of both, up to the end of the text. */
static void compare(const pattern_pair_t *pair, const char *text, uint32_t bytes) {
  for (uint32_t at = 0; at < bytes;) {
    const int count = pcre2_match(pair->code, (PCRE2_SPTR)text, bytes, at, PCRE2_ANCHORED,
                                  pair->match, NULL);
    const uint32_t end =
        count > 0 ? (uint32_t)pcre2_get_ovector_pointer(pair->match)[1] : at;
    const uint32_t found = pair->scan(text, at, bytes);
    if (found != end)
      fail_msg("\"%.*s\" at %u: the match ends at %u, PCRE2's at %u", (int)bytes, text, at, found,
               end);
    uint32_t taken;
    utf8_decode(text + at, text + bytes, &taken);
    at = end > at ? end : at + taken;
  }
}

static void join(const int *chosen, int count, char *text, uint32_t *bytes) {
  *bytes = 0;
  for (int i = 0; i < count; i++) {
    const size_t length = strlen(letters[chosen[i]]);
    memcpy(text + *bytes, letters[chosen[i]], length);
    *bytes += (uint32_t)length;
  }
}

static void all_triples(const pattern_pair_t *pair) {
  char text[4 * MOST];
  uint32_t bytes;
  for (int i = 0; i < LETTERS * LETTERS * LETTERS; i++) {
    join((const int[]){i % LETTERS, i / LETTERS % LETTERS, i / LETTERS / LETTERS}, 3, text, &bytes);
    compare(pair, text, bytes);
  }
}

static void random_texts(const pattern_pair_t *pair) {
  enum { TEXTS = 30000 };
  char text[4 * MOST];
  int chosen[MOST];
  uint32_t bytes;
  for (uint64_t n = 0; n < TEXTS; n++) {
    const int count = 4 + (int)(n % (MOST - 3));
    /* a few kinds at a time, so that runs occur */
    const uint64_t kinds = 2 + random_u64(7, n, 0) % 6;
    for (int i = 0; i < count; i++) {
      const uint64_t kind = random_u64(7, n, 1 + (uint64_t)i) % kinds;
      chosen[i] = (int)(random_u64(11, n, kind) % LETTERS);
    }
    join(chosen, count, text, &bytes);
    compare(pair, text, bytes);
  }
}

static void test_patterns(void **state) {
  (void)state;
  int known = 0;
  for (const char *pattern; (pattern = scan_pattern(known)) != NULL; known++) {
    int error;
    PCRE2_SIZE offset;
    pattern_pair_t pair = {.scan = scan_find((text_t){pattern, strlen(pattern)})};
    pair.code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                              &error, &offset, NULL);
    assert_non_null(pair.code);
    assert_non_null(pair.scan);
    pair.match = pcre2_match_data_create_from_pattern(pair.code, NULL);
    all_triples(&pair);
    random_texts(&pair);
    pcre2_match_data_free(pair.match);
    pcre2_code_free(pair.code);
  }
  assert_int_equal(known, 8);
  assert_null(scan_find(TEXT("\\p{N}{1,4}")));
}

/* A run that a pattern takes apart from behind is not looked at again and again. */
static void test_long_runs(void **state) {
  (void)state;
  enum { BYTES = 1 << 20 };
  static char text[BYTES];
  for (int known = 0; scan_pattern(known); known++) {
    const char *pattern = scan_pattern(known);
    const scan_fn scan = scan_find((text_t){pattern, strlen(pattern)});
    for (const char *byte = "a A1.\n'\xff"; *byte; byte++) {
      memset(text, *byte, BYTES);
      text[BYTES - 1] = 'x';
      for (uint32_t at = 0, end; at < BYTES; at = end > at ? end : at + 1)
        end = scan(text, at, BYTES);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_patterns),
      cmocka_unit_test(test_long_runs),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
