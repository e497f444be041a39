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

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The block is the only one that runs.

        Raises:
            InputError: as `check` does.
        """
        self.check()
        with self._lock:
            self.check()
            yield

    def check(self) -> None:
        """Raise InputError after `close`, and in a fork of the process that opened it."""
        require_process(self._process)
        if self._closed:
            raise InputError("this session is closed")

    def close(self, cancel: Callable[[], None]) -> bool:
        """Let no further turn begin and wait for the one that runs, after `cancel`; False if that
        was done before, or in a fork, where there is nothing to wait for.
        """
        if self._closed or os.getpid() != self._process:
            self._closed = True
            return False
        self._closed = True
        cancel()
        with self._lock:
            return True
