/* The C interface of a compiled model: text in, token by token, text out.
 *
 * `morendo compile` writes a directory, an artifact: model.so, which has every function below and
 * the kernels of that one model, and the data beside it. A program links model.so, or loads it; it
 * needs no other library than libc. examples/generate.c is such a program, and in short:
 *
 *     mr_session *session;
 *     mr_sampler *sampler;
 *     mr_sampling sampling = MR_GREEDY;
 *     if (mr_open("DIR", 0, &session)) give_up(mr_error());
 *     if (mr_sampler_open(mr_vocabulary(session), &sampling, 0, &sampler)) give_up(mr_error());
 *     mr_prefill(session, ids, count, logits);          -- the prompt; float logits[vocabulary]
 *     while (!mr_sample(sampler, logits, &id) && !mr_is_end(id)) mr_decode(session, id, logits);
 *
 * Trust.   The library is a program, and comes with the artifact: whoever loads it runs the code
 *          of whoever made it, with all rights of the process. `morendo verify DIR --sha256 H`
 *          tells, before that, whether it is the artifact whose digest H was given.
 * Errors.  A function of type int returns MR_OK or one of the codes below, unless its comment says
 *          what else; mr_error() then says why in one line. After a failure every object is as it
 *          was before the call, and an `out` that was to be opened is NULL.
 * Memory.  What mr_..._open or mr_open gives is freed by the function of that name with "close",
 *          which takes NULL too. Whatever else a caller passes or gets is the caller's; strings
 *          that are returned are not to be freed.
 * Threads. Any thread may call. Calls on one session wait for each other; mr_cancel() waits for
 *          nothing. Different sessions run at the same time. A tokenizer never changes, so any
 *          number of threads may use it; a sampler and a schedule are used by one thread at a time.
 * Sharing. Sessions of one process that open the same artifact share its weights, mapped once,
 *          and one pool of threads. Each has activations and a key-value cache of its own. A loop
 *          of one session has the pool for itself while it runs, so sessions that run at the same
 *          time take turns by loops: together they are about as fast as one. Artifacts of
 *          different models are different libraries, with a pool each.
 * Forks.   Only the process that opened a session can use it: in a fork every call but mr_close()
 *          and mr_cancel() fails, since a fork has no other threads. It may open its own. */
#ifndef MORENDO_H
#define MORENDO_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MR_API __attribute__((visibility("default")))

enum {
  MR_OK = 0,
  MR_INPUT = 1,    /* the caller's ids, counts, levels or settings cannot be used */
  MR_ARTIFACT = 2, /* the artifact is missing, damaged or of another version */
  MR_RUNTIME = 3,  /* no memory or threads left, or a computation failed */
  MR_CANCELLED = 4 /* mr_cancel() or mr_close() ended the call, or what mr_set_poll() set */
};

typedef struct mr_session mr_session;
typedef struct mr_sampler mr_sampler;
typedef struct mr_schedule mr_schedule;
typedef struct mr_tokenizer mr_tokenizer;

/* The last failure of this thread, one line of UTF-8; valid until its next failure. */
MR_API const char *mr_error(void);

/* ---- Sessions: one model that remembers one text ---- */

/* Whether the CPU can run this model's code; MR_ARTIFACT if it lacks an instruction set. mr_open
 * asks this first, whoever calls kernels himself asks before. */
MR_API int mr_check_cpu(void);

/* Opens the model of an artifact directory, with no text yet. `threads` is 0 to 256; 0 means one
 * for each CPU that this process may use, by its affinity and by the whole CPUs of its control
 * groups' quotas. Nothing is read but what the first token touches. */
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

/* The number of token ids, which are 0 to this - 1, and of the logits of a token. */
MR_API int mr_vocabulary(const mr_session *session);
/* The most tokens that a session remembers. */
MR_API int mr_context(const mr_session *session);

/* ---- Computing ---- */

/* Appends `count` tokens, 1 or more, and writes the logits of the last one, float[vocabulary]:
 * unnormalized log-probabilities of the token that follows. */
MR_API int mr_prefill(mr_session *session, const int32_t *ids, int count, float *logits);
/* The same for one token, by the kernels for one. */
MR_API int mr_decode(mr_session *session, int32_t id, float *logits);
/* The same, and draws the next token as mr_sample does from the logits; which do not leave the
 * device, if it has memory of its own and the likeliest tokens decide. After a failure the sampler
 * is as it was, the text of the session may be longer by the token. */
