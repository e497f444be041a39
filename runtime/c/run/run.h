/* The executable `run` of an artifact: text in, text out, without Python. */
#ifndef MORENDO_RUN_H
#define MORENDO_RUN_H

#include <stdint.h>

#include "../morendo.h"
#include "../tokenizer.h"

/* Exit codes, as those of the `morendo` command. */
enum { DONE = 0, WRONG_INPUT = 1, WRONG_USAGE = 2, INTERRUPTED = 130, NO_READER = 141 };

/* Generated for each model: what compiling found out about its text. */
typedef struct {
  const char *name, *version;    /* the model's, and morendo's that compiled it */
  const int32_t *stops; /* ids that end an answer */
  int stop_count;
  int32_t bos;                   /* goes in front of a text, or -1 */
  const char *missing_tokenizer; /* why there are no tables, or NULL */
  const char *missing_chat;      /* why there is no chat form, "" for a model without chats */
  const char *user[2];           /* where missing_chat is NULL: before and behind what the user says */
  const char *system[3];         /* with a system message: before, between, behind; or NULL */
  int trims;                     /* blanks around messages are taken away */
  mr_sampling sampling;
  const int64_t *level_bytes; /* of weights that a decode step reads, by precision level */
  int64_t weights;            /* how many these are */
} Model;
extern const Model run_model;

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
