/* The executable `run` of an artifact: text in, text out, without Python. */
#ifndef MORENDO_RUN_H
#define MORENDO_RUN_H

#include <stdint.h>

#include "../model.h"
#include "../morendo.h"

/* Exit codes, as those of the `morendo` command. */
enum { DONE = 0, WRONG_INPUT = 1, WRONG_USAGE = 2, INTERRUPTED = 130, NO_READER = 141 };

/* Whether the model has no chats at all, in any form. */
static inline int has_no_chats(void) {
  return model_facts.missing_chat && !*model_facts.missing_chat;
}

/* options.c */
enum { MOST_STOPS = 16 };

typedef struct {
  const char *prompt, *system, *schedule;
  const char *stops[MOST_STOPS];
  int stop_count, max_tokens, threads, level; /* level -1 if it is not given */
  int raw, ids, stats, ignore_eos;
  uint64_t seed;
  mr_sampling sampling;
} Options;

/* Reads the command line; -1 to go on, else the exit code. */
int read_options(int count, char **words, Options *options);
/* Prints `error: ...` on standard error; returns `code`. */
int report(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* output.c: what is printed, held back where it may be the start of a stop text. */
typedef struct {
  const Options *options;
  TextStream text;
  Buffer ready;
  int stopped; /* a stop text was found */
  int failed;  /* the reader went away, or the disk is full */
} Output;

void output_start(Output *output, const Options *options, const mr_tokenizer *tokenizer);
int output_token(Output *output, int32_t id);
void output_finish(Output *output);

/* prompt.c: the ids of the prompt, from malloc; NULL after an error that is already reported. */
int32_t *read_prompt(const Options *options, const mr_tokenizer *tokenizer, int *count);

/* stats.c: what --stats tells. */
enum { SHOWN_RUNS = 12 };

typedef struct {
  double load, prefill, decode; /* seconds */
  int prompt_tokens, decode_tokens;
  struct {
    int level, steps;
  } runs[SHOWN_RUNS]; /* of decode steps of the same level */
  int run_count, last_level;
  double bytes; /* that all decode steps read */
  const char *finish;
} Stats;

void stats_add_step(Stats *stats, int level, double seconds);
void stats_print(const Stats *stats);

/* serve.c: gives logits to another program; see there. */
int serve(const char *directory, int threads);

#endif
