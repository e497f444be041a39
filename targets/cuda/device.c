/* Kernels on a GPU through NVIDIA's driver, which is loaded when the first session opens. The host
 * halves of kernels find their device halves here by name, and launch them on one stream. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "device.h"
#include "internal.h"

enum { DEVICE_CUDA = 2, KIND_FLOAT = 3, MOST_PARAMETERS = 64, SIZES = 7 };
enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, RELAXED_CAPTURE = 2, NON_BLOCKING = 1 };
enum { NO_BINARY = 209, BAD_PTX = 218, OLD_PTX_COMPILER = 222 };

/* Generated: device functions, the module that each is in, and the images of the modules. */
typedef struct {
  const char *name, *parameters, *sizes; /* as `Launch` of device_code.py says */
  int module;
} DeviceFunction;
typedef struct {
  int module, capability; /* 80 for 8.0 */
  int portable;           /* PTX, which later GPUs take too */
  const unsigned char *data;
} DeviceImage;
extern const DeviceFunction device_functions[];
extern const int device_function_count;
extern const DeviceImage device_images[];
extern const int device_image_count, device_module_count;

typedef int Result;
typedef uintptr_t Address;

static struct {
  Result (*cuInit)(unsigned);
  Result (*cuDriverGetVersion)(int *);
  Result (*cuDeviceGet)(int *, int);
  Result (*cuDeviceGetAttribute)(int *, int, int);
  Result (*cuDevicePrimaryCtxRetain)(void **, int);
  Result (*cuCtxSetCurrent)(void *);
  Result (*cuMemGetInfo_v2)(size_t *, size_t *);
  Result (*cuMemAlloc_v2)(Address *, size_t);
  Result (*cuMemFree_v2)(Address);
  Result (*cuMemsetD8Async)(Address, unsigned char, size_t, void *);
  Result (*cuMemcpyHtoDAsync_v2)(Address, const void *, size_t, void *);
  Result (*cuMemcpyDtoHAsync_v2)(void *, Address, size_t, void *);
  Result (*cuModuleLoadData)(void **, const void *);
  Result (*cuModuleGetFunction)(void **, void *, const char *);
  Result (*cuLaunchKernel)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                           unsigned, void *, void **, void **);
  Result (*cuStreamCreate)(void **, unsigned);
  Result (*cuStreamSynchronize)(void *);
  Result (*cuStreamBeginCapture_v2)(void *, int);
  Result (*cuStreamEndCapture)(void *, void **);
  Result (*cuGraphInstantiateWithFlags)(void **, void *, unsigned long long);
  Result (*cuGraphDestroy)(void *);
  Result (*cuGraphLaunch)(void *, void *);
  Result (*cuGraphExecDestroy)(void *);
  Result (*cuGetErrorString)(Result, const char **);
} driver;

static const char *const driver_names[] = {
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemsetD8Async",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphDestroy",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGetErrorString",
};

const int32_t mr_device_type = DEVICE_CUDA;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* while the device is started */
static int started, capability;
static void *context, *stream;
static void **modules, **functions;

static int refused(Result result, const char *what) {
  const char *why = NULL;
  if (!result) return MR_OK;
  if (driver.cuGetErrorString) driver.cuGetErrorString(result, &why);
  return fail(MR_RUNTIME, "the GPU failed to %s: %s (CUDA error %d)", what,
              why ? why : "unknown error", result);
}

static int load_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    return fail(MR_ARTIFACT, "this artifact needs an NVIDIA GPU, and its driver is not here (%s); "
                "install the driver, or compile for another target",
                dlerror());
  }
  for (size_t i = 0; i < sizeof driver_names / sizeof *driver_names; i++) {
    void *symbol = dlsym(library, driver_names[i]);
    if (!symbol) {
      return fail(MR_ARTIFACT, "the NVIDIA driver is too old for this artifact (it has no %s)",
                  driver_names[i]);
    }
    memcpy((char *)&driver + i * sizeof symbol, &symbol, sizeof symbol);
  }
  return MR_OK;
}

