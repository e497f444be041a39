"""The ops of a function's IR text as a graph: what the page draws and what other viewers get.

The text is parsed as Python and never run, so that a dump from elsewhere can be looked at. Parts of
tuples and other names for a value are looked through: they are edges, not ops.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from morendo.ir.errors import InputError
from morendo.ir.formats import WeightFormat

INPUT = "input"
_LAYER = re.compile(r"(?:^|[._])(?:layers|h|blocks?)[._](\d+)[._]")
_WEIGHTS = ("weight", "weights", "bias")
_FLOAT_BITS = 32.0


class Input(NamedTuple):
    """What an op reads: the variable of another, and which of its results."""

    var: str
    part: int = 0


@dataclass(frozen=True)
class Op:
    """An op, or an input of the function.

    Attributes:
        var: the variable that it defines.
        op: its name, without the dialect's letter.
        inputs: results of other ops, in the order of the arguments.
        weights: names of the weights that it reads.
        attrs: its other arguments, as the text has them.
        layer: of the model, None for what comes before and after the layers. An op that does not
            say so belongs to the last layer of its inputs, or to the only one that reads it.
        types: of its results, such as "[1, tokens, 128] float32".
        bits: stored for each weight of its matrices, scales included; None without any.
    """

    var: str
    op: str
    inputs: tuple[Input, ...] = ()
    weights: tuple[str, ...] = ()
    attrs: dict[str, str] = field(default_factory=dict)
    layer: int | None = None
    types: tuple[str, ...] = ()
    bits: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What the page draws of it."""
        names = ("var", "op", "weights", "layer", "types", "bits")
        inputs = list(dict.fromkeys(each.var for each in self.inputs))
        return {**{name: getattr(self, name) for name in names}, "inputs": inputs}


def ops_of(text: str, where: str) -> list[Op]:
    """The ops of a function in their order, its inputs first; none of what is no graph.

    Args:
        text: of one function, as `texts.functions_of` gives it.
        where: what errors call the text.

    Raises:
        InputError: when the text is not Python.
    """
    if "R.function" not in text.partition("\n")[0]:
        return []
    try:
        functions = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
        return _Reader(functions[0]).read()
    except (SyntaxError, ValueError, IndexError, RecursionError) as error:
        reason = getattr(error, "msg", None) or str(error)
        message = f"not the text of a function ({reason})"
        raise InputError(message, where=where, hint="write the dump again") from None


def graph_text(ops: list[Op]) -> str:
    """JSON of the ops for the page, which draws them."""
    return json.dumps([op.to_json() for op in ops], separators=(",", ":"))


