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

from .error_feedback import cholesky
from .fast_ops import add_lower, fastest_dtype, symmetric
from .stream import Arrived, token_weights

DAMPING = 0.05
"""Added to the diagonal of H, as a part of its mean: more than for rounding."""


@dataclass(frozen=True)
class Moments:
    """Sums over tokens, weighted, of what arrives at linears with one input.

    Attributes:
        inputs: X'X, float32 [K, K].
        drift: X'(F - X), float32 [K, K]; None where the float model did not run.
        residual: X'(G - R), float32 [K, N]; None where it did not run or the output is not added.
    """

    inputs: torch.Tensor
    drift: torch.Tensor | None
    residual: torch.Tensor | None

    def moved(self, matrix: torch.Tensor, part: float, where: str) -> torch.Tensor:
        """W [N, K] moved by a part of the way to W': float32 [N, K].

        Raises:
            CompileError: when H is not finite or cannot be factored.
        """
        if self.drift is None:
            return matrix
        missing = self.drift @ matrix.T
        if self.residual is not None:
            missing += self.residual
        damped = self.inputs.double()
        diagonal = damped.diagonal()
        diagonal += (DAMPING * diagonal.mean()).clamp_min(1e-30)
        move = torch.cholesky_solve(missing.double(), cholesky(damped, where))
        return matrix + part * move.T.float()


def sum_moments(arrivals: Iterator[Arrived], features: int) -> Moments:
    """The moments of what arrives in all windows at linears with `features` input channels.

    Drifts are differences, and only a part of what they ask for is done: they are multiplied in
    the fastest dtype.
    """
    inputs = torch.zeros(features, features)
    drift: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    for each in arrivals:
        weighted = (each.x * token_weights(len(each.x))[:, None]).T
        add_lower(inputs, weighted, each.x)
        if each.float is None:
            continue
        drift = _add_product(drift, weighted, each.float.x - each.x)
        if each.residual is not None and each.float.residual is not None:
            residual = _add_product(residual, weighted, each.float.residual - each.residual)
    return Moments(symmetric(inputs), drift, residual)


def _add_product(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    product = (a.to(fastest_dtype()) @ b.to(fastest_dtype())).float()
    return product if total is None else total.add_(product)
