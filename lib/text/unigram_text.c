#include "text/unigram_text.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* ---- characters ------------------------------------------------------------------------------ */

static bool begins_char(const word_table_t *words, size_t byte) {
  return ((unsigned char)words->text[byte] & 0xc0) != 0x80;
}

/* The end of the character that begins at byte of a word that ends at end; at most four bytes, also
 * in what is no UTF-8. */
static size_t char_end(const word_table_t *words, size_t byte, size_t end) {
  if (end - byte > 4) end = byte + 4;
  do byte++;
  while (byte < end && !begins_char(words, byte));
  return byte;
}

static void text_count(unigram_text_t *text) {
  const word_table_t *words = text->words;
  for (size_t w = 0; w < words->word_count; w++) {
    size_t at = words->words[w].begin, end = at + words->words[w].bytes;
    int64_t chars = 0;
    for (; at < end; at = char_end(words, at, end)) chars++;
    text->chars += chars;
    text->chunk_count += (chars + UNIGRAM_MOST_CHARS - 1) / UNIGRAM_MOST_CHARS;
  }
}

/* Lays out chunks and characters; `table` counts the distinct ones, text->single becomes the index
 * there. */
static nn_status_t text_fill(unigram_text_t *text, word_table_t *table) {
  const word_table_t *words = text->words;
  int32_t c = 0, chunk = -1;
  for (size_t w = 0; w < words->word_count; w++) {
    size_t at = words->words[w].begin, end = at + words->words[w].bytes;
    for (size_t next; at < end; at = next, c++) {
      next = char_end(words, at, end);
      if (at == words->words[w].begin || text->chunks[chunk].chars == UNIGRAM_MOST_CHARS)
        text->chunks[++chunk] = (unigram_chunk_t){.first = c, .count = words->words[w].count};
      text->chunks[chunk].chars++;
      text->place[c] = (int32_t)at;
      text->chunk[c] = chunk;
      STATUS_TRY(word_table_add(table, words->text + at, next - at, words->words[w].count,
                                &text->single[c]));
    }
  }
  text->place[c] = (int32_t)words->text_bytes;
  return NN_OK;
}

/* A character of the table by how often it comes. */
typedef struct char_rank {
  int64_t count;
  int32_t index;
} char_rank_t;

static int compare_ranks(const void *a, const void *b) {
  const char_rank_t *x = a, *y = b;
  if (x->count != y->count) return x->count > y->count ? -1 : 1;
  return (x->index > y->index) - (x->index < y->index);
}

/* The most frequent characters become pieces; piece_of [characters of the table] or -1. */
static void singles_choose(unigram_text_t *text, const word_table_t *table, char_rank_t *ranks,
                           double coverage, int32_t *piece_of) {
  int64_t total = 0, covered = 0;
  for (size_t i = 0; i < table->word_count; i++) {
    ranks[i] = (char_rank_t){table->words[i].count, (int32_t)i};
    total += table->words[i].count;
    piece_of[i] = -1;
  }
  if (table->word_count) qsort(ranks, table->word_count, sizeof *ranks, compare_ranks);
  for (size_t i = 0; i < table->word_count; i++) {
    if ((double)covered >= coverage * (double)total) break;
    covered += ranks[i].count;
    piece_of[ranks[i].index] = (int32_t)text->single_count;
    text->counts[text->single_count++] = ranks[i].count;
  }
  text->piece_count = text->single_count;
}

static nn_status_t singles_build(unigram_text_t *text, const word_table_t *table,
                                 double coverage) {
  void *pieces, *counts, *ranks = NULL, *piece_of = NULL;
  STATUS_TRY(mem_alloc(table->word_count, sizeof *text->pieces, &pieces));
  text->pieces = pieces;
  STATUS_TRY(mem_alloc(table->word_count, sizeof *text->counts, &counts));
  text->counts = counts;
  nn_status_t status = mem_alloc(table->word_count, sizeof(char_rank_t), &ranks);
  if (status == NN_OK) status = mem_alloc(table->word_count, sizeof(int32_t), &piece_of);
  if (status == NN_OK) {
    singles_choose(text, table, ranks, coverage, piece_of);
    for (int64_t c = text->chars - 1; c >= 0; c--) { /* backwards: the first place stays */
      int32_t piece = ((int32_t *)piece_of)[text->single[c]];
      text->single[c] = piece;
      if (piece >= 0)
        text->pieces[piece] = (unigram_piece_t){.begin = text->place[c],
                                                .bytes = text->place[c + 1] - text->place[c],
                                                .chars = 1};
    }
  }
  mem_free(ranks);
  mem_free(piece_of);
  return status;
}

nn_status_t unigram_text_build(const word_table_t *words, double coverage, unigram_text_t *text) {
  void *memory;
  *text = (unigram_text_t){.words = words};
  text_count(text);
  STATUS_TRY(mem_alloc((size_t)text->chunk_count, sizeof *text->chunks, &memory));
  text->chunks = memory;
  int32_t **const arrays[] = {&text->place, &text->chunk, &text->single};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
    STATUS_TRY(mem_alloc((size_t)text->chars + 1, sizeof **arrays[i], &memory));
    *arrays[i] = memory;
  }
  word_table_t table = {0};
  nn_status_t status = text_fill(text, &table);
  if (status == NN_OK) status = singles_build(text, &table, coverage);
  word_table_free(&table);
  return status;
}

void unigram_text_free(unigram_text_t *text) {
  void *const arrays[] = {text->chunks, text->place, text->chunk,  text->single,
                          text->edges_begin, text->edges, text->pieces, text->counts};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) mem_free(arrays[i]);
  *text = (unigram_text_t){0};
}

void unigram_text_remove(unigram_text_t *text, const unsigned char *keep, int32_t *places) {
  int64_t pieces = text->single_count, edges = 0, begin = 0;
  for (int64_t i = 0; i < text->piece_count; i++) {
    places[i] = -1;
    if (i < text->single_count) places[i] = (int32_t)i;
    if (i < text->single_count || !keep[i]) continue;
    places[i] = (int32_t)pieces;
    text->counts[pieces] = text->counts[i];
    text->pieces[pieces++] = text->pieces[i];
  }
  text->piece_count = pieces;
  for (int64_t c = 0; c < text->chars; c++) {
    int64_t end = text->edges_begin[c + 1];
    for (int64_t e = begin; e < end; e++)
      if (places[text->edges[e]] >= 0) text->edges[edges++] = places[text->edges[e]];
    begin = end;
    text->edges_begin[c + 1] = edges;
  }
}
