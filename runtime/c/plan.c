/* Reads plan.json into argument arrays that stay as they are. */
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "internal.h"

struct Block {
  Block *next;
  void *memory;
};

/* What reading needs besides the plan. */
typedef struct {
  Plan *plan;
  Json json;
} Reader;

static const char *const space_names[SPACES] = {"arena", "weights", "cache",
                                               "ids",   "logits",  "state"};
const char *const function_names[FUNCTIONS] = {"prefill", "score", "decode"};

static const struct {
  const char *name;
  uint8_t code, bits;
} dtypes[] = {{"float32", CODE_FLOAT, 32}, {"float16", CODE_FLOAT, 16}, {"int8", CODE_INT, 8},
              {"uint8", CODE_UINT, 8},     {"uint16", CODE_UINT, 16},   {"int32", CODE_INT, 32},
              {"int64", CODE_INT, 64},     {"bool", CODE_BOOL, 8}};
enum { FLOAT32 = 0, INT32 = 5, DTYPES = sizeof dtypes / sizeof *dtypes, ALIGNMENT_BYTES = 64 };

static void *keep(Plan *plan, void *memory) {
  Block *block = memory ? malloc(sizeof *block) : NULL;
  if (!block) {
    free(memory);
    return NULL;
  }
  *block = (Block){plan->blocks, memory};
  plan->blocks = block;
  return memory;
}

/* Zeroed memory that lives as long as the plan. */
static void *allocate(Plan *plan, int64_t count, size_t item_bytes) {
  return keep(plan, calloc(count ? (size_t)count : 1, item_bytes));
}

static int bad(const char *what, int index) {
  return fail(MR_ARTIFACT, "the plan is damaged: %s %d", what, index);
}

static int no_memory(void) { return fail(MR_RUNTIME, "not enough memory for the plan"); }

static int read_numbers(Reader *reader, const Node *root) {
  Plan *plan = reader->plan;
  int64_t version = -1;
  if (!json_integer(json_get(&reader->json, root, "version"), 0, INT32_MAX, &version) ||
      version != PLAN_VERSION) {
    return fail(MR_ARTIFACT, "the plan is of another version (got %d, need %d)", (int)version,
                PLAN_VERSION);
  }
  const struct {
    const char *name;
    int64_t low, high, *out;
  } numbers[] = {
      {"chunk", 1, 1 << 20, &plan->chunk},
      {"context", 1, INT32_MAX, &plan->context},
      {"vocabulary", 1, 1 << 24, &plan->vocabulary},
      {"levels", 1, INT32_MAX, &plan->levels},
      {"arena_bytes", 0, INT64_MAX, &plan->bytes[ARENA]},
      {"cache_bytes", 0, INT64_MAX, &plan->bytes[CACHE]},
      {"weights_bytes", 0, INT64_MAX, &plan->bytes[WEIGHTS]},
  };
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    const Node *node = json_get(&reader->json, root, numbers[i].name);
    if (!json_integer(node, numbers[i].low, numbers[i].high, numbers[i].out)) {
      return fail(MR_ARTIFACT, "the plan is damaged: bad %s", numbers[i].name);
    }
  }
  plan->bytes[IDS] = plan->chunk * (int64_t)sizeof(int32_t);
  plan->bytes[LOGITS] = plan->chunk * plan->vocabulary * (int64_t)sizeof(float);
  for (int space = 0; space < SPACES; space++) {
    if ((uint64_t)plan->bytes[space] > SIZE_MAX) {
      return fail(MR_RUNTIME, "this machine's addresses are too short for %lld bytes of %s",
                  (long long)plan->bytes[space], space_names[space]);
    }
  }
  return MR_OK;
}

static int read_kernels(Reader *reader, const Node *list) {
  if (!list || list->kind != '[') return bad("no kernels", 0);
  const Node *node = list + 1;
  int same = list->children == kernel_count;
  for (int i = 0; same && i < kernel_count; i++) {
    same = json_is(node, kernel_table[i].name);
    node = json_next(&reader->json, node);
  }
  return same ? MR_OK : fail(MR_ARTIFACT, "the plan and model.so do not belong together");
}

static int find_name(const Node *node, const char *const *names, int count) {
  for (int i = 0; i < count; i++) {
    if (json_is(node, names[i])) return i;
  }
  return -1;
}

