/* A session: one model opened from its artifact, its memory, and how much text it remembers. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "internal.h"
#include "schedule.h"

struct mr_session {
  Plan plan;
  void *bases[SPACES];
  int threads;
  atomic_int position, level;
  StageLengths lengths;
  Interrupt interrupt;
  pid_t process;        /* that opened it */
  pthread_mutex_t turn; /* held by the call that runs */
};

/* Waits until no other call runs. */
static int enter(mr_session *session) {
  if (session->process != getpid()) {
    return fail(MR_INPUT, "this session is dead: process %d opened it, %d is a fork of that",
                (int)session->process, (int)getpid());
  }
  pthread_mutex_lock(&session->turn);
  return MR_OK;
}

static int leave(mr_session *session, int result) {
  pthread_mutex_unlock(&session->turn);
  return result;
}

static int load_weights(mr_session *session, const char *dir) {
  int64_t bytes = session->plan.bytes[WEIGHTS];
  return bytes ? weights_load(dir, bytes, &session->bases[WEIGHTS]) : MR_OK;
}

static int make_space(mr_session *session, enum Space space) {
  int64_t bytes = session->plan.bytes[space];
  const char *what = space == CACHE ? "key-value cache" : "activations";
  return bytes ? device_memory((size_t)bytes, what, &session->bases[space]) : MR_OK;
}

static int open_plan(mr_session *session, const char *dir) {
  int error = plan_read(&session->plan, plan_text, strlen(plan_text));
  if (!error) error = device_open();
  if (!error) error = load_weights(session, dir);
  for (int space = 0; !error && space < SPACES; space++) {
    if (space != WEIGHTS) error = make_space(session, (enum Space)space);
  }
  if (!error) error = lengths_make(&session->lengths, &session->plan);
  if (!error) plan_bind(&session->plan, session->bases);
  return error;
}

int mr_check_cpu(void) {
  for (const char *const *flag = needed_cpu_flags; *flag; flag++) {
    if (!cpu_has(*flag)) {
      return fail(MR_ARTIFACT, "this artifact needs a CPU with %s, which this one has not", *flag);
    }
  }
  return MR_OK;
}

int mr_open(const char *artifact_dir, int threads, mr_session **out) {
  *out = NULL;
  int unfit = mr_check_cpu();
  if (unfit) return unfit;
  if (threads < 0 || threads > MAX_THREADS) {
    return fail(MR_INPUT, "threads out of range (got %d, need 0 to %d)", threads, MAX_THREADS);
  }
  mr_session *session = calloc(1, sizeof *session);
  if (!session) return fail(MR_RUNTIME, "not enough memory for a session");
  pthread_mutex_init(&session->turn, NULL);
  session->process = getpid();
  session->threads = mr_pool_start(threads);
  int error = open_plan(session, artifact_dir);
  if (error) {
    mr_close(session);
    return error;
  }
  *out = session;
  return MR_OK;
}

void mr_cancel(mr_session *session) { atomic_store(&session->interrupt.cancelled, 1); }

void mr_close(mr_session *session) {
  if (!session) return;
  if (session->process == getpid()) { /* a fork has neither the threads nor whoever had the turn */
    mr_cancel(session);
    pthread_mutex_lock(&session->turn);
    pthread_mutex_unlock(&session->turn);
    pthread_mutex_destroy(&session->turn);
    mr_pool_stop();
  }
  weights_release(session->bases[WEIGHTS]);
  session->bases[WEIGHTS] = NULL;
  for (int space = 0; space < SPACES; space++) {
    size_t bytes = (size_t)session->plan.bytes[space];
    if (session->bases[space]) device_release(session->bases[space], bytes);
  }
  lengths_free(&session->lengths);
  plan_free(&session->plan);
  free(session);
}

static int check(const mr_session *session, const int32_t *ids, int count) {
  int64_t end = (int64_t)session->position + count;
  if (count < 1) return fail(MR_INPUT, "no tokens given (got %d, need 1 or more)", count);
  if (end > session->plan.context) {
    return fail(MR_INPUT, "prompt too long (got %lld, context %lld)", (long long)end,
                (long long)session->plan.context);
  }
  for (int i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= session->plan.vocabulary) {
      return fail(MR_INPUT,
                  "the token at place %d is not in the vocabulary (got id %d, vocabulary %lld)", i,
                  (int)ids[i], (long long)session->plan.vocabulary);
    }
  }
  return MR_OK;
}

