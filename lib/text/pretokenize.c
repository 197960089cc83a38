#include "text/pretokenize.h"

#include "base/mem.h"
#include "text/list.h"
#include "text/unicode.h"

void spans_free(spans_t *spans) {
  mem_free(spans->list[0]);
  mem_free(spans->list[1]);
  *spans = (spans_t){0};
}

/* What a step reads and writes. */
typedef struct cutter {
  const pre_step_t *step;
  spans_t *spans;
  const span_t *from;  /* [from_count], what the steps before made */
  size_t from_count;
  size_t first_of_part; /* spans before this one belong to earlier parts */
  uint32_t base;        /* of the part being cut */
  bool was_match;
} cutter_t;

static nn_status_t put(cutter_t *cutter, span_t span) {
  spans_t *spans = cutter->spans;
  STATUS_TRY(LIST_GROW(spans->list[spans->now], spans->count, spans->capacity[spans->now]));
  spans->list[spans->now][spans->count++] = span;
  return NN_OK;
}

/* The span put last, if the part has one. */
static span_t *last(const cutter_t *cutter) {
  const spans_t *spans = cutter->spans;
  return spans->count > cutter->first_of_part ? &spans->list[spans->now][spans->count - 1] : NULL;
}

/* One match, or what lies between two, by a SPLIT_ behavior. */
static nn_status_t cut(cutter_t *cutter, int32_t behavior, span_t span, bool match) {
  span_t *before = last(cutter);
  const bool was_match = cutter->was_match;
  cutter->was_match = match;
  span.begin += cutter->base;
  span.end += cutter->base;
  switch (behavior) {
    case SPLIT_REMOVED: return match ? NN_OK : put(cutter, span);
    case SPLIT_CONTIGUOUS:
      if (!before || match != was_match) return put(cutter, span);
      break;
    case SPLIT_MERGED_WITH_PREVIOUS:
      if (!before || !match || was_match) return put(cutter, span);
      break;
    case SPLIT_MERGED_WITH_NEXT:
      if (!before || match || !was_match) return put(cutter, span);
      break;
    default: return put(cutter, span);
  }
  before->end = span.end;
  return NN_OK;
}

static nn_status_t visit_split(void *user, span_t span, bool match) {
  cutter_t *cutter = user;
  return cut(cutter, cutter->step->behavior, span, match != cutter->step->invert);
}

static nn_status_t visit_isolated(void *user, span_t span, bool match) {
  return cut(user, SPLIT_ISOLATED, span, match);
}

/* ---- cutting by the class of characters ------------------------------------------------------ */

/* ASCII's symbols count as punctuation. */
static bool is_punctuation(uint32_t code) {
  const uint32_t class = unicode_class(code);
  return (class & CLASS_PUNCTUATION) || (code < 128 && (class & CLASS_SYMBOL));
}
static bool is_space(uint32_t code) { return (unicode_class(code) & CLASS_SPACE) != 0; }
static bool is_number(uint32_t code) { return (unicode_class(code) & CLASS_NUMBER) != 0; }

/* As if every character for which is says so were a match. */
static nn_status_t cut_by(cutter_t *cutter, const char *text, uint32_t bytes,
                          bool (*is)(uint32_t code), int32_t behavior) {
  uint32_t given = 0, taken;
  for (uint32_t at = 0; at < bytes; at += taken) {
    if (!is(utf8_decode(text + at, text + bytes, &taken))) continue;
    if (given < at) STATUS_TRY(cut(cutter, behavior, (span_t){given, at}, false));
    STATUS_TRY(cut(cutter, behavior, (span_t){at, at + taken}, true));
    given = at + taken;
  }
  return given < bytes ? cut(cutter, behavior, (span_t){given, bytes}, false) : NN_OK;
}

/* \w+|[^\w\s]+ */
static nn_status_t cut_words(cutter_t *cutter, const char *text, uint32_t bytes) {
  uint32_t begin = 0, taken, now = CLASS_SPACE;
  for (uint32_t at = 0; at < bytes; at += taken) {
    const uint32_t class = unicode_class(utf8_decode(text + at, text + bytes, &taken));
    const uint32_t kind = class & CLASS_WORD ? CLASS_WORD : class & CLASS_SPACE;
    if (kind == now) continue;
    if (now != CLASS_SPACE) STATUS_TRY(cut(cutter, SPLIT_ISOLATED, (span_t){begin, at}, false));
    begin = at;
    now = kind;
  }
  return now != CLASS_SPACE ? cut(cutter, SPLIT_ISOLATED, (span_t){begin, bytes}, false) : NN_OK;
}

