/* What kernels with a copy stage call (on_chip.py). These are plain copies: neither an emulator nor
 * an app's process has the memory beside the vector units (VTCM) or its DMA.
 *
 * A shell that has both puts its own file in the place of this one: on_chip_copy queues a descriptor
 * (dmlink) and on_chip_wait waits (dmwait) until no more than `left` copies are under way, the
 * latest. The ring that kernels copy into is scratch memory of backend.c. Not run on hardware. */
#include <stdint.h>
#include <string.h>

void on_chip_copy(void *to, const void *from, int32_t bytes) {
  memcpy(to, from, (size_t)bytes);
}

void on_chip_wait(int32_t left) { (void)left; }
