/* Kernels of a toy language model, with the calling convention of compiled ones: the mean of the
 * embeddings of all tokens so far, times 1 + level, compared with every embedding. */
#include <math.h>
#include <string.h>

#include "internal.h"

typedef int (*Loop)(int task, void *env, void *data);
extern int (*__TVMBackendParallelLaunch)(Loop loop, void *data, int tasks);
extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void *);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);

#define KERNEL(name) \
  MR_API int __tvm_ffi_##name(void *self, const Any *args, int32_t count, Any *result)

static float *floats(const Any *arg) { return ((DLTensor *)arg->value.pointer)->data; }
/* An int32, given as it is or as a slot of the state. */
static int64_t number(const Any *arg) {
  const DLTensor *t = arg->value.pointer;
  return arg->kind == KIND_INT ? arg->value.integer : *(const int32_t *)t->data;
}
static int64_t dim(const Any *arg, int i) { return ((DLTensor *)arg->value.pointer)->shape[i]; }

static int refuse(const char *what) {
  const char *parts[] = {"expected\n", what};
  TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 2);
  return -1;
}

static int check_tensor(const Any *arg, int rank, int bits) {
  const DLTensor *t = arg->value.pointer;
  if (arg->kind != KIND_TENSOR || t->ndim != rank || t->dtype.bits != bits || t->dtype.lanes != 1)
    return 0;
  int64_t stride = 1;
  for (int i = rank - 1; i >= 0; i--) {
    if (t->strides[i] != stride) return 0;
    stride *= t->shape[i];
  }
  return t->device.type == DEVICE_CPU && !t->byte_offset && t->data;
}

/* ids i32[tokens], table f32[V, C], out f32[M, C], tokens */
KERNEL(embed) {
  (void)self, (void)result;
  if (count != 4 || !check_tensor(args, 1, 32) || !check_tensor(args + 1, 2, 32)) {
    return refuse("ids, table, out, tokens");
  }
  if (dim(args, 0) != args[3].value.integer) return refuse("the number of tokens as shape of ids");
  const int32_t *ids = (const int32_t *)floats(args);
  int64_t width = dim(args + 1, 1);
  for (int64_t m = 0; m < args[3].value.integer; m++) {
    memcpy(floats(args + 2) + m * width, floats(args + 1) + ids[m] * width, width * sizeof(float));
  }
  return 0;
}

/* x f32[M, C], cache f32[context, C], tokens, position */
KERNEL(append) {
  (void)self, (void)result;
  if (count != 4) return refuse("x, cache, tokens, position");
  int64_t width = dim(args, 1);
  memcpy(floats(args + 1) + args[3].value.integer * width, floats(args),
         args[2].value.integer * width * sizeof(float));
  return 0;
}

typedef struct {
  const Any *args;
} MixData;

static int mix_token(int task, void *env, void *data) {
  const Any *args = ((MixData *)data)->args;
  int tasks = ((struct { void *sync; int32_t tasks; } *)env)->tasks;
  int64_t width = dim(args, 1), tokens = number(args + 2), position = number(args + 3);
  for (int64_t m = task; m < tokens; m += tasks) {
    float *sum = __TVMBackendAllocWorkspace(1, 0, (uint64_t)width * sizeof(float), 2, 32);
    if (!sum || (uintptr_t)sum % 64) return -1;
    memset(sum, 0, (size_t)width * sizeof(float));
    for (int64_t j = 0; j <= position + m; j++) {
      for (int64_t c = 0; c < width; c++) sum[c] += floats(args)[j * width + c];
    }
    float scale = (float)(1 + number(args + 4)) / (float)(position + m + 1);
    for (int64_t c = 0; c < width; c++) floats(args + 1)[m * width + c] = sum[c] * scale;
    if (__TVMBackendFreeWorkspace(1, 0, sum)) return -1;
  }
  return 0;
}

/* cache f32[context, C], out f32[M, C], tokens, position, level */
KERNEL(mix) {
  (void)self, (void)result;
  if (count != 5) return refuse("cache, out, tokens, position, level");
  MixData data = {args};
  return __TVMBackendParallelLaunch(mix_token, &data, 0);
}

static void score_row(const Any *args, int64_t m, float *logits) {
  int64_t width = dim(args, 1), vocabulary = dim(args + 1, 0);
  for (int64_t v = 0; v < vocabulary; v++) {
    logits[v] = 0;
    for (int64_t c = 0; c < width; c++) {
      logits[v] += floats(args)[m * width + c] * floats(args + 1)[v * width + c];
    }
  }
}

/* x f32[M, C], table f32[V, C], logits f32[tokens, V] or f32[1, V], tokens, all */
KERNEL(head) {
  (void)self, (void)result;
  if (count != 5) return refuse("x, table, logits, tokens, all");
  int64_t tokens = args[3].value.integer, all = args[4].value.integer;
  int64_t first = all ? 0 : tokens - 1;
  if (dim(args + 2, 0) != tokens - first) return refuse("a row of logits for each token");
  for (int64_t m = first; m < tokens; m++) {
    score_row(args, m, floats(args + 2) + (m - first) * dim(args + 1, 0));
  }
  return 0;
}