/* Runs `function` chunk by chunk and copies out the logits of all tokens, or of the last one, or
 * none where there is no place for them. Kernels see aligned memory of the session, callers pass what they have. A call that fails or is
 * cancelled leaves the position where it was: what it wrote behind that is never read. */
static int run_chunks(mr_session *session, enum Function function, const int32_t *ids, int count,
                      float *logits, int all) {
  int error = check(session, ids, count);
  if (error) return error;
  int chunk = (int)session->plan.chunk, start = session->position;
  size_t row = (size_t)session->plan.vocabulary * sizeof *logits;
  atomic_store(&session->interrupt.cancelled, 0);
  session->interrupt.next = 0;
  pool_use(session->threads);
  for (int done = 0; done < count; done += chunk) {
    int tokens = count - done < chunk ? count - done : chunk;
    error = device_write(session->bases[IDS], ids + done, (size_t)tokens * sizeof *ids);
    int counts[MAX_STAGES], held[MAX_STAGES];
    stage_counts(&session->plan, function, tokens, counts);
    if (!error) error = lengths_at(&session->lengths, &session->plan, start + done, held);
    if (!error) {
      error = plan_run(&session->plan, function, counts, held, session->level,
                       &session->interrupt);
    }
    if (!error) lengths_add(&session->lengths, &session->plan, start + done, counts);
    if (!error && all) {
      void *rows = (char *)logits + (size_t)done * row;
      error = device_read(rows, session->bases[LOGITS], (size_t)tokens * row);
    }
    if (error) return error;
  }
  if (!all && logits) error = device_read(logits, session->bases[LOGITS], row);
  if (!error) session->position = start + count;
  return error;
}

static int run(mr_session *session, enum Function function, const int32_t *ids, int count,
               float *logits, int all) {
  int error = enter(session);
  return error ? error
               : leave(session, run_chunks(session, function, ids, count, logits, all));
}

int mr_prefill(mr_session *session, const int32_t *ids, int count, float *logits) {
  return run(session, PREFILL, ids, count, logits, 0);
}

int mr_decode(mr_session *session, int32_t id, float *logits) {
  return run(session, DECODE, &id, 1, logits, 0);
}

/* The likeliest token, found by the device; its logit is not read. */
static int read_likeliest(mr_session *session, Choice *best) {
  int error = device_read(&best->id, session->bases[IDS], sizeof best->id);
  best->logit = 0;
  if (error || (best->id >= 0 && best->id < session->plan.vocabulary)) return error;
  return fail(MR_RUNTIME, "the model computed a logit that is not finite");
}

/* Decodes; gives candidates, or the likeliest one where `sharpness` is 0; none where it is less, or
 * without a device that finds them. */
static int decode_few(mr_session *session, int32_t id, float sharpness, Choice all[CANDIDATES],
                      int *count, double *total) {
  Plan *plan = &session->plan;
  if (sharpness > 0) memcpy(&plan->sharpness, &sharpness, sizeof sharpness);
  int error = run_chunks(session, DECODE, &id, 1, NULL, 0);
  plan->sharpness = 0;
  *count = plan->candidates && sharpness >= 0;
  *total = 1;
  if (error || !*count) return error;
  return sharpness ? candidates_read(plan, all, count, total) : read_likeliest(session, all);
}

/* Draws the next token from all logits that the last call left. */
static int draw_of_all(mr_session *session, mr_sampler *sampler, int32_t *next) {
  size_t bytes = (size_t)session->plan.vocabulary * sizeof(float);
  float *logits = malloc(bytes);
  if (!logits) return fail(MR_RUNTIME, "not enough memory for logits");
  int error = device_read(logits, session->bases[LOGITS], bytes);
  if (!error) error = mr_sample(sampler, logits, next);
  free(logits);
  return error;
}

static int decode_next(mr_session *session, mr_sampler *sampler, int32_t id, int32_t *next) {
  Choice all[CANDIDATES];
  int32_t drawn = -1;
  int count;
  double total;
  int error = decode_few(session, id, sampler_sharpness(sampler), all, &count, &total);
  if (!error && count) error = sampler_choose(sampler, all, count, total, &drawn);
  if (!error && drawn < 0) error = draw_of_all(session, sampler, &drawn);
  if (!error) *next = drawn;
  return error;
}

