/* The likeliest tokens that a device finds, so that the host need not read all logits to draw one. */
#include <string.h>

#include "device.h"
#include "internal.h"

int candidates_use(Plan *plan, const Tensor *found) {
  plan->candidates = found;
  return found->space == ARENA && found->dl.dtype.code == CODE_INT && found->dl.dtype.bits == 64 &&
         found->dl.ndim == 2 && !found->token_dims && found->shape[0] == 1 &&
         found->shape[1] == CANDIDATES + 1;
}

/* A key has 32 bits that are ordered as logits are, then INT32_MAX - id. */
static Choice choice(int64_t key) {
  int32_t rank = (int32_t)(key >> 32);
  uint32_t bits = rank < 0 ? 0x80000000u | (uint32_t)-rank : (uint32_t)rank;
  Choice found = {.id = INT32_MAX - (int32_t)(key & INT32_MAX)};
  memcpy(&found.logit, &bits, sizeof bits);
  return found;
}

int candidates_read(const Plan *plan, Choice all[CANDIDATES], int *count, double *total) {
  int64_t keys[CANDIDATES + 1];
  int error = device_read(keys, plan->candidates->dl.data, sizeof keys);
  if (error) return error;
  *count = plan->vocabulary < CANDIDATES ? (int)plan->vocabulary : CANDIDATES;
  for (int i = 0; i < *count; i++) {
    all[i] = choice(keys[i]);
    if (all[i].id < 0 || all[i].id >= plan->vocabulary) {
      return fail(MR_RUNTIME, "the device found a token that is not in the vocabulary (id %d)",
                  (int)all[i].id);
    }
  }
  memcpy(total, &keys[CANDIDATES], sizeof *total);
  return MR_OK;
}
