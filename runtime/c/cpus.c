/* How many CPUs this process may keep busy: its affinity, and the CPU quotas of its control groups.
 * More threads than a quota pays for are stopped together for the rest of each period. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { PATH_BYTES = 4096 };

/* The first line of a file; false if there is none. */
static int read_line(const char *path, char *line, int bytes) {
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  char *got = fgets(line, bytes, file);
  fclose(file);
  return got != NULL;
}

static int read_number(const char *folder, const char *name, long long *out) {
  char path[PATH_BYTES + 32], line[64];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return read_line(path, line, sizeof line) && sscanf(line, "%lld", out) == 1;
}

/* Whole CPUs that a control group may use, INT32_MAX without a quota. */
static int group_cpus(const char *folder) {
  char path[PATH_BYTES + 32], line[64];
  long long quota = -1, period = -1;
  snprintf(path, sizeof path, "%s/cpu.max", folder); /* "50000 100000" or "max 100000" */
  if (read_line(path, line, sizeof line)) {
    if (sscanf(line, "%lld %lld", &quota, &period) != 2) return INT32_MAX;
  } else if (!read_number(folder, "cpu.cfs_quota_us", &quota) ||
             !read_number(folder, "cpu.cfs_period_us", &period)) {
    return INT32_MAX;
  }
  if (quota <= 0 || period <= 0 || quota / period >= INT32_MAX) return INT32_MAX;
  return quota < period ? 1 : (int)(quota / period);
}

/* The least of a group and those around it. What a container does not see of its own path is
 * passed over, down to the group that is mounted there. */
static int nested_cpus(const char *mount, const char *group, int least) {
  char folder[PATH_BYTES];
  size_t root = strlen(mount);
  if (strstr(group, "/..")) group = "";
  if (snprintf(folder, sizeof folder, "%s%s", mount, group) >= (int)sizeof folder) return least;
  for (;;) {
    int cpus = group_cpus(folder);
    if (cpus < least) least = cpus;
    char *slash = strrchr(folder, '/');
    if (!slash || slash < folder + root) return least;
    *slash = 0;
  }
}

static int has_word(const char *list, const char *word) {
  size_t length = strlen(word);
  for (const char *c = list; c; c = strchr(c, ',') ? strchr(c, ',') + 1 : NULL) {
    if (!strncmp(c, word, length) && (!c[length] || c[length] == ',')) return 1;
  }
  return 0;
}

int quota_cpus(const char *root, int most) {
  char path[PATH_BYTES], line[PATH_BYTES], mount[PATH_BYTES];
  snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
  FILE *file = fopen(path, "re");
  while (file && fgets(line, sizeof line, file)) { /* hierarchy:controllers:group */
    line[strcspn(line, "\n")] = 0;
    char *controllers = strchr(line, ':'), *group = NULL;
    if (controllers) group = strchr(++controllers, ':');
    if (!group) continue;
    *group++ = 0;
    if (strlen(controllers) > 64 || (*controllers && !has_word(controllers, "cpu"))) continue;
    const char *names[] = {*controllers ? controllers : "", *controllers ? "cpu" : "unified"};
    for (int i = 0; i < 2; i++) {
      const char *slash = *names[i] ? "/" : "";
      if (snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s%s", root, slash, names[i]) <
          (int)sizeof mount) {
        most = nested_cpus(mount, group, most);
      }
    }
  }
  if (file) fclose(file);
  return most;
}

int usable_cpus(void) {
  cpu_set_t set;
  CPU_ZERO(&set);
  return quota_cpus("", sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set));
}
