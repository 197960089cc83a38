/* The built-in stories of the example: the probability that the generator reports is the one that
 * an independent parser of the grammar finds, and the analytic entropy is what it comes to. */
#include "fixture.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "examples/stories.h"

/* Stacked texts of rules that are still to be matched: the top one first. */
typedef struct pending {
  const char *text;
  const struct pending *below;
} pending_t;

typedef struct parser {
  const stories_rule_t *rules;
  int count, hero;
  int *kept; /* [count] text of a kept rule, or -1 */
  int64_t parses;
} parser_t;

static int find(const parser_t *parser, const char *name, size_t bytes) {
  for (int i = 0; i < parser->count; i++)
    if (strlen(parser->rules[i].name) == bytes && !memcmp(parser->rules[i].name, name, bytes))
      return i;
  fail_msg("no rule is called %.*s", (int)bytes, name);
  return 0;
}

static double match(parser_t *parser, const pending_t *pending, const char *story);

/* The sum over the texts a rule may take here of their probability times what follows. form, when
 * not NULL, is the second half of "first|second]": the rule is the hero's, and only chooses. */
static double match_rule(parser_t *parser, int rule, const char *form, size_t first_bytes,
                         const pending_t *rest, const char *story) {
  const stories_rule_t *known = &parser->rules[rule];
  const int before = parser->kept[rule];
  double sum = 0;
  for (int i = 0; i < known->count; i++) {
    if (before >= 0 && before != i) continue;
    if (known->kept) parser->kept[rule] = i;
    double follow;
    if (form) {
      const char *text = i % 2 ? form : form - first_bytes - 1;
      size_t bytes = i % 2 ? strcspn(form, "]") : first_bytes;
      follow = strncmp(story, text, bytes) ? 0 : match(parser, rest, story + bytes);
    } else {
      follow = match(parser, &(pending_t){known->texts[i], rest}, story);
    }
    sum += before >= 0 ? follow : follow / known->count;
  }
  parser->kept[rule] = before;
  return sum;
}

/* Probability that the pending texts become exactly the story, given what is kept. */
static double match(parser_t *parser, const pending_t *pending, const char *story) {
  while (pending && !*pending->text) pending = pending->below;
  if (!pending) {
    parser->parses += !*story;
    return !*story;
  }
  const char *text = pending->text;
  if (*text == '{') {
    size_t bytes = strcspn(text + 1, "}");
    pending_t rest = {text + bytes + 2, pending->below};
    return match_rule(parser, find(parser, text + 1, bytes), NULL, 0, &rest, story);
  }
  if (*text == '[') {
    size_t bytes = strcspn(text + 1, "|");
    const char *second = text + 1 + bytes + 1;
    pending_t rest = {second + strcspn(second, "]") + 1, pending->below};
    return match_rule(parser, parser->hero, second, bytes, &rest, story);
  }
  if (*text != *story) return 0;
  return match(parser, &(pending_t){text + 1, pending->below}, story + 1);
}

static void parser_open(parser_t *parser) {
  *parser = (parser_t){0};
  parser->rules = stories_rules(&parser->count);
  parser->kept = fixture_memory((size_t)parser->count * sizeof(int));
  for (int i = 0; i < parser->count; i++) parser->kept[i] = -1;
  parser->hero = find(parser, "hero", 4);
}

/* -ln of the probability of one story, which must have one parse. */
static double parse_story(const char *story) {
  parser_t parser;
  parser_open(&parser);
  double probability = match(&parser, &(pending_t){"{story}", NULL}, story);
  if (parser.parses != 1) fail_msg("%d parses of: %s", (int)parser.parses, story);
  free(parser.kept);
  return -log(probability);
}

/* Calls visit for each story of a text. */
static void each_story(char *text, void (*visit)(const char *story, void *user), void *user) {
  while (*text) {
    char *end = strstr(text, "\n\n");
    assert_non_null(end);
    char next = end[2];
    end[2] = 0;
    visit(text, user);
    end[2] = next;
    text = end + 2;
  }
}

static void add_parsed(const char *story, void *nats) { *(double *)nats += parse_story(story); }

static void test_probability(void **state) {
  (void)state;
  for (uint64_t seed = 0; seed < 20; seed++) {
    stories_t stories;
    assert_int_equal(stories_make(seed, 20000, &stories), 0);
    assert_true(stories.bytes >= 20000);
    assert_int_equal(strlen(stories.text), stories.bytes);
    double nats = 0;
    each_story(stories.text, add_parsed, &nats);
    /* Two sums of some thousand terms in fp64. */
    assert_true(fabs(nats - stories.nats) < 1e-9 * nats);
    free(stories.text);
  }
}

/* The moments of one story, by which the ratio estimate of the rate is judged. */
typedef struct moments {
  double rate; /* claimed */
  double count, nats, bytes, residual2;
} moments_t;

