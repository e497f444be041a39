"""Answers under a schedule: drawn greedily, or along a text that is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from morendo.ir.errors import MorendoError
from morendo.runtime.schedule import Fall, Schedule
from morendo.runtime.session import Session

TOP = Fall()
Counts = dict[int, int]
"""Decode steps of each precision level."""


@dataclass(frozen=True)
class Answer:
    """What a model says to a prompt.

    Attributes:
        tokens: the last one is a stop token where it ended by itself.
        counts: steps of each level.
    """

    tokens: tuple[int, ...]
    counts: Counts = field(default_factory=dict)


class Model:
    """An artifact that answers; the session must have no other use meanwhile.

    Args:
        session: of the artifact.
        max_tokens: of an answer.

    Attributes:
        decode_seconds: that all decode steps took so far, the choice of their levels included.
    """

    def __init__(self, session: Session, max_tokens: int) -> None:
        self.session, self.max_tokens = session, max_tokens
        self.decode_seconds = 0.0
        self.stops = frozenset(session.manifest["tokenizer"]["stop"])

    def answer(self, prompt: Sequence[int], schedule: Schedule) -> Answer:
        """The likeliest token each time."""
        tokens: list[int] = []

        def draw(logits: NDArray[np.float32]) -> int | None:
            tokens.append(_likeliest(logits))
            ended = tokens[-1] in self.stops or len(tokens) == self.max_tokens
            return None if ended else tokens[-1]

        counts = self._run(prompt, schedule, draw)
        return Answer(tuple(tokens), counts)

    def follow(
        self, prompt: Sequence[int], tokens: Sequence[int], schedule: Schedule
    ) -> tuple[NDArray[np.float32], Counts]:
        """Logits that a schedule's decode steps give along a text.

        Args:
            prompt: before the text.
            tokens: the text.
            schedule: that computes it.

        Returns:
            [tokens - 1, vocabulary]: row t predicts tokens[t + 1], the first is the prefill's and
            left out. The steps of each level.
        """
        rows, counts = self._rows(prompt, tokens, schedule)
        return rows[1:], counts

    def score(self, prompt: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits of level 0 that predict `tokens`, all of them: [tokens, vocabulary].

        They come from decode steps, as those of schedules do: kernels for many tokens round
        activations after other sums, which is a divergence of its own.
        """
        return self._rows(prompt, tokens, TOP)[0]

    def _rows(
        self, prompt: Sequence[int], tokens: Sequence[int], schedule: Schedule
    ) -> tuple[NDArray[np.float32], Counts]:
        rows = np.empty((len(tokens), self.session.vocabulary), np.float32)
        step = 0

        def draw(logits: NDArray[np.float32]) -> int | None:
            nonlocal step
            rows[step] = logits
            step += 1
            return tokens[step - 1] if step < len(tokens) else None

        counts = self._run(prompt, schedule, draw)
        return rows, counts

    def features(self, prompt: Sequence[int], cache: int, window: int) -> NDArray[np.float64]:
        """What a learned schedule sees of a prompt."""
        self.session.set_level(0)
        self.session.executor.set_position(0)
        self.session.executor.prefill(list(prompt))
        return self.session.executor.cache_means(cache, window)

    def _run(
        self,
        prompt: Sequence[int],
        schedule: Schedule,
        draw: Callable[[NDArray[np.float32]], int | None],
    ) -> Counts:
        executor, counts = self.session.executor, {}
        self.session.set_level(0)
        executor.set_position(0)
        logits = executor.prefill(list(prompt))
        levels = schedule.start(executor.cache_means)
        while (token := draw(logits)) is not None:
            start = time.perf_counter()
            level = levels(logits)
            self.session.set_level(level)
            counts[level] = counts.get(level, 0) + 1
            logits = executor.decode(token)
            self.decode_seconds += time.perf_counter() - start
        return counts


def _likeliest(logits: NDArray[np.float32]) -> int:
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise MorendoError(
            f"a logit is not finite (got {logits[best]} for token id {best})",
            hint="the weights overflow, or a kernel is wrong",
        )
    return best
