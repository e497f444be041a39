/* Text to token ids: added tokens are found first, the rest goes through the normalizers and
 * pre-tokenizers of the tables, and each piece that is left is encoded. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "tokenizer.h"

typedef struct {
  size_t start, end;
  int is_match;
} Span;

static Piece part_of(Piece whole, size_t start, size_t end) {
  return (Piece){whole.text + start, end - start, whole.at_start && !start};
}

static uint8_t class_of(const mr_tokenizer *tokenizer, uint32_t point) {
  uint32_t page = TABLE(tokenizer, CLASS_NUMBERS, uint16_t)[point >> 8];
  return TABLE(tokenizer, CLASS_PAGES, uint8_t)[page << 8 | (point & 255)];
}

size_t match_end(const mr_tokenizer *tokenizer, const int32_t *splitter, Piece piece, size_t at) {
  const int classes = fact(tokenizer, CLASSES);
  const uint16_t *rows = TABLE(tokenizer, TRANSITIONS, uint16_t) + splitter[1];
  size_t end = at;
  unsigned state = 1;
  for (size_t next = at; state;) {
    int kind = classes, size = 0;
    if (next < piece.bytes) kind = class_of(tokenizer, utf8_read(piece.text + next, &size));
    unsigned entry = rows[state * (unsigned)(classes + 1) + (unsigned)kind];
    if (entry & 1) end = next;
    if (!size) break;
    state = entry >> 1;
    next += (size_t)size;
  }
  return end;
}

static void add_span(Buffer *spans, size_t start, size_t end, int is_match) {
  Span span = {start, end, is_match};
  if (start < end) buffer_add(spans, &span, sizeof span);
}

/* Matches and what lies between them. */
static Buffer find_spans(const mr_tokenizer *tokenizer, const int32_t *splitter, Piece piece) {
  Buffer spans = {0};
  size_t gap = 0, at = 0;
  while (at < piece.bytes) {
    size_t end = match_end(tokenizer, splitter, piece, at);
    if (end == at) {
      int size;
      utf8_read(piece.text + at, &size);
      at += (size_t)size;
      continue;
    }
    add_span(&spans, gap, at, splitter[3]);
    add_span(&spans, at, end, !splitter[3]);
    gap = at = end;
  }
  add_span(&spans, gap, piece.bytes, splitter[3]);
  return spans;
}

/* Joins spans in place as the behavior says; how many are left. */
static size_t join_spans(Span *spans, size_t count, enum Behavior behavior) {
  size_t kept = 0;
  int before = 0; /* was the span before this one a match */
  for (size_t i = 0; i < count; i++) {
    Span span = spans[i];
    int join = 0;
    if (behavior == CONTIGUOUS) join = i && span.is_match == before;
    if (behavior == MERGED_WITH_PREVIOUS) join = kept && span.is_match && !before;
    if (behavior == MERGED_WITH_NEXT) join = kept && before && !span.is_match;
    before = span.is_match;
    if (behavior == REMOVED && span.is_match) continue;
    if (join) {
      spans[kept - 1].end = span.end;
    } else {
      spans[kept++] = span;
    }
  }
  return kept;
}

static void split(Encoder *encoder, int64_t step, Piece piece);

static void split_by(Encoder *encoder, int64_t step, int32_t number, Piece piece) {
  const int32_t *splitter = TABLE(encoder->tokenizer, SPLITTERS, int32_t) + 4 * number;
  Buffer found = find_spans(encoder->tokenizer, splitter, piece);
  if (found.failed) {
    encoder->failed = 1;
  } else {
    Span *spans = (Span *)(void *)found.data;
    size_t count = join_spans(spans, found.size / sizeof(Span), (enum Behavior)splitter[2]);
    for (size_t i = 0; i < count; i++) {
      split(encoder, step + 1, part_of(piece, spans[i].start, spans[i].end));
    }
  }
  buffer_free(&found);
}

/* The pre-tokenizers from `step` on, then the encoding. */
static void split(Encoder *encoder, int64_t step, Piece piece) {
  const mr_tokenizer *tokenizer = encoder->tokenizer;
  if (!piece.bytes || encoder->failed) return;
  if (step == LENGTH(tokenizer, STEPS, int32_t) / 4) {
    void (*encode)(Encoder *, const char *, size_t) =
        fact(tokenizer, UNIGRAM) ? encode_unigram : encode_word;
    encoder->failed |= piece.bytes > INT32_MAX; /* replacements may have made it so long */
    if (!encoder->failed) encode(encoder, piece.text, piece.bytes);
    return;
  }
  const int32_t *row = TABLE(tokenizer, STEPS, int32_t) + 4 * step;
  if (row[0] == STEP_SPLIT) {
    split_by(encoder, step, row[1], piece);
    return;
  }
  Buffer changed = {0};
  if (rewrite(tokenizer, row, piece, &changed)) {
    piece.text = changed.data;
    piece.bytes = changed.size;
  }
  encoder->failed |= changed.failed;
  split(encoder, step + 1, piece);
  buffer_free(&changed);
}

