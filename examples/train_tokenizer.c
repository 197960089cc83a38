/* Learns a vocabulary of 32,000 entries from text files: pad, unk, bos and eos first, as a
 * SentencePiece tokenizer has them, and the rest by Unigram, or by byte-level BPE. Writes
 * tokenizer.json, which nn_tokenizer_load() and the tokenizers package read. */
#include <stdio.h>
#include <string.h>

#include "moenn.h"

static const char *const specials[] = {"<pad>", "<unk>", "<s>", "</s>"};

static int usage(FILE *to) {
  fprintf(to, "usage: train_tokenizer [--bpe] OUT TEXT...\n"
              "Learns up to 32,000 ids from text files: Unigram, or with --bpe byte-level BPE.\n"
              "OUT: a file to write, or a folder that is there\n");
  return to == stderr ? 2 : 0;
}

static int failed(void) {
  fprintf(stderr, "train_tokenizer: %s\n", nn_last_error());
  return 1;
}

/* What the tokenizer makes of a sentence. */
static int show(const nn_tokenizer_t *tokenizer, const char *text) {
  int32_t ids[64];
  int64_t count;
  const char *token;
  if (nn_tokenizer_encode(tokenizer, text, strlen(text), ids, 64, &count)) return failed();
  printf("%s:", text);
  for (int64_t i = 0; i < count; i++) {
    if (nn_tokenizer_token(tokenizer, ids[i], &token, NULL)) return failed();
    printf(" %s", token);
  }
  printf("\n");
  return 0;
}

int main(int argc, char **argv) {
  nn_tokenizer_train_options_t options = {.struct_size = sizeof options,
                                          .kind = NN_TOKENIZER_UNIGRAM,
                                          .vocab_size = 32000,
                                          .specials = specials,
                                          .special_count = 4};
  nn_tokenizer_t *tokenizer;
  int first = 1;
  if (argc > 1 && strcmp(argv[1], "--bpe") == 0) {
    options.kind = NN_TOKENIZER_BPE;
    first = 2;
  }
  if (argc > 1 && strcmp(argv[1], "--help") == 0) return usage(stdout);
  if (argc - first < 2 || argv[first][0] == '-') return usage(stderr);
  const char *const *texts = (const char *const *)argv + first + 1;
  if (nn_tokenizer_train_files(texts, argc - first - 1, &options, &tokenizer)) return failed();
  if (nn_tokenizer_save(tokenizer, argv[first])) return failed();
  printf("%lld ids in %s\n", (long long)nn_tokenizer_vocab_size(tokenizer), argv[first]);
  const int code = show(tokenizer, "Once upon a time there was a tokenizer");
  nn_tokenizer_destroy(tokenizer);
  return code;
}
