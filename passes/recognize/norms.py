"""Root-mean-square and layer normalization with a weight."""

from __future__ import annotations

from typing import Any

from tvm import relax

from morendo.ir.dialect import call

from .graph import Graph, dims, ints, op_of


def recognize_norm(graph: Graph, node: relax.Call) -> Any:
    """x * rsqrt(mean(x^2) + eps) * w as morendo.rms_norm, R.nn.layer_norm as morendo.layer_norm.

    The weight may be w or 1 + w (gemma). Does not fire without a weight, or over other axes than
    the last.
    """
    if op_of(node) == "relax.multiply":
        return _rms_norm(graph, node)
    return _layer_norm(graph, node) if op_of(node) == "relax.nn.layer_norm" else None


def _layer_norm(graph: Graph, node: relax.Call) -> Any:
    x, weight, bias = node.args
    names = graph.weight(weight), graph.weight(bias)
    if not all(names) or ints(node.attrs.axes) not in ([-1], [len(dims(x)) - 1]):
        return None
    eps = _decimal(node.attrs.epsilon)
    graph.count("layer_norm")
    norm = call("layer_norm", graph.with_batch(x), weight=names[0], bias=names[1], eps=eps)
    return relax.op.reshape(graph.emit(norm), dims(node))


def _decimal(value: Any) -> float:
    """An attribute that was a float32 on its way here, as the decimal that was meant."""
    return float(f"{float(value):.7g}")


def _rms_norm(graph: Graph, node: relax.Call) -> Any:
    for normal, scale in (node.args, node.args[::-1]):
        name, offset = _offset_weight(graph, scale)
        match = _normalized(graph, normal) if name else None
        if match is not None:
            x, eps = match
            graph.count("rms_norm")
            norm = call("rms_norm", graph.with_batch(x), weight=name, eps=eps, offset=offset)
            return relax.op.reshape(graph.emit(norm), dims(node))
    return None


def _offset_weight(graph: Graph, scale: Any) -> tuple[str, float]:
    name = graph.weight(scale)
    if name:
        return name, 0.0
    for weight, constant in graph.pairs(scale, "relax.add"):
        offset = graph.scalar(constant)
        if graph.weight(weight) and offset is not None:
            return graph.weight(weight), offset
    return "", 0.0


def _normalized(graph: Graph, expr: Any) -> tuple[Any, float] | None:
    """(x, eps) of x / sqrt(mean(x^2) + eps)."""
    for x, inverse in graph.pairs(expr, "relax.multiply"):
        mean = _inverse_root(graph, inverse)
        for square, constant in graph.pairs(mean, "relax.add"):
            eps = graph.scalar(constant)
            if eps is not None and _is_mean_square(graph, square, x):
                return x, eps
    return None


def _inverse_root(graph: Graph, expr: Any) -> Any:
    """y of 1 / sqrt(y), written as rsqrt(y) or y ** -0.5."""
    root = graph.call(expr, "relax.rsqrt")
    if root is not None:
        return root.args[0]
    power = graph.call(expr, "relax.power")
    return power.args[0] if power is not None and graph.scalar(power.args[1]) == -0.5 else None


def _is_mean_square(graph: Graph, expr: Any, x: Any) -> bool:
    mean = graph.call(expr, "relax.mean")
    if mean is None or not mean.attrs.keepdims:
        return False
    if ints(mean.attrs.axis) not in ([-1], [len(dims(x)) - 1]):
        return False
    square = graph.value(mean.args[0])
    power = graph.call(square, "relax.power")
    if power is not None:
        return bool(power.args[0].same_as(x)) and graph.scalar(power.args[1]) == 2.0
    return any(a.same_as(x) and b.same_as(x) for a, b in graph.pairs(square, "relax.multiply"))
