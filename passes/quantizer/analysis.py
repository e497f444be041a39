"""What each group of input channels would lose with fewer bits, from text through the model.

Rounding with error feedback leaves of an error e in channel i the output energy (e / U[i, i])^2,
with U'U = H^-1 (arXiv 2210.17323): that weighs the errors of a matrix. Losses of different matrices
are compared as parts of what they do to the residual stream: the part of the matrix's output that
is lost, times how large the block's output is beside the stream that it becomes part of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from morendo.ir.formats import WeightFormat
from morendo.ir.input_analysis import InputAnalysis
from morendo.ir.reference import ROWS as HEAD_ROWS

from ..streaming.fast_ops import add_lower, symmetric
from ..streaming.stages import Attrs, Stage
from ..streaming.stream import Arrived, StageWeights, float_matrix, float_rows, token_weights
from .error_feedback import inverse_factor
from .fit import Grid, fit_group

OUTLIER = 3.0
"""Weights beyond this many standard deviations of their row's group are its outliers."""
LARGEST_ORDER = 1 << 16
"""Channels of an order, whose places are 16-bit numbers."""
HEAD_INFLUENCE = 5.0
"""What a part of the logits counts beside the same part of the residual stream. Measured: SmolLM2's
body with 4 bits loses 0.011 of the stream and a divergence of 0.052, its head 0.0008 and 0.022.
"""
ROWS = 128
"""Rows of a matrix, evenly spread, that are looked at for losses."""


def weigh_by_influence(analyses: Sequence[InputAnalysis]) -> list[InputAnalysis]:
    """Losses as parts of the residual stream.

    Linears inside of a block count as much as the one that ends it. Where a model has none that
    ends a block, losses stay parts of the outputs.
    """
    weights = influences([analysis.influence for analysis in analyses])
    pairs = zip(analyses, weights, strict=True)
    return [replace(analysis, losses=analysis.losses * weight) for analysis, weight in pairs]


def influences(known: Sequence[float | None]) -> list[float]:
    """What a part of the output of each stage counts: what it does at the end of its block.

    Args:
        known: `influence` of each stage, in order.
    """
    found, influence = [], 1.0
    for each in reversed(known):
        influence = influence if each is None else each
        found.append(influence)
    return found[::-1]


class Analyzer:
    """Makes an `InputAnalysis` of each stage of a stream.

    Args:
        weights: those of the stream.
        sort: order channels; else they stay as they are.
        damping: of the second moments, a part of their mean.
        head: the weight of the model's last linear, if it is analyzed: its output is
            taken without what all logits have in common, and its channels stay.
    """

    def __init__(
        self, weights: StageWeights, sort: bool, damping: float, head: str | None = None
    ) -> None:
        self.weights, self.sort, self.damping, self.head = weights, sort, damping, head

    def visit(self, stage: Stage, inputs: Iterator[Arrived]) -> InputAnalysis:
        """Look at one stage; for `Stream.run`. Tokens count alike, however large they are."""
        is_head = self.head in {attrs["weight"] for attrs in stage.linears}
        matrices = [self._sample(a) if is_head else self._matrix(a) for a in stage.linears]
        columns = stage.linears[0]["in_features"]
        hessian, influence, total = torch.zeros(columns, columns), 0.0, 0.0
        for each in inputs:
            counts = token_weights(len(each.x))
            total += float(counts.sum())
            shares = counts / each.x.square().mean(1).clamp_min(1e-30)
            add_lower(hessian, (each.x * shares[:, None]).T, each.x)
            if each.residual is not None:
                outputs = each.x @ matrices[0].T
                energy = (each.residual + outputs).square().sum(1).clamp_min(1e-30)
                influence += float(counts @ (outputs.square().sum(1) / energy))
        analysis = self._analyze(stage.linears, matrices, symmetric(hessian), not is_head)
        if is_head:
            return replace(analysis, influence=HEAD_INFLUENCE)
        known = stage.residual is not None
        return replace(analysis, influence=influence / total if known else None)

    def _matrix(self, attrs: Attrs) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(float_matrix(self.weights, attrs)))

    def _sample(self, attrs: Attrs) -> torch.Tensor:
        """`ROWS` rows of a head, less the mean of all: what all logits share changes nothing."""
        count, total, sample = attrs["out_features"], torch.zeros(attrs["in_features"]), []
        wanted = torch.arange(0, count, -(-count // ROWS))
        for start in range(0, count, HEAD_ROWS):
            rows = slice(start, min(start + HEAD_ROWS, count))
            part = torch.from_numpy(
                np.ascontiguousarray(float_rows(self.weights.weights, attrs, rows))
            )
            total += part.sum(0)
            inside = (wanted >= rows.start) & (wanted < rows.stop)
            sample.append(part[wanted[inside] - rows.start])
        return torch.cat(sample) - total / count

    def _analyze(
        self,
        linears: list[Attrs],
        matrices: list[torch.Tensor],
        hessian: torch.Tensor,
        sortable: bool,
    ) -> InputAnalysis:
        fmt = WeightFormat.parse(linears[0]["format"])
        size, columns = fmt.group_size, len(hessian)
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        sort = self.sort and sortable and columns <= LARGEST_ORDER
        order = order if sort else torch.arange(columns)
        factor = inverse_factor(hessian, order, self.damping, linears[0]["weight"])
        importance = _grouped(factor.diagonal().square().reciprocal(), size)
        losses = torch.zeros(fmt.bits - 1, len(importance), dtype=torch.float64)
        for matrix in matrices:
            matrix = matrix[:: -(-len(matrix) // ROWS)]
            energy = float(((matrix @ hessian) * matrix).sum(dtype=torch.float64))
            groups = _grouped(matrix.T[order], size)
            losses += _losses(groups, importance, fmt) / max(energy, 1e-30)
        groups = _grouped(torch.cat(matrices).T[order], size)
        beyond = groups.abs() > OUTLIER * groups.std(1, keepdim=True)
        squares = groups.square()
        outliers = (squares * beyond).sum((1, 2)) / squares.sum((1, 2)).clamp_min(1e-30)
        return InputAnalysis(
            tuple(attrs["weight"] for attrs in linears),
            sum(attrs["out_features"] for attrs in linears),
            columns,
            fmt,
            order.to(torch.int32).numpy(),
            losses.numpy(),
            (groups.amax(1) - groups.amin(1)).mean(1).numpy(),
            outliers.numpy(),
            None,
        )


def _grouped(values: torch.Tensor, size: int) -> torch.Tensor:
    """[K, ...] as [G, g, ...], padded with zeros."""
    missing = -len(values) % size
    padded = torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
    return padded.reshape(-1, size, *values.shape[1:])


def _losses(groups: torch.Tensor, importance: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """Energy lost in each group [G, g, N] with importance [G, g] at 2 to B bits: float64
    [B - 1, G].
    """
    count, size, rows = groups.shape
    weight = groups.transpose(0, 1).reshape(size, -1)  # all groups as rows of one: [g, G * N]
    weights = importance.T[:, :, None].expand(size, count, rows).reshape(size, -1)
    losses = torch.zeros(fmt.bits - 1, count, dtype=torch.float64)
    for index, bits in enumerate(range(2, fmt.bits + 1)):
        grid = Grid(bits, fmt.scales, fmt.zeros, fmt.bits)
        row_scale = grid.range(groups, 1)[0].amax(0).repeat(count)
        fit = fit_group(weight, weights, row_scale, grid)
        error = (fit.value(fit.round(weight)) - weight).square_().mul_(weights)
        losses[index] = error.sum(0).reshape(count, rows).sum(1, dtype=torch.float64)
    return losses
