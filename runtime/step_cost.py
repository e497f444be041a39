"""What a decode step reads, by precision level: bytes, and the number of weights they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from morendo.ir.plan import Plan


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
    def of(cls, plan: Plan) -> StepCost:
        """The cost of a plan's decode steps."""
        steps = plan.functions["decode"]
        levels = range(plan.levels)
        level_bytes = tuple(sum(step.reads[level] for step in steps) for level in levels)
        return cls(level_bytes, sum(step.weights for step in steps))

    def mean_bytes(self, counts: Mapping[int, int]) -> float:
        """Bytes of a step, given the number of steps of each level."""
        total = sum(self.level_bytes[level] * steps for level, steps in counts.items())
        return total / sum(counts.values())

    def mean_bits(self, counts: Mapping[int, int]) -> float:
        """The same in bits of a weight, scales, outliers and head counted; 0 if not known."""
        return 8 * self.mean_bytes(counts) / self.weights if self.weights else 0.0
