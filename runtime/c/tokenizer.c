/* Opening the tables of a tokenizer. Every number that another part uses as an index is checked
 * here once, so that no file can make them read or write outside their memory. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "tokenizer.h"

enum { POINTS = 0x110000, MOST_STEPS = 64, HEADER = 16 };

static int damaged(const char *what) {
  return fail(MR_ARTIFACT, "tokenizer.bin is damaged (%s)", what);
}

/* Offsets into an array of `bytes` of elements: from 0, never falling, to its end. */
static int check_starts(const mr_tokenizer *t, enum Section section, int64_t count, int64_t end) {
  const uint32_t *starts = TABLE(t, section, uint32_t);
  if (LENGTH(t, section, uint32_t) != count + 1 || starts[0] != 0 || starts[count] != end) return 0;
  for (int64_t i = 0; i < count; i++) {
    if (starts[i] > starts[i + 1]) return 0;
  }
  return 1;
}

static int check_range(const mr_tokenizer *t, enum Section section, int32_t low, int32_t high) {
  const int32_t *values = TABLE(t, section, int32_t);
  for (int64_t i = 0; i < LENGTH(t, section, int32_t); i++) {
    if (values[i] < low || values[i] >= high) return 0;
  }
  return 1;
}

static int check_facts(const mr_tokenizer *t) {
  if (t->bytes[FACTS] != FACT_COUNT * (int64_t)sizeof(int32_t)) return 0;
  int32_t vocabulary = fact(t, VOCABULARY), classes = fact(t, CLASSES);
  if (vocabulary < 1 || vocabulary > 1 << 28 || classes < 1 || classes > 255) return 0;
  int64_t steps = t->bytes[STEPS] / 16;
  if (fact(t, NORMALIZERS) < 0 || fact(t, NORMALIZERS) > steps) return 0;
  if (fact(t, UNKNOWN) < -1 || fact(t, UNKNOWN) >= vocabulary) return 0;
  int64_t nodes = LENGTH(t, NODE_IDS, int32_t);
  if (fact(t, RAW_TRIE) < -1 || fact(t, RAW_TRIE) >= nodes) return 0;
  if (fact(t, NORMALIZED_TRIE) < -1 || fact(t, NORMALIZED_TRIE) >= nodes) return 0;
  return fact(t, STRIP_START) >= 0;
}

static int check_classes(const mr_tokenizer *t) {
  int64_t pages = t->bytes[CLASS_PAGES] / 256;
  if (LENGTH(t, CLASS_NUMBERS, uint16_t) != POINTS / 256 || t->bytes[CLASS_PAGES] % 256) return 0;
  if (t->bytes[CLASS_SPACES] != fact(t, CLASSES)) return 0;
  for (int64_t i = 0; i < POINTS / 256; i++) {
    if (TABLE(t, CLASS_NUMBERS, uint16_t)[i] >= pages) return 0;
  }
  for (int64_t i = 0; i < t->bytes[CLASS_PAGES]; i++) {
    if (TABLE(t, CLASS_PAGES, uint8_t)[i] >= fact(t, CLASSES)) return 0;
  }
  return 1;
}

static int check_splitters(const mr_tokenizer *t) {
  int64_t columns = fact(t, CLASSES) + 1, all = LENGTH(t, TRANSITIONS, uint16_t);
  for (int64_t i = 0; i < t->bytes[SPLITTERS] / 16; i++) {
    const int32_t *row = TABLE(t, SPLITTERS, int32_t) + 4 * i;
    if (row[0] < 2 || row[1] < 0 || row[1] + row[0] * columns > all) return 0;
    if (row[2] < 0 || row[2] >= BEHAVIORS || row[3] < 0 || row[3] > 1) return 0;
    for (int64_t at = row[1]; at < row[1] + row[0] * columns; at++) {
      if (TABLE(t, TRANSITIONS, uint16_t)[at] >> 1 >= row[0]) return 0;
    }
  }
  return 1;
}

static int check_string(const mr_tokenizer *t, int32_t offset, int32_t size) {
  int cut, bad;
  if (offset < 0 || size < 0 || (int64_t)offset + size > t->bytes[STRINGS]) return 0;
  return utf8_valid(TABLE(t, STRINGS, char) + offset, (size_t)size, &cut, &bad) == (size_t)size;
}

