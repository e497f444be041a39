/* The figures of an answer; those of `morendo run --stats`, in the same words. */
#include <stdio.h>
#include <sys/resource.h>

#include "run.h"

void stats_add_step(Stats *stats, int level, double seconds) {
  stats->decode += seconds;
  stats->bytes += (double)model_facts.level_bytes[level];
  if (!stats->decode_tokens++ || level != stats->last_level) stats->run_count++;
  stats->last_level = level;
  if (stats->run_count > SHOWN_RUNS) return;
  stats->runs[stats->run_count - 1].level = level;
  stats->runs[stats->run_count - 1].steps++;
}

static void print_size(double bytes) {
  const char *unit = bytes < 1e6 ? "kB" : bytes < 1e9 ? "MB" : "GB";
  double scale = bytes < 1e6 ? 1e-3 : bytes < 1e9 ? 1e-6 : 1e-9;
  fprintf(stderr, "%.*f %s", bytes < 1e9 ? 1 : 2, bytes * scale, unit);
}

static void print_weights(const Stats *stats) {
  double mean = stats->bytes / stats->decode_tokens;
  fprintf(stderr, "weights  %.1f GB/s  ", 1e-9 * stats->bytes / stats->decode);
  print_size(mean);
  fprintf(stderr, " a token, %.2f bits a weight\nlevels   ", 8 * mean / (double)model_facts.weights);
  for (int i = 0; i < stats->run_count && i < SHOWN_RUNS; i++) {
    fprintf(stderr, "%s%d x%d", i ? ", " : "", stats->runs[i].level, stats->runs[i].steps);
  }
  if (stats->run_count > SHOWN_RUNS) {
    fprintf(stderr, ", ... %d more", stats->run_count - SHOWN_RUNS);
  }
  fputc('\n', stderr);
}

void stats_print(const Stats *stats) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  fprintf(stderr, "start    %.2f s\nprefill  %.1f tokens/s  %d tokens\n", stats->load,
          stats->prefill > 0 ? stats->prompt_tokens / stats->prefill : 0, stats->prompt_tokens);
  fprintf(stderr, "decode   %.1f tokens/s  %d tokens\n",
          stats->decode > 0 ? stats->decode_tokens / stats->decode : 0, stats->decode_tokens);
  if (stats->decode_tokens && model_facts.weights) print_weights(stats);
  fprintf(stderr, "memory   %.1f MB  peak, mapped weights included\n",
          (double)usage.ru_maxrss * 1024e-6);
}
