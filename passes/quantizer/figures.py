"""What rounding lost, as parts of a matrix's output on the calibration text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from morendo.ir.formats import WeightFormat
from morendo.ir.reference import ROWS, Quantized, dequantize, quantize

LOWER = "feedback_"
"""Begins the names of further readings' figures; the reading's bits follow."""


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
            columns = rows.shape[1]
            whole = fmt.of_kernel
            self.nearest += self._energy(rows - dequantize(quantize(rows, whole), whole, columns))
            if fmt.planes:
                cut = replace(fmt, slots=0)
                self.promoted += self._energy(rows - dequantize(quantize(rows, cut), cut, columns))
        self.add_reading(matrix, kept, 0)

    def add_reading(self, matrix: np.ndarray, kept: Quantized, reading: int) -> None:
        """Add what was kept of rows, float32 [n, K], as a reading has it, and nothing else."""
        for start in range(0, len(matrix), ROWS):
            rows = matrix[start : start + ROWS]
            part = kept.rows(start, start + len(rows))
            self.total += self._energy(rows)
            left = rows - dequantize(part, self.format, rows.shape[1], at=reading)
            self.feedback += self._energy(left)

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


def measure(
    fmt: WeightFormat, moments: Sequence[torch.Tensor], moved: Sequence[np.ndarray], kept: Quantized
) -> dict[str, float]:
    """The figures of a matrix.

    Args:
        moments: of its input at each reading.
        moved: what it was to be at each reading, float32 [N, K] as stored.
    """
    energies = Energies(fmt, moments[0])
    energies.add(moved[0], kept)
    figures = energies.figures()
    for reading, bits in enumerate(fmt.readings[1:], 1):
        lower = Energies(fmt, moments[reading])
        lower.add_reading(moved[reading], kept, reading)
        figures[f"{LOWER}{bits}"] = lower.figures()["feedback"]
    return figures
