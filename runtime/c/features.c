/* What a learned schedule knows of a prompt: means of a cache tensor over its last tokens. */
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "schedule.h"

/* IEEE half precision to double; 2^112 moves the exponent's bias, for subnormals too. */
static double from_half(uint16_t half) {
  uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
  float value;
  memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f;
  return half & 0x8000 ? -value : value;
}

static double item(const Tensor *tensor, const char *data, int64_t index) {
  if (tensor->dl.dtype.bits == 16) {
    uint16_t half;
    memcpy(&half, data + 2 * index, sizeof half);
    return from_half(half);
  }
  float value;
  memcpy(&value, data + 4 * index, sizeof value);
  return value;
}

static int is_cache(const Plan *plan, const Tensor *tensor) {
  int ndim = tensor->dl.ndim, bits = tensor->dl.dtype.bits;
  return tensor->space == CACHE && (ndim == 2 || ndim == 3) && !tensor->token_dims &&
         tensor->shape[ndim - 2] == plan->context && tensor->dl.dtype.code == CODE_FLOAT &&
         (bits == 16 || bits == 32);
}

/* Means over the last `window` of the tokens that a tensor [context, width] or [heads, context,
 * width] holds, as many as its stage; `count` becomes width, or heads * width. Those behind
 * `capacity` are left out. */
int cache_means(const Plan *plan, int tensor, const int held[MAX_STAGES], int window,
                double *means, int capacity, int *count) {
  const Tensor *cache = tensor >= 0 && tensor < plan->tensor_count ? &plan->tensors[tensor] : NULL;
  if (!cache || !is_cache(plan, cache)) {
    return fail(MR_INPUT, "tensor %d is no cache of one row for each token", tensor);
  }
  int position = held[stage_of_cache(plan, cache)];
  if (position < 1 || window < 1) {
    return fail(MR_INPUT, "there are no tokens to take the mean of (got %d, the last %d of them)",
                position, window);
  }
  int ndim = cache->dl.ndim, first = window < position ? position - window : 0;
  int64_t width = cache->shape[ndim - 1], heads = ndim == 3 ? cache->shape[0] : 1;
  *count = (int)(heads * width);
  size_t item_bytes = cache->dl.dtype.bits / 8, row_bytes = (size_t)width * item_bytes;
  size_t bytes = (size_t)(position - first) * row_bytes;
  char *rows = malloc(bytes ? bytes : 1);
  if (!rows) return fail(MR_RUNTIME, "not enough memory for %zu bytes of the cache", bytes);
  int error = MR_OK;
  for (int64_t head = 0; !error && head < heads; head++) {
    const char *data = cache->dl.data;
    size_t start = (size_t)(head * plan->context + first) * row_bytes;
    error = device_read(rows, data + start, bytes);
    for (int64_t i = 0; !error && i < width && head * width + i < capacity; i++) {
      double sum = 0;
      for (int64_t row = 0; row < position - first; row++) sum += item(cache, rows, row * width + i);
      means[head * width + i] = sum / (position - first);
    }
  }
  free(rows);
  return error;
}
