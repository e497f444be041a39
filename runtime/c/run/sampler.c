/* Drawing the next token: the repetition penalty first, then temperature, top-k, top-p and min-p,
 * in transformers' order. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

typedef struct {
  float logit, weight;
  int32_t id;
} Choice;

int sampler_start(Sampler *sampler, Sampling sampling, uint64_t seed, int vocabulary) {
  *sampler = (Sampler){.sampling = sampling, .state = seed, .vocabulary = vocabulary};
  sampler->candidates = malloc((size_t)vocabulary * sizeof(Choice));
  sampler->seen = calloc((size_t)vocabulary, 1);
  return sampler->candidates && sampler->seen;
}

void sampler_see(Sampler *sampler, int32_t id) {
  if (id >= 0 && id < sampler->vocabulary) sampler->seen[id] = 1;
}

void sampler_free(Sampler *sampler) {
  free(sampler->candidates);
  free(sampler->seen);
}

/* Uniform in [0, 1): SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). */
static double next_random(uint64_t *state) {
  uint64_t x = *state += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

/* Larger logits first; equal ones by id, so that the choice is the same everywhere. */
static int by_logit(const void *a, const void *b) {
  const Choice *x = a, *y = b;
  if (x->logit != y->logit) return x->logit < y->logit ? 1 : -1;
  return (x->id > y->id) - (x->id < y->id);
}

static void exchange(Choice *a, Choice *b) {
  Choice kept = *a;
  *a = *b;
  *b = kept;
}

/* Moves the `count` likeliest of n candidates to the front (Hoare's selection). */
static void select_first(Choice *all, int n, int count) {
  int low = 0, high = n;
  while (high - low > 1 && count > low && count < high) {
    Choice pivot = all[low + (high - low) / 2];
    int i = low, j = high - 1;
    while (i <= j) {
      while (by_logit(&all[i], &pivot) < 0) i++;
      while (by_logit(&all[j], &pivot) > 0) j--;
      if (i <= j) exchange(&all[i++], &all[j--]);
    }
    if (count <= j + 1) {
      high = j + 1;
    } else if (count > i) {
      low = i;
    } else {
      return;
    }
  }
}

/* How many of n candidates, the likeliest first, make up top-p of their weight. Sorts as many as
 * are needed, 256 at first. */
static int nucleus(Choice *all, int n, double top_p) {
  double total = 0, sum = 0;
  for (int i = 0; i < n; i++) total += all[i].weight;
  for (int done = 0, count = 256;; count *= 4) {
    if (count > n) count = n;
    select_first(all + done, n - done, count - done);
    qsort(all + done, (size_t)(count - done), sizeof *all, by_logit);
    for (; done < count; done++) {
      sum += all[done].weight;
      if (sum >= top_p * total) return done + 1;
    }
    if (count == n) return n;
  }
}

static int32_t draw(Sampler *sampler, Choice *all, int n, float largest) {
  const Sampling *s = &sampler->sampling;
  if (s->top_k && s->top_k < n) {
    select_first(all, n, s->top_k);
    n = s->top_k;
  }
  for (int i = 0; i < n; i++) all[i].weight = expf((all[i].logit - largest) / s->temperature);
  if (s->top_p < 1) n = nucleus(all, n, s->top_p);
  double total = 0;
  for (int i = 0; i < n; i++) {
    if (all[i].weight < s->min_p) all[i].weight = 0; /* the largest weight is 1 */
    total += all[i].weight;
  }
  double left = next_random(&sampler->state) * total;
  int last = 0;
  for (int i = 0; i < n; i++) {
    if (!all[i].weight) continue;
    last = i;
    left -= all[i].weight;
    if (left < 0) break;
  }
  return all[last].id;
}

int32_t sampler_draw(Sampler *sampler, const float *logits) {
  Choice *all = sampler->candidates;
  float penalty = sampler->sampling.repetition_penalty;
  int best = 0;
  for (int i = 0; i < sampler->vocabulary; i++) {
    float logit = logits[i];
    if (isnan(logit)) return -1;
    if (sampler->seen[i] && penalty != 1) logit = logit > 0 ? logit / penalty : logit * penalty;
    all[i] = (Choice){logit, 0, i};
    if (logit > all[best].logit) best = i;
  }
  float largest = all[best].logit;
  if (isinf(largest)) return -1;
  if (sampler->sampling.temperature == 0) return best;
  return draw(sampler, all, sampler->vocabulary, largest);
}
