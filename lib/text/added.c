#include "text/added.h"

#include "text/unicode.h"

nn_status_t added_set_create(trie_entry_t *entries, size_t count, added_set_t *set) {
  *set = (added_set_t){.empty = count == 0};
  for (size_t i = 0; i < count; i++) set->first[(unsigned char)entries[i].text.data[0]] = true;
  return trie_create(entries, count, &set->trie);
}

void added_set_free(added_set_t *set) { trie_free(&set->trie); }

/* The longest token at `at`, -1: none. */
static int32_t longest(const added_set_t *set, const char *text, uint32_t bytes, uint32_t at,
                       uint32_t *end) {
  int32_t found = -1;
  uint32_t node = 0;
  while (at < bytes && (node = trie_step(&set->trie, node, (unsigned char)text[at]))) {
    at++;
    if (set->trie.nodes[node].value < 0) continue;
    found = set->trie.nodes[node].value;
    *end = at;
  }
  return found;
}

static uint32_t class_at(const added_search_t *search, uint32_t at, uint32_t *taken) {
  return unicode_class(utf8_decode(search->text + at, search->text + search->bytes, taken));
}

static uint32_t class_before(const added_search_t *search, uint32_t at, uint32_t *begin) {
  uint32_t taken;
  *begin = (uint32_t)utf8_begin(search->text, at, at - 1);
  return unicode_class(utf8_decode(search->text + *begin, search->text + at, &taken));
}

static bool stands_alone(const added_search_t *search, span_t match) {
  uint32_t other;
  if (match.begin > 0 && (class_before(search, match.begin, &other) & CLASS_WORD)) return false;
  return match.end >= search->bytes || !(class_at(search, match.end, &other) & CLASS_WORD);
}

static void take_spaces(const added_search_t *search, const added_token_t *token, span_t *match) {
  uint32_t other;
  while (token->lstrip && match->begin > search->given &&
         (class_before(search, match->begin, &other) & CLASS_SPACE))
    match->begin = other;
  if (match->begin < search->given) match->begin = search->given;
  while (token->rstrip && match->end < search->bytes &&
         (class_at(search, match->end, &other) & CLASS_SPACE))
    match->end += other;
}

const added_token_t *added_next(added_search_t *search, span_t *match) {
  const added_set_t *set = search->set;
  while (!set->empty && search->from < search->bytes) {
    const uint32_t at = search->from;
    if (!set->first[(unsigned char)search->text[at]]) {
      search->from++;
      continue;
    }
    uint32_t end = at;
    const int32_t found = longest(set, search->text, search->bytes, at, &end);
    search->from = found < 0 ? at + 1 : end;
    if (found < 0) continue;
    const added_token_t *token = &search->tokens[found];
    *match = (span_t){at, end};
    if (token->special && !search->special) continue;
    if (token->single_word && !stands_alone(search, *match)) continue;
    take_spaces(search, token, match);
    if (match->begin >= match->end) continue;
    search->given = match->end;
    if (search->from < match->end) search->from = match->end;
    return token;
  }
  return NULL;
}
