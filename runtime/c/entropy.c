/* How much a model is in doubt about the next token. It is asked before every decode step, for the
 * whole vocabulary, so the loops are such as a compiler turns into vector code: LANES sums that do
 * not wait for each other, and an exponential without calls and branches. The runtime is compiled
 * for the oldest CPU of its kind; where the kernels need a newer one, these loops use it, too. */
#include <math.h>
#include <string.h>

#include "schedule.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, BLOCK = 1024 };
static const float UNLIKELY = -20; /* less than e^-20 of the likeliest token's probability is 0 */

/* e^x for -20 <= x <= 0, to 3e-6 of it: n is put into the exponent's bits of 2^n, and 2^f for
 * -1/2 <= f <= 1/2 is a polynomial, the sum of (f log 2)^k / k! up to k = 5. */
INLINE float exponential(float x) {
  float y = x * 1.44269504f;
  int32_t n = (int32_t)(y - 0.5f);
  float f = (y - (float)n) * 0.693147181f;
  float power = 1 + f * (1 + f * (1 / 2.0f + f * (1 / 6.0f + f * (1 / 24.0f + f * (1 / 120.0f)))));
  int32_t bits = (n + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return power * scale;
}

INLINE float largest_of(const float *x, int n) {
  float most[LANES];
  for (int j = 0; j < LANES; j++) most[j] = -INFINITY;
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int j = 0; j < LANES; j++) most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
  }
  for (; i < n; i++) most[0] = x[i] > most[0] ? x[i] : most[0];
  for (int j = 1; j < LANES; j++) most[0] = most[j] > most[0] ? most[j] : most[0];
  return most[0];
}

/* Adds up e^d and d e^d of the distances d from the largest logit, of BLOCK logits at most. */
INLINE void add_block(const float *x, int n, float largest, double *total, double *sum) {
  float distances[BLOCK], weights[BLOCK], totals[LANES] = {0}, sums[LANES] = {0};
  for (int i = 0; i < BLOCK; i++) distances[i] = i < n ? x[i] - largest : 2 * UNLIKELY;
  for (int i = 0; i < BLOCK; i++) {
    weights[i] = exponential(distances[i] < UNLIKELY ? UNLIKELY : distances[i]);
  }
  for (int i = 0; i < BLOCK; i++) weights[i] = distances[i] < UNLIKELY ? 0 : weights[i];
  for (int i = 0; i < BLOCK; i += LANES) {
    for (int j = 0; j < LANES; j++) {
      totals[j] += weights[i + j];
      sums[j] += weights[i + j] * distances[i + j];
    }
  }
  for (int j = 0; j < LANES; j++) {
    *total += totals[j];
    *sum += sums[j];
  }
}

INLINE double entropy_of(const float *logits, int count) {
  float largest = largest_of(logits, count);
  double total = 0, sum = 0;
  for (int i = 0; i < count; i += BLOCK) {
    add_block(logits + i, count - i < BLOCK ? count - i : BLOCK, largest, &total, &sum);
  }
  return log(total) - sum / total;
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static double entropy_avx2(const float *logits, int count) {
  return entropy_of(logits, count);
}

/* Whether this program's kernels have AVX2; a session was opened, so the CPU has it as well. */
static int kernels_have_avx2(void) {
  for (const char *const *flag = needed_cpu_flags; *flag; flag++) {
    if (!strcmp(*flag, "avx2")) return 1;
  }
  return 0;
}
#endif

double logits_entropy(const float *logits, int count) {
#ifdef __x86_64__
  if (kernels_have_avx2()) return entropy_avx2(logits, count);
#endif
  return entropy_of(logits, count);
}
