"""Rotary position embedding: the rotation of queries and keys by angles of their positions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from morendo.ir.dialect import attrs_of, call

from .graph import Graph, dims, ints, op_of, same_dims

HEAD_MAJOR = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Angles:
    """cos or sin of position * inv_freq, twice, times a factor.

    Attributes:
        positions: (1, n) integers.
        inv_freq: weight name.
        scaling: the factor.
        head_major: broadcast over axis 1, so the rotated tensor is (1, heads, n, head_dim).
        interleaved: each angle twice in a row, not all angles twice.
    """

    positions: Any
    inv_freq: str
    scaling: float
    head_major: bool
    interleaved: bool

    def same_as(self, other: _Angles | None) -> bool:
        """Whether both rotate by the same angles."""
        if other is None or not self.positions.same_as(other.positions):
            return False
        return replace(self, positions=None) == replace(other, positions=None)


def recognize_rope(graph: Graph, node: relax.Call) -> Any:
    """x * cos + rotate_half(x) * sin as morendo.rope, and concat(rope(x[:R]), x[R:]) likewise.

    Channels turn in pairs (i, i + R/2), or (2i, 2i + 1) in glm, cohere and ernie. The computation
    of cos and sin is not read any more then. The result is token-major; a head-major x is
    transposed before and after, which cancels with the model's own transpositions.
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
                turns = _is_rotated_pairs if angles.interleaved else _is_rotated_half
                if same and turns(graph, half, x):
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
        interleaved=angles.interleaved,
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
    attrs = attrs_of(rope)
    spelling = attrs["inv_freq"], attrs["scaling"], moved is not None, attrs["interleaved"]
    angles = _Angles(rope.args[1], *spelling)
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
    size, bounds = dims(x)[last], (*ints(begin), *ints(end))
    if len(bounds) != 2 or not isinstance(size, int):
        return None  # it cuts along the tokens
    return x, bounds[0], min(bounds[1], size)


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


def _is_rotated_pairs(graph: Graph, expr: Any, x: Any) -> bool:
    """Whether expr is stack(-x[..., 1::2], x[..., 0::2]) with the pairs in a row."""
    flat = graph.call(expr, "relax.reshape")
    stacked = graph.call(flat.args[0], "relax.stack") if flat is not None else None
    parts = list(graph.value(stacked.args[0]).fields) if stacked is not None else []
    if len(parts) != 2 or int(stacked.attrs.axis) not in (-1, len(dims(x))):  # type: ignore[union-attr]
        return False
    negative = graph.call(parts[0], "relax.negative")
    odd = _every_second(graph, negative.args[0]) if negative is not None else None
    even = _every_second(graph, parts[1])
    if odd is None or even is None or not same_dims(dims(expr), dims(x)):
        return False
    return bool(odd[0].same_as(x) and even[0].same_as(x)) and (odd[1], even[1]) == (1, 0)


def _every_second(graph: Graph, expr: Any) -> tuple[Any, int] | None:
    """(x, start) of x[..., start::2]."""
    node = graph.call(expr, "relax.strided_slice")
    if node is None or len(node.args) < 5 or ints(node.args[4]) != [2]:
        return None
    x, axes, begin, end = node.args[:4]
    last, start, stop = len(dims(x)) - 1, ints(begin), ints(end)
    if ints(axes) not in ([last], [-1]) or not start or not stop:
        return None
    size = dims(x)[last]
    return (x, start[0]) if isinstance(size, int) and stop[0] >= size else None


def _angles(graph: Graph, expr: Any, function: str) -> _Angles | None:
    """The angles behind cos or sin, broadcast over the heads.

    They are written as f(concat(a, a)), f(repeat(a, 2)), or repeat(f(concat(a, a))[half], 2).
    """
    table = _Table(graph, expr)
    wave = graph.call(table.expr, function)
    if wave is None:
        return None
    angle, doubled = wave.args[0], graph.call(wave.args[0], "relax.repeat")
    parts = _halves(graph, angle)
    if doubled is not None and _in_pairs(doubled) and not table.repeated:
        angle, interleaved = doubled.args[0], True
    elif len(parts) == 2 and parts[0].same_as(parts[1]) and table.repeated == table.halved:
        angle, interleaved = parts[0], table.repeated
    else:
        return None
    for time, freq in graph.pairs(angle, "relax.multiply"):
        positions = _positions(graph, time)
        if positions is not None and graph.weight(freq):
            spelling = graph.weight(freq), table.scaling, table.axis == 1, interleaved
            return _Angles(positions, *spelling)
    return None


def _halves(graph: Graph, expr: Any) -> list[Any]:
    joined = graph.call(expr, "relax.concat")
    return list(graph.value(joined.args[0]).fields) if joined is not None else []


def _in_pairs(repeat: relax.Call) -> bool:
    """Whether each element of the last axis comes twice."""
    last = len(dims(repeat)) - 1
    return int(repeat.attrs.repeats) == 2 and int(repeat.attrs.axis) in (-1, last)


class _Table:
    """What was done to a (1, n, R) table of cos or sin on the way to a product.

    Attributes:
        expr: the table itself.
        axis: where it was given an axis for the heads, -1 when it was not.
        scaling: the factor.
        repeated, halved: whether its elements come twice, whether its first half was taken.
    """

    def __init__(self, graph: Graph, expr: Any) -> None:
        self.axis, self.scaling, self.repeated, self.halved = -1, 1.0, False, False
        self.expr: Any = None
        while expr is not None and expr is not self.expr:
            self.expr = expr
            expr = self._step(graph, expr)

    def _step(self, graph: Graph, expr: Any) -> Any:
        """What is behind one more step; the same when there is none."""
        added = graph.call(expr, "relax.expand_dims")
        if added is not None and self.axis < 0:
            self.axis = ints(added.attrs.axis)[0]
            return added.args[0]
        doubled = graph.call(expr, "relax.repeat")
        if doubled is not None and _in_pairs(doubled) and not self.repeated:
            self.repeated = True
            return doubled.args[0]
        part = slice_of(graph, expr)
        if part is not None and part[1:] == (0, dims(part[0])[-1] // 2) and not self.halved:
            self.halved = True
            return part[0]
        for inner, factor in graph.pairs(expr, "relax.multiply"):
            value = graph.scalar(factor)
            if value is not None and self.scaling == 1.0:
                self.scaling = value
                return inner
        return expr


def _positions(graph: Graph, expr: Any) -> Any:
    """The (1, n) integers behind float(positions)[:, :, None]."""
    for _ in range(3):
        step = graph.call(expr, "relax.astype", "relax.expand_dims", "relax.reshape")
        if step is None:
            break
        expr = step.args[0]
    shape = dims(expr)
    return expr if len(shape) == 2 and shape[0] == 1 and "int" in str(expr.ty.dtype) else None
