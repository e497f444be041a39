/* The steps of a tokenizer that change a text: its normalizers, and pre-tokenizers that are like
 * them. */
#include <string.h>

#include "tokenizer.h"

static void replace(const mr_tokenizer *tokenizer, const int32_t *step, Piece piece, Buffer *out) {
  const int32_t *splitter = TABLE(tokenizer, SPLITTERS, int32_t) + 4 * step[1];
  for (size_t at = 0; at < piece.bytes;) {
    size_t end = match_end(tokenizer, splitter, piece, at);
    if (end > at) {
      buffer_add(out, TABLE(tokenizer, STRINGS, char) + step[2], (size_t)step[3]);
      at = end;
    } else {
      int size;
      utf8_read(piece.text + at, &size);
      buffer_add(out, piece.text + at, (size_t)size);
      at += (size_t)size;
    }
  }
}

/* The replacement that a unit of the map ends with, NULL where it names none. */
static const char *replacement_at(const mr_tokenizer *tokenizer, uint32_t unit, size_t *bytes) {
  const char *texts = TABLE(tokenizer, REPLACEMENTS, char);
  uint32_t at = unit & 0x7FFFFFFF;
  size_t room = (size_t)tokenizer->bytes[REPLACEMENTS];
  if (at >= room || ((uint8_t)texts[at] & 0xC0) == 0x80) return NULL; /* damaged */
  const char *end = memchr(texts + at, 0, room - at);
  *bytes = end ? (size_t)(end - texts) - at : room - at;
  return texts + at;
}

/* What the shortest string of the map at the start of `text` stands for, or NULL.
 *
 * A unit has a byte that must be the one that led to it, whether a string ends here (bit 8), and how
 * far its children are from it, in bits 10 to 31, times 256 with bit 9; the child of byte 0 is what
 * the string stands for. */
static const char *find_mapped(const mr_tokenizer *tokenizer, const char *text, size_t bytes,
                               size_t *found) {
  const uint32_t *units = TABLE(tokenizer, CHARSMAP, uint32_t);
  uint32_t count = (uint32_t)LENGTH(tokenizer, CHARSMAP, uint32_t), place = 0;
  for (size_t at = 0; place < count; at++) {
    uint32_t unit = units[place], offset = unit >> 10 << (unit >> 6 & 8);
    if (at && (unit & 0x800000FF) != (uint8_t)text[at - 1]) return NULL;
    place ^= offset;
    if (at && unit & 256) {
      return place < count ? replacement_at(tokenizer, units[place], found) : NULL;
    }
    if (at == bytes || !text[at]) return NULL;
    place ^= (uint8_t)text[at];
  }
  return NULL;
}

/* Adds what a part of the text is mapped to; 0 where it is not mapped. */
static int add_mapped(const mr_tokenizer *tokenizer, const char *text, size_t bytes, Buffer *out) {
  size_t size;
  const char *mapped = find_mapped(tokenizer, text, bytes, &size);
  if (mapped) buffer_add(out, mapped, size);
  return mapped != NULL;
}

static void map_characters(const mr_tokenizer *tokenizer, const char *text, size_t bytes,
                           Buffer *out) {
  for (size_t at = 0; at < bytes;) {
    int size;
    utf8_read(text + at, &size);
    if (!add_mapped(tokenizer, text + at, (size_t)size, out)) {
      buffer_add(out, text + at, (size_t)size);
    }
    at += (size_t)size;
  }
}

/* SentencePiece's map, as the tokenizers library applies it; see codegen/tokenizer/charsmap.py. */
static void map_clusters(const mr_tokenizer *tokenizer, const int32_t *step, Piece piece,
                         Buffer *out) {
  enum { MOST_BYTES = 5 };
  const int32_t *splitter = TABLE(tokenizer, SPLITTERS, int32_t) + 4 * step[1];
  for (size_t at = 0; at < piece.bytes;) {
    int size;
    utf8_read(piece.text + at, &size);
    size_t end = match_end(tokenizer, splitter, piece, at);
    size_t bytes = end > at ? end - at : (size_t)size;
    if (bytes > MOST_BYTES || !add_mapped(tokenizer, piece.text + at, bytes, out)) {
      map_characters(tokenizer, piece.text + at, bytes, out);
    }
    at += bytes;
  }
}

int rewrite(const mr_tokenizer *tokenizer, const int32_t *step, Piece piece, Buffer *out) {
  const char *strings = TABLE(tokenizer, STRINGS, char);
  switch (step[0]) {
    case STEP_NFC:
      normalize_nfc(tokenizer, piece.text, piece.bytes, out);
      return 1;
    case STEP_REPLACE:
      replace(tokenizer, step, piece, out);
      return 1;
    case STEP_STRIP_END:
      buffer_add(out, piece.text, blanks_before(tokenizer, piece, 0, piece.bytes));
      return 1;
    case STEP_CHARSMAP:
      map_clusters(tokenizer, step, piece, out);
      return 1;
    case STEP_PREPEND_MISSING: {
      size_t size = (size_t)step[2];
      int there = piece.bytes >= size && !memcmp(piece.text, strings + step[1], size);
      if (there || (step[3] && !piece.at_start)) return 0;
    }
    /* fall through */
    default:
      buffer_add(out, strings + step[1], (size_t)step[2]);
      buffer_add(out, piece.text, piece.bytes);
      return 1;
  }
}
