/* The normalizer's steps. */
#ifndef NN_TEXT_NORMALIZE_H
#define NN_TEXT_NORMALIZE_H

#include "text/matcher.h"

/* Two buffers that steps write to in turn. */
typedef struct steps_memory {
  buffer_t buffer[2];
  int next;
  match_state_t match;
} steps_memory_t;

/* The buffer that holds nothing of work, emptied. */
buffer_t *steps_buffer(steps_memory_t *memory, const work_t *work);

/* Applies one step: work becomes the result, in memory, or stays where it is if nothing changed.
 * matcher: of step->pattern. */
nn_status_t normalize_step(const normalizer_step_t *step, const matcher_t *matcher, bool places,
                           steps_memory_t *memory, work_t *work);

/* Malformed bytes become U+FFFD. */
nn_status_t normalize_utf8(bool places, steps_memory_t *memory, work_t *work);

/* Writes every byte as its character of the byte map. */
void normalize_bytes(edit_t *edit);

/* Normal forms (forms.c), bytes that are not UTF-8 left as they are; and Charsmap (charsmap.c). */
void normalize_form(int32_t kind, edit_t *edit);
nn_status_t charsmap_check(text_t map);
void charsmap_apply(text_t map, bool graphemes, edit_t *edit);
/* The replacement for the longest string of a checked map that text begins with, and that string's
 * bytes, 0: there is none. */
uint32_t charsmap_find(text_t map, const char *text, uint32_t bytes, text_t *replacement);

/* NORMALIZE_SENTENCEPIECE (sentencepiece_normalize.c). */
void sentencepiece_normalize(const normalizer_step_t *step, edit_t *edit);

/* True when the form leaves text as it is, found by a look at each character. */
bool normalize_form_stable(int32_t kind, const char *text, uint32_t bytes);

#endif
