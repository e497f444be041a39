/* UTF-8, and bytes that grow. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "tokenizer.h"

void buffer_add(Buffer *buffer, const void *data, size_t bytes) {
  if (buffer->failed || !bytes) return;
  if (buffer->capacity - buffer->size < bytes) {
    size_t capacity = 2 * buffer->capacity + bytes + 64;
    char *grown = realloc(buffer->data, capacity);
    if (!grown) {
      buffer->failed = 1;
      return;
    }
    buffer->data = grown;
    buffer->capacity = capacity;
  }
  memcpy(buffer->data + buffer->size, data, bytes);
  buffer->size += bytes;
}

void buffer_free(Buffer *buffer) {
  free(buffer->data);
  memset(buffer, 0, sizeof *buffer);
}

int buffer_give(Buffer *buffer, int error, char *text, int64_t capacity, int64_t *bytes) {
  if (!error && buffer->failed) error = fail(MR_RUNTIME, "not enough memory for the text");
  int64_t size = error ? 0 : (int64_t)buffer->size;
  int64_t given = size < capacity ? size : capacity;
  if (given > 0) memcpy(text, buffer->data, (size_t)given);
  *bytes = size;
  buffer_free(buffer);
  return error;
}

uint32_t utf8_read(const char *text, int *bytes) {
  const uint8_t *t = (const uint8_t *)text;
  if (t[0] < 0x80) return *bytes = 1, t[0];
  if (t[0] < 0xE0) return *bytes = 2, (t[0] & 0x1Fu) << 6 | (t[1] & 0x3Fu);
  if (t[0] < 0xF0) return *bytes = 3, (t[0] & 0xFu) << 12 | (t[1] & 0x3Fu) << 6 | (t[2] & 0x3Fu);
  *bytes = 4;
  return (t[0] & 7u) << 18 | (t[1] & 0x3Fu) << 12 | (t[2] & 0x3Fu) << 6 | (t[3] & 0x3Fu);
}

int utf8_write(uint32_t point, char *out) {
  if (point < 0x80) return out[0] = (char)point, 1;
  if (point < 0x800) {
    out[0] = (char)(0xC0 | point >> 6);
    out[1] = (char)(0x80 | (point & 0x3F));
    return 2;
  }
  if (point < 0x10000) {
    out[0] = (char)(0xE0 | point >> 12);
    out[1] = (char)(0x80 | (point >> 6 & 0x3F));
    out[2] = (char)(0x80 | (point & 0x3F));
    return 3;
  }
  out[0] = (char)(0xF0 | point >> 18);
  out[1] = (char)(0x80 | (point >> 12 & 0x3F));
  out[2] = (char)(0x80 | (point >> 6 & 0x3F));
  out[3] = (char)(0x80 | (point & 0x3F));
  return 4;
}

/* Bytes of a character that starts with `lead`, and the bounds of its second byte (Unicode
 * Standard, table 3-7); 0 for what starts none. */
static int expected(uint8_t lead, uint8_t *low, uint8_t *high) {
  *low = 0x80, *high = 0xBF;
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  if (lead == 0xE0) *low = 0xA0;
  if (lead == 0xED) *high = 0x9F;
  if (lead == 0xF0) *low = 0x90;
  if (lead == 0xF4) *high = 0x8F;
  return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

size_t utf8_valid(const char *text, size_t bytes, int *cut, int *bad) {
  const uint8_t *t = (const uint8_t *)text;
  size_t at = 0;
  *cut = *bad = 0;
  while (at < bytes) {
    uint8_t low, high;
    int need = expected(t[at], &low, &high), got = 1;
    while (got < need && at + got < bytes && t[at + got] >= low && t[at + got] <= high) {
      low = 0x80, high = 0xBF;
      got++;
    }
    if (got < need || !need) {
      if (need && at + got == bytes) *cut = got;
      *bad = got;
      return at;
    }
    at += (size_t)need;
  }
  return at;
}
