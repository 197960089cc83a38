#include "train/dataset.h"

#include "base/mem.h"
#include "base/random.h"

struct nn_dataset {
  dataset_stream_t stream;
  nn_dataset_options_t options; /* checked, defaults filled in */
  int64_t tokens;               /* end - begin */
  int64_t windows;              /* of an epoch */
  int64_t position;
  int32_t max_id;
};

/* Streams of random numbers under the dataset's seed; the counter is the epoch. */
enum { RANDOM_PHASE = 1, RANDOM_ORDER = 2 };

/* ---- the stream ------------------------------------------------------------------------------ */

static void stream_read(const dataset_stream_t *stream, int64_t first, int64_t count,
                        int32_t *ids) {
  switch (stream->id_bytes) {
    case 1: {
      const uint8_t *from = (const uint8_t *)stream->ids + first;
      for (int64_t i = 0; i < count; i++) ids[i] = from[i];
      break;
    }
    case 2: {
      const uint16_t *from = (const uint16_t *)stream->ids + first;
      for (int64_t i = 0; i < count; i++) ids[i] = from[i];
      break;
    }
    default: {
      const int32_t *from = (const int32_t *)stream->ids + first;
      for (int64_t i = 0; i < count; i++) ids[i] = from[i];
    }
  }
}

static int32_t stream_max(const dataset_stream_t *stream, int64_t begin, int64_t end) {
  int32_t max = 0, part[1024];
  for (int64_t i = begin; i < end; i += 1024) {
    int64_t count = end - i < 1024 ? end - i : 1024;
    stream_read(stream, i, count, part);
    for (int64_t j = 0; j < count; j++) max = part[j] > max ? part[j] : max;
  }
  return max;
}

void dataset_stream_free(dataset_stream_t *stream) {
  file_unmap(&stream->file);
  mem_free(stream->copy);
}

/* ---- the order of windows -------------------------------------------------------------------- */

/* The window in place `index` of the order that `key` makes of 0 .. windows - 1: a Feistel network
 * permutes the next power of four, and is applied until it comes back inside (Black and Rogaway,
 * 2002), on average less than four times. */
static int64_t order_permute(uint64_t key, int64_t windows, int64_t index) {
  enum { ROUNDS = 6 };
  int half = 1;
  while ((int64_t)1 << 2 * half < windows) half++;
  const uint64_t mask = ((uint64_t)1 << half) - 1;
  uint64_t x = (uint64_t)index;
  do {
    uint64_t left = x >> half, right = x & mask;
    for (uint64_t round = 0; round < ROUNDS; round++) {
      uint64_t mixed = left ^ (random_u64(key, round, right) & mask);
      left = right;
      right = mixed;
    }
    x = left << half | right;
  } while (x >= (uint64_t)windows);
  return (int64_t)x;
}

/* First token of the window in row `row` of the batch at `position`. */
static int64_t order_shuffled(const nn_dataset_t *dataset, int64_t position, int64_t row) {
  const int64_t windows = dataset->windows, seq_len = dataset->options.seq_len;
  const int64_t batch = dataset->options.batch;
  const uint64_t seed = dataset->options.seed;

  /* position * batch + row, divided by windows, without forming a product that may overflow. */
  const int64_t rest = position % windows * batch + row;
  const uint64_t epoch =
      (uint64_t)(position / windows) * (uint64_t)batch + (uint64_t)(rest / windows);

  const int64_t room = dataset->tokens - windows * seq_len;
  const uint64_t phases = (uint64_t)(room < seq_len ? room : seq_len);
  const int64_t phase = (int64_t)(random_u64(seed, RANDOM_PHASE, epoch) % phases);
  const uint64_t key = random_u64(seed, RANDOM_ORDER, epoch);
  return phase + order_permute(key, windows, rest % windows) * seq_len;
}

/* ---- the handle ------------------------------------------------------------------------------ */