int mr_decode_next(mr_session *session, mr_sampler *sampler, int32_t id, int32_t *next) {
  int error = enter(session);
  return error ? error : leave(session, decode_next(session, sampler, id, next));
}

int mr_decode_candidates(mr_session *session, int32_t id, float sharpness, int32_t *ids,
                         float *logits, int *count, double *total) {
  Choice all[CANDIDATES];
  int error = enter(session);
  if (error) return error;
  error = decode_few(session, id, sharpness, all, count, total);
  for (int i = 0; !error && i < *count; i++) {
    ids[i] = all[i].id;
    logits[i] = all[i].logit;
  }
  return leave(session, error);
}

int mr_logits(mr_session *session, float *logits) {
  int error = enter(session);
  size_t bytes = (size_t)session->plan.vocabulary * sizeof *logits;
  return error ? error : leave(session, device_read(logits, session->bases[LOGITS], bytes));
}

int mr_score(mr_session *session, const int32_t *ids, int count, float *logits) {
  return run(session, SCORE, ids, count, logits, 1);
}

int mr_position(const mr_session *session) { return session->position; }

static int set_position(mr_session *session, int position) {
  if (position < 0 || position > session->position) {
    return fail(MR_INPUT, "position out of range (got %d, need 0 to %d)", position,
                session->position);
  }
  int held[MAX_STAGES], error = lengths_at(&session->lengths, &session->plan, position, held);
  if (!error) session->position = position;
  return error;
}

int mr_set_position(mr_session *session, int position) {
  int error = enter(session);
  return error ? error : leave(session, set_position(session, position));
}

int mr_reset(mr_session *session) { return mr_set_position(session, 0); }

int mr_text(mr_session *session, void *text, int64_t capacity, int64_t *bytes) {
  int error = enter(session);
  if (error) return error;
  *bytes = text_bytes(&session->plan);
  if (capacity < *bytes) return leave(session, MR_OK);
  return leave(session,
               text_read(&session->plan, session->bases[CACHE], session->position, text));
}

int mr_set_text(mr_session *session, const void *text, int64_t bytes) {
  int position = 0, error = enter(session);
  if (error) return error;
  error = text_write(&session->plan, session->bases[CACHE], text, bytes, &position);
  if (!error) session->position = position;
  return leave(session, error);
}

static int set_level(mr_session *session, int level) {
  if (level < 0 || level >= session->plan.levels) {
    return fail(MR_INPUT, "precision level out of range (got %d, need 0 to %d)", level,
                (int)session->plan.levels - 1);
  }
  session->level = level;
  return MR_OK;
}

int mr_set_level(mr_session *session, int level) {
  int error = enter(session);
  return error ? error : leave(session, set_level(session, level));
}

int mr_set_poll(mr_session *session, int (*poll)(void *data), void *data) {
  int error = enter(session);
  if (error) return error;
  session->interrupt.poll = poll;
  session->interrupt.data = data;
  return leave(session, MR_OK);
}

int mr_set_trace(mr_session *session, mr_trace trace, void *data) {
  int error = enter(session);
  if (error) return error;
  session->plan.trace = trace;
  session->plan.trace_data = data;
  return leave(session, MR_OK);
}

int mr_set_profile(mr_session *session, int on) {
  int error = enter(session);
  if (error) return error;
  session->plan.profile = on;
  return leave(session, MR_OK);
}

double mr_step_seconds(mr_session *session, int function, int step) {
  double seconds = -1;
  if (function < 0 || function >= FUNCTIONS || step < 0 || enter(session)) return seconds;
  const StepList *list = &session->plan.functions[function];
  if (step < list->step_count) seconds = list->steps[step].seconds;
  leave(session, MR_OK);
  return seconds;
}

const char *mr_plan(void) { return plan_text; }

int mr_vocabulary(const mr_session *session) { return (int)session->plan.vocabulary; }

int mr_levels(const mr_session *session) { return (int)session->plan.levels; }

int mr_level(const mr_session *session) { return session->level; }

int mr_cache_means(mr_session *session, int tensor, int window, double *means, int capacity,
                   int *count) {
  int held[MAX_STAGES], error = enter(session);
  if (error) return error;
  error = lengths_at(&session->lengths, &session->plan, session->position, held);
  if (!error) error = cache_means(&session->plan, tensor, held, window, means, capacity, count);
  return leave(session, error);
}

int mr_context(const mr_session *session) { return (int)session->plan.context; }
