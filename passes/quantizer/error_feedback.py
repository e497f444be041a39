"""Rounding with error feedback: each column's error is paid for by the columns not yet rounded.

GPTQ (arXiv 2210.17323): with H = X'X of the inputs and U'U = H^-1 (U upper triangular), rounding
column i with error e = (w - q) / U[i, i] moves the later columns by -e U[i, i+1:]; the output error
W X - Q X of the rows is then the least that the later columns can make it. Scale and zero of a
group are found when its first column is reached, from the columns as they are by then, and in
the two-level form of arXiv 2311.16442 that is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.ir.outliers import Outliers
from morendo.ir.reference import ROWS, Quantized, stored_row_scale

from .fit import Grid, GroupFit, fit_group

_COLUMNS = 512  # of an inverse at a time
ROW_PARTS = (1.0, 0.7, 0.5, 0.35, 0.25)
"""Of the largest step in a row, what is tried as the row's scale."""
ROW_GAIN = 0.5
"""A smaller part has to leave so much of the error: the search cuts off large weights as well."""
BLOCK = 128  # columns rounded before the rest of the matrix is updated, as in GPTQ


@dataclass(frozen=True)
class Feedback:
    """Options of the rounding.

    Attributes:
        damping: added to the diagonal of H, as a part of its mean.
        shrinkage: how far H moves towards its diagonal, 0 to 1: correlations of a text that
            others do not have count less.
        order: in which order columns are rounded: "natural" (as they are stored), "groups" (those
            with the largest diagonal first, whole groups) or "channels" (column by column, scales
            found before).
        search: find scale and zero by search, not by the range alone.
        feedback: without it errors stay where they are, to see what the feedback is worth.
        weights: of the errors of the readings, for formats that have several; () are those of
            `joint_rounding.reading_weights`.
    """

    damping: float = 0.01
    shrinkage: float = 0.0
    order: str = "groups"
    search: bool = True
    feedback: bool = True
    weights: tuple[float, ...] = ()


def round_with_feedback(
    weight: torch.Tensor, hessian: torch.Tensor, fmt: WeightFormat, options: Feedback, where: str
) -> Quantized:
    """Codes, scales and zeros of W.

    Args:
        weight: float32 [N, K], columns as they are stored.
        hessian: float32 [K, K], X'X of the inputs; rows of dead channels are 0.
        fmt: nested with any planes, or "q8".
        where: for messages.

    Raises:
        CompileError: when H cannot be factored.
    """
    rounder = Rounder(hessian, fmt, options, where)
    return Quantized.stacked([rounder.round(block) for block in weight.split(ROWS)])


class Rounder:
    """Rounds rows of matrices that read one input; arguments as of `round_with_feedback`."""

    def __init__(
        self, hessian: torch.Tensor, fmt: WeightFormat, options: Feedback, where: str
    ) -> None:
        columns, hessian = len(hessian), padded_moments(hessian, fmt, options)
        self.format, self.options = fmt, options
        self.order = rounding_order(hessian.diagonal(), fmt.group_size, options.order)
        self.factor = inverse_factor(hessian, self.order, options.damping, where)
        self.grids = reading_grids(fmt, columns)

    def round(self, rows: torch.Tensor) -> Quantized:
        """Codes, scales and zeros of some rows, float32 [n, K]; whole tiles but for the last."""
        matrix = torch.zeros(len(self.order), len(rows))  # columns lie one after another
        matrix[: rows.shape[1]] = rows.T
        parts = matrix[self.order], self.factor, self.order
        return _Rounding(*parts, self.grids, self.format, self.options).run()


def padded_moments(hessian: torch.Tensor, fmt: WeightFormat, options: Feedback) -> torch.Tensor:
    """H [K, K] with zeros up to whole groups, shrunk towards its diagonal; that alone where errors
    are not fed back.
    """
    missing = fmt.padded_features(len(hessian)) - len(hessian)
    if missing:
        hessian = torch.nn.functional.pad(hessian, (0, missing, 0, missing))
    kept = 1.0 - options.shrinkage if options.feedback else 0.0
    return hessian if kept == 1.0 else hessian.diagonal().diag().lerp(hessian, kept)


def reading_grids(fmt: WeightFormat, in_features: int, reading: int = 0) -> list[Grid]:
    """What the groups of a matrix can hold as a reading sees them, in storage order."""
    if not fmt.nested:
        return [Grid(fmt.bits)] * fmt.groups(in_features)
    bits = fmt.group_bits(in_features, reading)
    return [Grid(each, fmt.scales, fmt.zeros, fmt.bits) for each in bits]


