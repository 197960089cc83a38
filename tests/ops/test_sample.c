/* The choice of a token: each filter by the definition, their order, ties, frequencies, and logits
 * that are not numbers. Of fewer than 100 draws, what can be drawn need not all come. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "select.h"

enum { DRAWS = 4000, REPEATED = 200, MOST = 3000 };

static int draws, repeated;

typedef struct sample_case {
  int64_t vocab;
  float temperature, top_p, min_p, penalty;
  int32_t top_k;
  int64_t history; /* ids that the penalty applies to, some twice */
} sample_case_t;

static const sample_case_t cases[] = {
    {1, 1, 0, 0, 0, 0, 0},          {10, 1, 0, 0, 0, 0, 0},
    {10, 0.5f, 1, 0, 1, 0, 0},      {50, 1, 0, 0, 0, 5, 0},
    {50, 1, 0, 0, 0, 1, 0},         {50, 2, 0, 0, 0, 100, 0},
    {50, 1, 0.7f, 0, 0, 0, 0},      {50, 0.8f, 0.9f, 0, 0, 12, 0},
    {50, 1, 0, 0.2f, 0, 0, 0},      {50, 1.5f, 0.95f, 0.1f, 0, 20, 0},
    {50, 1, 0, 0, 1.5f, 0, 30},     {50, 0.7f, 0.8f, 0.05f, 1.3f, 15, 30},
    {600, 1, 0.5f, 0, 0.8f, 0, 40}, {600, 1, 1e-6f, 0, 0, 0, 0},
    {3000, 1, 0.9f, 0.05f, 1.2f, 40, 40}, {3000, 0.2f, 0.9f, 0, 0, 0, 0},
    {3000, 1, 0, 0, 0, 100, 0},
};

/* ---- by the definition, with a full sort ---- */

typedef struct choice {
  double logit, weight;
  int32_t id;
} choice_t;

static int by_logit(const void *a, const void *b) {
  const choice_t *x = a, *y = b;
  if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
  return x->id - y->id;
}

/* Probabilities after all filters. */
static void expected_probabilities(const op_sample_t *op, double *probability) {
  static choice_t list[MOST];
  int64_t kept = op->vocab;
  for (int32_t i = 0; i < op->vocab; i++) {
    list[i] = (choice_t){op->logits[i], 0, i};
    int seen = 0;
    for (int64_t h = 0; h < op->history_len; h++) seen |= op->history[h] == i;
    if (!seen || op->repetition_penalty == 0) continue;
    if (list[i].logit > 0) list[i].logit /= op->repetition_penalty;
    else list[i].logit *= op->repetition_penalty;
  }
  qsort(list, (size_t)op->vocab, sizeof *list, by_logit);
  for (int64_t i = 0; i < op->vocab; i++)
    list[i].weight = exp((list[i].logit - list[0].logit) / op->temperature);
  if (op->top_k && op->top_k < kept) kept = op->top_k;
  double sum = 0, reached = 0;
  for (int64_t i = 0; i < kept; i++) sum += list[i].weight;
  if (op->top_p > 0 && op->top_p < 1) {
    int64_t nucleus = 0;
    while (nucleus < kept && reached < op->top_p * sum) reached += list[nucleus++].weight;
    kept = nucleus;
  }
  while (op->min_p > 0 && list[kept - 1].weight < op->min_p) kept--;
  sum = 0;
  memset(probability, 0, (size_t)op->vocab * sizeof *probability);
  for (int64_t i = 0; i < kept; i++) sum += list[i].weight;
  for (int64_t i = 0; i < kept; i++) probability[list[i].id] = list[i].weight / sum;
}

/* Counts are binomial: five standard deviations and one. What is filtered out never comes. */
static void check_frequencies(const op_sample_t *op, const int32_t *drawn) {
  static double probability[MOST];
  static int32_t count[MOST];
  expected_probabilities(op, probability);
  memset(count, 0, sizeof count);
  for (int i = 0; i < draws; i++) {
    assert_in_range(drawn[i], 0, op->vocab - 1);
    count[drawn[i]]++;
  }
  for (int64_t i = 0; i < op->vocab; i++) {
    double p = probability[i], off = fabs(count[i] - draws * p);
    if (p == 0) assert_int_equal(count[i], 0);
    else assert_true(off <= 5 * sqrt(draws * p * (1 - p)) + 1);
  }
}

