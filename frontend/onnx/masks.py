"""Which keys a mask lets a query see: shown to be causal, with a window, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .lengths import Lengths

_SMALL = (1, 2, 7, 24)
_LARGEST = 4352
"""Tokens up to which a mask is computed: a square of this many floats takes 76 MB."""
_MASKED = -9000.0
"""Older models add -10000 to what is not seen."""


@dataclass(frozen=True)
class Mask:
    """What a causal mask is.

    Attributes:
        window: keys that a query sees, itself included; 0 for all before it.
        slopes: [heads] what is added for each key further on (alibi), None for nothing.
        longest: tokens up to which this was shown.
    """

    window: int
    slopes: np.ndarray | None
    longest: int


def read_mask(
    lengths: Lengths, operands: Iterable[str], added: Callable[[int], np.ndarray], longest: int
) -> Mask | str:
    """The mask that is added to scores, or why it is none that can be compiled.

    A mask compares positions with numbers that the graph holds, so it can only change its kind
    where a length passes one of them: it is computed there, and at small lengths.

    Args:
        operands: the static values that it is computed from.
        added: a number of tokens -> what is added to scores that are 0: [heads, queries, keys].
        longest: tokens that the model is to take.
    """
    numbers = _numbers(lengths, operands)
    tables = _tables(lengths, operands)
    longest = min([longest, *(t for t in tables if t >= max(_SMALL))])
    turns = sorted({n for n in (*numbers, *tables) if max(_SMALL) - 2 < n < longest})
    if turns and turns[-1] > _LARGEST:
        turns = [n for n in turns if n <= _LARGEST]
        longest = min(longest, *(n for n in numbers if n > _LARGEST))
    sizes = [n for n in _SMALL if n <= longest]
    sizes += [min(n + 2, longest) for n in turns]
    if set(tables) & {longest} and longest <= _LARGEST:
        sizes.append(longest)
    found = None
    for tokens in dict.fromkeys(sizes):
        found = _visible(added(tokens), tokens, found)
        if isinstance(found, str):
            return f"{found} at {tokens} tokens"
    if found is None:
        return "the model takes no tokens"
    window, slopes = found
    return Mask(0 if window == 0 or window >= longest else window, slopes, longest)


def _visible(
    scores: np.ndarray, tokens: int, before: tuple[int, np.ndarray | None] | None
) -> tuple[int, np.ndarray | None] | str:
    """(window or 0, slopes) at this length, given what shorter lengths said; or what is wrong."""
    seen = scores > _MASKED
    window = int(seen[0, -1].sum())
    query, key = np.arange(tokens)[:, None], np.arange(tokens)
    want = (key <= query) & (key > query - window)
    if not (seen == want).all():
        return _what(seen, query, key)
    window = window if window < tokens else 0
    if before is not None and before[0] and window != before[0]:
        return "its window changes with the length"
    slopes = _slopes(np.where(seen, scores, 0.0), tokens)
    if isinstance(slopes, str):
        return slopes
    return window, slopes


def _what(seen: np.ndarray, query: np.ndarray, key: np.ndarray) -> str:
    if (seen & (key > query)).any():
        return "a token sees later tokens"
    return "it hides earlier tokens, but not by a window"


def _slopes(bias: np.ndarray, tokens: int) -> np.ndarray | str | None:
    """What is added for each key further on, [heads]; None for nothing."""
    if not np.isfinite(bias).all():
        return "it adds what is no number"
    if not bias.any():
        return None
    slopes = bias[:, -1, -1] - bias[:, -1, -2] if tokens > 1 else np.zeros(len(bias))
    query, key = np.arange(tokens)[:, None], np.arange(tokens)
    relative = bias - np.take_along_axis(bias, np.broadcast_to(query, (len(bias), tokens, 1)), -1)
    want = np.where(key <= query, slopes[:, None, None] * (key - query), 0.0)
    if not np.allclose(np.where(key <= query, relative, 0.0), want, atol=1e-3):
        return "it adds something else than a slope to scores"
    return slopes.astype(np.float32) if tokens > 1 else None


def _numbers(lengths: Lengths, operands: Iterable[str]) -> list[int]:
    """Whole numbers in the small constants that a mask is computed from."""
    stored = lengths.graph.initializers
    found: set[int] = set()
    for name in lengths.leaves(operands):
        if np.prod(stored.shape(name), dtype=np.int64) <= 16:
            values = np.abs(stored.read(name).astype(np.float64).reshape(-1))
            found.update(int(v) for v in values if np.isfinite(v) and v < 1 << 30)
    return sorted(found)


def _tables(lengths: Lengths, operands: Iterable[str]) -> list[int]:
    """Extents of larger constants, such as a stored mask."""
    stored = lengths.graph.initializers
    shapes = [stored.shape(name) for name in lengths.leaves(operands)]
    large = [shape for shape in shapes if np.prod(shape, dtype=np.int64) > 16]
    return sorted({extent for shape in large for extent in shape if extent > 16})
