"""Schedules that could be: what each would read, and a forecast of what it would lose.

The forecast adds up how far single levels were from the top one along its own answers, step by
step. It orders schedules; only those that it finds best for what they read are measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from morendo.ir.errors import InputError
from morendo.runtime.schedule import Entropy, Fall, Schedule
from morendo.runtime.step_cost import StepCost
from morendo.terminal import size

from .trials import Profile

PLACES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Tokens of an answer at which a schedule may switch."""
_DOUBTFUL = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
"""Parts of the steps that a threshold of entropy may keep at the top level."""


@dataclass(frozen=True)
class Candidate:
    """A schedule, and what is expected of it.

    Attributes:
        schedule: what it is.
        bytes: that a step reads on average, if answers are as long as those of the top level.
        loss: nats of divergence from the top level in all answers together.
    """

    schedule: Schedule
    bytes: float
    loss: float


def useful_levels(cost: StepCost) -> list[int]:
    """Level 0 and those that read less than every one before them.

    Raises:
        InputError: when there is level 0 only.
    """
    read = cost.level_bytes
    found = [level for level in range(len(read)) if not level or read[level] < min(read[:level])]
    if len(found) < 2:
        raise InputError(
            f"the artifact has one precision level, there is nothing to switch to (each of its "
            f"{len(read)} levels reads {size(read[0])} a token)",
            hint="compile it with --bits 4, or with a budget",
        )
    return found


class Forecast:
    """What steps at each level read and lose.

    Args:
        profiles: of the tuning prompts.
        cost: of the artifact.
        levels: that schedules may use, 0 first.
    """

    def __init__(self, profiles: Sequence[Profile], cost: StepCost, levels: Sequence[int]) -> None:
        self.levels, self._cost = list(levels), cost
        lengths = [len(profile.doubt) for profile in profiles]
        self.longest = max(lengths, default=0)
        self._token = np.concatenate([np.arange(1, n + 1) for n in lengths])
        self._doubt = np.concatenate([profile.doubt for profile in profiles])
        none = np.zeros(len(self._token))
        self._loss = {0: none} | {
            level: np.concatenate([profile.loss[level] for profile in profiles])
            for level in levels
            if level
        }
        if not self.longest:
            raise InputError(
                "the model ends all answers at once, there is nothing to measure",
                hint="give other prompts",
            )

    def falls(self) -> list[Candidate]:
        """Every fall over the places, at least one level deep."""
        return [self._candidate(fall, self._fallen(fall)) for fall in self._falls()]

    def entropies(self) -> list[Candidate]:
        """Falls to one level, with thresholds."""
        quantiles = np.quantile(self._doubt, [1 - part for part in _DOUBTFUL])
        thresholds = sorted({int(1000 * nats) for nats in quantiles})
        found = []
        for level in self.levels[1:]:
            for place in self._places():
                fall = Fall(((place, level),))
                steps = self._fallen(fall)
                for threshold in thresholds:
                    used = np.where(self._doubt > threshold / 1000, 0, steps)
                    found.append(self._candidate(Entropy(fall, threshold), used))
        return found

    def _places(self) -> list[int]:
        return [place for place in PLACES if place <= self.longest]

    def _falls(self) -> Iterator[Fall]:
        """Each lower level is reached at a place, or never; a later one not before an earlier."""
        never = self.longest + 1
        lower = self.levels[1:]
        for reached in combinations_with_replacement([*self._places(), never], len(lower)):
            lowest: dict[int, int] = {}
            for place, level in zip(reached, lower, strict=True):
                if place < never:
                    lowest[place] = level
            if lowest:
                yield Fall(tuple(lowest.items()))

    def _fallen(self, fall: Fall) -> NDArray[np.int64]:
        """The level of every step."""
        levels = np.zeros(len(self._token), np.int64)
        for token, level in fall.switches:
            levels[self._token >= token] = level
        return levels

    def _candidate(self, schedule: Schedule, steps: NDArray[np.int64]) -> Candidate:
        counts = dict(zip(*np.unique(steps, return_counts=True), strict=True))
        loss = sum(float(self._loss[level][steps == level].sum()) for level in self.levels)
        mean = self._cost.mean_bytes({int(k): int(v) for k, v in counts.items()})
        return Candidate(schedule, mean, loss)


def best_for_their_bytes(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that lose less than all that read no more than they do; the fewest bytes first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.bytes, c.loss)):
        if not front or candidate.loss < front[-1].loss:
            front.append(candidate)
    return front
