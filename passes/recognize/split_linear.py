"""Parts of a fused projection: linears of their own, with a part of the weight each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.weight_views import WeightView

from .graph import Graph, dims, op_of
from .rope import slice_of
from .simplify import permutation


@dataclass(frozen=True)
class _Source:
    """What a tensor that is cut is made of.

    Attributes:
        linear: the fused projection.
        heads: dimensions between the tokens and the one that is cut, such as [heads].
        period: extent of the dimension that is cut (and of those behind it).
        axes: how it was transposed afterwards, [] when it was not.
    """

    linear: relax.Call
    heads: list[int]
    period: int
    axes: list[int]


def split_linear(graph: Graph, node: relax.Call) -> Any:
    """Cut the weight instead of the result (phi3, gpt2, gpt_neox, bloom).

        R.split(M.linear(x, weight="qkv"), 3)[0]  ->  M.linear(x, weight="qkv[0:64]")

    Every later pass then sees q, k and v as in other models. Fires on slices, splits and single
    indices of a linear's features, also after a reshape to heads and a transposition. Does not
    fire on a weight that is a part already.
    """
    if op_of(node) == "relax.strided_slice":
        cut = slice_of(graph, node)
        return _part(graph, *cut) if cut is not None else None
    if op_of(node) == "relax.split":
        return _split(graph, node)
    return _index(graph, node) if op_of(node) == "relax.take" else None


def _split(graph: Graph, node: relax.Call) -> Any:
    if int(node.attrs.axis) not in (-1, len(dims(node.args[0])) - 1):
        return None
    parts, start = [], 0
    for field in node.ty.fields:
        size = int(field.shape.values[-1])
        parts.append(_part(graph, node.args[0], start, start + size))
        start += size
    return relax.Tuple(parts) if all(part is not None for part in parts) else None


def _index(graph: Graph, node: relax.Call) -> Any:
    """x[..., i, :] of a linear's features seen as (..., parts, channels)."""
    x, index = node.args
    position, shape = graph.scalar(index), dims(x)
    if position is None or int(node.attrs.axis) != len(shape) - 2 or len(shape) < 4:
        return None
    source = _source(graph, graph.reshape(x, [*shape[:-2], shape[-2] * shape[-1]]))
    if source is None or source.axes:
        return None
    start = int(position) * shape[-1]
    return relax.op.reshape(_cut(graph, source, start, start + shape[-1]), dims(node))


def _part(graph: Graph, x: Any, start: int, stop: int) -> Any:
    """x[..., start:stop] where x is a linear's result, None when it is not."""
    source = _source(graph, x)
    if source is None:
        return None
    part = _cut(graph, source, start, stop)
    return graph.permute(part, source.axes) if source.axes else part


def _source(graph: Graph, x: Any) -> _Source | None:
    moved = graph.call(x, "relax.permute_dims")
    axes = permutation(moved) if moved is not None else []
    if axes and axes[-1] != len(axes) - 1:
        return None
    straight = moved.args[0] if moved is not None else x
    shaped = graph.call(straight, "relax.reshape")
    linear = graph.value(shaped.args[0] if shaped is not None else straight)
    shape = dims(straight)
    if op_name(linear) != "linear" or not all(isinstance(d, int) for d in shape[2:]):
        return None
    if "[" in str(linear.attrs["weight"]) or len(shape) < 3 or shape[0] != 1:
        return None
    features = 1
    for extent in shape[2:]:
        features *= extent
    same_rows = features == int(linear.attrs["out_features"])
    return _Source(linear, shape[2:-1], shape[-1], axes) if same_rows else None


def _cut(graph: Graph, source: _Source, start: int, stop: int) -> Any:
    """Emit the linear of features start..stop of each period, shaped (1, n, *heads, stop-start)."""
    attrs = attrs_of(source.linear)
    repeats = attrs["out_features"] // source.period
    period = source.period if repeats > 1 else 0
    weight = WeightView(attrs["weight"], start, stop, period, columns=attrs["transposed"])
    attrs["weight"] = weight.name
    if attrs["bias"]:
        attrs["bias"] = WeightView(attrs["bias"], start, stop, period).name
    attrs["out_features"] = repeats * (stop - start)
    part = graph.emit(call("linear", *source.linear.args, **attrs))
    graph.count("parts of fused linears")
    return graph.reshape(part, [*dims(part)[:2], *source.heads, stop - start])
