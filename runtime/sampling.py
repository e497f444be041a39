"""Choosing the next token from the logits."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from morendo.ir.errors import InputError, MorendoError

_FIRST_CANDIDATES = 1024  # top-p: so many likeliest tokens are sorted first; they are often enough


@dataclass
class Sampler:
    """Draws token ids.

    Args:
        temperature: 0 takes the likeliest token; above, logits are divided by it.
        top_k: draw from the k likeliest tokens only; 0 means from all.
        top_p: draw from the fewest likeliest tokens that have this much probability together.
        seed: of the draws; None differs each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = 0
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0 or more (got {self.temperature})")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 or more (got {self.top_k})")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1 (got {self.top_p})")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed must be 0 or more (got {self.seed})")
        self._random = np.random.default_rng(self.seed)

    def __call__(self, logits: np.ndarray) -> int:
        """The next token id; `logits` is float32 [vocabulary]."""
        likeliest = int(np.argmax(logits))  # a NaN counts as the largest
        if not np.isfinite(logits[likeliest]):
            raise MorendoError(f"the model computed {logits[likeliest]} as a logit")
        if self.temperature == 0:
            return likeliest
        ids, weights = self._candidates(logits, logits[likeliest])
        cumulative = np.cumsum(weights, dtype=np.float64)
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        index = min(int(place), len(weights) - 1)
        return index if ids is None else int(ids[index])

    def _candidates(
        self, logits: np.ndarray, largest: np.float32
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Ids (None: all, in order) and their unnormalized probabilities."""
        ids = None
        if 0 < self.top_k < len(logits):
            ids = np.argpartition(logits, -self.top_k)[-self.top_k :]
            logits = logits[ids]
        weights = np.exp((logits - largest) * np.float32(1 / self.temperature))
        if self.top_p == 1:
            return ids, weights
        kept = _nucleus(weights, self.top_p)
        return (kept if ids is None else ids[kept]), weights[kept]


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
