#include "text/normalize.h"

#include <utf8proc.h>

#include "text/bytemap.h"
#include "text/unicode.h"

buffer_t *steps_buffer(steps_memory_t *memory, const work_t *work) {
  buffer_t *buffer = &memory->buffer[memory->next];
  if (buffer->data && work->data >= buffer->data && work->data < buffer->data + buffer->capacity)
    buffer = &memory->buffer[memory->next ^= 1];
  buffer->bytes = 0;
  return buffer;
}

/* ---- characters, one by one ------------------------------------------------------------------ */

static uint32_t peek(const edit_t *edit, uint32_t at, uint32_t *bytes) {
  return utf8_decode(edit->from->data + at, edit->from->data + edit->from->bytes, bytes);
}

/* Removes the characters for which drop says so; those left give their place up to the next one
 * kept. */
static void filter(edit_t *edit, bool (*drop)(uint32_t code)) {
  const uint32_t end = edit->from->bytes;
  while (edit->at < end) {
    uint32_t bytes;
    if (drop(peek(edit, edit->at, &bytes))) edit_skip(edit, bytes);
    else edit_copy(edit, bytes);
  }
}

static void map(edit_t *edit, uint32_t (*to)(uint32_t code)) {
  const uint32_t end = edit->from->bytes;
  while (edit->at < end) {
    uint32_t bytes;
    const uint32_t code = peek(edit, edit->at, &bytes), other = to(code);
    if (other == code) edit_copy(edit, bytes);
    else edit_put(edit, other, 0);
  }
}

