/* Whether the CPU, and the system with it, has what a flag of /proc/cpuinfo says. */
#include <cpuid.h>
#include <stddef.h>
#include <string.h>

#include "internal.h"

enum { EAX, EBX, ECX, EDX };
enum { YMM_STATE = 0x6, ZMM_STATE = 0xe6, OSXSAVE = 27 };

static const struct {
  const char *name;
  unsigned leaf, subleaf, reg, bit;
} flags[] = {
    {"fma", 1, 0, ECX, 12},      {"movbe", 1, 0, ECX, 22},       {"f16c", 1, 0, ECX, 29},
    {"avx2", 7, 0, EBX, 5},      {"bmi2", 7, 0, EBX, 8},         {"avx512f", 7, 0, EBX, 16},
    {"avx512dq", 7, 0, EBX, 17}, {"avx512cd", 7, 0, EBX, 28},    {"avx512bw", 7, 0, EBX, 30},
    {"avx512vl", 7, 0, EBX, 31}, {"avx512_vnni", 7, 0, ECX, 11}, {"gfni", 7, 0, ECX, 8},
    {"avx_vnni", 7, 1, EAX, 4},
};

/* The registers that the system keeps for each thread; 0 where it keeps only the oldest. */
static unsigned kept_state(void) {
  unsigned r[4], low, high;
  if (!__get_cpuid(1, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) || !(r[ECX] >> OSXSAVE & 1)) return 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

int cpu_has(const char *flag) {
  unsigned r[4], state = strncmp(flag, "avx512", 6) ? YMM_STATE : ZMM_STATE;
  if ((kept_state() & state) != state) return 0;
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    if (strcmp(flag, flags[i].name)) continue;
    if (!__get_cpuid_count(flags[i].leaf, flags[i].subleaf, &r[EAX], &r[EBX], &r[ECX], &r[EDX])) {
      return 0;
    }
    return r[flags[i].reg] >> flags[i].bit & 1;
  }
  return 0;
}
