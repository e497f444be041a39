"""The C runtime of a model.so, called through ctypes; the same steps as runtime/interpreter.py."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from morendo.ir.errors import ArtifactError, InputError, MorendoError
from morendo.ir.plan import FUNCTIONS
from morendo.runtime.artifact import LIBRARY

Ids = Sequence[int] | np.ndarray

_INPUT, _ARTIFACT = 1, 2  # codes of runtime/c/morendo.h


class Executor(Protocol):
    """What runs a plan: the model, its memory, and how much text it remembers.

    Logits are float32 [vocabulary], or [tokens, vocabulary] from `score`; the array that `prefill`
    and `decode` return is overwritten by the next call.
    """

    vocabulary: int
    context: int  # most tokens it can remember

    @property
    def position(self) -> int:
        """Number of tokens remembered."""
        ...

    def prefill(self, ids: Ids) -> np.ndarray:
        """Append tokens; the logits of the last one."""
        ...

    def decode(self, token: int) -> np.ndarray:
        """Append one token; its logits."""
        ...

    def score(self, ids: Ids) -> np.ndarray:
        """Append tokens; the logits of each."""
        ...

    def set_position(self, position: int) -> None:
        """Forget the tokens from `position` on."""
        ...

    def set_level(self, level: int) -> None:
        """Choose the precision of the next calls."""
        ...

    def close(self) -> None:
        """Give back memory and threads."""
        ...


class CExecutor:
    """A session of the C runtime (runtime/c/morendo.h) with `threads` threads; 0: all CPUs."""

    def __init__(self, directory: Path, threads: int = 0) -> None:
        self._library = load_library(directory)
        self._session = ctypes.c_void_p()
        path = os.fsencode(directory)
        self._check(self._library.mr_open(path, threads, ctypes.byref(self._session)))
        self.vocabulary: int = self._library.mr_vocabulary(self._session)
        self.context: int = self._library.mr_context(self._session)
        self._logits = np.empty(self.vocabulary, np.float32)

    @property
    def position(self) -> int:
        return self._library.mr_position(self._open())

    def prefill(self, ids: Ids) -> np.ndarray:
        array = as_ids(ids)
        result = self._library.mr_prefill(
            self._open(), array.ctypes.data, len(array), self._logits.ctypes.data
        )
        self._check(result)
        return self._logits

    def decode(self, token: int) -> np.ndarray:
        self._check(self._library.mr_decode(self._open(), token, self._logits.ctypes.data))
        return self._logits

    def score(self, ids: Ids) -> np.ndarray:
        array = as_ids(ids)
        logits = np.empty((len(array), self.vocabulary), np.float32)
        result = self._library.mr_score(
            self._open(), array.ctypes.data, len(array), logits.ctypes.data
        )
        self._check(result)
        return logits

    def set_position(self, position: int) -> None:
        self._check(self._library.mr_set_position(self._open(), position))

    def set_level(self, level: int) -> None:
        self._check(self._library.mr_set_level(self._open(), level))

    def start_profile(self) -> None:
        """Add up the seconds of every step from now on."""
        self._library.mr_set_profile(self._open(), 1)

    def step_seconds(self, function: str, steps: int) -> list[float]:
        """Seconds that each of the plan's `steps` of a function took while profiling."""
        number = FUNCTIONS.index(function)
        return [self._library.mr_step_seconds(self._open(), number, i) for i in range(steps)]

    def close(self) -> None:
        self._library.mr_close(self._session)
        self._session = ctypes.c_void_p()

    def _open(self) -> ctypes.c_void_p:
        if not self._session:
            raise InputError("this session is closed")
        return self._session

    def _check(self, result: int) -> None:
        if result:
            kind = {_INPUT: InputError, _ARTIFACT: ArtifactError}.get(result, MorendoError)
            raise kind(self._library.mr_error().decode(errors="replace"))


def as_ids(ids: Ids) -> np.ndarray:
    """Token ids as a contiguous int32 array."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"token ids must be a list of integers (got {array.dtype} {array.shape})")
    if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise InputError("token ids must fit 32 bits")
    return np.ascontiguousarray(array, np.int32)


_libraries: dict[tuple[int, int], ctypes.CDLL] = {}


def load_library(directory: Path) -> ctypes.CDLL:
    """The model.so of an artifact, with the types of its C functions declared."""
    path = directory / LIBRARY
    try:
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if key not in _libraries:
            # The loader takes an equal name for the same library, even when the file was replaced:
            # one more slash is another name.
            name = f"{directory.absolute()}{'/' * (1 + len(_libraries))}{LIBRARY}"
            _libraries[key] = _declare(ctypes.CDLL(name))
    except (OSError, AttributeError) as error:
        message = " ".join(str(error).split())
        message = f"cannot load {LIBRARY} ({message})"
        raise ArtifactError(message, where=str(directory), hint="compile it again") from None
    return _libraries[key]


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    session, pointer, number = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
    signatures = {
        "mr_open": (number, [ctypes.c_char_p, number, ctypes.POINTER(session)]),
        "mr_close": (None, [session]),
        "mr_error": (ctypes.c_char_p, []),
        "mr_prefill": (number, [session, pointer, number, pointer]),
        "mr_decode": (number, [session, ctypes.c_int32, pointer]),
        "mr_score": (number, [session, pointer, number, pointer]),
        "mr_position": (number, [session]),
        "mr_set_position": (number, [session, number]),
        "mr_set_level": (number, [session, number]),
        "mr_set_profile": (None, [session, number]),
        "mr_step_seconds": (ctypes.c_double, [session, number, number]),
        "mr_vocabulary": (number, [session]),
        "mr_context": (number, [session]),
        "mr_pool_start": (number, [number]),
        "mr_pool_stop": (None, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
