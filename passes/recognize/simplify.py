"""Shape and cast ops that say nothing, and scalar factors moved to where they can be used."""

from __future__ import annotations

from typing import Any

from tvm import relax

from .graph import Graph, dims, ints, op_of, same_dims


def simplify(graph: Graph, call: relax.Call) -> Any:
    """A simpler expression of the same value, None when there is none."""
    rule = _RULES.get(op_of(call))
    return rule(graph, call) if rule else None


def permutation(call: relax.Call) -> list[int]:
    """The axes of a permute_dims; without any it reverses them."""
    rank = len(dims(call.args[0]))
    return list(range(rank))[::-1] if call.attrs.axes is None else ints(call.attrs.axes)


def _reshape(graph: Graph, call: relax.Call) -> Any:
    source, shape = call.args[0], dims(call)
    if same_dims(dims(source), shape):
        return source
    inner = graph.call(source, "relax.reshape", "relax.expand_dims", "relax.squeeze")
    if inner is not None:
        return relax.op.reshape(inner.args[0], shape)
    return _scaled(graph, source, lambda x: graph.reshape(x, shape))


def _permute(graph: Graph, call: relax.Call) -> Any:
    axes = permutation(call)
    if axes == list(range(len(axes))):
        return call.args[0]
    inner = graph.call(call.args[0], "relax.permute_dims")
    if inner is not None:
        before = permutation(inner)
        return graph.permute(inner.args[0], [before[a] for a in axes])
    return _scaled(graph, call.args[0], lambda x: graph.permute(x, axes))


def _scaled(graph: Graph, source: Any, move: Any) -> Any:
    """move(x * c) as move(x) * c, so that the factor can reach the attention's scale."""
    for x, factor in graph.pairs(source, "relax.multiply"):
        if graph.scalar(factor) is not None and dims(factor) == []:
            return relax.op.multiply(move(x), factor)
    return None


def _cast(graph: Graph, call: relax.Call) -> Any:
    return call.args[0] if call.args[0].ty.dtype == call.ty.dtype else None


def _neutral(value: float) -> Any:
    def rule(graph: Graph, call: relax.Call) -> Any:
        for x, constant in ((call.args[0], call.args[1]), (call.args[1], call.args[0])):
            if graph.scalar(constant) == value and same_dims(dims(x), dims(call)):
                return x
        return None

    return rule


def _whole(graph: Graph, call: relax.Call) -> Any:
    return call.args[0] if same_dims(dims(call.args[0]), dims(call)) else None


def _concat(graph: Graph, call: relax.Call) -> Any:
    parts = list(graph.value(call.args[0]).fields)
    kept = [part for part in parts if 0 not in dims(part)]
    if len(kept) == len(parts) and len(kept) > 1:
        return None
    return kept[0] if len(kept) == 1 else relax.op.concat(kept, int(call.attrs.axis))


_RULES = {
    "relax.reshape": _reshape,
    "relax.permute_dims": _permute,
    "relax.astype": _cast,
    "relax.multiply": _neutral(1.0),
    "relax.add": _neutral(0.0),
    "relax.strided_slice": _whole,
    "relax.broadcast_to": _whole,
    "relax.concat": _concat,
}
