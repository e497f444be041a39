/* Where kernels run, and the memory that they work on. Each artifact is linked with one file that
 * implements this: device/host.c, whose kernels work on the memory of the process, or a target's
 * own. What fails has reported why with `fail`, whose code is returned. */
#ifndef MORENDO_DEVICE_H
#define MORENDO_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "morendo.h"

/* The number that kernels find in their tensors (dlpack/dlpack.h). */
extern MR_API const int32_t mr_device_type;

/* Starts the device, once for a process however often it is called. */
int device_open(void);

/* All bytes of a file, to be read by kernels only. */
int device_weights(int file, size_t bytes, void **out);

/* Zeroed memory; `what` says for whom, where there is too little of it. */
int device_memory(size_t bytes, const char *what, void **out);
void device_release(void *memory, size_t bytes);

/* Copies to and from such memory, after all that was asked for before. */
int device_write(void *to, const void *from, size_t bytes);
int device_read(void *to, const void *from, size_t bytes);

/* The steps between the two may be kept, in `kept`, to run without being called one by one when
 * they are asked for again with the same arguments. */
enum { RUN_STEPS = 0, STEPS_RAN = -1 };
int device_begin(void **kept); /* RUN_STEPS, STEPS_RAN when they were kept, or an error */
int device_finish(void **kept, int good); /* good: no step failed */
int device_wait(void); /* until all steps so far are done */
void device_forget(void *kept);

#endif
