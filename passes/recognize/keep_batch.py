"""Elementwise ops on (n, C) done on (1, n, C), so that the flattening around them cancels."""

from __future__ import annotations

from typing import Any

from tvm import relax

from .graph import Graph, dims, op_of

ELEMENTWISE = {
    "relax.add",
    "relax.subtract",
    "relax.multiply",
    "relax.divide",
    "relax.power",
    "relax.tanh",
    "relax.sigmoid",
    "relax.negative",
    "relax.nn.silu",
    "relax.nn.gelu",
    "relax.nn.gelu_tanh",
    "relax.nn.relu",
}


def keep_batch(graph: Graph, node: relax.Call) -> Any:
    """f(reshape(x, (n, C))) -> reshape(f(x), (n, C)) where x is (1, n, C) (opt, gpt2).

    Does not fire when an operand is neither flattened so nor a scalar.
    """
    if op_of(node) not in ELEMENTWISE or len(dims(node)) != 2:
        return None
    whole = [_unflattened(graph, arg) for arg in node.args]
    if any(w is None for w in whole) or all(w is a for w, a in zip(whole, node.args, strict=True)):
        return None
    lifted = graph.emit(relax.Call(node.op, whole, node.attrs))
    return relax.op.reshape(lifted, dims(node))


def _unflattened(graph: Graph, expr: Any) -> Any:
    if graph.scalar(expr) is not None:
        return expr
    flat = graph.call(expr, "relax.reshape")
    if flat is None:
        return None
    shape = dims(flat.args[0])
    return flat.args[0] if len(shape) == 3 and shape[0] == 1 else None