static nn_status_t cut_bert(cutter_t *cutter, const char *text, uint32_t bytes) {
  uint32_t begin = 0, taken;
  for (uint32_t at = 0; at < bytes; at += taken) {
    const uint32_t code = utf8_decode(text + at, text + bytes, &taken);
    const bool space = is_space(code);
    if (!space && !is_punctuation(code)) continue;
    if (begin < at) STATUS_TRY(cut(cutter, SPLIT_ISOLATED, (span_t){begin, at}, false));
    if (!space) STATUS_TRY(cut(cutter, SPLIT_ISOLATED, (span_t){at, at + taken}, true));
    begin = at + taken;
  }
  return begin < bytes ? cut(cutter, SPLIT_ISOLATED, (span_t){begin, bytes}, false) : NN_OK;
}

static nn_status_t cut_delimiter(cutter_t *cutter, const char *text, uint32_t bytes) {
  const matcher_t delimiter = {.literal = cutter->step->content};
  const pre_step_t removed = {.behavior = SPLIT_REMOVED}, *step = cutter->step;
  match_state_t none = {0};
  cutter->step = &removed;
  nn_status_t status = matcher_visit(&delimiter, &none, text, bytes, visit_split, cutter);
  cutter->step = step;
  return status;
}

static nn_status_t cut_lengths(cutter_t *cutter, const char *text, uint32_t bytes) {
  uint32_t begin = 0, taken;
  int64_t count = 0;
  for (uint32_t at = 0; at < bytes; at += taken) {
    utf8_decode(text + at, text + bytes, &taken);
    if (++count < cutter->step->length && at + taken < bytes) continue;
    STATUS_TRY(cut(cutter, SPLIT_ISOLATED, (span_t){begin, at + taken}, false));
    begin = at + taken;
    count = 0;
  }
  return NN_OK;
}

static nn_status_t cut_part(cutter_t *cutter, const matcher_t *matcher, match_state_t *state,
                            const char *text, uint32_t bytes) {
  switch (cutter->step->kind) {
    case PRE_SPLIT: return matcher_visit(matcher, state, text, bytes, visit_split, cutter);
    case PRE_WHITESPACE: return cut_words(cutter, text, bytes);
    case PRE_WHITESPACE_SPLIT: return cut_by(cutter, text, bytes, is_space, SPLIT_REMOVED);
    case PRE_PUNCTUATION:
      return cut_by(cutter, text, bytes, is_punctuation, cutter->step->behavior);
    case PRE_DIGITS:
      return cut_by(cutter, text, bytes, is_number,
                    cutter->step->single ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS);
    case PRE_BERT: return cut_bert(cutter, text, bytes);
    case PRE_DELIMITER: return cut_delimiter(cutter, text, bytes);
    case PRE_FIXED_LENGTH: return cut_lengths(cutter, text, bytes);
    case PRE_METASPACE: {
      const matcher_t mark = {.literal = cutter->step->content};
      const pre_step_t next = {.behavior = SPLIT_MERGED_WITH_NEXT}, *step = cutter->step;
      cutter->step = &next;
      nn_status_t status = matcher_visit(&mark, state, text, bytes, visit_split, cutter);
      cutter->step = step;
      return status;
    }
    default: return matcher_visit(matcher, state, text, bytes, visit_isolated, cutter);
  }
}

/* Every part is cut on its own; empty spans, which cut neighbours apart, are left out. */
static nn_status_t cut_parts(cutter_t *cutter, const matcher_t *matcher, match_state_t *state,
                             const work_t *work) {
  spans_t *spans = cutter->spans;
  for (size_t i = 0; i < cutter->from_count; i++) {
    const span_t part = cutter->from[i];
    cutter->first_of_part = spans->count;
    cutter->base = part.begin;
    cutter->was_match = false;
    STATUS_TRY(cut_part(cutter, matcher, state, work->data + part.begin, part.end - part.begin));
    size_t kept = cutter->first_of_part;
    span_t *list = spans->list[spans->now];
    for (size_t at = kept; at < spans->count; at++)
      if (list[at].begin < list[at].end) list[kept++] = list[at];
    spans->count = kept;
  }
  return NN_OK;
}

