"""Choosing the next token from the logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from morendo.ir.errors import InputError, MorendoError
from morendo.runtime.arguments import as_integer

_FIRST_CANDIDATES = 1024  # top-p: so many likeliest tokens are sorted first; they are often enough

_LARGEST = 3e38  # that a float32 can hold, about

_FINITE, _POSITIVE = "a finite number of 0 or more", "a finite number above 0"


@dataclass(frozen=True)
class SamplingSettings:
    """How a token is drawn: the penalty comes first, then temperature, top-k, top-p, min-p.

    This is the order of transformers, and what each does there.

    Args:
        temperature: 0 takes the likeliest token; above, logits are divided by it.
        top_k: draw from the k likeliest tokens only; 0 means from all.
        top_p: draw from the fewest likeliest of these that have this much of their probability.
        min_p: draw from tokens that have at least this part of the likeliest one's probability.
        repetition_penalty: logits of tokens that the text has, prompt included, are divided by it
            where they are positive and multiplied where they are negative; 1 changes nothing.

    Raises:
        InputError: for values of other types or out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, lambda t: 0 <= t < math.inf, _FINITE)
        _check("top_k", self.top_k, lambda k: k >= 0 and k % 1 == 0, "a whole number, 0 or more")
        _check("top_p", self.top_p, lambda p: 0 < p <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, lambda p: 0 <= p <= 1, "0 to 1")
        _check("repetition_penalty", self.repetition_penalty, lambda r: 0 < r < math.inf, _POSITIVE)

    @property
    def is_greedy(self) -> bool:
        """The likeliest token is taken; top_k, top_p and min_p change nothing."""
        return self.temperature == 0

    @property
    def takes_likeliest(self) -> bool:
        """The likeliest token is taken, whatever the text has: nobody else looks at the logits."""
        return self.is_greedy and self.repetition_penalty == 1

    def __str__(self) -> str:
        """As options of the command line: "temperature 0.8, top-p 0.9"."""
        values = asdict(self)
        if self.is_greedy:
            values = {"repetition_penalty": self.repetition_penalty}
        neutral = asdict(SamplingSettings())
        said = [f"{k.replace('_', '-')} {v:g}" for k, v in values.items() if v != neutral[k]]
        return ", ".join(["greedy", *said] if self.is_greedy else said)


def likeliest(logits: np.ndarray) -> int:
    """The id of the largest logit, of equal ones the first.

    Raises:
        MorendoError: where a logit is not a number, or the largest one is infinite.
    """
    best = int(np.argmax(logits))  # a NaN counts as the largest
    if not np.isfinite(logits[best]):
        raise MorendoError(f"the model computed {logits[best]} as a logit")
    return best


class Sampler:
    """Draws the tokens of one text.

    Args:
        settings: how.
        seed: of the draws; None differs each time.
        prompt: ids that count as repeated when they come again.

    Raises:
        InputError: for a negative seed.
    """

    def __init__(
        self,
        settings: SamplingSettings,
        seed: int | None = 0,
        prompt: np.ndarray | tuple[int, ...] = (),
    ) -> None:
        if seed is not None and as_integer("seed", seed) < 0:
            raise InputError(f"seed must be 0 or more (got {seed})")
        self.settings = settings
        self._random = np.random.default_rng(seed)
        self._seen = set(np.asarray(prompt, np.int64).tolist())

    def __call__(self, logits: np.ndarray) -> int:
        """The next token id; `logits` is float32 [vocabulary]."""
        if self.settings.repetition_penalty != 1:
            logits = self._penalized(logits)
        first = likeliest(logits)
        token = first if self.settings.is_greedy else self._draw(logits, logits[first])
        self._seen.add(token)
        return token

    def _penalized(self, logits: np.ndarray) -> np.ndarray:
        seen = np.fromiter(self._seen, np.int64)
        penalty = np.float32(self.settings.repetition_penalty)
        logits, old = logits.copy(), logits[seen]
        logits[seen] = np.where(old < 0, old * penalty, old / penalty)
        return logits

    def _draw(self, logits: np.ndarray, largest: np.float32) -> int:
        ids, weights = self._candidates(logits, largest)
        cumulative = np.cumsum(weights, dtype=np.float64)
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        index = min(int(place), len(weights) - 1)
        return index if ids is None else int(ids[index])

    def _candidates(
        self, logits: np.ndarray, largest: np.float32
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Ids (None: all, in order) and their probabilities, 1 for the likeliest."""
        top_k, top_p, min_p = int(self.settings.top_k), self.settings.top_p, self.settings.min_p
        ids = None
        if 0 < top_k < len(logits):
            ids = np.argpartition(logits, -top_k)[-top_k:]
            logits = logits[ids]
        scale = np.float32(min(1 / self.settings.temperature, _LARGEST))
        weights = np.exp((logits - largest) * scale)
        if top_p < 1:
            kept = _nucleus(weights, top_p)
            ids, weights = (kept if ids is None else ids[kept]), weights[kept]
        if min_p > 0:
            kept = np.flatnonzero(weights >= np.float32(min_p))
            ids, weights = (kept if ids is None else ids[kept]), weights[kept]
        return ids, weights


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indexes of the fewest largest weights that sum up to `top_p` of all, largest first."""
    need = top_p * float(weights.sum(dtype=np.float64))
    count = min(_FIRST_CANDIDATES, len(weights))
    while True:
        largest = np.argpartition(weights, -count)[-count:]
        largest = largest[np.argsort(weights[largest])[::-1]]
        cumulative = np.cumsum(weights[largest], dtype=np.float64)
        if cumulative[-1] >= need or count == len(weights):
            return largest[: int(np.searchsorted(cumulative, need)) + 1]
        count = min(8 * count, len(weights))


def _check(name: str, value: Any, fits: Callable[[Any], bool], need: str) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not fits(value):
        raise InputError(f"{name} must be {need} (got {value!r})")