static op_sample_t sample_make(const sample_case_t *c) {
  int32_t *history = ops_ints(c->history);
  for (int64_t i = 0; i < c->history; i++)
    history[i] =
        (int32_t)ops_random_index(c->vocab, 4, (uint64_t)(i % 20)); /* each id again and again */
  return (op_sample_t){.vocab = c->vocab, .logits = ops_uniform(c->vocab, 3, 1), .history = history,
                       .history_len = c->history, .temperature = c->temperature, .top_p = c->top_p,
                       .min_p = c->min_p, .repetition_penalty = c->penalty, .top_k = c->top_k};
}

static void check_sample(const sample_case_t *c) {
  op_sample_t op = sample_make(c);
  int32_t *drawn = ops_ints(draws), *first = ops_ints(draws);
  int begun = 0;
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .vocab = c->vocab});
  while (ops_next(&trial)) {
    for (int i = 0; i < (begun ? repeated : draws); i++) {
      op.seed = 77, op.counter = (uint64_t)i, op.token = &drawn[i];
      drawn[i] = -1;
      OPS_RUN(&trial, sample, &op);
    }
    if (!begun) {
      check_frequencies(&op, drawn);
      memcpy(first, drawn, (size_t)draws * sizeof *first);
      begun = 1;
    }
    /* the same choice on every path */
    assert_memory_equal(drawn, first, (size_t)repeated * sizeof *drawn);
    OPS_RUN_CANCELLED(&trial, sample, &op);
  }
  ops_free();
}

static void test_filters(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
    if (select_case((double)cases[i].vocab)) check_sample(&cases[i]);
}

/* One token of given logits on the open device. */
static int32_t choose(ops_trial_t *trial, const op_sample_t *op) {
  *op->token = -1;
  OPS_RUN(trial, sample, op);
  assert_in_range(*op->token, 0, op->vocab - 1);
  return *op->token;
}

/* A NaN among the logits: no token. */
static void refuse(ops_trial_t *trial, const op_sample_t *op) {
  *op->token = 7;
  OPS_RUN(trial, sample, op);
  assert_int_equal(*op->token, -1);
}

static void test_greedy(void **state) {
  (void)state;
  const float *logits = OPS_PUT(float, -1, 4, 2, 4, 3.5f, 4);
  const float *negative = OPS_PUT(float, -1, -1.5f);
  const int32_t *once = OPS_PUT(int32_t, 1), *again = OPS_PUT(int32_t, 1, 1, 1);
  const int32_t *all = OPS_PUT(int32_t, 1, 3, 5), *zero = OPS_PUT(int32_t, 0);
  int32_t *token = ops_ints(1);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .vocab = 6});
  while (ops_next(&trial)) {
    op_sample_t op = {.vocab = 6, .logits = logits, .seed = 1, .token = token};
    assert_int_equal(choose(&trial, &op), 1); /* the lowest id of equals */
    op.top_k = 1, op.top_p = 0.1f, op.min_p = 0.5f;
    assert_int_equal(choose(&trial, &op), 1);
    op.repetition_penalty = 2, op.history = once, op.history_len = 1;
    assert_int_equal(choose(&trial, &op), 3); /* penalised before the choice */
    op.repetition_penalty = 1.1f, op.history = all, op.history_len = 3;
    assert_int_equal(choose(&trial, &op), 1); /* 4 / 1.1 is still the largest */
    op.repetition_penalty = 1.2f;
    assert_int_equal(choose(&trial, &op), 4);
    op.repetition_penalty = 0.9f, op.history = again;
    assert_int_equal(choose(&trial, &op), 1);
    op = (op_sample_t){.vocab = 2, .logits = negative, .repetition_penalty = 2, .history = zero,
                       .history_len = 1, .token = token};
    assert_int_equal(choose(&trial, &op), 1); /* a negative logit is multiplied */
  }
  ops_free();
}

/* Once per id: a second application would move 4 / 1.5 below 2. */
static void test_penalty_applies_once(void **state) {
  (void)state;
  const float *logits = OPS_PUT(float, 4, 2);
  const int32_t *history = OPS_PUT(int32_t, 0, 0, 0);
  int32_t *token = ops_ints(1);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .vocab = 2});
  while (ops_next(&trial)) {
    op_sample_t op = {.vocab = 2, .logits = logits, .repetition_penalty = 1.5f, .history = history,
                      .history_len = 3, .token = token};
    assert_int_equal(choose(&trial, &op), 0);
  }
  ops_free();
}

/* Of eight equal logits, weights are equal to the last bit: half of the mass is exactly four of
 * them. */
