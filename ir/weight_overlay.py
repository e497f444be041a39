"""A model's weights and what passes derive from them, such as the order of a linear's channels."""

from __future__ import annotations

from typing import Protocol

import numpy as np

_TUNED = ".tuned"
_FACTORS = ".factors"


def factors_name(weight: str) -> str:
    """The name of the factors of channels that linears read, by the weight of the first."""
    return f"{weight}{_FACTORS}"


def is_derived(name: str) -> bool:
    """Whether a vector of an artifact is what passes made and no checkpoint has."""
    return untuned_name(name) is not None or name.endswith(_FACTORS)


def tuned_name(name: str, reading: int = 0) -> str:
    """The name of a vector's values after tuning, for one reading of the matrices."""
    return f"{name}{_TUNED}{reading or ''}"


def untuned_name(name: str) -> tuple[str, int] | None:
    """The name of what was tuned, and for which reading; None when these are no tuned values."""
    original, mark, reading = name.rpartition(_TUNED)
    known = mark and (reading.isdecimal() or not reading)
    return (original, int(reading or 0)) if known else None


class Weights(Protocol):
    """What passes ask of a WeightStore: names, shapes, one matrix or some of its rows."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def get(self, name: str) -> np.ndarray: ...

    def rows(self, name: str, rows: slice | np.ndarray) -> np.ndarray: ...


class WeightOverlay:
    """A WeightStore with more names: small vectors that passes made, kept in memory.

    Args:
        base: the model's weights; their names cannot be taken.
    """

    def __init__(self, base: Weights) -> None:
        self.base = base
        self._derived: dict[str, np.ndarray] = {}

    def put(self, name: str, values: np.ndarray) -> None:
        """Add a vector, or replace one that was added."""
        assert name and name not in self.base, name
        self._derived[name] = values

    def __contains__(self, name: str) -> bool:
        return name in self._derived or name in self.base

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions of a weight, without reading it."""
        return self._derived[name].shape if name in self._derived else self.base.shape(name)

    def get(self, name: str) -> np.ndarray:
        """The data of a weight: float32, or what was added."""
        return self._derived[name] if name in self._derived else self.base.get(name)

    def rows(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Some rows of a matrix; the rest is not read where the checkpoint's format allows."""
        return self._derived[name][rows] if name in self._derived else self.base.rows(name, rows)
