"""Running a Relax function on numpy arrays, op by op: what a module means, before any kernel.

Dialect ops run by `ir/evaluate_dialect.py`, generic Relax ops by `ir/generic_ops.py`. Meant for
tests and for looking at intermediate values; nothing is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import ir, relax

from .dialect import Attrs, attrs_of, op_name
from .evaluate_dialect import DIALECT, State
from .generic_ops import GENERIC
from .text import bindings_of
from .weights import NamedWeights


def evaluate(
    function: relax.Function,
    inputs: Mapping[str, np.ndarray] | list[np.ndarray],
    weights: NamedWeights,
    watch: Callable[[relax.Var, Any], None] = lambda var, value: None,
    cache: dict[int, Any] | None = None,
) -> Any:
    """The function's result on these inputs.

    Args:
        inputs: by parameter name or in order; parameters listed in `weight_names` are read from
            the weights.
        watch: called with each variable and its value.
        cache: keys and values by layer, for functions over a KV cache; grows with every call.
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else {}
    if isinstance(inputs, list):
        given = {p.name: a for p, a in zip(function.params, inputs, strict=False)}
    names = [str(n) for n in (function.attrs or {}).get("weight_names", [])]
    interpreter = Interpreter(State(weights, {} if cache is None else cache))
    for index, param in enumerate(function.params):
        weight = index - (len(function.params) - len(names))
        value = weights.get(names[weight]) if weight >= 0 else given[param.name]
        interpreter.bind(param, value)
    for binding in bindings_of(function):
        value = interpreter.value(binding.value)
        interpreter.bind(binding.var, value)
        watch(binding.var, value)
    return interpreter.value(function.body.body)


@dataclass
class Prepared:
    """What a function's expressions are made of, asked once for all runs: each question is a call
    into TVM, and together they take as long as small ops do.

    Attributes:
        calls: (op without its dialect's prefix, attributes of dialect ops, operands).
        symbols: (axis, dimension, name) of the symbolic dimensions of variables.
        shapes: dimensions of shapes, numbers where they are constant.
    """

    calls: dict[relax.Call, tuple[str, Attrs | None, tuple[Any, ...]]] = field(default_factory=dict)
    symbols: dict[relax.Var, list[tuple[int, Any, str]]] = field(default_factory=dict)
    shapes: dict[relax.ShapeExpr, list[Any]] = field(default_factory=dict)

    def call(self, call: relax.Call) -> tuple[str, Attrs | None, tuple[Any, ...]]:
        found = self.calls.get(call)
        if found is None:
            name = op_name(call)
            attrs = attrs_of(call) if name else None
            found = name or call.op.name.removeprefix("relax."), attrs, tuple(call.args)
            self.calls[call] = found
        return found

    def symbols_of(self, var: relax.Var) -> list[tuple[int, Any, str]]:
        found = self.symbols.get(var)
        if found is None:
            known = isinstance(var.ty, relax.TensorType) and var.ty.shape is not None
            dims: list[Any] = list(var.ty.shape.values) if known else []
            symbolic = (pair for pair in enumerate(dims) if isinstance(pair[1], tvm.tirx.Var))
            found = self.symbols[var] = [(axis, dim, dim.name) for axis, dim in symbolic]
        return found

    def dims(self, shape: relax.ShapeExpr) -> list[Any]:
        found = self.shapes.get(shape)
        if found is None:
            found = [int(d) if isinstance(d, tvm.tirx.IntImm) else d for d in shape.values]
            self.shapes[shape] = found
        return found


class Interpreter:
    """Values of a function's variables, binding by binding.

    Args:
        state: weights and cache.
        rules: functions that replace those of `DIALECT` and `GENERIC`, by name.
        prepared: of earlier runs of the same function.
    """

    def __init__(
        self,
        state: State,
        rules: Mapping[str, Callable[..., Any]] | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        self.state = state
        self.prepared = Prepared() if prepared is None else prepared
        self.dialect = {**DIALECT, **(rules or {})}
        self.generic = {name: op.compute for name, op in GENERIC.items()} | dict(rules or {})
        self.env: dict[relax.Var, Any] = {}
        self.sizes = tvm.sym.Analyzer()
        self.known: set[str] = set()

    def bind(self, var: relax.Var, value: Any) -> None:
        """Give a variable its value; symbolic dimensions of its type become known."""
        self.env[var] = value
        for axis, dim, name in self.prepared.symbols_of(var):
            if name not in self.known:
                self.known.add(name)
                self.sizes.bind(dim, tvm.tirx.IntImm("int64", int(value.shape[axis])))

    def value(self, expr: Any) -> Any:
        """An expression as an array, a tuple of arrays, a list of ints or a scalar."""
        if isinstance(expr, relax.Var) and expr in self.env:
            return self.env[expr]
        if isinstance(expr, relax.Call):
            return self.call(expr)
        if isinstance(expr, ir.GenericConst):
            return expr.value.numpy()
        if isinstance(expr, relax.ShapeExpr):
            return [self.dim(d) for d in self.prepared.dims(expr)]
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(field) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.value(expr.tuple_value)[expr.index]
        if isinstance(expr, tvm.tirx.FloatImm):
            return float(expr)
        return self.dim(expr)

    def dim(self, expr: Any) -> int:
        """A dimension with the symbolic sizes filled in."""
        return expr if isinstance(expr, int) else int(self.sizes.simplify(expr))

    def call(self, call: relax.Call) -> Any:
        name, attrs, operands = self.prepared.call(call)
        args = [self.value(operand) for operand in operands]
        if attrs is not None:
            return self.dialect[name](self.state, attrs, *args)
        rule = self.generic.get(name)
        if rule is None:
            raise NotImplementedError(f"evaluate: no numpy meaning for {call.op.name}")
        return rule(call, *args)
