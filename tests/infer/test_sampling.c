/* nn_session_sample(): every filter and their order against a computation of its own, frequencies
 * against probabilities, and what a choice depends on. */
#include <math.h>
#include <string.h>

#include "fixture.h"

enum { VOCAB = 67, PROMPT = 12 };

typedef struct sampler {
  nn_device_t *device;
  nn_model_t *model;
  nn_session_t *session;
  int32_t tokens[PROMPT];
  float logits[VOCAB];
} sampler_t;

static void sampler_open(sampler_t *s) {
  s->device = fixture_device(1, 0);
  nn_model_config_t config = fixture_moe();
  config.context = 4096;
  s->model = fixture_model(s->device, &config, 1);
  CHECK(nn_session_create(s->model, NULL, &s->session));
  fixture_tokens(s->tokens, PROMPT, VOCAB, 3);
  s->tokens[7] = s->tokens[2]; /* an id that is there twice is penalised once */
  CHECK(nn_session_prefill(s->session, 0, s->tokens, PROMPT, s->logits));
}

static void sampler_close(sampler_t *s) {
  nn_session_destroy(s->session);
  nn_model_destroy(s->model);
  nn_device_destroy(s->device);
}

static int32_t sample(const sampler_t *s, const nn_sample_options_t *options) {
  int32_t token = -1;
  CHECK(nn_session_sample(s->session, 0, options, &token));
  assert_in_range(token, 0, VOCAB - 1);
  return token;
}

/* ---- the rules once more, as plainly as they can be said ---- */

/* Logits after the repetition penalty. */
static void penalised(const sampler_t *s, const nn_sample_options_t *o, double *logit) {
  for (int i = 0; i < VOCAB; i++) {
    int seen = 0;
    for (int t = 0; t < PROMPT; t++) seen |= s->tokens[t] == i;
    logit[i] = (double)s->logits[i];
    if (seen && o->repetition_penalty != 0)
      logit[i] = logit[i] > 0 ? logit[i] / (double)o->repetition_penalty
                              : logit[i] * (double)o->repetition_penalty;
  }
}

/* Ids from the largest value down; among equals the lower id first. */
static void ordered(const double *value, int *order) {
  for (int i = 0; i < VOCAB; i++) order[i] = i;
  for (int i = 1; i < VOCAB; i++)
    for (int j = i; j > 0 && value[order[j]] > value[order[j - 1]]; j--) {
      int swap = order[j];
      order[j] = order[j - 1];
      order[j - 1] = swap;
    }
}

static void normalise(double *p) {
  double sum = 0;
  for (int i = 0; i < VOCAB; i++) sum += p[i];
  for (int i = 0; i < VOCAB; i++) p[i] /= sum;
}

/* Probability of every token. Fails where rounding could decide what a filter keeps. */
static void distribution(const sampler_t *s, const nn_sample_options_t *o, double *p) {
  double logit[VOCAB];
  int order[VOCAB];
  penalised(s, o, logit);
  ordered(logit, order);
  for (int i = 0; i < VOCAB; i++) p[i] = exp((logit[i] - logit[order[0]]) / (double)o->temperature);
  if (o->top_k > 0)
    for (int i = o->top_k; i < VOCAB; i++) p[order[i]] = 0;
  normalise(p);
  if (o->top_p > 0 && o->top_p < 1) {
    double reached = 0;
    for (int i = 0; i < VOCAB; i++) {
      int keep = reached < (double)o->top_p;
      assert_true(fabs(reached - (double)o->top_p) > 1e-5);
      reached += p[order[i]];
      if (!keep) p[order[i]] = 0;
    }
    normalise(p);
  }
  double largest = p[order[0]];
  for (int i = 0; i < VOCAB; i++) {
    assert_true(o->min_p == 0 || fabs(p[i] / largest - (double)o->min_p) > 1e-5);
    if (p[i] < (double)o->min_p * largest) p[i] = 0;
  }
  normalise(p);
}

/* Draws with seeds begin, begin + 1, ... against the distribution by Pearson's chi-square. Its mean
 * is the number of bins less one, its variance twice that; five standard deviations and a little
 * more for its longer tail fail by chance once in a million runs of other seeds (these seeds are
 * fixed). Rare tokens share a bin so that each is expected at least 10 times. */
