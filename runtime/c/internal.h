/* What the files of the C runtime share: the ABI of generated kernels, errors, JSON, plan, pool. */
#ifndef MORENDO_INTERNAL_H
#define MORENDO_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "morendo.h"

/* The ABI of generated kernels, as in dlpack/dlpack.h and tvm/ffi/c_api.h. */
enum { KIND_NONE = 0, KIND_INT = 1, KIND_TENSOR = 7 };
enum { DEVICE_CPU = 1, CODE_INT = 0, CODE_UINT = 1, CODE_FLOAT = 2, CODE_BOOL = 6 };

typedef struct {
  void *data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  int64_t *shape;
  int64_t *strides; /* in elements */
  uint64_t byte_offset;
} DLTensor;

typedef struct {
  int32_t kind;
  uint32_t zero;
  union {
    int64_t integer;
    void *pointer;
    uint64_t bits; /* keeps the value 8 bytes wide where pointers have 4 */
  } value;
} Any;

typedef int (*Kernel)(void *self, const Any *args, int32_t count, Any *result);

/* Generated for each model from its plan: plan kernel i is kernel_table[i]. */
typedef struct {
  const char *name;
  Kernel call;
} KernelEntry;
extern const KernelEntry kernel_table[];
extern const int kernel_count;
extern const char plan_text[]; /* plan.json */
/* What the CPU must have, as its kernel spells it, up to a null pointer. */
extern const char *const needed_cpu_flags[];

/* The target's own: whether the CPU has a flag; one that it does not know counts as missing. */
int cpu_has(const char *flag);

/* error.c: formats this thread's error line and returns `code`. */
int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* json.c: the nodes of a document in one array, each followed by its children. An object's
 * children are key, value, key, value... Texts point into the document, escapes left in. */
typedef struct {
  char kind; /* one of { [ " 0 (number) l (literal) */
  int children, next; /* next: index of the node after this one's last child */
  const char *text;
  int length;
} Node;

typedef struct {
  const char *name; /* what messages call the document */
  const char *cursor, *end;
  Node *nodes;
  int count, capacity, depth;
} Json;

int json_parse(Json *json, const char *name, const char *text, size_t length);
void json_free(Json *json);
const Node *json_get(const Json *json, const Node *object, const char *key);
const Node *json_next(const Json *json, const Node *node);
int json_is(const Node *node, const char *text);
int json_integer(const Node *node, int64_t low, int64_t high, int64_t *out);

/* plan.c: the plan with its argument arrays, built once.
 *
 * What changes from call to call is an argument, or a number in the memory of the device that
 * kernels read from the space "state": a kernel call can then be kept as it is. */
enum { MAX_DIMS = 6, MAX_THREADS = 256, PLAN_VERSION = 2, SLOT_BYTES = 64 };
/* Layers of a prefill between two prunings of tokens are a stage; stage 0 has all tokens. Shares
 * of tokens are parts of PRUNE_UNIT. */
enum { MAX_STAGES = 9, PRUNE_UNIT = 10000, MOST_PRUNED = PRUNE_UNIT / 2 };
enum Space { ARENA, WEIGHTS, CACHE, IDS, LOGITS, STATE, SPACES };
enum Function { PREFILL, SCORE, DECODE, FUNCTIONS };
enum Patch { PATCH_TOKENS, PATCH_POSITION, PATCH_LEVEL, PATCH_TENSOR, PATCH_SHARPNESS };

typedef struct {
  DLTensor dl;
  int64_t shape[MAX_DIMS], strides[MAX_DIMS];
  uint8_t token_dims; /* bit i: dimension i is the number of tokens of the call, */
  uint8_t stage;      /* in this stage */
  uint8_t space;
  uint64_t offset;
} Tensor;

typedef struct {
  Any *slot;
  const int32_t *levels;    /* of PATCH_LEVEL: the number at each level, */
  DLTensor *const *tensors; /* of PATCH_TENSOR: the tensor */
  enum Patch kind;
  int stage; /* of PATCH_TOKENS and PATCH_POSITION */
} ArgumentPatch;

typedef struct {
  const KernelEntry *kernel;
  Any *args;
  int count, note_length;
  const char *note;
  double seconds; /* spent while profiling */
} Step;

typedef struct {
  Step *steps;
  ArgumentPatch *patches;
  int step_count, patch_count;
  int tensor_patches; /* of the patches: what nothing but the level decides */
} StepList;

typedef struct Block Block;