static nn_status_t dataset_check(nn_dataset_options_t *options, int64_t count) {
  if (!options->batch) options->batch = 1;
  if (!options->end) options->end = count;
  if (options->batch < 1)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_dataset_options_t: batch is %lld; it must be at least 0",
                       (long long)options->batch);
  if (options->seq_len < 1)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_dataset_options_t: seq_len is %lld; it must be at least 1",
                       (long long)options->seq_len);
  int64_t ids;
  if (!mem_mul(options->batch, options->seq_len, &ids) || ids > PTRDIFF_MAX / (int64_t)sizeof ids)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_dataset_options_t: no memory holds a batch of %lld x %lld tokens",
                       (long long)options->batch, (long long)options->seq_len);
  if (options->shuffle < 0 || options->shuffle > 1)
    return status_fail(NN_ERR_ARGUMENT, "nn_dataset_options_t: shuffle is %d; it is 0 or 1",
                       options->shuffle);
  if (options->begin < 0 || options->end > count || options->begin > options->end)
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_dataset_options_t: begin %lld and end %lld do not lie in a stream of "
                       "%lld tokens",
                       (long long)options->begin, (long long)options->end, (long long)count);
  int64_t tokens = options->end - options->begin;
  if (tokens < 2)
    return status_fail(NN_ERR_ARGUMENT, "a dataset needs at least 2 tokens; there are %lld",
                       (long long)tokens);
  if (options->shuffle && tokens - 1 < options->seq_len)
    return status_fail(NN_ERR_ARGUMENT,
                       "windows of seq_len %lld in a shuffled order need at least %lld tokens; "
                       "there are %lld",
                       (long long)options->seq_len, (long long)options->seq_len + 1,
                       (long long)tokens);
  return NN_OK;
}

/* Windows in an epoch. Shuffled epochs have as many as fit whole whatever the phase, or one where
 * that would be none. */
static int64_t dataset_windows(const nn_dataset_options_t *options) {
  int64_t tokens = options->end - options->begin;
  if (!options->shuffle) return (tokens - 2) / options->seq_len + 1;
  int64_t whole = tokens / options->seq_len - 1;
  return whole > 1 ? whole : 1;
}

nn_status_t dataset_create(const dataset_stream_t *stream, const nn_dataset_options_t *options,
                           nn_dataset_t **dataset) {
  nn_dataset_options_t known;
  STATUS_TRY(
      status_read_options(&known, sizeof known, sizeof known, options, "nn_dataset_options_t"));
  STATUS_TRY(dataset_check(&known, stream->count));
  int64_t windows = dataset_windows(&known), rows;
  if (!mem_mul(windows, known.batch, &rows) || !mem_add(rows, known.batch, &rows))
    return status_fail(NN_ERR_ARGUMENT,
                       "nn_dataset_options_t: batch %lld is too large for %lld windows",
                       (long long)known.batch, (long long)windows);
  void *made;
  STATUS_TRY(mem_alloc(1, sizeof **dataset, &made));
  *dataset = made;
  **dataset = (nn_dataset_t){.stream = *stream,
                             .options = known,
                             .tokens = known.end - known.begin,
                             .windows = windows,
                             .max_id = stream_max(stream, known.begin, known.end)};
  return NN_OK;
}

void dataset_destroy(nn_dataset_t *dataset) {
  if (!dataset) return;
  dataset_stream_free(&dataset->stream);
  mem_free(dataset);
}

static int64_t dataset_batches(const nn_dataset_t *dataset) {
  return (dataset->windows - 1) / dataset->options.batch + 1;
}

void dataset_describe(const nn_dataset_t *dataset, nn_dataset_info_t *info) {
  *info = (nn_dataset_info_t){.struct_size = sizeof *info,
                              .tokens = dataset->tokens,
                              .windows = dataset->windows,
                              .batches = dataset_batches(dataset),
                              .max_id = dataset->max_id};
}

/* A row that begins at token `first`: `count` tokens with their targets, then padding. */
static void dataset_row(const nn_dataset_t *dataset, int64_t first, int64_t count, int32_t *tokens,
                        int32_t *targets) {
  int64_t at = dataset->options.begin + first;
  stream_read(&dataset->stream, at, count, tokens);
  stream_read(&dataset->stream, at + 1, count, targets);
  for (int64_t i = count; i < dataset->options.seq_len; i++) {
    tokens[i] = 0;
    targets[i] = -1;
  }
}

nn_status_t dataset_next(nn_dataset_t *dataset, int32_t *tokens, int32_t *targets) {
  const int64_t batch = dataset->options.batch, seq_len = dataset->options.seq_len;
  if (dataset->position == INT64_MAX)
    return status_fail(NN_ERR_CAPACITY, "nn_dataset_next: no position follows %lld",
                       (long long)dataset->position);
  for (int64_t row = 0; row < batch; row++) {
    int64_t first, count = seq_len;
    if (dataset->options.shuffle) {
      first = order_shuffled(dataset, dataset->position, row);
    } else {
      int64_t window = dataset->position % dataset_batches(dataset) * batch + row;
      int64_t left = window < dataset->windows ? dataset->tokens - 1 - window * seq_len : 0;
      first = left ? window * seq_len : 0;
      count = left < seq_len ? left : seq_len;
    }
    dataset_row(dataset, first, count, tokens + row * seq_len, targets + row * seq_len);
  }
  dataset->position++;
  return NN_OK;
}

int64_t dataset_position(const nn_dataset_t *dataset) { return dataset->position; }

void dataset_seek(nn_dataset_t *dataset, int64_t position) { dataset->position = position; }
