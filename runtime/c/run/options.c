/* The command line of `run`; its options are those of `morendo run`. */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

static const char HELP[] =
    "usage: run [options] [PROMPT]\n"
    "\n"
    "Answers as a chat model does where the model is one, else continues the text. The prompt is\n"
    "standard input if it is left out or -. Text goes to standard output as it is made, everything\n"
    "else to standard error.\n"
    "\n"
    "  --raw                 continue the text, without the model's chat template\n"
    "  --system TEXT         system message of the chat\n"
    "  --ids                 the prompt is token ids (\"1 5 9\"), and ids are printed\n"
    "  --max-tokens N        stop after N tokens (default: 256)\n"
    "  --stop TEXT           stop before this text; may be given up to 16 times\n"
    "  --ignore-eos          go on after the model's end of text\n"
    "  --temperature T       0 takes the likeliest token (default: the model's)\n"
    "  --top-k K, --top-p P, --min-p P, --repetition-penalty R\n"
    "                        bounds of the sampling (default: the model's)\n"
    "  --seed N              of the sampling (default: 0)\n"
    "  --threads N           default: one for each CPU\n"
    "  --level L             precision level, 0 is the most precise\n"
    "  --stats               print speed at the end\n"
    "\n"
    "exit codes: 0 done, 1 wrong input, 2 wrong command line, 130 interrupted\n";

int report(int code, const char *format, ...) {
  va_list args;
  fputs("error: ", stderr);
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  return code;
}

typedef struct {
  const char *name;
  enum { FLAG, INTEGER, REAL, TEXT, STOP, SEED } kind;
  void *place;
  double low, high;
} Rule;

static int wrong_value(const Rule *rule, const char *value) {
  if (rule->kind == SEED) return report(WRONG_USAGE, "--seed needs a number of 0 or more (got %s)", value);
  return report(WRONG_USAGE, "%s needs a number from %g to %g (got %s)", rule->name, rule->low,
                rule->high, value);
}

static int read_value(const Rule *rule, const char *value, Options *options) {
  char *end = NULL;
  errno = 0;
  if (rule->kind == TEXT) {
    *(const char **)rule->place = value;
    return -1;
  }
  if (rule->kind == STOP) {
    if (!*value) return report(WRONG_USAGE, "--stop needs a text");
    if (options->stop_count == MOST_STOPS) {
      return report(WRONG_USAGE, "too many stop texts (need at most %d)", MOST_STOPS);
    }
    options->stops[options->stop_count++] = value;
    return -1;
  }
  if (rule->kind == SEED) {
    options->seed = strtoull(value, &end, 10);
    return errno || end == value || *end || *value == '-' ? wrong_value(rule, value) : -1;
  }
  double number = strtod(value, &end);
  if (errno || end == value || *end || !(number >= rule->low && number <= rule->high)) {
    return wrong_value(rule, value);
  }
  if (rule->kind == REAL) {
    *(float *)rule->place = (float)number;
    return -1;
  }
  if (number != floor(number)) return wrong_value(rule, value);
  *(int *)rule->place = (int)number;
  return -1;
}

/* The option that `word` names, which may go on with =VALUE. */
static const Rule *find_rule(const Rule *rules, const char *word) {
  size_t length = strcspn(word, "=");
  for (; rules->name; rules++) {
    if (strlen(rules->name) == length && !strncmp(rules->name, word, length)) return rules;
  }
  return NULL;
}

static int read_words(int count, char **words, const Rule *rules, Options *options) {
  int only_text = 0;
  for (int i = 1; i < count; i++) {
    const char *word = words[i];
    if (!only_text && !strcmp(word, "--")) {
      only_text = 1;
    } else if (!only_text && word[0] == '-' && word[1]) {
      const Rule *rule = find_rule(rules, word);
      const char *value = strchr(word, '=');
      if (!rule) return report(WRONG_USAGE, "unknown option %s; see --help", word);
      if (rule->kind == FLAG) {
        if (value) return report(WRONG_USAGE, "%s takes no value", rule->name);
        *(int *)rule->place = 1;
        continue;
      }
      if (!value && i + 1 == count) return report(WRONG_USAGE, "%s needs a value", rule->name);
      int code = read_value(rule, value ? value + 1 : words[++i], options);
      if (code >= 0) return code;
    } else if (options->prompt) {
      return report(WRONG_USAGE, "more than one prompt (%s); put it into quotes", word);
    } else {
      options->prompt = word;
    }
  }
  return -1;
}

int read_options(int count, char **words, Options *options) {
  int help = 0, chat = 0;
  Sampling *sampling = &options->sampling;
  *options = (Options){.max_tokens = 256, .sampling = run_model.sampling};
  const Rule rules[] = {
      {"--help", FLAG, &help, 0, 0},
      {"-h", FLAG, &help, 0, 0},
      {"--raw", FLAG, &options->raw, 0, 0},
      {"--chat", FLAG, &chat, 0, 0},
      {"--ids", FLAG, &options->ids, 0, 0},
      {"--stats", FLAG, &options->stats, 0, 0},
      {"--ignore-eos", FLAG, &options->ignore_eos, 0, 0},
      {"--system", TEXT, &options->system, 0, 0},
      {"--stop", STOP, NULL, 0, 0},
      {"--seed", SEED, NULL, 0, 0},
      {"--max-tokens", INTEGER, &options->max_tokens, 0, 1 << 30},
      {"--threads", INTEGER, &options->threads, 0, 256},
      {"--level", INTEGER, &options->level, 0, 255},
      {"--temperature", REAL, &sampling->temperature, 0, 1e4},
      {"--top-p", REAL, &sampling->top_p, 1e-6, 1},
      {"--min-p", REAL, &sampling->min_p, 0, 1},
      {"--repetition-penalty", REAL, &sampling->repetition_penalty, 1e-3, 1e3},
      {"--top-k", INTEGER, &sampling->top_k, 0, 1 << 30},
      {0},
  };
  int code = read_words(count, words, rules, options);
  if (code >= 0) return code;
  if (help) {
    fputs(HELP, stdout);
    return DONE;
  }
  if (options->system && (options->raw || options->ids)) {
    return report(WRONG_USAGE, "--system needs the chat template: leave --raw and --ids out");
  }
  if (chat && options->raw) return report(WRONG_USAGE, "give --chat or --raw, not both");
  return -1;
}
