/* run --serve DIR THREADS: the model of this executable, driven by another program.
 *
 * Requests come on standard input, replies go to standard output, both in this machine's byte
 * order. A request is two int32, an operation and a number n, then what the operation needs:
 *
 *   'p', n, n ids   prefill     float[vocabulary]
 *   'd', id         decode      float[vocabulary]
 *   's', n, n ids   score       float[n][vocabulary]
 *   'P', n          position    nothing
 *   'L', n          level       nothing
 *   'C', n, window  means of cache tensor n, double[]
 *   'G'             text        bytes, as mr_text gives them
 *   'R', n, n bytes set text    nothing
 *   'T', n          trace       nothing; n is 1 or 0
 *
 * The signal SIGUSR1 cancels the request that runs.
 *
 * A reply is two int32, a code of morendo.h and the number of bytes that follow: the result, or
 * after a failure its text. The first reply comes without a request:
 * vocabulary, context and levels. While there is a trace, further ones with the code TRACED come
 * before that of a call: two int32, a step and the number of an argument, and what it holds. */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

static int reply(int code, const void *data, size_t bytes) {
  int32_t head[2] = {code, (int32_t)bytes};
  if (fwrite(head, sizeof head, 1, stdout) != 1) return 0;
  if (bytes && fwrite(data, bytes, 1, stdout) != 1) return 0;
  return !fflush(stdout);
}

enum { TRACED = -1 };

static void show(void *data, int step, int argument, const void *bytes, int64_t count) {
  int32_t head[4] = {TRACED, (int32_t)(count + 8), step, argument};
  (void)data; /* where the reader has gone, the reply fails too */
  if (fwrite(head, sizeof head, 1, stdout) == 1) fwrite(bytes, 1, (size_t)count, stdout);
}

static int reply_error(int code) { return reply(code, mr_error(), strlen(mr_error())); }

/* Reads the ids of a request and runs it; 0 when the other side has gone. */
static int run_ids(mr_session *session, char operation, int count) {
  int all = operation == 's';
  size_t floats = (size_t)mr_vocabulary(session) * (all && count > 0 ? (size_t)count : 1);
  int32_t *ids = malloc(sizeof *ids * (count > 0 ? (size_t)count : 1));
  float *logits = malloc(sizeof *logits * floats);
  int going = ids && logits;
  if (going && count > 0) going = fread(ids, sizeof *ids, (size_t)count, stdin) == (size_t)count;
  if (going) {
    int code = all ? mr_score(session, ids, count, logits) : mr_prefill(session, ids, count, logits);
    going = code ? reply_error(code) : reply(MR_OK, logits, sizeof *logits * floats);
  }
  free(ids);
  free(logits);
  return going;
}

static int decode(mr_session *session, int32_t id, float *logits) {
  int code = mr_decode(session, id, logits);
  size_t bytes = sizeof *logits * (size_t)mr_vocabulary(session);
  return code ? reply_error(code) : reply(MR_OK, logits, bytes);
}

static int cache_means(mr_session *session, int tensor) {
  int32_t window;
  int count = 0;
  if (fread(&window, sizeof window, 1, stdin) != 1) return 0;
  int code = mr_cache_means(session, tensor, window, NULL, 0, &count);
  if (code) return reply_error(code);
  double *means = malloc(sizeof *means * (size_t)count);
  int going = means && !mr_cache_means(session, tensor, window, means, count, &count) &&
              reply(MR_OK, means, sizeof *means * (size_t)count);
  free(means);
  return going;
}

static int give_text(mr_session *session) {
  int64_t bytes = 0;
  int code = mr_text(session, NULL, 0, &bytes);
  if (code) return reply_error(code);
  char *text = malloc((size_t)bytes);
  if (!text) return 0;
  code = mr_text(session, text, bytes, &bytes);
  int going = code ? reply_error(code) : reply(MR_OK, text, (size_t)bytes);
  free(text);
  return going;
}

static int take_text(mr_session *session, int bytes) {
  char *text = malloc(bytes > 0 ? (size_t)bytes : 1);
  int going = text && bytes >= 0 && fread(text, 1, (size_t)bytes, stdin) == (size_t)bytes;
  if (going) {
    int code = mr_set_text(session, text, bytes);
    going = code ? reply_error(code) : reply(MR_OK, NULL, 0);
  }
  free(text);
  return going;
}

static int answer(mr_session *session, int32_t operation, int32_t number, float *logits) {
  int code = MR_OK;
  switch (operation) {
    case 'p':
    case 's':
      return run_ids(session, (char)operation, number);
    case 'd':
      return decode(session, number, logits);
    case 'C':
      return cache_means(session, number);
    case 'G':
      return give_text(session);
    case 'R':
      return take_text(session, number);
    case 'P':
      code = mr_set_position(session, number);
      break;
    case 'L':
      code = mr_set_level(session, number);
      break;
    case 'T':
      code = mr_set_trace(session, number ? show : NULL, NULL);
      break;
    default:
      return 0;
  }
  return code ? reply_error(code) : reply(MR_OK, NULL, 0);
}

static mr_session *served;

static void cancel(int number) {
  (void)number;
  if (served) mr_cancel(served);
}

int serve(const char *directory, int threads) {
  mr_session *session;
  struct sigaction action = {.sa_handler = cancel, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, NULL);
  int code = mr_open(directory, threads, &session);
  if (code) {
    reply_error(code);
    return 1;
  }
  served = session;
  int32_t sizes[3] = {mr_vocabulary(session), mr_context(session), mr_levels(session)};
  float *logits = malloc(sizeof *logits * (size_t)sizes[0]);
  int going = logits && reply(MR_OK, sizes, sizeof sizes);
  int32_t request[2];
  while (going && fread(request, sizeof request, 1, stdin) == 1) {
    going = answer(session, request[0], request[1], logits);
  }
  free(logits);
  served = NULL;
  mr_close(session);
  return 0;
}