MR_API int mr_decode_next(mr_session *session, mr_sampler *sampler, int32_t id, int32_t *next);
/* For who draws by himself: the same as mr_decode, and writes the likeliest tokens, at most
 * MR_CANDIDATES, by logit and then by id. `count` becomes their number, 0 where the device finds
 * none; `total` the sum of e^((logit - largest) * sharpness) of all tokens, to 1e-5 of it. With a
 * sharpness of 0 there is one token, and 0 as its logit. mr_logits has all. */
enum { MR_CANDIDATES = 256 };
MR_API int mr_decode_candidates(mr_session *session, int32_t id, float sharpness, int32_t *ids,
                                float *logits, int *count, double *total);
/* The logits that the last mr_prefill or mr_decode... found, float[vocabulary]. */
MR_API int mr_logits(mr_session *session, float *logits);
/* Appends `count` tokens and writes the logits of each, float[count][vocabulary]. */
MR_API int mr_score(mr_session *session, const int32_t *ids, int count, float *logits);

/* Forgets all tokens. */
MR_API int mr_reset(mr_session *session);
/* Number of tokens that the session remembers. */
MR_API int mr_position(const mr_session *session);
/* Forgets the tokens from `position` on, which is 0 to mr_position(); where a prefill dropped
 * tokens, it is no place within a chunk of it. */
MR_API int mr_set_position(mr_session *session, int position);

/* What the session remembers, so that another one can go on from it: a session of the same artifact
 * or of one that was compiled with its weights for another machine of the same byte order (an NPU
 * reads the prompt, a CPU answers). `bytes` becomes the size; nothing is written where `capacity`
 * is less. MR_INPUT for a model that drops tokens of prompts. */
MR_API int mr_text(mr_session *session, void *text, int64_t capacity, int64_t *bytes);
/* Remembers what mr_text() gave instead; MR_INPUT if it is of a model with another cache. */
MR_API int mr_set_text(mr_session *session, const void *text, int64_t bytes);

/* ---- Drawing tokens ---- */

/* How tokens are drawn, as transformers defines it and in this order: logits of tokens that the
 * text has are divided by repetition_penalty where they are above 0, else multiplied with it; all
 * are divided by the temperature; the top_k likeliest stay; of these the likeliest that together
 * have the probability top_p; of these the ones with at least min_p times the largest probability.
 * `morendo run` and DIR/run draw alike, by default as mr_default_sampling() says. */
typedef struct {
  float temperature;        /* 0 or more; 0 takes the likeliest token, the first of equals */
  float top_p;              /* above 0, at most 1; 1 keeps all */
  float min_p;              /* 0 to 1; 0 keeps all */
  float repetition_penalty; /* above 0; 1 changes nothing */
  int top_k;                /* 0 or more; 0 keeps all */
} mr_sampling;

/* The likeliest token, always: mr_sampling sampling = MR_GREEDY; */
#define MR_GREEDY {0.0f, 1.0f, 0.0f, 1.0f, 0}

/* What the model's makers recommend; greedy where they say nothing. */
MR_API void mr_default_sampling(mr_sampling *sampling);

/* Opens a sampler for logits of `vocabulary` tokens. The same seed draws the same tokens from the
 * same logits, on every machine whose expf rounds alike. MR_INPUT for a setting out of its range. */
MR_API int mr_sampler_open(int vocabulary, const mr_sampling *sampling, uint64_t seed,
                           mr_sampler **out);
MR_API void mr_sampler_close(mr_sampler *sampler);
/* Draws the next token from logits, float[vocabulary], which stay as they are; from then on it is
 * one of the text. MR_RUNTIME where a logit is no number, or the largest is infinite. */
MR_API int mr_sample(mr_sampler *sampler, const float *logits, int32_t *id);
/* Tells tokens of the text that were not drawn here, such as the prompt's: they matter to the
 * repetition penalty alone. */
MR_API int mr_sampler_see(mr_sampler *sampler, const int32_t *ids, int count);
/* Another text begins: none of the tokens was seen. The random numbers go on. */
MR_API void mr_sampler_forget(mr_sampler *sampler);

/* ---- Text and token ids ---- */

/* Opens the compiled tokenizer of an artifact directory, MR_ARTIFACT where it has none. */
MR_API int mr_tokenizer_open(const char *artifact_dir, mr_tokenizer **out);
MR_API void mr_tokenizer_close(mr_tokenizer *tokenizer);
/* Token ids of `bytes` bytes of UTF-8, added tokens such as <|im_start|> included, without a
 * beginning-of-text token. `count` becomes the number of ids; those behind `capacity` are not
 * written, so that a first call with 0 tells how many there are. */
