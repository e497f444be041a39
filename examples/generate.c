/* A C program that continues a text with a compiled model until the model ends it.
 *
 *   cc generate.c -I MORENDO/runtime/c DIR/model.so -Wl,-rpath,DIR -o generate
 *   ./generate DIR "Once upon a time" 32             the likeliest text
 *   ./generate DIR "Once upon a time" 32 0.8 7       one that is drawn: temperature, seed
 *
 * DIR is an artifact of `morendo compile`; morendo.h describes every function. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "morendo.h"

typedef struct {
  mr_session *session;
  mr_tokenizer *tokenizer;
  mr_sampler *sampler;
  float *logits;
  int32_t *ids; /* the prompt's, and behind them those that are drawn */
  int prompt, wanted, made; /* numbers of tokens */
} Text;

static int open_all(Text *text, const char *dir, const mr_sampling *sampling, uint64_t seed) {
  int error = mr_open(dir, 0, &text->session); /* 0: all CPUs */
  if (!error) error = mr_tokenizer_open(dir, &text->tokenizer);
  if (error) return error;
  int vocabulary = mr_vocabulary(text->session);
  text->logits = malloc(sizeof *text->logits * (size_t)vocabulary);
  return mr_sampler_open(vocabulary, sampling, seed, &text->sampler);
}

/* Token ids of the prompt: a first call counts them, a second writes them. */
static int read_prompt(Text *text, const char *prompt) {
  int64_t bytes = (int64_t)strlen(prompt);
  int count, first = mr_begin_id() >= 0; /* some models want an id in front of a text */
  int error = mr_tokenize(text->tokenizer, prompt, bytes, NULL, 0, &count);
  if (error) return error;
  text->prompt = first + count;
  text->ids = malloc(sizeof *text->ids * (size_t)(text->prompt + text->wanted + 1));
  if (first) text->ids[0] = mr_begin_id();
  return mr_tokenize(text->tokenizer, prompt, bytes, text->ids + first, count, &count);
}

static int generate(Text *text) {
  int error = mr_sampler_see(text->sampler, text->ids, text->prompt);
  if (!error) error = mr_prefill(text->session, text->ids, text->prompt, text->logits);
  while (!error && text->made < text->wanted) {
    int32_t *next = &text->ids[text->prompt + text->made];
    error = mr_sample(text->sampler, text->logits, next);
    if (error || mr_is_end(*next)) break;
    if (++text->made < text->wanted) error = mr_decode(text->session, *next, text->logits);
  }
  return error;
}

/* Prints everything at once: a character may be spelled by several tokens. */
static int print_text(const Text *text) {
  int64_t bytes;
  int count = text->prompt + text->made;
  int error = mr_detokenize(text->tokenizer, text->ids, count, NULL, 0, &bytes);
  if (error) return error;
  char *out = malloc((size_t)bytes + 1);
  error = mr_detokenize(text->tokenizer, text->ids, count, out, bytes, &bytes);
  if (!error) printf("%.*s\n", (int)bytes, out);
  free(out);
  return error;
}

int main(int count, char **words) {
  if (count < 4 || count > 6) {
    fprintf(stderr, "usage: %s DIR PROMPT TOKENS [TEMPERATURE [SEED]]\n", words[0]);
    return 2;
  }
  mr_sampling sampling = MR_GREEDY;
  if (count > 4) sampling.temperature = strtof(words[4], NULL);
  uint64_t seed = count > 5 ? strtoull(words[5], NULL, 10) : 0;
  char *end;
  long wanted = strtol(words[3], &end, 10);
  if (*end || wanted < 1 || wanted > 1000000) {
    fprintf(stderr, "TOKENS must be a number from 1 to 1000000 (got %s)\n", words[3]);
    return 2;
  }
  Text text = {.wanted = (int)wanted};

  int error = open_all(&text, words[1], &sampling, seed);
  if (!error) error = read_prompt(&text, words[2]);
  if (!error) error = generate(&text);
  if (!error) error = print_text(&text);
  if (error) fprintf(stderr, "error: %s\n", mr_error());

  free(text.ids);
  free(text.logits);
  mr_sampler_close(text.sampler);
  mr_tokenizer_close(text.tokenizer);
  mr_close(text.session);
  return error;
}
