/* Tokens that a prefill drops: what each stage has of a call, and what its caches hold of a text. */
#include <stdlib.h>

#include "internal.h"

int64_t tensor_set_shape(Tensor *tensor, const int tokens[MAX_STAGES]) {
  int64_t size = 1;
  for (int i = tensor->dl.ndim - 1; i >= 0; i--) {
    if (tensor->token_dims >> i & 1) tensor->shape[i] = tokens[tensor->stage];
    tensor->strides[i] = size;
    if (tensor->shape[i] && size > INT64_MAX / tensor->shape[i]) return INT64_MAX;
    size *= tensor->shape[i];
  }
  int item_bytes = tensor->dl.dtype.bits / 8;
  return size > INT64_MAX / item_bytes ? INT64_MAX : size * item_bytes;
}

void stage_counts(const Plan *plan, enum Function function, int tokens, int counts[MAX_STAGES]) {
  counts[0] = tokens;
  for (int stage = 1; stage < plan->stage_count; stage++) {
    int64_t dropped = function == PREFILL ? plan->pruned[stage - 1] : 0;
    int64_t all = counts[stage - 1] * (PRUNE_UNIT - dropped);
    counts[stage] = (int)((all + dropped + PRUNE_UNIT - 1) / PRUNE_UNIT);
  }
}

static int reads(const Step *step, const Tensor *tensor) {
  for (int i = 0; i < step->count; i++) {
    if (step->args[i].kind == KIND_TENSOR && step->args[i].value.pointer == &tensor->dl) return 1;
  }
  return 0;
}

int stage_of_cache(const Plan *plan, const Tensor *cache) {
  const StepList *list = &plan->functions[DECODE];
  for (int i = 0; i < list->patch_count; i++) {
    const ArgumentPatch *patch = &list->patches[i];
    for (int k = 0; patch->kind == PATCH_POSITION && k < list->step_count; k++) {
      const Step *step = &list->steps[k];
      int own = patch->slot >= step->args && patch->slot < step->args + step->count;
      if (own && reads(step, cache)) return patch->stage;
    }
  }
  return 0;
}

int lengths_make(StageLengths *lengths, const Plan *plan) {
  for (int stage = 1; stage < plan->stage_count; stage++) {
    lengths->held[stage] = calloc((size_t)plan->context + 1, sizeof *lengths->held[stage]);
    if (!lengths->held[stage]) return fail(MR_RUNTIME, "not enough memory for a session");
  }
  return MR_OK;
}

void lengths_free(StageLengths *lengths) {
  for (int stage = 1; stage < MAX_STAGES; stage++) free(lengths->held[stage]);
}

int lengths_at(const StageLengths *lengths, const Plan *plan, int position, int held[MAX_STAGES]) {
  held[0] = position;
  for (int stage = 1; stage < plan->stage_count; stage++) {
    held[stage] = lengths->held[stage][position];
    if (held[stage] < 0) {
      return fail(MR_INPUT,
                  "position %d lies within a prefill that dropped tokens, go back to where it began",
                  position);
    }
  }
  return MR_OK;
}

void lengths_add(StageLengths *lengths, const Plan *plan, int position,
                 const int counts[MAX_STAGES]) {
  for (int stage = 1; stage < plan->stage_count; stage++) {
    int *held = lengths->held[stage] + position;
    int whole = counts[stage] == counts[0];
    for (int i = 1; i < counts[0]; i++) held[i] = whole ? held[0] + i : -1;
    held[counts[0]] = held[0] + counts[stage];
  }
}
