/* Frequencies of rotary positions by every scaling, against values that were computed from the
 * published formulas in double precision; they are given to nine digits or more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants the headers above first */
#include <cmocka.h>
#include <math.h>

#include "model/rope.h"

typedef struct value {
  int64_t pair;
  double frequency;
} value_t;

/* Of printed digits, the last one is rounded. */
static void check(const nn_model_config_t *config, int64_t max_len, const value_t *values,
                  int64_t count, double factor) {
  double frequency[128], found;
  rope_frequencies(config, max_len, frequency, &found);
  for (int64_t i = 0; i < count; i++) {
    double want = values[i].frequency, got = frequency[values[i].pair];
    if (!(fabs(got - want) <= 1e-8 * want))
      fail_msg("pair %lld: %.12g, not %.12g", (long long)values[i].pair, got, want);
  }
  if (!(fabs(found - factor) <= 1e-10)) fail_msg("factor %.12g, not %.12g", found, factor);
}
#define CHECK(config, max_len, factor, ...)                 \
  do {                                                      \
    const value_t values[] = {__VA_ARGS__};                 \
    check(config, max_len, values, sizeof values / sizeof *values, factor); \
  } while (0)

static void test_plain(void **state) {
  (void)state;
  nn_model_config_t c = {.head_dim = 64, .rope_theta = 10000, .rope_ntk_alpha = 1, .context = 128};
  CHECK(&c, 128, 1, {0, 1}, {8, 0.1}, {16, 0.01}, {31, 1.333521432e-4});
  c.rotary_dim = 16;
  assert_int_equal(rope_dim(&c), 16);
  CHECK(&c, 128, 1, {0, 1}, {2, 0.1}, {4, 0.01});
}

static void test_ntk(void **state) {
  (void)state;
  nn_model_config_t c = {.head_dim = 64, .rope_theta = 10000, .rope_ntk_alpha = 8, .context = 128};
  CHECK(&c, 128, 1, {8, 0.1});
  double base = 10000 * pow(8, 64.0 / 62);
  CHECK(&c, 129, 1, {8, pow(base, -0.25)});
  assert_true(rope_stretch(&c) == 8);
}

static void test_linear(void **state) {
  (void)state;
  nn_model_config_t c = {.head_dim = 64, .rope_theta = 10000, .rope_ntk_alpha = 1, .context = 128};
  c.rope_scaling = NN_ROPE_LINEAR, c.rope_factor = 4;
  CHECK(&c, 128, 1, {0, 0.25}, {8, 0.025});
}

static void test_dynamic(void **state) {
  (void)state;
  nn_model_config_t c = {.head_dim = 128, .rope_theta = 10000, .rope_ntk_alpha = 1};
  c.context = 2048;
  c.rope_scaling = NN_ROPE_DYNAMIC, c.rope_factor = 2;
  CHECK(&c, 2048, 1, {32, 0.01});
  CHECK(&c, 4096, 1, {64 - 32, pow(30527.7367488, -0.5)});
  assert_true(rope_stretch(&c) == 2);
}

static void test_yarn(void **state) {
  (void)state;
  nn_model_config_t c = {.head_dim = 64, .rope_theta = 150000, .rope_ntk_alpha = 1};
  c.context = 131072, c.rope_scaling = NN_ROPE_YARN, c.rope_factor = 32;
  c.rope_original_context = 4096, c.rope_no_truncate = 1;
  CHECK(&c, 131072, 1.34657359028, {1, .689044306}, {8, .0508132748}, {9, .0317056962},
        {12, .00679495949}, {16, 4.56483919e-4}, {17, 1.29318701e-4}, {18, 3.83088124e-5},
        {31, 3.02351143e-7});
  c.rope_factor = 0; /* context / rope_original_context, which is the same */
  CHECK(&c, 131072, 1.34657359028, {31, 3.02351143e-7});
  c.rope_attention_factor = 1.25f;
  CHECK(&c, 131072, 1.25, {31, 3.02351143e-7});
  nn_model_config_t d = {.head_dim = 64, .rope_theta = 10000, .rope_ntk_alpha = 1};
  d.context = 163840, d.rope_scaling = NN_ROPE_YARN, d.rope_factor = 40;
  d.rope_original_context = 4096, d.rope_mscale = 1, d.rope_mscale_all_dim = 1;
  CHECK(&d, 163840, 1, {1, .749894209}, {10, .0562341325}, {11, .0390069266}, {16, .0055},
        {22, 1.77827941e-4}, {23, 3.33380358e-5}, {24, 2.5e-5}, {31, 3.33380358e-6});
}

