/* The tables of no model, for tests of parts of the runtime. */
#include "internal.h"
#include "model.h"

const KernelEntry kernel_table[] = {{0, 0}};
const int kernel_count = 0;
const char plan_text[] = "";
const char *const needed_cpu_flags[] = {0};
int cpu_has(const char *flag) { return !!flag; }
const Model model_facts = {0};