static void check_frequencies(const sampler_t *s, nn_sample_options_t options, uint64_t begin) {
  enum { DRAWS = 20000 };
  double p[VOCAB], chi = 0, rare = 0;
  int64_t seen[VOCAB] = {0}, rare_seen = 0, bins = 0;
  distribution(s, &options, p);
  for (int i = 0; i < DRAWS; i++) {
    options.seed = begin + (uint64_t)i;
    seen[sample(s, &options)]++;
  }
  for (int i = 0; i < VOCAB; i++) {
    double expected = p[i] * DRAWS, off = (double)seen[i] - expected;
    if (p[i] == 0 && seen[i])
      fail_msg("token %d was filtered out, and drawn %d times", i, (int)seen[i]);
    if (expected < 10) {
      rare += expected;
      rare_seen += seen[i];
    } else {
      chi += off * off / expected;
      bins++;
    }
  }
  if (rare >= 10) {
    chi += ((double)rare_seen - rare) * ((double)rare_seen - rare) / rare;
    bins++;
  }
  double freedom = (double)(bins - 1);
  if (chi > freedom + 5 * sqrt(2 * freedom) + 10)
    fail_msg("chi-square is %g with %g degrees of freedom", chi, freedom);
}

/* ---- tests ---- */

static void test_greedy(void **state) {
  (void)state;
  sampler_t s;
  sampler_open(&s);
  int best = 0;
  for (int i = 1; i < VOCAB; i++)
    if (s.logits[i] > s.logits[best]) best = i;
  assert_int_equal(sample(&s, NULL), best);
  nn_sample_options_t options = STRUCT(nn_sample_options_t);
  for (uint64_t seed = 0; seed < 5; seed++) {
    options.seed = seed;
    assert_int_equal(sample(&s, &options), best);
  }
  /* One token left is no choice, at any temperature. */
  for (int i = 0; i < 3; i++)
    for (uint64_t seed = 0; seed < 50; seed++) {
      options = STRUCT(nn_sample_options_t);
      options.temperature = 50;
      options.seed = seed;
      if (i == 0) options.top_k = 1;
      if (i == 1) options.top_p = 1e-6f;
      if (i == 2) options.min_p = 1;
      assert_int_equal(sample(&s, &options), best);
    }
  /* Sampling appends nothing. */
  assert_int_equal(nn_session_length(s.session, 0), PROMPT);
  sampler_close(&s);
}

/* Equal logits: greedy takes the lowest id, top-k keeps the lowest ids. */
static void test_ties_go_to_the_lower_id(void **state) {
  (void)state;
  sampler_t s;
  sampler_open(&s);
  fixture_fill(s.model, "lm_head.weight", 0);
  CHECK(nn_session_truncate(s.session, 0, 0));
  CHECK(nn_session_prefill(s.session, 0, s.tokens, PROMPT, s.logits));
  assert_int_equal(sample(&s, NULL), 0);
  nn_sample_options_t options = STRUCT(nn_sample_options_t);
  options.temperature = 1;
  options.top_k = 5;
  check_frequencies(&s, options, 0);
  options.top_k = 0;
  options.top_p = 0.41f;
  check_frequencies(&s, options, 7);
  sampler_close(&s);
}

static void test_repetition_penalty(void **state) {
  (void)state;
  sampler_t s;
  sampler_open(&s);
  static const float penalties[] = {1.3f, 3, 100, 0.1f};
  int changed = 0;
  for (int i = 0; i < 4; i++) {
    nn_sample_options_t options = STRUCT(nn_sample_options_t);
    options.repetition_penalty = penalties[i];
    double logit[VOCAB];
    int order[VOCAB];
    penalised(&s, &options, logit);
    ordered(logit, order);
    assert_int_equal(sample(&s, &options), order[0]);
    changed += order[0] != sample(&s, NULL);
    options.temperature = 1.5f;
    check_frequencies(&s, options, 100);
  }
  assert_true(changed > 0); /* else the penalty was not seen at work */
  sampler_close(&s);
}

