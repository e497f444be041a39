"""What a decode step of a plan does at a precision level, as far as its time depends on it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from morendo.ir.plan import Plan, Step, Tensor
from morendo.ir.plan_arguments import Level, tensor_index

from .device import HALF

TILES_AT_A_TIME = 2
"""Row tiles whose weights a kernel reads side by side."""

_STORED = ("w_base", "w_codes", "w_data")  # codes in planes, of 8 bits, floats


@dataclass(frozen=True)
class LinearWork:
    """A matrix times the activations of a token.

    Attributes:
        weights: how many are read in each number of bits, or as `HALF`.
        nbytes: that are read of them, scales and all.
        piece_bytes: of these that are used together, and fetched while others are.
    """

    weights: Mapping[str, float]
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
        attended: products of attention for each position in the cache.
        cached_bytes: of keys and values that it reads for each position.
    """

    linears: tuple[LinearWork, ...]
    elements: float
    attended: float
    cached_bytes: float


def plan_work(plan: Plan, level: int) -> StepWork:
    """The work of a plan's decode step."""
    steps = plan.functions["decode"]
    linears = tuple(_linear(plan, step, level) for step in steps if step.weights)
    elements, attended, cached, one = 0.0, 0.0, 0.0, plan.counts("decode", 1)
    for step in steps:
        tensors = [] if step.weights else _tensors(plan, step, level)
        elements += sum(t.byte_size(one) / 4 for _, t in tensors if t.space == "arena")
        keys_and_values = [t for _, t in tensors if t.space == "cache"]
        for name, result in tensors:
            if name == "out" and keys_and_values:  # attention: what appends to it has no result
                attended += 2 * result.byte_size(one) / 4
                cached += sum(t.byte_size(one) for t in keys_and_values) / plan.context
    return StepWork(linears, elements, attended, cached)


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
    tensors, nbytes = dict(_tensors(plan, step, level)), step.reads[level]
    stored = next(name for name in _STORED if name in tensors)
    tensor, shape = tensors[stored], tensors[stored].shape((1,))
    piece = nbytes * min(TILES_AT_A_TIME / shape[0], 1)
    if stored != "w_base":
        bits = "8" if stored == "w_codes" else HALF if tensor.dtype == "float16" else "32"
        return LinearWork({bits: step.weights}, nbytes, piece)
    groups = shape[1]
    ends = [groups, *_bounds(plan, step, level), 0]
    read = {
        str(bits): step.weights * (end - below) / groups
        for bits, (end, below) in enumerate(itertools.pairwise(ends), start=2)
        if end > below
    }
    return LinearWork(read, nbytes, piece)


def _bounds(plan: Plan, step: Step, level: int) -> list[int]:
    """n3, n4, ... of a call of a kernel with levels."""
    found = []
    for name, arg in zip(plan.parameters[step.kernel], step.args, strict=True):
        if name in ("n3", "n4", "n5", "n6") and isinstance(arg, Level):
            found.append(arg.values[level])
    return found


def _tensors(plan: Plan, step: Step, level: int) -> list[tuple[str, Tensor]]:
    """(parameter, tensor) of a call."""
    indexes = [tensor_index(arg, level) for arg in step.args]
    names = plan.parameters[step.kernel]
    return [(n, plan.tensors[i]) for n, i in zip(names, indexes, strict=True) if i is not None]
