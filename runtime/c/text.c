/* What a session remembers as bytes: a head, and the cache with signed codes. Artifacts whose graphs
 * and layouts are alike can go on from each other's, whatever machines they are for. */
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "internal.h"

typedef struct {
  uint64_t layout; /* of the cache */
  int64_t position;
} Head;

static uint64_t mixed(uint64_t digest, uint64_t value) {
  return (digest ^ value) * 0x100000001b3u; /* FNV-1a's, a word at a time */
}

/* Whether a tensor of the cache is the first of those at its place. */
static int is_first(const Plan *plan, int index) {
  const Tensor *tensor = &plan->tensors[index];
  if (tensor->space != CACHE) return 0;
  for (int i = 0; i < index; i++) {
    const Tensor *other = &plan->tensors[i];
    if (other->space == CACHE && other->offset == tensor->offset) return 0;
  }
  return 1;
}

/* The same for plans whose caches, and weights, take the same places; their order is no matter. */
static uint64_t layout(const Plan *plan) {
  uint64_t sum = mixed((uint64_t)plan->bytes[CACHE], (uint64_t)plan->bytes[WEIGHTS]);
  for (int i = 0; i < plan->tensor_count; i++) {
    const Tensor *tensor = &plan->tensors[i];
    if (!is_first(plan, i)) continue;
    uint64_t digest = mixed(mixed(1, tensor->offset), tensor->dl.dtype.bits);
    for (int d = 0; d < tensor->dl.ndim; d++) digest = mixed(digest, (uint64_t)tensor->shape[d]);
    sum += digest;
  }
  return sum;
}

/* Adds to all codes of 8 bits, modulo 256. */
static void shift_codes(const Plan *plan, unsigned char *cache, int64_t offset) {
  for (int i = 0; offset && i < plan->tensor_count; i++) {
    const Tensor *tensor = &plan->tensors[i];
    if (tensor->dl.dtype.bits != 8 || !is_first(plan, i)) continue;
    int64_t count = 1;
    for (int d = 0; d < tensor->dl.ndim; d++) count *= tensor->shape[d];
    unsigned char *codes = cache + tensor->offset;
    for (int64_t k = 0; k < count; k++) codes[k] = (unsigned char)(codes[k] + offset);
  }
}

int64_t text_bytes(const Plan *plan) { return (int64_t)sizeof(Head) + plan->bytes[CACHE]; }

static int check_kind(const Plan *plan) {
  if (plan->stage_count < 2) return MR_OK;
  return fail(MR_INPUT, "a model that drops tokens of prompts cannot hand its text over");
}

int text_read(const Plan *plan, const void *cache, int position, char *text) {
  Head head = {layout(plan), position};
  int error = check_kind(plan);
  if (error) return error;
  memcpy(text, &head, sizeof head);
  error = device_read(text + sizeof head, cache, (size_t)plan->bytes[CACHE]);
  if (!error) shift_codes(plan, (unsigned char *)text + sizeof head, -plan->cache_offset);
  return error;
}

int text_write(const Plan *plan, void *cache, const char *text, int64_t bytes, int *position) {
  Head head = {0, -1};
  int error = check_kind(plan);
  if (error) return error;
  if (bytes >= (int64_t)sizeof head) memcpy(&head, text, sizeof head);
  if (bytes != text_bytes(plan) || head.layout != layout(plan) || head.position < 0 ||
      head.position > plan->context) {
    return fail(MR_INPUT, "the text is of a model with another cache (%lld bytes)",
                (long long)bytes);
  }
  size_t size = (size_t)plan->bytes[CACHE];
  unsigned char *copy = malloc(size ? size : 1);
  if (!copy) return fail(MR_RUNTIME, "not enough memory for %zu bytes of the cache", size);
  memcpy(copy, text + sizeof head, size);
  shift_codes(plan, copy, plan->cache_offset);
  error = device_write(cache, copy, size);
  free(copy);
  *position = (int)head.position;
  return error;
}
