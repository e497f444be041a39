"""The C runtime of a model.so, called through ctypes; the same steps as runtime/interpreter.py."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from morendo.ir.errors import ArtifactError, Cancelled, InputError, MorendoError
from morendo.ir.plan import CANDIDATES, FUNCTIONS, LIBRARY
from morendo.runtime.arguments import as_int32
from morendo.runtime.artifact import AGAIN, PLAN
from morendo.runtime.sampling import Sampler
from morendo.runtime.turns import Turns

Ids = Sequence[int] | np.ndarray
Trace = Callable[[int, int, bytes], None]
"""Called after each step with its number, the number of an argument, and what that holds."""
DEVICE_CPU = 1  # in mr_device_type: kernels work on the memory of the process
_TRACE = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
)  # of mr_set_trace
POLL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)  # of mr_set_poll
ERRORS = {1: InputError, 2: ArtifactError, 4: Cancelled}  # by the codes of runtime/c/morendo.h


class Executor(Protocol):
    """What runs a plan: the model, its memory, and how much text it remembers.

    Logits are float32 [vocabulary], or [tokens, vocabulary] from `score`; the array that `prefill`
    and `decode` return is overwritten by the next call. Calls of several threads wait for each
    other. A call that fails leaves the position where it was.
    """

    vocabulary: int
    context: int  # most tokens it can remember
    levels: int  # of precision

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

    def decode_next(self, token: int, sampler: Sampler) -> int:
        """Append one token; the next one, as `sampler` draws it from the logits."""
        ...

    def score(self, ids: Ids) -> np.ndarray:
        """Append tokens; the logits of each."""
        ...

    def set_position(self, position: int) -> None:
        """Forget the tokens from `position` on; where a prefill dropped tokens, it is no place
        within a chunk of it.
        """
        ...

    def set_level(self, level: int) -> None:
        """Choose the precision of the next calls."""
        ...

    def cache_means(self, tensor: int, window: int) -> np.ndarray:
        """Means of a cache tensor of the plan, [context, width] or [heads, context, width], over
        the last `window` tokens: float64 [width] or [heads * width].
        """
        ...

    def cancel(self) -> None:
        """Make the call that runs raise Cancelled before its next step; for other threads and for
        signal handlers. Nothing happens if none runs.
        """
        ...

    def close(self) -> None:
        """Cancel and wait for the call that runs, then give back memory and threads; what is called
        afterwards raises InputError.
        """
        ...


class CExecutor:
    """A session of the C runtime (runtime/c/morendo.h) with `threads` threads; 0: all CPUs."""

    def __init__(self, directory: Path, threads: int = 0) -> None:
        self._library = load_library(directory)
        self._turns = Turns()
        self._freeing = threading.RLock()  # a signal handler may cancel while its thread has it
        self._session = ctypes.c_void_p()
        path = os.fsencode(directory)
        self._check(self._library.mr_open(path, threads, ctypes.byref(self._session)))
        self.vocabulary: int = self._library.mr_vocabulary(self._session)
        self.context: int = self._library.mr_context(self._session)
        self.levels: int = self._library.mr_levels(self._session)
        self._logits = np.empty(self.vocabulary, np.float32)

    @property
    def position(self) -> int:
        with self._turns.turn():
            return self._library.mr_position(self._session)

    def prefill(self, ids: Ids) -> np.ndarray:
        self._compute(self._library.mr_prefill, as_ids(ids), self._logits)
        return self._logits

    def decode(self, token: int) -> np.ndarray:
        self._call(self._library.mr_decode, as_int32("a token id", token), self._logits.ctypes.data)
        return self._logits

    def decode_next(self, token: int, sampler: Sampler) -> int:
        sharpness = sampler.sharpness(self.vocabulary)
        if works_on_host(self._library) or sharpness is None:
            return sampler(self.decode(token))
        ids, logits = np.empty(CANDIDATES, np.int32), np.empty(CANDIDATES, np.float32)
        count, total = ctypes.c_int(), ctypes.c_double()
        where = ids.ctypes.data, logits.ctypes.data, ctypes.byref(count), ctypes.byref(total)
        token = as_int32("a token id", token)
        with self._turns.turn():
            decode = self._library.mr_decode_candidates
            self._check(decode(self._session, token, sharpness, *where))
            found = ids[: count.value], logits[: count.value], total.value
            drawn = sampler.choose(*found, self.vocabulary)
            if drawn is None:
                self._check(self._library.mr_logits(self._session, self._logits.ctypes.data))
                drawn = sampler(self._logits)
        return drawn

    def score(self, ids: Ids) -> np.ndarray:
        array = as_ids(ids)
        logits = np.empty((len(array), self.vocabulary), np.float32)
        self._compute(self._library.mr_score, array, logits)
        return logits

    def set_position(self, position: int) -> None:
        self._call(self._library.mr_set_position, as_int32("position", position))

    def set_level(self, level: int) -> None:
        self._call(self._library.mr_set_level, as_int32("level", level))

    def cache_means(self, tensor: int, window: int) -> np.ndarray:
        count, means = ctypes.c_int(), np.empty(0)
        for _ in range(2):  # the first time tells how many there are
            means = np.empty(count.value)
            where = (means.ctypes.data, len(means), ctypes.byref(count))
            numbers = as_int32("tensor", tensor), as_int32("window", window)
            self._call(self._library.mr_cache_means, *numbers, *where)
        return means

    def text(self) -> bytes:
        """What the session remembers, for `set_text` of another executor (mr_text)."""
        size, text = ctypes.c_int64(), bytearray()
        for _ in range(2):  # the first time tells how much it is
            text = bytearray(size.value)
            place = (ctypes.c_char * len(text)).from_buffer(text)
            self._call(self._library.mr_text, place, len(text), ctypes.byref(size))
        return bytes(text)

    def set_text(self, text: bytes) -> None:
        """Remember what `text` gave instead."""
        self._call(self._library.mr_set_text, text, len(text))

    def set_trace(self, trace: Trace) -> None:
        """Show the arguments of all steps from now on that are activations or logits."""

        def see(_: int, step: int, argument: int, address: int, count: int) -> None:
            trace(step, argument, ctypes.string_at(address, count))

        self._trace = _TRACE(see)
        self._call(self._library.mr_set_trace, self._trace, None)

    def start_profile(self) -> None:
        """Add up the seconds of every step from now on."""
        self._call(self._library.mr_set_profile, 1)

    def step_seconds(self, function: str, steps: int) -> list[float]:
        """Seconds that each of the plan's `steps` of a function took while profiling."""
        number = FUNCTIONS.index(function)
        with self._turns.turn():
            read = self._library.mr_step_seconds
            return [read(self._session, number, i) for i in range(steps)]

    def cancel(self) -> None:
        with self._freeing:
            if self._session:
                self._library.mr_cancel(self._session)

    def close(self) -> None:
        self._turns.close(self.cancel, self._free)

    def _free(self) -> None:
        with self._freeing:
            session, self._session = self._session, ctypes.c_void_p()
            self._library.mr_close(session)

    def _call(self, function: Any, *args: Any) -> None:
        with self._turns.turn():
            self._check(function(self._session, *args))

    def _compute(self, function: Any, ids: np.ndarray, logits: np.ndarray) -> None:
        """A call that may take long. Python runs signal handlers in its main thread only, and not
        inside of C: there the call comes back now and then to let them run. What they raise ends
        the call, so that Ctrl-C acts at once.
        """
        args = ids.ctypes.data, len(ids), logits.ctypes.data
        if threading.current_thread() is not threading.main_thread():
            self._call(function, *args)
            return
        raised: list[BaseException] = []
        signals = _signals(raised)
        next(signals)
        poll = POLL(signals.send)  # with mr_set_poll's data, None
        with self._turns.turn():
            self._check(self._library.mr_set_poll(self._session, poll, None))
            try:
                result = function(self._session, *args)
            finally:
                self._library.mr_set_poll(self._session, POLL(), None)
            if raised:
                raise raised[0]
            self._check(result)

    def _check(self, result: int) -> None:
        if result:
            kind = ERRORS.get(result, MorendoError)
            raise kind(self._library.mr_error().decode(errors="replace"))


