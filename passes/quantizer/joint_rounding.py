"""Rounding for several readings at once: one code for all, scales and an error for each.

Every reading keeps a copy of the matrix of its own, which its own errors move: error feedback as in
`error_feedback.py`, by the second moments of what arrives there at that reading. A code is the one
of which the weighted sum of the readings' errors is least; MatGPTQ (arXiv 2602.03537) has one copy,
and feeds back the mean of the errors. Scales and zeros of a group are found when its first column
is reached (`joint_fit.py`); fitting them again to the columns as they came changes less than a
hundredth of the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from morendo.ir.formats import WeightFormat
from morendo.ir.reference import ROWS, Quantized, Scales

from .error_feedback import (
    Feedback,
    inverse_factor,
    padded_moments,
    reading_grids,
    rounding_order,
    search_row_scale,
)
from .fit import Grid, GroupFit
from .joint_fit import CodeTable, Target, fit_jointly

NEXT_BIT = 0.18
"""How much errors count in a reading beside those in one that has a bit more: they are about four
times as large, and this leaves about equal parts more than codes made for one reading alone."""


def reading_weights(readings: Sequence[int]) -> tuple[float, ...]:
    """How much the errors of each reading count, by their bits."""
    return tuple(NEXT_BIT ** (readings[0] - bits) for bits in readings)


def round_for_readings(
    weights: Sequence[torch.Tensor],
    moments: Sequence[torch.Tensor],
    fmt: WeightFormat,
    options: Feedback,
    where: str,
) -> Quantized:
    """Codes of W, and scales and zeros of every reading.

    Args:
        weights: float32 [N, K] for each reading, columns as they are stored.
        moments: float32 [K, K] for each reading, X'X of the inputs.
        fmt: with several readings.
        options: with a weight for each reading, or none.
        where: for messages.

    Raises:
        CompileError: when moments cannot be factored.
    """
    rounder = _Rounder(moments, fmt, options, where)
    blocks = zip(*(weight.split(ROWS) for weight in weights), strict=True)
    return Quantized.stacked([rounder.round(block) for block in blocks])


class _Rounder:
    """Rounds rows of matrices that read one input; arguments as of `round_for_readings`."""

    def __init__(
        self, moments: Sequence[torch.Tensor], fmt: WeightFormat, options: Feedback, where: str
    ) -> None:
        columns = len(moments[0])
        weights = options.weights if options.weights else reading_weights(fmt.readings)
        parts = torch.tensor(weights) / sum(weights)
        padded = [padded_moments(each, fmt, options) for each in moments]
        mean = torch.stack([each.diagonal() for each in padded]).mul_(parts[:, None]).sum(0)
        self.format, self.parts = fmt, parts.tolist()
        self.order = rounding_order(mean, fmt.group_size, options.order)
        self.factors = [inverse_factor(each, self.order, options.damping, where) for each in padded]
        self.grids = [reading_grids(fmt, columns, r) for r in range(fmt.reading_count)]

    def round(self, rows: Sequence[torch.Tensor]) -> Quantized:
        """Codes, scales and zeros of some rows, float32 [n, K] for each reading."""
        copies = []
        parts = zip(rows, self.factors, self.grids, self.parts, strict=True)
        for weight, factor, grids, part in parts:
            matrix = torch.zeros(len(self.order), len(weight))  # columns lie one after another
            matrix[: weight.shape[1]] = weight.T
            importance = factor.diagonal().square().reciprocal()
            back = torch.argsort(self.order)
            natural = matrix.reshape(-1, self.format.group_size, len(weight))
            by_group = importance[back].reshape(natural.shape[:2])
            row_scale = search_row_scale(natural, by_group, grids, self.format)
            copies.append(_Copy(matrix[self.order], factor, importance * part, grids, row_scale))
        return _Rounding(copies, self.order, self.format).run()


@dataclass
class _Copy:
    """One reading's matrix on its way.

    Attributes:
        matrix: float32 [Kp, N], columns in rounding order.
        factor: float32 [Kp, Kp], U of the inverse of the moments.
        importance: float32 [Kp], what an error in a column costs, times the reading's weight.
        grids: of the groups in storage order.
        row_scale: float32 [N].
    """

    matrix: torch.Tensor
    factor: torch.Tensor
    importance: torch.Tensor
    grids: list[Grid]
    row_scale: torch.Tensor

    def target(self, columns: slice, group: int) -> Target:
        """Some columns of a group, to be fitted."""
        parts = self.matrix[columns], self.importance[columns]
        return Target(*parts, self.row_scale, self.grids[group])


class _Rounding:
    """Rows of a matrix, group after group."""

    def __init__(self, copies: list[_Copy], order: torch.Tensor, fmt: WeightFormat) -> None:
        self.copies, self.order, self.size = copies, order, fmt.group_size
        self.codes = torch.zeros_like(copies[0].matrix)
        self.fits: dict[int, list[GroupFit]] = {}

    def run(self) -> Quantized:
        """Round all columns."""
        for start in range(0, len(self.order), self.size):
            self._group(start)
        scales = []
        for reading, copy in enumerate(self.copies):
            fits = [self.fits[group][reading] for group in range(len(self.fits))]
            scales.append(
                Scales(
                    torch.stack([fit.code for fit in fits], 1).to(torch.uint8).numpy(),
                    torch.stack([fit.zero for fit in fits], 1).to(torch.int8).numpy(),
                    copy.row_scale.numpy(),
                )
            )
        natural = torch.argsort(self.order)
        codes = self.codes[natural].T.to(torch.int8).contiguous().numpy()
        return Quantized(codes, *scales[0], lower=tuple(scales[1:]))

    def _group(self, start: int) -> None:
        """Round the columns of a group and move all columns behind them."""
        stop, group = start + self.size, int(self.order[start]) // self.size
        columns = slice(start, stop)
        fits = fit_jointly([copy.target(columns, group) for copy in self.copies])
        self.fits[group] = fits
        for copy, error in zip(self.copies, self._feed(columns, fits), strict=True):
            behind = copy.factor[columns, stop:]
            copy.matrix[stop:].addmm_(behind.T, error, alpha=-1)

    def _feed(self, columns: slice, fits: list[GroupFit]) -> list[torch.Tensor]:
        """Choose the codes of a group column by column, feeding errors back inside of it.

        Returns:
            The errors [g, N] of each reading, as parts of the factor's diagonal.
        """
        table = CodeTable(fits)
        blocks = [copy.matrix[columns] for copy in self.copies]
        factors = [copy.factor[columns, columns] for copy in self.copies]
        errors = [torch.empty_like(block) for block in blocks]
        for i in range(self.size):
            at = columns.start + i
            weights = [float(copy.importance[at]) for copy in self.copies]
            codes = table.choose([block[i] for block in blocks], weights)
            self.codes[at] = codes * table.spacing
            values = table.values(codes)
            for block, factor, error, value in zip(blocks, factors, errors, values, strict=True):
                torch.sub(block[i], value, out=error[i]).mul_(1 / factor[i, i])
                block[i + 1 :].addr_(factor[i, i + 1 :], error[i], alpha=-1)
        return errors
