"""A model's weights and what passes make of them: it is here or in the IR, nowhere else.

The IR names what is kept here (an `order`, `factors`, a tuned norm, `codes="calibrated"`), and
invariants (`ir/invariants.py`) check that it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .code_store import CodeStore
from .formats import WeightFormat
from .input_analysis import InputAnalysis
from .reference import Quantized
from .weights import Weights

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


class WeightOverlay:
    """A model's weights, more names beside them, and the codes and analyses of its matrices.

    Args:
        base: the model's weights; their names cannot be taken.
        codes: where calibrate-weights puts codes; None where no pass makes any.

    Attributes:
        analyses: of the inputs of linears, by analyze-group-ranges.
    """

    def __init__(self, base: Weights, codes: CodeStore | None = None) -> None:
        self.base, self.codes = base, codes
        self.analyses: Sequence[InputAnalysis] = ()
        self._vectors: dict[str, np.ndarray] = {}

    def put(self, name: str, values: np.ndarray) -> None:
        """Add a small vector, or replace one that was added."""
        assert name and name not in self.base, name
        self._vectors[name] = values

    def __contains__(self, name: str) -> bool:
        return name in self._vectors or name in self.base

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions of a weight, without reading it."""
        return self._vectors[name].shape if name in self._vectors else self.base.shape(name)

    def get(self, name: str) -> np.ndarray:
        """The data of a weight: float32, or what was added."""
        return self._vectors[name] if name in self._vectors else self.base.get(name)

    def rows(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Some rows of a matrix; the rest is not read where the checkpoint's format allows."""
        return self._vectors[name][rows] if name in self._vectors else self.base.rows(name, rows)

    @property
    def code_store(self) -> CodeStore:
        """Where codes go, for passes that make some."""
        assert self.codes is not None, "a pass that makes codes runs without a place for them"
        return self.codes

    def codes_of(self, name: str, fmt: WeightFormat) -> Quantized | None:
        """A matrix's codes in a format, None where none were made."""
        return None if self.codes is None else self.codes.get(name, fmt)

    def figures_of(self, name: str, fmt: WeightFormat) -> dict[str, float] | None:
        """What was measured when a matrix's codes were made, None where none were."""
        return None if self.codes is None else self.codes.figures(name, fmt)
