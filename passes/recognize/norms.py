"""Root-mean-square and layer normalization, with or without a weight."""

from __future__ import annotations

from typing import Any

from tvm import relax

from morendo.ir.dialect import call

from .graph import Graph, dims, ints, op_of


def recognize_norm(graph: Graph, node: relax.Call) -> Any:
    """x * rsqrt(mean(x^2) + eps) * w as morendo.rms_norm, R.nn.layer_norm as morendo.layer_norm.

    The weight may be w or 1 + w (gemma). Of x - mean(x) it is a layer norm (cohere). Does not fire
    without a weight (`recognize_plain_norm`), or over other axes than the last.
    """
    if op_of(node) == "relax.multiply":
        return _written_out(graph, node)
    return _layer_norm(graph, node) if op_of(node) == "relax.nn.layer_norm" else None


def _layer_norm(graph: Graph, node: relax.Call) -> Any:
    x, weight, bias = node.args
    gain = _gain(graph, weight)
    shift = graph.weight(bias)
    if gain is None or not (shift or graph.filled(bias) == 0.0):
        return None
    if ints(node.attrs.axes) not in ([-1], [len(dims(x)) - 1]):
        return None
    eps = _decimal(node.attrs.epsilon)
    graph.count("layer_norm")
    norm = call(
        "layer_norm", graph.with_batch(x), weight=gain[0], offset=gain[1], bias=shift, eps=eps
    )
    return relax.op.reshape(graph.emit(norm), dims(node))


def _decimal(value: Any) -> float:
    """An attribute that was a float32 on its way here, as the decimal that was meant."""
    return float(f"{float(value):.7g}")


def _written_out(graph: Graph, node: relax.Call) -> Any:
    for normal, scale in (node.args, node.args[::-1]):
        gain = _gain(graph, scale)
        match = _normalized(graph, normal) if gain is not None and gain[0] else None
        if match is not None and gain is not None:
            return _norm_of(graph, node, match, gain)
    return None


def recognize_plain_norm(graph: Graph, node: relax.Call) -> Any:
    """x * rsqrt(mean(x^2) + eps) as a norm whose weight is one (nanochat, gemma4).

    For a second look, when norms with a weight have been found. Does not fire on them.
    """
    match = _normalized(graph, node) if op_of(node) == "relax.multiply" else None
    return None if match is None else _norm_of(graph, node, match, ("", 1.0))


def _norm_of(
    graph: Graph, node: relax.Call, match: tuple[Any, float], gain: tuple[str, float]
) -> Any:
    """The norm of a written out (x, eps), a layer norm when x is y - mean(y)."""
    x, eps = match
    whole = _centered(graph, x)
    name, x = ("rms_norm", x) if whole is None else ("layer_norm", whole)
    graph.count(name)
    norm = call(name, graph.with_batch(x), weight=gain[0], eps=eps, offset=gain[1])
    return relax.op.reshape(graph.emit(norm), dims(node))


def _gain(graph: Graph, scale: Any) -> tuple[str, float] | None:
    """(w, c) of a factor w + c for each channel; w is "" for ones."""
    name = graph.weight(scale)
    if name:
        return name, 0.0
    if graph.filled(scale) == 1.0:
        return "", 1.0
    for weight, constant in graph.pairs(scale, "relax.add"):
        offset = graph.scalar(constant)
        if graph.weight(weight) and offset is not None:
            return graph.weight(weight), offset
    return None


def _centered(graph: Graph, x: Any) -> Any:
    """y of y - mean(y) over the last axis, None for anything else."""
    difference = graph.call(x, "relax.subtract")
    if difference is None:
        return None
    y, mean = difference.args
    found = _last_mean(graph, mean)
    return y if found is not None and found.same_as(y) else None


def _last_mean(graph: Graph, expr: Any) -> Any:
    """x of mean(x) over the last axis, which stays; None for anything else."""
    mean = graph.call(expr, "relax.mean")
    if mean is None or not mean.attrs.keepdims or mean.attrs.axis is None:
        return None
    x = mean.args[0]
    return x if ints(mean.attrs.axis) in ([-1], [len(dims(x)) - 1]) else None


def _same(graph: Graph, a: Any, b: Any) -> bool:
    """Whether two expressions are one variable, or the same one minus its mean."""
    if a.same_as(b):
        return True
    mine, other = _centered(graph, a), _centered(graph, b)
    return mine is not None and other is not None and bool(mine.same_as(other))


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
    squared = _last_mean(graph, expr)
    if squared is None:
        return False
    square = graph.call(squared, "relax.square")
    if square is not None:
        return _same(graph, square.args[0], x)
    power = graph.call(squared, "relax.power")
    if power is not None:
        return _same(graph, power.args[0], x) and graph.scalar(power.args[1]) == 2.0
    return any(
        _same(graph, a, x) and _same(graph, b, x) for a, b in graph.pairs(squared, "relax.multiply")
    )