static void test_llama3(void **state) {
  (void)state;
  nn_model_config_t c = {.head_dim = 128, .rope_theta = 500000, .rope_ntk_alpha = 1};
  c.context = 131072, c.rope_scaling = NN_ROPE_LLAMA3, c.rope_factor = 8;
  c.rope_original_context = 8192, c.rope_low_freq = 1, c.rope_high_freq = 4;
  CHECK(&c, 131072, 1, {1, .814617234}, {28, .00321144599}, {29, .00216657076},
        {30, .00137189357}, {32, 5.24846161e-4}, {34, 1.78507813e-4}, {35, 9.55621235e-5},
        {63, 3.06892599e-7});
  c.head_dim = 64, c.rope_factor = 32, c.rope_low_freq = c.rope_high_freq = 0; /* defaults */
  CHECK(&c, 131072, 1, {14, .00321144599}, {15, .00129054793}, {16, 4.29556797e-4},
        {17, 9.7082878e-5}, {18, 1.94616382e-5}, {31, 9.41830673e-8});
}

/* Factors 1 + i / 8 and 2 + i^2 of a head of 16; the values are those of transformers' function for
 * LongRoPE, run in double precision. */
static nn_model_config_t long_rope(void) {
  nn_model_config_t c = {.head_dim = 16, .rope_theta = 10000, .rope_ntk_alpha = 1};
  c.context = 131072, c.rope_scaling = NN_ROPE_LONG, c.rope_original_context = 4096;
  for (int i = 0; i < 8; i++)
    c.rope_short_factors[i] = 1 + (float)i / 8, c.rope_long_factors[i] = (float)(2 + i * i);
  return c;
}

static void test_long(void **state) {
  (void)state;
  nn_model_config_t c = long_rope();
  const double attention = 1.1902380714238;
  CHECK(&c, 4096, attention, {0, 1}, {1, .281091347571}, {2, .08}, {3, .022998382983},
        {4, .00666666666667}, {5, .00194601702164}, {7, 1.68654808542e-4});
  CHECK(&c, 4097, attention, {0, .5}, {1, .105409255339}, {3, .00287479787288},
        {4, 5.55555555556e-4}, {6, 2.63157894737e-5}, {7, 6.2005444317e-06});
  assert_true(rope_same(&c, 1, 4096) && rope_same(&c, 4097, 131072) && !rope_same(&c, 4096, 4097));
  assert_true(rope_stretch(&c) == 1);
  c.rope_factor = 4; /* in place of context / rope_original_context */
  CHECK(&c, 1, 1.0801234497346, {0, 1});
  c.rope_attention_factor = 1.25f;
  CHECK(&c, 4097, 1.25, {0, 0.5});
  c.rope_short_mscale = 1.5f, c.rope_long_mscale = 2;
  CHECK(&c, 4096, 1.5, {0, 1});
  CHECK(&c, 4097, 2, {0, 0.5});
  c = long_rope(), c.rope_original_context = 0; /* the context: nothing is beyond it */
  CHECK(&c, 131072, 1, {0, 1});
  c = long_rope(), c.rotary_dim = 8;
  CHECK(&c, 1, attention, {2, .01 / 1.25}, {3, .001 / 1.375});
}

/* The scale of scores of DeepSeek-V2-Lite and V3, which have 192 elements in a query. */
static void test_latent(void **state) {
  (void)state;
  nn_model_config_t c = {.head_dim = 192, .kv_rank = 512, .rope_head_dim = 64};
  c.rope_theta = 10000, c.rope_ntk_alpha = 1, c.context = 163840;
  assert_int_equal(rope_dim(&c), 64);
  assert_true(rope_latent_factor(&c) == 1);
  c.rope_scaling = NN_ROPE_YARN, c.rope_factor = 40, c.rope_original_context = 4096;
  assert_true(rope_latent_factor(&c) == 1);
  c.rope_mscale = c.rope_mscale_all_dim = 0.707f; /* fp32: of eight digits */
  assert_true(fabs(rope_latent_factor(&c) / sqrt(192) - .114721386793) < 1e-8);
  c.rope_mscale = c.rope_mscale_all_dim = 1;
  assert_true(fabs(rope_latent_factor(&c) / sqrt(192) - .135233778861) < 1e-12);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_plain),   cmocka_unit_test(test_ntk),  cmocka_unit_test(test_linear),
      cmocka_unit_test(test_dynamic), cmocka_unit_test(test_yarn), cmocka_unit_test(test_llama3),
      cmocka_unit_test(test_long),  cmocka_unit_test(test_latent),
  };
  return cmocka_run_group_tests_name("rope_scaling", tests, NULL, NULL);
}
