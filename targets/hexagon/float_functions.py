"""`float_arithmetic.py` as LLVM functions, which the code of a kernel takes in whole.

They are text that TVM's code generator links with a kernel and inlines. As expressions of TIR they
would be forty nodes for each operation, which its passes take minutes for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from morendo.codegen.cpu.vectors.intrinsic import Intrinsic

from . import float_arithmetic as floats
from .intrinsics import WORDS

PREFIX = "mr_hvx_"
_FLOATS = "float32x32"
_FUNCTIONS: dict[str, tuple[Callable[..., Any], str, tuple[str, ...]]] = {
    "add": (floats.add, _FLOATS, (_FLOATS, _FLOATS)),
    "subtract": (floats.subtract, _FLOATS, (_FLOATS, _FLOATS)),
    "multiply": (floats.multiply, _FLOATS, (_FLOATS, _FLOATS)),
    "divide": (floats.divide, _FLOATS, (_FLOATS, _FLOATS)),
    "maximum": (floats.maximum, _FLOATS, (_FLOATS, _FLOATS)),
    "minimum": (floats.minimum, _FLOATS, (_FLOATS, _FLOATS)),
    "absolute": (floats.absolute, _FLOATS, (_FLOATS,)),
    "exponential": (floats.exponential, _FLOATS, (_FLOATS,)),
    "inverse_root": (floats.inverse_root, _FLOATS, (_FLOATS,)),
    "silu_times": (floats.silu_times, _FLOATS, (_FLOATS, _FLOATS)),
    "scaled": (floats.scaled, _FLOATS, (WORDS, _FLOATS, _FLOATS)),
    "order": (floats.order, WORDS, (_FLOATS,)),
    "from_integer": (floats.from_integer, _FLOATS, (WORDS,)),
    "to_integer": (floats.to_integer, WORDS, (_FLOATS,)),
    "to_nearest_integer": (floats.to_nearest_integer, WORDS, (_FLOATS,)),
}
"""Name: what it does, the type of its result, those of its operands."""


@dataclass
class _Writer:
    """Writes instructions (`float_arithmetic.Machine`); values are names or ints."""

    lines: list[str] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)

    def __call__(self, instruction: Intrinsic, *operands: Any) -> str:
        types = [_llvm_type(dtype) for dtype in instruction.operands]
        values = ", ".join(
            f"{kind} {_operand(value, dtype)}"
            for kind, value, dtype in zip(types, operands, instruction.operands, strict=True)
        )
        result, name = _llvm_type(instruction.result), f"%v{len(self.lines)}"
        called = f"{result} @{instruction.llvm}"
        self.declared[instruction.llvm] = f"declare {called}({', '.join(types)})"
        self.lines.append(f"{name} = call {called}({values})")
        return name

    def cast(self, value: str, source: str, target: str) -> str:
        """The bits of a value as another type."""
        name = f"%v{len(self.lines)}"
        self.lines.append(f"{name} = bitcast {_llvm_type(source)} {value} to {_llvm_type(target)}")
        return name


def _llvm_type(dtype: str) -> str:
    kind, _, lanes = dtype.partition("x")
    element = {"int32": "i32", "float32": "float", "bool": "i1"}[kind]
    return f"<{lanes} x {element}>" if lanes else element


def _operand(value: Any, dtype: str) -> str:
    if isinstance(value, str):
        return value
    return str(value) if dtype == "int32" else f"<{', '.join([f'i32 {value}'] * 32)}>"


@functools.cache
def llvm_text() -> str:
    """All functions, with the declarations that they need."""
    declared: dict[str, str] = {}
    functions = []
    for name, (function, result, operands) in _FUNCTIONS.items():
        writer = _Writer(declared=declared)
        words = [
            value if dtype == WORDS else writer.cast(value, dtype, WORDS)
            for value, dtype in zip(("%a", "%b", "%c"), operands, strict=False)
        ]
        value = function(writer, *words)
        value = value if result == WORDS else writer.cast(value, WORDS, result)
        given = zip(operands, "abc", strict=False)
        parameters = ", ".join(f"{_llvm_type(dtype)} %{x}" for dtype, x in given)
        head = f"define {_llvm_type(result)} @{PREFIX}{name}({parameters}) {{"
        functions += [head, *writer.lines, f"ret {_llvm_type(result)} {value}", "}"]
    return "\n".join([*declared.values(), *functions]) + "\n"