typedef struct {
  int64_t chunk, context, vocabulary, levels;
  int64_t bytes[SPACES]; /* of each space */
  Tensor *tensors;
  Tensor **varying; /* tensors whose shape changes from call to call */
  int tensor_count, varying_count;
  int64_t pruned[MAX_STAGES]; /* of the tokens of stage i, how many parts stage i + 1 lacks */
  int stage_count;
  /* Where DECODE leaves the likeliest tokens for whoever draws one, or NULL; then it leaves the
   * likeliest in IDS, or -1. */
  const Tensor *candidates;
  int32_t sharpness; /* the bits of the float by which DECODE weighs tokens; 0: nobody draws */
  int64_t cache_offset; /* what codes of 8 bits in the cache have added to them */
  StepList functions[FUNCTIONS];
  /* By the device: steps of DECODE that it can run without being called, one for all levels, or
   * one for each where levels have tensors of their own. */
  void **kept;
  int kept_count;
  int profile; /* add up the seconds of each step */
  mr_trace trace; /* sees the arguments after each step, or NULL */
  void *trace_data;
  /* The space of numbers: SLOT_BYTES for each, where the device has it and here. */
  void *state;
  Any *slots;
  StepList slot_patches;
  char *numbers;
  int slot_count;
  Block *blocks; /* all memory of the plan */
} Plan;

extern const char *const function_names[FUNCTIONS];
int plan_read(Plan *plan, const char *text, size_t length); /* points into `text` afterwards */
void plan_bind(Plan *plan, void *const bases[SPACES]);
void plan_free(Plan *plan);

/* stages.c: how many tokens each stage has, and how long its caches are. */

/* Fills in the dimensions that are the number of tokens and the strides; returns the size in
 * bytes, or INT64_MAX if that is no number. */
int64_t tensor_set_shape(Tensor *tensor, const int tokens[MAX_STAGES]);

/* The tokens of each stage in a call of `tokens`. */
void stage_counts(const Plan *plan, enum Function function, int tokens, int counts[MAX_STAGES]);

/* How many tokens the caches of each later stage hold of a text of so many positions, or -1 inside
 * of a prefill whose tokens were pruned. */
typedef struct {
  int *held[MAX_STAGES]; /* of stage 1 and later, at positions 0 to context */
} StageLengths;

/* The stage whose tokens a tensor of the cache holds. */
int stage_of_cache(const Plan *plan, const Tensor *cache);
int lengths_make(StageLengths *lengths, const Plan *plan);
void lengths_free(StageLengths *lengths);
/* The slots of every stage that a text of `position` tokens fills; refuses a position that the
 * caches cannot go back to. */
int lengths_at(const StageLengths *lengths, const Plan *plan, int position, int held[MAX_STAGES]);
/* Adds a call to the text of `position` tokens. */
void lengths_add(StageLengths *lengths, const Plan *plan, int position,
                 const int counts[MAX_STAGES]);

/* plan_run.c */

/* What may end a call before its next step. */
typedef struct {
  atomic_int cancelled;
  int (*poll)(void *data); /* asked every POLL_SECONDS, or NULL */
  void *data;
  double next; /* when it is asked again */
} Interrupt;

/* Runs a function on the tokens of each stage, behind those that its caches hold.
 * Stops before the next step, with MR_CANCELLED, once `interrupt` says so. */
int plan_run(Plan *plan, enum Function function, const int tokens[MAX_STAGES],
             const int positions[MAX_STAGES], int level, Interrupt *interrupt);

/* candidates.c: the likeliest tokens, as the plan's DECODE leaves them. */
enum { CANDIDATES = MR_CANDIDATES };
typedef struct {
  float logit, weight;
  int32_t id;
} Choice;
int candidates_use(Plan *plan, const Tensor *found); /* whether a tensor can have them */
/* The likeliest tokens, by logit and then by id, and the weight of all tokens. */
int candidates_read(const Plan *plan, Choice all[CANDIDATES], int *count, double *total);

/* sampler.c: drawing of a few. */

/* What logits are multiplied with for the weights that `sampler_choose` asks for; 0 where it asks
 * for the likeliest token alone, below 0 where it needs all tokens. */
float sampler_sharpness(const mr_sampler *sampler);
/* Draws as `mr_sample` does, of tokens that are the first by logit and then by id, where these
 * decide: the id is -1 where they do not. Changes them.
 * total: the weight of all tokens, e^((logit - the largest) sharpness) each. */
int sampler_choose(mr_sampler *sampler, Choice *all, int count, double total, int32_t *id);

/* weights.c: weights.bin of a directory, which must have `bytes` bytes; the same memory for all
 * sessions of the process that open that file. */
int weights_load(const char *dir, int64_t bytes, void **memory);
void weights_release(void *memory);

/* text.c: what a session remembers as bytes that a session of another machine can go on from. */
int64_t text_bytes(const Plan *plan);
int text_read(const Plan *plan, const void *cache, int position, char *text);
/* Gives the position behind the text. */
int text_write(const Plan *plan, void *cache, const char *text, int64_t bytes, int *position);

/* pool.c */
void pool_use(int threads);

/* cpus.c: CPUs that this process may use; the least of `most` and the quotas below ROOT/sys. */
int usable_cpus(void);
int quota_cpus(const char *root, int most);

#endif
