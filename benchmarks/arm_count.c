/* A plugin of qemu's user mode: how often each block of instructions ran, as lines of address,
 * instructions of the block, times. For programs of one thread: counts are not atomic.
 *
 * The functions are those of version 1 of qemu's plugin interface (qemu 6 to 8), declared here
 * because distributions do not ship its header. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct block;
struct instruction;
enum { INTERFACE = 1, ADD_U64 = 0, MOST = 1 << 18 };

size_t qemu_plugin_tb_n_insns(const struct block *block);
uint64_t qemu_plugin_tb_vaddr(const struct block *block);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*call)(uint64_t, struct block *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *block, int operation, void *where,
                                              uint64_t value);
void qemu_plugin_register_atexit_cb(uint64_t id, void (*call)(uint64_t, void *), void *data);
void qemu_plugin_outs(const char *text);

__attribute__((visibility("default"))) int qemu_plugin_version = INTERFACE;

static struct {
  uint64_t address, size, times;
} blocks[MOST];
static int count;

static void translated(uint64_t id, struct block *block) {
  (void)id;
  if (count == MOST) {
    fprintf(stderr, "arm_count: the program has more than %d blocks\n", MOST);
    exit(1);
  }
  blocks[count].address = qemu_plugin_tb_vaddr(block);
  blocks[count].size = qemu_plugin_tb_n_insns(block);
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &blocks[count++].times, 1);
}

static void finished(uint64_t id, void *data) {
  char line[80];
  (void)id, (void)data;
  for (int i = 0; i < count; i++) {
    if (!blocks[i].times) continue;
    snprintf(line, sizeof line, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", blocks[i].address,
             blocks[i].size, blocks[i].times);
    qemu_plugin_outs(line);
  }
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info,
                                                               int argc, char **argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
