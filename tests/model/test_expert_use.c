/* How experts are chosen, counted and, under a capacity factor, dropped. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "batch.h"

/* Router weights of zero make every expert as likely as another, and ties go to the lower index:
 * the first top_k experts take all. */
static void set_routers(nn_model_t *model, float value) {
  fixture_fill(model, "model.layers.0.block_sparse_moe.gate.weight", value);
  fixture_fill(model, "model.layers.1.block_sparse_moe.gate.weight", value);
}

static void test_empty_experts(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  for (int64_t top_k = 1; top_k <= 2; top_k++) {
    nn_model_config_t config = fixture_moe();
    config.top_k = top_k;
    nn_model_t *model = fixture_model(device, &config, 1);
    fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
    set_routers(model, 0);
    batch_t batch = batch_of(config.vocab_size);
    nn_loss_t loss = STRUCT(nn_loss_t);
    CHECK(nn_model_backward(model, batch.tokens, batch.targets, BATCH, SEQ, 1, &loss));
    /* E * sum f_i P_i = 5 * (shares sum to 1) / 5 in each of two layers; logsumexp of zeros is
     * ln 5. Coefficients are floats, sums fp32: a few roundings. */
    assert_true(fabs(loss.aux_loss - 0.02 * 2) < 1e-7);
    assert_true(fabs(loss.z_loss - 0.01 * 2 * log(5) * log(5)) < 1e-7);
    for (int64_t layer = 0; layer < 2; layer++) {
      int64_t counts[5];
      double prob[5];
      nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
      CHECK(nn_model_expert_stats(model, layer, counts, prob, &stats));
      assert_int_equal(stats.tokens, TOKENS);
      assert_int_equal(stats.dropped, 0);
      for (int64_t e = 0; e < 5; e++) {
        assert_int_equal(counts[e], e < top_k ? TOKENS : 0);
        assert_true(fabs(prob[e] - 0.2) < 1e-6);
      }
      assert_true(fabs(stats.entropy - log((double)top_k) / log(5)) < 1e-12);
      assert_true(fabs(stats.max_load - 5.0 / (double)top_k) < 1e-12);
      for (int64_t e = 0; e < 5; e++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.block_sparse_moe.experts.%d.w2.weight",
                 (int)layer, (int)e);
        nn_tensor_t *gradient;
        CHECK(nn_model_gradient(model, name, &gradient));
        float values[22 * 19];
        CHECK(nn_tensor_copy_out(gradient, values, sizeof values));
        assert_true((fixture_largest(values, 22 * 19) > 0) == (e < top_k));
        nn_tensor_destroy(gradient);
      }
    }
    nn_model_destroy(model);
  }
  nn_device_destroy(device);
}

static void test_expert_stats_add_up(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  nn_model_t *model = fixture_model(device, &config, 1);
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_BLOCK);
  batch_t batch = batch_of(config.vocab_size);
  nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
  int64_t counts[5];
  double prob[5];
  CHECK(nn_model_expert_stats(model, 1, counts, prob, &stats));
  assert_int_equal(stats.tokens, 0);
  assert_true(stats.entropy == 0 && stats.max_load == 0 && prob[3] == 0 && counts[3] == 0);
  free(batch_logits(model, batch.tokens, BATCH, SEQ));
  free(batch_logits(model, batch.tokens, 1, 5));
  nn_loss_t loss = STRUCT(nn_loss_t);
  CHECK(nn_model_evaluate(model, batch.tokens, batch.targets, BATCH, SEQ, &loss));
  CHECK(batch_backward(model, &batch));
  for (int64_t layer = 0; layer < 2; layer++) {
    CHECK(nn_model_expert_stats(model, layer, counts, prob, &stats));
    int64_t slots = 0, most = 0;
    double mass = 0, entropy = 0;
    for (int e = 0; e < 5; e++) {
      slots += counts[e];
      mass += prob[e];
      if (counts[e] > most) most = counts[e];
    }
    for (int e = 0; e < 5; e++)
      if (counts[e]) {
        double share = (double)counts[e] / (double)slots;
        entropy -= share * log(share) / log(5);
      }
    assert_int_equal(stats.tokens, 3 * TOKENS + 5);
    assert_int_equal(slots, 2 * (3 * TOKENS + 5));
    assert_true(fabs(mass - 1) < 1e-6); /* softmax in fp32 */
    assert_true(fabs(stats.entropy - entropy) < 1e-12);
    assert_true(fabs(stats.max_load - 5.0 * (double)most / (double)slots) < 1e-12);
    CHECK(nn_model_expert_stats(model, layer, NULL, NULL, &stats));
  }
  CHECK(nn_model_expert_stats_reset(model));
  CHECK(nn_model_expert_stats(model, 0, counts, prob, &stats));
  assert_int_equal(stats.tokens, 0);
  nn_model_destroy(model);
  config = fixture_gpt2();
  model = fixture_model(device, &config, 1);
  fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
  CHECK_STATUS(NN_ERR_UNSUPPORTED, nn_model_expert_stats(model, 0, NULL, NULL, &stats));
  nn_model_destroy(model);
  nn_device_destroy(device);
}

