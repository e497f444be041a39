"""Norms over a token's channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from morendo.ir import dialect

from .graph import Node
from .node_attrs import checked_attrs
from .products import biased
from .translate import Translator
from .weights import Plain


def _one(node: Node, value: Any) -> dict[str, Any]:
    return {node.outputs[0]: value}


def mean(t: Translator, node: Node) -> dict[str, Any]:
    """A mean over channels."""
    axes = node.attrs.get("axes")
    if axes is None and node.input(1):
        axes = [int(a) for a in t.lengths.constant(node.input(1)).reshape(-1)]
    rank = len(t.dims(node.inputs[0]))
    if axes is None or [a % rank for a in axes] != [rank - 1]:
        raise t.graph.error(f"{node.label} is a mean of something else than a token's channels")
    keep = bool(node.attrs.get("keepdims", 1))
    return _one(node, t.emit(relax.op.mean(t.values[node.inputs[0]], [rank - 1], keep)))


def layer_normalization(t: Translator, node: Node) -> dict[str, Any]:
    """LayerNormalization over channels."""
    attrs = checked_attrs(t.graph, node, axis=-1, epsilon=1e-5, stash_type=None)
    _check_last(t, node, attrs["axis"])
    return _one(node, layer_norm(t, node, t.values[node.inputs[0]], *_affine(node, 1), attrs))


def _affine(node: Node, first: int) -> tuple[str, str]:
    return node.input(first), node.input(first + 1)


def layer_norm(
    t: Translator, node: Node, x: Any, weight: str, bias: str, attrs: dict[str, Any]
) -> Any:
    """A layer norm; what it has no weight or bias for is 1 and 0."""
    size = int(x.ty.shape[-1])
    scale = _vector(t, node, weight, "weight", np.ones(size, np.float32))
    shift = _vector(t, node, bias, "bias", np.zeros(size, np.float32))
    eps = _decimal(attrs["epsilon"])
    return _by_rows(t, node, x, lambda y: relax.op.nn.layer_norm(y, scale, shift, [-1], eps))


def _vector(t: Translator, node: Node, name: str, part: str, default: np.ndarray) -> Any:
    if name:
        return t.param(Plain(name, rank=1), node, part)
    return t.buffer_param("ones" if default.any() else "zeros", default)


def _decimal(value: float) -> float:
    """A float32 as the decimal that was meant."""
    return float(f"{value:.7g}")


def _check_last(t: Translator, node: Node, axis: int) -> None:
    if axis not in (-1, len(t.dims(node.inputs[0])) - 1):
        raise t.graph.error(f"{node.label} is a norm over something else than a token's channels")


def _by_rows(t: Translator, node: Node, x: Any, function: Callable[[Any], Any]) -> Any:
    """A function of the last axis, on (1, n, heads, C) where tokens and heads are in one axis."""
    dims = dialect.shape_of(x.ty)
    slopes = [slope for slope, _ in t.lengths.dims(node.outputs[0])]
    rows = max(slopes)
    if rows <= 1 or len(dims) - slopes.index(rows) != 2:
        return t.emit(function(x))
    split = t.emit(relax.op.reshape(x, [1, t.tokens, rows, dims[-1]]))
    return t.emit(relax.op.reshape(t.emit(function(split)), dims))


def rms_normalization(t: Translator, node: Node) -> dict[str, Any]:
    """RMSNormalization, which onnxruntime calls SimplifiedLayerNormalization."""
    attrs = checked_attrs(t.graph, node, axis=-1, epsilon=1e-5, stash_type=None)
    _check_last(t, node, attrs["axis"])
    return _one(node, rms_norm(t, node, t.values[node.inputs[0]], node.input(1), attrs["epsilon"]))


def rms_norm(t: Translator, node: Node, x: Any, weight: str, eps: float) -> Any:
    """A norm by root mean square with a weight.

    Raises:
        InputError: for a weight of another size than a token's channels.
    """
    recipe = Plain(weight, rank=1)
    if recipe.shape(t.lengths) != (int(x.ty.shape[-1]),):
        raise t.misfit(node)
    name = t.weight(recipe, node)
    eps = _decimal(eps)
    return _by_rows(t, node, x, lambda y: dialect.call("rms_norm", y, weight=name, eps=eps))


def skip_rms_norm(t: Translator, node: Node) -> dict[str, Any]:
    """A sum, and its norm by root mean square."""
    attrs = checked_attrs(t.graph, node, epsilon=1e-12)
    total = _skipped(t, node, node.input(3))
    return _with_sum(node, rms_norm(t, node, total, node.input(2), attrs["epsilon"]), total)


def skip_layer_norm(t: Translator, node: Node) -> dict[str, Any]:
    """A sum, and its layer norm."""
    attrs = checked_attrs(t.graph, node, epsilon=1e-12)
    total = _skipped(t, node, node.input(4))
    return _with_sum(node, layer_norm(t, node, total, *_affine(node, 2), attrs), total)


def _skipped(t: Translator, node: Node, bias: str) -> Any:
    """x + skip, + bias where there is one."""
    total = t.emit(relax.op.add(*(t.tensor(name, node) for name in node.inputs[:2])))
    return biased(t, node, total, bias)


def _with_sum(node: Node, norm: Any, total: Any) -> dict[str, Any]:
    return {node.outputs[0]: norm, node.output(3): total}
