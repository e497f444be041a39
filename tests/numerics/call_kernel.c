/* Calls the only kernel of the executable once: arguments come on standard input, the tensors as
 * they are afterwards go to standard output. See emulated_kernel.py for the format. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

enum { MOST_ARGUMENTS = 32, MOST_DIMS = 8, SLACK_BYTES = 64 };

typedef struct {
  int64_t kind, code, bits, rank, shape[MOST_DIMS];
} Argument;

static struct {
  DLTensor tensor;
  int64_t strides[MOST_DIMS];
  size_t bytes;
} tensors[MOST_ARGUMENTS];
static Argument arguments[MOST_ARGUMENTS];

static int read_tensor(int i) {
  Argument *argument = &arguments[i];
  DLTensor *tensor = &tensors[i].tensor;
  size_t items = 1;
  for (int64_t axis = argument->rank - 1; axis >= 0; axis--) {
    tensors[i].strides[axis] = (int64_t)items;
    items *= (size_t)argument->shape[axis];
  }
  tensors[i].bytes = items * (size_t)argument->bits / 8;
  *tensor = (DLTensor){.ndim = (int32_t)argument->rank,
                       .device = {.type = DEVICE_CPU},
                       .dtype = {(uint8_t)argument->code, (uint8_t)argument->bits, 1},
                       .shape = argument->shape,
                       .strides = tensors[i].strides};
  if (posix_memalign(&tensor->data, 128, tensors[i].bytes + SLACK_BYTES)) return 0;
  return fread(tensor->data, 1, tensors[i].bytes, stdin) == tensors[i].bytes;
}

int main(void) {
  int64_t count;
  Any args[MOST_ARGUMENTS] = {{0}}, result = {0};
  if (fread(&count, sizeof count, 1, stdin) != 1 || count > MOST_ARGUMENTS) return 2;
  for (int i = 0; i < count; i++) {
    if (fread(&arguments[i], sizeof arguments[i], 1, stdin) != 1) return 2;
    args[i].kind = (int32_t)arguments[i].kind;
    args[i].value.integer = arguments[i].code;
    if (arguments[i].kind != KIND_TENSOR) continue;
    if (!read_tensor(i)) return 2;
    args[i].value.pointer = &tensors[i].tensor;
  }
  if (kernel_table[0].call(NULL, args, (int32_t)count, &result)) {
    fprintf(stderr, "%s\n", mr_error());
    return 1;
  }
  for (int i = 0; i < count; i++) {
    if (arguments[i].kind != KIND_TENSOR) continue;
    if (fwrite(tensors[i].tensor.data, 1, tensors[i].bytes, stdout) != tensors[i].bytes) return 2;
  }
  return 0;
}
