"""A function that is being rebuilt, and questions about what was built so far.

Bindings are visited in order. A recognizer looks back from the call at hand through operands that
are in their final form already, so that one pass over the function is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tvm_ffi
from tvm import ir, relax

from morendo.ir.dialect import shape_of

Rule = Callable[["Graph", relax.Call], Any]


class Graph:
    """New bindings, and where each of them came from.

    Args:
        builder: inside a function and a dataflow block.
        weights: parameters that are weights, with their names.
        rules: tried in order on every call; the first that returns an expression replaces it.
    """

    def __init__(
        self, builder: relax.BlockBuilder, weights: dict[relax.Var, str], rules: Sequence[Rule]
    ) -> None:
        self.builder = builder
        self.weights = weights
        self.rules = rules
        self.values: dict[relax.Var, Any] = {}
        self.counts: dict[str, int] = {}

    def emit(self, value: Any) -> Any:
        """Bind an expression, rewritten by the rules until none fires; variables stay."""
        while isinstance(value, relax.Call):
            value = self._typed(value)
            tried = (rule(self, value) for rule in self.rules)
            better = next((found for found in tried if found is not None), None)
            if better is None:
                break
            value = better
        if isinstance(value, relax.TupleGetItem) and isinstance(
            self.value(value.tuple_value), relax.Tuple
        ):
            return self.value(value.tuple_value).fields[value.index]
        if isinstance(value, relax.Var | ir.GenericConst):
            return value
        var = self.builder.emit(value)
        self.values[var] = value
        return var

    def _typed(self, call: relax.Call) -> relax.Call:
        known = isinstance(call.ty, relax.TensorType | relax.TupleType)
        return call if known else self.builder.normalize(call)

    def count(self, what: str) -> None:
        """Count one rewrite for the report."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def value(self, expr: Any) -> Any:
        """What a variable was bound to; other expressions stand for themselves."""
        return self.values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def call(self, expr: Any, *names: str) -> relax.Call | None:
        """The call of one of these ops ("relax.add") behind an expression."""
        value = self.value(expr)
        found = isinstance(value, relax.Call) and isinstance(value.op, ir.Op)
        return value if found and value.op.name in names else None

    def pairs(self, expr: Any, name: str) -> Iterator[tuple[Any, Any]]:
        """Both orders of the operands of a commutative op behind an expression."""
        call = self.call(expr, name)
        if call is not None:
            first, second = call.args
            yield first, second
            yield second, first

    def scalar(self, expr: Any) -> float | None:
        """The one float that a constant holds, None for anything else.

        Shortest decimal of the float32, so that 1e-6 stays 1e-6.
        """
        value = self.value(expr)
        if not isinstance(value, ir.GenericConst):
            return None
        data = value.value.numpy()
        return float(str(data.reshape(-1)[0])) if data.size == 1 else None

    def filled(self, expr: Any) -> float | None:
        """The value that all elements of a constant have, None for anything else."""
        value = self.value(expr)
        if not isinstance(value, ir.GenericConst):
            return None
        data = value.value.numpy()
        return float(data.flat[0]) if data.size and (data == data.flat[0]).all() else None

    def weight(self, expr: Any, rank: int = 1) -> str:
        """Name of the weight of this rank that a variable is, "" for anything else."""
        name = self.weights.get(expr, "") if isinstance(expr, relax.Var) else ""
        return name if name and len(dims(expr)) == rank else ""

    def reshape(self, expr: Any, shape: Sequence[Any]) -> Any:
        """Emit a reshape, or nothing when the shape is that already."""
        return self.emit(relax.op.reshape(expr, list(shape)))

    def permute(self, expr: Any, axes: Sequence[int]) -> Any:
        """Emit a transposition."""
        return self.emit(relax.op.permute_dims(expr, list(axes)))

    def with_batch(self, expr: Any) -> Any:
        """(n, C) as (1, n, C); other ranks as they are."""
        shape = dims(expr)
        return self.reshape(expr, [1, *shape]) if len(shape) == 2 else expr


def dims(expr: Any) -> list[Any]:
    """The dimensions of a typed tensor expression: ints or symbolic expressions."""
    return shape_of(expr.ty)


def same_dims(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are provably equal."""
    return len(a) == len(b) and all(same_dim(x, y) for x, y in zip(a, b, strict=True))


def same_dim(a: Any, b: Any) -> bool:
    """Whether two dimensions are provably equal."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(tvm_ffi.structural_equal(a, b)) if type(a) is type(b) else False


def op_of(call: relax.Call) -> str:
    """The full name of a call's op, "" for calls of functions."""
    return call.op.name if isinstance(call.op, ir.Op) else ""


def ints(values: Any) -> list[int]:
    """Integers out of a TVM array or tuple expression; none where one depends on the tokens."""
    items = list(values.fields if isinstance(values, relax.Tuple) else values)
    if not all(isinstance(v, int) or hasattr(v, "value") for v in items):
        return []
    return [int(v.value) if hasattr(v, "value") else int(v) for v in items]
