/* Added tokens: strings that are cut out of a text. */
#ifndef NN_TEXT_ADDED_H
#define NN_TEXT_ADDED_H

#include "text/pipeline.h"
#include "text/trie.h"
#include "text/work.h"

typedef struct added_set {
  trie_t trie;     /* values: places in pipeline->added */
  bool first[256]; /* bytes that one of them begins with */
  bool empty;
} added_set_t;

/* entries are sorted. */
nn_status_t added_set_create(trie_entry_t *entries, size_t count, added_set_t *set);
void added_set_free(added_set_t *set);

/* Where the search in one text stands; begin with `from` and `given` 0. */
typedef struct added_search {
  const added_set_t *set;
  const added_token_t *tokens;
  bool special; /* special tokens are cut out too */
  const char *text;
  uint32_t bytes;
  uint32_t from;  /* where to look next */
  uint32_t given; /* the end of what was cut out last */
} added_search_t;

/* The next token that is cut out, NULL: no more. match: it and the white space that it takes. */
const added_token_t *added_next(added_search_t *search, span_t *match);

#endif
