#include "model/rope.h"

#include <math.h>

#include "base/mem.h"
#include "model/config.h"

int64_t rope_dim(const nn_model_config_t *config) {
  if (config->kv_rank) return config->rope_head_dim;
  return config->rotary_dim ? config->rotary_dim : config->head_dim;
}

double rope_stretch(const nn_model_config_t *config) {
  if (config->position != NN_POSITION_ROPE) return 1;
  if (config->rope_scaling == NN_ROPE_DYNAMIC && config->rope_factor > 1)
    return (double)config->rope_factor;
  return (double)config->rope_ntk_alpha;
}

/* ---- frequencies ----------------------------------------------------------------------------- */

static double given(float value, double otherwise) {
  return value != 0 ? (double)value : otherwise;
}

static double rope_original(const nn_model_config_t *config) {
  return (double)config_original_context(config);
}

/* rope_theta, stretched past the context: NTK-aware scaling by a fixed alpha, theta
 * alpha^(d / (d - 2)), or by the length. */
static double rope_base(const nn_model_config_t *config, int64_t max_len) {
  double theta = (double)config->rope_theta, d = (double)rope_dim(config);
  if (max_len <= config->context || d <= 2) return theta;
  double alpha = (double)config->rope_ntk_alpha;
  if (config->rope_scaling == NN_ROPE_DYNAMIC) {
    double factor = given(config->rope_factor, 1);
    alpha = factor * (double)max_len / (double)config->context - (factor - 1);
  }
  return theta * pow(alpha, d / (d - 2));
}

/* Llama 3: long wavelengths are stretched, short ones are not, those between by both. */
static void rope_scale_llama3(const nn_model_config_t *config, int64_t half, double *frequency) {
  double factor = given(config->rope_factor, 1), original = rope_original(config);
  double low = given(config->rope_low_freq, 1), high = given(config->rope_high_freq, 4);
  for (int64_t i = 0; i < half; i++) {
    double turns = original * frequency[i] / (2 * acos(-1.0)); /* within the original context */
    double kept = (turns - low) / (high - low);
    kept = kept < 0 ? 0 : kept > 1 ? 1 : kept;
    frequency[i] = (1 - kept) * frequency[i] / factor + kept * frequency[i];
  }
}

/* How many times the original context the model's is. */
static double context_factor(const nn_model_config_t *config) {
  return given(config->rope_factor, (double)config->context / rope_original(config));
}

/* Pair whose angle makes so many turns within the original context. */
static double yarn_pair(const nn_model_config_t *config, double turns) {
  double d = (double)rope_dim(config);
  return d * log(rope_original(config) / (2 * acos(-1.0) * turns)) /
         (2 * log((double)config->rope_theta));
}

/* YaRN: pairs up to a ramp keep their frequency, those behind it have it divided. */
static void rope_scale_yarn(const nn_model_config_t *config, int64_t half, double *frequency) {
  double factor = context_factor(config);
  double low = yarn_pair(config, given(config->rope_beta_fast, 32));
  double high = yarn_pair(config, given(config->rope_beta_slow, 1));
  if (!config->rope_no_truncate) low = floor(low), high = ceil(high);
  low = fmax(low, 0), high = fmin(high, (double)rope_dim(config) - 1);
  if (low == high) high += 0.001;
  for (int64_t i = 0; i < half; i++) {
    double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
    frequency[i] = ramp * frequency[i] / factor + (1 - ramp) * frequency[i];
  }
}

static double yarn_scale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static double yarn_attention_factor(const nn_model_config_t *config) {
  double factor = context_factor(config);
  if (config->rope_attention_factor > 0) return (double)config->rope_attention_factor;
  if (config->rope_mscale > 0 && config->rope_mscale_all_dim > 0)
    return yarn_scale(factor, (double)config->rope_mscale) /
           yarn_scale(factor, (double)config->rope_mscale_all_dim);
  return yarn_scale(factor, 1);
}