static int find_gpu(void) {
  int device, major = 0, minor = 0;
  Result result = driver.cuInit(0);
  if (!result) result = driver.cuDeviceGet(&device, 0);
  if (result) {
    const char *why = NULL;
    driver.cuGetErrorString(result, &why);
    return fail(MR_ARTIFACT, "this artifact needs an NVIDIA GPU, and there is none (%s)",
                why ? why : "unknown error");
  }
  int error = refused(driver.cuDeviceGetAttribute(&major, CAPABILITY_MAJOR, device), "answer");
  if (!error) error = refused(driver.cuDeviceGetAttribute(&minor, CAPABILITY_MINOR, device), "answer");
  if (!error) error = refused(driver.cuDevicePrimaryCtxRetain(&context, device), "start");
  if (!error) error = refused(driver.cuCtxSetCurrent(context), "start");
  if (!error) error = refused(driver.cuStreamCreate(&stream, NON_BLOCKING), "start");
  capability = 10 * major + minor;
  return error;
}

/* Machine code runs on later GPUs of the same generation; PTX on all later ones. */
static int fits(const DeviceImage *image) {
  int same = image->capability / 10 == capability / 10;
  return image->capability <= capability && (image->portable || same);
}

/* Machine code of the nearest GPU before PTX. */
static int rank(const DeviceImage *image) {
  return image->capability + (image->portable ? 0 : 1000);
}

static const DeviceImage *choose_image(int module) {
  const DeviceImage *best = NULL;
  for (const DeviceImage *one = device_images; one < device_images + device_image_count; one++) {
    if (one->module != module || !fits(one)) continue;
    if (!best || rank(one) > rank(best)) best = one;
  }
  return best;
}

static int load_module(int module) {
  const DeviceImage *image = choose_image(module), *last = device_images + device_image_count - 1;
  if (!image) {
    return fail(MR_ARTIFACT,
                "this artifact has no code for a GPU of compute capability %d.%d (it has code %s "
                "%d.%d %s); compile it for that GPU",
                capability / 10, capability % 10, last->portable ? "from" : "for",
                device_images->capability / 10, device_images->capability % 10,
                last->portable ? "on" : "alone");
  }
  Result result = driver.cuModuleLoadData(&modules[module], image->data);
  if (result == NO_BINARY || result == BAD_PTX || result == OLD_PTX_COMPILER) {
    int version = 0;
    driver.cuDriverGetVersion(&version);
    return fail(MR_ARTIFACT, "the NVIDIA driver is too old for this artifact (it knows CUDA %d.%d)",
                version / 1000, version % 1000 / 10);
  }
  return refused(result, "load a kernel");
}

static int load_kernels(void) {
  modules = calloc((size_t)device_module_count + 1, sizeof *modules);
  functions = calloc((size_t)device_function_count + 1, sizeof *functions);
  if (!modules || !functions) return fail(MR_RUNTIME, "not enough memory for the kernels");
  int error = MR_OK;
  for (int i = 0; !error && i < device_module_count; i++) error = load_module(i);
  for (int i = 0; !error && i < device_function_count; i++) {
    const DeviceFunction *one = &device_functions[i];
    error = refused(driver.cuModuleGetFunction(&functions[i], modules[one->module], one->name),
                    "find a kernel");
  }
  return error;
}

int device_open(void) {
  pthread_mutex_lock(&lock);
  int error = started ? refused(driver.cuCtxSetCurrent(context), "start") : load_driver();
  if (!error && !started) error = find_gpu();
  if (!error && !started) error = load_kernels();
  if (!error) started = 1;
  pthread_mutex_unlock(&lock);
  return error;
}

static int allocate(size_t bytes, const char *what, void **out) {
  Address at = 0;
  size_t left = 0, all = 0;
  if (driver.cuMemAlloc_v2(&at, bytes)) {
    driver.cuMemGetInfo_v2(&left, &all);
    return fail(MR_RUNTIME, "not enough GPU memory for %zu bytes of %s (%zu of %zu are free)",
                bytes, what, left, all);
  }
  *out = (void *)at;
  return MR_OK;
}

int device_weights(int file, size_t bytes, void **out) {
  void *memory = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, file, 0);
  if (memory == MAP_FAILED) {
    return fail(MR_RUNTIME, "cannot map weights.bin: %s", strerror(errno));
  }
  int error = allocate(bytes, "weights", out);
  if (!error) error = device_write(*out, memory, bytes);
  if (!error) error = device_wait();
  munmap(memory, bytes);
  return error;
}

int device_memory(size_t bytes, const char *what, void **out) {
  int error = allocate(bytes, what, out);
  return error ? error
               : refused(driver.cuMemsetD8Async((Address)*out, 0, bytes, stream), "clear memory");
}

