"""The scale of attention: a factor on the queries belongs to it."""

from __future__ import annotations

from typing import Any

from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name

from .graph import Graph, dims


def recognize_attention(graph: Graph, node: relax.Call) -> Any:
    """M.attention(q * c, k, v, scale=s) -> M.attention(q, k, v, scale=c*s) (opt).

    Does not fire for factors that are no constants.
    """
    if op_name(node) != "attention":
        return None
    for q, factor in graph.pairs(node.args[0], "relax.multiply"):
        value = graph.scalar(factor)
        if value is not None and len(dims(q)) == 4:
            attrs = attrs_of(node)
            graph.count("attention scales folded")
            return call(
                "attention", q, *node.args[1:], **{**attrs, "scale": attrs["scale"] * value}
            )
    return None