static int find_dtype(const Node *node) {
  for (int i = 0; i < DTYPES; i++) {
    if (json_is(node, dtypes[i].name)) return i;
  }
  return -1;
}

/* Whether a node is {"tokens": S} or {"position": S}, as `what` says, of a later stage. */
static int read_stage(Reader *reader, const Node *node, const char *what, int *stage) {
  int64_t value;
  const Node *number = json_get(&reader->json, node, what);
  if (!number || !json_integer(number, 1, reader->plan->stage_count - 1, &value)) return 0;
  *stage = (int)value;
  return 1;
}

static int read_dims(Reader *reader, const Node *dims, Tensor *tensor) {
  if (dims->kind != '[' || dims->children > MAX_DIMS) return 0;
  const Node *dim = dims + 1;
  int stage = 0;
  for (int i = 0; i < dims->children; i++) {
    if (json_is(dim, "tokens") || read_stage(reader, dim, "tokens", &stage)) {
      if (tensor->token_dims && tensor->stage != stage) return 0;
      tensor->token_dims |= (uint8_t)(1u << i);
      tensor->stage = (uint8_t)stage;
    } else if (!json_integer(dim, 0, INT32_MAX, &tensor->shape[i])) {
      return 0;
    }
    dim = json_next(&reader->json, dim);
  }
  tensor->dl.ndim = dims->children;
  tensor->dl.shape = tensor->shape;
  tensor->dl.strides = tensor->strides;
  return 1;
}

static int read_tensor(Reader *reader, const Node *node, Tensor *tensor) {
  const Plan *plan = reader->plan;
  int64_t offset;
  if (node->kind != '[' || node->children != 4) return 0;
  int space = find_name(node + 1, space_names, SPACES);
  int dtype = find_dtype(node + 3);
  if (space < 0 || dtype < 0 || !json_integer(node + 2, 0, INT64_MAX / 2, &offset)) return 0;
  tensor->space = (uint8_t)space;
  tensor->offset = (uint64_t)offset;
  tensor->dl.device.type = mr_device_type;
  tensor->dl.dtype.code = dtypes[dtype].code;
  tensor->dl.dtype.bits = dtypes[dtype].bits;
  tensor->dl.dtype.lanes = 1;
  if (!read_dims(reader, node + 4, tensor)) return 0;
  int counts[MAX_STAGES];
  stage_counts(plan, PREFILL, (int)plan->chunk, counts);
  int64_t bytes = tensor_set_shape(tensor, counts);
  int fixed = space == IDS || space == LOGITS; /* what the caller's arrays are */
  if (fixed && (offset || dtype != (space == IDS ? INT32 : FLOAT32))) return 0;
  return offset % ALIGNMENT_BYTES == 0 && bytes <= plan->bytes[space] - offset;
}

static int read_tensors(Reader *reader, const Node *list) {
  Plan *plan = reader->plan;
  if (!list || list->kind != '[') return bad("no tensors", 0);
  plan->tensors = allocate(plan, list->children, sizeof *plan->tensors);
  plan->varying = allocate(plan, list->children, sizeof *plan->varying);
  if (!plan->tensors || !plan->varying) return no_memory();
  const Node *node = list + 1;
  for (int i = 0; i < list->children; i++) {
    Tensor *tensor = &plan->tensors[plan->tensor_count++];
    if (!read_tensor(reader, node, tensor)) return bad("bad tensor", i);
    if (tensor->token_dims) plan->varying[plan->varying_count++] = tensor;
    node = json_next(&reader->json, node);
  }
  return MR_OK;
}

static const int32_t *read_level(Reader *reader, const Node *values) {
  Plan *plan = reader->plan;
  if (values->kind != '[' || values->children != plan->levels) return NULL;
  int32_t *levels = allocate(plan, plan->levels, sizeof *levels);
  const Node *node = values + 1;
  for (int i = 0; levels && i < plan->levels; i++) {
    int64_t value;
    if (!json_integer(node, INT32_MIN, INT32_MAX, &value)) return NULL;
    levels[i] = (int32_t)value;
    node = json_next(&reader->json, node);
  }
  return levels;
}

static int are_alike(const Tensor *a, const Tensor *b) {
  return a->space == b->space && a->token_dims == b->token_dims &&
         a->dl.dtype.code == b->dl.dtype.code && a->dl.dtype.bits == b->dl.dtype.bits &&
         a->stage == b->stage && a->dl.ndim == b->dl.ndim && !memcmp(a->shape, b->shape, sizeof a->shape);
}