/* The bound is ceil(factor * tokens * k / E) slots of an expert; what is above it is dropped and
 * said. */
static void test_capacity_drops(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  batch_t batch = batch_of(config.vocab_size);
  float *free_logits = NULL;
  static const float factors[] = {0, 5, 1, 0.5f, 0.05f};
  for (int i = 0; i < 5; i++) {
    config.capacity_factor = factors[i];
    nn_model_t *model = fixture_model(device, &config, 1);
    fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
    float *logits = batch_logits(model, batch.tokens, BATCH, SEQ);
    /* 42 slots over 5 experts; a factor of 5 is room for every token in one expert */
    int64_t capacity = i == 0 ? TOKENS : (int64_t)ceil((double)factors[i] * 42 / 5), dropped = 0;
    for (int64_t layer = 0; layer < 2; layer++) {
      int64_t counts[5], above = 0;
      nn_expert_stats_t stats = STRUCT(nn_expert_stats_t);
      CHECK(nn_model_expert_stats(model, layer, counts, NULL, &stats));
      for (int e = 0; e < 5; e++) above += counts[e] > capacity ? counts[e] - capacity : 0;
      assert_int_equal(stats.dropped, above);
      assert_int_equal(counts[0] + counts[1] + counts[2] + counts[3] + counts[4], 42);
      dropped += above;
    }
    if (i == 0)
      free_logits = logits;
    else if (i == 1)
      fixture_same("logits", logits, free_logits, TOKENS * 67);
    else
      assert_memory_not_equal(logits, free_logits, TOKENS * 67 * sizeof *logits);
    assert_true((dropped > 0) == (i > 1));
    CHECK(batch_backward(model, &batch));
    if (i) free(logits);
    nn_model_destroy(model);
  }
  free(free_logits);
  nn_device_destroy(device);
}

/* First tokens first: with routers at zero every token wants experts 0 and 1, and one slot each is
 * left to the first token of the batch. The others pass the layer by on the residual stream, so
 * their logits are those of a model whose experts are zero. */
static void test_capacity_takes_first_tokens(void **state) {
  (void)state;
  nn_device_t *device = fixture_device(2, 0);
  nn_model_config_t config = fixture_moe();
  config.layers = 1;
  batch_t batch = batch_of(config.vocab_size);
  float *logits[3];
  for (int i = 0; i < 3; i++) { /* no bound; a bound of one; no experts to speak of */
    config.capacity_factor = i == 1 ? 0.01f : 0;
    nn_model_t *model = fixture_model(device, &config, 1);
    fixture_prepare(model, BATCH, SEQ, NN_RECOMPUTE_NONE);
    fixture_fill(model, "model.layers.0.block_sparse_moe.gate.weight", 0);
    for (int e = 0; i == 2 && e < 5; e++) {
      char name[96];
      snprintf(name, sizeof name, "model.layers.0.block_sparse_moe.experts.%d.w2.weight", e);
      fixture_fill(model, name, 0);
    }
    logits[i] = batch_logits(model, batch.tokens, BATCH, SEQ);
    nn_model_destroy(model);
  }
  /* An expert of one row may be summed in another order than one of many: the golden files'
   * tolerance. */
  double tolerance = 44 * 0x1p-24 * fixture_largest(logits[0], TOKENS * 67);
  fixture_near("first token", logits[1], logits[0], 67, tolerance);
  fixture_near("dropped tokens", logits[1] + 67, logits[2] + 67, (TOKENS - 1) * 67, tolerance);
  for (int t = 1; t < TOKENS; t++) { /* and that is a difference */
    double most = 0;
    for (int i = 0; i < 67; i++)
      most = fmax(most, fabs((double)logits[0][t * 67 + i] - (double)logits[2][t * 67 + i]));
    assert_true(most > 1000 * tolerance);
  }
  for (int i = 0; i < 3; i++) free(logits[i]);
  nn_device_destroy(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_empty_experts),
      cmocka_unit_test(test_expert_stats_add_up),
      cmocka_unit_test(test_capacity_drops),
      cmocka_unit_test(test_capacity_takes_first_tokens),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
