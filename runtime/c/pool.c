/* The threads behind parallel loops.
 *
 * Tasks are claimed, not assigned: a worker that wakes late finds its task done by another. Waiting
 * threads spin for a moment, yield for a while, then sleep, so that more threads than CPUs only
 * lose what the scheduler takes. One 64-bit word (generation, tasks, next task) is the truth: a
 * successful claim proves that the loop read with it is still the current one. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "internal.h"

enum { SPIN_NS = 2000, YIELD_NS = 100000, WORKER_STACK_BYTES = 1 << 20, MAX_TASKS = 0xffff };

typedef struct {
  void *sync;
  int32_t tasks;
} GroupEnv;

typedef int (*Loop)(int task, GroupEnv *env, void *data);

static struct {
  pthread_mutex_t launch;       /* held by the thread whose loop runs */
  pthread_mutex_t lock;         /* protects sleeping, waking and `error` */
  pthread_mutex_t setup;        /* protects workers and users */
  pthread_cond_t work, done;
  _Atomic uint64_t state;       /* generation << 32 | tasks << 16 | next task */
  _Atomic(Loop) loop;
  _Atomic(void *) data;
  atomic_int pending, sleepers, owner_sleeps, stop, threads, failed;
  char error[512];
  pthread_t workers[MAX_THREADS];
  int worker_count, users;
} pool = {.launch = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .setup = PTHREAD_MUTEX_INITIALIZER,
          .work = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER,
          .threads = 1};

static _Thread_local int inside; /* this thread is running a task */

static void pause_cpu(void) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_ia32_pause)
  __builtin_ia32_pause();
#elif __has_builtin(__builtin_arm_yield)
  __builtin_arm_yield();
#endif
#endif
}

static int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int has_work(void) {
  uint64_t state = atomic_load(&pool.state);
  return (state & MAX_TASKS) < (state >> 16 & MAX_TASKS) || atomic_load(&pool.stop);
}

static int is_done(void) { return !atomic_load(&pool.pending); }

/* Waits for a short time; false if `ready` did not come true. */
static int spin_until(int (*ready)(void)) {
  int64_t start = now_ns();
  for (;;) {
    for (int i = 0; i < 16; i++) {
      if (ready()) return 1;
      pause_cpu();
    }
    int64_t waited = now_ns() - start;
    if (waited > YIELD_NS) return 0;
    if (waited > SPIN_NS) sched_yield();
  }
}

static void note_failure(void) {
  pthread_mutex_lock(&pool.lock);
  snprintf(pool.error, sizeof pool.error, "%s", mr_error());
  atomic_store(&pool.failed, 1);
  pthread_mutex_unlock(&pool.lock);
}

static void finish_task(void) {
  if (atomic_fetch_sub(&pool.pending, 1) == 1 && atomic_load(&pool.owner_sleeps)) {
    pthread_mutex_lock(&pool.lock);
    pthread_cond_signal(&pool.done);
    pthread_mutex_unlock(&pool.lock);
  }
}

static void run_tasks(void) {
  inside = 1;
  for (;;) {
    uint64_t state = atomic_load(&pool.state);
    int task = (int)(state & MAX_TASKS), tasks = (int)(state >> 16 & MAX_TASKS);
    if (task >= tasks) break;
    Loop loop = atomic_load_explicit(&pool.loop, memory_order_relaxed);
    void *data = atomic_load_explicit(&pool.data, memory_order_relaxed);
    if (!atomic_compare_exchange_strong(&pool.state, &state, state + 1)) continue;
    GroupEnv env = {.tasks = tasks};
    if (loop(task, &env, data)) note_failure();
    finish_task();
  }
  inside = 0;
}

static void *work(void *unused) {
  (void)unused;
  while (!atomic_load(&pool.stop)) {
    run_tasks();
    if (spin_until(has_work)) continue;
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleepers, 1);
    while (!has_work()) pthread_cond_wait(&pool.work, &pool.lock);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.lock);
  }
  return NULL;
}

