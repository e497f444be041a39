/* The other symbols that generated kernels need: errors and scratch memory. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* As wide as the widest vector of any target. */
enum { ALIGNMENT_BYTES = 128, KEPT_BLOCKS = 8 };

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  char text[1024];
  size_t used = 0;
  for (int32_t i = 0; i < count; i++) {
    size_t length = strlen(parts[i]);
    if (length > sizeof text - 1 - used) length = sizeof text - 1 - used;
    memcpy(text + used, parts[i], length);
    used += length;
  }
  text[used] = 0;
  fail(MR_RUNTIME, "%s: %s", kind, text);
}

/* Each thread keeps its freed scratch blocks: loops ask for the same sizes again and again. A
 * block begins with its size, in a header as long as the alignment. */
typedef struct {
  char *blocks[KEPT_BLOCKS];
} Scratch;

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void free_scratch(void *value) {
  Scratch *scratch = value;
  for (int i = 0; i < KEPT_BLOCKS; i++) free(scratch->blocks[i]);
  free(scratch);
}

static void make_key(void) { pthread_key_create(&scratch_key, free_scratch); }

static Scratch *thread_scratch(void) {
  pthread_once(&scratch_once, make_key);
  Scratch *scratch = pthread_getspecific(scratch_key);
  if (!scratch) {
    scratch = calloc(1, sizeof *scratch);
    if (scratch) pthread_setspecific(scratch_key, scratch);
  }
  return scratch;
}

static uint64_t block_bytes(const char *block) {
  uint64_t bytes;
  memcpy(&bytes, block, sizeof bytes);
  return bytes;
}

static void *allocate(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  bytes = (bytes + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
  Scratch *scratch = thread_scratch();
  for (int i = 0; scratch && i < KEPT_BLOCKS; i++) {
    char *block = scratch->blocks[i];
    if (block && bytes <= block_bytes(block) && block_bytes(block) <= 4 * bytes) {
      scratch->blocks[i] = NULL;
      return block + ALIGNMENT_BYTES;
    }
  }
  void *block = NULL;
  if (bytes > SIZE_MAX - ALIGNMENT_BYTES ||
      posix_memalign(&block, ALIGNMENT_BYTES, (size_t)bytes + ALIGNMENT_BYTES)) {
    fail(MR_RUNTIME, "not enough memory for %llu bytes of scratch", (unsigned long long)bytes);
    return NULL;
  }
  memcpy(block, &bytes, sizeof bytes);
  return (char *)block + ALIGNMENT_BYTES;
}

static int release(int device_type, int device_id, void *memory) {
  (void)device_type, (void)device_id;
  char *block = (char *)memory - ALIGNMENT_BYTES;
  Scratch *scratch = thread_scratch();
  for (int i = 0; scratch && i < KEPT_BLOCKS; i++) {
    if (!scratch->blocks[i]) {
      scratch->blocks[i] = block;
      return 0;
    }
  }
  if (scratch) { /* the oldest sizes go first, or a block of a new size would never be kept */
    free(scratch->blocks[0]);
    memmove(scratch->blocks, scratch->blocks + 1, sizeof scratch->blocks - sizeof block);
    scratch->blocks[KEPT_BLOCKS - 1] = block;
  } else {
    free(block);
  }
  return 0;
}

void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;