/* ---- steps that change the text -------------------------------------------------------------- */

static bool begins_with(const work_t *part, text_t text) {
  return part->bytes >= text.bytes && memcmp(part->data, text.data, text.bytes) == 0;
}

/* Metaspace: spaces become the mark, and one may stand in front. */
static void mark_spaces(edit_t *edit, text_t mark, bool front) {
  const work_t *from = edit->from;
  if (front && from->bytes && from->data[0] != ' ' && !begins_with(from, mark))
    edit_prepend(edit, mark);
  while (edit->at < from->bytes && edit->status == NN_OK) {
    const char *begin = from->data + edit->at;
    const char *space = memchr(begin, ' ', from->bytes - edit->at);
    edit_copy(edit, space ? (uint32_t)(space - begin) : from->bytes - edit->at);
    if (!space) return;
    edit_skip(edit, 1);
    edit_insert(edit, mark);
  }
}

/* What a step makes of one part: with `map` the byte map's characters, else what it puts in. */
static void change_part(const pre_step_t *step, bool map, bool first, edit_t *edit) {
  const work_t *from = edit->from;
  if (map) {
    normalize_bytes(edit);
  } else if (step->kind == PRE_METASPACE) {
    mark_spaces(edit, step->content,
                step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && first));
  } else {
    if (from->bytes && from->data[0] != ' ') edit_prepend(edit, TEXT(" "));
    edit_copy(edit, from->bytes - edit->at);
  }
}

/* Writes every part anew, changed; the spans become those of the parts in the new text. */
static nn_status_t change_parts(const pre_step_t *step, bool map, bool places, bool first,
                                steps_memory_t *memory, work_t *work, spans_t *spans) {
  buffer_t *to = steps_buffer(memory, work);
  for (size_t i = 0; i < spans->count; i++) {
    span_t *span = &spans->list[spans->now][i];
    const work_t part = {.data = work->data + span->begin,
                         .bytes = span->end - span->begin,
                         .places = work->places ? work->places + span->begin : NULL,
                         .base = work->base + span->begin};
    const bool at_first = part.places ? part.places[0].begin == 0 : first && span->begin == 0;
    edit_t edit = edit_begin(&part, to, places);
    const size_t start = to->bytes;
    change_part(step, map, at_first, &edit);
    STATUS_TRY(edit.status);
    *span = (span_t){(uint32_t)start, (uint32_t)to->bytes};
  }
  *work = (work_t){.data = to->data, .bytes = (uint32_t)to->bytes,
                   .places = places ? to->places : NULL, .base = work->base};
  return NN_OK;
}

static bool changes(const pre_step_t *step) {
  return step->kind == PRE_METASPACE || (step->kind == PRE_BYTE_LEVEL && step->prefix_space);
}

nn_status_t pretokenize(const pretokenize_t *pre, bool places, bool first, steps_memory_t *memory,
                        work_t *work, spans_t *spans) {
  cutter_t cutter = {.spans = spans};
  spans->count = 0;
  if (work->bytes == 0) return NN_OK;
  STATUS_TRY(put(&cutter, (span_t){0, work->bytes}));
  for (size_t i = 0; i < pre->count; i++) {
    const pre_step_t *step = &pre->steps[i];
    const bool bytes = step->kind == PRE_BYTE_LEVEL;
    if (changes(step)) STATUS_TRY(change_parts(step, false, places, first, memory, work, spans));
    if ((!bytes && step->kind != PRE_METASPACE) || step->split) {
      cutter.step = step;
      cutter.from = spans->list[spans->now];
      cutter.from_count = spans->count;
      spans->now ^= 1;
      spans->count = 0;
      STATUS_TRY(cut_parts(&cutter, &pre->matchers[i], &memory->match, work));
    }
    if (bytes && pre->maps_bytes)
      STATUS_TRY(change_parts(step, true, places, first, memory, work, spans));
  }
  return NN_OK;
}
