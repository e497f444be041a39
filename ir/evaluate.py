"""Running a Relax function on numpy arrays, op by op: what a module means, before any kernel.

Dialect ops run by `ir/evaluate_dialect.py`, generic Relax ops by numpy. Meant for tests and for
looking at intermediate values; nothing is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import ir, relax

from . import reference_ops as ref
from .dialect import Attrs, attrs_of, op_name
from .evaluate_dialect import DIALECT, State, Weights
from .text import bindings_of


def evaluate(
    function: relax.Function,
    inputs: Mapping[str, np.ndarray] | list[np.ndarray],
    weights: Weights,
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
        self.generic = {**GENERIC, **(rules or {})}
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


def _strided_slice(call: relax.Call, x: Any, axes: Any, begin: Any, end: Any, *step: Any) -> Any:
    picks = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        picks[axis] = slice(begin[i], end[i], step[0][i] if step else None)
    return x[tuple(picks)]


def _axes(attr: Any) -> tuple[int, ...] | None:
    return None if attr is None else tuple(int(a) for a in attr)


def _split(call: relax.Call, x: Any) -> Any:
    how = call.attrs.indices_or_sections
    sections = int(how) if isinstance(how, tvm.tirx.IntImm) else [int(i) for i in how]
    return tuple(np.split(x, sections, axis=int(call.attrs.axis)))


def _layer_norm(call: relax.Call, x: Any, weight: Any, bias: Any) -> Any:
    return ref.layer_norm(x, weight, bias, float(call.attrs.epsilon))


def _softmax(call: relax.Call, x: Any) -> Any:
    axis = int(call.attrs.axis)
    exp = np.exp(x - x.max(axis=axis, keepdims=True))
    return exp / exp.sum(axis=axis, keepdims=True)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda call, *args: function(*args)


GENERIC: dict[str, Callable[..., Any]] = {
    "add": _plain(np.add),
    "subtract": _plain(np.subtract),
    "multiply": _plain(np.multiply),
    "divide": _plain(np.divide),
    "power": _plain(np.power),
    "negative": _plain(np.negative),
    "tanh": _plain(np.tanh),
    "cos": _plain(np.cos),
    "sin": _plain(np.sin),
    "exp": _plain(np.exp),
    "rsqrt": _plain(lambda x: 1 / np.sqrt(x)),
    "sqrt": _plain(np.sqrt),
    "sigmoid": _plain(lambda x: 1 / (1 + np.exp(-x))),
    "nn.relu": _plain(ref.relu),
    "nn.silu": _plain(ref.silu),
    "nn.gelu": _plain(ref.gelu),
    "nn.gelu_tanh": _plain(ref.gelu_tanh),
    "nn.softmax": _softmax,
    "nn.layer_norm": _layer_norm,
    "matmul": _plain(np.matmul),
    "reshape": _plain(np.reshape),
    "broadcast_to": _plain(np.broadcast_to),
    "permute_dims": lambda call, x: np.transpose(x, _axes(call.attrs.axes)),
    "expand_dims": lambda call, x: np.expand_dims(x, _axes(call.attrs.axis) or ()),
    "squeeze": lambda call, x: np.squeeze(x, _axes(call.attrs.axis)),
    "astype": lambda call, x: x.astype(str(call.attrs.dtype)),
    "concat": lambda call, parts: np.concatenate(parts, axis=int(call.attrs.axis)),
    "take": lambda call, x, i: np.take(x, i, axis=int(call.attrs.axis)),
    "mean": lambda call, x: np.mean(x, _axes(call.attrs.axis), keepdims=bool(call.attrs.keepdims)),
    "split": _split,
    "strided_slice": _strided_slice,
}
