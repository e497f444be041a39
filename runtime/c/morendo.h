/* The C interface of a compiled model: one artifact directory, one session, logits out.
 *
 * Functions that can fail return MR_OK or one of the codes below; mr_error() then says why in one
 * line. A session belongs to one thread at a time; different sessions may run at the same time. */
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
  MR_RUNTIME = 3   /* no memory or threads left, or a kernel refused its arguments */
};

typedef struct mr_session mr_session;

/* Opens the model of an artifact directory; threads 0 means all CPUs this process may use. */
MR_API int mr_open(const char *artifact_dir, int threads, mr_session **out);
MR_API void mr_close(mr_session *session);

/* The last failure of this thread, one line; valid until its next failure. */
MR_API const char *mr_error(void);

/* Appends `count` tokens and writes the logits of the last one, float[vocabulary]. */
MR_API int mr_prefill(mr_session *session, const int32_t *ids, int count, float *logits);
/* The same for one token. */
MR_API int mr_decode(mr_session *session, int32_t id, float *logits);
/* Appends `count` tokens and writes the logits of each, float[count][vocabulary]. */
MR_API int mr_score(mr_session *session, const int32_t *ids, int count, float *logits);

/* Forgets all tokens. */
MR_API void mr_reset(mr_session *session);
/* Number of tokens that the session remembers. */
MR_API int mr_position(const mr_session *session);
/* Forgets the tokens from `position` on. */
MR_API int mr_set_position(mr_session *session, int position);
/* Chooses the precision of the next calls; 0 is the most precise. */
MR_API int mr_set_level(mr_session *session, int level);
/* Starts (1) or stops (0) adding up the seconds of each step of the plan. */
MR_API void mr_set_profile(mr_session *session, int on);
/* Seconds so far of step `step` of prefill (0), score (1) or decode (2); -1 if there is none. */
MR_API double mr_step_seconds(const mr_session *session, int function, int step);
MR_API int mr_vocabulary(const mr_session *session);
MR_API int mr_context(const mr_session *session);

/* For callers that run kernels themselves: makes `threads` (0: all CPUs) take part in parallel
 * loops and returns their number. The workers live until the matching mr_pool_stop. */
MR_API int mr_pool_start(int threads);
MR_API void mr_pool_stop(void);

#ifdef __cplusplus
}
#endif
#endif
