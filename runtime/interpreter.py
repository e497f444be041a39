"""The reference executor: the plan's kernel calls one by one from Python, every buffer in sight.

It calls the same compiled kernels as the C runtime and must give the same logits. A trace sees the
arrays of each step after it ran; poisoned memory shows who reads what nobody wrote.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morendo.ir.errors import ArtifactError, Cancelled, InputError, MorendoError
from morendo.ir.plan import SLOT_BYTES, Plan, Step, row_caches
from morendo.ir.plan_arguments import Argument, Const, Level, tensor_index
from morendo.ir.pruning import StagePosition, StageTokens
from morendo.runtime.arguments import as_int32
from morendo.runtime.artifact import WEIGHTS
from morendo.runtime.executor import (
    DEVICE_CPU,
    Ids,
    as_ids,
    load_library,
    require_known,
    works_on_host,
)
from morendo.runtime.sampling import Sampler
from morendo.runtime.stage_lengths import StageLengths, stage_of_cache
from morendo.runtime.turns import Turns

PAGE_BYTES = 4096  # as mmap aligns: more than any layout of a target asks for
POISON = 0xFF  # as float32 or float16 a NaN, as an integer -1 or the largest
Trace = Callable[[int, Step, list[np.ndarray]], None]

_KIND_INT, _KIND_TENSOR = 1, 7
_DTYPE_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class _Any(ctypes.Structure):
    """TVMFFIAny of tvm/ffi/c_api.h."""

    _fields_ = (("kind", ctypes.c_int32), ("zero", ctypes.c_uint32), ("value", ctypes.c_int64))


@dataclass(frozen=True)
class _Extent:
    """Of the call that runs: the tokens of each stage, and what its caches held before."""

    counts: tuple[int, ...]
    held: tuple[int, ...]


class PythonExecutor:
    """Runs the plan of the artifact in `directory`.

    Args:
        directory: the artifact.
        threads: of the kernels' parallel loops; 0 means all CPUs.
        trace: called after every kernel call with the step's number, the step and its arrays.
        poison: fill the arena and the logits with POISON bytes before each call.
    """

    def __init__(
        self, directory: Path, threads: int = 0, trace: Trace | None = None, poison: bool = False
    ) -> None:
        self._library = load_library(directory)
        self.plan = Plan.from_json(self._library.mr_plan())
        self.trace = trace
        self.vocabulary, self.context = self.plan.vocabulary, self.plan.context
        self.levels = self.plan.levels
        if self._library.mr_check_cpu():
            raise ArtifactError(self._library.mr_error().decode(errors="replace"))
        if not works_on_host(self._library):
            raise InputError(
                "the Python executor sees the memory of this process, not that of a device",
                hint="use the C runtime, the default",
            )
        self._turns, self._cancelled = Turns(), False
        self._kernels = [getattr(self._library, f"__tvm_ffi_{k}") for k in self.plan.kernels]
        self._poison = poison
        self._position = self._level = 0
        plan = self.plan
        self._lengths = StageLengths(plan)
        self._extent = _Extent(plan.counts("decode", 1), self._lengths.at(0))
        self._spaces = {
            "arena": _aligned_bytes(plan.arena_bytes),
            "cache": _aligned_bytes(plan.cache_bytes),
            "weights": _read_weights(directory / WEIGHTS, plan.weights_bytes),
            "ids": _aligned_bytes(plan.chunk * 4),
            "logits": _aligned_bytes(plan.chunk * plan.vocabulary * 4),
            "state": _aligned_bytes(SLOT_BYTES * len(plan.state)),
        }
        self._library.mr_pool_start(threads)

    @property
    def position(self) -> int:
        with self._turns.turn():
            return self._position

    def prefill(self, ids: Ids) -> np.ndarray:
        return self._run("prefill", ids)[0]

    def decode(self, token: int) -> np.ndarray:
        return self._run("decode", [token])[0]

    def decode_next(self, token: int, sampler: Sampler) -> int:
        return sampler(self.decode(token))

    def score(self, ids: Ids) -> np.ndarray:
        return self._run("score", ids)

    def set_position(self, position: int) -> None:
        with self._turns.turn():
            if not 0 <= as_int32("position", position) <= self._position:
                message = f"position out of range (got {position}, need 0 to {self._position})"
                raise InputError(message)
            self._lengths.at(position)
            self._position = position

    def set_level(self, level: int) -> None:
        most = self.plan.levels - 1
        with self._turns.turn():
            if not 0 <= as_int32("level", level) <= most:
                message = f"precision level out of range (got {level}, need 0 to {most})"
                raise InputError(message)
            self._level = level

    def cache_means(self, tensor: int, window: int) -> np.ndarray:
        with self._turns.turn():
            cache = self._cache_rows(as_int32("tensor", tensor))
            held = self._lengths.at(self._position)[stage_of_cache(self.plan, tensor)]
            start = max(0, held - window)
            if held <= start:
                message = "there are no tokens to take the mean of"
                raise InputError(f"{message} (got {held}, the last {window} of them)")
            return cache[:, start:held].mean(axis=1, dtype=np.float64).reshape(-1)

    def _cache_rows(self, index: int) -> np.ndarray:
        """A tensor of the cache as [heads, context, width]."""
        if index not in row_caches(self.plan):
            raise InputError(f"tensor {index} is no cache of one row for each token")
        array = self._array(index)
        return array.reshape(-1, *array.shape[-2:])

    def cancel(self) -> None:
        self._cancelled = True

    def close(self) -> None:
        self._turns.close(self.cancel, self._free)

    def _free(self) -> None:
        self._library.mr_pool_stop()
        self._spaces = {}

    def _run(self, function: str, ids: Ids) -> np.ndarray:
        """Logits of all tokens if `function` is "score", else one row of the last one."""
        array = as_ids(ids)
        with self._turns.turn():
            self._check(array)
            self._cancelled, start = False, self._position
            try:
                return self._run_chunks(function, array)
            except BaseException:
                self._position = start
                raise

    def _run_chunks(self, function: str, ids: np.ndarray) -> np.ndarray:
        rows = []
        for start in range(0, len(ids), self.plan.chunk):
            part = ids[start : start + self.plan.chunk]
            if self._poison:
                self._spaces["arena"][:] = POISON
                self._spaces["logits"][:] = POISON
            self._spaces["ids"].view(np.int32)[: len(part)] = part
            self._extent = _Extent(
                self.plan.counts(function, len(part)), self._lengths.at(self._position)
            )
            self._write_state()
            for index, step in enumerate(self.plan.functions[function]):
                if self._cancelled:
                    raise Cancelled(f"cancelled before {function} step {index}")
                self._call(index, step)
            self._lengths.add(self._position, self._extent.counts)
            self._position += len(part)
            count = len(part) if function == "score" else 1
            logits = self._spaces["logits"].view(np.float32).reshape(-1, self.plan.vocabulary)
            rows.append(logits[:count].copy())
        return np.concatenate(rows) if function == "score" else rows[-1]

    def _check(self, ids: np.ndarray) -> None:
        if not len(ids):
            raise InputError("no tokens given (got 0, need 1 or more)")
        end, context = self._position + len(ids), self.plan.context
        if end > context:
            raise InputError(f"prompt too long (got {end}, context {context})")
        require_known(ids, self.plan.vocabulary)

    def _call(self, index: int, step: Step) -> None:
        arguments = (_Any * len(step.args))()
        keep, arrays = [], []
        for slot, arg in zip(arguments, step.args, strict=True):
            chosen = tensor_index(arg, self._level)
            if chosen is not None:
                array = self._array(chosen)
                tensor, shapes = _make_tensor(array)
                slot.kind, slot.value = _KIND_TENSOR, ctypes.addressof(tensor)
                keep += [tensor, shapes]
                arrays.append(array)
            else:
                slot.kind, slot.value = _KIND_INT, self._scalar(arg)
        result = _Any()
        kernel = self._kernels[step.kernel]
        if kernel(None, ctypes.byref(arguments), len(step.args), ctypes.byref(result)):
            message = f"kernel {self.plan.kernels[step.kernel]} failed ({step.note}): "
            raise MorendoError(message + self._library.mr_error().decode(errors="replace"))
        if self.trace:
            self.trace(index, step, arrays)

    def _write_state(self) -> None:
        slots = self._spaces["state"].view(np.int32)[:: SLOT_BYTES // 4]
        slots[:] = [self._scalar(arg) for arg in self.plan.state]

    def _scalar(self, arg: Argument) -> int:
        if isinstance(arg, Level):
            return arg.values[self._level]
        if isinstance(arg, StageTokens):
            return self._extent.counts[arg.stage]
        if isinstance(arg, StagePosition):
            return self._extent.held[arg.stage]
        if isinstance(arg, Const):
            return arg.value
        return (self._extent.counts if arg == "tokens" else self._extent.held)[0]

    def _array(self, index: int) -> np.ndarray:
        """The buffer of tensor `index`, seen with its shape."""
        tensor = self.plan.tensors[index]
        space = self._spaces[tensor.space]
        return np.ndarray(
            tensor.shape(self._extent.counts), tensor.dtype, buffer=space, offset=tensor.offset
        )


def _make_tensor(array: np.ndarray) -> tuple[_Tensor, ctypes.Array]:
    """A DLTensor of `array`, and the memory of its shape and strides."""
    rank, dtype = array.ndim, array.dtype
    # numpy's own are others when an extent is 0
    strides = [math.prod(array.shape[axis + 1 :]) for axis in range(rank)]
    shapes = (ctypes.c_int64 * max(1, 2 * rank))(*array.shape, *strides)
    address = ctypes.addressof(shapes)
    tensor = _Tensor(
        data=array.ctypes.data,
        device_type=DEVICE_CPU,
        ndim=rank,
        code=_DTYPE_CODES[dtype.kind],
        bits=8 * dtype.itemsize,
        lanes=1,
        shape=address,
        strides=address + 8 * rank,
    )
    return tensor, shapes


def _aligned_bytes(count: int) -> np.ndarray:
    """Zeros that start where a page does; they take no memory until they are written."""
    memory = np.zeros(count + PAGE_BYTES, np.uint8)
    return memory[-memory.ctypes.data % PAGE_BYTES :][:count]


def _read_weights(path: Path, count: int) -> np.ndarray:
    if not count:
        return np.zeros(0, np.uint8)
    try:
        memory = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from None
    if len(memory) != count:
        raise ArtifactError(f"{path.name} is damaged (got {len(memory)} bytes, need {count})")
    return memory
