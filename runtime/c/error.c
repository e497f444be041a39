/* This thread's last error, as one line. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

static _Thread_local char message[1024];

const char *mr_error(void) { return message; }

int fail(int code, const char *format, ...) {
  char text[sizeof message]; /* the arguments may point into `message` */
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  for (char *c = text; *c; c++) {
    if (*c == '\n' || *c == '\r') *c = ' ';
  }
  memcpy(message, text, sizeof text);
  return code;
}
