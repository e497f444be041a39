/* Many parallel loops of all kinds: each task must run once, whatever the threads do. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "no_model.h"

typedef int (*Loop)(int task, void *env, void *data);
extern int (*__TVMBackendParallelLaunch)(Loop loop, void *data, int tasks);
extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void *);

enum { MAX_TASKS = 64 };

typedef struct {
  int counts[MAX_TASKS]; /* not atomic: a task run twice is a race that the sanitizer sees */
  int tasks, work, fails;
} Job;

static void expect(int condition, const char *what) {
  if (condition) return;
  printf("failed: %s (%s)\n", what, mr_error());
  exit(1);
}

static int inner(int task, void *env, void *data) {
  (void)env;
  ((int *)data)[task]++;
  return 0;
}

static int outer(int task, void *env, void *data) {
  Job *job = data;
  int inside[3] = {0};
  memcpy(&job->tasks, (char *)env + sizeof(void *), 0);
  for (volatile int i = 0; i < job->work; i++) continue;
  uint64_t bytes = 100u * (uint64_t)(task % 12 + 1);
  char *scratch = __TVMBackendAllocWorkspace(1, 0, bytes, 2, 32);
  if (!scratch || (uintptr_t)scratch % 64) return -1;
  memset(scratch, task, bytes);
  int bad = __TVMBackendParallelLaunch(inner, inside, 3);
  bad |= inside[0] != 1 || inside[1] != 1 || inside[2] != 1 || scratch[bytes - 1] != task;
  bad |= __TVMBackendFreeWorkspace(1, 0, scratch);
  job->counts[task]++;
  if (bad) return -1;
  return task == job->fails ? fail(MR_RUNTIME, "task %d of %d fails", task, job->tasks) : 0;
}

static void *launch_many(void *argument) {
  unsigned random = *(unsigned *)argument;
  for (int round = 0; round < 3000; round++) {
    random = random * 1664525u + 1013904223u;
    Job job = {.tasks = (int)(random >> 16) % MAX_TASKS + 1, .work = (int)(random >> 8) % 300};
    job.fails = random % 10 ? -1 : job.tasks / 2;
    int result = __TVMBackendParallelLaunch(outer, &job, job.tasks);
    for (int i = 0; i < job.tasks; i++) {
      /* one thread alone stops at the failure */
      expect(job.counts[i] == 1 || (job.fails >= 0 && i > job.fails), "each task runs once");
    }
    expect(!result == (job.fails < 0), "failures come through");
    if (result) expect(strstr(mr_error(), " fails") != NULL, "the failure's message comes through");
  }
  return NULL;
}

int main(int count, char **args) {
  int threads = count > 1 ? atoi(args[1]) : 4;
  for (unsigned cycle = 0; cycle < 4; cycle++) {
    expect(mr_pool_start(threads) == threads, "all threads start");
    pthread_t other;
    unsigned seeds[2] = {cycle, cycle + 100};
    expect(!pthread_create(&other, NULL, launch_many, &seeds[0]), "a second caller starts");
    launch_many(&seeds[1]);
    pthread_join(other, NULL);
    mr_pool_stop();
  }
  puts("ok");
  return 0;
}