def rounding_order(diagonal: torch.Tensor, group: int, order: str) -> torch.Tensor:
    """Column indices in the order in which they are rounded."""
    if order == "natural":
        return torch.arange(len(diagonal))
    if order == "channels":
        return torch.argsort(diagonal, descending=True, stable=True)
    grouped = diagonal.reshape(-1, group)
    groups = torch.argsort(grouped.sum(1), descending=True, stable=True)
    inside = torch.argsort(grouped, dim=1, descending=True, stable=True)
    return (groups[:, None] * group + inside[groups]).reshape(-1)


def inverse_factor(
    hessian: torch.Tensor, order: torch.Tensor, damping: float, where: str
) -> torch.Tensor:
    """Upper triangular U with U'U = H^-1 for the damped H [K, K] in an order: float32 [K, K].

    With J the reversal of the order and L L' = J H J, U = J L^-1 J: one factorization and one
    triangular inverse, in float64. At most two such matrices are in memory beside H and U.

    Raises:
        CompileError: when H is not finite or cannot be factored.
    """
    backward = order.flip(0)
    reversed_ = hessian[backward][:, backward].double()
    diagonal = reversed_.diagonal()
    mean = diagonal.mean().clamp_min(1e-30)
    diagonal[diagonal <= 0] = mean  # dead: nothing is known, rounded to nearest
    diagonal += damping * mean
    lower = cholesky(reversed_, where)
    del reversed_, diagonal
    inverse = torch.empty_like(hessian)
    for start in range(0, len(lower), _COLUMNS):
        unit = torch.zeros(len(lower), min(_COLUMNS, len(lower) - start), dtype=torch.float64)
        unit[start:].fill_diagonal_(1.0)
        inverse[:, start : start + _COLUMNS] = torch.linalg.solve_triangular(
            lower, unit, upper=False
        )
    return inverse.flip(0, 1)


def cholesky(moments: torch.Tensor, where: str) -> torch.Tensor:
    """The lower triangular factor of damped second moments, float64 [K, K].

    Raises:
        CompileError: when they are not finite or cannot be factored.
    """
    if not torch.isfinite(moments.diagonal()).all():
        raise CompileError(
            "the input of a linear is not finite on the calibration text",
            where=where,
            hint="the model overflows in float32, or an earlier weight is damaged",
        )
    lower, failed = torch.linalg.cholesky_ex(moments)
    if failed:
        raise CompileError(
            "the inputs' second moments cannot be factored",
            where=where,
            hint="calibrate with more text or more damping",
        )
    return lower


def search_row_scale(
    matrix: torch.Tensor, importance: torch.Tensor, grids: list[Grid], fmt: WeightFormat
) -> torch.Tensor:
    """The storable row scales float32 [N] of W as [G, g, N], importance [G, g].

    The largest step of the row's groups; where the format's scales do not go far down, perhaps a
    part of it: rounding other groups better can be worth cutting off the largest weights.
    """
    ranges = [grid.range(group) for grid, group in zip(grids, matrix, strict=True)]
    largest = torch.stack([step for step, _ in ranges]).amax(0)
    best, least = largest, torch.full_like(largest, torch.inf)
    for part in ROW_PARTS if fmt.compact else ROW_PARTS[:1]:
        row_scale = torch.from_numpy(stored_row_scale((largest * part).numpy(), fmt))
        error = torch.zeros_like(largest)
        for grid, group, weights, (step, low) in zip(
            grids, matrix, importance, ranges, strict=True
        ):
            fit = grid.fit(step, low, row_scale)
            off = (fit.value(fit.round(group)) - group).square_()
            error += weights @ off
        better = error < least * ROW_GAIN
        best = torch.where(better, row_scale, best)
        least = torch.where(better, error, least)
    return best