/* The longest added token at the start of `text`: its index and size, or -1. */
static int32_t added_at(const mr_tokenizer *tokenizer, int32_t node, const char *text, size_t bytes,
                        size_t *size) {
  int32_t found = -1;
  for (size_t at = 0;;) {
    int32_t index = TABLE(tokenizer, NODE_IDS, int32_t)[node];
    if (index >= 0 && at) found = index, *size = at; /* an empty one would never end */
    if (at == bytes) return found;
    uint32_t edge = TABLE(tokenizer, NODE_STARTS, uint32_t)[node];
    uint32_t last = TABLE(tokenizer, NODE_STARTS, uint32_t)[node + 1];
    const uint8_t *labels = TABLE(tokenizer, EDGE_BYTES, uint8_t);
    while (edge < last && labels[edge] != (uint8_t)text[at]) edge++;
    if (edge == last) return found;
    node = (int32_t)TABLE(tokenizer, EDGE_NODES, uint32_t)[edge];
    at++;
  }
}

static int is_space(const mr_tokenizer *tokenizer, const char *text, int *size) {
  return TABLE(tokenizer, CLASS_SPACES, uint8_t)[class_of(tokenizer, utf8_read(text, size))];
}

size_t blanks_before(const mr_tokenizer *tokenizer, Piece piece, size_t start, size_t end) {
  while (end > start) {
    size_t at = end - 1;
    int size;
    while (at > start && ((uint8_t)piece.text[at] & 0xC0) == 0x80) at--;
    if (!is_space(tokenizer, piece.text + at, &size)) break;
    end = at;
  }
  return end;
}

static size_t blanks_behind(const mr_tokenizer *tokenizer, Piece piece, size_t at) {
  int size;
  while (at < piece.bytes && is_space(tokenizer, piece.text + at, &size)) at += (size_t)size;
  return at;
}

typedef void Rest(Encoder *encoder, Piece piece);

/* Emits the added tokens of a trie and gives what lies between them to `rest`. */
static void split_added(Encoder *encoder, int32_t root, Piece piece, Rest *rest) {
  const mr_tokenizer *tokenizer = encoder->tokenizer;
  size_t done = 0, size = 0;
  for (size_t at = 0; root >= 0 && at < piece.bytes;) {
    int32_t index = added_at(tokenizer, root, piece.text + at, piece.bytes - at, &size);
    if (index < 0) {
      at++;
      continue;
    }
    const int32_t *added = TABLE(tokenizer, ADDED, int32_t) + 2 * index;
    size_t start = at, end = at += size;
    if (added[1] & 1) start = blanks_before(tokenizer, piece, done < start ? done : start, start);
    if (added[1] & 2) end = blanks_behind(tokenizer, piece, end);
    if (done < start) rest(encoder, part_of(piece, done, start));
    emit_token(encoder, added[0]);
    done = end;
  }
  if (done < piece.bytes) rest(encoder, part_of(piece, done, piece.bytes));
}

static void split_rest(Encoder *encoder, Piece piece) {
  split(encoder, fact(encoder->tokenizer, NORMALIZERS), piece);
}

/* Normalizes, then looks for the added tokens that are found in normalized text. */
static void normalize(Encoder *encoder, Piece piece) {
  const mr_tokenizer *tokenizer = encoder->tokenizer;
  Buffer text = {0};
  for (int32_t step = 0; step < fact(tokenizer, NORMALIZERS) && piece.bytes; step++) {
    Buffer changed = {0};
    if (!rewrite(tokenizer, TABLE(tokenizer, STEPS, int32_t) + 4 * step, piece, &changed)) continue;
    encoder->failed |= changed.failed;
    buffer_free(&text);
    text = changed;
    piece.text = text.data;
    piece.bytes = text.size;
  }
  if (!encoder->failed) {
    split_added(encoder, fact(tokenizer, NORMALIZED_TRIE), piece, split_rest);
  }
  buffer_free(&text);
}

int mr_tokenize(const mr_tokenizer *tokenizer, const char *text, int64_t bytes, int32_t *ids,
                int capacity, int *count) {
  int cut, bad;
  *count = 0;
  if (bytes < 0 || bytes > INT32_MAX / 8) {
    return fail(MR_INPUT, "the text is too long (got %lld bytes, need at most %d)",
                (long long)bytes, INT32_MAX / 8);
  }
  size_t valid = utf8_valid(text, (size_t)bytes, &cut, &bad);
  if (valid < (size_t)bytes) {
    return fail(MR_INPUT, "the text is not valid UTF-8 (at byte %zu)", valid);
  }
  Encoder encoder = {.tokenizer = tokenizer, .ids = ids, .capacity = capacity};
  Piece whole = {text, (size_t)bytes, 1};
  split_added(&encoder, fact(tokenizer, RAW_TRIE), whole, normalize);
  free(encoder.symbols);
  free(encoder.heap);
  if (encoder.failed) return fail(MR_RUNTIME, "not enough memory to tokenize the text");
  *count = (int)encoder.count;
  return MR_OK;
}
