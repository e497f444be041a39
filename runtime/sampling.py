"""Choosing the next token from the logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from morendo.ir.errors import InputError, MorendoError
from morendo.ir.plan import CANDIDATES
from morendo.runtime.arguments import as_integer

_FIRST_CANDIDATES = 1024  # so many likeliest tokens are sorted first; they are often enough

_INEXACT = 1e-5  # of a total that a device has added up

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
        logits = self._penalized(logits, self._all_seen())
        first = likeliest(logits)
        if self.settings.is_greedy:
            return self._saw(first)
        weigh = _Weigh(logits[first], self._scale)
        if not self._cuts(len(logits)):
            return self._saw(self._pick(weigh(logits)))
        ids = self._prefix(logits, weigh)
        return self._saw(int(ids[self._pick(weigh(logits[ids]))]))

    def sharpness(self, vocabulary: int) -> float | None:
        """What logits are multiplied with for the total that `choose` asks for: 0 where it asks for
        the likeliest token alone, None where it would not decide.
        """
        settings, few = self.settings, 0 < self.settings.top_k < vocabulary
        changed = settings.repetition_penalty != 1
        if settings.repetition_penalty < 1:
            return None
        if settings.is_greedy:
            return float(changed)
        undecided = settings.top_k > CANDIDATES if few else settings.top_p < 1 and changed
        return None if undecided or not self._cuts(vocabulary) else float(self._scale)

    def choose(
        self, ids: np.ndarray, logits: np.ndarray, total: float, vocabulary: int
    ) -> int | None:
        """The next token id by the likeliest tokens alone, None where these do not decide.

        Args:
            ids, logits: int32 and float32 [n], in order; of equal logits the first id comes first.
            total: the sum of e^((logit - largest) sharpness) of all tokens, to 1e-5 of it.
        """
        if not len(ids):
            return None
        if not np.isfinite(logits[0]):
            raise MorendoError(f"the model computed {logits[0]} as a logit")
        if self.settings.repetition_penalty != 1:
            ids, logits = self._still_first(ids, logits, vocabulary)
        if not len(ids):
            return None
        if self.settings.is_greedy:
            return self._saw(int(ids[0]))
        weights = _Weigh(logits[0], self._scale)(logits)
        count = self._count(weights, total, len(ids) == vocabulary, vocabulary)
        return self._saw(int(ids[self._pick(weights[:count])])) if count else None

    @property
    def _scale(self) -> np.float32:
        return np.float32(min(1 / self.settings.temperature, _LARGEST))

    def _cuts(self, vocabulary: int) -> bool:
        """Whether some of so many tokens cannot be drawn."""
        settings = self.settings
        return 0 < settings.top_k < vocabulary or settings.top_p < 1 or settings.min_p > 0

    def _saw(self, token: int) -> int:
        self._seen.add(token)
        return token

    def _all_seen(self) -> np.ndarray:
        return np.fromiter(self._seen, np.int64)

    def _penalized(self, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """The logits, those at `seen` changed."""
        if self.settings.repetition_penalty == 1:
            return logits
        penalty = np.float32(self.settings.repetition_penalty)
        logits, old = logits.copy(), logits[seen]
        logits[seen] = np.where(old < 0, old * penalty, old / penalty)
        return logits

    def _still_first(
        self, ids: np.ndarray, logits: np.ndarray, vocabulary: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Those that are the first of all tokens after the penalty, which moves tokens down: what
        stays above the last of the candidates.
        """
        changed = self._penalized(logits, np.flatnonzero(np.isin(ids, self._all_seen())))
        order = np.lexsort((ids, -changed))
        if len(ids) < vocabulary:
            order = order[: np.count_nonzero(changed > logits[-1])]
        return ids[order], changed[order]

    def _pick(self, weights: np.ndarray) -> int:
        cumulative = np.cumsum(weights, dtype=np.float64)
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return min(int(place), len(weights) - 1)

    def _prefix(self, logits: np.ndarray, weigh: _Weigh) -> np.ndarray:
        """The tokens that can be drawn, the likeliest first."""
        top_k, size = int(self.settings.top_k), len(logits)
        few = 0 < top_k < size
        total = 0.0 if few else float(weigh(logits).sum(dtype=np.float64))
        count = top_k if few else min(_FIRST_CANDIDATES, size)
        while True:
            ids = _first(logits, count)
            kept = self._count(weigh(logits[ids]), total, count == size, size, 0)
            if kept:
                return ids[:kept]
            count = min(8 * count, size)

    def _count(
        self, weights: np.ndarray, total: float, whole: bool, size: int, error: float = _INEXACT
    ) -> int:
        """How many of the likeliest tokens can be drawn, 0 where others decide, or rounding.

        Args:
            weights: of the likeliest, in order, 1 for the first.
            total: the weight of all `size` tokens, to `error` of it.
            whole: whether there are no others.
        """
        settings, count = self.settings, len(weights)
        top_k = int(settings.top_k)
        if 0 < top_k < size:
            if top_k > count:
                return 0
            count, whole = top_k, True
        if settings.top_p < 1:
            cumulative = np.cumsum(weights[:count], dtype=np.float64)
            if whole:
                total, error = float(cumulative[-1]), 0
            need = settings.top_p * total * np.array([1 - error, 1 + error])
            least, most = np.searchsorted(cumulative, need) + 1
            if not whole and (least != most or least > count):
                return 0
            count, whole = min(int(least), count), True
        if settings.min_p > 0:
            floor = np.float32(settings.min_p)
            if not whole and weights[count - 1] >= floor:
                return 0
            count, whole = int(np.count_nonzero(weights[:count] >= floor)), True
        return count if whole else 0


@dataclass(frozen=True)
class _Weigh:
    """Weights of logits, 1 for the largest."""

    largest: np.float32
    scale: np.float32

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        return np.exp((logits - self.largest) * self.scale)


def _first(logits: np.ndarray, count: int) -> np.ndarray:
    """The tokens with the `count` largest logits in order; of equal ones the first ids."""
    ids = np.arange(len(logits))
    if count < len(logits):
        least = np.partition(logits, -count)[-count]
        ids = np.flatnonzero(logits > least)
        ids = np.concatenate([ids, np.flatnonzero(logits == least)[: count - len(ids)]])
    return ids[np.lexsort((ids, -logits[ids]))]


def _check(name: str, value: Any, fits: Callable[[Any], bool], need: str) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not fits(value):
        raise InputError(f"{name} must be {need} (got {value!r})")
