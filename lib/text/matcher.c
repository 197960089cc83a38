#include "text/matcher.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "base/mem.h"
#include "text/unicode.h"

/* Steps that one match may take: far more than any published pattern does in a long text, and few
 * enough that a hostile one ends. */
enum { MATCH_LIMIT = 50 * 1000 * 1000, HEAP_LIMIT_KB = 64 * 1024 };

/* What Oniguruma means by \s and \w. PCRE2 counts U+180E as a space and, up to 10.42, no marks as
 * word characters. Oniguruma counts the superscripts and fractions of Latin-1 as word characters,
 * but not within a class. */
#define SPACE_CHARACTERS "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}" \
                         "\\x{202f}\\x{205f}\\x{3000}"
#define WORD_CHARACTERS "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}" \
                        "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"
#define WORDS_OUTSIDE WORD_CHARACTERS "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

static void *allocate(size_t bytes, void *user) {
  void *data;
  (void)user;
  return mem_alloc(bytes, 1, &data) == NN_OK ? data : NULL;
}

static void release(void *data, void *user) {
  (void)user;
  mem_free(data);
}

/* ---- translation ----------------------------------------------------------------------------- */

/* What an escape becomes in PCRE2's terms; an empty text: it stays as it is. */
static text_t translate_escape(char letter, bool in_class) {
  switch (letter) {
    case 's': return in_class ? TEXT(SPACE_CHARACTERS) : TEXT("[" SPACE_CHARACTERS "]");
    case 'S': return in_class ? TEXT("") : TEXT("[^" SPACE_CHARACTERS "]");
    case 'w': return in_class ? TEXT(WORD_CHARACTERS) : TEXT("[" WORDS_OUTSIDE "]");
    case 'W': return in_class ? TEXT("") : TEXT("[^" WORDS_OUTSIDE "]");
    default: return TEXT("");
  }
}

/* Writes the pattern with \s and \w spelt out. */
static nn_status_t translate(text_t pattern, buffer_t *out) {
  bool in_class = false;
  for (size_t i = 0; i < pattern.bytes; i++) {
    const char c = pattern.data[i];
    if (c == '\\' && i + 1 < pattern.bytes) {
      const text_t other = translate_escape(pattern.data[i + 1], in_class);
      if (other.bytes) STATUS_TRY(buffer_add(out, other.data, other.bytes));
      else STATUS_TRY(buffer_add(out, pattern.data + i, 2));
      i++;
      continue;
    }
    if (in_class && (c == '[' || (c == '&' && i + 1 < pattern.bytes && pattern.data[i + 1] == '&')))
      if (c == '&' || i + 1 >= pattern.bytes || pattern.data[i + 1] != ':')
        return status_fail(NN_ERR_UNSUPPORTED,
                           "the pattern \"%.200s\" has a class within a class or an intersection"
                           " of classes, which PCRE2 does not have", pattern.data);
    if (c == '[' && !in_class) in_class = true;
    else if (c == ']' && in_class && pattern.data[i - 1] != '[' &&
             !(pattern.data[i - 1] == '^' && i > 1 && pattern.data[i - 2] == '['))
      in_class = false;
    else if (c == '[' && in_class) { /* a POSIX class: copied up to its end */
      const char *close = memchr(pattern.data + i, ']', pattern.bytes - i);
      if (close) {
        const size_t bytes = (size_t)(close - (pattern.data + i)) + 1;
        STATUS_TRY(buffer_add(out, pattern.data + i, bytes));
        i += bytes - 1;
        continue;
      }
    }
    STATUS_TRY(buffer_add(out, &c, 1));
  }
  return NN_OK;
}

/* ---- compiling ------------------------------------------------------------------------------- */

static nn_status_t compile(text_t pattern, text_t translated, pcre2_code **code) {
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  int error;
  PCRE2_SIZE offset;
  pcre2_general_context *general = pcre2_general_context_create(allocate, release, NULL);
  pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
  if (!context) {
    pcre2_general_context_free(general);
    return status_fail(NN_ERR_MEMORY, "no memory to compile a pattern");
  }
  *code = pcre2_compile((PCRE2_SPTR)translated.data, translated.bytes, options, &error, &offset,
                        context);
  pcre2_compile_context_free(context);
  pcre2_general_context_free(general);
  if (!*code) {
    char message[128];
    if (error == PCRE2_ERROR_NOMEMORY || error == PCRE2_ERROR_HEAP_FAILED)
      return status_fail(NN_ERR_MEMORY, "no memory to compile a pattern");
    pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof message);
    return status_fail(NN_ERR_FORMAT, "the pattern \"%.200s\": %s", pattern.data, message);
  }
  /* Where this fails, as on processors that PCRE2 knows no code for, matching interprets. */
  pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE);
  return NN_OK;
}

nn_status_t matcher_create(const pattern_t *pattern, matcher_t *matcher) {
  *matcher = (matcher_t){0};
  if (!pattern->regex) {
    matcher->literal = pattern->text;
    return NN_OK;
  }
  matcher->scan = scan_find(pattern->text);
  if (matcher->scan) return NN_OK;
  buffer_t translated = {0};
  pcre2_code *code = NULL;
  nn_status_t status = translate(pattern->text, &translated);
  if (status == NN_OK)
    status = compile(pattern->text, (text_t){translated.data ? translated.data : "",
                                             translated.bytes}, &code);
  buffer_free(&translated);
  matcher->code = code;
  return status;
}

void matcher_free(matcher_t *matcher) {
  pcre2_code_free(matcher->code);
  *matcher = (matcher_t){0};
}

/* ---- matching -------------------------------------------------------------------------------- */

