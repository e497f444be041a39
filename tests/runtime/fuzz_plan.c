/* Reads a plan.json, then thousands of damaged ones: none may crash, each failure has a line, and
 * what is accepted lies inside its spaces. The second argument is a plan that must be refused, and
 * why is printed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "model.h"

static int never(void *self, const Any *args, int32_t count, Any *result) {
  (void)self, (void)args, (void)count, (void)result;
  return -1;
}

const KernelEntry kernel_table[] = {
    {"embed", never}, {"append", never}, {"mix", never}, {"head", never}};
const int kernel_count = 4;
const char plan_text[] = "";
const char *const needed_cpu_flags[] = {0};
const Model model_facts = {0};
int cpu_has(const char *flag) { return !!flag; }

enum { MAX_BYTES = 1 << 16 };

/* In 128 bits, where nothing overflows: the tensor ends inside its space. */
static int lies_inside(const Plan *plan, const Tensor *tensor) {
  unsigned __int128 bytes = tensor->dl.dtype.bits / 8;
  int counts[MAX_STAGES];
  stage_counts(plan, PREFILL, (int)plan->chunk, counts);
  for (int i = 0; i < tensor->dl.ndim; i++) {
    int64_t dim = tensor->token_dims >> i & 1 ? counts[tensor->stage] : tensor->shape[i];
    if (dim < 0 || tensor->strides[i] < 0) return 0;
    bytes *= (unsigned __int128)dim;
    if (!dim) return 1;
    if (bytes >> 100) return 0;
  }
  return tensor->offset + bytes <= (unsigned __int128)plan->bytes[tensor->space];
}

static int read_copy(const char *text, size_t length) {
  char *copy = malloc(length ? length : 1); /* exactly as long: reading past its end is seen */
  memcpy(copy, text, length);
  Plan plan = {0};
  int error = plan_read(&plan, copy, length);
  if (error && (!*mr_error() || strchr(mr_error(), '\n'))) abort();
  for (int i = 0; !error && i < plan.tensor_count; i++) {
    if (!lies_inside(&plan, &plan.tensors[i])) {
      printf("tensor %d outside: %.*s\n", i, (int)length, text);
      exit(1);
    }
  }
  plan_free(&plan);
  free(copy);
  return error;
}

static size_t read_file(const char *path, char *text) {
  FILE *file = fopen(path, "rb");
  if (!file) exit(2);
  size_t length = fread(text, 1, MAX_BYTES, file);
  fclose(file);
  return length;
}

/* Puts another number in the place of a random one; gives the new length. */
static size_t change_number(char *text, size_t length) {
  static const char *const numbers[] = {
      "0", "1", "-1", "-0", "2", "63", "64", "65", "127", "128", "1048576", "1048577", "16777216",
      "2147483647", "2147483648", "-2147483648", "-2147483649", "4294967295", "4294967296",
      "1152921504606846976", "2305843009213693952", "4611686018427387904", "9223372036854775744",
      "9223372036854775807", "9223372036854775808", "-9223372036854775808",
      "18446744073709551616", "99999999999999999999999", "1e3", "0.5", "00", "+1", "\"tokens\""};
  size_t start = (size_t)rand() % length;
  while (start < length && (text[start] < '0' || text[start] > '9')) start++;
  size_t end = start;
  while (end < length && text[end] >= '0' && text[end] <= '9') end++;
  const char *number = numbers[(size_t)rand() % (sizeof numbers / sizeof *numbers)];
  size_t size = strlen(number);
  if (start == end || length - (end - start) + size > MAX_BYTES) return length;
  memmove(text + start + size, text + end, length - end);
  memcpy(text + start, number, size);
  return length - (end - start) + size;
}

int main(int count, char **args) {
  static char text[MAX_BYTES], damaged[MAX_BYTES];
  static const char letters[] = "{}[]\",:-+.0129e \\ntf\n";
  if (count != 3) return 2;
  size_t length = read_file(args[2], text);
  if (!read_copy(text, length)) return printf("accepted %s\n", args[2]), 1;
  char said[200];
  snprintf(said, sizeof said, "%s", mr_error());
  length = read_file(args[1], text);
  if (read_copy(text, length)) return printf("%s\n", mr_error()), 1;
  for (size_t end = 0; end < length; end++) {
    if (!read_copy(text, end)) return printf("accepted the first %zu bytes\n", end), 1;
  }
  srand(1);
  int refused = 0;
  for (int round = 0; round < 40000; round++) {
    size_t bytes = length;
    memcpy(damaged, text, length);
    for (int changes = rand() % 3; changes >= 0; changes--) {
      if (round % 2) {
        bytes = change_number(damaged, bytes);
      } else {
        damaged[(size_t)rand() % bytes] = letters[(size_t)rand() % (sizeof letters - 1)];
      }
    }
    refused += read_copy(damaged, bytes) != 0;
  }
  printf("ok, %d refused; %s\n", refused, said);
  return 0;
}
