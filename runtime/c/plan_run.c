/* Runs the steps of a plan's function; a call patches only what varies. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device.h"
#include "internal.h"

#define POLL_SECONDS 0.05 /* a person does not notice it, and nor do the kernels */

static void patch(const Plan *plan, const StepList *list, const int tokens[],
                  const int positions[], int level) {
  for (int i = 0; i < list->patch_count; i++) {
    const ArgumentPatch *change = &list->patches[i];
    int64_t *number = &change->slot->value.integer;
    switch (change->kind) {
      case PATCH_TENSOR: change->slot->value.pointer = change->tensors[level]; break;
      case PATCH_TOKENS: *number = tokens[change->stage]; break;
      case PATCH_POSITION: *number = positions[change->stage]; break;
      case PATCH_LEVEL: *number = change->levels[level]; break;
      case PATCH_SHARPNESS: *number = plan->sharpness; break;
    }
  }
}

/* Gives all that a call varies to the arguments, the shapes and the device. */
static int prepare(Plan *plan, const StepList *list, const int tokens[], const int positions[],
                   int level) {
  for (int i = 0; i < plan->varying_count; i++) tensor_set_shape(plan->varying[i], tokens);
  patch(plan, list, tokens, positions, level);
  patch(plan, &plan->slot_patches, tokens, positions, level);
  for (int i = 0; i < plan->slot_count; i++) {
    int32_t number = (int32_t)plan->slots[i].value.integer;
    memcpy(plan->numbers + (size_t)i * SLOT_BYTES, &number, sizeof number);
  }
  size_t bytes = (size_t)plan->slot_count * SLOT_BYTES;
  return bytes ? device_write(plan->state, plan->numbers, bytes) : MR_OK;
}

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int interrupted(Interrupt *interrupt) {
  if (interrupt->poll) {
    double now = seconds_now();
    if (now >= interrupt->next) {
      if (interrupt->poll(interrupt->data)) return 1;
      interrupt->next = now + POLL_SECONDS;
    }
  }
  return atomic_load_explicit(&interrupt->cancelled, memory_order_relaxed);
}

/* Gives a copy of what the arguments of a step hold to the plan's trace. */
static int show(const Plan *plan, const Step *step, int index) {
  int error = device_wait();
  for (int i = 0; !error && i < step->count; i++) {
    const Tensor *tensor = step->args[i].value.pointer; /* its DLTensor comes first */
    if (step->args[i].kind != KIND_TENSOR) continue;
    if (tensor->space != ARENA && tensor->space != LOGITS) continue;
    size_t bytes = tensor->dl.dtype.bits / 8;
    for (int axis = 0; axis < tensor->dl.ndim; axis++) bytes *= (size_t)tensor->shape[axis];
    void *copy = malloc(bytes ? bytes : 1);
    if (!copy) return fail(MR_RUNTIME, "no memory for a copy of %zu bytes", bytes);
    error = device_read(copy, tensor->dl.data, bytes);
    if (!error) plan->trace(plan->trace_data, index, i, copy, (int64_t)bytes);
    free(copy);
  }
  return error;
}

static int run_steps(Plan *plan, enum Function function, Interrupt *interrupt) {
  const StepList *list = &plan->functions[function];
  double last = plan->profile ? seconds_now() : 0;
  for (int i = 0; i < list->step_count; i++) {
    Step *step = &list->steps[i];
    if (interrupted(interrupt)) {
      return fail(MR_CANCELLED, "cancelled before %s step %d", function_names[function], i);
    }
    Any result = {0};
    if (step->kernel->call(NULL, step->args, step->count, &result)) {
      return fail(MR_RUNTIME, "kernel %s failed at %s step %d (%.*s): %s", step->kernel->name,
                  function_names[function], i, step->note_length, step->note, mr_error());
    }
    int shown = plan->trace ? show(plan, step, i) : MR_OK;
    if (shown) return shown;
    if (plan->profile) {
      int error = device_wait();
      if (error) return error;
      double now = seconds_now();
      step->seconds += now - last;
      last = now;
    }
  }
  return MR_OK;
}

int plan_run(Plan *plan, enum Function function, const int tokens[MAX_STAGES],
             const int positions[MAX_STAGES], int level, Interrupt *interrupt) {
  int error = prepare(plan, &plan->functions[function], tokens, positions, level);
  if (error) return error;
  /* Only the steps of one token are the same in every call; the shapes of the others change. */
  const StepList *list = &plan->functions[function];
  int watched = plan->profile || plan->trace;
  int keeps = function == DECODE && !watched && list->patch_count == list->tensor_patches;
  if (!keeps) return run_steps(plan, function, interrupt);
  if (interrupted(interrupt)) {
    return fail(MR_CANCELLED, "cancelled before %s", function_names[function]);
  }
  void **kept = &plan->kept[plan->kept_count > 1 ? level : 0];
  int begun = device_begin(kept);
  if (begun != RUN_STEPS) return begun == STEPS_RAN ? MR_OK : begun;
  error = run_steps(plan, function, interrupt);
  int finished = device_finish(kept, !error);
  return error ? error : finished;
}