MR_API int mr_tokenize(const mr_tokenizer *tokenizer, const char *text, int64_t bytes, int32_t *ids,
                       int capacity, int *count);
/* The UTF-8 text of token ids, without special tokens; `bytes` and `capacity` as above, and no
 * zero behind it. What is not valid becomes the replacement character. */
MR_API int mr_detokenize(const mr_tokenizer *tokenizer, const int32_t *ids, int count, char *text,
                         int64_t capacity, int64_t *bytes);

/* What compiling found out about the model's texts; no session is needed. */

/* The id that goes in front of a text which is no chat, -1 where none does. */
MR_API int32_t mr_begin_id(void);
/* Whether an id ends an answer: the end of text, of a turn, and what else the model's makers name.
 * Such a token is no part of the answer. */
MR_API int mr_is_end(int32_t id);
/* Whether mr_chat can do it; not for a model without chats, nor where its chat template is more
 * than texts around messages. */
MR_API int mr_has_chat(void);
/* The text of a chat that waits for its first answer: `said`, and the zero-terminated system
 * message `system` or NULL, in the model's form. Its ids are mr_tokenize's, nothing goes in front
 * of them. `bytes` and `capacity` as for mr_detokenize. */
MR_API int mr_chat(const char *system, const char *said, int64_t said_bytes, char *text,
                   int64_t capacity, int64_t *bytes);

/* ---- Precision ---- */

/* Chooses the precision of the next calls; 0 is the most precise. */
MR_API int mr_set_level(mr_session *session, int level);
/* The number of levels, and the one that the next call has. */
MR_API int mr_levels(const mr_session *session);
MR_API int mr_level(const mr_session *session);

/* Opens a schedule of the artifact, which chooses the level of each decode step of an answer:
 * "static", "entropy" or "learned" as `morendo tune` left them, "fixed:L" for level L behind a
 * prefill at level 0, or "off", which leaves the session's level alone. It follows one answer at a
 * time, and is closed before its session. */
MR_API int mr_schedule_open(mr_session *session, const char *artifact_dir, const char *name,
                            mr_schedule **out);
MR_API void mr_schedule_close(mr_schedule *schedule);
/* Before the prefill of each prompt: an answer begins, and the prompt is read at level 0. */
MR_API int mr_schedule_begin(mr_schedule *schedule);
/* Before each mr_decode: sets its level. `logits` are those that its token was drawn from; they may
 * be anything where the schedule does not look at them. */
MR_API int mr_schedule_next(mr_schedule *schedule, const float *logits);
MR_API int mr_schedule_needs_logits(const mr_schedule *schedule);

/* ---- Looking inside ---- */

/* The text of the plan that the library was built for; plan.json is a copy of it for tools. */
MR_API const char *mr_plan(void);
/* Starts (1) or stops (0) adding up the seconds of each step of the plan. */
MR_API int mr_set_profile(mr_session *session, int on);
/* Seconds so far of step `step` of prefill (0), score (1) or decode (2); -1 if there is none. */
MR_API double mr_step_seconds(mr_session *session, int function, int step);
/* After each step of each call, `trace` is given the arguments of the step that lie in the memory of
 * activations and logits, one after another: the number of the step, that of the argument, and a
 * copy of its bytes, which ends with the call of `trace`. NULL stops it. Calls are slow meanwhile;
 * `trace` must not call functions of the session. */
typedef void (*mr_trace)(void *data, int step, int argument, const void *bytes, int64_t count);
MR_API int mr_set_trace(mr_session *session, mr_trace trace, void *data);
/* What a learned schedule sees of a prompt: the means of a cache tensor of the plan, [context,
 * width] or [heads, context, width], over the last `window` tokens. `count` becomes width or
 * heads * width; what is behind `capacity` is not written. */
MR_API int mr_cache_means(mr_session *session, int tensor, int window, double *means, int capacity,
                          int *count);

/* For callers that run kernels themselves: makes `threads` (0: all CPUs) take part in parallel
 * loops and returns their number. The workers live until the matching mr_pool_stop. */
MR_API int mr_pool_start(int threads);
MR_API void mr_pool_stop(void);

#ifdef __cplusplus
}
#endif
#endif
