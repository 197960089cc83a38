/* Finding the matches of a pattern: a plain string, a known pattern (scan.h) or a regular
 * expression (PCRE2, compiled for the processor where it can be). */
#ifndef NN_TEXT_MATCHER_H
#define NN_TEXT_MATCHER_H

#include "text/pipeline.h"
#include "text/scan.h"
#include "text/work.h"

typedef struct matcher {
  text_t literal; /* of a plain string */
  scan_fn scan;   /* of a known pattern, or NULL */
  void *code;     /* pcre2_code of any other, or NULL */
} matcher_t;

/* What a regular expression needs beside its pattern while it looks; one per thread. */
typedef struct match_state {
  void *data, *context; /* pcre2_match_data, pcre2_match_context */
} match_state_t;

/* literal is a plain string's memory and must outlive the matcher. NN_ERR_FORMAT: no regular
 * expression; NN_ERR_UNSUPPORTED: one that PCRE2 reads otherwise than Oniguruma. */
nn_status_t matcher_create(const pattern_t *pattern, matcher_t *matcher);
void matcher_free(matcher_t *matcher);

void match_state_free(match_state_t *state);

/* Calls visit with every part of text in order, those that match and those between them, none of
 * them empty but for empty matches. Stops at the first failure and returns it. Bytes that are not
 * UTF-8 count as U+FFFD, for a regular expression as ends of the text that match nothing. */
typedef nn_status_t (*match_visit_fn)(void *user, span_t span, bool match);
nn_status_t matcher_visit(const matcher_t *matcher, match_state_t *state, const char *text,
                          uint32_t bytes, match_visit_fn visit, void *user);

#endif
