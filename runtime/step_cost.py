"""What a decode step reads, by precision level: bytes, and the number of weights they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from morendo.ir.plan import Level, Plan, Step, tensor_index


@dataclass(frozen=True)
class StepCost:
    """What decode steps read.

    Attributes:
        level_bytes: of weights, by level.
        weights: how many they stand for; 0 where that is not known.
    """

    level_bytes: tuple[int, ...]
    weights: int

    @classmethod
    def of(cls, plan: Plan, matrices: Iterable[Mapping[str, Any]]) -> StepCost:
        """The cost of a plan's steps; `matrices` as `WEIGHT_LIST` has them."""
        level_bytes = tuple(decode_bytes(plan, level) for level in range(plan.levels))
        return cls(level_bytes, decode_weights(plan, matrices))

    def mean_bytes(self, counts: Mapping[int, int]) -> float:
        """Bytes of a step, given the number of steps of each level."""
        total = sum(self.level_bytes[level] * steps for level, steps in counts.items())
        return total / sum(counts.values())

    def mean_bits(self, counts: Mapping[int, int]) -> float:
        """The same in bits of a weight, scales, outliers and head counted; 0 if not known."""
        return 8 * self.mean_bytes(counts) / self.weights if self.weights else 0.0


def decode_bytes(plan: Plan, level: int) -> int:
    """Bytes of weights that a decode step reads; an embedding's single row is left out."""
    read: dict[int, int] = {}
    for step in _reading_steps(plan):
        read |= weights_read(plan, step, level)
    return sum(read.values())


def decode_bytes_by_kernel(plan: Plan) -> dict[str, list[int]]:
    """The same by the kernel that reads them: bytes at every level."""
    found: dict[str, list[int]] = {}
    for step in _reading_steps(plan):
        sums = found.setdefault(plan.kernels[step.kernel], [0] * plan.levels)
        for level in range(plan.levels):
            sums[level] += sum(weights_read(plan, step, level).values())
    return {name: sums for name, sums in found.items() if any(sums)}


def decode_weights(plan: Plan, matrices: Iterable[Mapping[str, Any]]) -> int:
    """Number of weights in the matrices that a decode step multiplies with.

    Args:
        plan: of the artifact.
        matrices: as `WEIGHT_LIST` has them.
    """
    tensors = [i for step in _reading_steps(plan) for i in weights_read(plan, step, 0)]
    places = {plan.tensors[index].offset for index in tensors}
    read = [m for m in matrices if m["offsets"][0] in places]
    return sum(sum(m["rows"]) * m["columns"] for m in read)


def _reading_steps(plan: Plan) -> list[Step]:
    """The steps that read whole matrices: all but those of embeddings."""
    steps = plan.functions["decode"]
    return [step for step in steps if not plan.kernels[step.kernel].startswith("embedding")]


def weights_read(plan: Plan, step: Step, level: int) -> dict[int, int]:
    """Bytes read of each weights tensor of a step, by the tensor's index."""
    found = [tensor_index(arg, level) for arg in step.args]
    indexes = [i for i in found if i is not None and plan.tensors[i].space == "weights"]
    read = {index: plan.tensors[index].byte_size(1) for index in indexes}
    bounds = [arg.values[level] for arg in step.args if isinstance(arg, Level)]
    # A kernel with precision levels takes base, plane3, plane4, ... and reads n3, n4, ... groups of
    # the planes, whose second axis is the group. Outliers are its only tensors with two axes.
    for index, groups in zip(indexes[1:], bounds, strict=False):
        stored = plan.tensors[index].dims[1]
        read[index] = read[index] * groups // int(stored) if stored else 0
    if indexes and bounds and bounds[0] == plan.tensors[indexes[0]].dims[1]:
        read |= {index: 0 for index in indexes if len(plan.tensors[index].dims) == 2}
    return read
