/* Reads a plan.json, then thousands of damaged ones: none may crash, each failure has a line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static int never(void *self, const Any *args, int32_t count, Any *result) {
  (void)self, (void)args, (void)count, (void)result;
  return -1;
}

const KernelEntry kernel_table[] = {
    {"embed", never}, {"append", never}, {"mix", never}, {"head", never}};
const int kernel_count = 4;

static int read_copy(const char *text, size_t length) {
  char *copy = malloc(length ? length : 1); /* exactly as long: reading past its end is seen */
  memcpy(copy, text, length);
  Plan plan = {0};
  int error = plan_read(&plan, copy, length);
  if (error && (!*mr_error() || strchr(mr_error(), '\n'))) abort();
  plan_free(&plan);
  return error;
}

int main(int count, char **args) {
  static char text[1 << 16], damaged[1 << 16];
  static const char letters[] = "{}[]\",:-+.0129e \\ntf\n";
  FILE *file = count > 1 ? fopen(args[1], "rb") : NULL;
  if (!file) return 2;
  size_t length = fread(text, 1, sizeof text, file);
  fclose(file);
  if (read_copy(text, length)) return printf("%s\n", mr_error()), 1;
  for (size_t end = 0; end < length; end++) {
    if (!read_copy(text, end)) return printf("accepted the first %zu bytes\n", end), 1;
  }
  srand(1);
  int refused = 0;
  for (int round = 0; round < 20000; round++) {
    memcpy(damaged, text, length);
    for (int changes = rand() % 3; changes >= 0; changes--) {
      damaged[(size_t)rand() % length] = letters[(size_t)rand() % (sizeof letters - 1)];
    }
    refused += read_copy(damaged, length) != 0;
  }
  printf("ok, %d refused\n", refused);
  return 0;
}
