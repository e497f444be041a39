/* The machine that runs CUDA C++ on the CPU: blocks, warps, barriers; slow and strict. `language.h` has
 * what kernels call.
 *
 * Blocks run one after the other, the threads of a block are fibers on one OS thread. A fiber runs until
 * it meets a barrier, a shuffle or a matrix product, so a run is deterministic. What real hardware leaves
 * open is a knob, and a right kernel gives the same bits for every setting:
 *   order  0 lanes and warps ascending, 1 descending, else a seed for a shuffled order
 *   late   1 asynchronous copies arrive when they are waited for (their place holds poison until then),
 *          0 they arrive at once. A read before the wait shows in the first, a buffer that is
 *          overwritten while others still read it in the second. Products of warpgroups are made when
 *          they are waited for (their sums hold poison until then), or at once.
 */
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#include <vector>

struct mr_dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace mr {

enum { WARP = 32, STACK = 128 << 10, MAX_THREADS = 1024, POISON = 0xFF };

struct Copy {
  void *to;
  const void *from;
  unsigned bytes, group;
};

/* What a thread has put into shared memory, which products of warpgroups do not see yet. */
struct Hidden {
  const void *at;
  unsigned bytes;
};

/* A product of warpgroups on the way; `d` holds poison until it is waited for. */
struct Product {
  float *d;
  int tokens;
  const unsigned *a;
  const char *b;
  int leading;
};

struct Sums {
  float *at;
  std::vector<float> before;
};

struct Barrier {
  unsigned generation = 0, arrived = 0;
};

/* Lanes that do something together: all of a warp, or those of a mask. */
struct Group : Barrier {
  unsigned mask = 0;
  alignas(64) unsigned char slot[2][WARP][64]; /* two sets in turns, so that one barrier is enough */
};

struct Warp {
  unsigned alive = 0, converged = 0; /* masks of lanes; converged counts answers to __activemask */
  std::vector<Group *> groups;
};

struct Fiber {
  void *stack_pointer = nullptr;
  unsigned *waits_for = nullptr, seen = 0; /* runnable when null or changed */
  bool done = false;
  bool asks_mask = false;
  unsigned lane = 0, group = 0, active = 0;
  mr_dim3 thread;
  Warp *warp = nullptr;
  std::vector<Copy> copies;
  std::vector<Hidden> hidden;
  std::vector<Product> products;
  std::vector<Sums> sums;
  bool may_multiply = false; /* a fence of registers stands before */
  unsigned committed = 0;    /* products that are waited for */
};

struct Block {
  mr_dim3 grid, block, index;
  unsigned threads = 0, alive = 0;
  Barrier barrier;
  Fiber fibers[MAX_THREADS];
  Warp warps[MAX_THREADS / WARP];
  char *stacks = nullptr, *shared = nullptr;
  size_t shared_bytes = 0;
  void *scheduler = nullptr;
  void (*body)(void *) = nullptr;
  void *body_argument = nullptr;
  const char *kernel = "";
  std::vector<void *> poisoned; /* static arrays of shared memory that this block has met */
  int order = 0, late = 1;
};

inline Block block; /* one launch at a time */
inline Fiber *self;

[[noreturn]] inline void die(const char *what) {
  fprintf(stderr, "emulator: %s in %s, block (%u,%u,%u), thread (%u,%u,%u)\n", what, block.kernel,
          block.index.x, block.index.y, block.index.z, self ? self->thread.x : 0,
          self ? self->thread.y : 0, self ? self->thread.z : 0);
  abort();
}

/* Fibers: saves the callee-saved registers on the stack and takes another stack (x86-64). */
extern "C" void mr_switch(void **save, void *to);
asm(R"(
.text
.weak mr_switch
mr_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");

inline void yield() { mr_switch(&self->stack_pointer, block.scheduler); }

inline void wait_while(unsigned *counter) {
  self->waits_for = counter;
  self->seen = *counter;
  yield();
}

inline bool complete(Barrier &barrier, unsigned expected) {
  if (barrier.arrived < expected || !barrier.arrived) return false;
  barrier.arrived = 0;
  barrier.generation++;
  return true;
}

/* True for the one that arrives last. */
inline bool arrive(Barrier &barrier, unsigned expected) {
  barrier.arrived++;
  if (complete(barrier, expected)) return true;
  wait_while(&barrier.generation);
  return false;
}

inline void fiber_main() {
  block.body(block.body_argument);
  for (const Copy &copy : self->copies) (void)copy, die("asynchronous copies nobody waited for");
  if (!self->products.empty()) die("products nobody waited for");
  self->done = true;
  self->warp->alive &= ~(1u << self->lane);
  block.alive--;
  complete(block.barrier, block.alive);
  yield();
  die("a finished thread was resumed");
}

inline void start(Fiber &fiber, unsigned index) {
  fiber.done = false;
  fiber.waits_for = nullptr;
  fiber.group = 0;
  fiber.asks_mask = false;
  fiber.copies.clear();
  fiber.hidden.clear();
  fiber.products.clear();
  fiber.sums.clear();
  fiber.may_multiply = false;
  fiber.committed = 0;
  fiber.lane = index % WARP;
  fiber.warp = &block.warps[index / WARP];
  fiber.thread = {index % block.block.x, index / block.block.x % block.block.y,
                  index / (block.block.x * block.block.y)};
  void **top = (void **)(block.stacks + (size_t)(index + 1) * STACK);
  *--top = nullptr; /* keeps the stack aligned as after a call */
  *--top = (void *)fiber_main;
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.stack_pointer = top;
}

inline unsigned place(unsigned i, unsigned count) { /* where the i-th turn goes */
  if (block.order == 0) return i;
  if (block.order == 1) return count - 1 - i;
  return (unsigned)((i * 2654435761u + (unsigned)block.order * 40503u) % count); /* may repeat: fair over rounds */
}

inline bool turn(unsigned index) {
  Fiber &fiber = block.fibers[index];
  if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.seen)) return false;
  fiber.waits_for = nullptr;
  self = &fiber;
  mr_switch(&block.scheduler, fiber.stack_pointer);
  return true;
}

