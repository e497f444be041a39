/* A plugin of qemu-hexagon 7.2 that counts instruction packets: what the cost model is fed with.
 *
 *     cc -shared -fPIC -O2 -o packets.so packets.c
 *     qemu-hexagon -plugin ./packets.so -d plugin -D counts.txt MODEL/run "Once upon a time"
 *
 * One line a function, most packets first: packets, instructions, packets with HVX, with a dot
 * product of bytes, dot products, bytes of vectors read or written, the function's name. qemu sees a
 * packet as an instruction. One guest thread. The declarations are those of qemu's interface for
 * plugins, version 1, which Debian packages no header of. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t PluginId;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*BlockCallback)(PluginId, struct qemu_plugin_tb *);
typedef void (*ExitCallback)(PluginId, void *);
enum { INLINE_ADD_U64 = 0 };
extern void qemu_plugin_register_vcpu_tb_trans_cb(PluginId, BlockCallback);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *,
                                                     uint64_t);
extern void qemu_plugin_register_atexit_cb(PluginId, ExitCallback, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
extern const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *);
extern void qemu_plugin_outs(const char *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { PACKETS, INSTRUCTIONS, HVX, WITH_DOT, DOTS, VECTOR_BYTES, COUNTS };
enum { SLOTS = 1 << 16, VECTOR = 128, LINE = 600 };
typedef struct {
  char *name;
  uint64_t counts[COUNTS];
} Function;

static Function *functions[SLOTS];
static Function total = {"TOTAL", {0}};

static Function *find(const char *name) {
  uint32_t hash = 5381;
  for (const char *c = name; *c; c++) hash = hash * 33 + (unsigned char)*c;
  uint32_t slot = hash % SLOTS;
  while (functions[slot] && strcmp(functions[slot]->name, name)) slot = (slot + 1) % SLOTS;
  if (!functions[slot]) {
    functions[slot] = calloc(1, sizeof(Function));
    if (!functions[slot] || !(functions[slot]->name = strdup(name))) abort();
  }
  return functions[slot];
}

/* Classes by the encoding (Hexagon V66 HVX Programmer's Reference Manual, instruction classes). */
static int is_vector_memory(uint32_t word) {
  uint32_t top = word >> 24;
  return top == 0x28 || top == 0x29 || top == 0x2b;
}

static int is_vector(uint32_t word) {
  return word >> 28 == 1 && word >> 24 >= 0x18;
}

/* Vx.w += vrmpy(Vu.ub, Rt.b), the only one that kernels make. */
static int is_dot(uint32_t word) { return (word & 0xffe020e0) == 0x190020a0; }

static void count_packet(const struct qemu_plugin_insn *packet, uint64_t *counts) {
  const char *words = qemu_plugin_insn_data(packet);
  int vectors = 0, dots = 0;
  for (size_t at = 0; at + 4 <= qemu_plugin_insn_size(packet); at += 4) {
    uint32_t word;
    memcpy(&word, words + at, sizeof word);
    if (word >> 28 == 0 && (word >> 14 & 3)) continue; /* an extender of the next constant */
    counts[INSTRUCTIONS]++;
    dots += is_dot(word);
    vectors += is_vector(word) || is_vector_memory(word);
    counts[VECTOR_BYTES] += is_vector_memory(word) ? VECTOR : 0;
  }
  counts[PACKETS]++;
  counts[HVX] += vectors > 0;
  counts[WITH_DOT] += dots > 0;
  counts[DOTS] += (uint64_t)dots;
}

static void on_block(PluginId id, struct qemu_plugin_tb *block) {
  (void)id;
  size_t packets = qemu_plugin_tb_n_insns(block);
  if (!packets) return;
  const char *name = qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(block, 0));
  Function *function = find(name ? name : "?");
  uint64_t counts[COUNTS] = {0};
  for (size_t i = 0; i < packets; i++) count_packet(qemu_plugin_tb_get_insn(block, i), counts);
  for (int i = 0; i < COUNTS; i++) {
    if (!counts[i]) continue;
    void *places[] = {&function->counts[i], &total.counts[i]};
    for (int k = 0; k < 2; k++) {
      qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, places[k], counts[i]);
    }
  }
}

static int by_packets(const void *a, const void *b) {
  uint64_t x = (*(Function *const *)a)->counts[PACKETS];
  uint64_t y = (*(Function *const *)b)->counts[PACKETS];
  return (x < y) - (x > y);
}

static void print(const Function *one) {
  char line[LINE];
  int used = 0;
  for (int i = 0; i < COUNTS; i++) {
    used += snprintf(line + used, sizeof line - (size_t)used, "%llu\t",
                     (unsigned long long)one->counts[i]);
  }
  snprintf(line + used, sizeof line - (size_t)used, "%.400s\n", one->name);
  qemu_plugin_outs(line);
}

static void on_exit_(PluginId id, void *data) {
  (void)id, (void)data;
  static Function *found[SLOTS];
  size_t count = 0;
  for (int i = 0; i < SLOTS; i++) {
    if (functions[i]) found[count++] = functions[i];
  }
  qsort(found, count, sizeof *found, by_packets);
  qemu_plugin_outs("packets\tinstructions\thvx\twith dot\tdots\tvector bytes\tfunction\n");
  print(&total);
  for (size_t i = 0; i < count; i++) print(found[i]);
}

__attribute__((visibility("default"))) int qemu_plugin_install(PluginId id, const void *info,
                                                               int count, char **options) {
  (void)info, (void)count, (void)options;
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
  qemu_plugin_register_atexit_cb(id, on_exit_, NULL);
  return 0;
}
