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
    "  --threads N           0, the default, is one for each CPU\n"
    "  --level L             precision level of all, 0 is the most precise\n"
    "  --schedule NAME       static, entropy, learned, fixed:L or off: the level of each token\n"
    "                        behind the prompt (default: off)\n"
    "  --stats               print speed, levels and what was read at the end\n"
    "  --version             print morendo's version and the model's name\n"
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
  const char *need; /* low and high in words, those of `morendo run` */
} Rule;

/* Larger counts mean the same as MOST_COUNT, which an int holds. */
static const double MOST_COUNT = 1 << 30, MOST_INTEGER = 1e18;
static const double LEAST_REAL = 1e-37, MOST_REAL = 3e38; /* of a float, about */
static const char COUNT[] = "a whole number, 0 or more", THREADS[] = "a whole number, 0 to 256",
                  FINITE[] = "a finite number of 0 or more",
                  POSITIVE[] = "a finite number above 0", PART[] = "0 to 1",
                  SOME_PART[] = "above 0 and at most 1";

static int wrong_value(const Rule *rule, const char *value) {
  return report(WRONG_USAGE, "argument %s: must be %s (got %s); see --help", rule->name, rule->need,
                value);
}

static int read_value(const Rule *rule, const char *value, Options *options) {
  char *end = NULL;
  errno = 0;
  if (rule->kind == TEXT) {
    *(const char **)rule->place = value;
    return -1;
  }
  if (rule->kind == STOP) {
    if (!*value) return report(WRONG_USAGE, "argument --stop: must not be empty; see --help");
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
  *(int *)rule->place = (int)(number < MOST_COUNT ? number : MOST_COUNT);
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
      if (!rule) return report(WRONG_USAGE, "unrecognized arguments: %s; see --help", word);
      if (rule->kind == FLAG) {
        if (value) return report(WRONG_USAGE, "%s takes no value", rule->name);
        *(int *)rule->place = 1;
        continue;
      }
      if (!value && i + 1 == count) {
        return report(WRONG_USAGE, "argument %s: expected one argument; see --help", rule->name);
      }
      int code = read_value(rule, value ? value + 1 : words[++i], options);
      if (code >= 0) return code;
    } else if (options->prompt) {
      return report(WRONG_USAGE, "unrecognized arguments: %s; put the prompt into quotes", word);
    } else {
      options->prompt = word;
    }
  }
  return -1;
}

/* What the options ask for together; -1, or the exit code after a report. */
static int check_chat(const Options *options, int chat) {
  if (options->system && (options->raw || options->ids)) {
    return report(WRONG_USAGE, "--system needs the chat template: leave --raw and --ids out");
  }
  if (chat && options->raw) {
    return report(WRONG_USAGE, "argument --chat: not allowed with argument --raw; see --help");
  }
  if ((chat || options->system) && has_no_chats()) {
    return report(WRONG_INPUT, "this model has no chat template; leave %s%s%s out",
                  options->system ? "--system" : "", options->system && chat ? " and " : "",
                  chat ? "--chat" : "");
  }
  return -1;
}

int read_options(int count, char **words, Options *options) {
  int help = 0, chat = 0, version = 0;
  mr_sampling *sampling = &options->sampling;
  *options = (Options){.max_tokens = 256, .sampling = model_facts.sampling, .level = -1};
  const Rule rules[] = {
      {"--help", FLAG, &help, 0, 0, NULL},
      {"-h", FLAG, &help, 0, 0, NULL},
      {"--version", FLAG, &version, 0, 0, NULL},
      {"--raw", FLAG, &options->raw, 0, 0, NULL},
      {"--chat", FLAG, &chat, 0, 0, NULL},
      {"--ids", FLAG, &options->ids, 0, 0, NULL},
      {"--stats", FLAG, &options->stats, 0, 0, NULL},
      {"--ignore-eos", FLAG, &options->ignore_eos, 0, 0, NULL},
      {"--system", TEXT, &options->system, 0, 0, NULL},
      {"--schedule", TEXT, &options->schedule, 0, 0, NULL},
      {"--stop", STOP, NULL, 0, 0, NULL},
      {"--seed", SEED, NULL, 0, 0, COUNT},
      {"--max-tokens", INTEGER, &options->max_tokens, 0, MOST_INTEGER, COUNT},
      {"--threads", INTEGER, &options->threads, 0, 256, THREADS},
      {"--level", INTEGER, &options->level, 0, MOST_INTEGER, COUNT},
      {"--temperature", REAL, &sampling->temperature, 0, MOST_REAL, FINITE},
      {"--top-p", REAL, &sampling->top_p, LEAST_REAL, 1, SOME_PART},
      {"--min-p", REAL, &sampling->min_p, 0, 1, PART},
      {"--repetition-penalty", REAL, &sampling->repetition_penalty, LEAST_REAL, MOST_REAL,
       POSITIVE},
      {"--top-k", INTEGER, &sampling->top_k, 0, MOST_INTEGER, COUNT},
      {0},
  };
  int code = read_words(count, words, rules, options);
  if (code >= 0) return code;
  if (help) {
    fputs(HELP, stdout);
    return DONE;
  }
  if (version) {
    printf("morendo %s, %s\n", model_facts.version, model_facts.name);
    return DONE;
  }
  if (options->level >= 0 && options->schedule) {
    return report(WRONG_USAGE, "argument --schedule: not allowed with argument --level; see --help");
  }
  return check_chat(options, chat);
}
