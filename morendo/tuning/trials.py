"""Measuring schedules on prompts, each answer once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from morendo.quality.scores import compare
from morendo.runtime.schedule import Fall, Schedule, entropy
from morendo.runtime.step_cost import StepCost

from .answers import TOP, Answer, Counts, Model
from .bound import Mean
from .metrics import measure
from .store import Store

Half = str
"""Which prompts: "tuning" or "held_out"."""


@dataclass(frozen=True)
class Figures:
    """A schedule on prompts.

    Attributes:
        quality: mean over the prompts, 1 is that of the top level.
        error: the mean's standard error, over prompts.
        steps: decode steps of all answers.
        bytes, bits: read by a step on average; bits for each weight, 0 where not known.
    """

    quality: float
    error: float
    steps: int
    bytes: float
    bits: float

    @property
    def mean(self) -> Mean:
        """The quality."""
        return Mean(self.quality, self.error)


@dataclass(frozen=True)
class Profile:
    """Along the top level's answer to a prompt, by decode step.

    Attributes:
        doubt: nats of entropy of the distribution that the step's token was drawn from.
        loss: by level, the divergence in nats of what the step predicts from what level 0 does.
    """

    doubt: NDArray[np.float64]
    loss: dict[int, NDArray[np.float64]]


class Trials:
    """Answers of one artifact to prompts, and how good they are.

    Args:
        model: the artifact.
        prompts: by halves.
        metric: of `measure`.
        store: of what was measured.
    """

    def __init__(
        self,
        model: Model,
        prompts: Mapping[Half, Sequence[Sequence[int]]],
        metric: str,
        store: Store,
    ) -> None:
        self.model, self.prompts, self.metric, self.store = model, prompts, metric, store
        self.cost: StepCost = model.session.step_cost

    def top(self, half: Half, number: int) -> Answer:
        """The answer of the top level."""
        key = f"top {half} {number}"
        tokens = self.store.get(key)
        if tokens is None:
            tokens = list(self.model.answer(self.prompts[half][number], TOP).tokens)
            self.store.put(key, tokens)
        return Answer(tuple(tokens), {0: len(tokens) - 1})

    def outcome(self, schedule: Schedule, half: Half, number: int) -> tuple[float, Counts]:
        """(quality, steps of each level) of a schedule's answer to one prompt."""
        top = self.top(half, number)
        if schedule == TOP:
            return 1.0, top.counts
        key = f"{self.metric} {half} {number} {json.dumps(asdict(schedule))}"
        found = self.store.get(key)
        if found is None:
            prompt = self.prompts[half][number]
            quality, counts = measure(self.model, self.metric, prompt, top, schedule)
            found = [quality, list(counts.items())]
            self.store.put(key, found)
        return found[0], dict(map(tuple, found[1]))

    def figures(
        self,
        choose: Callable[[int], Schedule],
        half: Half,
        bound: float = 0.0,
        advance: Callable[[], None] = lambda: None,
    ) -> Figures | None:
        """Measure one schedule for each prompt of a half; None as soon as its mean quality cannot
        reach `bound` any more.
        """
        qualities, counts, count = [], {}, len(self.prompts[half])
        for number in range(count):
            quality, steps = self.outcome(choose(number), half, number)
            qualities.append(quality)
            for level, times in steps.items():
                counts[level] = counts.get(level, 0) + times
            advance()
            if (sum(qualities) + count - len(qualities)) / count < bound:
                return None
        return self.summarize(Mean.of(qualities), counts)

    def summarize(self, mean: Mean, counts: Counts) -> Figures:
        """Figures of steps of these levels; those of level 0 where there was no step."""
        counts = {level: steps for level, steps in counts.items() if steps}
        steps = sum(counts.values())
        mixed = counts or {0: 1}
        return Figures(
            mean.value, mean.error, steps, self.cost.mean_bytes(mixed), self.cost.mean_bits(mixed)
        )

    def profile(self, number: int, levels: Sequence[int]) -> Profile:
        """How far each level is from the top one along its answer to a tuning prompt."""
        key = f"profile {number} {list(levels)}"
        found = self.store.get(key)
        if found is None:
            found = self._profile(number, levels)
            self.store.put(key, found)
        doubt, losses = found
        loss = {level: np.asarray(loss) for level, loss in zip(levels, losses, strict=True)}
        return Profile(np.asarray(doubt), loss)

    def _profile(self, number: int, levels: Sequence[int]) -> tuple[list[float], list[list[float]]]:
        prompt, tokens = self.prompts["tuning"][number], self.top("tuning", number).tokens
        if len(tokens) < 2:
            return [], [[] for _ in levels]
        reference = self.model.score(prompt, tokens)
        losses = []
        for level in levels:
            rows, _ = self.model.follow(prompt, tokens, Fall(((1, level),)))
            scores = compare(rows, np.asarray(tokens[1:]), reference[1:])
            losses.append([round(float(x), 7) for x in scores.divergence])
        return [round(entropy(row), 6) for row in reference[:-1]], losses
