"""Activations written out in elementary ops, and activations that gate another tensor."""

from __future__ import annotations

from typing import Any

from tvm import relax

from morendo.ir.dialect import call

from .graph import Graph, dims, op_of, same_dims

ACTIVATIONS = {
    "relax.nn.silu": "silu",
    "relax.nn.gelu": "gelu",
    "relax.nn.gelu_tanh": "gelu_tanh",
    "relax.nn.relu": "relu",
}
_ROOT = 0.7978846  # sqrt(2 / pi)
_CUBE = 0.044715


def recognize_gelu_tanh(graph: Graph, node: relax.Call) -> Any:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) as R.nn.gelu_tanh (gpt2, phi, bloom).

    Does not fire for other constants.
    """
    if op_of(node) != "relax.multiply":
        return None
    for half, one_plus in (node.args, node.args[::-1]):
        x = _factor(graph, half, 0.5)
        tanh = graph.call(_term(graph, one_plus, 1.0), "relax.tanh")
        if x is not None and tanh is not None and _is_gelu_angle(graph, tanh.args[0], x):
            graph.count("gelu_tanh")
            return relax.op.nn.gelu_tanh(x)
    return None


def recognize_gated(graph: Graph, node: relax.Call) -> Any:
    """act(gate) * up -> M.gated(gate, up, activation=...).

    Does not fire when `up` is a constant or broadcast.
    """
    if op_of(node) != "relax.multiply":
        return None
    for active, up in (node.args, node.args[::-1]):
        act = graph.call(active, *ACTIVATIONS)
        if act is None or not same_dims(dims(act), dims(up)) or graph.scalar(up) is not None:
            continue
        gate = graph.with_batch(act.args[0])
        found = call("gated", gate, graph.with_batch(up), activation=ACTIVATIONS[op_of(act)])
        graph.count("gated")
        return relax.op.reshape(graph.emit(found), dims(node))
    return None


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) < 1e-6


def _factor(graph: Graph, expr: Any, constant: float) -> Any:
    """x of x * constant."""
    pairs = graph.pairs(expr, "relax.multiply")
    return next((x for x, c in pairs if _near(graph.scalar(c), constant)), None)


def _term(graph: Graph, expr: Any, constant: float) -> Any:
    """x of x + constant."""
    pairs = graph.pairs(expr, "relax.add")
    return next((x for x, c in pairs if _near(graph.scalar(c), constant)), None)


def _is_gelu_angle(graph: Graph, expr: Any, x: Any) -> bool:
    """Whether expr is sqrt(2/pi) * (x + 0.044715 x^3), in the spellings of gpt2 or bloom."""
    inner = _factor(graph, expr, _ROOT)
    for a, b in graph.pairs(inner, "relax.add"):
        cube = graph.call(_factor(graph, b, _CUBE), "relax.power")
        if a.same_as(x) and cube is not None and cube.args[0].same_as(x):
            return graph.scalar(cube.args[1]) == 3.0
    for scaled, rest in graph.pairs(expr, "relax.multiply"):
        base = _factor(graph, scaled, _ROOT)
        if base is None or not base.same_as(x):
            continue
        for a, b in graph.pairs(_term(graph, rest, 1.0), "relax.multiply"):
            inner = _factor(graph, a, _CUBE)
            if inner is not None and inner.same_as(x) and b.same_as(x):
                return True
    return False
