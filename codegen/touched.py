"""What a kernel reads and writes of its parameters, found in its TIR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import Call, TensorLoad
from tvm_ffi import structural_walk

USED = "used_columns"
"""Attribute of a kernel: how many elements of a parameter's last axis it touches, by name. For
those whose indices are computed at run time, so that they cannot be bounded."""

SCRATCH = "scratch"
"""Attribute of a kernel: the names of parameters that are memory for its own use while it runs."""


@dataclass
class Touched:
    """How much of a parameter's last axis a kernel reads and writes, as parts of it.

    A kernel may read q from a row of q, k and v. A part goes from the first element that is touched
    in any loop to the last one, and is all where an index cannot be bounded.
    """

    read: float = 0.0
    written: float = 0.0


def touched_parameters(function: tirx.PrimFunc) -> dict[str, Touched]:
    """What a kernel touches, by the names of its parameters."""
    finder = _Finder(function)
    structural_walk(function.body, finder.callbacks(), order="pre")
    attrs = function.attrs or {}
    used = {str(name): int(count) for name, count in attrs.get(USED, {}).items()}
    return {str(p.name): finder.touched(p, used.get(str(p.name))) for p in function.params}


class _Finder:
    """Collects the first and last of the last indices that a kernel reads and writes."""

    def __init__(self, function: tirx.PrimFunc) -> None:
        self._bounds = tvm.sym.Analyzer()
        self._found: dict[Any, dict[str, tuple[float, float]]] = {p: {} for p in function.params}

    def callbacks(self) -> list[Any]:
        """What to do with each kind of node; a variable is met before what it is an index of."""
        return [
            (tirx.For, lambda loop: self._range(loop.loop_var, loop.min, loop.extent)),
            (tirx.AttrStmt, self._see_attribute),
            (tirx.Bind, lambda bind: self._bounds.bind(bind.var, bind.value)),
            (tirx.BufferStore, lambda s: self._see(s.buffer, s.indices[-1], "written")),
            (TensorLoad, lambda load: self._see(load.source, load.indices[-1], "read")),
            (Call, self._see_call),
        ]

    def _range(self, variable: Any, first: Any, count: Any) -> None:
        self._bounds.bind(variable, tvm.ir.Range.from_min_extent(first, count))

    def _see_attribute(self, statement: Any) -> None:
        if statement.attr_key == "thread_extent":
            self._range(statement.node.var, 0, statement.value)

    def _see(self, buffer: Any, index: Any, kind: str) -> None:
        if buffer not in self._found:
            return
        lanes = 1
        if isinstance(index, tirx.Ramp):
            index, lanes = index.base, int(index.lanes)
        bound = self._bounds.const_int_bound(index)
        self._add(buffer, kind, bound.min_value, bound.max_value + lanes)

    def _add(self, buffer: Any, kind: str, first: float, end: float) -> None:
        if buffer in self._found:
            found = self._found[buffer]
            before = found.get(kind, (first, end))
            found[kind] = min(first, before[0]), max(end, before[1])

    def _see_call(self, call: Any) -> None:
        """An instruction that gets an address may touch any number of elements there."""
        name = str(getattr(call.op, "name", ""))
        if "store" in name and call.args:
            self._add(call.args[0], "written", -math.inf, math.inf)
        elif name == "tirx.address_of" and isinstance(call.args[0], TensorLoad):
            self._add(call.args[0].source, "read", -math.inf, math.inf)

    def touched(self, param: Any, used: int | None) -> Touched:
        """What was collected of a parameter, `used` of its elements if that is known."""
        touched = Touched()
        for kind, (first, end) in self._found[param].items():
            columns = int(param.shape[-1])
            count = min(end, columns) - max(first, 0) if used is None else used
            setattr(touched, kind, count / columns)
        return touched
