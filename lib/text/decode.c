/* Decoding: the tokens' texts go through the decoder's steps, each of which reads all of them and
 * writes all of them anew. */
#include "text/bytemap.h"
#include "text/list.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

typedef struct step_context {
  const decoder_step_t *step;
  const matcher_t *matcher;
  match_state_t *match;
  bool open; /* see tokenizer_decode */
} step_context_t;

static text_t text_at(const token_texts_t *texts, size_t i) {
  const size_t begin = i ? texts->ends[i - 1] : 0, bytes = texts->ends[i] - begin;
  return (text_t){bytes ? texts->text.data + begin : "", bytes}; /* of no text there is no memory */
}

/* Ends a token's text, which was written to to->text. */
static nn_status_t end_token(token_texts_t *to) {
  STATUS_TRY(LIST_GROW(to->ends, to->count, to->capacity));
  to->ends[to->count++] = to->text.bytes;
  return NN_OK;
}

static nn_status_t add_text(token_texts_t *to, text_t text) {
  return buffer_add(&to->text, text.data, text.bytes);
}

static nn_status_t add_token(token_texts_t *to, text_t text) {
  STATUS_TRY(add_text(to, text));
  return end_token(to);
}

/* ---- steps that change each token ------------------------------------------------------------ */

/* Every occurrence of `from` becomes `other`; from is not empty. */
static nn_status_t add_replaced(token_texts_t *to, text_t text, text_t from, text_t other) {
  const char *at = text.data, *end = text.data + text.bytes, *found;
  while ((size_t)(end - at) >= from.bytes &&
         (found = memchr(at, from.data[0], (size_t)(end - at) - from.bytes + 1)) != NULL) {
    const bool match = memcmp(found, from.data, from.bytes) == 0;
    STATUS_TRY(add_text(to, (text_t){at, (size_t)(found - at)}));
    STATUS_TRY(add_text(to, match ? other : (text_t){found, 1}));
    at = found + (match ? from.bytes : 1);
  }
  return add_text(to, (text_t){at, (size_t)(end - at)});
}

/* The English clean-up that goes with WordPiece. */
static nn_status_t cleanup(token_texts_t *to, size_t begin) {
  static const struct {
    text_t from, other;
  } rules[] = {
      {{" .", 2}, {".", 1}},     {{" ?", 2}, {"?", 1}},         {{" !", 2}, {"!", 1}},
      {{" ,", 2}, {",", 1}},     {{" ' ", 3}, {"'", 1}},        {{" n't", 4}, {"n't", 3}},
      {{" 'm", 3}, {"'m", 2}},   {{" do not", 7}, {" don't", 6}}, {{" 's", 3}, {"'s", 2}},
      {{" 've", 4}, {"'ve", 3}}, {{" 're", 4}, {"'re", 3}},
  };
  for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
    /* the result is written behind the text, which cannot grow, and moved over it */
    const size_t bytes = to->text.bytes - begin;
    STATUS_TRY(buffer_room(&to->text, 2 * bytes + 1));
    STATUS_TRY(add_replaced(to, (text_t){to->text.data + begin, bytes}, rules[i].from,
                            rules[i].other));
    const size_t after = to->text.bytes - begin - bytes;
    memmove(to->text.data + begin, to->text.data + begin + bytes, after);
    to->text.bytes = begin + after;
  }
  return NN_OK;
}

static nn_status_t step_metaspace(const step_context_t *context, const token_texts_t *from,
                                  token_texts_t *to) {
  const decoder_step_t *step = context->step;
  for (size_t i = 0; i < from->count; i++) {
    const bool nothing = i == 0 && step->prepend != PREPEND_NEVER;
    STATUS_TRY(add_replaced(to, text_at(from, i), step->content, nothing ? TEXT("") : TEXT(" ")));
    STATUS_TRY(end_token(to));
  }
  return NN_OK;
}

