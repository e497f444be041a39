/* The C interface of a compiled model: one artifact directory, one session, logits out.
 *
 * The library is a program, and comes with the artifact: whoever loads it runs the code of whoever
 * made it, with all rights of the process. `morendo verify DIR --sha256 H` tells, before that,
 * whether it is the artifact whose digest H was given.
 *
 * Functions that can fail return MR_OK or one of the codes below; mr_error() then says why in one
 * line, and the session is as it was before the call.
 *
 * Threads: any thread may call; calls on one session wait for each other, different sessions run
 * at the same time. mr_cancel() waits for nothing. Only the process that opened a session can use
 * it: in a fork every call but mr_close() and mr_cancel() fails, since a fork has no other threads.
 */
#ifndef MORENDO_H
#define MORENDO_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MR_API __attribute__((visibility("default")))

enum {
  MR_OK = 0,
  MR_INPUT = 1,    /* the caller's ids, counts or levels cannot be used */
  MR_ARTIFACT = 2, /* the artifact is missing, damaged or of another version */
  MR_RUNTIME = 3,  /* no memory or threads left, or a kernel refused its arguments */
  MR_CANCELLED = 4 /* mr_cancel() or mr_close() ended the call */
};

typedef struct mr_session mr_session;
typedef struct mr_schedule mr_schedule;
typedef struct mr_tokenizer mr_tokenizer;

/* Whether the CPU can run this model's code; MR_ARTIFACT if it lacks an instruction set. mr_open
 * asks this first, whoever calls kernels himself asks before. */
MR_API int mr_check_cpu(void);

/* Opens the model of an artifact directory. threads 0 means one for each CPU that this process may
 * use, by its affinity and by the whole CPUs of its control groups' quotas. */
MR_API int mr_open(const char *artifact_dir, int threads, mr_session **out);
/* Ends the call that runs, waits for it, and frees the session. No call may begin once this one
 * has: it would use what is freed. */
MR_API void mr_close(mr_session *session);
/* Makes the call that runs return MR_CANCELLED before its next kernel; does nothing if none runs.
 * For other threads and for signal handlers: it only stores to an atomic. */
MR_API void mr_cancel(mr_session *session);

/* Has calls ask `poll(data)`, before their first kernel and then about twenty times a second, and
 * return MR_CANCELLED when it says other than 0; NULL asks nobody. For languages that handle
 * signals only between their own instructions. `poll` runs in the thread of the call, and may use
 * no function of this session but mr_cancel. */
MR_API int mr_set_poll(mr_session *session, int (*poll)(void *data), void *data);

/* The last failure of this thread, one line; valid until its next failure. */
MR_API const char *mr_error(void);

/* Appends `count` tokens and writes the logits of the last one, float[vocabulary]. */
MR_API int mr_prefill(mr_session *session, const int32_t *ids, int count, float *logits);
/* The same for one token. */
MR_API int mr_decode(mr_session *session, int32_t id, float *logits);
/* Appends `count` tokens and writes the logits of each, float[count][vocabulary]. */
MR_API int mr_score(mr_session *session, const int32_t *ids, int count, float *logits);

/* Forgets all tokens. */
MR_API int mr_reset(mr_session *session);
/* Number of tokens that the session remembers. */
MR_API int mr_position(const mr_session *session);
/* Forgets the tokens from `position` on. */
MR_API int mr_set_position(mr_session *session, int position);
/* Chooses the precision of the next calls; 0 is the most precise. */
MR_API int mr_set_level(mr_session *session, int level);
/* The number of levels, and the one that the next call has. */
MR_API int mr_levels(const mr_session *session);
MR_API int mr_level(const mr_session *session);
/* Starts (1) or stops (0) adding up the seconds of each step of the plan. */
MR_API int mr_set_profile(mr_session *session, int on);
/* Seconds so far of step `step` of prefill (0), score (1) or decode (2); -1 if there is none. */
MR_API double mr_step_seconds(mr_session *session, int function, int step);
/* The text of the plan that the library was built for; plan.json is a copy of it for tools. */
MR_API const char *mr_plan(void);
MR_API int mr_vocabulary(const mr_session *session);
MR_API int mr_context(const mr_session *session);

/* Opens a schedule of the artifact, which chooses the level of each decode step of an answer:
 * "static", "entropy" or "learned" as `morendo tune` left them, "fixed:L" for level L behind a
 * prefill at level 0, or "off", which leaves the session's level alone. It follows one answer at a
 * time, and is closed before its session. */
MR_API int mr_schedule_open(mr_session *session, const char *artifact_dir, const char *name,
                            mr_schedule **out);
MR_API void mr_schedule_close(mr_schedule *schedule);
/* Before the prefill of each prompt: an answer begins, and the prompt is read at level 0. */
MR_API int mr_schedule_begin(mr_schedule *schedule);
/* Before each mr_decode: sets its level. `logits` are those that its token was drawn from. */
MR_API int mr_schedule_next(mr_schedule *schedule, const float *logits);
/* What a learned schedule sees of a prompt: the means of a cache tensor of the plan, [context,
 * width] or [heads, context, width], over the last `window` tokens. `count` becomes width or
 * heads * width; what is behind `capacity` is not written. */
MR_API int mr_cache_means(mr_session *session, int tensor, int window, double *means, int capacity,
                          int *count);

/* Opens the compiled tokenizer of an artifact directory. It does not change any more: any number
 * of threads may use it at the same time. */
MR_API int mr_tokenizer_open(const char *artifact_dir, mr_tokenizer **out);
MR_API void mr_tokenizer_close(mr_tokenizer *tokenizer);
/* Token ids of `bytes` bytes of UTF-8, added tokens such as <|im_start|> included, without a
 * beginning-of-text token. `count` becomes the number of ids; those behind `capacity` are not
 * written, so that a first call with 0 tells how many there are. */
MR_API int mr_tokenize(const mr_tokenizer *tokenizer, const char *text, int64_t bytes, int32_t *ids,
                       int capacity, int *count);
/* The UTF-8 text of token ids, without special tokens; `bytes` and `capacity` as above. What is
 * not valid becomes the replacement character. */
MR_API int mr_detokenize(const mr_tokenizer *tokenizer, const int32_t *ids, int count, char *text,
                         int64_t capacity, int64_t *bytes);

/* For callers that run kernels themselves: makes `threads` (0: all CPUs) take part in parallel
 * loops and returns their number. The workers live until the matching mr_pool_stop. */
MR_API int mr_pool_start(int threads);
MR_API void mr_pool_stop(void);

#ifdef __cplusplus
}
#endif
#endif