static DLTensor *const *read_tensor_of_level(Reader *reader, const Node *indexes) {
  Plan *plan = reader->plan;
  if (indexes->kind != '[' || indexes->children != plan->levels) return NULL;
  DLTensor **tensors = allocate(plan, plan->levels, sizeof *tensors);
  const Tensor *first = NULL;
  const Node *node = indexes + 1;
  for (int i = 0; tensors && i < plan->levels; i++) {
    int64_t index;
    if (!json_integer(node, 0, plan->tensor_count - 1, &index)) return NULL;
    Tensor *tensor = &plan->tensors[index];
    if (!first) first = tensor;
    if (!are_alike(first, tensor)) return NULL;
    tensors[i] = &tensor->dl;
    node = json_next(&reader->json, node);
  }
  return tensors;
}

static int read_argument(Reader *reader, const Node *node, Any *slot, StepList *list) {
  Plan *plan = reader->plan;
  int64_t value;
  slot->kind = KIND_INT;
  if (json_integer(node, 0, plan->tensor_count - 1, &value)) {
    slot->kind = KIND_TENSOR;
    slot->value.pointer = &plan->tensors[value].dl;
    return 1;
  }
  const Node *constant = json_get(&reader->json, node, "const");
  if (constant) return json_integer(constant, INT32_MIN, INT32_MAX, &slot->value.integer);
  ArgumentPatch patch = {.slot = slot, .kind = PATCH_TOKENS};
  const Node *levels = json_get(&reader->json, node, "level");
  const Node *indexes = json_get(&reader->json, node, "tensors");
  if (indexes) {
    patch.kind = PATCH_TENSOR;
    patch.tensors = read_tensor_of_level(reader, indexes);
    if (!patch.tensors) return 0;
    slot->kind = KIND_TENSOR;
    list->tensor_patches++;
  } else if (levels) {
    patch.kind = PATCH_LEVEL;
    patch.levels = read_level(reader, levels);
    if (!patch.levels) return 0;
  } else if (json_is(node, "position") || read_stage(reader, node, "position", &patch.stage)) {
    patch.kind = PATCH_POSITION;
  } else if (json_is(node, "sharpness")) {
    patch.kind = PATCH_SHARPNESS;
  } else if (!json_is(node, "tokens") && !read_stage(reader, node, "tokens", &patch.stage)) {
    return 0;
  }
  list->patches[list->patch_count++] = patch;
  return 1;
}

static int read_step(Reader *reader, const Node *node, Any *args, StepList *list) {
  Step *step = &list->steps[list->step_count++];
  int64_t kernel;
  const Node *index = json_get(&reader->json, node, "kernel");
  const Node *note = json_get(&reader->json, node, "note");
  const Node *arg = json_get(&reader->json, node, "args");
  if (!json_integer(index, 0, kernel_count - 1, &kernel)) return 0;
  if (!note || note->kind != '"' || !arg || arg->kind != '[') return 0;
  *step = (Step){.kernel = &kernel_table[kernel], .args = args, .count = arg->children,
                 .note = note->text, .note_length = note->length};
  const Node *child = arg + 1;
  for (int i = 0; i < step->count; i++) {
    if (!read_argument(reader, child, &args[i], list)) return 0;
    child = json_next(&reader->json, child);
  }
  return 1;
}

/* The numbers that kernels read from memory; each is an argument that is no tensor. */
static int read_state(Reader *reader, const Node *list) {
  Plan *plan = reader->plan;
  if (!list) return MR_OK;
  if (list->kind != '[') return bad("no list of state", 0);
  int count = list->children;
  plan->slots = allocate(plan, count, sizeof *plan->slots);
  plan->numbers = allocate(plan, count, SLOT_BYTES);
  plan->slot_patches.patches = allocate(plan, count, sizeof *plan->slot_patches.patches);
  if (!plan->slots || !plan->numbers || !plan->slot_patches.patches) return no_memory();
  const Node *node = list + 1;
  for (; plan->slot_count < count; plan->slot_count++) {
    Any *slot = &plan->slots[plan->slot_count];
    if (!read_argument(reader, node, slot, &plan->slot_patches) || slot->kind != KIND_INT) {
      return bad("bad state", plan->slot_count);
    }
    node = json_next(&reader->json, node);
  }
  plan->bytes[STATE] = (int64_t)count * SLOT_BYTES;
  return MR_OK;
}

