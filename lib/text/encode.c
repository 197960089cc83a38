/* Encoding: from a text to ids, part by part and word by word. */
#include "text/tokenizer.h"
#include "text/unicode.h"

typedef struct encoder {
  const nn_tokenizer_t *tokenizer;
  scratch_t *scratch;
  text_t text; /* the caller's */
  bool parse_special, places;
  int32_t *ids;
  int64_t *offsets;
  int64_t capacity, count, first; /* first: where the text's own tokens begin */
} encoder_t;

/* ---- what comes out -------------------------------------------------------------------------- */

static inline void put(encoder_t *encoder, int32_t id, place_t place) {
  const int64_t at = encoder->count++;
  if (at >= encoder->capacity) return;
  encoder->ids[at] = id;
  if (encoder->offsets) {
    encoder->offsets[2 * at] = place.begin;
    encoder->offsets[2 * at + 1] = place.end;
  }
}

static bool is_blank(uint32_t code) {
  return code == 0x120 || (unicode_class(code) & CLASS_SPACE);
}

/* Spaces, spelt as such or by the byte map, at the beginning and the end of a token's text. */
static void count_blanks(text_t token, uint32_t *leading, uint32_t *trailing) {
  uint32_t taken;
  *leading = *trailing = 0;
  for (size_t at = 0; at < token.bytes; at += taken, (*leading)++)
    if (!is_blank(utf8_decode(token.data + at, token.data + token.bytes, &taken))) break;
  for (size_t end = token.bytes; end > 0; (*trailing)++) {
    const size_t begin = utf8_begin(token.data, end, end - 1);
    if (!is_blank(utf8_decode(token.data + begin, token.data + end, &taken))) break;
    end = begin;
  }
}

/* Leaves out the spaces at the ends of a token. */
static place_t trim(const encoder_t *encoder, text_t token, place_t place) {
  const text_t text = encoder->text;
  uint32_t leading, trailing;
  count_blanks(token, &leading, &trailing);
  const bool at_first = encoder->count == encoder->first || place.begin == 0;
  if (at_first && encoder->tokenizer->pipeline.trim_prefix_space && leading == 1) leading = 0;
  while (leading-- > 0 && place.begin < place.end)
    place.begin = (uint32_t)utf8_end(text.data, text.bytes, place.begin);
  if (place.begin > place.end) place.begin = place.end;
  while (trailing-- > 0 && place.end > place.begin)
    place.end = (uint32_t)utf8_begin(text.data, text.bytes, place.end - 1);
  if (place.end < place.begin) place.end = place.begin;
  return place;
}

static void put_at(encoder_t *encoder, int32_t id, text_t token, const work_t *work, span_t span) {
  place_t place = {0, 0};
  if (encoder->offsets && encoder->count < encoder->capacity) {
    if (span.begin < span.end)
      place = work_place(work, span, encoder->text.data, encoder->text.bytes);
    if (encoder->tokenizer->pipeline.trim_offsets) place = trim(encoder, token, place);
  }
  put(encoder, id, place);
}

/* ---- words ----------------------------------------------------------------------------------- */

static nn_status_t encode_word_at(encoder_t *encoder, const work_t *work, span_t span) {
  const nn_tokenizer_t *tokenizer = encoder->tokenizer;
  model_memory_t *memory = &encoder->scratch->model;
  STATUS_TRY(model_encode(&tokenizer->vocabulary, memory,
                          (text_t){work->data + span.begin, span.end - span.begin}));
  for (size_t i = 0; i < memory->pieces.count; i++) {
    const span_t part = memory->pieces.spans[i];
    const uint32_t limit = span.end - span.begin; /* dropped characters make none too long */
    const span_t whole = {span.begin + (part.begin < limit ? part.begin : limit),
                          span.begin + (part.end < limit ? part.end : limit)};
    put_at(encoder, memory->pieces.ids[i], tokenizer->ids[memory->pieces.ids[i]].text, work, whole);
  }
  return NN_OK;
}

