"""Rotary tables back to frequencies: cos and sin of position * frequency, times one factor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_EXACT = 8e-3
"""What tables in bfloat16 are off by; tables that mean something else are off by more than 1."""


@dataclass(frozen=True)
class Frequencies:
    """What a table means.

    Attributes:
        inv_freq: float32 [R / 2], radians per position.
        scaling: factor of cos and sin.
    """

    inv_freq: np.ndarray
    scaling: float


def frequencies_of(
    cos: np.ndarray, sin: np.ndarray, candidates: Iterable[np.ndarray] = ()
) -> Frequencies | None:
    """The frequencies of tables [positions, R / 2] whose rows are positions 0, 1, 2, ...

    Args:
        candidates: stored vectors, one of which may be the frequencies themselves; it is exact
            where tables are rounded.

    Returns:
        None when no frequencies give this table.
    """
    cos, sin = cos.astype(np.float64), sin.astype(np.float64)
    scaling = float(np.median(np.hypot(cos, sin)))
    if not np.isfinite(scaling) or scaling <= 0 or not np.isfinite(cos).all():
        return None
    angle = np.arctan2(sin, cos)
    found = np.zeros(cos.shape[1])
    step = 1
    while step < len(angle):  # a turn more or less is told by what shorter distances said
        off = angle[step] - angle[0] - found * step
        found += (off - 2 * np.pi * np.round(off / (2 * np.pi))) / step
        step *= 2
    close = [c for c in candidates if c.shape == found.shape and np.allclose(c, found, 1e-3, 1e-5)]
    for guess in (*close, found):
        # What half precision does to 1 is no factor.
        factor = 1.0 if abs(scaling - 1) < 2e-3 else float(f"{scaling:.7g}")
        result = Frequencies(guess.astype(np.float32), factor)
        if _fits(result, cos, sin):
            return result
    return None


def _fits(result: Frequencies, cos: np.ndarray, sin: np.ndarray) -> bool:
    positions = np.arange(len(cos), dtype=np.float32)[:, None]
    turn = (positions * result.inv_freq).astype(np.float64)
    # float32 angles of late positions are rounded themselves
    slack = _EXACT * max(1.0, result.scaling) + 1e-6 * len(cos)
    return bool(
        (np.abs(np.cos(turn) * result.scaling - cos) < slack).all()
        and (np.abs(np.sin(turn) * result.scaling - sin) < slack).all()
    )
