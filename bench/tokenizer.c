/* Tokenizers: loading, encoding and decoding on one thread, in bytes of text per second. Texts are
 * encoded by pieces of 8 KiB, as documents come, and whole. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/random.h"
#include "bench.h"

enum { MADE_UP = 10 * 1000 * 1000, WORDS = 20000, WORD_MOST = 12, PIECE = 8192 };

typedef struct tokenizer_bench {
  const char *path;
  nn_tokenizer_t *tokenizer;
  const char *text;
  size_t bytes, piece; /* of the text; encoded at once */
  int32_t *ids;
  int64_t *offsets; /* NULL: not asked for */
  int64_t capacity, count;
  char *decoded;
  size_t room;
  double seconds; /* least time spent on each */
} tokenizer_bench_t;

/* Words whose frequency falls with their rank, as in a language. */
static char *make_up(size_t *bytes) {
  char *text = bench_alloc(MADE_UP), words[WORDS][WORD_MOST];
  size_t at = 0;
  for (uint64_t word = 0; word < WORDS; word++)
    for (uint64_t i = 0; i < WORD_MOST; i++)
      words[word][i] = "etaoinshrdlucmfwygpbvk"[random_u64(1, word, i) % 22];
  for (uint64_t n = 0; at + WORD_MOST + 2 < MADE_UP; n++) {
    const double uniform = random_uniform(2, n, 0);
    const size_t word = (size_t)(uniform * uniform * uniform * uniform * WORDS);
    const size_t length = 1 + random_u64(3, word, 0) % (WORD_MOST - 1);
    memcpy(text + at, words[word], length);
    at += length;
    if (n % 12 == 11) text[at++] = n % 60 == 59 ? '\n' : '.';
    text[at++] = ' ';
  }
  *bytes = at;
  return text;
}

static void run_load(void *context) {
  tokenizer_bench_t *bench = context;
  nn_tokenizer_t *tokenizer;
  TRY(nn_tokenizer_load(bench->path, &tokenizer));
  nn_tokenizer_destroy(tokenizer);
}

static void run_encode(void *context) {
  tokenizer_bench_t *bench = context;
  bench->count = 0;
  for (size_t at = 0; at < bench->bytes; at += bench->piece) {
    const size_t left = bench->bytes - at;
    int64_t count;
    TRY(nn_tokenizer_encode_with(bench->tokenizer, bench->text + at,
                                 left < bench->piece ? left : bench->piece, NULL,
                                 bench->ids + bench->count,
                                 bench->offsets ? bench->offsets + 2 * bench->count : NULL,
                                 bench->capacity - bench->count, &count));
    bench->count += count;
  }
}

static void run_decode(void *context) {
  tokenizer_bench_t *bench = context;
  size_t bytes;
  TRY(nn_tokenizer_decode(bench->tokenizer, bench->ids, bench->count, bench->decoded, bench->room,
                          &bytes));
}

static void measure(const char *name, bench_fn run, tokenizer_bench_t *bench) {
  char note[32];
  double fastest;
  int64_t runs;
  if (!report_wanted("tokenizer", name)) return;
  const double seconds = bench_time(run, bench, bench->seconds, &fastest, &runs);
  snprintf(note, sizeof note, "%.1f MB/s", (double)bench->bytes / seconds * 1e-6);
  report_line("tokenizer", name, seconds, fastest, runs, (bench_work_t){.unit = UNIT_NONE}, note);
}

static void measure_all(tokenizer_bench_t *bench) {
  int64_t *offsets = bench_alloc((size_t)bench->capacity * 2 * sizeof *offsets);
  bench->piece = PIECE;
  measure("encode 8 KiB", run_encode, bench);
  bench->offsets = offsets;
  measure("encode 8 KiB, offsets", run_encode, bench);
  bench->offsets = NULL;
  bench->piece = bench->bytes;
  measure("encode", run_encode, bench);
  run_encode(bench); /* for decode, where the filter leaves encode out */
  bench->room = 8 * bench->bytes;
  bench->decoded = bench_alloc(bench->room);
  measure("decode", run_decode, bench);
  mem_free(bench->decoded);
  mem_free(offsets);
}

void bench_tokenizer(const bench_options_t *options) {
  tokenizer_bench_t bench = {.path = options->tokenizer, .seconds = options->seconds};
  file_map_t map = {0};
  char *made_up = NULL;
  static const char *const names[] = {"load", "encode 8 KiB", "encode 8 KiB, offsets", "encode",
                                      "decode"};
  bool wanted = false;
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    wanted = wanted || report_wanted("tokenizer", names[i]);
  if (!wanted) return;
  if (options->text) {
    TRY(file_map(options->text, &map));
    bench.text = map.data;
    bench.bytes = map.bytes;
  } else {
    bench.text = made_up = make_up(&bench.bytes);
  }
  if (options->tokenizer) {
    TRY(nn_tokenizer_load(options->tokenizer, &bench.tokenizer));
    if (report_wanted("tokenizer", "load"))
      report_run("tokenizer", "load", run_load, &bench, (bench_work_t){.unit = UNIT_NONE});
  } else {
    TRY(nn_tokenizer_create_bytes(&bench.tokenizer));
  }
  bench.capacity = (int64_t)(2 * bench.bytes + 64);
  bench.ids = bench_alloc((size_t)bench.capacity * sizeof *bench.ids);
  if (bench.bytes) measure_all(&bench);
  mem_free(bench.ids);
  mem_free(made_up);
  file_unmap(&map);
  nn_tokenizer_destroy(bench.tokenizer);
}