/* No lane of a warp can go on: those that wait in __activemask are what is active there. */
inline bool answer_masks(Warp &warp, unsigned first, unsigned lanes) {
  unsigned mask = 0;
  for (unsigned lane = 0; lane < lanes; lane++)
    if (block.fibers[first + lane].asks_mask) mask |= 1u << lane;
  for (unsigned lane = 0; lane < lanes; lane++)
    if (mask >> lane & 1) block.fibers[first + lane].active = mask, block.fibers[first + lane].asks_mask = false;
  if (mask) warp.converged++;
  return mask;
}

inline void run_block() {
  unsigned warps = (block.threads + WARP - 1) / WARP;
  block.alive = block.threads;
  block.barrier = {};
  for (unsigned w = 0; w < warps; w++) {
    block.warps[w].alive = 0;
    for (Group *group : block.warps[w].groups) delete group;
    block.warps[w].groups.clear();
  }
  for (unsigned i = 0; i < block.threads; i++) start(block.fibers[i], i), block.fibers[i].warp->alive |= 1u << i % WARP;
  memset(block.shared, POISON, block.shared_bytes);
  block.poisoned.clear();
  while (block.alive) {
    bool moved = false;
    for (unsigned i = 0; i < warps; i++) {
      unsigned first = place(i, warps) * WARP;
      unsigned lanes = block.threads - first < WARP ? block.threads - first : WARP;
      for (bool again = true; again;) {
        again = false;
        for (unsigned lane = 0; lane < lanes; lane++) again |= turn(first + place(lane, lanes));
        if (!again) again = answer_masks(block.warps[first / WARP], first, lanes);
        moved |= again;
      }
    }
    if (!moved) { /* repeated places of a shuffled order may have left some out */
      for (unsigned i = 0; i < block.threads; i++) moved |= turn(i);
      if (!moved) die("deadlock: not all threads came to a barrier");
    }
  }
}

