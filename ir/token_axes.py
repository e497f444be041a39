"""Whether the tokens of a function only meet in its attentions.

A function is run on parts of a text, over a cache that only attentions have: an op that reads one
token to compute another would be wrong there. The symbolic dimension n of the inputs is followed
through every generic op.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax

from .dialect import op_name, shape_of
from .generic_ops import GENERIC, GenericOp


def why_not_apart(call: relax.Call) -> str:
    """Why a generic op cannot be run on parts of a text, "" when it can.

    Args:
        call: a call with known types; those of the dialect, and ops that are not known, are fine.
    """
    if op_name(call) or not isinstance(call.op, tvm.ir.Op):
        return ""
    name = call.op.name.removeprefix("relax.")
    if name not in GENERIC:
        return ""
    if _mixes(name, GENERIC[name], call):
        return f"op {call.op.name} computes a token from others"
    return ""


def _mixes(name: str, op: GenericOp, call: relax.Call) -> bool:
    types = [t for arg in call.args for t in _tensors(arg.ty)]
    inputs, outputs = [_place(t) for t in types], [_place(t) for t in _tensors(call.ty)]
    if any(place == _UNCLEAR for place in (*inputs, *outputs)) or _counts_tokens(call):
        return True
    read, made = any(p is not None for p in inputs), any(p is not None for p in outputs)
    if not read:
        return made and not op.fills and name != "broadcast_to"
    if not all(p is not None for p in outputs):
        return True
    first = inputs[0]
    if first is not None and _shares(first, len(shape_of(types[0])), op.axes(call)):
        return True
    if name == "reshape":
        return _rows_before(types[0]) != _rows_before(call.ty)
    return name == "matmul" and _contracts(types, inputs)


_UNCLEAR = -1


def _tensors(ty: Any) -> list[Any]:
    if isinstance(ty, relax.TupleType):
        return [t for field in ty.fields for t in _tensors(field)]
    return [ty] if isinstance(ty, relax.TensorType) else []


def _place(ty: Any) -> int | None:
    """The axis of tokens, None without one, `_UNCLEAR` when it is not one dimension n."""
    if ty.shape is None:
        return _UNCLEAR
    dims = shape_of(ty)
    found = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
    if not found:
        return None
    one = len(found) == 1 and isinstance(dims[found[0]], tvm.tirx.Var)
    return found[0] if one else _UNCLEAR


def _counts_tokens(call: relax.Call) -> bool:
    """Whether an operand is a number, or a range, that depends on n."""
    scalars = [field for arg in call.args for field in getattr(arg, "fields", [arg])]
    numbers = [s for s in scalars if isinstance(s.ty, tvm.ir.PrimType)]
    return any(not isinstance(n, tvm.tirx.IntImm | tvm.tirx.FloatImm) for n in numbers)


def _shares(place: int, rank: int, axes: tuple[int, ...]) -> bool:
    return place in {axis % rank for axis in axes}


def _rows_before(ty: Any) -> int:
    dims = shape_of(ty)
    place = next(axis for axis, dim in enumerate(dims) if not isinstance(dim, int))
    return math.prod(dims[:place])


def _contracts(types: list[Any], places: list[int | None]) -> bool:
    left, right = (len(shape_of(t)) for t in types)
    return places[0] == left - 1 or (places[1] is not None and places[1] == max(right - 2, 0))