static nn_status_t step_strip(const step_context_t *context, const token_texts_t *from,
                              token_texts_t *to) {
  const decoder_step_t *step = context->step;
  const text_t mark = step->content;
  for (size_t i = 0; i < from->count; i++) {
    text_t text = text_at(from, i);
    for (int64_t n = 0; n < step->start && mark.bytes && text.bytes >= mark.bytes &&
                        memcmp(text.data, mark.data, mark.bytes) == 0; n++) {
      text.data += mark.bytes;
      text.bytes -= mark.bytes;
    }
    for (int64_t n = 0; n < step->stop && mark.bytes && text.bytes >= mark.bytes &&
                        memcmp(text.data + text.bytes - mark.bytes, mark.data, mark.bytes) == 0;
         n++)
      text.bytes -= mark.bytes;
    STATUS_TRY(add_token(to, text));
  }
  return NN_OK;
}

typedef struct replacing {
  token_texts_t *to;
  text_t text, content;
} replacing_t;

static nn_status_t replace_part(void *user, span_t span, bool match) {
  const replacing_t *replacing = user;
  if (match) return add_text(replacing->to, replacing->content);
  return add_text(replacing->to,
                  (text_t){replacing->text.data + span.begin, span.end - span.begin});
}

static nn_status_t step_replace(const step_context_t *context, const token_texts_t *from,
                                token_texts_t *to) {
  for (size_t i = 0; i < from->count; i++) {
    replacing_t replacing = {to, text_at(from, i), context->step->content};
    if (replacing.text.bytes > UINT32_MAX)
      return status_fail(NN_ERR_UNSUPPORTED, "more than 4 GiB of text to decode");
    STATUS_TRY(matcher_visit(context->matcher, context->match, replacing.text.data,
                             (uint32_t)replacing.text.bytes, replace_part, &replacing));
    STATUS_TRY(end_token(to));
  }
  return NN_OK;
}

static nn_status_t step_wordpiece(const step_context_t *context, const token_texts_t *from,
                                  token_texts_t *to) {
  const text_t prefix = context->step->content;
  for (size_t i = 0; i < from->count; i++) {
    const size_t begin = to->text.bytes;
    text_t text = text_at(from, i);
    if (i > 0 && text.bytes >= prefix.bytes && memcmp(text.data, prefix.data, prefix.bytes) == 0) {
      text.data += prefix.bytes;
      text.bytes -= prefix.bytes;
    } else if (i > 0) {
      STATUS_TRY(add_text(to, TEXT(" ")));
    }
    STATUS_TRY(add_text(to, text));
    if (context->step->cleanup) STATUS_TRY(cleanup(to, begin));
    STATUS_TRY(end_token(to));
  }
  return NN_OK;
}

static nn_status_t step_bpe(const step_context_t *context, const token_texts_t *from,
                            token_texts_t *to) {
  for (size_t i = 0; i < from->count; i++) {
    const text_t text = text_at(from, i), suffix = context->step->content;
    if (suffix.bytes)
      STATUS_TRY(add_replaced(to, text, suffix, i + 1 < from->count ? TEXT(" ") : TEXT("")));
    else
      STATUS_TRY(add_text(to, text));
    STATUS_TRY(end_token(to));
  }
  return NN_OK;
}

static nn_status_t step_ctc(const step_context_t *context, const token_texts_t *from,
                            token_texts_t *to) {
  const decoder_step_t *step = context->step;
  for (size_t i = 0; i < from->count; i++) {
    const text_t text = text_at(from, i);
    const size_t begin = to->text.bytes;
    if (i > 0 && text_equal(text, text_at(from, i - 1))) continue;
    if (step->pattern.text.bytes)
      STATUS_TRY(add_replaced(to, text, step->pattern.text, TEXT("")));
    else
      STATUS_TRY(add_text(to, text));
    if (step->cleanup) {
      STATUS_TRY(cleanup(to, begin));
      const size_t bytes = to->text.bytes - begin;
      if (step->content.bytes && bytes) {
        STATUS_TRY(buffer_room(&to->text, 2 * bytes));
        STATUS_TRY(add_replaced(to, (text_t){to->text.data + begin, bytes}, step->content,
                                TEXT(" ")));
        memmove(to->text.data + begin, to->text.data + begin + bytes,
                to->text.bytes - begin - bytes);
        to->text.bytes -= bytes;
      }
    }
    if (to->text.bytes > begin) STATUS_TRY(end_token(to));
  }
  return NN_OK;
}

/* ---- steps that join tokens ------------------------------------------------------------------ */

static nn_status_t step_fuse(const token_texts_t *from, token_texts_t *to) {
  const size_t bytes = from->count ? from->ends[from->count - 1] : 0;
  STATUS_TRY(add_text(to, (text_t){from->text.data, bytes}));
  return end_token(to);
}

