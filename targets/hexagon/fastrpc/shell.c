/* Not run on hardware.
 *
 * What the skeleton of morendo_npu.idl calls on the NPU, over the C interface of an artifact
 * (morendo.h). It is linked with the skeleton that qaic makes and with the artifact's model.so
 * into libmorendo_npu_skel.so. One handle is one session. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "morendo.h"
#include "morendo_npu.h"

enum { REASON_BYTES = 256, FAILED = 1 };

typedef struct {
  mr_session *session;
  char reason[REASON_BYTES];
} Shell;

static AEEResult fail(Shell *shell, const char *why) {
  snprintf(shell->reason, sizeof shell->reason, "%s", why);
  return FAILED;
}

/* Whether the session is open and the caller has room for a token's logits. */
static AEEResult check(Shell *shell, int room) {
  if (!shell->session) return fail(shell, "start the session first");
  if (room != mr_vocabulary(shell->session)) return fail(shell, "logits of a token are expected");
  return AEE_SUCCESS;
}

AEEResult morendo_npu_open(const char *uri, remote_handle64 *handle) {
  (void)uri;
  Shell *shell = calloc(1, sizeof *shell);
  if (!shell) return AEE_ENOMEMORY;
  *handle = (remote_handle64)(uintptr_t)shell;
  return AEE_SUCCESS;
}

AEEResult morendo_npu_close(remote_handle64 handle) {
  Shell *shell = (Shell *)(uintptr_t)handle;
  mr_close(shell->session);
  free(shell);
  return AEE_SUCCESS;
}

AEEResult morendo_npu_start(remote_handle64 handle, const char *directory, int32_t threads,
                            int32_t *vocabulary, int32_t *levels) {
  Shell *shell = (Shell *)(uintptr_t)handle;
  if (shell->session) return fail(shell, "the session has been started");
  if (mr_open(directory, threads, &shell->session)) return fail(shell, mr_error());
  *vocabulary = mr_vocabulary(shell->session);
  *levels = mr_levels(shell->session);
  return AEE_SUCCESS;
}

AEEResult morendo_npu_prefill(remote_handle64 handle, const int32_t *ids, int count, float *logits,
                              int room) {
  Shell *shell = (Shell *)(uintptr_t)handle;
  AEEResult bad = check(shell, room);
  if (bad) return bad;
  if (mr_set_level(shell->session, 0) || mr_prefill(shell->session, ids, count, logits)) {
    return fail(shell, mr_error());
  }
  return AEE_SUCCESS;
}

AEEResult morendo_npu_decode(remote_handle64 handle, int32_t id, int32_t level, float *logits,
                             int room) {
  Shell *shell = (Shell *)(uintptr_t)handle;
  AEEResult bad = check(shell, room);
  if (bad) return bad;
  if (mr_set_level(shell->session, level) || mr_decode(shell->session, id, logits)) {
    return fail(shell, mr_error());
  }
  return AEE_SUCCESS;
}

AEEResult morendo_npu_text(remote_handle64 handle, unsigned char *text, int room, int32_t *bytes) {
  Shell *shell = (Shell *)(uintptr_t)handle;
  if (!shell->session) return fail(shell, "start the session first");
  int64_t size;
  if (mr_text(shell->session, text, room, &size)) return fail(shell, mr_error());
  *bytes = (int32_t)size;
  return AEE_SUCCESS;
}

AEEResult morendo_npu_rewind(remote_handle64 handle, int32_t position) {
  Shell *shell = (Shell *)(uintptr_t)handle;
  if (!shell->session) return fail(shell, "start the session first");
  return mr_set_position(shell->session, position) ? fail(shell, mr_error()) : AEE_SUCCESS;
}

AEEResult morendo_npu_reason(remote_handle64 handle, char *text, int room) {
  const Shell *shell = (const Shell *)(uintptr_t)handle;
  snprintf(text, (size_t)room, "%s", shell->reason);
  return AEE_SUCCESS;
}
