/* Reads a buffer once with every thread: the memory bandwidth that a decode step can hope for. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LANES = 64 }; /* enough independent sums for any vector unit */

typedef struct {
  const uint32_t *words;
  size_t count;
  uint32_t sum;
} Share;

static void *read_all(void *argument) {
  Share *share = argument;
  uint32_t sums[LANES] = {0};
  for (size_t i = 0; i + LANES <= share->count; i += LANES) {
    for (int lane = 0; lane < LANES; lane++) sums[lane] += share->words[i + lane];
  }
  for (int lane = 0; lane < LANES; lane++) share->sum += sums[lane];
  return NULL;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Bytes per second of one pass over `words` with `threads` threads. */
double read_bandwidth(const uint32_t *words, size_t count, int threads) {
  Share shares[64] = {{0}};
  pthread_t handles[64];
  double start = seconds();
  for (int i = 0; i < threads; i++) {
    shares[i] = (Share){words + count / (size_t)threads * (size_t)i, count / (size_t)threads, 0};
    if (i) pthread_create(&handles[i], NULL, read_all, &shares[i]);
  }
  read_all(&shares[0]);
  for (int i = 1; i < threads; i++) pthread_join(handles[i], NULL);
  double took = seconds() - start;
  volatile uint32_t keep = 0;
  for (int i = 0; i < threads; i++) keep += shares[i].sum;
  return (double)(count * sizeof *words) / took;
}
