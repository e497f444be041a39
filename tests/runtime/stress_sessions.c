/* Several sessions of one process, each in a thread of its own: they share the weights and the
 * pool, compute what one alone computes, and draw the same tokens. The argument is the toy
 * artifact. */
#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

enum { SESSIONS = 4, THREADS = 3, ROUNDS = 60, DRAWN = 12, MOST = 64 };

static const char *artifact;
static int32_t alone[DRAWN];

static void expect(int condition, const char *what) {
  if (condition) return;
  printf("failed: %s (%s)\n", what, mr_error());
  exit(1);
}

/* How often weights.bin is mapped into this process. */
static int count_mappings(void) {
  char line[4096];
  int count = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  expect(!!maps, "/proc/self/maps");
  while (fgets(line, sizeof line, maps)) count += !!strstr(line, "weights.bin");
  fclose(maps);
  return count;
}

static int count_threads(void) {
  DIR *tasks = opendir("/proc/self/task");
  int count = 0;
  expect(!!tasks, "/proc/self/task");
  for (struct dirent *one; (one = readdir(tasks));) count += one->d_name[0] != '.';
  closedir(tasks);
  return count;
}

/* A text of its own session, drawn with a seed. */
static void answer(mr_session *session, int32_t *drawn) {
  static const int32_t prompt[] = {3, 1, 4, 1, 5};
  mr_sampling sampling = {0.9f, 0.95f, 0.01f, 1.2f, 20};
  mr_sampler *sampler;
  float logits[MOST];
  expect(!mr_sampler_open(mr_vocabulary(session), &sampling, 7, &sampler), "a sampler");
  expect(!mr_sampler_see(sampler, prompt, 5), "the prompt is seen");
  expect(!mr_reset(session) && !mr_prefill(session, prompt, 5, logits), "prefill");
  for (int i = 0; i < DRAWN; i++) {
    expect(!mr_sample(sampler, logits, &drawn[i]), "draw");
    if (i + 1 < DRAWN) expect(!mr_decode(session, drawn[i], logits), "decode");
  }
  mr_sampler_close(sampler);
}

static void *talk(void *unused) {
  int32_t drawn[DRAWN];
  for (int round = 0; round < ROUNDS; round++) {
    mr_session *session;
    expect(!mr_open(artifact, THREADS, &session), "open");
    answer(session, drawn);
    expect(!memcmp(drawn, alone, sizeof alone), "the same tokens as alone");
    mr_close(session);
  }
  return unused;
}

static void share(void) {
  mr_session *sessions[SESSIONS];
  int before = count_threads();
  for (int i = 0; i < SESSIONS; i++) {
    expect(!mr_open(artifact, THREADS, &sessions[i]), "open");
    expect(count_mappings() == 1, "weights are mapped once");
    expect(count_threads() <= before + THREADS - 1, "one pool");
  }
  for (int i = SESSIONS - 1; i > 0; i--) {
    mr_close(sessions[i]);
    expect(count_mappings() == 1, "weights stay for the others");
  }
  int32_t drawn[DRAWN];
  answer(sessions[0], drawn);
  expect(!memcmp(drawn, alone, sizeof alone), "the last one still computes");
  mr_close(sessions[0]);
  expect(!count_mappings(), "weights go with the last session");
  expect(count_threads() == before, "so does the pool");
}

/* A fork that begins while other threads open and close sessions can open its own. */
static void fork_amid(void) {
  pid_t child = fork();
  if (!child) {
    mr_session *own;
    int32_t drawn[DRAWN];
    expect(!mr_open(artifact, THREADS, &own), "open in a fork");
    answer(own, drawn);
    expect(!memcmp(drawn, alone, sizeof alone), "the same in a fork");
    mr_close(own);
    _exit(0);
  }
  int status;
  expect(waitpid(child, &status, 0) == child && !status, "the fork ends well");
}

int main(int count, char **args) {
  expect(count == 3, "arguments");
  artifact = args[1];
  mr_session *session;
  expect(!mr_open(artifact, THREADS, &session) && mr_vocabulary(session) <= MOST, "open");
  answer(session, alone);
  mr_close(session);
  share();
  pthread_t threads[SESSIONS];
  for (int i = 0; i < SESSIONS; i++) pthread_create(&threads[i], NULL, talk, NULL);
  for (int i = 0; i < atoi(args[2]); i++) fork_amid();
  for (int i = 0; i < SESSIONS; i++) pthread_join(threads[i], NULL);
  expect(!count_mappings(), "nothing stays");
  puts("ok");
  return 0;
}
