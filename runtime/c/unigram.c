/* Unigram encoding of one piece: of all ways to spell it with tokens the one whose scores add up to
 * the most (Kudo, arXiv 1804.10959), found from left to right. A character that is no token by
 * itself counts as unknown, with a score below all tokens'. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* The best spelling of the text up to a byte. */
typedef struct {
  double score;
  int32_t start, id; /* of its last token; start -1 where no spelling ends */
  int32_t next;      /* where the token that starts here ends, on the best way through the text */
} Best;

/* Words [low, high) that begin alike. */
typedef struct {
  int64_t low, high;
} Words;

/* The first of some words whose byte at `at` is not below `byte`; a word that ends there comes
 * before all others. */
static int64_t first_from(const mr_tokenizer *t, Words words, uint32_t at, int byte) {
  const uint32_t *starts = TABLE(t, WORD_STARTS, uint32_t);
  const uint8_t *text = TABLE(t, WORDS, uint8_t);
  while (words.low < words.high) {
    int64_t middle = (words.low + words.high) / 2;
    uint32_t size = starts[middle + 1] - starts[middle];
    int found = at < size ? text[starts[middle] + at] : -1;
    if (found < byte) {
      words.low = middle + 1;
    } else {
      words.high = middle;
    }
  }
  return words.low;
}

static void improve(Best *end, double score, int32_t start, int32_t id) {
  if (end->start < 0 || score > end->score) *end = (Best){score, start, id, 0};
}

/* Goes on from `at` with every token that the text has there. */
static void extend(const mr_tokenizer *t, const char *text, int32_t bytes, int32_t at, Best *best) {
  const uint32_t *starts = TABLE(t, WORD_STARTS, uint32_t);
  const double *scores = TABLE(t, SCORES, double);
  int64_t count = LENGTH(t, WORD_IDS, int32_t);
  Words words = {0, count};
  int size, whole = 0;
  utf8_read(text + at, &size);
  for (int32_t i = 0; at + i < bytes; i++) {
    int byte = (uint8_t)text[at + i];
    words.low = first_from(t, words, (uint32_t)i, byte);
    words.high = first_from(t, words, (uint32_t)i, byte + 1);
    if (words.low == words.high) break;
    if (starts[words.low + 1] - starts[words.low] != (uint32_t)i + 1) continue;
    int32_t id = TABLE(t, WORD_IDS, int32_t)[words.low];
    improve(&best[at + i + 1], best[at].score + scores[words.low], at, id);
    whole |= i + 1 == size;
  }
  if (!whole) improve(&best[at + size], best[at].score + scores[count], at, fact(t, UNKNOWN));
}

/* What unknown characters in a row become: the token that all of them are, their bytes' tokens, or
 * one unknown token. */
static void emit_unknown(Encoder *e, const char *text, int32_t bytes) {
  const mr_tokenizer *t = e->tokenizer;
  int32_t id = find_word(t, text, (size_t)bytes);
  if (id >= 0 || !fact(t, BYTE_FALLBACK) || !has_byte_tokens(t, text, bytes)) {
    emit_token(e, id >= 0 ? id : fact(t, UNKNOWN));
    return;
  }
  for (int32_t i = 0; i < bytes; i++) {
    emit_token(e, TABLE(t, BYTE_IDS, int32_t)[(uint8_t)text[i]]);
  }
}

static void emit_best(Encoder *e, const char *text, int32_t bytes, Best *best) {
  int32_t unknown = fact(e->tokenizer, UNKNOWN);
  for (int32_t end = bytes; end; end = best[end].start) best[best[end].start].next = end;
  for (int32_t at = 0; at < bytes;) {
    int32_t end = best[at].next;
    if (best[end].id != unknown) {
      emit_token(e, best[end].id);
    } else {
      while (end < bytes && best[best[end].next].id == unknown) end = best[end].next;
      emit_unknown(e, text + at, end - at);
    }
    at = end;
  }
}

void encode_unigram(Encoder *encoder, const char *text, size_t bytes) {
  Best *best = malloc((bytes + 1) * sizeof *best);
  if (!best) {
    encoder->failed = 1;
    return;
  }
  best[0] = (Best){0};
  for (size_t i = 1; i <= bytes; i++) best[i] = (Best){0, -1, 0, 0};
  for (int32_t at = 0, size; at < (int32_t)bytes; at += size) {
    utf8_read(text + at, &size);
    extend(encoder->tokenizer, text, (int32_t)bytes, at, best);
  }
  emit_best(encoder, text, (int32_t)bytes, best);
  free(best);
}