void device_release(void *memory, size_t bytes) {
  (void)bytes;
  driver.cuCtxSetCurrent(context);
  driver.cuMemFree_v2((Address)memory);
}

/* The driver copies what the caller may change afterwards before this returns. */
int device_write(void *to, const void *from, size_t bytes) {
  int error = refused(driver.cuCtxSetCurrent(context), "continue"); /* of the calling thread */
  if (error) return error;
  return refused(driver.cuMemcpyHtoDAsync_v2((Address)to, from, bytes, stream), "take data");
}

int device_read(void *to, const void *from, size_t bytes) {
  int error = refused(driver.cuMemcpyDtoHAsync_v2(to, (Address)from, bytes, stream), "give data");
  return error ? error : device_wait();
}

int device_wait(void) { return refused(driver.cuStreamSynchronize(stream), "compute"); }

int device_begin(void **kept) {
  if (*kept) {
    int error = refused(driver.cuGraphLaunch(*kept, stream), "start its kernels");
    return error ? error : STEPS_RAN;
  }
  return refused(driver.cuStreamBeginCapture_v2(stream, RELAXED_CAPTURE), "record kernels");
}

int device_finish(void **kept, int good) {
  void *graph = NULL;
  Result result = driver.cuStreamEndCapture(stream, &graph);
  if (!good) { /* what went wrong is reported already */
    if (graph) driver.cuGraphDestroy(graph);
    return MR_OK;
  }
  int error = refused(result, "record kernels");
  if (!error) {
    error = refused(driver.cuGraphInstantiateWithFlags(kept, graph, 0), "record kernels");
    driver.cuGraphDestroy(graph);
  }
  return error ? error : refused(driver.cuGraphLaunch(*kept, stream), "start its kernels");
}

void device_forget(void *kept) { driver.cuGraphExecDestroy(kept); }

/* What host halves call. A handle is the device function; selecting a device has one of its own. */
static const int select_device = 0;
static const char size_letters[SIZES + 1] = "xyzXYZs";

static int look_up(void *library, const char *name, void **out) {
  (void)library;
  if (!strcmp(name, "__tvm_set_device")) {
    *out = (void *)&select_device;
    return 0;
  }
  for (int i = 0; i < device_function_count; i++) {
    if (!strcmp(name, device_functions[i].name)) {
      *out = (void *)&device_functions[i];
      return 0;
    }
  }
  return fail(MR_RUNTIME, "there is no device function %s", name);
}

/* An argument as a parameter of its own width; `small` holds those of 4 bytes. */
static void *parameter(char letter, Any *argument, int32_t *small) {
  if (letter == 'i') {
    *small = (int32_t)argument->value.integer;
    return small;
  }
  if (letter == 'f') {
    double wide;
    memcpy(&wide, &argument->value, sizeof wide);
    float value = (float)wide;
    memcpy(small, &value, sizeof value);
    return small;
  }
  return &argument->value;
}

static int launch(void *handle, Any *arguments, int32_t count, Any *result) {
  result->kind = KIND_NONE;
  if (handle == &select_device) return 0;
  const DeviceFunction *one = handle;
  int parameters = (int)strlen(one->parameters);
  void *pointers[MOST_PARAMETERS];
  int32_t small[MOST_PARAMETERS];
  if (parameters > MOST_PARAMETERS || count != parameters + (int)strlen(one->sizes)) {
    return fail(MR_RUNTIME, "device function %s is called with %d arguments", one->name, count);
  }
  for (int i = 0; i < parameters; i++) {
    pointers[i] = parameter(one->parameters[i], &arguments[i], &small[i]);
  }
  unsigned size[SIZES] = {1, 1, 1, 1, 1, 1, 0};
  for (int i = parameters; i < count; i++) {
    const char *letter = strchr(size_letters, one->sizes[i - parameters]);
    size[letter - size_letters] = (unsigned)arguments[i].value.integer;
  }
  return refused(driver.cuLaunchKernel(functions[one - device_functions], size[0], size[1], size[2],
                                       size[3], size[4], size[5], size[6], stream, pointers, NULL),
                 "start a kernel");
}

static int initialize_once(void **at, int (*make)(void **)) { return *at ? 0 : make(at); }

int (*__TVMFFIEnvModLookupFromImports)(void *, const char *, void **) = look_up;
int (*__TVMFFIFunctionCall)(void *, Any *, int32_t, Any *) = launch;
int (*__TVMFFIHandleInitOnce)(void **, int (*)(void **)) = initialize_once;