static nn_status_t encode_new_word(encoder_t *encoder, text_t word, const word_key_t *key) {
  model_memory_t *memory = &encoder->scratch->model;
  STATUS_TRY(model_encode(&encoder->tokenizer->vocabulary, memory, word));
  const pieces_t *pieces = &memory->pieces;
  for (size_t i = 0; i < pieces->count; i++) put(encoder, pieces->ids[i], (place_t){0, 0});
  if (key && pieces->count <= WORDCACHE_IDS)
    wordcache_put(encoder->scratch->cache, key, word.bytes, pieces->ids, pieces->count);
  return NN_OK;
}

static inline nn_status_t encode_word(encoder_t *encoder, const work_t *work, span_t span) {
  const text_t word = {work->data + span.begin, span.end - span.begin};
  if (encoder->offsets) return encode_word_at(encoder, work, span);
  if (word.bytes > WORDCACHE_BYTES) return encode_new_word(encoder, word, NULL);
  const word_key_t key = word_key(word.data, word.bytes);
  const word_entry_t *entry = wordcache_get(encoder->scratch->cache, &key, word.bytes);
  if (!entry) return encode_new_word(encoder, word, &key);
  if (encoder->count + entry->count <= encoder->capacity) {
    for (int i = 0; i < entry->count; i++) encoder->ids[encoder->count + i] = entry->ids[i];
    encoder->count += entry->count;
    return NN_OK;
  }
  for (int i = 0; i < entry->count; i++) put(encoder, entry->ids[i], (place_t){0, 0});
  return NN_OK;
}

