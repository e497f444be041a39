/* One session under several threads and a signal handler: calls wait for each other or are
 * cancelled, and what is computed is the same as alone. The argument is the toy artifact. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

enum { ROUNDS = 300, TOKENS = 11, MAX_VOCABULARY = 64 };

static mr_session *session;
static const int32_t ids[TOKENS] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 30, 5};
static float alone[MAX_VOCABULARY];
static atomic_int cancelled;

static void expect(int condition, const char *what) {
  if (condition) return;
  printf("failed: %s (%s)\n", what, mr_error());
  exit(1);
}

static void *compute(void *unused) {
  float logits[MAX_VOCABULARY];
  for (int round = 0; round < ROUNDS; round++) {
    mr_set_level(session, 0);
    int result = mr_prefill(session, ids, TOKENS, logits);
    if (result == MR_CANCELLED) atomic_fetch_add(&cancelled, 1);
    expect(result == MR_OK || result == MR_CANCELLED || strstr(mr_error(), "too long"), "prefill");
    mr_reset(session);
  }
  return unused;
}

static void *change(void *unused) {
  for (int round = 0; round < ROUNDS; round++) {
    expect(!mr_set_level(session, round % 2), "set the level");
    expect(mr_set_level(session, 99) == MR_INPUT, "levels have a range");
    mr_set_profile(session, round % 2);
    mr_step_seconds(session, 0, 0);
    expect(mr_position(session) <= TOKENS * 2, "the position is one of a whole call");
    mr_cancel(session);
  }
  return unused;
}

static void handle(int signal) {
  (void)signal;
  mr_cancel(session);
}

static void fork_once(const char *artifact) {
  pid_t child = fork();
  if (!child) {
    float logits[MAX_VOCABULARY];
    mr_session *own;
    expect(mr_decode(session, 1, logits) == MR_INPUT && strstr(mr_error(), "dead"), "dead");
    mr_close(session);
    expect(!mr_open(artifact, 3, &own) && !mr_prefill(own, ids, TOKENS, logits), "an own one");
    expect(!memcmp(logits, alone, sizeof(float) * (size_t)mr_vocabulary(own)), "the same");
    mr_close(own);
    _exit(0);
  }
  int status;
  expect(waitpid(child, &status, 0) == child && !status, "the fork ends well");
}

int main(int count, char **args) {
  expect(count == 3 && !mr_open(args[1], 3, &session), "open");
  expect(mr_vocabulary(session) <= MAX_VOCABULARY, "the toy");
  expect(!mr_prefill(session, ids, TOKENS, alone), "prefill alone");
  if (atoi(args[2])) fork_once(args[1]);
  struct sigaction action = {.sa_handler = handle};
  sigaction(SIGUSR1, &action, NULL);
  mr_reset(session);
  pthread_t threads[3];
  for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, i ? compute : change, NULL);
  for (int i = 0; i < 50; i++) raise(SIGUSR1);
  for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
  float logits[MAX_VOCABULARY];
  mr_reset(session);
  mr_set_level(session, 0);
  expect(!mr_prefill(session, ids, TOKENS, logits), "prefill afterwards");
  expect(!memcmp(logits, alone, sizeof(float) * (size_t)mr_vocabulary(session)), "the same");
  mr_close(session);
  puts("ok");
  return 0;
}
