"""The float model in memory, for functions that torch runs whole."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from morendo.ir.reference import ROWS, check_finite
from morendo.ir.weights import Weights

from .stages import Attrs
from .stream import float_rows


class FloatWeights:
    """The model as it came, kept in memory as far as it was read.

    Args:
        weights: of the model.
        dtype: that products are computed in.
    """

    def __init__(self, weights: Weights, dtype: torch.dtype = torch.float32) -> None:
        self.weights, self.dtype = weights, dtype
        self._kept: dict[str, torch.Tensor] = {}
        self._matrices: dict[str, torch.Tensor] = {}

    def get(self, name: str) -> torch.Tensor:
        """A weight as the checkpoint has it.

        Raises:
            CompileError: when it is not finite.
        """
        if name not in self._kept:
            values = self.weights.get(name)
            check_finite(values, name)
            self._kept[name] = torch.from_numpy(np.ascontiguousarray(values))
        return self._kept[name]

    def rows(self, attrs: Attrs, ids: torch.Tensor) -> torch.Tensor:
        """Rows of an embedding's table by ids [1, n]: [1, n, C].

        Raises:
            CompileError: when one is not finite.
        """
        rows = self.weights.rows(attrs["weight"], ids[0].numpy())
        check_finite(rows, attrs["weight"])
        return torch.from_numpy(np.ascontiguousarray(rows))[None]

    def linear(self, attrs: Attrs, x: torch.Tensor) -> torch.Tensor:
        """x [1, n, K] times a linear's matrix: [1, n, N]."""
        name = attrs["weight"]
        if name not in self._matrices:
            self._matrices[name] = self._matrix(attrs)
        return functional.linear(x.to(self.dtype), self._matrices[name]).to(x.dtype)

    def _matrix(self, attrs: Attrs) -> torch.Tensor:
        """A linear's matrix [N, K] in `dtype`, made of a few thousand rows at a time."""
        matrix = torch.empty(attrs["out_features"], attrs["in_features"], dtype=self.dtype)
        for start in range(0, len(matrix), ROWS):
            rows = slice(start, start + ROWS)
            matrix[rows] = torch.from_numpy(self._rows_of(attrs, rows))
        return matrix

    def _rows_of(self, attrs: Attrs, rows: slice) -> np.ndarray:
        """Some rows of a linear's matrix, float32 [n, K]."""
        return float_rows(self.weights, attrs, rows)