/* A word of a vocabulary in which U+2581 begins words is many: they are encoded apart. */
static nn_status_t encode_marked(encoder_t *encoder, const work_t *work, span_t span) {
  uint32_t begin = span.begin, at = span.begin;
  bool was_mark = true;
  while (at < span.end) {
    const char *lead = memchr(work->data + at, 0xE2, span.end - at);
    if (!lead) break;
    const uint32_t found = (uint32_t)(lead - work->data);
    const bool mark = span.end - found >= 3 && memcmp(lead, "\xE2\x96\x81", 3) == 0;
    if (found > at) was_mark = false;
    if (mark && !was_mark) {
      STATUS_TRY(encode_word(encoder, work, (span_t){begin, found}));
      begin = found;
    }
    was_mark = mark;
    at = found + (mark ? 3 : 1);
  }
  return begin < span.end ? encode_word(encoder, work, (span_t){begin, span.end}) : NN_OK;
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* A part of the normalized text between added tokens. */
static nn_status_t encode_part(encoder_t *encoder, work_t work, bool first) {
  const nn_tokenizer_t *tokenizer = encoder->tokenizer;
  const pipeline_t *pipeline = &tokenizer->pipeline;
  scratch_t *scratch = encoder->scratch;
  const pretokenize_t pre = {.steps = pipeline->pre,
                             .matchers = tokenizer->pre_matchers,
                             .count = pipeline->pre_count,
                             .maps_bytes = !tokenizer->bytes};
  STATUS_TRY(pretokenize(&pre, encoder->places, first, &scratch->steps, &work, &scratch->spans));
  const span_t *spans = scratch->spans.list[scratch->spans.now];
  for (size_t i = 0; i < scratch->spans.count; i++)
    STATUS_TRY(tokenizer->vocabulary.cut_at_mark ? encode_marked(encoder, &work, spans[i])
                                                 : encode_word(encoder, &work, spans[i]));
  return NN_OK;
}

static work_t slice(const work_t *work, span_t span) {
  return (work_t){.data = work->data + span.begin,
                  .bytes = span.end - span.begin,
                  .places = work->places ? work->places + span.begin : NULL,
                  .base = work->base + span.begin};
}

/* A part of the caller's text between added tokens. */
static nn_status_t encode_section(encoder_t *encoder, work_t work) {
  const nn_tokenizer_t *tokenizer = encoder->tokenizer;
  const pipeline_t *pipeline = &tokenizer->pipeline;
  steps_memory_t *steps = &encoder->scratch->steps;
  const bool at_start = work.base == 0;
  if (!tokenizer->keeps_bytes) STATUS_TRY(normalize_utf8(encoder->places, steps, &work));
  for (size_t i = 0; i < pipeline->normalizer_count; i++)
    STATUS_TRY(normalize_step(&pipeline->normalizer[i], &tokenizer->normalizer_matchers[i],
                              encoder->places, steps, &work));
  if (work.bytes == 0) return NN_OK;
  if (tokenizer->normalized.empty) return encode_part(encoder, work, at_start);

  /* the pre-tokenizer's steps would write to the memory that holds the normalized text */
  const buffer_t holder = steps->buffer[steps->next];
  steps->buffer[steps->next] = encoder->scratch->held;
  encoder->scratch->held = holder;
  added_search_t search = {.set = &tokenizer->normalized, .tokens = pipeline->added,
                           .special = encoder->parse_special, .text = work.data,
                           .bytes = work.bytes};
  nn_status_t status = NN_OK;
  uint32_t given = 0;
  const added_token_t *token;
  span_t match;
  while (status == NN_OK && (token = added_next(&search, &match)) != NULL) {
    if (given < match.begin)
      status = encode_part(encoder, slice(&work, (span_t){given, match.begin}),
                           at_start && given == 0);
    if (status == NN_OK)
      put_at(encoder, token->id, (text_t){work.data + match.begin, match.end - match.begin}, &work,
             match);
    given = match.end;
  }
  if (status == NN_OK && given < work.bytes)
    status = encode_part(encoder, slice(&work, (span_t){given, work.bytes}),
                         at_start && given == 0);
  return status;
}

static nn_status_t encode_text(encoder_t *encoder) {
  const nn_tokenizer_t *tokenizer = encoder->tokenizer;
  const work_t work = {.data = encoder->text.data, .bytes = (uint32_t)encoder->text.bytes};
  added_search_t search = {.set = &tokenizer->raw, .tokens = tokenizer->pipeline.added,
                           .special = encoder->parse_special, .text = work.data,
                           .bytes = work.bytes};
  uint32_t given = 0;
  const added_token_t *token;
  span_t match;
  while ((token = added_next(&search, &match)) != NULL) {
    if (given < match.begin)
      STATUS_TRY(encode_section(encoder, slice(&work, (span_t){given, match.begin})));
    put_at(encoder, token->id, (text_t){work.data + match.begin, match.end - match.begin}, &work,
           match);
    given = match.end;
  }
  return given < work.bytes ? encode_section(encoder, slice(&work, (span_t){given, work.bytes}))
                            : NN_OK;
}

nn_status_t tokenizer_encode(const nn_tokenizer_t *tokenizer, text_t text, bool add_special,
                             bool parse_special, int32_t *ids, int64_t *offsets, int64_t capacity,
                             int64_t *count) {
  const pipeline_t *pipeline = &tokenizer->pipeline;
  encoder_t encoder = {.tokenizer = tokenizer, .text = text, .parse_special = parse_special,
                       .places = offsets || tokenizer->needs_places,
                       .ids = ids, .offsets = offsets, .capacity = capacity};
  const place_t nowhere = {0, 0};
  if (text.bytes >= UINT32_MAX)
    return status_fail(NN_ERR_UNSUPPORTED, "a text of %zu bytes; at most 4 GiB are encoded at once",
                       text.bytes);
  STATUS_TRY(scratch_take(tokenizer, &encoder.scratch));
  for (size_t i = 0; add_special && i < pipeline->prefix_count; i++)
    put(&encoder, pipeline->prefix[i], nowhere);
  encoder.first = encoder.count;
  nn_status_t status = encode_text(&encoder);
  scratch_give(tokenizer, encoder.scratch);
  STATUS_TRY(status);
  for (size_t i = 0; add_special && i < pipeline->suffix_count; i++)
    put(&encoder, pipeline->suffix[i], nowhere);
  *count = encoder.count;
  if (encoder.count > capacity)
    return status_fail(NN_ERR_CAPACITY, "nn_tokenizer_encode: %lld ids do not fit into %lld",
                       (long long)encoder.count, (long long)capacity);
  return NN_OK;
}
