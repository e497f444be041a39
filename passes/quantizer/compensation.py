"""Making up for what earlier matrices lost: before it is rounded, a matrix moves.

What arrives at a linear after others were rounded, X, is not what the float model has there, F, and
neither is R, the stream that its output is added to, G in the float model. The matrix that brings
X W' + R closest to F W + G by least squares is W' = W + H^-1 X'(F W - X W + G - R), H = X'X. Going
the whole way fits the text's noise; a part of it is the strength of error propagation in QEP (arXiv
2504.09629, which has the inputs alone; the residual stream is ours).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from morendo.ir.reference import ROWS

from ..streaming.fast_ops import add_lower, fastest_dtype, symmetric
from ..streaming.stream import Arrived, token_weights
from .error_feedback import cholesky

DAMPING = 0.05
"""Added to the diagonal of H, as a part of its mean: more than for rounding."""


@dataclass(frozen=True)
class Moments:
    """Sums over tokens, weighted, of what arrives at linears with one input.

    Attributes:
        inputs: X'X, float32 [K, K].
        drift: X'(F - X), float32 [K, K]; None where `missing` is known or the float model did not
            run.
        missing: X'(F W - X W + G - R), float32 [K, N], of the one matrix whose output is added to
            the residual stream; else None.
    """

    inputs: torch.Tensor
    drift: torch.Tensor | None
    missing: torch.Tensor | None

    def move(self, matrix: torch.Tensor, part: float, where: str) -> None:
        """Move W, float32 [N, K], by a part of the way to W', in its place.

        Raises:
            CompileError: when H is not finite or cannot be factored.
        """
        if self.missing is None and self.drift is None:
            return
        damped = self.inputs.double()
        diagonal = damped.diagonal()
        diagonal += (DAMPING * diagonal.mean()).clamp_min(1e-30)
        lower = cholesky(damped, where)
        del damped, diagonal
        for start in range(0, len(matrix), ROWS):
            rows = matrix[start : start + ROWS]
            missing = self._missing(rows, start).double()
            rows += part * torch.cholesky_solve(missing, lower).T.float()

    def _missing(self, rows: torch.Tensor, start: int) -> torch.Tensor:
        """X'(F W - X W + G - R) of some rows [n, K] of W, from `start` on: float32 [K, n]."""
        if self.missing is not None:
            return self.missing[:, start : start + len(rows)]
        assert self.drift is not None
        return self.drift @ rows.T


def sum_moments(
    arrivals: Iterator[Arrived], matrix: torch.Tensor, readings: int = 1
) -> list[Moments]:
    """The moments of what arrives in all windows at linears with one input, at each reading.

    Args:
        matrix: of all linears together, float32 [N, K].
        readings: how many of them the arrivals have.
    """
    factor = matrix.T.to(fastest_dtype())
    sums = [_Sums(factor) for _ in range(readings)]
    for each in arrivals:
        for total, arrived in zip(sums, (each, *each.lower), strict=True):
            total.add(arrived, each.float)
    return [total.moments() for total in sums]


class _Sums:
    """What `Moments` has, of the windows so far.

    Drifts are differences, and only a part of what they ask for is done: they are multiplied in
    the fastest dtype.

    Args:
        factor: the matrix [K, N] in that dtype.
    """

    def __init__(self, factor: torch.Tensor) -> None:
        self.factor, features = factor, len(factor)
        self.inputs = torch.zeros(features, features)
        self.drift: torch.Tensor | None = None
        self.missing: torch.Tensor | None = None

    def add(self, arrived: Arrived, aim: Arrived | None) -> None:
        """Add a window; `aim` is what arrives in the float model."""
        weighted = (arrived.x * token_weights(len(arrived.x))[:, None]).T
        add_lower(self.inputs, weighted, arrived.x)
        if aim is None:
            return
        dtype = self.factor.dtype
        moved, weighted = (aim.x - arrived.x).to(dtype), weighted.to(dtype)
        if arrived.residual is None or aim.residual is None:
            self.drift = _add(self.drift, weighted @ moved)
        else:
            lost = (moved @ self.factor).float() + (aim.residual - arrived.residual)
            self.missing = _add(self.missing, weighted @ lost.to(dtype))

    def moments(self) -> Moments:
        """Of all windows that were added."""
        return Moments(symmetric(self.inputs), self.drift, self.missing)


def _add(total: torch.Tensor | None, product: torch.Tensor) -> torch.Tensor:
    return product.float() if total is None else total.add_(product)
