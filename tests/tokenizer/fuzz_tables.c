/* Damages a tokenizer.bin thousands of times: each one is refused with a line, or used without
 * reading or writing outside its tables, which the sanitizers watch. Usage: fuzz TABLES FOLDER */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tokenizer.h"

static int write_file(const char *folder, const char *data, size_t size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/tokenizer.bin", folder);
  FILE *file = fopen(path, "wb");
  if (!file) return 0;
  size_t wrote = fwrite(data, 1, size, file);
  return !fclose(file) && wrote == size;
}

/* Makes the checksum fit, so that what lies behind it is tried too; as tokenizer.c has it. */
static void fit_checksum(char *file, size_t size) {
  uint64_t total = 0, word;
  for (size_t i = 0; 16 + 8 * i + 8 <= size; i++) {
    memcpy(&word, file + 16 + 8 * i, 8);
    total += word * ((2 * (uint64_t)i + 1) * 0x9E3779B97F4A7C15u);
  }
  uint32_t sum = (uint32_t)(total ^ total >> 32);
  memcpy(file + 12, &sum, sizeof sum);
}

/* Opens the tables and walks them; 1 when they were refused. */
static int use(const char *folder) {
  static const char text[] = "It's 12 e\xCC\x81t\xC3\xA9 \xEA\xB0\x80  <|im_start|>\n\t<mask> \xF0\x9F\x98\x80!";
  static int32_t ids[1024];
  static char back[1 << 16];
  mr_tokenizer *tokenizer;
  int count;
  int64_t bytes;
  if (mr_tokenizer_open(folder, &tokenizer)) {
    if (!*mr_error() || strchr(mr_error(), '\n')) abort();
    return 1;
  }
  if (mr_tokenize(tokenizer, text, sizeof text - 1, ids, 1024, &count)) abort();
  if (mr_detokenize(tokenizer, ids, count < 1024 ? count : 1024, back, sizeof back, &bytes)) abort();
  for (int i = 0; i < 1024; i++) ids[i] = rand() % 2200;
  if (mr_detokenize(tokenizer, ids, 1024, back, sizeof back, &bytes)) abort();
  mr_tokenizer_close(tokenizer);
  return 0;
}

int main(int count, char **words) {
  FILE *file = count == 3 ? fopen(words[1], "rb") : NULL;
  if (!file) return 2;
  mkdir(words[2], 0755);
  static char whole[1 << 23], damaged[1 << 23];
  size_t size = fread(whole, 1, sizeof whole, file);
  fclose(file);
  if (!write_file(words[2], whole, size) || use(words[2])) return printf("%s\n", mr_error()), 1;
  srand(1);
  int refused = 0;
  for (int round = 0; round < 700; round++) {
    memcpy(damaged, whole, size);
    size_t length = round % 10 ? size : (size_t)rand() % size / 8 * 8;
    size_t limit = round % 2 && length > 700 ? 700 : length; /* half of them in the header */
    for (int changes = rand() % 4; changes >= 0 && limit > 8; changes--) {
      static const uint32_t bad[] = {0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x110000, 255};
      uint32_t value = rand() % 2 ? bad[rand() % 7] : (uint32_t)rand();
      memcpy(damaged + (size_t)rand() % (limit - 4), &value, 1 + (size_t)rand() % 4);
    }
    if (length >= 16) fit_checksum(damaged, length);
    if (!write_file(words[2], damaged, length)) return 2;
    refused += use(words[2]);
  }
  printf("ok, %d refused\n", refused);
  return 0;
}
