/* SentencePiece models (.model): what the protobuf message ModelProto says, checked as a file.
 * Fields that are not named here are skipped. */
#ifndef NN_TEXT_SENTENCEPIECE_FILE_H
#define NN_TEXT_SENTENCEPIECE_FILE_H

#include <stdbool.h>

#include "text/index.h"

/* Types of pieces, as the file numbers them. GGUF files use the same. */
enum {
  SP_NORMAL = 1,
  SP_UNKNOWN = 2,
  SP_CONTROL = 3,
  SP_USER_DEFINED = 4,
  SP_UNUSED = 5,
  SP_BYTE = 6
};

enum { SP_MODEL_UNIGRAM = 1, SP_MODEL_BPE = 2, SP_MODEL_WORD = 3, SP_MODEL_CHAR = 4 };

typedef struct sp_piece {
  text_t text; /* not empty */
  float score;     /* finite */
  int32_t type;    /* SP_NORMAL .. SP_BYTE */
} sp_piece_t;

/* All texts are inside the file. */
typedef struct sp_file {
  sp_piece_t *pieces; /* [count], by id */
  int64_t count;      /* at least 1 */
  int32_t model_type;
  bool byte_fallback, whitespace_as_suffix;
  bool add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
  text_t bos_piece, eos_piece, pad_piece; /* of pieces that need not be there */
  text_t unk_surface;
  text_t charsmap; /* empty: every character stands for itself */
} sp_file_t;

/* Reads a file in memory, which must outlive it. */
nn_status_t sp_file_parse(const void *data, size_t bytes, sp_file_t *file);
void sp_file_free(sp_file_t *file);

#endif
