/* weights.bin where kernels read it: once for all sessions of a process. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"
#include "internal.h"

/* A loaded file, told apart from others by what the file system calls it: an artifact that was
 * compiled again has another one. */
typedef struct Loaded {
  struct Loaded *next;
  dev_t device;
  ino_t inode;
  void *memory;
  size_t bytes;
  int users;
} Loaded;

static Loaded *loaded;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects the list and its users */

static void hold(void) { pthread_mutex_lock(&lock); }
static void let_go(void) { pthread_mutex_unlock(&lock); }

/* A fork finds the list whole, and the lock open. */
static void watch_forks(void) { pthread_atfork(hold, let_go, let_go); }

/* Opens DIR/weights.bin; -1 after a failure that is already reported. */
static int open_file(const char *dir, struct stat *info) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/weights.bin", dir) >= (int)sizeof path) {
    fail(MR_ARTIFACT, "the artifact's path is too long");
    return -1;
  }
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0 || fstat(file, info)) {
    fail(MR_ARTIFACT, "cannot read %s: %s", path, strerror(errno));
    if (file >= 0) close(file);
    return -1;
  }
  return file;
}

static Loaded *find(const struct stat *info) {
  Loaded *one = loaded;
  while (one && (one->device != info->st_dev || one->inode != info->st_ino)) one = one->next;
  return one;
}

/* Loads a file and puts it into the list; NULL after a failure that is already reported. */
static Loaded *add(int file, const struct stat *info) {
  Loaded *one = calloc(1, sizeof *one);
  size_t bytes = (size_t)info->st_size;
  void *memory;
  if (!one) fail(MR_RUNTIME, "not enough memory for a file");
  if (!one || device_weights(file, bytes, &memory)) {
    free(one);
    return NULL;
  }
  *one = (Loaded){loaded, info->st_dev, info->st_ino, memory, bytes, 0};
  loaded = one;
  return one;
}

int weights_load(const char *dir, int64_t bytes, void **memory) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  struct stat info;
  pthread_once(&once, watch_forks);
  int file = open_file(dir, &info);
  if (file < 0) return MR_ARTIFACT;
  if (info.st_size != bytes) {
    close(file);
    return fail(MR_ARTIFACT, "weights.bin is damaged (got %lld bytes, need %lld)",
                (long long)info.st_size, (long long)bytes);
  }
  hold();
  Loaded *one = find(&info);
  if (!one) one = add(file, &info);
  if (one) {
    one->users++;
    *memory = one->memory;
  }
  let_go();
  close(file);
  return one ? MR_OK : MR_RUNTIME;
}

void weights_release(void *memory) {
  hold();
  Loaded **place = &loaded;
  while (*place && (*place)->memory != memory) place = &(*place)->next;
  Loaded *one = *place;
  if (one && !--one->users) {
    *place = one->next;
    device_release(one->memory, one->bytes);
    free(one);
  }
  let_go();
}