static int has_splitter(const mr_tokenizer *t, int32_t number) {
  return number >= 0 && number < t->bytes[SPLITTERS] / 16;
}

static int check_steps(const mr_tokenizer *t) {
  int64_t count = t->bytes[STEPS] / 16;
  if (count > MOST_STEPS || t->bytes[STEPS] % 16) return 0;
  for (int64_t i = 0; i < count; i++) {
    const int32_t *row = TABLE(t, STEPS, int32_t) + 4 * i;
    switch (row[0]) {
      case STEP_NFC:
      case STEP_STRIP_END:
        break;
      case STEP_PREPEND:
      case STEP_PREPEND_MISSING:
        if (!check_string(t, row[1], row[2])) return 0;
        break;
      case STEP_REPLACE:
        if (!has_splitter(t, row[1]) || !check_string(t, row[2], row[3])) return 0;
        break;
      case STEP_CHARSMAP:
        if (!has_splitter(t, row[1])) return 0;
        break;
      case STEP_SPLIT:
        if (i < fact(t, NORMALIZERS) || !has_splitter(t, row[1])) return 0;
        break;
      default:
        return 0;
    }
  }
  return 1;
}

static int check_vocabulary(const mr_tokenizer *t) {
  int32_t size = fact(t, VOCABULARY);
  int64_t merges = LENGTH(t, MERGE_RIGHTS, int32_t), words = LENGTH(t, WORD_IDS, int32_t);
  if (!check_starts(t, TEXT_STARTS, size, t->bytes[TEXTS]) || t->bytes[KINDS] != size) return 0;
  if (!check_starts(t, MERGE_STARTS, size, merges)) return 0;
  if (LENGTH(t, MERGE_RANKS, int32_t) != merges) return 0;
  if (LENGTH(t, MERGE_RESULTS, int32_t) != merges || !check_range(t, MERGE_RESULTS, 0, size)) {
    return 0;
  }
  if (LENGTH(t, BYTE_IDS, int32_t) != 256 || !check_range(t, BYTE_IDS, -1, size)) return 0;
  if (LENGTH(t, CHARACTERS, uint32_t) != LENGTH(t, CHARACTER_IDS, int32_t)) return 0;
  if (!check_range(t, CHARACTER_IDS, 0, size)) return 0;
  if (!fact(t, WHOLE_WORDS) && !fact(t, UNIGRAM)) return 1;
  if (fact(t, UNIGRAM) && (fact(t, UNKNOWN) < 0 || LENGTH(t, SCORES, double) != words + 1)) {
    return 0;
  }
  return check_starts(t, WORD_STARTS, words, t->bytes[WORDS]) && check_range(t, WORD_IDS, 0, size);
}

static int check_added(const mr_tokenizer *t) {
  int64_t nodes = LENGTH(t, NODE_IDS, int32_t), edges = t->bytes[EDGE_BYTES];
  int64_t added = t->bytes[ADDED] / 8;
  if (t->bytes[ADDED] % 8 || nodes > INT32_MAX - 1 || added > INT32_MAX - 1) return 0;
  if (!nodes) return fact(t, RAW_TRIE) < 0 && fact(t, NORMALIZED_TRIE) < 0;
  if (!check_starts(t, NODE_STARTS, nodes, edges)) return 0;
  if (LENGTH(t, EDGE_NODES, uint32_t) != edges) return 0;
  for (int64_t i = 0; i < edges; i++) {
    if (TABLE(t, EDGE_NODES, uint32_t)[i] >= nodes) return 0;
  }
  for (int64_t i = 0; i < added; i++) {
    int32_t id = TABLE(t, ADDED, int32_t)[2 * i];
    if (id < 0 || id >= fact(t, VOCABULARY)) return 0;
  }
  return check_range(t, NODE_IDS, -1, (int32_t)added);
}

static int check_points(const mr_tokenizer *t, enum Section section) {
  for (int64_t i = 0; i < LENGTH(t, section, uint32_t); i++) {
    uint32_t point = TABLE(t, section, uint32_t)[i];
    if (point >= POINTS || (point >= 0xD800 && point < 0xE000)) return 0;
  }
  return 1;
}

