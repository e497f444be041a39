"""Rows of a weight picked by token id or position."""

from __future__ import annotations

from typing import Any

from tvm import relax

from morendo.ir.dialect import call

from .graph import Graph, dims, op_of


def recognize_embedding(graph: Graph, node: relax.Call) -> Any:
    """R.take(w, R.reshape(R.astype(ids))) -> M.embedding(ids, weight="w", ...).

    Does not fire when the indices do not come from a (1, n) tensor of integers.
    """
    if op_of(node) != "relax.take" or node.attrs.axis is None or int(node.attrs.axis) != 0:
        return None
    name = graph.weight(node.args[0], rank=2)
    indices = _ids(graph, node.args[1])
    if not name or indices is None:
        return None
    rows, features = dims(node.args[0])
    graph.count("embedding")
    found = call("embedding", indices, weight=name, rows=rows, features=features)
    return relax.op.reshape(graph.emit(found), dims(node))


def _ids(graph: Graph, indices: Any) -> Any:
    """The (1, n) tensor behind casts and reshapes, None when there is none."""
    while len(dims(indices)) != 2 or graph.call(indices, "relax.astype") is not None:
        step = graph.call(indices, "relax.reshape", "relax.astype")
        if step is None:
            return None
        indices = step.args[0]
    return indices if dims(indices)[0] == 1 else None