static int run_alone(Loop loop, void *data, int tasks) {
  GroupEnv env = {.tasks = tasks};
  for (int task = 0; task < tasks; task++) {
    if (loop(task, &env, data)) return -1;
  }
  return 0;
}

static void wake_workers(void) {
  if (!atomic_load(&pool.sleepers)) return;
  pthread_mutex_lock(&pool.lock);
  pthread_cond_broadcast(&pool.work);
  pthread_mutex_unlock(&pool.lock);
}

static void wait_for_tasks(void) {
  if (spin_until(is_done)) return;
  pthread_mutex_lock(&pool.lock);
  atomic_store(&pool.owner_sleeps, 1);
  while (!is_done()) pthread_cond_wait(&pool.done, &pool.lock);
  atomic_store(&pool.owner_sleeps, 0);
  pthread_mutex_unlock(&pool.lock);
}

/* Runs loop(0..tasks-1); tasks 0 means one for each thread. Returns 0, or -1 if a task failed. */
static int launch(Loop loop, void *data, int tasks) {
  if (tasks <= 0) tasks = atomic_load(&pool.threads);
  if (tasks == 1 || inside || tasks > MAX_TASKS) return run_alone(loop, data, tasks);
  pthread_mutex_lock(&pool.launch);
  atomic_store(&pool.failed, 0);
  atomic_store(&pool.pending, tasks);
  atomic_store_explicit(&pool.loop, loop, memory_order_relaxed);
  atomic_store_explicit(&pool.data, data, memory_order_relaxed);
  uint64_t generation = (atomic_load(&pool.state) >> 32) + 1;
  atomic_store(&pool.state, generation << 32 | (uint64_t)tasks << 16);
  wake_workers();
  run_tasks();
  wait_for_tasks();
  int failed = atomic_load(&pool.failed);
  if (failed) fail(MR_RUNTIME, "%s", pool.error);
  pthread_mutex_unlock(&pool.launch);
  return failed ? -1 : 0;
}

static void add_worker(void) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, WORKER_STACK_BYTES); /* some libcs give only 128 kB */
  if (!pthread_create(&pool.workers[pool.worker_count], &attributes, work, NULL)) {
    pool.worker_count++;
  }
  pthread_attr_destroy(&attributes);
}

/* Sets how many threads share the next loops. The loops of two sessions may see each other's
 * number, which changes how they are cut but not what they compute. */
void pool_use(int threads) { atomic_store(&pool.threads, threads); }

/* A fork has none of the workers, and locks that nobody will open. */
static void forget_workers(void) {
  pool.launch = pool.lock = pool.setup = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  pool.work = pool.done = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
  pool.worker_count = pool.users = 0;
  atomic_store(&pool.pending, 0);
  atomic_store(&pool.sleepers, 0);
  atomic_store(&pool.owner_sleeps, 0);
  atomic_store(&pool.stop, 0);
  atomic_store(&pool.state, 0);
  pool_use(1);
  inside = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

int mr_pool_start(int threads) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch_forks);
  if (threads <= 0) threads = usable_cpus();
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  pthread_mutex_lock(&pool.setup);
  pool.users++;
  for (int i = pool.worker_count; i < threads - 1; i++) add_worker();
  if (threads > pool.worker_count + 1) threads = pool.worker_count + 1;
  pthread_mutex_unlock(&pool.setup);
  pool_use(threads);
  return threads;
}

void mr_pool_stop(void) {
  pthread_mutex_lock(&pool.setup);
  if (!--pool.users) {
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.stop, 1);
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < pool.worker_count; i++) pthread_join(pool.workers[i], NULL);
    pool.worker_count = 0;
    pool_use(1);
    atomic_store(&pool.stop, 0);
  }
  pthread_mutex_unlock(&pool.setup);
}

/* Generated code calls this pointer for a parallel loop. */
int (*__TVMBackendParallelLaunch)(Loop loop, void *data, int tasks) = launch;