class _Reader:
    """Reads one function from its first line to its last."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self._function = function
        self._ops: dict[str, Op] = {}
        self._results: dict[str, tuple[Input, ...]] = {}  # that a variable stands for
        self._weights: dict[str, str] = {}  # parameters that are weights, before weights are names

    def read(self) -> list[Op]:
        self._parameters()
        statements = [n for n in ast.walk(self._function) if isinstance(n, ast.AnnAssign)]
        for statement in sorted(statements, key=lambda node: node.lineno):
            if isinstance(statement.target, ast.Name):
                self._binding(statement, statement.target.id)
        self._layers_of_readers()
        return list(self._ops.values())

    def _layers_of_readers(self) -> None:
        """What one layer alone reads is its own, such as its slices of a table."""
        readers: dict[str, set[int | None]] = {}
        for op in reversed(list(self._ops.values())):
            layers = readers.get(op.var, {None})
            if op.layer is None and op.op != INPUT and not op.weights and len(layers) == 1:
                op = self._ops[op.var] = replace(op, layer=next(iter(layers)))
            for each in op.inputs:
                readers.setdefault(each.var, set()).add(op.layer)

    def _parameters(self) -> None:
        parameters = self._function.args.args
        names = self._weight_names()
        count = len(parameters) - len(names)
        for parameter in parameters[:count]:
            types = tuple(_types(parameter.annotation))
            self._add(Op(parameter.arg, INPUT, types=types))
        for parameter, name in zip(parameters[count:], names, strict=True):
            self._weights[parameter.arg] = name

    def _weight_names(self) -> list[str]:
        """The last parameters are weights where the function says which ones."""
        for node in ast.walk(self._function):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "weight_names":
                        return _strings(value)
        return []

    def _add(self, op: Op) -> None:
        self._ops[op.var] = op
        self._results[op.var] = (Input(op.var),)

    def _binding(self, statement: ast.AnnAssign, var: str) -> None:
        value = statement.value
        if not isinstance(value, ast.Call):  # a part, a tuple or another name
            self._results[var] = tuple(self._inputs(value))
            return
        attrs = {word.arg: word.value for word in value.keywords if word.arg}
        weights = [name for key in _WEIGHTS if key in attrs for name in _strings(attrs[key])]
        weights += [self._weights[n] for n in _names(value) if n in self._weights]
        inputs = tuple(self._inputs(value))
        layer = self._layer(weights, attrs, inputs)
        types = tuple(_types(statement.annotation))
        shown = {key: _shown(node) for key, node in attrs.items() if key not in _WEIGHTS}
        variables = self._results.keys() | self._weights.keys()
        others = [node for node in value.args if variables.isdisjoint(_names(node))]
        if others:
            shown["arguments"] = ", ".join(map(ast.unparse, others))
        name = ast.unparse(value.func).partition(".")[2]
        self._add(Op(var, name, inputs, tuple(weights), shown, layer, types, _bits(attrs)))

    def _inputs(self, node: ast.AST | None) -> Iterator[Input]:
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            whole, part = list(self._inputs(node.value)), int(str(node.slice.value))
            if len(whole) == 1:
                yield Input(whole[0].var, part)
            else:
                yield from whole[part : part + 1]
        elif isinstance(node, ast.Name):
            yield from self._results.get(node.id, ())
        elif node is not None:
            for child in ast.iter_child_nodes(node):
                yield from self._inputs(child)

    def _layer(
        self, weights: list[str], attrs: dict[str, ast.expr], inputs: tuple[Input, ...]
    ) -> int | None:
        stated = attrs.get("layer")
        if isinstance(stated, ast.Constant) and isinstance(stated.value, int):
            return stated.value
        if weights:
            found = _LAYER.search(weights[0])
            return int(found[1]) if found else None
        layers = [self._ops[each.var].layer for each in inputs]
        return max((layer for layer in layers if layer is not None), default=None)


def _names(node: ast.AST | None) -> Iterator[str]:
    """Names in an expression, in the order of the text."""
    if isinstance(node, ast.Name):
        yield node.id
    elif node is not None:
        for child in ast.iter_child_nodes(node):
            yield from _names(child)


def _strings(node: ast.AST) -> list[str]:
    return [
        child.value
        for child in ast.walk(node)
        if isinstance(child, ast.Constant) and isinstance(child.value, str)
    ]


def _shown(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ast.unparse(node)


def _types(annotation: ast.AST | None) -> Iterator[str]:
    """The tensors of a type, those of a tuple one after another."""
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "R.Tensor":
            dims = node.args[0].elts if node.args and isinstance(node.args[0], ast.Tuple) else []
            shape = ", ".join(re.sub(r"\bn\b", "tokens", ast.unparse(dim)) for dim in dims)
            dtype = [text for word in node.keywords for text in _strings(word.value)]
            yield f"[{shape}] {' '.join(dtype)}".strip()


def _bits(attrs: dict[str, ast.expr]) -> float | None:
    """As the matrices of an op of the dialect are stored; floats until a format is chosen."""
    if "format" not in attrs:
        return _FLOAT_BITS if "in_features" in attrs or "rows" in attrs else None
    try:
        known = {key: ast.literal_eval(node) for key, node in attrs.items() if key != "shape"}
        fmt = WeightFormat.parse(known["format"])
        rows: Any = known["rows"] if "rows" in known else known["out_features"]
        rows = list(rows) if isinstance(rows, (list, tuple)) else [rows]
        columns = int(known.get("in_features") or known["features"])
        return 8 * sum(fmt.nbytes(n, columns) for n in rows) / (sum(rows) * columns)
    except (KeyError, ValueError, TypeError, ArithmeticError, InputError):
        return None  # an op of another version, or one that is no matrix
