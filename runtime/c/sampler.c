/* Drawing the next token: the repetition penalty first, then temperature, top-k, top-p and min-p,
 * in transformers' order. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

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

static void sort(Choice *all, int n) { qsort(all, (size_t)n, sizeof *all, by_logit); }

/* How many of n candidates, the likeliest first, have the weight `need`; n + 1 where all have not.
 * Sorts as many as are needed, 256 at first. */
static int nucleus(Choice *all, int n, double need) {
  double sum = 0;
  for (int done = 0, count = 256;; count *= 4) {
    if (count > n) count = n;
    select_first(all + done, n - done, count - done);
    sort(all + done, count - done);
    for (; done < count; done++) {
      sum += all[done].weight;
      if (sum >= need) return done + 1;
    }
    if (count == n) return n + 1;
  }
}

static double weight_of(const Choice *all, int n) {
  double total = 0;
  for (int i = 0; i < n; i++) total += all[i].weight;
  return total;
}

/* How many tokens have top-p of `total`, of which n are known: 0 where that depends on rounding,
 * or on other tokens. A device adds up in another order, of weights that are as exact as floats. */
static int top_p_of(const mr_sampling *s, Choice *all, int n, double total) {
  const double inexact = 1e-5;
  int least = nucleus(all, n, s->top_p * total * (1 - inexact));
  return least <= n && least == nucleus(all, n, s->top_p * total * (1 + inexact)) ? least : 0;
}

static int top_k_cuts(const mr_sampler *sampler) {
  return sampler->sampling.top_k && sampler->sampling.top_k < sampler->vocabulary;
}

/* How many candidates stay of n, the likeliest first where any went; 0 where that depends on
 * tokens which are not among them. `total` is the weight of all tokens if there are such. */
static int cut(const mr_sampler *sampler, Choice *all, int n, float largest, double total) {
  const mr_sampling *s = &sampler->sampling;
  int whole = n == sampler->vocabulary; /* nothing depends on others */
  if (top_k_cuts(sampler)) {
    if (s->top_k > n) return 0;
    select_first(all, n, s->top_k);
    n = s->top_k;
    sort(all, n);
    whole = 1;
  }
  for (int i = 0; i < n; i++) all[i].weight = expf((all[i].logit - largest) / s->temperature);
  if (s->top_p < 1) {
    int kept = whole ? nucleus(all, n, s->top_p * weight_of(all, n)) : top_p_of(s, all, n, total);
    if (!kept) return 0;
    if (kept < n) n = kept;
    whole = 1;
  }
  if (s->min_p > 0) {
    int kept = 0;
    if (!whole && all[n - 1].weight >= s->min_p) return 0;
    for (int i = 0; i < n; i++) {
      if (all[i].weight >= s->min_p) all[kept++] = all[i]; /* the largest weight is 1 */
    }
    n = kept;
    sort(all, n);
    whole = 1;
  }
  return whole ? n : 0;
}

static int32_t pick(mr_sampler *sampler, const Choice *all, int n) {
  double left = next_random(&sampler->state) * weight_of(all, n);
  int last = 0;
  for (int i = 0; i < n; i++) {
    if (!all[i].weight) continue;
    last = i;
    left -= all[i].weight;
    if (left < 0) break;
  }
  return all[last].id;
}

static float penalized(const mr_sampler *sampler, float logit, int32_t id) {
  float penalty = sampler->sampling.repetition_penalty;
  if (penalty == 1 || !sampler->seen[id]) return logit;
  return logit > 0 ? logit / penalty : logit * penalty;
}

/* The most likely token, or -1 where a logit is not a number or all of them are infinite. Fills
 * the candidates, penalties counted. */
static int32_t likeliest(mr_sampler *sampler, const float *logits) {
  Choice *all = sampler->candidates;
  int best = 0;
  for (int i = 0; i < sampler->vocabulary; i++) {
    if (isnan(logits[i])) return -1;
    all[i] = (Choice){penalized(sampler, logits[i], i), 0, i};
    if (all[i].logit > all[best].logit) best = i;
  }
  return isinf(all[best].logit) ? -1 : best;
}

static int not_finite(void) {
  return fail(MR_RUNTIME, "the model computed a logit that is not finite");
}

int mr_sample(mr_sampler *sampler, const float *logits, int32_t *id) {
  int32_t best = likeliest(sampler, logits);
  if (best < 0) return not_finite();
  Choice *all = sampler->candidates;
  if (sampler->sampling.temperature > 0) {
    int n = cut(sampler, all, sampler->vocabulary, all[best].logit, 0);
    best = pick(sampler, all, n);
  }
  *id = best;
  sampler->seen[best] = 1;
  return MR_OK;
}

float sampler_sharpness(const mr_sampler *sampler) {
  const mr_sampling *s = &sampler->sampling;
  int few = top_k_cuts(sampler);
  if (s->repetition_penalty < 1) return -1;
  if (s->temperature == 0) return s->repetition_penalty == 1 ? 0 : 1;
  if (few && s->top_k > CANDIDATES) return -1;
  if (!few && s->top_p == 1 && s->min_p == 0) return -1; /* from all tokens, in their order */
  if (!few && s->top_p < 1 && s->repetition_penalty != 1) return -1; /* the total is another */
  return fminf(1 / s->temperature, 3e38f);
}

/* Penalties move tokens down, so those that stay above the last of the candidates are the first of
 * all tokens. */
static int count_first(const mr_sampler *sampler, Choice *all, int count) {
  float least = all[count - 1].logit;
  if (sampler->sampling.repetition_penalty == 1) return count;
  for (int i = 0; i < count; i++) all[i].logit = penalized(sampler, all[i].logit, all[i].id);
  sort(all, count);
  if (count == sampler->vocabulary) return count;
  while (count && all[count - 1].logit <= least) count--;
  return count;
}

int sampler_choose(mr_sampler *sampler, Choice *all, int count, double total, int32_t *id) {
  *id = -1;
  if (!isfinite(all[0].logit)) return not_finite();
  int n = count_first(sampler, all, count);
  if (n && sampler->sampling.temperature > 0) n = cut(sampler, all, n, all[0].logit, total);
  if (!n) return MR_OK;
  *id = sampler->sampling.temperature > 0 ? pick(sampler, all, n) : all[0].id;
  sampler->seen[*id] = 1;
  return MR_OK;
}
