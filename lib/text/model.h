/* The models: from one word to ids. */
#ifndef NN_TEXT_MODEL_H
#define NN_TEXT_MODEL_H

#include "text/pipeline.h"
#include "text/trie.h"
#include "text/work.h"

/* The tokens of a word, and the bytes of it that each stands for. */
typedef struct pieces {
  int32_t *ids;
  span_t *spans;
  size_t count, id_capacity, span_capacity;
} pieces_t;

nn_status_t pieces_add(pieces_t *pieces, int32_t id, span_t span);

typedef struct pair_slot {
  int32_t left, right; /* left -1: the slot is empty */
  uint32_t rank;
  int32_t result;
} pair_slot_t;

/* What a model looks up. Made from the pipeline, which it refers to. */
typedef struct vocabulary {
  const model_t *model;
  bool bytes; /* BPE: words are raw bytes, and so are the texts of `index` */
  text_index_t index; /* bytes: token by raw bytes; else unused, model->index serves */
  char *raw;          /* the memory of its strings */
  int32_t byte_ids[256];  /* bytes: of each byte. Else: of <0xNN>, -1: none */
  int32_t ascii_ids[128]; /* BPE on characters without prefix and suffix; -1: none */
  pair_slot_t *pairs;     /* BPE: [pair_mask + 1] */
  size_t pair_mask;
  bool cut_at_mark; /* BPE on characters: no merge joins U+2581 to what stands before it */
  trie_t trie;            /* Unigram, WordPiece: of the tokens; values: places in model->tokens */
  uint32_t continuing;    /* WordPiece: the node that `prefix` leads to, 0: none */
  double unk_score;       /* Unigram */
  uint32_t longest;       /* Unigram: bytes of the longest token */
} vocabulary_t;

/* bytes: as above; the caller knows by vocabulary_has_bytes. */
nn_status_t vocabulary_create(const model_t *model, bool bytes, vocabulary_t *vocabulary);
void vocabulary_free(vocabulary_t *vocabulary);

/* True when every byte's character of the byte map is a token, so that words may be raw bytes. */
bool vocabulary_has_bytes(const model_t *model);

/* Adds a part that is no token: its bytes, where the model has them, or unk. */
nn_status_t pieces_add_unknown(const vocabulary_t *vocabulary, pieces_t *pieces, text_t word,
                               span_t part);

/* Memory of one thread's encoding, kept from word to word. */
typedef struct model_memory {
  pieces_t pieces; /* of the word last encoded */
  struct symbol *symbols;
  uint64_t *heap;
  struct arc *arcs;
  size_t symbol_capacity, heap_capacity, heap_count, arc_capacity;
  buffer_t decorated;
} model_memory_t;

void model_memory_free(model_memory_t *memory);

/* The word's tokens, in memory->pieces. */
nn_status_t model_encode(const vocabulary_t *vocabulary, model_memory_t *memory, text_t word);

/* The three that are more than a look-up (bpe.c, unigram.c, wordpiece.c). */
nn_status_t bpe_create(vocabulary_t *vocabulary);
nn_status_t bpe_encode(const vocabulary_t *vocabulary, model_memory_t *memory, text_t word);
nn_status_t unigram_encode(const vocabulary_t *vocabulary, model_memory_t *memory, text_t word);
nn_status_t wordpiece_encode(const vocabulary_t *vocabulary, model_memory_t *memory, text_t word);

#endif
