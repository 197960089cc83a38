/* The choice of one token from logits: repetition penalty, temperature, top-k, top-p, min-p, and
 * then a draw. "Larger" means a larger logit, or an equal one of a lower id, so every choice is
 * unique.
 *
 * Top-k and top-p keep the tokens from the largest down to some last one, which a heap finds
 * without sorting the rest. The draw walks the kept tokens by id until their weights pass u times
 * their sum. */
#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "base/random.h"
#include "ref.h"

/* Draws have a stream of their own; the name in ASCII. */
static const uint64_t sample_stream = 0x73616d706c65;

typedef struct sample {
  const op_sample_t *op;
  float *logit;   /* [V] after the penalty */
  double *weight; /* [V] exp((logit - largest) / temperature) */
  int32_t *heap;  /* [V] ids: a heap of `size`, behind it those taken, the last taken first */
  int64_t size;
} sample_t;

size_t ref_sample_scratch(const backend_limits_t *limits) {
  return ref_piece(1, limits->vocab, sizeof(float)) + ref_piece(1, limits->vocab, sizeof(double)) +
         ref_piece(1, limits->vocab, sizeof(int32_t));
}

static int sample_larger(const sample_t *s, int32_t a, int32_t b) {
  return s->logit[a] > s->logit[b] || (s->logit[a] == s->logit[b] && a < b);
}

static void sample_sink(sample_t *s, int64_t i) {
  int32_t id = s->heap[i];
  for (;;) {
    int64_t child = 2 * i + 1;
    if (child >= s->size) break;
    if (child + 1 < s->size && sample_larger(s, s->heap[child + 1], s->heap[child])) child++;
    if (!sample_larger(s, s->heap[child], id)) break;
    s->heap[i] = s->heap[child];
    i = child;
  }
  s->heap[i] = id;
}

static void sample_heapify(sample_t *s) {
  s->size = s->op->vocab;
  for (int64_t i = 0; i < s->size; i++) s->heap[i] = (int32_t)i;
  for (int64_t i = s->size / 2 - 1; i >= 0; i--) sample_sink(s, i);
}

/* Takes the largest out of the heap. */
static int32_t sample_take(sample_t *s) {
  int32_t id = s->heap[0];
  s->heap[0] = s->heap[--s->size];
  s->heap[s->size] = id;
  sample_sink(s, 0);
  return id;
}

/* The nearest finite number. */
static float sample_finite(float x) {
  float bounded = x < FLT_MAX ? x : FLT_MAX;
  return x > -FLT_MAX ? bounded : -FLT_MAX;
}

static bool sample_has_nan(const op_sample_t *op) {
  bool found = false;
  for (int64_t i = 0; i < op->vocab; i++) found |= op->logits[i] != op->logits[i];
  return found;
}

/* Logits after the penalty, once per id however often it occurs. */
static void sample_penalise(const sample_t *s) {
  const op_sample_t *op = s->op;
  for (int64_t i = 0; i < op->vocab; i++) s->logit[i] = sample_finite(op->logits[i]);
  if (op->repetition_penalty == 0 || op->repetition_penalty == 1) return;
  for (int64_t i = 0; i < op->history_len; i++) {
    int32_t id = op->history[i];
    float from = sample_finite(op->logits[id]);
    s->logit[id] = sample_finite(from > 0 ? from / op->repetition_penalty
                                          : from * op->repetition_penalty);
  }
}

static int32_t sample_largest(const sample_t *s) {
  int32_t best = 0;
  for (int32_t i = 1; i < s->op->vocab; i++)
    if (s->logit[i] > s->logit[best]) best = i;
  return best;
}

/* The last token that top-k and top-p keep, or -1 where they keep all. */
static int32_t sample_last(sample_t *s) {
  const op_sample_t *op = s->op;
  int64_t vocab = op->vocab;
  int by_k = op->top_k > 0 && op->top_k < vocab, by_p = op->top_p > 0 && op->top_p < 1;
  if (!by_k && !by_p) return -1;
  sample_heapify(s);
  int32_t last = -1;
  double sum = 0, reached = 0;
  if (by_k)
    for (int32_t i = 0; i < op->top_k; i++) sum += s->weight[last = sample_take(s)];
  else
    for (int64_t i = 0; i < vocab; i++) sum += s->weight[i];
  if (!by_p) return last;
  int64_t most = by_k ? op->top_k : vocab;
  for (int64_t i = 0; i < most && reached < op->top_p * sum; i++) {
    last = by_k ? s->heap[vocab - 1 - i] : sample_take(s);
    reached += s->weight[last];
  }
  return last;
}

static int32_t sample_draw(sample_t *s) {
  const op_sample_t *op = s->op;
  int32_t vocab = (int32_t)op->vocab, last = sample_last(s), chosen = 0;
  double sum = 0, passed = 0;
  for (int32_t i = 0; i < vocab; i++) {
    int kept = s->weight[i] >= op->min_p && (last < 0 || !sample_larger(s, last, i));
    if (!kept) s->weight[i] = 0;
    sum += s->weight[i];
  }
  double goal = sum * random_uniform(op->seed, sample_stream, op->counter);
  for (int32_t i = 0; i < vocab && passed <= goal; i++) {
    if (s->weight[i] == 0) continue;
    passed += s->weight[i];
    chosen = i;
  }
  return chosen;
}

static void sample_item(void *context, int64_t item, int32_t thread) {
  sample_t *s = context;
  const op_sample_t *op = s->op;
  (void)item;
  (void)thread;
  if (sample_has_nan(op)) {
    *op->token = -1;
    return;
  }
  sample_penalise(s);
  int32_t largest = sample_largest(s);
  if (op->temperature == 0) {
    *op->token = largest;
    return;
  }
  for (int64_t i = 0; i < op->vocab; i++)
    s->weight[i] = exp(((double)s->logit[i] - s->logit[largest]) / op->temperature);
  *op->token = sample_draw(s);
}

nn_status_t ref_sample(backend_device_t *device, const op_sample_t *op, backend_scratch_t scratch) {
  char *at = scratch.data;
  sample_t s = {.op = op};
  s.logit = ref_take(&at, 1, op->vocab, sizeof(float));
  s.weight = ref_take(&at, 1, op->vocab, sizeof(double));
  s.heap = ref_take(&at, 1, op->vocab, sizeof(int32_t));
  return pool_run(device->pool, 1, sample_item, &s);
}
