/* A libcuda.so.1 for tests. Device memory is host memory with a forbidden page behind each allocation; a
 * module is the library of emulated kernels that MR_EMULATED_KERNELS names, whatever image is loaded; a
 * launch runs one, or is recorded. MR_MOCK_... make it refuse things:
 *   CAPABILITY=75  is what the GPU has (80)      MEMORY=bytes  that it has (all)
 *   NONE=1         there is no GPU               FAIL=n        the n-th launch fails, and all after it
 *   OLD=1          images are for later drivers  LOG=file      gets a line for each image, graph and read
 *   LOST=n         the GPU is gone from the n-th wait on
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, NO_BINARY = 209, NOT_FOUND = 500, LAUNCH_FAILED = 719, LOST = 999 };
enum { PAGE = 4096, MOST_PARAMETERS = 64, MOST_BLOCK_BYTES = 48 << 10 };

typedef void (*Launch)(const unsigned *, const unsigned *, unsigned, void **, int, int);
typedef struct {
  Launch run;
  const int *sizes; /* of the parameters, then 0 */
} Function;
typedef struct Node {
  struct Node *next;
  Function *function;
  unsigned grid[3], block[3], shared;
  void *parameters[MOST_PARAMETERS];
} Node;
typedef struct {
  Node *first, **end;
} Graph;

static Graph *capturing;
static size_t used;
static int launches, waits;

static long setting(const char *name, long otherwise) { return getenv(name) ? atol(getenv(name)) : otherwise; }
static int lost(void) { return setting("MR_MOCK_LOST", 0) && waits >= setting("MR_MOCK_LOST", 0); }
static void note(const char *text) {
  FILE *log = getenv("MR_MOCK_LOG") ? fopen(getenv("MR_MOCK_LOG"), "a") : NULL;
  if (log) fprintf(log, "%s\n", text), fclose(log);
}

int cuInit(unsigned flags) { return flags ? INVALID : setting("MR_MOCK_NONE", 0) ? NO_DEVICE : OK; }
/* What NVIDIA's compiler asks a driver for, and does without. */
int cuGetExportTable(const void **table, const void *which) { return (void)which, *table = NULL, NOT_FOUND; }
int cuDriverGetVersion(int *version) { return *version = 11020, OK; }
int cuDeviceGetCount(int *count) { return *count = 1, OK; }
int cuDeviceGet(int *device, int i) { return *device = i, OK; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  int capability = (int)setting("MR_MOCK_CAPABILITY", 80);
  (void)device;
  return *value = which == 75 ? capability / 10 : which == 76 ? capability % 10 : 0, OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return (void)device, *context = &capturing, OK; }
int cuCtxSetCurrent(void *context) { return context ? OK : INVALID; }
int cuMemGetInfo_v2(size_t *left, size_t *all) {
  *all = (size_t)setting("MR_MOCK_MEMORY", 1l << 40);
  return *left = *all - used, OK;
}

int cuMemAlloc_v2(uintptr_t *at, size_t bytes) {
  size_t pages = (bytes + PAGE - 1) / PAGE * PAGE, left, all;
  cuMemGetInfo_v2(&left, &all);
  if (pages > left) return NO_MEMORY;
  char *memory = mmap(NULL, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return NO_MEMORY;
  mprotect(memory + pages, PAGE, PROT_NONE);
  used += pages;
  memset(memory, 0xEE, pages);
  return *at = (uintptr_t)(memory + pages - (bytes + 255) / 256 * 256), OK;
}
int cuMemFree_v2(uintptr_t at) { return lost() ? LOST : at ? OK : INVALID; }
int cuMemsetD8Async(uintptr_t at, unsigned char value, size_t bytes, void *stream) {
  return memset((void *)at, value, bytes), stream ? OK : INVALID;
}
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, void *stream) {
  if (!stream || capturing) return INVALID;
  return lost() ? LOST : (memcpy((void *)to, from, bytes), OK);
}
int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, void *stream) {
  if (!stream || capturing) return INVALID;
  if (lost()) return LOST;
  char line[40];
  snprintf(line, sizeof line, "read %zu bytes", bytes);
  note(line);
  return memcpy(to, (void *)from, bytes), OK;
}

