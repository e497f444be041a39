"""What an analysis finds out about the groups of one input of linears."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .formats import WeightFormat


@dataclass(frozen=True)
class InputAnalysis:
    """Linears that read one input.

    Attributes:
        names: of their weights.
        rows: of all matrices together.
        columns: K.
        format: of the matrices, without planes.
        order: int32 [K], channels from the largest mean square to the smallest; groups are cut
            from this order.
        losses: float64 [B - 1, G]: the part of the output lost to rounding a group at 2, 3, ... B
            bits, those of the format, summed over the matrices.
        ranges: float32 [G], the mean over rows of largest minus smallest weight.
        outliers: float32 [G], the part of the weights' squares that is in outliers.
        influence: mean over tokens of |output|^2 / |residual stream after it is added|^2; None
            where the output is not added to one.
    """

    names: tuple[str, ...]
    rows: int
    columns: int
    format: WeightFormat
    order: np.ndarray
    losses: np.ndarray
    ranges: np.ndarray
    outliers: np.ndarray
    influence: float | None
