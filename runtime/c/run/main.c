/* DIR/run: opens the artifact that it lies in and answers one prompt. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "run.h"

static volatile sig_atomic_t interrupted;
static mr_session *volatile running; /* what Ctrl-C cancels */

static void interrupt(int number) {
  (void)number;
  interrupted = 1;
  if (running) mr_cancel(running);
}

/* Says why a call failed; an exit code. */
static int failed(void) {
  return interrupted ? report(INTERRUPTED, "interrupted") : report(WRONG_INPUT, "%s", mr_error());
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* The directory of this executable. */
static int find_artifact(const char *word, char *path, size_t room) {
  ssize_t size = readlink("/proc/self/exe", path, room - 1);
  if (size <= 0) size = snprintf(path, room, "%s", word);
  if (size <= 0 || (size_t)size >= room - 1) return 0;
  path[size] = 0;
  char *slash = strrchr(path, '/');
  strcpy(slash ? slash : path, slash ? "" : ".");
  return 1;
}

/* Decodes token after token; an exit code. */
static int answer(mr_session *session, mr_schedule *schedule, const Options *options,
                  mr_sampler *sampler, Output *output, float *logits, Stats *stats) {
  int looks = mr_schedule_needs_logits(schedule);
  int32_t id = 0, next = 0;
  stats->finish = "length";
  for (int count = 0; count < options->max_tokens && !interrupted; count++) {
    double start = now();
    if (count && !looks) {
      id = next;
    } else if (mr_sample(sampler, logits, &id)) {
      return failed();
    }
    if (!options->ignore_eos && mr_is_end(id)) {
      stats->finish = count ? "stop" : "nothing";
      return DONE;
    }
    if (output_token(output, id)) return report(WRONG_INPUT, "%s", mr_error());
    if (output->failed) return output->failed;
    if (output->stopped) return DONE;
    if (count + 1 == options->max_tokens) return DONE;
    if (mr_position(session) == mr_context(session)) {
      stats->finish = "context";
      return DONE;
    }
    if (mr_schedule_next(schedule, logits)) return failed();
    if (looks ? mr_decode(session, id, logits) : mr_decode_next(session, sampler, id, &next)) {
      return failed();
    }
    stats_add_step(stats, mr_level(session), now() - start);
  }
  return interrupted ? report(INTERRUPTED, "interrupted") : DONE;
}

static void tell(const mr_session *session, const Options *options, const Stats *stats) {
  if (!strcmp(stats->finish, "nothing")) fputs("the answer is empty: the model ended it at once\n", stderr);
  if (!strcmp(stats->finish, "context")) {
    fprintf(stderr, "the context of %d tokens is full; compile with a larger --context\n",
            mr_context(session));
  }
  if (options->stats) stats_print(stats);
}

static int generate(mr_session *session, mr_schedule *schedule, const mr_tokenizer *tokenizer,
                    const Options *options, Stats *stats) {
  int32_t *ids = read_prompt(options, tokenizer, &stats->prompt_tokens);
  if (!ids) return WRONG_INPUT;
  mr_sampler *sampler;
  Output output;
  int vocabulary = mr_vocabulary(session);
  float *logits = malloc((size_t)vocabulary * sizeof *logits);
  int code = logits ? DONE : report(WRONG_INPUT, "not enough memory");
  if (mr_sampler_open(vocabulary, &options->sampling, options->seed, &sampler)) code = failed();
  double start = now();
  if (!code && (mr_schedule_begin(schedule) ||
                mr_prefill(session, ids, stats->prompt_tokens, logits) ||
                mr_sampler_see(sampler, ids, stats->prompt_tokens))) {
    code = failed();
  }
  stats->prefill = now() - start;
  if (!code) {
    output_start(&output, options, tokenizer);
    code = answer(session, schedule, options, sampler, &output, logits, stats);
    output_finish(&output);
    if (!code) tell(session, options, stats);
  }
  mr_sampler_close(sampler);
  free(logits);
  free(ids);
  return code;
}

int main(int count, char **words) {
  char artifact[4096];
  Options options;
  Stats stats = {0};
  mr_session *session = NULL;
  mr_schedule *schedule = NULL;
  mr_tokenizer *tokenizer = NULL;
  double start = now();
  if (count == 4 && !strcmp(words[1], "--serve")) return serve(words[2], atoi(words[3]));
  int code = read_options(count, words, &options);
  if (code >= 0) return code;
  if (model_facts.missing_tokenizer && !options.ids) {
    return report(WRONG_INPUT, "this artifact has no compiled tokenizer (%s); give token ids with "
                  "--ids", model_facts.missing_tokenizer);
  }
  struct sigaction action = {.sa_handler = interrupt};
  sigaction(SIGINT, &action, NULL);
  signal(SIGPIPE, SIG_IGN);
  if (!find_artifact(words[0], artifact, sizeof artifact)) {
    return report(WRONG_INPUT, "the artifact's path is too long");
  }
  int error = mr_open(artifact, options.threads, &session);
  if (!error && !options.ids) error = mr_tokenizer_open(artifact, &tokenizer);
  if (!error) error = mr_set_level(session, options.level < 0 ? 0 : options.level);
  const char *name = options.schedule ? options.schedule : "off";
  if (!error) error = mr_schedule_open(session, artifact, name, &schedule);
  if (error) {
    code = failed();
  } else {
    running = session;
    stats.load = now() - start;
    code = generate(session, schedule, tokenizer, &options, &stats);
  }
  running = NULL;
  mr_tokenizer_close(tokenizer);
  mr_schedule_close(schedule);
  mr_close(session);
  return code;
}
