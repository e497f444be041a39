/* What a model says about its texts: their beginning and end, how tokens are drawn, chats. */
#include "model.h"

#include <string.h>

#include "internal.h"

int32_t mr_begin_id(void) { return model_facts.bos; }

int mr_is_end(int32_t id) {
  for (int i = 0; i < model_facts.stop_count; i++) {
    if (model_facts.stops[i] == id) return 1;
  }
  return 0;
}

void mr_default_sampling(mr_sampling *sampling) { *sampling = model_facts.sampling; }

int mr_has_chat(void) { return !model_facts.missing_chat; }

/* What templates' trim takes away: the white space of Unicode and four separators of ASCII. */
static const char *const BLANKS[] = {
    " ", "\t", "\n", "\v", "\f", "\r", "\x1C", "\x1D", "\x1E", "\x1F", "\xC2\x85", "\u00A0",
    "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006", "\u2007",
    "\u2008", "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000",
};

/* Bytes of the blank that a text begins or ends with; 0 where it does not. */
static size_t blank_bytes(const char *text, size_t bytes, int at_end) {
  for (size_t i = 0; i < sizeof BLANKS / sizeof *BLANKS; i++) {
    size_t size = strlen(BLANKS[i]);
    if (size <= bytes && !memcmp(at_end ? text + bytes - size : text, BLANKS[i], size)) return size;
  }
  return 0;
}

static void add_message(Buffer *out, const char *text, size_t bytes) {
  size_t blank;
  while (model_facts.trims && (blank = blank_bytes(text, bytes, 0))) text += blank, bytes -= blank;
  while (model_facts.trims && (blank = blank_bytes(text, bytes, 1))) bytes -= blank;
  buffer_add(out, text, bytes);
}

static void add_text(Buffer *out, const char *text) { buffer_add(out, text, strlen(text)); }

int chat_text(const char *system, const char *said, size_t bytes, Buffer *out) {
  const char *missing = model_facts.missing_chat;
  if (missing) return fail(MR_INPUT, "%s", *missing ? missing : "this model has no chats");
  if (system && !model_facts.system[0]) {
    return fail(MR_INPUT, "this model's chats have no system message; give none");
  }
  add_text(out, system ? model_facts.system[0] : model_facts.user[0]);
  if (system) {
    add_message(out, system, strlen(system));
    add_text(out, model_facts.system[1]);
  }
  add_message(out, said, bytes);
  add_text(out, system ? model_facts.system[2] : model_facts.user[1]);
  return out->failed ? fail(MR_RUNTIME, "not enough memory for the text") : MR_OK;
}

int mr_chat(const char *system, const char *said, int64_t said_bytes, char *text, int64_t capacity,
            int64_t *bytes) {
  Buffer out = {0};
  int error = chat_text(system, said, (size_t)said_bytes, &out);
  return buffer_give(&out, error, text, capacity, bytes);
}
