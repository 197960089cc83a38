/* Learning a vocabulary from any bytes: it encodes what it has learnt from, byte-level BPE gives
 * every byte back, and what is saved encodes alike. The first byte chooses the kind, the second the
 * size of the vocabulary, the third how often what is learnt must come; lines are texts. */
#include <stdlib.h>
#include <string.h>

#include "text/json_save.h"
#include "text/load.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TEXTS = 64, BYTES = 4096, IDS = 4 * BYTES };

static void demand(int holds) {
  if (!holds) abort();
}

static int64_t encode(const nn_tokenizer_t *tokenizer, const char *text, size_t bytes,
                      int32_t *ids) {
  int64_t count = 0;
  demand(nn_tokenizer_encode(tokenizer, text, bytes, ids, IDS, &count) == NN_OK);
  for (int64_t i = 0; i < count; i++)
    demand(ids[i] >= 0 && ids[i] < nn_tokenizer_vocab_size(tokenizer));
  return count;
}

static void use(const nn_tokenizer_t *tokenizer, bool whole, const char *text, size_t bytes) {
  static int32_t ids[IDS], again[IDS];
  static char decoded[16 * BYTES];
  size_t written;
  const int64_t count = encode(tokenizer, text, bytes, ids);
  demand(nn_tokenizer_decode(tokenizer, ids, count, decoded, sizeof decoded, &written) == NN_OK);
  if (whole) demand(written == bytes && memcmp(decoded, text, bytes) == 0);

  output_t file = {0};
  nn_tokenizer_t *loaded = NULL;
  demand(json_save(&tokenizer->pipeline, &file) == NN_OK);
  demand(tokenizer_load_memory(file.data, file.bytes, "fuzz", &loaded) == NN_OK);
  output_free(&file);
  demand(nn_tokenizer_vocab_size(loaded) == nn_tokenizer_vocab_size(tokenizer));
  demand(encode(loaded, text, bytes, again) == count);
  demand(memcmp(ids, again, (size_t)count * sizeof *ids) == 0);
  nn_tokenizer_destroy(loaded);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char *const specials[] = {"<unk>", "<s>"};
  const char *texts[TEXTS];
  size_t bytes[TEXTS];
  int64_t count = 0;
  if (size < 3 || size > BYTES) return 0;
  const char *text = (const char *)data + 3, *end = (const char *)data + size;
  for (const char *at = text; at < end && count < TEXTS; count++) {
    const char *newline = memchr(at, '\n', (size_t)(end - at));
    texts[count] = at;
    at = newline && count < TEXTS - 1 ? newline + 1 : end;
    bytes[count] = (size_t)(at - texts[count]);
  }
  nn_tokenizer_train_options_t options = {.struct_size = sizeof options};
  options.kind = data[0] & 1 ? NN_TOKENIZER_UNIGRAM : NN_TOKENIZER_BPE;
  options.vocab_size = 258 + 2 * data[1];
  options.min_frequency = 1 + data[2] % 4;
  options.specials = specials, options.special_count = 2;
  nn_tokenizer_t *tokenizer = NULL;
  demand(nn_tokenizer_train(texts, bytes, count, &options, &tokenizer) == NN_OK);
  demand(nn_tokenizer_vocab_size(tokenizer) <= options.vocab_size);
  use(tokenizer, options.kind == NN_TOKENIZER_BPE, text, (size_t)(end - text));
  nn_tokenizer_destroy(tokenizer);
  return 0;
}
