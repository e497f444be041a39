/* Printing an answer: whole characters as soon as they are complete, and nothing of a stop text. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "run.h"

void output_start(Output *output, const Options *options, const mr_tokenizer *tokenizer) {
  *output = (Output){.options = options};
  if (tokenizer) text_start(&output->text, tokenizer);
}

/* Writes and forgets the first `bytes` bytes that are ready. */
static void print(Output *output, size_t bytes) {
  Buffer *ready = &output->ready;
  for (size_t at = 0; at < bytes && !output->failed;) {
    ssize_t wrote = write(STDOUT_FILENO, ready->data + at, bytes - at);
    if (wrote > 0) {
      at += (size_t)wrote;
    } else if (errno != EINTR) {
      output->failed = errno == EPIPE ? NO_READER : WRONG_INPUT;
      if (errno != EPIPE) report(0, "cannot write the output (%s)", strerror(errno));
    }
  }
  if (bytes) memmove(ready->data, ready->data + bytes, ready->size - bytes);
  ready->size -= bytes;
}

static int is_start(const char *text, size_t bytes, const char *stop) {
  size_t length = strlen(stop);
  return !memcmp(text, stop, bytes < length ? bytes : length);
}

/* Prints what cannot belong to a stop text any more. */
static void print_ready(Output *output, int at_end) {
  const Options *options = output->options;
  Buffer *ready = &output->ready;
  for (size_t at = 0; at < ready->size; at++) {
    for (int i = 0; i < options->stop_count; i++) {
      size_t left = ready->size - at;
      if (!is_start(ready->data + at, left, options->stops[i])) continue;
      if (left >= strlen(options->stops[i])) {
        print(output, at);
        output->stopped = 1;
        return;
      }
      if (at_end) continue;
      print(output, at);
      return;
    }
  }
  print(output, ready->size);
}

int output_token(Output *output, int32_t id) {
  if (output->options->ids) {
    char number[16];
    int size = snprintf(number, sizeof number, "%d ", (int)id);
    buffer_add(&output->ready, number, (size_t)size);
    print(output, output->ready.size);
    return MR_OK;
  }
  int error = text_push(&output->text, id, &output->ready);
  if (!error && output->ready.size) print_ready(output, 0);
  return error;
}

void output_finish(Output *output) {
  if (!output->options->ids && !output->stopped) {
    text_finish(&output->text, &output->ready);
    print_ready(output, 1);
  }
  output->ready.size = 0;
  buffer_add(&output->ready, "\n", 1);
  if (!output->failed) print(output, 1);
  buffer_free(&output->ready);
}
