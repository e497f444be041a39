"""Running a function that must not be trusted with time or memory.

It runs in a fork of this process, which ends with it: what it allocates is gone, and where it does
not end it is killed. A fork costs milliseconds; a new Python would cost a tenth of a second.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

_DONE, _FAILED = b"+", b"-"


class LimitError(Exception):
    """The function took too much of something, or its process died."""


class WorkError(Exception):
    """The function raised; the text is what its `explain` made of the exception."""


def run_limited(
    work: Callable[[], str],
    explain: Callable[[Exception], str],
    *,
    seconds: float,
    memory_bytes: int,
    output_bytes: int,
) -> str:
    """The result of `work()`, which only sees a copy of this process.

    Args:
        work: pure Python; it may not wait for other threads, which do not exist in a fork.
        explain: an exception of `work` as a text; runs in the fork, too.
        seconds: it is killed after.
        memory_bytes: it may allocate beyond what this process has.
        output_bytes: of its result, as UTF-8.

    Raises:
        LimitError: saying what there was too much of.
        WorkError: when `work` raised.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns that locks of other threads stay locked; a fork that hangs is killed.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            process = os.fork()
        except OSError as error:
            os.close(reader)
            os.close(writer)
            raise LimitError(f"cannot be run apart ({error.strerror})") from None
    if process == 0:
        _run_and_exit(writer, work, explain, seconds, memory_bytes, output_bytes)
    os.close(writer)
    try:
        answer = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    if answer is None:
        raise LimitError(f"takes longer than {seconds:g} s")
    if answer[:1] not in (_DONE, _FAILED):
        raise LimitError(f"needs more than {memory_bytes >> 20} MB of memory, or crashes")
    if answer[:1] == _FAILED:
        raise WorkError(answer[1:].decode())
    if len(answer) - 1 > output_bytes:
        raise LimitError(f"writes more than {output_bytes / 1e6:g} MB of text")
    return answer[1:].decode("utf-8", "surrogatepass")


def _read(reader: int, deadline: float) -> bytes | None:
    """All that comes until the other end closes; None when that takes too long."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    chunks: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            return None
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def _run_and_exit(
    writer: int,
    work: Callable[[], str],
    explain: Callable[[Exception], str],
    seconds: float,
    memory_bytes: int,
    output_bytes: int,
) -> NoReturn:
    """What the fork does; nothing of the process that it was copied from may go on here."""
    try:
        gc.disable()  # finalizers of copied objects would wait for threads that are not there
        sys.settrace(None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _limit(seconds, memory_bytes)
        try:
            answer = _DONE + work().encode("utf-8", "surrogatepass")[: output_bytes + 1]
        except MemoryError:
            answer = b""
        except Exception as error:
            answer = _FAILED + explain(error).encode("utf-8", "replace")
        while answer:
            answer = answer[os.write(writer, answer) :]
    finally:
        os._exit(0)


def _limit(seconds: float, memory_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory_bytes,
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,  # should nobody be left to kill it
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
