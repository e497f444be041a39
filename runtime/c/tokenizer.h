/* A compiled tokenizer: tables of DIR/tokenizer.bin that were made from tokenizer.json.
 *
 * codegen/tokenizer/tables.py writes the file and says what each section holds; the lists here are
 * in its order. All numbers in the file are little-endian, as the machines are that read it. */
#ifndef MORENDO_TOKENIZER_H
#define MORENDO_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "morendo.h"

enum { TOKENIZER_VERSION = 3 };

enum Section {
  FACTS,
  CLASS_NUMBERS,
  CLASS_PAGES,
  CLASS_SPACES,
  SPLITTERS,
  TRANSITIONS,
  STEPS,
  STRINGS,
  TEXT_STARTS,
  TEXTS,
  KINDS,
  BYTE_IDS,
  CHARACTERS,
  CHARACTER_IDS,
  MERGE_STARTS,
  MERGE_RIGHTS,
  MERGE_RANKS,
  MERGE_RESULTS,
  WORD_STARTS,
  WORDS,
  WORD_IDS,
  SCORES,
  NODE_STARTS,
  NODE_IDS,
  EDGE_BYTES,
  EDGE_NODES,
  ADDED,
  DECOMPOSED,
  DECOMPOSITION_STARTS,
  DECOMPOSITIONS,
  MARKS,
  MARK_CLASSES,
  COMPOSITIONS,
  CHARSMAP,
  REPLACEMENTS,
  SECTIONS
};

enum Fact {
  VOCABULARY,
  CLASSES,
  SYMBOLS_ARE_BYTES,
  BYTE_FALLBACK,
  UNKNOWN,
  FUSE_UNKNOWN,
  WHOLE_WORDS,
  UNIGRAM,
  RAW_TRIE,
  NORMALIZED_TRIE,
  NORMALIZERS,
  BYTES_DECODE,
  STRIP_START,
  FACT_COUNT
};

enum StepKind {
  STEP_NFC,
  STEP_PREPEND,
  STEP_REPLACE,
  STEP_SPLIT,
  STEP_PREPEND_MISSING,
  STEP_STRIP_END,
  STEP_CHARSMAP
};
enum Behavior { REMOVED, ISOLATED, CONTIGUOUS, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, BEHAVIORS };
enum TokenKind { PLAIN, SPECIAL, BYTE, NO_TOKEN };

struct mr_tokenizer {
  void *file;
  size_t file_bytes;
  const void *data[SECTIONS];
  int64_t bytes[SECTIONS];
};

/* The array of a section, and how many elements it has. */
#define TABLE(tokenizer, section, type) ((const type *)(tokenizer)->data[section])
#define LENGTH(tokenizer, section, type) \
  ((int64_t)((tokenizer)->bytes[section] / (int64_t)sizeof(type)))

static inline int32_t fact(const mr_tokenizer *tokenizer, enum Fact which) {
  return TABLE(tokenizer, FACTS, int32_t)[which];
}

/* Bytes that grow; `failed` once there was no memory, and then nothing is appended any more. */
typedef struct {
  char *data;
  size_t size, capacity;
  int failed;
} Buffer;

void buffer_add(Buffer *buffer, const void *data, size_t bytes);
void buffer_free(Buffer *buffer);
/* Ends a call that gives a text: after no `error` copies what has room; frees the buffer. */
int buffer_give(Buffer *buffer, int error, char *text, int64_t capacity, int64_t *bytes);

/* utf8.c: the code point at `text` and its number of bytes; the text is valid UTF-8. */
uint32_t utf8_read(const char *text, int *bytes);
/* Writes up to 4 bytes; their number. */
int utf8_write(uint32_t point, char *out);
/* Bytes of the longest start of `text` that is valid UTF-8. `cut` becomes the number of bytes
 * behind it that could begin a character if more followed, else 0. `bad` becomes how many bytes
 * one replacement character stands for where the text goes on with something invalid. */
size_t utf8_valid(const char *text, size_t bytes, int *cut, int *bad);

/* What is being split, and whether it begins where the whole text does. */
typedef struct {
  const char *text;
  size_t bytes;
  int at_start;
} Piece;

/* tokenize.c: where the match of a row of SPLITTERS that starts at `at` ends; `at` when there is
 * none. */
size_t match_end(const mr_tokenizer *tokenizer, const int32_t *splitter, Piece piece, size_t at);
/* Where the blanks before `end` begin, not before `start`. */
size_t blanks_before(const mr_tokenizer *tokenizer, Piece piece, size_t start, size_t end);

/* normalize.c: appends what a step that changes text makes of `piece`; 0 when it leaves it as it
 * is. */
int rewrite(const mr_tokenizer *tokenizer, const int32_t *step, Piece piece, Buffer *out);

/* nfc.c: appends the canonical composition of `text`. */
void normalize_nfc(const mr_tokenizer *tokenizer, const char *text, size_t bytes, Buffer *out);

/* bpe.c: byte-pair encoding of one piece. */
typedef struct {
  int32_t id, previous, next, bytes;
} Symbol;

typedef struct {
  int32_t rank, place, id;
} Candidate;

typedef struct {
  const mr_tokenizer *tokenizer;
  int32_t *ids; /* the caller's, with room for `capacity` */
  int64_t capacity, count;
  Symbol *symbols;
  int64_t symbol_count, symbol_room;
  Candidate *heap;
  int64_t heap_count, heap_room;
  int failed; /* no memory */
} Encoder;

void emit_token(Encoder *encoder, int32_t id);
void encode_word(Encoder *encoder, const char *text, size_t bytes);
/* The token that is this whole text, or -1; for tables of words. */
int32_t find_word(const mr_tokenizer *tokenizer, const char *text, size_t bytes);
/* Whether each of some bytes has a token of its own. */
int has_byte_tokens(const mr_tokenizer *tokenizer, const char *text, int bytes);

/* unigram.c: the other way to encode a piece. */
void encode_unigram(Encoder *encoder, const char *text, size_t bytes);

/* Index of `wanted` in a sorted array, or -1. */
int64_t find_sorted(const uint32_t *array, int64_t length, uint32_t wanted);

/* detokenize.c: text of one token after the other. */
typedef struct {
  const mr_tokenizer *tokenizer;
  Buffer held; /* bytes that wait for the rest of their character, or of a run of byte tokens */
  int strip;   /* blanks that may still be taken away in front */
} TextStream;

void text_start(TextStream *stream, const mr_tokenizer *tokenizer);
/* Appends what is complete with this token to `out`; MR_INPUT for an id that is no token. */
int text_push(TextStream *stream, int32_t id, Buffer *out);
/* Appends what was held back, and frees the stream's memory. */
void text_finish(TextStream *stream, Buffer *out);

#endif