int cuModuleLoadData(void **module, const void *image) {
  note(!memcmp(image, "\177ELF", 4) ? "load machine code" : "load text");
  if (setting("MR_MOCK_OLD", 0)) return NO_BINARY;
  *module = dlopen(getenv("MR_EMULATED_KERNELS"), RTLD_NOW | RTLD_LOCAL);
  return *module ? OK : NOT_FOUND;
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
  char symbol[512];
  Function *found = malloc(sizeof *found);
  snprintf(symbol, sizeof symbol, "%s_launch", name);
  found->run = (Launch)dlsym(module, symbol);
  snprintf(symbol, sizeof symbol, "%s_sizes_of", name);
  const int *(*sizes)(void) = (const int *(*)(void))dlsym(module, symbol);
  if (!found->run || !sizes) return NOT_FOUND;
  found->sizes = sizes();
  return *function = found, OK;
}

static int run(Node *node) {
  if (lost()) return LOST;
  int failing = (int)setting("MR_MOCK_FAIL", 0);
  if (failing && ++launches >= failing) return LAUNCH_FAILED;
  int order = (int)setting("MR_ORDER", 0), late = (int)setting("MR_LATE", 1);
  return node->function->run(node->grid, node->block, node->shared, node->parameters, order, late), OK;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
  Node now = {NULL, function, {gx, gy, gz}, {bx, by, bz}, shared, {0}};
  (void)extra;
  if (!stream || !gx || !gy || !gz || gy > 65535 || gz > 65535) return INVALID;
  if (!bx || bx * by * bz > 1024 || shared > MOST_BLOCK_BYTES) return INVALID;
  const int *sizes = now.function->sizes;
  if (!capturing) {
    for (int i = 0; sizes[i]; i++) now.parameters[i] = parameters[i];
    return run(&now);
  }
  for (int i = 0; sizes[i]; i++) now.parameters[i] = memcpy(malloc((size_t)sizes[i]), parameters[i], (size_t)sizes[i]);
  Node *kept = malloc(sizeof now);
  *kept = now;
  *capturing->end = kept;
  capturing->end = &kept->next;
  return OK;
}

int cuStreamCreate(void **stream, unsigned flags) { return *stream = &launches, flags == 1 ? OK : INVALID; }
int cuStreamSynchronize(void *stream) {
  waits++;
  return lost() ? LOST : stream && !capturing ? OK : INVALID;
}
int cuStreamBeginCapture_v2(void *stream, int mode) {
  if (!stream || capturing || mode != 2) return INVALID;
  capturing = calloc(1, sizeof *capturing);
  capturing->end = &capturing->first;
  return OK;
}
int cuStreamEndCapture(void *stream, void **graph) {
  if (!stream || !capturing) return INVALID;
  return *graph = capturing, capturing = NULL, OK;
}
int cuGraphInstantiateWithFlags(void **ready, void *graph, unsigned long long flags) {
  Graph *copy = malloc(sizeof *copy);
  *copy = *(Graph *)graph; /* its nodes are never freed */
  return *ready = copy, flags ? INVALID : OK;
}
int cuGraphDestroy(void *graph) { return free(graph), OK; }
int cuGraphExecDestroy(void *ready) { return free(ready), OK; }
int cuGraphLaunch(void *ready, void *stream) {
  if (!stream || capturing) return INVALID;
  note("launch a graph");
  int error = OK;
  for (Node *node = ((Graph *)ready)->first; node && !error; node = node->next) error = run(node);
  return error;
}
/* Events are moments without a clock: a launch takes a millisecond. */
int cuEventCreate(void **event, unsigned flags) { return *event = &launches, flags ? INVALID : OK; }
int cuEventRecord(void *event, void *stream) { return event && stream ? OK : INVALID; }
int cuEventSynchronize(void *event) { return event ? OK : INVALID; }
int cuEventElapsedTime(float *milliseconds, void *first, void *last) {
  return *milliseconds = 1, first && last ? OK : INVALID;
}
int cuGetErrorString(int error, const char **text) {
  *text = error == LOST ? "unknown error" : error == LAUNCH_FAILED ? "unspecified launch failure" : error == NO_DEVICE ? "no CUDA-capable device" : "refused";
  return OK;
}
