"""Tokens that a prefill drops on its way: how many, which, and what a plan calls the counts.

Pruning cuts the layers of a prefill into stages. Stage 0 has all tokens; each later stage has
those that the one before left, and the caches of its layers hold these alone. How many there are
follows from the number of tokens of the call, so that nothing has to be read back from kernels;
which ones, the model's own attention says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT = 10_000
"""A share of tokens is a whole number of these parts, so that every runtime counts alike."""
MOST_STAGES = 8
"""Prunings that a plan may have, the same as in runtime/c/internal.h."""
MOST_DROPPED = UNIT // 2
IMPORTANCES = ("first", "received")
"""What makes a token important: the attention that it pays to the first key of all, or what it
receives from the tokens of its call that see it, on average."""
KEEP_FIRST, KEEP_UNKNOWN = np.float32(2e30), np.float32(1e30)
"""The importance of a token that is never dropped, and of one whose importance is no number."""


@dataclass(frozen=True)
class StageTokens:
    """The number of tokens of a later stage, as an argument of a kernel or a dimension."""

    stage: int


@dataclass(frozen=True)
class StagePosition:
    """How many tokens the caches of a later stage hold before the call, as an argument."""

    stage: int


def kept(tokens: Any, dropped: int) -> Any:
    """How many of `tokens`, a number or an expression, a pruning of `dropped` parts leaves.

    It is tokens - floor((tokens - 1) * dropped / UNIT): one token stays, and of two or more at
    least two do, the first and the last, as long as `dropped` is at most `MOST_DROPPED`.
    """
    return (tokens * (UNIT - dropped) + (dropped + UNIT - 1)) // UNIT


def stage_counts(tokens: int, pruned: Sequence[int]) -> tuple[int, ...]:
    """The tokens of every stage of a prefill of `tokens`, stage 0 first.

    Args:
        pruned: the parts that each pruning drops of what it gets.
    """
    counts = [tokens]
    for dropped in pruned:
        counts.append(kept(counts[-1], dropped))
    return tuple(counts)


def kept_rows(
    importance: NDArray[np.float32], positions: NDArray[np.integer], dropped: int
) -> NDArray[np.intp]:
    """The rows of the tokens that a pruning keeps, ascending.

    Args:
        importance: float32 [n, H] of every head; their sum counts, added head by head.
        positions: of the tokens in the text, [n].
        dropped: parts of `UNIT`.
    """
    total = np.zeros(len(importance), np.float32)
    for head in importance.T:
        total += head
    total[~((total >= 0) & (total <= KEEP_UNKNOWN))] = KEEP_UNKNOWN
    total[positions == 0] = KEEP_FIRST
    total[-1] = KEEP_FIRST
    order = np.argsort(-total, kind="stable")
    return np.sort(order[: kept(len(total), dropped)])