class _Rounding:
    """Rows of a matrix on their way; columns are in rounding order and lie as rows of `matrix`."""

    def __init__(
        self,
        matrix: torch.Tensor,
        factor: torch.Tensor,
        order: torch.Tensor,
        grids: list[Grid],
        fmt: WeightFormat,
        options: Feedback,
    ) -> None:
        self.matrix, self.factor, self.order = matrix, factor, order
        self.grids, self.options = grids, options
        self.group, self.row_tile = fmt.group_size, fmt.row_tile
        self.codes = torch.zeros_like(matrix)
        self.importance = factor.diagonal().square().reciprocal()
        back = torch.argsort(order)
        natural = matrix[back].reshape(-1, self.group, matrix.shape[1])
        importance = self.importance[back].reshape(-1, self.group)
        self.row_scale = search_row_scale(natural, importance, grids, fmt)
        self.fits: dict[int, GroupFit] = {}
        sparse = self._outliers(natural, importance, fmt.slots) if fmt.slots else None
        self.sparse = None if sparse is None else sparse[order]
        self.outliers: list[Outliers] = []
        if options.order == "channels":
            for index, columns in enumerate(natural):
                self.fits[index] = self._fit(index, columns, importance[index])

    def _fit(
        self,
        group: int,
        columns: torch.Tensor,
        importance: torch.Tensor,
        sparse: torch.Tensor | None = None,
    ) -> GroupFit:
        """Scale and zero of a group [g, N] for what is not an outlier."""
        grid = self.grids[group]
        if sparse is not None:
            importance = torch.where(sparse, 0.0, importance[:, None])
            columns = torch.where(sparse, 0.0, columns)
        if self.options.search:
            return fit_group(columns, importance, self.row_scale, grid)
        return grid.fit(*grid.range(columns), self.row_scale)

    def _outliers(
        self, natural: torch.Tensor, importance: torch.Tensor, slots: int
    ) -> torch.Tensor:
        """Where 2 bits would cost most, so many for each tile of rows: bool [Kp, N].

        Args:
            natural: the matrix as it is stored, [G, g, N].
            importance: of its columns, [G, g].
        """
        costs = torch.zeros_like(natural)
        for index, grid in enumerate(self.grids):
            if grid.bits == 2:
                fit = self._fit(index, natural[index], importance[index])
                error = fit.value(fit.round(natural[index])) - natural[index]
                costs[index] = error.square() * importance[index][:, None]
        columns, rows, tile = len(self.order), natural.shape[2], self.row_tile
        by_tile = costs.reshape(columns, rows // tile, tile).transpose(0, 1)
        by_tile = by_tile.reshape(rows // tile, -1)
        chosen = torch.zeros_like(by_tile, dtype=torch.bool)
        chosen.scatter_(1, torch.topk(by_tile, slots, dim=1).indices, True)
        chosen &= by_tile > 0
        whole = chosen.reshape(rows // tile, columns, tile).transpose(0, 1)
        return whole.reshape(columns, rows)

    def run(self) -> Quantized:
        """Round all columns."""
        count = len(self.matrix)
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            errors = self._block(start, stop)
            self.matrix[stop:].addmm_(self.factor[start:stop, stop:].T, errors, alpha=-1)
        natural = torch.argsort(self.order)
        fits = [self.fits[index] for index in range(count // self.group)]
        return Quantized(
            self.codes[natural].T.to(torch.int8).contiguous().numpy(),
            torch.stack([fit.code for fit in fits], 1).to(torch.uint8).numpy(),
            torch.stack([fit.zero for fit in fits], 1).to(torch.int8).numpy(),
            self.row_scale.numpy(),
            Outliers.joined(self.outliers) if self.outliers else None,
        )

    def _block(self, start: int, stop: int) -> torch.Tensor:
        """Round columns start..stop, feeding errors back inside; the errors [stop-start, N]."""
        block, factor = self.matrix[start:stop], self.factor[start:stop, start:stop]
        errors = torch.empty_like(block)
        for i in range(stop - start):
            group = int(self.order[start + i]) // self.group
            if group not in self.fits:
                columns = slice(start + i, start + i + self.group)
                sparse = None if self.sparse is None else self.sparse[columns]
                parts = self.matrix[columns], self.importance[columns]
                self.fits[group] = self._fit(group, *parts, sparse)
            fit = self.fits[group]
            codes = fit.round(block[i])
            self.codes[start + i] = codes * fit.grid.spacing
            left = block[i] - fit.value(codes)
            if self.sparse is not None:
                left -= self._split(start + i, self.sparse[start + i], left)
            torch.mul(left, 1 / factor[i, i], out=errors[i])
            block[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
        return errors

    def _split(self, column: int, sparse: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Keep what is left of a column's outliers as 16-bit values: those values [N]."""
        rows = torch.nonzero(sparse)[:, 0]
        values = torch.zeros_like(left)
        values[rows] = left[rows].half().float()
        channel = np.full(len(rows), int(self.order[column]), np.int32)
        kept = values[rows].numpy().astype(np.float16)
        self.outliers.append(Outliers(rows.numpy().astype(np.int32), channel, kept))
        return values
