"""Rotary position embedding: the rotation of queries and keys by angles of their positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import relax

from morendo.ir.dialect import call

from .graph import Graph, dims, ints, op_of

HEAD_MAJOR = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Angles:
    """cos or sin of position * inv_freq, twice, times a factor.

    Attributes:
        positions: (1, n) integers.
        inv_freq: weight name.
        scaling: the factor.
        head_major: broadcast over axis 1, so the rotated tensor is (1, heads, n, head_dim).
    """

    positions: Any
    inv_freq: str
    scaling: float
    head_major: bool

    def same_as(self, other: _Angles | None) -> bool:
        """Whether both rotate by the same angles."""
        if other is None or not self.positions.same_as(other.positions):
            return False
        mine = self.inv_freq, self.scaling, self.head_major
        return mine == (other.inv_freq, other.scaling, other.head_major)


def recognize_rope(graph: Graph, node: relax.Call) -> Any:
    """x * cos + rotate_half(x) * sin as morendo.rope, and concat(rope(x[:R]), x[R:]) likewise.

    The computation of cos and sin is not read any more then. The result is token-major; a
    head-major x is transposed before and after, which cancels with the model's own transpositions.
    Does not fire when cos and sin have different angles.
    """
    if op_of(node) == "relax.add":
        return _full(graph, node)
    return _partial(graph, node) if op_of(node) == "relax.concat" else None


def _full(graph: Graph, node: relax.Call) -> Any:
    for straight, turned in (node.args, node.args[::-1]):
        for x, cos in graph.pairs(straight, "relax.multiply"):
            angles = _angles(graph, cos, "relax.cos")
            if angles is None:
                continue
            for half, sin in graph.pairs(turned, "relax.multiply"):
                same = angles.same_as(_angles(graph, sin, "relax.sin"))
                if same and _is_rotated_half(graph, half, x):
                    graph.count("rope")
                    return _emit(graph, x, angles, dims(x)[-1])
    return None


def _emit(graph: Graph, x: Any, angles: _Angles, rotary_dim: int) -> Any:
    rope = call(
        "rope",
        graph.permute(x, HEAD_MAJOR) if angles.head_major else x,
        angles.positions,
        inv_freq=angles.inv_freq,
        scaling=angles.scaling,
        rotary_dim=rotary_dim,
    )
    rotated = graph.emit(rope)
    return graph.permute(rotated, HEAD_MAJOR) if angles.head_major else rotated


def _partial(graph: Graph, node: relax.Call) -> Any:
    """concat(rope(x[..., :R]), x[..., R:]) rotates only R of x's dimensions."""
    parts = list(graph.value(node.args[0]).fields)
    if len(parts) != 2 or int(node.attrs.axis) not in (-1, len(dims(node)) - 1):
        return None
    moved = graph.call(parts[0], "relax.permute_dims")
    rope = graph.call(moved.args[0] if moved is not None else parts[0], "morendo.rope")
    if rope is None:
        return None
    inner = graph.call(rope.args[0], "relax.permute_dims")
    first = slice_of(graph, inner.args[0] if inner is not None else rope.args[0])
    rest = slice_of(graph, parts[1])
    if first is None or rest is None or not first[0].same_as(rest[0]):
        return None
    whole, start, stop = first
    if (start, stop) != (0, rest[1]) or rest[2] != dims(whole)[-1]:
        return None
    attrs = rope.attrs
    angles = _Angles(
        rope.args[1], str(attrs["inv_freq"]), float(attrs["scaling"]), moved is not None
    )
    return _emit(graph, whole, angles, stop)


def slice_of(graph: Graph, expr: Any) -> tuple[Any, int, int] | None:
    """(x, start, stop) of a slice x[..., start:stop] with step 1."""
    node = graph.call(expr, "relax.strided_slice")
    if node is None:
        return None
    x, axes, begin, end = node.args[:4]
    last = len(dims(x)) - 1
    steps = ints(node.args[4]) if len(node.args) > 4 else [1]
    if ints(axes) not in ([last], [-1]) or steps != [1]:
        return None
    size = dims(x)[last]
    return x, ints(begin)[0], min(ints(end)[0], size)


def _is_rotated_half(graph: Graph, expr: Any, x: Any) -> bool:
    """Whether expr is concat(-x[..., D/2:], x[..., :D/2])."""
    joined = graph.call(expr, "relax.concat")
    parts = list(graph.value(joined.args[0]).fields) if joined is not None else []
    if len(parts) != 2:
        return False
    negative = graph.call(parts[0], "relax.negative")
    upper = slice_of(graph, negative.args[0]) if negative is not None else None
    lower = slice_of(graph, parts[1])
    if upper is None or lower is None:
        return False
    size = dims(x)[-1]
    same = upper[0].same_as(x) and lower[0].same_as(x)
    return bool(same) and upper[1:] == (size // 2, size) and lower[1:] == (0, size // 2)


def _angles(graph: Graph, expr: Any, function: str) -> _Angles | None:
    """The angles behind cos or sin, broadcast over the heads."""
    axis, table = _without_head_axis(graph, expr)
    scaling = 1.0
    for inner, factor in graph.pairs(table, "relax.multiply"):
        if graph.scalar(factor) is not None:
            table, scaling = inner, graph.scalar(factor) or 0.0
            break
    wave = graph.call(table, function)
    twice = graph.call(wave.args[0], "relax.concat") if wave is not None else None
    parts = list(graph.value(twice.args[0]).fields) if twice is not None else []
    if len(parts) != 2 or not parts[0].same_as(parts[1]):
        return None
    for time, freq in graph.pairs(parts[0], "relax.multiply"):
        positions = _positions(graph, time)
        if positions is not None and graph.weight(freq):
            return _Angles(positions, graph.weight(freq), scaling, axis == 1)
    return None


def _without_head_axis(graph: Graph, expr: Any) -> tuple[int, Any]:
    """(axis, table) of a (1, n, R) table that was given an axis for the heads."""
    added = graph.call(expr, "relax.expand_dims")
    return (ints(added.attrs.axis)[0], added.args[0]) if added is not None else (-1, expr)


def _positions(graph: Graph, expr: Any) -> Any:
    """The (1, n) integers behind float(positions)[:, :, None]."""
    for _ in range(3):
        step = graph.call(expr, "relax.astype", "relax.expand_dims", "relax.reshape")
        if step is None:
            break
        expr = step.args[0]
    shape = dims(expr)
    return expr if len(shape) == 2 and shape[0] == 1 and "int" in str(expr.ty.dtype) else None