static int check_normalization(const mr_tokenizer *t) {
  int64_t count = LENGTH(t, DECOMPOSED, uint32_t);
  if (count &&
      !check_starts(t, DECOMPOSITION_STARTS, count, LENGTH(t, DECOMPOSITIONS, uint32_t))) {
    return 0;
  }
  if (t->bytes[MARK_CLASSES] != LENGTH(t, MARKS, uint32_t)) return 0;
  int cut, bad;
  size_t bytes = (size_t)t->bytes[REPLACEMENTS];
  if (utf8_valid(TABLE(t, REPLACEMENTS, char), bytes, &cut, &bad) != bytes) return 0;
  return check_points(t, DECOMPOSITIONS) && check_points(t, COMPOSITIONS) &&
         t->bytes[COMPOSITIONS] % 12 == 0;
}

/* codegen/tokenizer/tables.py has the same sum. */
static uint32_t checksum(const char *body, size_t bytes) {
  uint64_t total = 0, word;
  for (size_t i = 0; i < bytes / 8; i++) {
    memcpy(&word, body + 8 * i, 8);
    total += word * ((2 * (uint64_t)i + 1) * 0x9E3779B97F4A7C15u);
  }
  return (uint32_t)(total ^ total >> 32);
}

static int find_sections(mr_tokenizer *t) {
  const char *file = t->file;
  uint32_t head[3];
  if (t->file_bytes < HEADER + 16 * SECTIONS || memcmp(file, "MRTK", 4)) {
    return damaged("it is no tokenizer");
  }
  memcpy(head, file + 4, sizeof head);
  if (head[0] != TOKENIZER_VERSION || head[1] != SECTIONS) {
    return fail(MR_ARTIFACT, "tokenizer.bin is of another version (got %u, need %d)", head[0],
                TOKENIZER_VERSION);
  }
  if (t->file_bytes % 8 || checksum(file + HEADER, t->file_bytes - HEADER) != head[2]) {
    return damaged("its checksum does not fit");
  }
  for (int i = 0; i < SECTIONS; i++) {
    uint64_t place[2];
    memcpy(place, file + HEADER + 16 * i, sizeof place);
    if (place[0] % 8 || place[0] > t->file_bytes || place[1] > t->file_bytes - place[0]) {
      return damaged("a table lies outside");
    }
    t->data[i] = file + place[0];
    t->bytes[i] = (int64_t)place[1];
  }
  return MR_OK;
}

static int check(const mr_tokenizer *t) {
  if (!check_facts(t)) return damaged("its facts");
  if (!check_classes(t) || !check_splitters(t) || !check_steps(t)) return damaged("its patterns");
  if (!check_vocabulary(t) || !check_added(t)) return damaged("its vocabulary");
  return check_normalization(t) ? MR_OK : damaged("its normalization");
}

static int map_file(mr_tokenizer *t, const char *path) {
  struct stat info;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0 || fstat(file, &info) || info.st_size < 1) {
    if (file >= 0) close(file);
    return fail(MR_ARTIFACT, "cannot read %s", path);
  }
  void *memory = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (memory == MAP_FAILED) return fail(MR_RUNTIME, "cannot map %s", path);
  t->file = memory;
  t->file_bytes = (size_t)info.st_size;
  return MR_OK;
}

int mr_tokenizer_open(const char *artifact_dir, mr_tokenizer **out) {
  char path[4096];
  *out = NULL;
  if (snprintf(path, sizeof path, "%s/tokenizer.bin", artifact_dir) >= (int)sizeof path) {
    return fail(MR_ARTIFACT, "the artifact's path is too long");
  }
  mr_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
  if (!tokenizer) return fail(MR_RUNTIME, "not enough memory for a tokenizer");
  int error = map_file(tokenizer, path);
  if (!error) error = find_sections(tokenizer);
  if (!error) error = check(tokenizer);
  if (error) {
    mr_tokenizer_close(tokenizer);
    return error;
  }
  *out = tokenizer;
  return MR_OK;
}

void mr_tokenizer_close(mr_tokenizer *tokenizer) {
  if (!tokenizer) return;
  if (tokenizer->file) munmap(tokenizer->file, tokenizer->file_bytes);
  free(tokenizer);
}
