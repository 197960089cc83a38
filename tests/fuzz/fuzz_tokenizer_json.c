/* tokenizer.json and text: what is accepted must encode any text to ids of its vocabulary, in order
 * and within the text, decode them, and give whole characters id by id. The file ends at the first
 * NUL; the text follows. */
#include <stdlib.h>
#include <string.h>

#include "text/load.h"
#include "text/unicode.h"

enum { TEXT_MOST = 2048, IDS = 1 << 14 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void demand(int holds) {
  if (!holds) abort();
}

/* Id by id; a status only where a pattern of the decoder takes too long or memory ends. */
static void stream(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t count) {
  static char text[1 << 16];
  nn_decode_stream_t state = {.struct_size = sizeof state, .keep_special = 1};
  size_t bytes;
  for (int64_t i = 1; i <= count; i++) {
    if (nn_tokenizer_decode_next(tokenizer, &state, ids, i, i == count, text, sizeof text,
                                 &bytes) != NN_OK)
      return;
    demand(utf8_valid(text, bytes) == bytes);
  }
}

static void use(const nn_tokenizer_t *tokenizer, const char *text, size_t bytes) {
  static int32_t ids[IDS], again[IDS];
  static int64_t offsets[2 * IDS];
  static char decoded[1 << 20];
  nn_encode_options_t all = {sizeof all, .add_special = 1, .parse_special = 1};
  int64_t count, second;
  size_t written;
  if (nn_tokenizer_encode_with(tokenizer, text, bytes, &all, ids, offsets, IDS, &count) != NN_OK)
    return;
  for (int64_t i = 0; i < count; i++) {
    demand(ids[i] >= 0 && ids[i] < nn_tokenizer_vocab_size(tokenizer));
    demand(offsets[2 * i] >= 0 && offsets[2 * i] <= offsets[2 * i + 1] &&
           (size_t)offsets[2 * i + 1] <= bytes);
  }
  demand(nn_tokenizer_encode_with(tokenizer, text, bytes, &all, again, NULL, IDS, &second) ==
         NN_OK);
  demand(second == count && memcmp(ids, again, (size_t)count * sizeof *ids) == 0);
  nn_tokenizer_decode(tokenizer, ids, count, decoded, sizeof decoded, &written);
  stream(tokenizer, ids, count < 64 ? count : 64);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const uint8_t *end = size ? memchr(data, 0, size) : NULL;
  const size_t file = end ? (size_t)(end - data) : size;
  const size_t rest = end ? size - file - 1 : 0;
  nn_tokenizer_t *tokenizer;
  if (tokenizer_load_memory(data, file, "fuzz", &tokenizer) != NN_OK) return 0;
  use(tokenizer, end ? (const char *)end + 1 : "", rest < TEXT_MOST ? rest : TEXT_MOST);
  nn_tokenizer_destroy(tokenizer);
  return 0;
}