def _signals(raised: list[BaseException]) -> Generator[int]:
    """Lets signal handlers run each time it is resumed: 0, or 1 once one has raised an exception,
    which is in `raised` then. Python runs them where a function starts or a generator resumes,
    and only the latter can be inside of a `try`.
    """
    try:
        while True:
            yield 0
    except GeneratorExit:  # nobody will resume it again
        return
    except BaseException as error:  # KeyboardInterrupt and SystemExit too
        raised.append(error)
    yield 1


def as_ids(ids: Ids) -> np.ndarray:
    """Token ids as a contiguous int32 array."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"token ids must be a list of integers (got {array.dtype} {array.shape})")
    if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise InputError("token ids must fit 32 bits")
    return np.ascontiguousarray(array, np.int32)


def require_known(ids: np.ndarray, vocabulary: int) -> None:
    """Refuse token ids int32 [n] that are not in the vocabulary.

    Raises:
        InputError: it names the first of them by its place.
    """
    for index in np.flatnonzero((ids < 0) | (ids >= vocabulary))[:1]:
        raise InputError(
            f"the token at place {index} is not in the vocabulary "
            f"(got id {ids[index]}, vocabulary {vocabulary})"
        )


_libraries: dict[tuple[int, int], ctypes.CDLL] = {}


def load_library(directory: Path) -> ctypes.CDLL:
    """The model.so of an artifact, with the types of its C functions declared.

    Raises:
        ArtifactError: when it cannot be loaded, or executes another plan than plan.json.
    """
    path = directory / LIBRARY
    try:
        status = path.stat()
        key = (status.st_dev, status.st_ino)
        if key not in _libraries:
            # The loader takes an equal name for the same library, even when the file was replaced:
            # one more slash is another name.
            name = f"{directory.absolute()}{'/' * (1 + len(_libraries))}{LIBRARY}"
            _libraries[key] = _declare(ctypes.CDLL(name))
    except AttributeError as error:
        missing = str(error).rpartition(" ")[2]
        message = f"{LIBRARY} is of an older version of morendo (it has no {missing})"
        raise ArtifactError(message, where=str(directory), hint="compile it again") from None
    except OSError as error:
        message = " ".join(str(error).split())
        message = f"cannot load {LIBRARY} ({message})"
        raise ArtifactError(message, where=str(directory), hint="compile it again") from None
    _check_plan(directory, _libraries[key])
    return _libraries[key]


def _check_plan(directory: Path, library: ctypes.CDLL) -> None:
    try:
        text = (directory / PLAN).read_bytes()
    except OSError as error:
        message = f"cannot read {PLAN} ({error.strerror})"
        raise ArtifactError(message, where=str(directory), hint=AGAIN) from None
    if text != library.mr_plan():
        message = f"{PLAN} and {LIBRARY} do not belong together"
        raise ArtifactError(message, where=str(directory), hint=AGAIN)


def works_on_host(library: ctypes.CDLL) -> bool:
    """Whether kernels work on the memory of this process, not on that of a device."""
    return ctypes.c_int32.in_dll(library, "mr_device_type").value == DEVICE_CPU


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    session, pointer, number = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
    signatures = {
        "mr_check_cpu": (number, []),
        "mr_open": (number, [ctypes.c_char_p, number, ctypes.POINTER(session)]),
        "mr_close": (None, [session]),
        "mr_cancel": (None, [session]),
        "mr_set_poll": (number, [session, POLL, pointer]),
        "mr_error": (ctypes.c_char_p, []),
        "mr_prefill": (number, [session, pointer, number, pointer]),
        "mr_decode": (number, [session, ctypes.c_int32, pointer]),
        "mr_decode_candidates": (number, [session, ctypes.c_int32, ctypes.c_float, *[pointer] * 4]),
        "mr_decode_next": (number, [session, pointer, ctypes.c_int32, pointer]),
        "mr_logits": (number, [session, pointer]),
        "mr_score": (number, [session, pointer, number, pointer]),
        "mr_position": (number, [session]),
        "mr_set_position": (number, [session, number]),
        "mr_set_level": (number, [session, number]),
        "mr_levels": (number, [session]),
        "mr_level": (number, [session]),
        "mr_cache_means": (number, [session, number, number, pointer, number, pointer]),
        "mr_schedule_open": (number, [session, ctypes.c_char_p, ctypes.c_char_p, pointer]),
        "mr_schedule_close": (None, [pointer]),
        "mr_schedule_begin": (number, [pointer]),
        "mr_schedule_next": (number, [pointer, pointer]),
        "mr_text": (number, [session, pointer, ctypes.c_int64, pointer]),
        "mr_set_text": (number, [session, ctypes.c_char_p, ctypes.c_int64]),
        "mr_set_trace": (number, [session, _TRACE, pointer]),
        "mr_set_profile": (number, [session, number]),
        "mr_step_seconds": (ctypes.c_double, [session, number, number]),
        "mr_plan": (ctypes.c_char_p, []),
        "mr_vocabulary": (number, [session]),
        "mr_context": (number, [session]),
        "mr_pool_start": (number, [number]),
        "mr_pool_stop": (None, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
