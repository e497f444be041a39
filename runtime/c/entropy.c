/* How much a model is in doubt about the next token. It is asked before every decode step, for the
 * whole vocabulary, so the loops are such as a compiler turns into vector code: LANES sums that do
 * not wait for each other, and an exponential without calls and branches. The runtime is compiled
 * for the oldest CPU of its kind; these loops for that which the kernels need (VECTORS). */
#include <math.h>
#include <string.h>

#include "schedule.h"

#ifndef VECTORS /* the attribute of functions that may use the vectors that the kernels need */
#define VECTORS
#endif

enum { LANES = 16, BLOCK = 1024 };
static const float UNLIKELY = -20; /* less than e^-20 of the likeliest token's probability is 0 */

/* e^x for -20 <= x <= 0, to 3e-6 of it: n is put into the exponent's bits of 2^n, and 2^f for
 * -1/2 <= f <= 1/2 is a polynomial, the sum of (f log 2)^k / k! up to k = 5. */
VECTORS static inline float exponential(float x) {
  float y = x * 1.44269504f;
  int32_t n = (int32_t)(y - 0.5f);
  float f = (y - (float)n) * 0.693147181f;
  float power = 1 + f * (1 + f * (1 / 2.0f + f * (1 / 6.0f + f * (1 / 24.0f + f * (1 / 120.0f)))));
  int32_t bits = (n + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return power * scale;
}

VECTORS static inline float largest_of(const float *x, int n) {
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
VECTORS static void add_block(const float *x, int n, float largest, double *total, double *sum) {
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

VECTORS double logits_entropy(const float *logits, int count) {
  float largest = largest_of(logits, count);
  double total = 0, sum = 0;
  for (int i = 0; i < count; i += BLOCK) {
    add_block(logits + i, count - i < BLOCK ? count - i : BLOCK, largest, &total, &sum);
  }
  return log(total) - sum / total;
}
