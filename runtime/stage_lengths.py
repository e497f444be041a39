"""What the caches of a pruned prefill hold of a text; runtime/c/stages.c does the same in C."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from morendo.ir.errors import InputError
from morendo.ir.plan import Plan
from morendo.ir.plan_arguments import tensor_index
from morendo.ir.pruning import StagePosition

_UNKNOWN = -1


class StageLengths:
    """How many tokens the caches of each stage hold, by the positions of the text."""

    def __init__(self, plan: Plan) -> None:
        later = len(plan.pruned)
        self._held = np.zeros((1 + later, (plan.context + 1) if later else 0), np.int32)

    def at(self, position: int) -> tuple[int, ...]:
        """The slots of every stage that a text of `position` tokens fills.

        Raises:
            InputError: for a position that the caches cannot go back to.
        """
        if len(self._held) == 1:
            return (position,)
        found = self._held[:, position]
        if (found == _UNKNOWN).any():
            raise InputError(
                f"position {position} lies within a prefill that dropped tokens, go back to where "
                "it began"
            )
        return tuple(found.tolist())

    def add(self, position: int, counts: Sequence[int]) -> None:
        """Add a call with so many tokens in each stage to a text of `position` tokens."""
        if len(self._held) == 1:
            return
        tokens = counts[0]
        for held, count in zip(self._held, counts, strict=True):
            start = held[position]
            inside = np.arange(1, tokens) + start if count == tokens else _UNKNOWN
            held[position + 1 : position + tokens] = inside
            held[position + tokens] = start + count


def stage_of_cache(plan: Plan, tensor: int) -> int:
    """The stage whose tokens a tensor of the cache holds."""
    for step in plan.functions["decode"]:
        stages = [arg.stage for arg in step.args if isinstance(arg, StagePosition)]
        if stages and any(tensor_index(arg, 0) == tensor for arg in step.args):
            return stages[0]
    return 0
