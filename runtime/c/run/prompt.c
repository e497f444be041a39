/* The prompt: from the command line or standard input, in the model's chat form, as token ids. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run.h"

/* Standard input without the line ends behind it. */
static int read_input(Buffer *text) {
  char part[4096];
  if (isatty(STDIN_FILENO)) {
    report(0, "there is no prompt; give one: run \"Once upon a time\"");
    return 0;
  }
  for (;;) {
    ssize_t got = read(STDIN_FILENO, part, sizeof part);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    buffer_add(text, part, (size_t)got);
  }
  while (text->size && text->data[text->size - 1] == '\n') text->size--;
  return 1;
}

static int32_t *parse_ids(const char *text, size_t bytes, int *count) {
  int32_t *ids = malloc((bytes / 2 + 1) * sizeof *ids);
  *count = 0;
  for (size_t at = 0; ids && at < bytes;) {
    if (isspace((unsigned char)text[at]) || text[at] == ',') {
      at++;
      continue;
    }
    int64_t id = 0;
    size_t start = at;
    while (at < bytes && isdigit((unsigned char)text[at]) && id < INT32_MAX) {
      id = 10 * id + text[at++] - '0';
    }
    if (at == start || id >= INT32_MAX) {
      report(0, "the prompt holds what is no token id, at byte %zu; with --ids it is numbers such "
             "as \"1 5 9\"", start);
      free(ids);
      return NULL;
    }
    ids[(*count)++] = (int32_t)id;
  }
  return ids;
}

/* The conversation in the model's chat form; 0 after a report. */
static int add_chat(const Options *options, const Buffer *said, Buffer *out) {
  if (!mr_has_chat()) {
    report(0, "%s; continue the text as it is with --raw", model_facts.missing_chat);
  } else if (options->system && !model_facts.system[0]) {
    report(0, "this model's chats have no system message; leave --system out");
  } else if (chat_text(options->system, said->data, said->size, out)) {
    report(0, "%s", mr_error());
  } else {
    return 1;
  }
  return 0;
}

static int32_t *tokenize(const mr_tokenizer *tokenizer, const Buffer *text, int32_t bos,
                         int *count) {
  int first = bos >= 0;
  if (mr_tokenize(tokenizer, text->data, (int64_t)text->size, NULL, 0, count)) {
    report(0, "%s", mr_error());
    return NULL;
  }
  int32_t *ids = malloc(((size_t)*count + 1) * sizeof *ids);
  if (!ids) return NULL;
  if (first) ids[0] = bos;
  mr_tokenize(tokenizer, text->data, (int64_t)text->size, ids + first, *count, count);
  *count += first;
  return ids;
}

int32_t *read_prompt(const Options *options, const mr_tokenizer *tokenizer, int *count) {
  Buffer said = {0}, text = {0};
  int32_t *ids = NULL;
  if (options->prompt && strcmp(options->prompt, "-")) {
    buffer_add(&said, options->prompt, strlen(options->prompt));
  } else if (!read_input(&said)) {
    return NULL;
  }
  if (options->ids) {
    ids = parse_ids(said.data, said.size, count);
  } else if (options->raw || (!options->system && has_no_chats())) {
    ids = tokenize(tokenizer, &said, mr_begin_id(), count);
  } else if (add_chat(options, &said, &text)) {
    ids = tokenize(tokenizer, &text, -1, count);
  }
  if (ids && !*count) {
    report(0, "the prompt is empty");
    free(ids);
    ids = NULL;
  }
  buffer_free(&said);
  buffer_free(&text);
  return ids;
}