static void test_frequencies(void **state) {
  (void)state;
  sampler_t s;
  sampler_open(&s);
  for (int i = 0; i < 12; i++) {
    nn_sample_options_t options = STRUCT(nn_sample_options_t);
    options.temperature = 1;
    if (i == 1) options.temperature = 0.3f;
    if (i == 2) options.temperature = 10;
    if (i == 3) options.top_k = 7;
    if (i == 4) options.top_k = VOCAB + 100;
    if (i == 5) options.top_p = 0.7f;
    if (i == 6) options.top_p = 1;
    if (i == 7) options.min_p = 0.1f;
    /* The order matters: top-p over what top-k left, min-p last, temperature before all three. */
    if (i == 8) options.top_k = 6, options.top_p = 0.8f;
    if (i == 9) options.top_k = 20, options.min_p = 0.15f, options.temperature = 2;
    if (i == 10) options.top_p = 0.9f, options.min_p = 0.3f, options.temperature = 3;
    if (i == 11)
      options.top_k = 30, options.top_p = 0.85f, options.min_p = 0.1f, options.temperature = 2,
      options.repetition_penalty = 1.4f;
    check_frequencies(&s, options, 1000 * (uint64_t)i);
  }
  sampler_close(&s);
}

/* The same seed at the same length chooses the same, whatever was asked before; another length
 * draws anew: over 2000 lengths of a model without preferences, each token as often as another. */
static void test_seed_and_length(void **state) {
  (void)state;
  sampler_t s;
  sampler_open(&s);
  nn_sample_options_t options = STRUCT(nn_sample_options_t);
  options.temperature = 1;
  options.seed = 77;
  int32_t first = sample(&s, &options);
  int different = 0;
  for (uint64_t seed = 0; seed < 40; seed++) {
    options.seed = seed;
    different += sample(&s, &options) != first;
  }
  assert_true(different > 10);
  options.seed = 77;
  assert_int_equal(sample(&s, &options), first);
  CHECK(nn_session_decode(s.session, &first, NULL));
  CHECK(nn_session_truncate(s.session, 0, 0));
  CHECK(nn_session_prefill(s.session, 0, s.tokens, PROMPT, NULL));
  assert_int_equal(sample(&s, &options), first);

  fixture_fill(s.model, "lm_head.weight", 0);
  enum { LENGTHS = 2000 };
  double chi = 0, expected = LENGTHS / (double)VOCAB;
  int seen[VOCAB] = {0};
  for (int i = 0; i < LENGTHS; i++) {
    CHECK(nn_session_decode(s.session, s.tokens, NULL));
    seen[sample(&s, &options)]++;
  }
  for (int i = 0; i < VOCAB; i++)
    chi += ((double)seen[i] - expected) * ((double)seen[i] - expected) / expected;
  assert_true(chi < 66 + 5 * sqrt(2 * 66.0) + 10);
  sampler_close(&s);
}

static void test_refused(void **state) {
  (void)state;
  sampler_t s;
  sampler_open(&s);
  int32_t token = 42;
  for (int i = 0; i < 12; i++) {
    nn_sample_options_t options = STRUCT(nn_sample_options_t);
    if (i == 0) options.temperature = -1;
    if (i == 1) options.temperature = NAN;
    if (i == 2) options.temperature = INFINITY;
    if (i == 3) options.top_k = -1;
    if (i == 4) options.top_p = -0.1f;
    if (i == 5) options.top_p = 1.1f;
    if (i == 6) options.top_p = NAN;
    if (i == 7) options.min_p = -1;
    if (i == 8) options.min_p = 2;
    if (i == 9) options.min_p = NAN;
    if (i == 10) options.repetition_penalty = -1;
    if (i == 11) options.repetition_penalty = NAN;
    CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_sample(s.session, 0, &options, &token));
  }
  CHECK_STATUS(NN_ERR_STRUCT_SIZE,
               nn_session_sample(s.session, 0, &(nn_sample_options_t){0}, &token));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_sample(s.session, 1, NULL, &token));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_sample(s.session, -1, NULL, &token));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_sample(s.session, 0, NULL, NULL));
  CHECK_STATUS(NN_ERR_ARGUMENT, nn_session_sample(NULL, 0, NULL, &token));
  CHECK(nn_session_truncate(s.session, 0, 0));
  CHECK_STATUS(NN_ERR_STATE, nn_session_sample(s.session, 0, NULL, &token));
  assert_int_equal(token, 42);
  sampler_close(&s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_greedy),
      cmocka_unit_test(test_ties_go_to_the_lower_id),
      cmocka_unit_test(test_repetition_penalty),
      cmocka_unit_test(test_frequencies),
      cmocka_unit_test(test_seed_and_length),
      cmocka_unit_test(test_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
