/* A C program that continues a text with a compiled model.
 *
 *   cc generate.c -I MORENDO/runtime/c DIR/model.so -Wl,-rpath,DIR -o generate
 *   ./generate DIR "Once upon a time" 32
 *
 * DIR is an artifact of `morendo compile`; morendo.h describes every function. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "morendo.h"

static int give_up(void) {
  fprintf(stderr, "error: %s\n", mr_error());
  return 1;
}

static int likeliest(const float *logits, int vocabulary) {
  int best = 0;
  for (int id = 1; id < vocabulary; id++) {
    if (logits[id] > logits[best]) best = id;
  }
  return best;
}

/* Prints the text of `ids`, all at once: a character may be spelled by several tokens. */
static int print_text(const mr_tokenizer *tokenizer, const int32_t *ids, int count) {
  int64_t bytes;
  if (mr_detokenize(tokenizer, ids, count, NULL, 0, &bytes)) return give_up();
  char *text = malloc((size_t)bytes + 1);
  if (!text || mr_detokenize(tokenizer, ids, count, text, bytes, &bytes)) return give_up();
  text[bytes] = 0;
  puts(text);
  free(text);
  return 0;
}

int main(int count, char **words) {
  if (count != 4) {
    fprintf(stderr, "usage: %s DIR PROMPT TOKENS\n", words[0]);
    return 2;
  }
  mr_session *session;
  mr_tokenizer *tokenizer;
  if (mr_open(words[1], 0, &session)) return give_up();
  if (mr_tokenizer_open(words[1], &tokenizer)) return give_up();

  int wanted = atoi(words[3]), length;
  int64_t bytes = (int64_t)strlen(words[2]);
  if (mr_tokenize(tokenizer, words[2], bytes, NULL, 0, &length)) return give_up();
  int32_t *ids = malloc(sizeof *ids * (size_t)(length + wanted));
  float *logits = malloc(sizeof *logits * (size_t)mr_vocabulary(session));
  if (!ids || !logits) return 1;
  if (mr_tokenize(tokenizer, words[2], bytes, ids, length, &length)) return give_up();

  if (mr_prefill(session, ids, length, logits)) return give_up();
  for (int i = 0; i < wanted; i++) {
    ids[length + i] = likeliest(logits, mr_vocabulary(session));
    if (i + 1 < wanted && mr_decode(session, ids[length + i], logits)) return give_up();
  }
  int error = print_text(tokenizer, ids, length + wanted);
  free(ids);
  free(logits);
  mr_tokenizer_close(tokenizer);
  mr_close(session);
  return error;
}
