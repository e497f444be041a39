"""Names for parts of a weight, so that a fused q/k/v matrix can be three linears.

A view is a weight's name and the output features it takes, in brackets:

    w.weight[0:64]       output features 0..63
    w.weight[0:64/192]   those whose index modulo 192 is in 0..63 (q of heads stored q, k, v)
    w.weight[:,0:64]     the same for a matrix stored [in_features, out_features]
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

_VIEW = re.compile(
    r"(?P<base>[^\[\]]+)\[(?P<columns>:,)?(?P<start>\d+):(?P<stop>\d+)(?:/(?P<period>\d+))?\]"
)


@dataclass(frozen=True)
class WeightView:
    """Output features of a weight.

    Attributes:
        base: name of the whole weight.
        start, stop: half-open range of features, within each period.
        period: features after which the range repeats; 0 = it does not.
        columns: the features are the last axis of a matrix, not the first.
    """

    base: str
    start: int
    stop: int
    period: int = 0
    columns: bool = False

    @property
    def name(self) -> str:
        """The view as a weight name."""
        repeat = f"/{self.period}" if self.period else ""
        return f"{self.base}[{':,' if self.columns else ''}{self.start}:{self.stop}{repeat}]"

    def shape(self, base: tuple[int, ...]) -> tuple[int, ...]:
        """The view's shape, given the whole weight's."""
        axis = 1 if self.columns else 0
        repeats = base[axis] // self.period if self.period else 1
        taken = repeats * (self.stop - self.start)
        return (*base[:axis], taken, *base[axis + 1 :])

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The part of the whole weight's array."""
        axis = 1 if self.columns else 0
        if not self.period:
            return array[:, self.start : self.stop] if axis else array[self.start : self.stop]
        split = (*array.shape[:axis], -1, self.period, *array.shape[axis + 1 :])
        parts = array.reshape(split)
        taken = parts[:, :, self.start : self.stop] if axis else parts[:, self.start : self.stop]
        return np.ascontiguousarray(taken).reshape(self.shape(array.shape))


def parse_view(name: str) -> WeightView | None:
    """The view that a name stands for; None for a whole weight's name."""
    match = _VIEW.fullmatch(name)
    if match is None:
        return None
    numbers = {key: int(match[key] or 0) for key in ("start", "stop", "period")}
    return WeightView(match["base"], columns=bool(match["columns"]), **numbers)