void match_state_free(match_state_t *state) {
  pcre2_match_data_free(state->data);
  pcre2_match_context_free(state->context);
  *state = (match_state_t){0};
}

static nn_status_t prepare(match_state_t *state) {
  if (state->data) return NN_OK;
  pcre2_general_context *general = pcre2_general_context_create(allocate, release, NULL);
  if (general && !state->context) state->context = pcre2_match_context_create(general);
  if (general && state->context) state->data = pcre2_match_data_create(1, general);
  pcre2_general_context_free(general);
  if (!state->data) return status_fail(NN_ERR_MEMORY, "no memory to match a pattern");
  pcre2_set_match_limit(state->context, MATCH_LIMIT);
  pcre2_set_heap_limit(state->context, HEAP_LIMIT_KB);
  return NN_OK;
}

/* The next match from `from` on in text, which is UTF-8; *found: whether there is one. */
static nn_status_t find_regex(const matcher_t *matcher, match_state_t *state, const char *text,
                              uint32_t bytes, uint32_t from, span_t *match, bool *found) {
  const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(state->data);
  int count = pcre2_match(matcher->code, (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK,
                          state->data, state->context);
  if (count == PCRE2_ERROR_JIT_STACKLIMIT)
    count = pcre2_match(matcher->code, (PCRE2_SPTR)text, bytes, from,
                        PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, state->data, state->context);
  *found = count >= 0;
  if (*found) {
    *match = (span_t){(uint32_t)bounds[0], (uint32_t)bounds[1]};
    if (match->begin > match->end) match->end = match->begin; /* \K in a lookahead */
    return NN_OK;
  }
  if (count == PCRE2_ERROR_NOMATCH) return NN_OK;
  if (count == PCRE2_ERROR_NOMEMORY)
    return status_fail(NN_ERR_MEMORY, "no memory to match a pattern");
  return status_fail(NN_ERR_UNSUPPORTED, "matching the tokenizer's pattern at byte %u of %u takes"
                     " too many steps", from, bytes);
}

static bool find_literal(text_t literal, const char *text, uint32_t bytes, uint32_t from,
                         span_t *match) {
  const char *at = text + from, *end = text + bytes;
  if (!literal.bytes) return false;
  while ((size_t)(end - at) >= literal.bytes &&
         (at = memchr(at, literal.data[0], (size_t)(end - at) - literal.bytes + 1)) != NULL) {
    if (memcmp(at, literal.data, literal.bytes) == 0) {
      *match = (span_t){(uint32_t)(at - text), (uint32_t)(at - text + (ptrdiff_t)literal.bytes)};
      return true;
    }
    at++;
  }
  return false;
}

static bool find_scan(scan_fn scan, const char *text, uint32_t bytes, uint32_t from,
                      span_t *match) {
  for (uint32_t at = from, taken; at < bytes; at += taken) {
    const uint32_t to = scan(text, at, bytes);
    if (to > at) {
      *match = (span_t){at, to};
      return true;
    }
    utf8_decode(text + at, text + bytes, &taken);
  }
  return false;
}

static nn_status_t find(const matcher_t *matcher, match_state_t *state, const char *text,
                        uint32_t bytes, uint32_t from, span_t *match, bool *found) {
  if (matcher->code) return find_regex(matcher, state, text, bytes, from, match, found);
  *found = matcher->scan ? find_scan(matcher->scan, text, bytes, from, match)
                         : find_literal(matcher->literal, text, bytes, from, match);
  return NN_OK;
}

/* The parts of text[0, bytes), which is UTF-8 if there is a regular expression. base: of the spans
 * that visit is given. */
static nn_status_t visit_parts(const matcher_t *matcher, match_state_t *state, const char *text,
                               uint32_t bytes, uint32_t base, match_visit_fn visit, void *user) {
  uint32_t from = 0, given = 0; /* where to look, and what visit has had */
  bool any = false;
  while (from <= bytes) {
    span_t match;
    bool found;
    STATUS_TRY(find(matcher, state, text, bytes, from, &match, &found));
    if (!found) break;
    if (match.begin < given) match.begin = given; /* a look behind that moved the beginning */
    if (match.end < match.begin) match.end = match.begin;
    if (match.begin == match.end && any && match.end == given) { /* empty behind a match: go on */
      uint32_t taken;
      if (from >= bytes) break;
      utf8_decode(text + from, text + bytes, &taken);
      from += taken;
      continue;
    }
    if (given < match.begin)
      STATUS_TRY(visit(user, (span_t){base + given, base + match.begin}, false));
    STATUS_TRY(visit(user, (span_t){base + match.begin, base + match.end}, true));
    any = true;
    from = given = match.end;
  }
  return given < bytes ? visit(user, (span_t){base + given, base + bytes}, false) : NN_OK;
}

nn_status_t matcher_visit(const matcher_t *matcher, match_state_t *state, const char *text,
                          uint32_t bytes, match_visit_fn visit, void *user) {
  if (!matcher->code) return visit_parts(matcher, state, text, bytes, 0, visit, user);
  STATUS_TRY(prepare(state));
  for (uint32_t at = 0; at < bytes;) {
    const uint32_t valid = (uint32_t)utf8_valid(text + at, bytes - at);
    if (valid) STATUS_TRY(visit_parts(matcher, state, text + at, valid, at, visit, user));
    at += valid;
    if (at < bytes) {
      uint32_t taken;
      utf8_decode(text + at, text + bytes, &taken);
      STATUS_TRY(visit(user, (span_t){at, at + taken}, false));
      at += taken;
    }
  }
  return NN_OK;
}
