/* Whether the CPU has what a flag of /proc/cpuinfo says, as the kernel tells every program. */
#include <stddef.h>
#include <string.h>
#include <sys/auxv.h>

#include "internal.h"

static const struct {
  const char *name;
  unsigned long kind;
  int bit;
} flags[] = {{"asimd", AT_HWCAP, 1}, {"asimddp", AT_HWCAP, 20}, {"i8mm", AT_HWCAP2, 13}};

int cpu_has(const char *flag) {
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    if (!strcmp(flag, flags[i].name)) return getauxval(flags[i].kind) >> flags[i].bit & 1;
  }
  return 0;
}
