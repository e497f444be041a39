/* Canonical composition (NFC): Unicode Standard Annex 15, with tables of the tokenizer's file. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* Hangul syllables are composed by arithmetic: Unicode Standard, section 3.12. */
enum {
  SYLLABLES = 0xAC00,
  LEADS = 0x1100,
  VOWELS = 0x1161,
  TAILS = 0x11A7,
  LEAD_COUNT = 19,
  VOWEL_COUNT = 21,
  TAIL_COUNT = 28,
  SYLLABLE_COUNT = LEAD_COUNT * VOWEL_COUNT * TAIL_COUNT
};

typedef struct {
  uint32_t point;
  uint8_t mark; /* combining class */
} Character;

static void add(Buffer *out, const mr_tokenizer *tokenizer, uint32_t point) {
  int64_t at = find_sorted(TABLE(tokenizer, MARKS, uint32_t), LENGTH(tokenizer, MARKS, uint32_t),
                           point);
  Character character = {point, at < 0 ? 0 : TABLE(tokenizer, MARK_CLASSES, uint8_t)[at]};
  buffer_add(out, &character, sizeof character);
}

static void decompose(Buffer *out, const mr_tokenizer *tokenizer, uint32_t point) {
  uint32_t syllable = point - SYLLABLES;
  if (syllable < SYLLABLE_COUNT) {
    add(out, tokenizer, LEADS + syllable / (VOWEL_COUNT * TAIL_COUNT));
    add(out, tokenizer, VOWELS + syllable / TAIL_COUNT % VOWEL_COUNT);
    if (syllable % TAIL_COUNT) add(out, tokenizer, TAILS + syllable % TAIL_COUNT);
    return;
  }
  int64_t at = find_sorted(TABLE(tokenizer, DECOMPOSED, uint32_t),
                           LENGTH(tokenizer, DECOMPOSED, uint32_t), point);
  if (at < 0) {
    add(out, tokenizer, point);
    return;
  }
  const uint32_t *starts = TABLE(tokenizer, DECOMPOSITION_STARTS, uint32_t);
  for (uint32_t i = starts[at]; i < starts[at + 1]; i++) {
    add(out, tokenizer, TABLE(tokenizer, DECOMPOSITIONS, uint32_t)[i]);
  }
}

/* Marks of one base character in the order of their classes; equal ones stay as they are. */
static void reorder(Character *text, size_t length) {
  for (size_t i = 1; i < length; i++) {
    Character moved = text[i];
    size_t to = i;
    for (; moved.mark && to && text[to - 1].mark > moved.mark; to--) text[to] = text[to - 1];
    text[to] = moved;
  }
}

static uint32_t compose_pair(const mr_tokenizer *tokenizer, uint32_t first, uint32_t second) {
  uint32_t lead = first - LEADS, vowel = second - VOWELS;
  if (lead < LEAD_COUNT && vowel < VOWEL_COUNT) {
    return SYLLABLES + (lead * VOWEL_COUNT + vowel) * TAIL_COUNT;
  }
  uint32_t syllable = first - SYLLABLES, tail = second - TAILS;
  if (syllable < SYLLABLE_COUNT && syllable % TAIL_COUNT == 0 && tail - 1 < TAIL_COUNT - 1) {
    return first + tail;
  }
  const uint32_t *rows = TABLE(tokenizer, COMPOSITIONS, uint32_t);
  int64_t low = 0, high = LENGTH(tokenizer, COMPOSITIONS, uint32_t) / 3;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    const uint32_t *row = rows + 3 * middle;
    if (row[0] == first && row[1] == second) return row[2];
    if (row[0] < first || (row[0] == first && row[1] < second)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return 0;
}

/* Composes in place; the new length. */
static size_t compose(const mr_tokenizer *tokenizer, Character *text, size_t length) {
  size_t used = 0, base = 0;
  int has_base = 0, last_mark = -1; /* class of what stands between base and the next; -1: nothing */
  for (size_t i = 0; i < length; i++) {
    if (has_base && last_mark < (int)text[i].mark) {
      uint32_t composed = compose_pair(tokenizer, text[base].point, text[i].point);
      if (composed) {
        text[base].point = composed;
        continue;
      }
    }
    last_mark = text[i].mark;
    if (!text[i].mark) {
      has_base = 1;
      base = used;
      last_mark = -1;
    }
    text[used++] = text[i];
  }
  return used;
}

void normalize_nfc(const mr_tokenizer *tokenizer, const char *text, size_t bytes, Buffer *out) {
  Buffer characters = {0};
  for (size_t at = 0; at < bytes;) {
    int size;
    decompose(&characters, tokenizer, utf8_read(text + at, &size));
    at += (size_t)size;
  }
  size_t length = characters.size / sizeof(Character);
  Character *all = (Character *)(void *)characters.data;
  for (size_t start = 0; start < length;) {
    size_t end = start + 1;
    while (end < length && all[end].mark) end++;
    reorder(all + start, end - start);
    start = end;
  }
  length = compose(tokenizer, all, length);
  for (size_t i = 0; i < length; i++) {
    char written[4];
    buffer_add(out, written, (size_t)utf8_write(all[i].point, written));
  }
  out->failed |= characters.failed;
  buffer_free(&characters);
}
