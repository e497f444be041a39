"""The numpy meaning of the dialect (`ir/evaluate_dialect.py`) with torch where time is spent.

Values stay numpy arrays; torch works on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from morendo.ir.evaluate_dialect import State

from .torch_generic import ACTIVATIONS
from .torch_ops import TORCH_RULES, attention

Attrs = dict[str, Any]
_ROWS = 128  # of a symmetric product at a time


def _tensor(values: Any) -> torch.Tensor:
    """A tensor in the same memory; in a copy where that is a file's, which torch would warn of."""
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def fastest_dtype() -> torch.dtype:
    """What matrices are multiplied in: bfloat16 where the processor is faster with it.

    Its rounding, of a 512th, is small beside that of codes.
    """
    fast = (on for feature, on in torch.cpu.get_capabilities().items() if "bf16" in feature)
    return torch.bfloat16 if any(fast) else torch.float32


def add_lower(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add the lower triangle of a product [K, n] x [n, K] that is symmetric to `total` [K, K]."""
    for start in range(0, len(total), _ROWS):
        stop = start + _ROWS
        total[start:stop, :stop].addmm_(left[start:stop], right[:, :stop])


def symmetric(lower: torch.Tensor) -> torch.Tensor:
    """The matrix with this lower triangle, which is overwritten."""
    return lower.tril_().add_(lower.tril(-1).T)


def _linear(state: State, attrs: Attrs, x: np.ndarray) -> np.ndarray:
    weights: Any = state.weights  # StageWeights, which keeps matrices
    matrix, bias = weights.matrix(attrs), state.weight(attrs["bias"])
    inputs = weights.input(attrs, _tensor(x)).to(matrix.dtype)
    y = functional.linear(inputs, matrix).float()
    return (y if bias is None else y.add_(_tensor(bias))).numpy()


def _embedding(state: State, attrs: Attrs, ids: np.ndarray) -> np.ndarray:
    weights: Any = state.weights
    return weights.table_rows(attrs, ids.reshape(-1)).reshape(*ids.shape, -1)


def _attention(state: State, attrs: Attrs, q: Any, k: Any, v: Any) -> np.ndarray:
    slopes = state.weight(attrs["alibi"])
    slopes = None if slopes is None else _tensor(slopes)
    q, k, v = map(_tensor, (q, k, v))
    return attention(attrs, q, k, v, slopes).contiguous().numpy()


@dataclass(frozen=True)
class _TorchState:
    """A state whose weights are tensors."""

    state: State

    def weight(self, name: str) -> torch.Tensor | None:
        values = self.state.weight(name)
        return None if values is None else _tensor(values)


def _in_torch(name: str) -> Callable[..., np.ndarray]:
    """A rule of `TORCH_RULES` for arrays."""

    def rule(state: State, attrs: Attrs, *arrays: np.ndarray) -> np.ndarray:
        tensors = map(_tensor, arrays)
        return TORCH_RULES[name](_TorchState(state), attrs, *tensors).contiguous().numpy()

    return rule


def _unary(name: str) -> Callable[..., np.ndarray]:
    return lambda call, x: ACTIVATIONS[name](_tensor(x)).numpy()


FAST_RULES: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "embedding": _embedding,
    "attention": _attention,
    **{name: _in_torch(name) for name in ("rms_norm", "layer_norm", "rope", "gated")},
    **{f"nn.{name}": _unary(name) for name in ACTIVATIONS},
}
