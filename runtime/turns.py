"""Who may use an executor: one call at a time, in the process that opened it, until it closes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from morendo.ir.errors import InputError


def require_process(opener: int) -> None:
    """Raise InputError in a fork of the process `opener`: its locks may be held by threads that the
    fork does not have.
    """
    if os.getpid() != opener:
        raise InputError(
            f"this session is dead: process {opener} opened it, {os.getpid()} is a fork of that",
            hint="open a session in each process",
        )


class Turns:
    """The turns of one executor's calls; calls of several threads wait for each other."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = 0  # whose turn it is
        self._at_end: Callable[[], None] | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The block is the only one that runs.

        Raises:
            InputError: as `check` does.
        """
        self.check()
        if self._thread == threading.get_ident():
            message = "this session is computing, and a signal handler asked it for more"
            raise InputError(message, hint="a handler may cancel or close it")
        with self._lock:
            self.check()
            self._thread = threading.get_ident()
            try:
                yield
            finally:
                self._thread = 0
                if self._at_end is not None:
                    self._at_end()

    def check(self) -> None:
        """Raise InputError after `close`, and in a fork of the process that opened it."""
        require_process(self._process)
        if self._closed:
            raise InputError("this session is closed")

    def close(self, cancel: Callable[[], None], free: Callable[[], None]) -> None:
        """Let no further turn begin, `cancel` the one that runs, and `free` after it; in a signal
        handler of the thread whose turn it is, at the end of that. Nothing is done if that was
        asked for before, or in a fork, which has nothing to free.
        """
        if self._closed or os.getpid() != self._process:
            self._closed = True
            return
        self._closed = True
        if self._thread == threading.get_ident():
            self._at_end = free
            cancel()
            return
        cancel()
        with self._lock:
            free()
