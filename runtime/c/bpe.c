/* Byte-pair encoding of one piece: the pair of neighbours with the lowest rank is merged, the
 * leftmost of equal ones, until no pair has a merge. A heap keeps the pairs, so a piece of n
 * symbols takes n log n steps however long it is. */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

int64_t find_sorted(const uint32_t *array, int64_t length, uint32_t wanted) {
  int64_t low = 0, high = length;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (array[middle] == wanted) return middle;
    if (array[middle] < wanted) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return -1;
}

void emit_token(Encoder *encoder, int32_t id) {
  if (encoder->count < encoder->capacity) encoder->ids[encoder->count] = id;
  encoder->count++;
}

/* Room for one more element of an array that doubles; 0 when there is no memory. */
static int reserve(void **array, int64_t count, int64_t *room, size_t element) {
  if (count < *room) return 1;
  int64_t wanted = 2 * *room + 64;
  void *grown = realloc(*array, (size_t)wanted * element);
  if (!grown) return 0;
  *array = grown;
  *room = wanted;
  return 1;
}

static void add_symbol(Encoder *e, int32_t id, int bytes) {
  if (!reserve((void **)&e->symbols, e->symbol_count, &e->symbol_room, sizeof *e->symbols)) {
    e->failed = 1;
    return;
  }
  int32_t at = (int32_t)e->symbol_count++;
  e->symbols[at] = (Symbol){id, at - 1, at + 1, bytes};
}

static int before(Candidate a, Candidate b) {
  return a.rank < b.rank || (a.rank == b.rank && a.place < b.place);
}

static void push(Encoder *e, Candidate candidate) {
  if (!reserve((void **)&e->heap, e->heap_count, &e->heap_room, sizeof *e->heap)) {
    e->failed = 1;
    return;
  }
  int64_t at = e->heap_count++;
  for (; at && before(candidate, e->heap[(at - 1) / 2]); at = (at - 1) / 2) {
    e->heap[at] = e->heap[(at - 1) / 2];
  }
  e->heap[at] = candidate;
}

static Candidate pop(Encoder *e) {
  Candidate top = e->heap[0], last = e->heap[--e->heap_count];
  int64_t at = 0;
  for (;;) {
    int64_t child = 2 * at + 1;
    if (child >= e->heap_count) break;
    if (child + 1 < e->heap_count && before(e->heap[child + 1], e->heap[child])) child++;
    if (!before(e->heap[child], last)) break;
    e->heap[at] = e->heap[child];
    at = child;
  }
  e->heap[at] = last;
  return top;
}

/* The merge of two tokens; -1 where there is none. */
static int64_t find_merge(const mr_tokenizer *tokenizer, int32_t left, int32_t right) {
  const uint32_t *starts = TABLE(tokenizer, MERGE_STARTS, uint32_t) + left;
  const uint32_t *rights = TABLE(tokenizer, MERGE_RIGHTS, uint32_t) + starts[0];
  int64_t found = find_sorted(rights, starts[1] - starts[0], (uint32_t)right);
  return found < 0 ? -1 : starts[0] + found;
}

/* Adds the merge of the symbol at `place` with its neighbour, if there is one. */
static void consider(Encoder *e, int32_t place) {
  Symbol symbol = e->symbols[place];
  if (symbol.next >= e->symbol_count) return;
  int64_t merge = find_merge(e->tokenizer, symbol.id, e->symbols[symbol.next].id);
  if (merge < 0) return;
  int32_t rank = TABLE(e->tokenizer, MERGE_RANKS, int32_t)[merge];
  push(e, (Candidate){rank, place, TABLE(e->tokenizer, MERGE_RESULTS, int32_t)[merge]});
}

static void merge_all(Encoder *e) {
  for (int32_t i = 0; i + 1 < e->symbol_count && !e->failed; i++) consider(e, i);
  while (e->heap_count && !e->failed) {
    Candidate top = pop(e);
    Symbol *left = e->symbols + top.place;
    if (!left->bytes || left->next >= e->symbol_count) continue; /* merged into another one */
    Symbol *right = e->symbols + left->next;
    int64_t merge = find_merge(e->tokenizer, left->id, right->id);
    if (merge < 0 || TABLE(e->tokenizer, MERGE_RESULTS, int32_t)[merge] != top.id) continue;
    left->id = top.id;
    left->bytes += right->bytes;
    right->bytes = 0;
    left->next = right->next;
    if (left->next < e->symbol_count) e->symbols[left->next].previous = top.place;
    if (left->previous >= 0) consider(e, left->previous);
    consider(e, top.place);
  }
}

