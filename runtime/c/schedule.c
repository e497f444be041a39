/* Follows a schedule, token by token; runtime/schedule.py does the same in Python. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "schedule.h"

static const double WEIGHT_UNIT = 1.0 / 65536;

/* "fixed:L": level L from the first decode step on. */
static int read_fixed(mr_schedule *schedule, const char *text) {
  char *end;
  long level = strtol(text, &end, 10);
  int most = mr_levels(schedule->session) - 1;
  if (*text < '0' || *text > '9' || *end || level > most) {
    return fail(MR_INPUT, "the level of a fixed schedule is out of range (got %s, need 0 to %d)",
                text, most);
  }
  schedule->falls = calloc(1, sizeof *schedule->falls);
  if (!schedule->falls) return fail(MR_RUNTIME, "not enough memory for the schedule");
  schedule->fall_count = 1;
  schedule->falls->switches = calloc(1, sizeof(Switch));
  if (!schedule->falls->switches) return fail(MR_RUNTIME, "not enough memory for the schedule");
  *schedule->falls->switches = (Switch){1, (int32_t)level};
  schedule->falls->count = level > 0;
  return MR_OK;
}

static int read_schedule(mr_schedule *schedule, const char *dir, const char *name) {
  if (!strcmp(name, "off")) {
    schedule->off = 1;
    return MR_OK;
  }
  if (!strncmp(name, "fixed:", 6)) return read_fixed(schedule, name + 6);
  if (strcmp(name, "static") && strcmp(name, "entropy") && strcmp(name, "learned")) {
    return fail(MR_INPUT,
                "unknown schedule (got %s, need static, entropy, learned, fixed:LEVEL or off)",
                name);
  }
  return schedule_read(schedule, dir, name);
}

int mr_schedule_open(mr_session *session, const char *artifact_dir, const char *name,
                     mr_schedule **out) {
  *out = NULL;
  mr_schedule *schedule = calloc(1, sizeof *schedule);
  if (!schedule) return fail(MR_RUNTIME, "not enough memory for the schedule");
  schedule->session = session;
  schedule->threshold = INFINITY;
  int error = read_schedule(schedule, artifact_dir, name);
  if (error) {
    mr_schedule_close(schedule);
    return error;
  }
  *out = schedule;
  return MR_OK;
}

void mr_schedule_close(mr_schedule *schedule) {
  if (!schedule) return;
  schedule_clear(schedule);
  free(schedule);
}

int mr_schedule_begin(mr_schedule *schedule) {
  if (schedule->off) return MR_OK;
  schedule->chosen = NULL;
  schedule->token = 1; /* token 0 comes from the prefill */
  schedule->next = 0;
  return mr_set_level(schedule->session, 0);
}

static const double *run_network(mr_schedule *schedule) {
  double *in = schedule->values[0], *out = schedule->values[1];
  for (int l = 0; l < schedule->layer_count; l++) {
    const Layer *layer = &schedule->layers[l];
    for (int o = 0; o < layer->outputs; o++) {
      const int32_t *row = layer->weights + (size_t)o * (size_t)layer->inputs;
      double sum = layer->bias[o];
      for (int i = 0; i < layer->inputs; i++) sum += row[i] * in[i];
      sum *= WEIGHT_UNIT;
      out[o] = l + 1 < schedule->layer_count && sum < 0 ? 0 : sum;
    }
    double *swap = in;
    in = out;
    out = swap;
  }
  return in;
}

/* The fall of this answer: what the network finds likeliest after a look at the prompt. */
static int choose(mr_schedule *schedule) {
  int best = 0;
  if (schedule->layer_count) {
    int count, error = mr_cache_means(schedule->session, schedule->cache, schedule->window,
                                      schedule->values[0], schedule->widest, &count);
    if (error) return error;
    if (count != schedule->layers[0].inputs) {
      return fail(MR_ARTIFACT, "schedule.json is for another artifact: the network takes %d numbers"
                  " (need %d)", schedule->layers[0].inputs, count);
    }
    const double *scores = run_network(schedule);
    for (int i = 1; i < schedule->fall_count; i++) {
      if (scores[i] > scores[best]) best = i;
    }
  }
  schedule->chosen = &schedule->falls[best];
  return MR_OK;
}

int mr_schedule_needs_logits(const mr_schedule *schedule) {
  return !schedule->off && schedule->threshold < INFINITY;
}

int mr_schedule_next(mr_schedule *schedule, const float *logits) {
  if (schedule->off) return MR_OK;
  if (!schedule->token) return fail(MR_INPUT, "the schedule has not begun an answer");
  int error = schedule->chosen ? MR_OK : choose(schedule);
  if (error) return error;
  const Fall *fall = schedule->chosen;
  while (schedule->next < fall->count && fall->switches[schedule->next].token <= schedule->token) {
    schedule->next++;
  }
  int level = schedule->next ? fall->switches[schedule->next - 1].level : 0;
  if (level && mr_schedule_needs_logits(schedule) &&
      logits_entropy(logits, mr_vocabulary(schedule->session)) > schedule->threshold) {
    level = 0;
  }
  error = mr_set_level(schedule->session, level);
  if (!error && schedule->token < INT_MAX) schedule->token++;
  return error;
}
