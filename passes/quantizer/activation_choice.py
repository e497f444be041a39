"""What 4-bit activations lose, input by input, and which factors of channels lose least.

Losses are measured on text in the float model: the part of the linears' output that is lost, as a
part of the residual stream that the block's output becomes part of (`analysis.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from morendo.ir.activation_formats import FACTORS, ActivationFormat
from morendo.ir.formats import WeightFormat

from ..streaming.activation_rounding import round_activation
from ..streaming.stages import Attrs, Stage
from ..streaming.stream import Arrived, StageWeights, float_matrix, stored_order, token_weights
from .analysis import influences

THRESHOLDS = 8
"""Sizes of channels, each half of the one before, from which on they get factors: tried one by one
for each group."""

TOKENS = 512
"""What factors are tried on, evenly spread: a rounding of all would take most of the time."""


@dataclass
class InputError4:
    """What an input of linears loses with 4 bits.

    Attributes:
        names: of the linears' weights.
        lost: the part of the outputs lost, without factors and with the best ones.
        influence: of the output on the residual stream; None where it is not added to one.
        factors: float32 [K] of the channels as stored.
        loss: `lost` as a part of the residual stream.
    """

    names: tuple[str, ...]
    lost: tuple[float, float]
    influence: float | None
    factors: np.ndarray
    loss: tuple[float, float] = field(default=(0.0, 0.0))


def weigh(errors: Sequence[InputError4]) -> None:
    """Fill in `loss`."""
    weights = influences([error.influence for error in errors])
    for error, influence in zip(errors, weights, strict=True):
        error.loss = error.lost[0] * influence, error.lost[1] * influence


class ActivationAnalyzer:
    """Makes an `InputError4` of each stage of a stream.

    Args:
        weights: those of the stream.
        factors: whether to look for factors of channels.
    """

    def __init__(self, weights: StageWeights, factors: bool) -> None:
        self.weights, self.factors = weights, factors

    def visit(self, stage: Stage, inputs: Iterator[Arrived]) -> InputError4:
        """Look at one stage; for `Stream.run`."""
        arrived = list(inputs)
        x = torch.cat([each.x for each in arrived])
        counts = torch.cat([token_weights(len(each.x)) for each in arrived])
        matrix = torch.cat([self._matrix(attrs) for attrs in stage.linears])
        outputs = x @ matrix.T
        influence = None
        if stage.residual is not None:
            stream = torch.cat([each.residual for each in arrived if each.residual is not None])
            energy = (stream + outputs).square().sum(1).clamp_min(1e-30)
            influence = float((counts @ (outputs.square().sum(1) / energy)) / counts.sum())
        # tokens count alike, however large they are
        shares = counts / outputs.square().sum(1).clamp_min(1e-30)
        order = torch.from_numpy(stored_order(self.weights, stage.linears[0]).astype(np.int64))
        x, matrix = x[:, order], matrix[:, order]
        size = WeightFormat.parse(stage.linears[0]["format"]).group_size
        some = slice(None, None, -(-len(x) // TOKENS))
        factors = torch.ones(x.shape[1])
        if self.factors:
            factors = best_factors(x[some], matrix, shares[some], size)

        def lost(rounded: torch.Tensor) -> float:
            error = ((rounded - x) @ matrix.T).square().sum(1)
            return float((shares @ error) / counts.sum())

        plain = lost(round_activation(x, size, ActivationFormat(4)))
        fitted = ActivationFormat(4, factored=True)
        best = lost(round_activation(x, size, fitted, factors)) if self.factors else plain
        if best >= plain:  # the diagonal that factors are chosen by is not all
            factors, best = torch.ones_like(factors), plain
        names = tuple(attrs["weight"] for attrs in stage.linears)
        return InputError4(names, (plain, best), influence, factors.numpy())

    def _matrix(self, attrs: Attrs) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(float_matrix(self.weights, attrs)))


def best_factors(
    x: torch.Tensor, matrix: torch.Tensor, shares: torch.Tensor, group_size: int
) -> torch.Tensor:
    """The factors of channels, one of `FACTORS` each, that leave the least error: float32 [K].

    Channels are divided by their size as a multiple of a threshold; each group has the threshold
    that is best for it.

    Args:
        x: float32 [n, K], channels as they are stored.
        matrix: float32 [N, K], of all linears that read them.
        shares: float32 [n], how much a token counts.
        group_size: channels that share a scale.
    """
    features, fmt = x.shape[1], ActivationFormat(4, factored=True)
    importance = matrix.square().sum(0)
    sizes = (shares @ x.square() / shares.sum()).sqrt()
    missing = -features % group_size

    def by_group(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, missing)).reshape(-1, group_size)

    largest = by_group(sizes).amax(1).repeat_interleave(group_size)[:features].clamp_min(1e-30)
    best, least = torch.ones(features), torch.full(((features + missing) // group_size,), torch.inf)
    for halvings in range(THRESHOLDS):
        relative = (sizes / largest).clamp_min(1e-30).log2() + halvings
        factors = torch.exp2(relative.round().clamp(0, len(FACTORS) - 1))
        error = (round_activation(x, group_size, fmt, factors) - x).square()
        errors = by_group((shares @ error) * importance).sum(1)
        better = (errors < least).repeat_interleave(group_size)[:features]
        best, least = torch.where(better, factors, best), torch.minimum(least, errors)
    return best