static void add_moments(const char *story, void *user) {
  moments_t *sum = user;
  double nats = parse_story(story), bytes = (double)strlen(story);
  sum->count++;
  sum->nats += nats;
  sum->bytes += bytes;
  sum->residual2 += (nats - sum->rate * bytes) * (nats - sum->rate * bytes);
}

/* nats - rate * bytes of a story has expectation 0 if the rate is right (renewal-reward
 * theorem). */
static void test_entropy(void **state) {
  (void)state;
  stories_t stories;
  moments_t sum = {.rate = stories_entropy()};
  assert_int_equal(stories_make(12345, 1 << 20, &stories), 0);
  each_story(stories.text, add_moments, &sum);
  double mean = (sum.nats - sum.rate * sum.bytes) / sum.count;
  double deviation = sqrt(sum.residual2) / sum.count;
  assert_true(fabs(mean) < 4 * deviation); /* four standard deviations of the mean */
  assert_true(deviation < 0.002 * sum.nats / sum.count); /* sharp enough to see a missing choice */
  free(stories.text);
}

static void test_seeds(void **state) {
  (void)state;
  stories_t a, b, c;
  assert_int_equal(stories_make(7, 5000, &a), 0);
  assert_int_equal(stories_make(7, 5000, &b), 0);
  assert_int_equal(stories_make(8, 5000, &c), 0);
  assert_string_equal(a.text, b.text);
  assert_true(a.nats == b.nats);
  assert_string_not_equal(a.text, c.text);
  free(a.text);
  free(b.text);
  free(c.text);
}

/* Each kept rule occurs in each story, since stories_entropy() counts it once a story. */
static void find_kept(const char *story, void *user) {
  const parser_t *parser = user;
  for (int i = 0; i < parser->count; i++) {
    if (!parser->rules[i].kept) continue;
    int found = 0;
    for (int j = 0; j < parser->rules[i].count; j++)
      found += strstr(story, parser->rules[i].texts[j]) != NULL;
    if (!found) fail_msg("no %s in: %s", parser->rules[i].name, story);
  }
}

static void test_grammar(void **state) {
  (void)state;
  parser_t parser;
  stories_t stories;
  parser_open(&parser);
  assert_string_equal(parser.rules[0].name, "story");
  for (int i = 0; i < parser.count; i++) {
    assert_true(parser.rules[i].count > 0);
    for (int j = 0; j < parser.rules[i].count; j++)
      for (int k = 0; k < j; k++)
        assert_string_not_equal(parser.rules[i].texts[j], parser.rules[i].texts[k]);
  }
  assert_int_equal(stories_make(3, 100000, &stories), 0);
  each_story(stories.text, find_kept, &parser);
  for (int i = 1; i < parser.count; i++)
    for (int j = 0; j < parser.rules[i].count; j++) {
      size_t literal = strcspn(parser.rules[i].texts[j], "{[");
      char *start = fixture_memory(literal + 1);
      memcpy(start, parser.rules[i].texts[j], literal);
      assert_non_null(strstr(stories.text, start));
      free(start);
    }
  free(stories.text);
  free(parser.kept);
}

/* Texts are taken equally often, and one choice says nothing about another: else the stories would
 * have less entropy than is claimed. Seen on the three rules that stand in every story. */
static void count_kept(const char *story, void *user) {
  static const char *const names[] = {"hero", "animal", "toy"};
  int (*cells)[8][8] = user, taken[3] = {0};
  parser_t parser;
  parser_open(&parser);
  for (int r = 0; r < 3; r++) {
    const stories_rule_t *rule = &parser.rules[find(&parser, names[r], strlen(names[r]))];
    assert_int_equal(rule->count, 8);
    const char *first = NULL;
    for (int i = 0; i < 8; i++) {
      char word[16];
      snprintf(word, sizeof word, " %s", rule->texts[i]);
      const char *at = strstr(story, word);
      if (at && (!first || at < first)) first = at, taken[r] = i;
    }
  }
  cells[0][taken[0]][taken[1]]++;
  cells[1][taken[1]][taken[2]]++;
  cells[2][taken[2]][taken[0]]++;
  free(parser.kept);
}

static void test_even(void **state) {
  (void)state;
  stories_t stories;
  int cells[3][8][8] = {0}, total = 0;
  assert_int_equal(stories_make(99, 1 << 20, &stories), 0);
  each_story(stories.text, count_kept, cells);
  for (int i = 0; i < 64; i++) total += cells[0][i / 8][i % 8];
  for (int r = 0; r < 3; r++) {
    double chi2 = 0, expected = total / 64.0;
    for (int i = 0; i < 64; i++) {
      double off = cells[r][i / 8][i % 8] - expected;
      chi2 += off * off / expected;
    }
    /* 63 degrees of freedom: mean 63, standard deviation sqrt(126) = 11. */
    assert_true(chi2 > 63 - 4 * 11 && chi2 < 63 + 4 * 11);
  }
  free(stories.text);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_probability),
      cmocka_unit_test(test_entropy),
      cmocka_unit_test(test_seeds),
      cmocka_unit_test(test_even),
      cmocka_unit_test(test_grammar),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