/* The bytes that a token of a byte-level vocabulary stands for; its text, where it is none of the
 * map's. */
static nn_status_t add_unmapped(buffer_t *to, text_t text) {
  size_t bytes;
  if (!text.bytes) return NN_OK;
  STATUS_TRY(buffer_room(to, text.bytes));
  if (!bytemap_read(text.data, text.bytes, to->data + to->bytes, &bytes))
    return buffer_add(to, text.data, text.bytes);
  to->bytes += bytes;
  return NN_OK;
}

static nn_status_t step_byte_level(const token_texts_t *from, token_texts_t *to) {
  for (size_t i = 0; i < from->count; i++) STATUS_TRY(add_unmapped(&to->text, text_at(from, i)));
  return end_token(to);
}

static int hex(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

/* The byte that <0xNN> spells, -1: it is another token. */
static int spelled_byte(text_t text) {
  if (text.bytes != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>') return -1;
  const int high = hex(text.data[3]), low = hex(text.data[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

/* The run of bytes written since `begin` becomes a token, if there is one; not being UTF-8, each of
 * its bytes becomes U+FFFD. */
static nn_status_t end_run(const step_context_t *context, token_texts_t *to, size_t begin) {
  const size_t bytes = to->text.bytes - begin;
  if (bytes == 0) return NN_OK;
  if (!context->open && utf8_valid(to->text.data + begin, bytes) < bytes) {
    to->text.bytes = begin;
    for (size_t i = 0; i < bytes; i++) STATUS_TRY(add_text(to, TEXT("\xEF\xBF\xBD")));
  }
  return end_token(to);
}

static nn_status_t step_byte_fallback(const step_context_t *context, const token_texts_t *from,
                                      token_texts_t *to) {
  size_t begin = 0;
  for (size_t i = 0; i < from->count; i++) {
    const text_t text = text_at(from, i);
    const int byte = spelled_byte(text);
    if (byte >= 0) {
      const char raw = (char)byte;
      STATUS_TRY(add_text(to, (text_t){&raw, 1}));
      continue;
    }
    STATUS_TRY(end_run(context, to, begin));
    STATUS_TRY(add_token(to, text));
    begin = to->text.bytes;
  }
  return end_run(context, to, begin);
}

/* The characters of a run of bytes that are whole stay, its other bytes become U+FFFD; but at the
 * end of ids to come (open) those that may yet become a character. */
static nn_status_t end_mixed_run(token_texts_t *to, size_t begin, bool open) {
  const size_t all = to->text.bytes - begin;
  if (!all) return NN_OK;
  const size_t tail = open ? utf8_unfinished(to->text.data + begin, all) : 0;
  const size_t bytes = all - tail;
  if (utf8_valid(to->text.data + begin, bytes) == bytes) return NN_OK;
  STATUS_TRY(buffer_room(&to->text, 3 * all)); /* what follows is written behind, then moved */
  for (size_t at = 0; at < bytes;) {
    const char *run = to->text.data + begin + at;
    const size_t valid = utf8_valid(run, bytes - at);
    STATUS_TRY(add_text(to, (text_t){run, valid}));
    at += valid;
    if (at == bytes) break;
    STATUS_TRY(add_text(to, TEXT("\xEF\xBF\xBD")));
    at++;
  }
  STATUS_TRY(add_text(to, (text_t){to->text.data + begin + bytes, tail}));
  memmove(to->text.data + begin, to->text.data + begin + all, to->text.bytes - begin - all);
  to->text.bytes -= all;
  return NN_OK;
}

static nn_status_t step_sentencepiece(const step_context_t *context, const token_texts_t *from,
                                      token_texts_t *to) {
  static const text_t blank = {"\xE2\x96\x81", 3}; /* U+2581 */
  const decoder_step_t *step = context->step;
  bool first = step->start || step->collapse, dropped = false;
  size_t begin = 0; /* of the run of bytes */
  for (size_t i = 0; i < from->count; i++) {
    text_t text = text_at(from, i);
    const int byte = step->bytes ? spelled_byte(text) : -1;
    if (byte >= 0) {
      const char raw = (char)byte;
      STATUS_TRY(add_text(to, (text_t){&raw, 1}));
      continue;
    }
    STATUS_TRY(end_mixed_run(to, begin, false));
    first = first && !dropped && to->text.bytes == 0;
    if (text_equal(text, step->pattern.text)) {
      STATUS_TRY(add_text(to, step->content));
    } else {
      if (first && text.bytes >= blank.bytes && memcmp(text.data, blank.data, blank.bytes) == 0) {
        text = (text_t){text.data + blank.bytes, text.bytes - blank.bytes};
        dropped = !step->collapse;
      }
      STATUS_TRY(add_replaced(to, text, blank, TEXT(" ")));
    }
    begin = to->text.bytes;
  }
  STATUS_TRY(end_mixed_run(to, begin, context->open));
  return end_token(to);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static nn_status_t apply(const step_context_t *context, const token_texts_t *from,
                         token_texts_t *to) {
  to->text.bytes = to->count = 0;
  switch (context->step->kind) {
    case DECODE_BYTE_LEVEL: return step_byte_level(from, to);
    case DECODE_BYTE_FALLBACK: return step_byte_fallback(context, from, to);
    case DECODE_SENTENCEPIECE: return step_sentencepiece(context, from, to);
    case DECODE_FUSE: return step_fuse(from, to);
    case DECODE_METASPACE: return step_metaspace(context, from, to);
    case DECODE_STRIP: return step_strip(context, from, to);
    case DECODE_REPLACE: return step_replace(context, from, to);
    case DECODE_WORDPIECE: return step_wordpiece(context, from, to);
    case DECODE_BPE: return step_bpe(context, from, to);
    default: return step_ctc(context, from, to);
  }
}

static bool is_verbatim(const nn_tokenizer_t *tokenizer, int32_t id) {
  const int32_t added = tokenizer->ids[id].added;
  return added >= 0 && tokenizer->pipeline.added[added].verbatim;
}

/* An id's text as the decoder sees it; false: the id is left out. */
static bool token_text(const nn_tokenizer_t *tokenizer, int32_t id, bool keep_special,
                       text_t *text) {
  const id_entry_t *entry = &tokenizer->ids[id];
  if (!entry->text.data || (entry->special && !keep_special)) return false;
  *text = entry->added >= 0 ? tokenizer->added_normalized[entry->added] : entry->text;
  return true;
}

static nn_status_t decode_steps(const nn_tokenizer_t *tokenizer, scratch_t *scratch,
                                const int32_t *ids, int64_t count, bool keep_special, bool open,
                                buffer_t *out) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  token_texts_t *from = &scratch->texts[0], *to = &scratch->texts[1];
  text_t text;
  from->text.bytes = from->count = 0;
  for (int64_t i = 0; i < count; i++) {
    if (!token_text(tokenizer, ids[i], keep_special, &text)) continue;
    if (!pipeline->decoder_count && from->count) STATUS_TRY(add_text(from, TEXT(" ")));
    STATUS_TRY(add_token(from, text));
  }
  for (size_t i = 0; i < pipeline->decoder_count; i++) {
    const step_context_t context = {&pipeline->decoder[i], &tokenizer->decoder_matchers[i],
                                    &scratch->steps.match, open};
    STATUS_TRY(apply(&context, from, to));
    token_texts_t *swap = from;
    from = to;
    to = swap;
  }
  return buffer_add(out, from->text.data, from->count ? from->ends[from->count - 1] : 0);
}

nn_status_t tokenizer_decode(const nn_tokenizer_t *tokenizer, const int32_t *ids, int64_t count,
                             bool keep_special, bool open, buffer_t *out) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  text_t text;
  if (pipeline->decoder_count == 1 && pipeline->decoder[0].kind == DECODE_BYTE_LEVEL) {
    for (int64_t i = 0; i < count; i++)
      if (token_text(tokenizer, ids[i], keep_special, &text))
        STATUS_TRY(is_verbatim(tokenizer, ids[i]) ? buffer_add(out, text.data, text.bytes)
                                                  : add_unmapped(out, text));
    return NN_OK;
  }
  scratch_t *scratch;
  STATUS_TRY(scratch_take(tokenizer, &scratch));
  nn_status_t status = decode_steps(tokenizer, scratch, ids, count, keep_special, open, out);
  scratch_give(tokenizer, scratch);
  return status;
}