static int read_pruned(Reader *reader, const Node *list) {
  Plan *plan = reader->plan;
  plan->stage_count = 1;
  if (!list) return MR_OK;
  if (list->kind != '[' || list->children >= MAX_STAGES) return bad("no list of prunings", 0);
  const Node *node = list + 1;
  for (int i = 0; i < list->children; i++) {
    if (!json_integer(node, 0, MOST_PRUNED, &plan->pruned[i])) return bad("bad pruning", i);
    node = json_next(&reader->json, node);
  }
  plan->stage_count += list->children;
  return MR_OK;
}

static int count_arguments(Reader *reader, const Node *steps) {
  int count = 0;
  const Node *node = steps + 1;
  for (int i = 0; i < steps->children; i++) {
    const Node *args = json_get(&reader->json, node, "args");
    if (args) count += args->children;
    node = json_next(&reader->json, node);
  }
  return count;
}

static int read_function(Reader *reader, const Node *functions, int index) {
  Plan *plan = reader->plan;
  StepList *list = &plan->functions[index];
  const Node *steps = json_get(&reader->json, functions, function_names[index]);
  if (!steps || steps->kind != '[') {
    return fail(MR_ARTIFACT, "the plan is damaged: no function %s", function_names[index]);
  }
  int count = count_arguments(reader, steps);
  Any *args = allocate(plan, count, sizeof *args);
  list->steps = allocate(plan, steps->children, sizeof *list->steps);
  list->patches = allocate(plan, count, sizeof *list->patches);
  if (!args || !list->steps || !list->patches) return no_memory();
  const Node *node = steps + 1;
  for (int i = 0; i < steps->children; i++) {
    if (!read_step(reader, node, args, list)) {
      return fail(MR_ARTIFACT, "the plan is damaged: bad step %d of %s", i, function_names[index]);
    }
    args += list->steps[i].count;
    node = json_next(&reader->json, node);
  }
  return MR_OK;
}

static int read_candidates(Reader *reader, const Node *node) {
  int64_t index = 0;
  int good = !node || (json_integer(node, 0, reader->plan->tensor_count - 1, &index) &&
                       candidates_use(reader->plan, &reader->plan->tensors[index]));
  return good ? MR_OK : bad("bad candidates", (int)index);
}

static int read_root(Reader *reader) {
  const Node *root = reader->json.nodes, *functions = json_get(&reader->json, root, "functions");
  int error = read_numbers(reader, root);
  if (!error) error = read_kernels(reader, json_get(&reader->json, root, "kernels"));
  if (!error) error = read_pruned(reader, json_get(&reader->json, root, "pruned"));
  if (!error) error = read_state(reader, json_get(&reader->json, root, "state"));
  if (!error) error = read_tensors(reader, json_get(&reader->json, root, "tensors"));
  if (!error) error = read_candidates(reader, json_get(&reader->json, root, "candidates"));
  json_integer(json_get(&reader->json, root, "cache_offset"), 0, 255, &reader->plan->cache_offset);
  for (int i = 0; !error && i < FUNCTIONS; i++) error = read_function(reader, functions, i);
  if (error) return error;
  Plan *plan = reader->plan;
  int count = plan->functions[DECODE].tensor_patches ? (int)plan->levels : 1;
  plan->kept = allocate(plan, count, sizeof *plan->kept);
  if (!plan->kept) return no_memory();
  plan->kept_count = count;
  return MR_OK;
}

int plan_read(Plan *plan, const char *text, size_t length) {
  Reader reader = {.plan = plan};
  int error = json_parse(&reader.json, "the plan", text, length);
  if (error) return error;
  error = read_root(&reader);
  json_free(&reader.json);
  return error;
}

void plan_bind(Plan *plan, void *const bases[SPACES]) {
  for (int i = 0; i < plan->tensor_count; i++) {
    Tensor *tensor = &plan->tensors[i];
    char *base = bases[tensor->space];
    if (base) tensor->dl.data = base + tensor->offset;
  }
  plan->state = bases[STATE];
}

void plan_free(Plan *plan) {
  for (int i = 0; i < plan->kept_count; i++) {
    if (plan->kept[i]) device_forget(plan->kept[i]);
  }
  while (plan->blocks) {
    Block *block = plan->blocks;
    plan->blocks = block->next;
    free(block->memory);
    free(block);
  }
}