double rope_latent_factor(const nn_model_config_t *config) {
  if (config->rope_scaling != NN_ROPE_YARN || config->rope_mscale_all_dim == 0) return 1;
  return pow(yarn_scale(context_factor(config), (double)config->rope_mscale_all_dim), 2);
}

static bool rope_is_long(const nn_model_config_t *config, int64_t max_len) {
  return config->rope_scaling == NN_ROPE_LONG && (double)max_len > rope_original(config);
}

bool rope_same(const nn_model_config_t *config, int64_t a, int64_t b) {
  return rope_is_long(config, a) == rope_is_long(config, b);
}

/* LongRoPE: what multiplies cosines and sines. */
static double long_attention_factor(const nn_model_config_t *config, float mscale) {
  double factor = context_factor(config);
  if (mscale > 0) return (double)mscale;
  if (config->rope_attention_factor > 0) return (double)config->rope_attention_factor;
  return factor <= 1 ? 1 : sqrt(1 + log(factor) / log(rope_original(config)));
}

static void rope_scale_long(const nn_model_config_t *config, int64_t max_len, int64_t half,
                            double *frequency, double *factor) {
  bool beyond = rope_is_long(config, max_len);
  const float *divisors = beyond ? config->rope_long_factors : config->rope_short_factors;
  for (int64_t i = 0; i < half; i++) frequency[i] /= (double)divisors[i];
  *factor = long_attention_factor(config,
                                  beyond ? config->rope_long_mscale : config->rope_short_mscale);
}

void rope_frequencies(const nn_model_config_t *config, int64_t max_len, double *frequency,
                      double *factor) {
  int64_t width = rope_dim(config), half = width / 2;
  double base = rope_base(config, max_len);
  *factor = 1;
  for (int64_t i = 0; i < half; i++) frequency[i] = pow(base, -2.0 * (double)i / (double)width);
  switch (config->rope_scaling) {
    case NN_ROPE_LINEAR:
      for (int64_t i = 0; i < half; i++) frequency[i] /= given(config->rope_factor, 1);
      break;
    case NN_ROPE_LLAMA3: rope_scale_llama3(config, half, frequency); break;
    case NN_ROPE_YARN:
      rope_scale_yarn(config, half, frequency);
      *factor = yarn_attention_factor(config);
      break;
    case NN_ROPE_LONG: rope_scale_long(config, max_len, half, frequency, factor); break;
    default: break; /* NN_ROPE_DYNAMIC: in the base */
  }
}

/* ---- the table ------------------------------------------------------------------------------- */

/* Positions [begin, end) of the table, to rows at `row`. */
static void rope_rows(float *row, const double *frequency, double factor, int64_t half,
                      int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; p++, row += 2 * half) {
    for (int64_t i = 0; i < half; i++) {
      float angle = (float)p * (float)frequency[i];
      row[i] = (float)(factor * cos((double)angle));
      row[half + i] = (float)(factor * sin((double)angle));
    }
  }
}

nn_status_t rope_fill(nn_device_t *device, const nn_model_config_t *config, int64_t max_len,
                      int64_t positions, float *table) {
  enum { ROWS = 512 }; /* copied at once */
  int64_t width = rope_dim(config), half = width / 2;
  double factor, frequency[128]; /* head_dim is at most 256 */
  void *got = NULL;
  STATUS_TRY(mem_alloc((size_t)(ROWS * width), sizeof(float), &got));
  float *rows = got;
  rope_frequencies(config, max_len, frequency, &factor);
  nn_status_t status = NN_OK;
  for (int64_t p = 0; p < positions && status == NN_OK; p += ROWS) {
    int64_t end = positions - p < ROWS ? positions : p + ROWS;
    rope_rows(rows, frequency, factor, half, p, end);
    status = device->backend->copy_in(device->place, table + p * width, rows,
                                      (size_t)((end - p) * width) * sizeof(float));
  }
  mem_free(rows);
  return status;
}
