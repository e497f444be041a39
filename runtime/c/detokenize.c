/* Token ids to text, token by token: what is given is never taken back, and all pieces together
 * are what the library decodes from all ids at once. */
#include <string.h>

#include "internal.h"
#include "tokenizer.h"

static const char REPLACEMENT[] = "\xEF\xBF\xBD";

void text_start(TextStream *stream, const mr_tokenizer *tokenizer) {
  memset(stream, 0, sizeof *stream);
  stream->tokenizer = tokenizer;
  stream->strip = fact(tokenizer, STRIP_START);
}

/* Appends text behind the blanks that decoding takes away in front. */
static void give(TextStream *stream, const char *text, size_t bytes, Buffer *out) {
  while (stream->strip && bytes && *text == ' ') {
    text++, bytes--, stream->strip--;
  }
  if (bytes) stream->strip = 0;
  buffer_add(out, text, bytes);
}

/* Byte-level texts are bytes of one stream: gives all whole characters, and one replacement
 * character for each thing that can be none; keeps the start of a character unless it is the end. */
static void give_bytes(TextStream *stream, int at_end, Buffer *out) {
  Buffer *held = &stream->held;
  size_t at = 0;
  for (;;) {
    int cut, bad;
    size_t valid = utf8_valid(held->data + at, held->size - at, &cut, &bad);
    give(stream, held->data + at, valid, out);
    at += valid;
    if (!bad || (cut && !at_end)) break;
    give(stream, REPLACEMENT, 3, out);
    at += (size_t)bad;
  }
  if (at) memmove(held->data, held->data + at, held->size - at);
  held->size -= at;
}

/* A run of byte tokens is text if all of it is valid, else a replacement character for each. */
static void give_run(TextStream *stream, Buffer *out) {
  Buffer *held = &stream->held;
  int cut, bad;
  if (!held->size) return;
  if (utf8_valid(held->data, held->size, &cut, &bad) == held->size) {
    give(stream, held->data, held->size, out);
  } else {
    for (size_t i = 0; i < held->size; i++) give(stream, REPLACEMENT, 3, out);
  }
  held->size = 0;
}

int text_push(TextStream *stream, int32_t id, Buffer *out) {
  const mr_tokenizer *tokenizer = stream->tokenizer;
  if (id < 0 || id >= fact(tokenizer, VOCABULARY)) return MR_OK; /* a model may have more ids */
  const uint32_t *starts = TABLE(tokenizer, TEXT_STARTS, uint32_t) + id;
  const char *text = TABLE(tokenizer, TEXTS, char) + starts[0];
  size_t bytes = starts[1] - starts[0];
  uint8_t kind = TABLE(tokenizer, KINDS, uint8_t)[id];
  if (kind == SPECIAL || kind == NO_TOKEN) return MR_OK;
  if (fact(tokenizer, BYTES_DECODE)) {
    buffer_add(&stream->held, text, bytes);
    if (stream->held.size) give_bytes(stream, 0, out);
  } else if (kind == BYTE) {
    buffer_add(&stream->held, text, bytes);
  } else {
    give_run(stream, out);
    give(stream, text, bytes, out);
  }
  return stream->held.failed || out->failed ? fail(MR_RUNTIME, "not enough memory for the text")
                                            : MR_OK;
}

void text_finish(TextStream *stream, Buffer *out) {
  if (fact(stream->tokenizer, BYTES_DECODE)) {
    if (stream->held.size) give_bytes(stream, 1, out);
  } else {
    give_run(stream, out);
  }
  buffer_free(&stream->held);
}

int mr_detokenize(const mr_tokenizer *tokenizer, const int32_t *ids, int count, char *text,
                  int64_t capacity, int64_t *bytes) {
  TextStream stream;
  Buffer out = {0};
  int error = MR_OK;
  text_start(&stream, tokenizer);
  for (int i = 0; i < count && !error; i++) error = text_push(&stream, ids[i], &out);
  text_finish(&stream, &out);
  return buffer_give(&out, error, text, capacity, bytes);
}
