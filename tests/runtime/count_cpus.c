/* Prints the CPUs that the control groups below a root folder leave of so many. */
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"
#include "no_model.h"

int main(int count, char **args) {
  if (count != 3) return 2;
  printf("%d\n", quota_cpus(args[1], atoi(args[2])));
  return usable_cpus() < 1;
}
