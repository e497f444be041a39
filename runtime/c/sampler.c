/* Drawing the next token: the repetition penalty first, then temperature, top-k, top-p and min-p,
 * in transformers' order. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

typedef struct {
  float logit, weight;
  int32_t id;
} Choice;

struct mr_sampler {
  mr_sampling sampling;
  uint64_t state;
  int vocabulary;
  Choice *candidates;
  uint8_t *seen; /* tokens of the text so far, one byte each */
};

static int out_of_range(const char *name, double value, const char *need) {
  return fail(MR_INPUT, "%s is out of range (got %g, need %s)", name, value, need);
}

static int check_sampling(const mr_sampling *s) {
  if (!(s->temperature >= 0 && isfinite(s->temperature))) {
    return out_of_range("temperature", s->temperature, "a finite number of 0 or more");
  }
  if (!(s->top_p > 0 && s->top_p <= 1)) {
    return out_of_range("top_p", s->top_p, "above 0 and at most 1");
  }
  if (!(s->min_p >= 0 && s->min_p <= 1)) return out_of_range("min_p", s->min_p, "0 to 1");
  if (!(s->repetition_penalty > 0 && isfinite(s->repetition_penalty))) {
    return out_of_range("repetition_penalty", s->repetition_penalty, "a finite number above 0");
  }
  if (s->top_k < 0) return out_of_range("top_k", s->top_k, "0 or more");
  return MR_OK;
}

int mr_sampler_open(int vocabulary, const mr_sampling *sampling, uint64_t seed, mr_sampler **out) {
  *out = NULL;
  if (vocabulary < 1) return out_of_range("the vocabulary", vocabulary, "1 or more");
  int error = check_sampling(sampling);
  if (error) return error;
  mr_sampler *sampler = calloc(1, sizeof *sampler);
  if (sampler) {
    sampler->sampling = *sampling;
    sampler->state = seed;
    sampler->vocabulary = vocabulary;
    sampler->candidates = malloc((size_t)vocabulary * sizeof(Choice));
    sampler->seen = calloc((size_t)vocabulary, 1);
  }
  if (!sampler || !sampler->candidates || !sampler->seen) {
    mr_sampler_close(sampler);
    return fail(MR_RUNTIME, "not enough memory for a sampler");
  }
  *out = sampler;
  return MR_OK;
}

void mr_sampler_close(mr_sampler *sampler) {
  if (!sampler) return;
  free(sampler->candidates);
  free(sampler->seen);
  free(sampler);
}

int mr_sampler_see(mr_sampler *sampler, const int32_t *ids, int count) {
  for (int i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= sampler->vocabulary) {
      return fail(MR_INPUT,
                  "the token at place %d is not in the vocabulary (got id %d, vocabulary %d)", i,
                  (int)ids[i], sampler->vocabulary);
    }
  }
  for (int i = 0; i < count; i++) sampler->seen[ids[i]] = 1;
  return MR_OK;
}

void mr_sampler_forget(mr_sampler *sampler) {
  memset(sampler->seen, 0, (size_t)sampler->vocabulary);
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

static int32_t draw(mr_sampler *sampler, Choice *all, int n, float largest) {
  const mr_sampling *s = &sampler->sampling;
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

/* The most likely token, or -1 where a logit is not a number or all of them are infinite. Fills
 * the candidates, penalties counted. */
static int32_t likeliest(mr_sampler *sampler, const float *logits) {
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
  return isinf(all[best].logit) ? -1 : best;
}

int mr_sample(mr_sampler *sampler, const float *logits, int32_t *id) {
  int32_t best = likeliest(sampler, logits);
  if (best < 0) return fail(MR_RUNTIME, "the model computed a logit that is not finite");
  Choice *all = sampler->candidates;
  *id = sampler->sampling.temperature == 0
            ? best
            : draw(sampler, all, sampler->vocabulary, all[best].logit);
  sampler->seen[*id] = 1;
  return MR_OK;
}
