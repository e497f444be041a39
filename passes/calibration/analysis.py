"""What each group of input channels would lose at 2, 3 and 4 bit, from text through the model.

Losses of different matrices are compared as parts of their outputs: a channel's weight in the loss
of a matrix is the mean over tokens of x^2 / |W x|^2. Linears that share an input share the order
of its channels, so they are analyzed together and their losses are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from morendo.ir.formats import WeightFormat

from .fit import Grid, fit_group
from .stages import Attrs, Stage
from .stream import StageWeights, float_matrix, token_weights

BITS = (2, 3, 4)
OUTLIER = 3.0
"""Weights beyond this many standard deviations of their row's group are its outliers."""


@dataclass(frozen=True)
class InputAnalysis:
    """Linears that read one input.

    Attributes:
        names: of their weights.
        rows: of all matrices together.
        columns: K.
        group_size: g.
        order: int32 [K], channels from the largest mean square to the smallest; groups are cut
            from this order.
        losses: float64 [3, G]: the part of the output lost to rounding a group at `BITS`, summed
            over the matrices.
        ranges: float32 [G], the mean over rows of largest minus smallest weight.
        outliers: float32 [G], the part of the weights' squares that is in outliers.
    """

    names: tuple[str, ...]
    rows: int
    columns: int
    group_size: int
    order: np.ndarray
    losses: np.ndarray
    ranges: np.ndarray
    outliers: np.ndarray


class Analyzer:
    """Makes an `InputAnalysis` of each stage of a stream.

    Args:
        weights: those of the stream.
        sort: order channels; else they stay as they are.
    """

    def __init__(self, weights: StageWeights, sort: bool) -> None:
        self.weights, self.sort = weights, sort

    def visit(self, stage: Stage, inputs: Iterator[torch.Tensor]) -> InputAnalysis:
        """Look at one stage; for `Stream.run`."""
        matrices = [self._matrix(attrs) for attrs in stage.linears]
        shares = [torch.zeros(stage.linears[0]["in_features"]) for _ in matrices]
        squares, total = torch.zeros_like(shares[0]), 0.0
        for x in inputs:
            counts = token_weights(len(x))
            total += float(counts.sum())
            squares += counts @ x.square()
            for share, matrix in zip(shares, matrices, strict=True):
                energy = (x @ matrix.T).square().sum(1).clamp_min(1e-30)
                share += (counts / energy) @ x.square()
        order = torch.argsort(squares, descending=True, stable=True)
        order = order if self.sort else torch.arange(len(squares))
        return _analyze(stage.linears, matrices, [s / total for s in shares], order)

    def _matrix(self, attrs: Attrs) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(float_matrix(self.weights, attrs)))


def _analyze(
    linears: list[Attrs],
    matrices: list[torch.Tensor],
    shares: list[torch.Tensor],
    order: torch.Tensor,
) -> InputAnalysis:
    size = WeightFormat.parse(linears[0]["format"]).group_size
    columns = len(order)
    losses = torch.zeros(len(BITS), -(-columns // size), dtype=torch.float64)
    for matrix, share in zip(matrices, shares, strict=True):
        losses += _losses(_grouped(matrix.T[order], size), _grouped(share[order], size))
    groups = _grouped(torch.cat(matrices).T[order], size)
    beyond = groups.abs() > OUTLIER * groups.std(1, keepdim=True)
    outliers = (groups * beyond).square().sum((1, 2)) / groups.square().sum((1, 2)).clamp_min(1e-30)
    return InputAnalysis(
        tuple(attrs["weight"] for attrs in linears),
        sum(len(matrix) for matrix in matrices),
        columns,
        size,
        order.to(torch.int32).numpy(),
        losses.numpy(),
        (groups.amax(1) - groups.amin(1)).mean(1).numpy(),
        outliers.numpy(),
    )


def _grouped(values: torch.Tensor, size: int) -> torch.Tensor:
    """[K, ...] as [G, g, ...], padded with zeros."""
    missing = -len(values) % size
    padded = torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
    return padded.reshape(-1, size, *values.shape[1:])


def _losses(groups: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Loss of each group [G, g, N] with shares [G, g] at each of `BITS`: float64 [3, G]."""
    losses = torch.zeros(len(BITS), len(groups), dtype=torch.float64)
    for index, grid in enumerate(map(Grid, BITS)):
        row_scale = torch.stack([grid.range(group)[0] for group in groups]).amax(0)
        for g, (weight, share) in enumerate(zip(groups, shares, strict=True)):
            fit = fit_group(weight, share, row_scale, grid)
            error = (fit.value(fit.round(weight)) - weight).square_().sum(1)
            losses[index, g] = float(error @ share)
    return losses