/* The symbols of a text whose tokens are spelled in bytes. */
static void add_bytes(Encoder *e, const char *text, size_t bytes) {
  int32_t unknown = fact(e->tokenizer, UNKNOWN);
  for (size_t i = 0; i < bytes; i++) {
    int32_t id = TABLE(e->tokenizer, BYTE_IDS, int32_t)[(uint8_t)text[i]];
    if (id < 0) id = unknown;
    if (id >= 0) add_symbol(e, id, 1);
  }
}

int has_byte_tokens(const mr_tokenizer *tokenizer, const char *text, int bytes) {
  for (int i = 0; i < bytes; i++) {
    if (TABLE(tokenizer, BYTE_IDS, int32_t)[(uint8_t)text[i]] < 0) return 0;
  }
  return 1;
}

/* The symbols of a text whose tokens are spelled in characters. As in the library, an unknown
 * character waits until a known one follows, while bytes that stand for a character do not wait. */
static void add_characters(Encoder *e, const char *text, size_t bytes) {
  const mr_tokenizer *t = e->tokenizer;
  int32_t unknown = fact(t, UNKNOWN);
  int waiting = 0; /* bytes that the unknown token stands for */
  for (size_t at = 0; at < bytes;) {
    int size;
    uint32_t point = utf8_read(text + at, &size);
    int64_t found = find_sorted(TABLE(t, CHARACTERS, uint32_t), LENGTH(t, CHARACTERS, uint32_t),
                                point);
    if (found >= 0) {
      if (waiting) add_symbol(e, unknown, waiting);
      waiting = 0;
      add_symbol(e, TABLE(t, CHARACTER_IDS, int32_t)[found], size);
    } else if (fact(t, BYTE_FALLBACK) && has_byte_tokens(t, text + at, size)) {
      for (int i = 0; i < size; i++) {
        add_symbol(e, TABLE(t, BYTE_IDS, int32_t)[(uint8_t)text[at + i]], 1);
      }
    } else if (unknown >= 0) {
      if (waiting && !fact(t, FUSE_UNKNOWN)) {
        add_symbol(e, unknown, waiting);
        waiting = 0;
      }
      waiting += size;
    }
    at += (size_t)size;
  }
  if (waiting) add_symbol(e, unknown, waiting);
}

int32_t find_word(const mr_tokenizer *t, const char *text, size_t bytes) {
  const uint32_t *starts = TABLE(t, WORD_STARTS, uint32_t);
  int64_t low = 0, high = LENGTH(t, WORD_IDS, int32_t);
  while (low < high) {
    int64_t middle = (low + high) / 2;
    size_t length = starts[middle + 1] - starts[middle];
    int order = memcmp(TABLE(t, WORDS, char) + starts[middle], text, length < bytes ? length : bytes);
    if (!order && length == bytes) return TABLE(t, WORD_IDS, int32_t)[middle];
    if (order < 0 || (!order && length < bytes)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return -1;
}

void encode_word(Encoder *encoder, const char *text, size_t bytes) {
  const mr_tokenizer *tokenizer = encoder->tokenizer;
  if (fact(tokenizer, WHOLE_WORDS)) {
    int32_t id = find_word(tokenizer, text, bytes);
    if (id >= 0) {
      emit_token(encoder, id);
      return;
    }
  }
  encoder->symbol_count = encoder->heap_count = 0;
  if (fact(tokenizer, SYMBOLS_ARE_BYTES)) {
    add_bytes(encoder, text, bytes);
  } else {
    add_characters(encoder, text, bytes);
  }
  if (encoder->failed) return;
  merge_all(encoder);
  for (int64_t i = 0; i < encoder->symbol_count && !encoder->failed; i++) {
    if (encoder->symbols[i].bytes) emit_token(encoder, encoder->symbols[i].id);
  }
}