static void lowercase(edit_t *edit) {
  const uint32_t end = edit->from->bytes;
  while (edit->at < end) {
    uint32_t bytes;
    const uint32_t code = peek(edit, edit->at, &bytes);
    if (code == 0x130) { /* the only capital whose small form is two characters */
      edit_put(edit, 'i', 0);
      edit_put(edit, 0x307, 1);
      continue;
    }
    const uint32_t small = (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
    if (small == code) edit_copy(edit, bytes);
    else edit_put(edit, small, 0);
  }
}

static bool is_mark(uint32_t code) { return (unicode_class(code) & CLASS_MARK) != 0; }
static bool is_nonspacing(uint32_t code) { return (unicode_class(code) & CLASS_NONSPACING) != 0; }

static bool nmt_drops(uint32_t code) {
  return (code >= 1 && code <= 8) || code == 0xB || (code >= 0xE && code <= 0x1F) || code == 0x7F ||
         code == 0x8F || code == 0x9F;
}

static uint32_t nmt_maps(uint32_t code) {
  switch (code) {
    case 0x9: case 0xA: case 0xC: case 0xD: case 0x1680: case 0x200B: case 0x200C: case 0x200D:
    case 0x200E: case 0x200F: case 0x2028: case 0x2029: case 0x2581: case 0xFEFF: case 0xFFFD:
      return ' ';
    default: return code;
  }
}

static bool bert_drops(uint32_t code) {
  if (code == '\t' || code == '\n' || code == '\r') return false;
  return code == 0 || code == UNICODE_REPLACEMENT || (unicode_class(code) & CLASS_OTHER);
}

static uint32_t bert_maps(uint32_t code) {
  return unicode_class(code) & CLASS_SPACE ? ' ' : code;
}

static bool is_chinese(uint32_t code) {
  return (code >= 0x4E00 && code <= 0x9FFF) || (code >= 0x3400 && code <= 0x4DBF) ||
         (code >= 0x20000 && code <= 0x2A6DF) || (code >= 0x2A700 && code <= 0x2B73F) ||
         (code >= 0x2B740 && code <= 0x2B81F) || (code >= 0x2B920 && code <= 0x2CEAF) ||
         (code >= 0xF900 && code <= 0xFAFF) || (code >= 0x2F800 && code <= 0x2FA1F);
}

static void space_chinese(edit_t *edit) {
  while (edit->at < edit->from->bytes) {
    uint32_t bytes;
    const uint32_t code = peek(edit, edit->at, &bytes);
    if (is_chinese(code)) {
      edit_put(edit, ' ', 0);
      edit_put(edit, code, 1);
      edit_put(edit, ' ', 1);
    } else {
      edit_copy(edit, bytes);
    }
  }
}

/* ---- whole texts ----------------------------------------------------------------------------- */

static void strip(const normalizer_step_t *step, const work_t *from, work_t *work) {
  uint32_t begin = 0, end = from->bytes, bytes;
  while (step->left && begin < end &&
         unicode_class(utf8_decode(from->data + begin, from->data + end, &bytes)) & CLASS_SPACE)
    begin += bytes;
  while (step->right && end > begin) {
    const uint32_t last = (uint32_t)utf8_begin(from->data, end, end - 1);
    if (!(unicode_class(utf8_decode(from->data + last, from->data + end, &bytes)) & CLASS_SPACE))
      break;
    end = last;
  }
  *work = (work_t){.data = from->data + begin,
                   .bytes = end - begin,
                   .places = from->places ? from->places + begin : NULL,
                   .base = from->base + begin};
}

typedef struct replacing {
  edit_t *edit;
  text_t content;
} replacing_t;

static nn_status_t replace_part(void *user, span_t span, bool match) {
  const replacing_t *replacing = user;
  edit_t *edit = replacing->edit;
  if (!match) {
    edit_copy(edit, span.end - span.begin);
  } else {
    edit_skip(edit, span.end - span.begin);
    edit_insert(edit, replacing->content);
  }
  return edit->status;
}

static nn_status_t replace(const normalizer_step_t *step, const matcher_t *matcher,
                           match_state_t *state, edit_t *edit) {
  replacing_t replacing = {edit, step->content};
  return matcher_visit(matcher, state, edit->from->data, edit->from->bytes, replace_part,
                       &replacing);
}

typedef void (*edit_fn)(edit_t *edit);

static nn_status_t apply(edit_fn change, bool places, steps_memory_t *memory, work_t *work) {
  buffer_t *to = steps_buffer(memory, work);
  edit_t edit = edit_begin(work, to, places);
  change(&edit);
  return edit_end(&edit, 0, work);
}

static void drop_marks(edit_t *edit) { filter(edit, is_mark); }
static void drop_nonspacing(edit_t *edit) { filter(edit, is_nonspacing); }
static void drop_nmt(edit_t *edit) { filter(edit, nmt_drops); }
static void map_nmt(edit_t *edit) { map(edit, nmt_maps); }
static void drop_bert(edit_t *edit) { filter(edit, bert_drops); }
static void map_bert(edit_t *edit) { map(edit, bert_maps); }

void normalize_bytes(edit_t *edit) {
  const work_t *from = edit->from;
  while (edit->at < from->bytes) {
    uint32_t bytes;
    const uint32_t at = edit->at;
    peek(edit, at, &bytes);
    for (uint32_t i = 0; i < bytes; i++)
      edit_put(edit, bytemap_code((unsigned char)from->data[at + i]), i ? 1 : 0);
  }
}

static void replace_malformed(edit_t *edit) {
  const work_t *from = edit->from;
  while (edit->at < from->bytes) {
    uint32_t bytes;
    edit_copy(edit, (uint32_t)utf8_valid(from->data + edit->at, from->bytes - edit->at));
    if (edit->at >= from->bytes || edit->status != NN_OK) return;
    peek(edit, edit->at, &bytes);
    edit_put(edit, UNICODE_REPLACEMENT, 0);
  }
}

nn_status_t normalize_utf8(bool places, steps_memory_t *memory, work_t *work) {
  if (utf8_valid(work->data, work->bytes) == work->bytes) return NN_OK;
  return apply(replace_malformed, places, memory, work);
}

static nn_status_t form(int32_t kind, bool places, steps_memory_t *memory, work_t *work) {
  if (normalize_form_stable(kind, work->data, work->bytes)) return NN_OK;
  buffer_t *to = steps_buffer(memory, work);
  edit_t edit = edit_begin(work, to, places);
  normalize_form(kind, &edit);
  return edit_end(&edit, 0, work);
}

static nn_status_t bert(const normalizer_step_t *step, bool places, steps_memory_t *memory,
                        work_t *work) {
  if (step->clean_text) {
    STATUS_TRY(apply(drop_bert, places, memory, work));
    STATUS_TRY(apply(map_bert, places, memory, work));
  }
  if (step->chinese_chars) STATUS_TRY(apply(space_chinese, places, memory, work));
  if (step->strip_accents) {
    STATUS_TRY(form(NORMALIZE_NFD, places, memory, work));
    STATUS_TRY(apply(drop_nonspacing, places, memory, work));
  }
  return step->lowercase ? apply(lowercase, places, memory, work) : NN_OK;
}

/* The steps that are one edit of the whole. */
static nn_status_t edit_step(const normalizer_step_t *step, const matcher_t *matcher, bool places,
                             steps_memory_t *memory, work_t *work) {
  const work_t from = *work;
  edit_t edit = edit_begin(&from, steps_buffer(memory, work), places);
  if (step->kind == NORMALIZE_REPLACE) {
    STATUS_TRY(replace(step, matcher, &memory->match, &edit));
  } else if (step->kind == NORMALIZE_PREPEND) {
    edit_prepend(&edit, step->content);
    edit_copy(&edit, from.bytes - edit.at);
  } else if (step->kind == NORMALIZE_APPEND) {
    edit_copy(&edit, from.bytes);
    edit_insert(&edit, step->content);
  } else if (step->kind == NORMALIZE_SENTENCEPIECE) {
    sentencepiece_normalize(step, &edit);
  } else {
    charsmap_apply(step->content, step->graphemes, &edit);
  }
  return edit_end(&edit, 0, work);
}

nn_status_t normalize_step(const normalizer_step_t *step, const matcher_t *matcher, bool places,
                           steps_memory_t *memory, work_t *work) {
  if (work->bytes == 0) return NN_OK;
  switch (step->kind) {
    case NORMALIZE_LOWERCASE: return apply(lowercase, places, memory, work);
    case NORMALIZE_STRIP_ACCENTS: return apply(drop_marks, places, memory, work);
    case NORMALIZE_STRIP: {
      const work_t from = *work;
      strip(step, &from, work);
      return NN_OK;
    }
    case NORMALIZE_NMT:
      STATUS_TRY(apply(drop_nmt, places, memory, work));
      return apply(map_nmt, places, memory, work);
    case NORMALIZE_BERT: return bert(step, places, memory, work);
    case NORMALIZE_BYTE_LEVEL: return apply(normalize_bytes, places, memory, work);
    case NORMALIZE_REPLACE: case NORMALIZE_PREPEND: case NORMALIZE_APPEND: case NORMALIZE_CHARSMAP:
    case NORMALIZE_SENTENCEPIECE:
      return edit_step(step, matcher, places, memory, work);
    default: return form(step->kind, places, memory, work);
  }
}