/* Memory that ends, but for alignment, where a page begins that nobody may touch. */
inline void *guarded(size_t bytes) {
  size_t pages = (bytes + 4095) / 4096 * 4096;
  char *memory = (char *)mmap(nullptr, pages + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(memory + pages, 4096, PROT_NONE);
  return memory + pages - (bytes + 15) / 16 * 16;
}

/* Shared arrays are such memory, kept from block to block: the first thread of a block that meets one fills it with poison. */
inline void poison(void *array, size_t bytes) {
  for (void *known : block.poisoned)
    if (known == array) return;
  memset(array, POISON, bytes);
  block.poisoned.push_back(array);
}

inline Group &group_of(unsigned mask) {
  mask &= self->warp->alive;
  if (!(mask >> self->lane & 1)) die("a lane outside the mask of its warp operation");
  for (Group *group : self->warp->groups)
    if (group->mask == mask) return *group;
  Group *group = new Group;
  group->mask = mask;
  self->warp->groups.push_back(group);
  return *group;
}

inline void meet(unsigned mask) {
  Group &group = group_of(mask);
  arrive(group, (unsigned)__builtin_popcount(group.mask));
}

inline unsigned active_mask() {
  self->asks_mask = true;
  wait_while(&self->warp->converged);
  return self->active;
}

/* The value of another lane; this one's where the source takes no part. */
template <class T> inline T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 64);
  Group &group = group_of(mask);
  unsigned char(*set)[64] = group.slot[group.generation & 1];
  memcpy(set[self->lane], &value, sizeof value);
  arrive(group, (unsigned)__builtin_popcount(group.mask));
  T result = value;
  if (source < WARP && group.mask >> source & 1) memcpy(&result, set[source], sizeof result);
  return result;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*(std::remove_reference_t<A> *)arguments[I]...);
}

template <class... A>
void launch(const char *name, void (*kernel)(A...), mr_dim3 grid, mr_dim3 threads, unsigned shared_bytes,
            void **arguments) {
  struct Bound {
    void (*kernel)(A...);
    void **arguments;
  } bound = {kernel, arguments};
  if (!block.stacks) {
    block.stacks = (char *)mmap(nullptr, (size_t)MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  block.threads = threads.x * threads.y * threads.z;
  if (!block.threads || block.threads > MAX_THREADS) die("bad number of threads");
  size_t pages = (shared_bytes + 4095) / 4096 * 4096; /* shared memory ends where a guard page begins */
  char *memory = (char *)mmap(nullptr, pages + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(memory + pages, 4096, PROT_NONE);
  block.shared = memory + pages - (shared_bytes + 15) / 16 * 16;
  block.shared_bytes = shared_bytes;
  block.kernel = name;
  block.grid = grid;
  block.block = threads;
  block.body = [](void *argument) {
    Bound *b = (Bound *)argument;
    call(b->kernel, b->arguments, std::index_sequence_for<A...>{});
  };
  block.body_argument = &bound;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        block.index = {x, y, z};
        run_block();
      }
  munmap(memory, pages + 4096);
}

/* Matrix products: lanes hand in their fragments, the last to arrive multiplies for all. */
template <class In, class Out, class Multiply> inline Out collective(const In &in, Multiply multiply) {
  Group &group = group_of(~0u);
  unsigned char(*set)[64] = group.slot[group.generation & 1];
  memcpy(set[self->lane], &in, sizeof in);
  if (++group.arrived == WARP) {
    In all[WARP];
    Out out[WARP];
    for (int i = 0; i < WARP; i++) memcpy(&all[i], set[i], sizeof(In));
    multiply(all, out);
    for (int i = 0; i < WARP; i++) memcpy(set[i], &out[i], sizeof(Out));
    complete(group, WARP);
  } else {
    wait_while(&group.generation); /* for ever when the warp is not whole: a deadlock */
  }
  Out result;
  memcpy(&result, set[self->lane], sizeof result);
  return result;
}

} // namespace mr

