"""Activations and norms written out in elementary ops, known by what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erf

import numpy as np

from .graph import Node
from .lengths import PROBES, Lengths
from .regions import Region, region_before

_GRID = np.linspace(-9, 9, 361, dtype=np.float32)
_ELEMENTWISE = {
    "Abs", "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Identity", "Max", "Min", "Mul",
    "Neg", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh",
}  # fmt: skip


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + np.array([erf(v) for v in x / np.sqrt(2)])),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
}
_WANT = {name: function(_GRID.astype(np.float64)) for name, function in FUNCTIONS.items()}


@dataclass(frozen=True)
class Normalized:
    """x over its size, without a weight.

    Attributes:
        source: x.
        centered: the mean is taken off first (layer norm).
        eps: what is added to the mean square.
    """

    source: str
    centered: bool
    eps: float


def activation_of(lengths: Lengths, node: Node) -> tuple[str, str] | None:
    """(name of a function, its argument) when a node computes a known activation."""
    if node.kind != "Mul":
        return None
    for source in _factors(lengths, node.outputs[0]):
        region = region_before(lengths, node.outputs[0], _enters(lengths), source)
        if len(region.nodes) < 2 or not _same_shape(lengths, region):
            continue
        with np.errstate(all="ignore"):
            got = region.run(lengths, PROBES[0], _GRID)
        for name, want in _WANT.items():
            if got.shape == want.shape and np.allclose(got, want, atol=2e-5):
                return name, source
    return None


def normalized_of(lengths: Lengths, name: str) -> Normalized | None:
    """What an activation is the normalization of, None when it is none."""
    node = lengths.graph.producers.get(name)
    if node is None or node.kind not in ("Mul", "Div"):
        return None
    for source in _factors(lengths, name)[::-1]:  # x before x - mean, which has a norm as well
        region = region_before(lengths, name, lambda n: _in_norm(lengths, n), source)
        if len(region.nodes) < 4 or not _same_shape(lengths, region):
            continue
        x = np.random.default_rng(0).normal(0.5, 1.0, lengths.at(PROBES[0]).shape(source))
        for eps in _small_numbers(lengths, region):
            for centered in (False, True):
                if all(_is_norm(lengths, region, x * s, eps, centered) for s in (1.0, 1e-3)):
                    return Normalized(source, centered, eps)
    return None


def _factors(lengths: Lengths, name: str, depth: int = 3) -> list[str]:
    """Activations that a product is made of, the nearest first."""
    node = lengths.graph.producers.get(name)
    if depth == 0 or node is None or node.kind not in ("Mul", "Div", "Sub", "Cast", "Identity"):
        return []
    own = [n for n in node.inputs if n in lengths.activations]
    return [*own, *(found for n in own for found in _factors(lengths, n, depth - 1))]


def _enters(lengths: Lengths) -> Callable[[Node], bool]:
    return lambda node: _is_scalar(lengths, node, _ELEMENTWISE)


def _is_norm(
    lengths: Lengths, region: Region, x: np.ndarray, eps: float, centered: bool
) -> bool:  # fmt: skip
    got = region.run(lengths, PROBES[0], x)
    y = x - x.mean(-1, keepdims=True) if centered else x
    want = y / np.sqrt((y * y).mean(-1, keepdims=True) + eps)
    return got.shape == want.shape and np.allclose(got, want, rtol=1e-3, atol=1e-5)


def _small_numbers(lengths: Lengths, region: Region) -> list[float]:
    """What eps may be: the decimals that small scalars of a region stand for."""
    values = [lengths.scalar(name) for name in sorted(region.operands)]
    return [float(f"{v:.7g}") for v in values if v is not None and 0 < v < 0.1]


def _in_norm(lengths: Lengths, node: Node) -> bool:
    if node.kind != "ReduceMean":
        return _is_scalar(lengths, node, _ELEMENTWISE)
    axes = node.attrs.get("axes")
    if axes is None:
        given = lengths.constant(node.input(1)) if node.input(1) else None
        axes = given.reshape(-1).tolist() if given is not None else []
    rank = len(lengths.at(PROBES[0]).shape(node.inputs[0]))
    return list(axes) in ([-1], [rank - 1]) and bool(node.attrs.get("keepdims", 1))


def _is_scalar(lengths: Lengths, node: Node, kinds: set[str]) -> bool:
    """Whether a node is of these kinds and reads nothing static but scalars."""
    static = [name for name in node.inputs if name in lengths.static]
    return node.kind in kinds and all(lengths.scalar(name) is not None for name in static)


def _same_shape(lengths: Lengths, region: Region) -> bool:
    at = lengths.at(PROBES[0])
    return at.shape(region.source) == at.shape(region.result)
