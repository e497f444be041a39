/* Reads schedule.json of the toy artifact, then thousands of damaged ones: none may crash, each
 * failure has a line, and what is accepted chooses levels that there are. Arguments: the artifact,
 * and a folder for the damaged files that holds a good one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { MAX_BYTES = 1 << 14, ROUNDS = 1500, MAX_VOCABULARY = 64 };

static const char *const kinds[] = {"static", "entropy", "learned"};
static mr_session *session;

static void expect(int condition, const char *what) {
  if (condition) return;
  printf("failed: %s (%s)\n", what, mr_error());
  exit(1);
}

/* Answers a few tokens; an error is one of a file that does not fit. */
static int follow(mr_schedule *schedule) {
  float logits[MAX_VOCABULARY];
  const int32_t prompt[] = {3, 1, 4};
  mr_reset(session);
  expect(!mr_schedule_begin(schedule), "begin");
  expect(!mr_prefill(session, prompt, 3, logits), "prefill");
  int level = 0;
  for (int token = 0; token < 6; token++) {
    int error = mr_schedule_next(schedule, logits);
    if (error) return error;
    expect(mr_level(session) >= 0 && mr_level(session) < mr_levels(session), "a level's range");
    level += mr_level(session);
    expect(!mr_decode(session, token, logits), "decode");
  }
  return level < 0;
}

/* How many kinds were refused, when they were opened or when they were followed. */
static int try_all(const char *folder) {
  int refused = 0;
  for (int i = 0; i < 3; i++) {
    mr_schedule *schedule;
    int error = mr_schedule_open(session, folder, kinds[i], &schedule);
    expect(!error == !!schedule, "a schedule, or an error");
    if (!error) error = follow(schedule);
    expect(!error || (*mr_error() && !strchr(mr_error(), '\n')), "one line");
    refused += !!error;
    mr_schedule_close(schedule);
  }
  return refused;
}

static void write_file(const char *path, const char *text, size_t bytes) {
  FILE *file = fopen(path, "wb");
  expect(file && fwrite(text, 1, bytes, file) == bytes, "write");
  fclose(file);
}

int main(int count, char **args) {
  static char text[MAX_BYTES], damaged[MAX_BYTES], path[4096];
  static const char letters[] = "{}[]\",:-+.0123456789e \\ntf\n";
  if (count != 3) return 2;
  expect(!mr_open(args[1], 1, &session), "open");
  snprintf(path, sizeof path, "%s/schedule.json", args[2]);
  FILE *file = fopen(path, "rb");
  expect(!!file, "the good file");
  size_t length = fread(text, 1, sizeof text, file);
  fclose(file);
  expect(!try_all(args[2]), "the good file is accepted");
  srand(1);
  int refused = 0;
  for (int round = 0; round < ROUNDS; round++) {
    size_t bytes = round % 8 ? length : (size_t)rand() % length;
    memcpy(damaged, text, bytes);
    for (int changes = rand() % 3; changes >= 0 && bytes; changes--) {
      damaged[(size_t)rand() % bytes] = letters[(size_t)rand() % (sizeof letters - 1)];
    }
    write_file(path, damaged, bytes);
    refused += try_all(args[2]);
  }
  mr_close(session);
  printf("ok, %d refused\n", refused);
  return 0;
}
