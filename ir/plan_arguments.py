"""What a kernel call of a plan is given, and how plan.json spells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from morendo.ir.pruning import StagePosition, StageTokens

Dim = int | Literal["tokens"] | StageTokens
Counts = Sequence[int]
"""How many tokens each stage of a call has; stage 0, which all plans have, first."""


@dataclass(frozen=True)
class Level:
    """An int32 argument that depends on the precision level: one value for each."""

    values: tuple[int, ...]


@dataclass(frozen=True)
class LevelTensor:
    """A tensor that depends on the precision level: an index for each, all of one type and size."""

    indexes: tuple[int, ...]


@dataclass(frozen=True)
class Const:
    """An int32 argument known at compile time."""

    value: int


Scalar = Literal["tokens", "position", "sharpness"]
"""What a call has besides tensors: how many tokens, behind how many; and the bits of the float32
that logits are multiplied with before they become weights of tokens, 0 where nobody wants these.
"""

# a plain int is a tensor's index
Argument = int | Scalar | StageTokens | StagePosition | Level | LevelTensor | Const


def extent(dim: Dim, counts: Counts) -> int:
    """What a dimension is in a call whose stages have so many tokens."""
    if isinstance(dim, StageTokens):
        return counts[dim.stage]
    return dim if isinstance(dim, int) else counts[0]


def tensor_index(arg: Argument, level: int) -> int | None:
    """Which tensor an argument is at a precision level; None when it is a number."""
    if isinstance(arg, LevelTensor):
        return arg.indexes[level]
    return arg if isinstance(arg, int) else None


def argument_to_json(arg: Argument) -> Any:
    """As JSON has it."""
    if isinstance(arg, Level):
        return {"level": list(arg.values)}
    if isinstance(arg, LevelTensor):
        return {"tensors": list(arg.indexes)}
    if isinstance(arg, StageTokens):
        return {"tokens": arg.stage}
    if isinstance(arg, StagePosition):
        return {"position": arg.stage}
    return {"const": arg.value} if isinstance(arg, Const) else arg


def argument_from_json(data: Any) -> Any:
    """The argument that JSON spells; anything else is left for the plan's checks."""
    if not isinstance(data, dict):
        return data
    if set(data) == {"level"}:
        return Level(tuple(data["level"]))
    if set(data) == {"tensors"}:
        return LevelTensor(tuple(data["tensors"]))
    if set(data) == {"const"}:
        return Const(data["const"])
    if set(data) == {"tokens"}:
        return StageTokens(data["tokens"])
    if set(data) == {"position"}:
        return StagePosition(data["position"])
    raise ValueError(f"unknown argument {data!r}")
