/* A schedule: which precision level computes each token of an answer (docs/schedules.md). */
#ifndef MORENDO_SCHEDULE_H
#define MORENDO_SCHEDULE_H

#include <stdint.h>

#include "internal.h"

/* From generated token `token` on, counted from 0, `level`. */
typedef struct {
  int32_t token, level;
} Switch;

typedef struct {
  Switch *switches; /* both numbers rise from one to the next */
  int count;
} Fall;

/* outputs = weights [outputs][inputs] * inputs + bias, all in parts of 65536 */
typedef struct {
  int32_t *weights, *bias;
  int inputs, outputs;
} Layer;

enum { MOST_LAYERS = 4 };

struct mr_schedule {
  mr_session *session;
  int off;          /* leaves the session's level alone */
  Fall *falls;      /* one, or those that the network chooses from */
  int fall_count;
  double threshold; /* nats of entropy above which a step is computed at level 0; infinite if none */
  Layer layers[MOST_LAYERS];
  int layer_count, cache, window; /* the network's input: means of a cache tensor */
  double *values[2];              /* room for the widest of its layers, twice */
  int widest;
  const Fall *chosen; /* for this answer; NULL before its first decode step */
  int32_t token;      /* that the next decode step generates */
  int next;           /* the first of the chosen switches that did not happen yet */
};

/* schedule_read.c: fills in the schedule `name` of DIR/schedule.json. */
int schedule_read(mr_schedule *schedule, const char *dir, const char *name);
void schedule_clear(mr_schedule *schedule);

/* entropy.c: nats, of the distribution that logits stand for. */
double logits_entropy(const float *logits, int count);

/* features.c */
int cache_means(const Plan *plan, int tensor, const int held[MAX_STAGES], int window,
                double *means, int capacity, int *count);

#endif
