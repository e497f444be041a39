"""A rewrite of kernels: vectors of 32 floats are computed with integers.

    y[0:32] = a[0:32] * b[0:32]  ->  y[0:32] = mr_hvx_multiply(a[0:32], b[0:32])

Shared kernels and their schedules stay as they are. Scalars stay floats, as the scalar unit has
instructions for them. Vectors of other widths do too: LLVM takes them apart.
"""

from __future__ import annotations

import itertools
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import Call, Expr, TensorLoad, Var
from tvm.tirx.script.builder import ir as T

from .float_functions import PREFIX, llvm_text
from .intrinsics import WORDS

_FLOATS = "float32x32"
_BINARY = {
    tirx.Add: "add",
    tirx.Sub: "subtract",
    tirx.Mul: "multiply",
    tirx.Div: "divide",
    tirx.Max: "maximum",
    tirx.Min: "minimum",
}
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)
_PAIRS = (*_BINARY, *_COMPARISONS, tirx.FloorDiv, tirx.FloorMod, tirx.And, tirx.Or)
_NEAREST, _ABSOLUTE = "tirx.nearbyint", "tirx.fabs"
_IMPORT = "pragma_import_llvm"


def without_float_vectors(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same kernel without arithmetic on vectors of 32 floats."""
    rewrite = _Rewrite()
    body = rewrite.statement(function.body)
    if not rewrite.used:
        return function
    text = tvm.ir.StringImm(llvm_text())
    return function.with_body(tirx.AttrStmt(T.int32(0), _IMPORT, text, body))


class _Rewrite:
    """Goes through statements."""

    def __init__(self) -> None:
        self.used = False
        self.integers: dict[Var, Expr] = {}  # rounded floats whose integers are known too

    def _call(self, result: str, name: str, *operands: Any) -> Expr:
        self.used = True
        return T.call_pure_extern(result, PREFIX + name, *map(self.value, operands))

    def statement(self, node: Any) -> Any:
        """The statement, computed with integers."""
        if isinstance(node, tirx.SeqStmt):
            return tirx.SeqStmt([*itertools.chain(*map(self._statements, node.seq))])
        if isinstance(node, tirx.For):
            return tirx.For(
                node.loop_var, node.min, node.extent, node.kind, self.statement(node.body),
                node.thread_binding, node.annotations, node.step,
            )  # fmt: skip
        if isinstance(node, tirx.IfThenElse):
            other = node.else_case and self.statement(node.else_case)
            return tirx.IfThenElse(node.condition, self.statement(node.then_case), other)
        if isinstance(node, tirx.AttrStmt):
            return tirx.AttrStmt(node.node, node.attr_key, node.value, self.statement(node.body))
        if isinstance(node, tirx.BufferStore):
            return tirx.BufferStore(node.buffer, self.value(node.value), list(node.indices))
        if isinstance(node, tirx.Evaluate):
            return tirx.Evaluate(self.value(node.value))
        if isinstance(node, tirx.Bind):
            return tirx.Bind(node.var, self.value(node.value))
        return node

    def _statements(self, node: Any) -> list[Any]:
        """A statement of a sequence. A rounded float has a variable of its integer before it."""
        if not isinstance(node, tirx.Bind) or not _is_call(node.value, _NEAREST):
            return [self.statement(node)]
        words = Var(f"{node.var.name}_words", tvm.ir.PrimType(WORDS))
        self.integers[node.var] = words
        nearest = self._call(WORDS, "to_nearest_integer", node.value.args[0])
        value = self._call(_FLOATS, "from_integer", words)
        return [tirx.Bind(words, nearest), tirx.Bind(node.var, value)]

    def value(self, node: Any) -> Any:
        """An expression of the same type."""
        if str(node.ty) == _FLOATS:
            return self._vector(node)
        if isinstance(node, tirx.Cast) and str(node.value.ty) == _FLOATS:
            words = self._integers(node.value)
            return words if str(node.ty) == WORDS else tirx.Cast(node.ty, words)
        if isinstance(node, _COMPARISONS) and str(node.a.ty) == _FLOATS:
            return type(node)(*(self._call(WORDS, "order", x) for x in (node.a, node.b)))
        return self._rebuilt(node)

    def _vector(self, node: Any) -> Expr:
        if type(node) in _BINARY:
            return self._call(_FLOATS, _BINARY[type(node)], node.a, node.b)
        if isinstance(node, tirx.Cast) and not str(node.value.ty).startswith("float"):
            words = node.value if str(node.value.ty) == WORDS else tirx.Cast(WORDS, node.value)
            return self._call(_FLOATS, "from_integer", words)
        if _is_call(node, _NEAREST):
            return self._call(_FLOATS, "from_integer", tirx.Cast(WORDS, node))
        if _is_call(node, _ABSOLUTE):
            return self._call(_FLOATS, "absolute", node.args[0])
        return self._rebuilt(node)

    def _integers(self, source: Any) -> Expr:
        """A vector of floats as integers."""
        if isinstance(source, Var) and source in self.integers:
            return self.integers[source]
        if _is_call(source, _NEAREST):
            return self._call(WORDS, "to_nearest_integer", source.args[0])
        return self._call(WORDS, "to_integer", source)

    def _rebuilt(self, node: Any) -> Any:
        """The node, its operands changed; indices of loads have no floats."""
        of = self.value
        if isinstance(node, (Var, TensorLoad)) or not isinstance(node, Expr):
            return node
        if isinstance(node, Call):
            self.used |= _is_own_function(node)
            args = [of(arg) if isinstance(arg, Expr) else arg for arg in node.args]
            return Call(node.op, args, node.attrs, list(node.ty_args), ret_ty=node.ty)
        if isinstance(node, tirx.Cast):
            return tirx.Cast(node.ty, of(node.value))
        if isinstance(node, tirx.Select):
            return tirx.Select(*map(of, (node.condition, node.true_value, node.false_value)))
        if isinstance(node, tirx.Broadcast):
            return tirx.Broadcast(of(node.value), node.lanes)
        if isinstance(node, tirx.Shuffle):
            return tirx.Shuffle([of(vector) for vector in node.vectors], list(node.indices))
        if isinstance(node, _PAIRS):
            return type(node)(of(node.a), of(node.b))
        return node


def _is_call(node: Any, name: str) -> bool:
    """Whether it is a call of the op on a vector of 32 floats."""
    if not isinstance(node, Call) or str(node.ty) != _FLOATS:
        return False
    return isinstance(node.op, tvm.ir.Op) and node.op.name == name


def _is_own_function(node: Call) -> bool:
    """Whether it calls one of `float_functions.py`, which a kernel may name itself."""
    name = node.args[0] if node.args else None
    return isinstance(name, tvm.ir.StringImm) and str(name.value).startswith(PREFIX)
