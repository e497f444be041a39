/* Kernels that work on the memory of the process. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "device.h"
#include "internal.h"

const int32_t mr_device_type = DEVICE_CPU;

int device_open(void) { return MR_OK; }

int device_weights(int file, size_t bytes, void **out) {
  void *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
  if (memory == MAP_FAILED) {
    return fail(MR_RUNTIME, "cannot map weights.bin: %s", strerror(errno));
  }
  madvise(memory, bytes, MADV_WILLNEED);
  *out = memory;
  return MR_OK;
}

/* Pages that are never touched cost nothing. */
int device_memory(size_t bytes, const char *what, void **out) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return fail(MR_RUNTIME, "not enough memory for %zu bytes of %s", bytes, what);
  }
  *out = memory;
  return MR_OK;
}

void device_release(void *memory, size_t bytes) { munmap(memory, bytes); }

int device_write(void *to, const void *from, size_t bytes) {
  memcpy(to, from, bytes);
  return MR_OK;
}

int device_read(void *to, const void *from, size_t bytes) {
  memcpy(to, from, bytes);
  return MR_OK;
}

int device_begin(void **kept) {
  (void)kept;
  return RUN_STEPS;
}

int device_finish(void **kept, int good) {
  (void)kept, (void)good;
  return MR_OK;
}

int device_wait(void) { return MR_OK; }

void device_forget(void *kept) { (void)kept; }
