"""What a decode step of a plan does at a precision level, as far as its time depends on it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from morendo.ir.plan import Argument, Const, Level, Plan, Step, tensor_index

from .device import HALF

TILES_AT_A_TIME = 2
"""Row tiles whose weights a kernel reads side by side."""


@dataclass(frozen=True)
class LinearWork:
    """A matrix times the activations of a token.

    Attributes:
        weights: how many are read in so many bits, or as `HALF`.
        nbytes: that are read of them, scales and all.
        piece_bytes: of these that are used together, and fetched while others are.
    """

    weights: Mapping[int | str, float]
    nbytes: float
    piece_bytes: float

    @property
    def count(self) -> float:
        """All weights."""
        return sum(self.weights.values())


@dataclass(frozen=True)
class StepWork:
    """One token through the model.

    Attributes:
        linears: its matrices.
        elements: activations that all other kernels read or write.
        cached_bytes: of keys and values, for each position in the cache.
    """

    linears: tuple[LinearWork, ...]
    elements: float
    cached_bytes: float


def plan_work(plan: Plan, level: int) -> StepWork:
    """The work of a plan's decode step."""
    steps = plan.functions["decode"]
    linears = tuple(_linear(plan, step, level) for step in steps if step.weights)
    others = [_moved(plan, step, level) for step in steps if not step.weights]
    elements, cached = (sum(column) for column in zip(*others, strict=True)) if others else (0, 0)
    return StepWork(linears, elements, cached)


def float16_work(work: StepWork, cache_item_bytes: int) -> StepWork:
    """The same with float16 weights and a float16 cache.

    Args:
        cache_item_bytes: what a number in the cache of `work` takes.
    """
    tiled = [each.piece_bytes / each.nbytes for each in work.linears]
    linears = tuple(
        LinearWork({HALF: each.count}, 2 * each.count, 2 * each.count * part)
        for each, part in zip(work.linears, tiled, strict=True)
    )
    return replace(work, linears=linears, cached_bytes=work.cached_bytes * 2 / cache_item_bytes)


def cache_item_bytes(plan: Plan) -> int:
    """Bytes of a number in the cache, 2 without one."""
    dtypes = {tensor.dtype for tensor in plan.tensors if tensor.space == "cache"}
    return 1 if "int8" in dtypes or "uint8" in dtypes else 4 if dtypes == {"float32"} else 2


def _linear(plan: Plan, step: Step, level: int) -> LinearWork:
    given = dict(zip(plan.parameters[step.kernel], step.args, strict=True))
    nbytes = step.reads[level]
    stored = next(given[name] for name in ("w_base", "w_codes", "w_data") if name in given)
    index = tensor_index(stored, level)
    tensor = plan.tensors[index if index is not None else 0]
    piece = nbytes * min(TILES_AT_A_TIME / int(tensor.dims[0]), 1)
    if "w_base" not in given:
        bits = 8 if "w_codes" in given else HALF if tensor.dtype == "float16" else 32
        return LinearWork({bits: step.weights}, nbytes, piece)
    groups = int(tensor.dims[1])
    names = itertools.takewhile(given.__contains__, (f"n{bit}" for bit in itertools.count(3)))
    ends = [groups, *(_value(given[name], level) for name in names), 0]
    read = {
        bits: step.weights * (end - below) / groups
        for bits, (end, below) in enumerate(itertools.pairwise(ends), start=2)
        if end > below
    }
    return LinearWork(read, nbytes, piece)


def _value(arg: Argument, level: int) -> int:
    if isinstance(arg, Level):
        return arg.values[level]
    assert isinstance(arg, Const)
    return arg.value


def _moved(plan: Plan, step: Step, level: int) -> tuple[float, float]:
    """(activations that a call reads or writes, bytes of the cache for each position)."""
    elements, cached = 0.0, 0.0
    for arg in step.args:
        index = tensor_index(arg, level)
        tensor = plan.tensors[index] if index is not None else None
        if tensor and tensor.space == "arena":
            elements += tensor.byte_size(1) / 4
        elif tensor and tensor.space == "cache" and _reads_cache(plan, step):
            cached += tensor.byte_size(1) / plan.context
    return elements, cached


def _reads_cache(plan: Plan, step: Step) -> bool:
    """Whether it is attention, which has a result; what appends to the cache has none."""
    return "out" in plan.parameters[step.kernel]
