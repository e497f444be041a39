/* Whether the CPU, and the system with it, has what a flag of /proc/cpuinfo says. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

enum { EAX, EBX, ECX, EDX };
enum { YMM_STATE = 0x6, ZMM_STATE = 0xe6, TILE_STATE = 0x60000, OSXSAVE = 27 };
enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* of asm/prctl.h, which may be older */

static const struct {
  const char *name;
  unsigned leaf, subleaf, reg, bit;
} flags[] = {
    {"fma", 1, 0, ECX, 12},      {"movbe", 1, 0, ECX, 22},       {"f16c", 1, 0, ECX, 29},
    {"avx2", 7, 0, EBX, 5},      {"bmi2", 7, 0, EBX, 8},         {"avx512f", 7, 0, EBX, 16},
    {"avx512dq", 7, 0, EBX, 17}, {"avx512cd", 7, 0, EBX, 28},    {"avx512bw", 7, 0, EBX, 30},
    {"avx512vl", 7, 0, EBX, 31}, {"avx512_vnni", 7, 0, ECX, 11}, {"gfni", 7, 0, ECX, 8},
    {"avx_vnni", 7, 1, EAX, 4},  {"amx_tile", 7, 0, EDX, 24},    {"amx_int8", 7, 0, EDX, 25},
};

/* The registers that the system keeps for each thread; 0 where it keeps only the oldest. */
static unsigned kept_state(void) {
  unsigned r[4], low, high;
  if (!__get_cpuid(1, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) || !(r[ECX] >> OSXSAVE & 1)) return 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

/* The registers that a flag is about; those of tiles are a process's only when it asks for them. */
static int keeps_registers(const char *flag) {
  int tiles = !strncmp(flag, "amx", 3);
  unsigned state = tiles ? TILE_STATE : strncmp(flag, "avx512", 6) ? YMM_STATE : ZMM_STATE;
  if ((kept_state() & state) != state) return 0;
  return !tiles || !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
}

int cpu_has(const char *flag) {
  unsigned r[4];
  if (!keeps_registers(flag)) return 0;
  for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
    if (strcmp(flag, flags[i].name)) continue;
    if (!__get_cpuid_count(flags[i].leaf, flags[i].subleaf, &r[EAX], &r[EBX], &r[ECX], &r[EDX])) {
      return 0;
    }
    return r[flags[i].reg] >> flags[i].bit & 1;
  }
  return 0;
}