static void test_ties_keep_the_lower_ids(void **state) {
  (void)state;
  const float *logits = OPS_PUT(float, 2, 2, 2, 2, 2, 2, 2, 2);
  int32_t *token = ops_ints(1);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .vocab = 8});
  while (ops_next(&trial)) {
    int seen_k = 0, seen_p = 0, seen_all = 0;
    for (uint64_t i = 0; i < (uint64_t)select_draws(300); i++) {
      op_sample_t op = {.vocab = 8, .logits = logits, .temperature = 1, .seed = 5, .counter = i,
                        .token = token};
      seen_all |= 1 << choose(&trial, &op);
      op.top_k = 3;
      seen_k |= 1 << choose(&trial, &op);
      op.top_k = 0, op.top_p = 0.5f, op.min_p = 1;
      seen_p |= 1 << choose(&trial, &op);
    }
    assert_int_equal(seen_all & ~0xff, 0);
    assert_int_equal(seen_k & ~0x07, 0);
    assert_int_equal(seen_p & ~0x0f, 0);
    if (draws < 100) continue; /* one of eight is missing after 100 draws once in 80,000 times */
    assert_int_equal(seen_all, 0xff);
    assert_int_equal(seen_k, 0x07);
    assert_int_equal(seen_p, 0x0f);
  }
  ops_free();
}

/* The draw is a function of seed and counter, and of both. */
static void test_seed_and_counter(void **state) {
  (void)state;
  const float *logits = ops_floats(8);
  int32_t *token = ops_ints(1);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .vocab = 8});
  while (ops_next(&trial)) {
    int same_seed = 0, same_counter = 0, turns = select_draws(400);
    for (uint64_t i = 0; i < (uint64_t)turns; i++) {
      op_sample_t op = {.vocab = 8, .logits = logits, .temperature = 1, .seed = 1, .counter = i,
                        .token = token};
      int32_t base = choose(&trial, &op);
      assert_int_equal(choose(&trial, &op), base);
      op.counter = i + 1;
      same_seed += choose(&trial, &op) == base;
      op.counter = i, op.seed = 2;
      same_counter += choose(&trial, &op) == base;
    }
    /* independent choices among 8 agree in an eighth, give or take five standard deviations */
    double off = 5 * sqrt(turns * 7 / 64.0);
    assert_true(fabs(same_seed - turns / 8.0) <= off);
    assert_true(fabs(same_counter - turns / 8.0) <= off);
  }
  ops_free();
}

static void test_logits_that_are_not_numbers(void **state) {
  (void)state;
  const float *mixed = OPS_PUT(float, 4, -INFINITY, 1, NAN, 0);
  const float *nothing = OPS_PUT(float, NAN, NAN, NAN);
  const float *low = OPS_PUT(float, -INFINITY, -INFINITY), *high = OPS_PUT(float, 0, INFINITY, 1);
  const int32_t *history = OPS_PUT(int32_t, 0, 1, 2);
  int32_t *token = ops_ints(1);
  ops_trial_t trial;
  ops_begin(&trial, (backend_limits_t){.rows = 1, .vocab = 5});
  while (ops_next(&trial)) {
    for (int greedy = 0; greedy < 2; greedy++) {
      for (uint64_t i = 0; i < (uint64_t)select_draws(50); i++) {
        op_sample_t op = {.vocab = 5, .logits = mixed, .temperature = greedy ? 0 : 1, .counter = i,
                          .token = token};
        refuse(&trial, &op);
        op.top_k = 4, op.top_p = 0.9f, op.min_p = 0.1f, op.repetition_penalty = 1.5f;
        op.history = history, op.history_len = 3;
        refuse(&trial, &op);
        op.vocab = 3, op.logits = nothing;
        refuse(&trial, &op);
        op.logits = high;
        assert_int_equal(choose(&trial, &op), 1);
        op.vocab = 2, op.logits = low, op.history_len = 2;
        choose(&trial, &op);
      }
    }
  }
  ops_free();
}

int main(void) {
  select_tests();
  draws = select_draws(DRAWS), repeated = select_draws(REPEATED);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_filters),
      cmocka_unit_test(test_greedy),
      cmocka_unit_test(test_penalty_applies_once),
      cmocka_unit_test(test_ties_keep_the_lower_ids),
      cmocka_unit_test(test_seed_and_counter),
      cmocka_unit_test(test_logits_that_are_not_numbers),
  };
  return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
