/* What the SDK's qaic makes of morendo_npu.idl, as far as shell.c sees it: for tests alone. */
#include <stdint.h>

typedef int AEEResult;
typedef uint64_t remote_handle64;
enum { AEE_SUCCESS = 0, AEE_ENOMEMORY = 2 };
AEEResult morendo_npu_open(const char *uri, remote_handle64 *handle);
AEEResult morendo_npu_close(remote_handle64 handle);
AEEResult morendo_npu_start(remote_handle64 handle, const char *directory, int32_t threads,
                            int32_t *vocabulary, int32_t *levels);
AEEResult morendo_npu_prefill(remote_handle64 handle, const int32_t *ids, int count, float *logits,
                              int room);
AEEResult morendo_npu_decode(remote_handle64 handle, int32_t id, int32_t level, float *logits,
                             int room);
AEEResult morendo_npu_text(remote_handle64 handle, unsigned char *text, int room, int32_t *bytes);
AEEResult morendo_npu_rewind(remote_handle64 handle, int32_t position);
AEEResult morendo_npu_reason(remote_handle64 handle, char *text, int room);
