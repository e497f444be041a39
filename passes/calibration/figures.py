"""What rounding lost, as parts of a matrix's output on the calibration text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from morendo.ir.formats import WeightFormat
from morendo.ir.reference import ROWS, Quantized, dequantize, quantize


class Energies:
    """Sums |(W - Q) X|^2 over the rows of a matrix, for its codes and for rounding to nearest.

    Args:
        fmt: of the matrix.
        hessian: X'X of its input, float32 [K, K], channels as they are stored.
    """

    def __init__(self, fmt: WeightFormat, hessian: torch.Tensor) -> None:
        self.format, self.hessian = fmt, hessian
        self.total, self.nearest, self.promoted, self.feedback = 0.0, 0.0, 0.0, 0.0

    def add(self, matrix: np.ndarray, kept: Quantized) -> None:
        """Add rows, float32 [n, K], and what was kept of them."""
        fmt = self.format
        for start in range(0, len(matrix), ROWS):
            rows = matrix[start : start + ROWS]
            columns, part = rows.shape[1], kept.rows(start, start + len(rows))
            self.total += self._energy(rows)
            whole = fmt.of_kernel
            self.nearest += self._energy(rows - dequantize(quantize(rows, whole), whole, columns))
            if fmt.planes:
                cut = replace(fmt, slots=0)
                self.promoted += self._energy(rows - dequantize(quantize(rows, cut), cut, columns))
            self.feedback += self._energy(rows - dequantize(part, fmt, columns))

    def _energy(self, rows: np.ndarray) -> float:
        weight = torch.from_numpy(np.ascontiguousarray(rows))
        return float(((weight @ self.hessian) * weight).sum(dtype=torch.float64))

    def figures(self) -> dict[str, float]:
        """The figures of `Rounded`.

        To four digits: later ones depend on how threads share a sum.
        """
        parts = {
            "nearest": self.nearest,
            "promoted": self.promoted if self.format.planes else self.nearest,
            "feedback": self.feedback,
        }
        total = max(self.total, 1e-30)
        dead = float((self.hessian.diagonal() == 0).sum())
        figures = {name: float(f"{part / total:.4g}") for name, part in parts.items()}
        return {**figures, "dead": dead}
