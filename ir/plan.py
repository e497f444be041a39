"""The Plan: what compilation leaves of a model, kernel calls over a static memory plan.

It is the last "IR": data only, printable, checked whenever one is made, the same for the C runtime
and the Python interpreter. plan.json is its JSON form (docs/artifact_format.md).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from morendo.ir.errors import ArtifactError
from morendo.ir.plan_arguments import (
    Argument,
    Const,
    Counts,
    Dim,
    Level,
    LevelTensor,
    argument_from_json,
    argument_to_json,
    extent,
)
from morendo.ir.pruning import (
    MOST_DROPPED,
    MOST_STAGES,
    StagePosition,
    StageTokens,
    stage_counts,
)

VERSION = 2
LIBRARY, EXECUTABLE = "model.so", "run"  # the files of an artifact that execute its plan
TOKENIZER_TABLES = "tokenizer.bin"  # of the executable's tokenizer
ALIGNMENT_BYTES = 64  # a cache line, and the widest vector
SPACES = ("arena", "weights", "cache", "ids", "logits", "state")
CANDIDATES = 256
"""Of the likeliest tokens that decode may leave for a host to draw from."""
SLOT_BYTES = 64  # of one number in "state": whatever wants to be aligned is
ITEM_BYTES = {
    "bool": 1,
    "float32": 4,
    "float16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "int32": 4,
    "int64": 8,
}
FUNCTIONS = ("prefill", "score", "decode")
MAX_DIMS = 6


@dataclass(frozen=True)
class Tensor:
    """A dense row-major buffer at a fixed offset of a space.

    Args:
        space: "arena", "weights", "cache", "state", or the caller's "ids" (int32) and "logits"
            (float32).
        offset: bytes from the start of the space, a multiple of 64; 0 in "ids" and "logits".
        dtype: a key of ITEM_BYTES.
        dims: sizes; "tokens" stands for the number of tokens of the call, `StageTokens` for that
            of a later stage.
    """

    space: str
    offset: int
    dtype: str
    dims: tuple[Dim, ...]

    def shape(self, counts: Counts) -> tuple[int, ...]:
        """The sizes in a call whose stages have so many tokens."""
        return tuple(extent(dim, counts) for dim in self.dims)

    def byte_size(self, counts: Counts) -> int:
        """Bytes it takes in such a call."""
        return math.prod(self.shape(counts)) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Step:
    """One kernel call.

    Attributes:
        kernel: its index.
        args: one for each parameter of the kernel.
        note: which part of the model it computes.
        reads: bytes of weights that it reads for one token at each precision level.
        weights: how many weights it multiplies a token with; 0 in tables and in everything else.
    """

    kernel: int
    args: tuple[Argument, ...]
    note: str = ""
    reads: tuple[int, ...] = ()
    weights: int = 0


@dataclass(frozen=True)
class Plan:
    """Kernel calls of the functions prefill and score (1..chunk tokens) and decode (one token).

    Args:
        chunk: most tokens of one call; a longer input is looped by the caller.
        context: positions that the cache holds.
        vocabulary: number of logits of a token.
        levels: number of precision levels; level 0 is the most precise.
        arena_bytes, cache_bytes, weights_bytes: sizes of the spaces.
        kernels: names; the code of NAME is the exported symbol __tvm_ffi_NAME.
        parameters: of each kernel, what its arguments are called.
        state: arguments that kernels read from memory, an int32 every SLOT_BYTES of the space
            "state", so that a device can repeat a call as it is; none of them is a tensor.
        pruned: of 10000 tokens, how many each pruning of prefill drops (`ir/pruning.py`).
        candidates: where a device finds what a host draws from: the tensor, int64
            [1, CANDIDATES + 1], that decode leaves the likeliest tokens in. Its keys begin with the
            largest: 32 bits that are ordered as logits are, then 2^31 - 1 less the id. Then
            follows, as a float64, the weight of all tokens, e^((logit - largest) sharpness).
            Decode also puts the likeliest token into "ids" then, in the place of its own, or -1
            where a logit is not a number or the largest one is infinite.
        cache_offset: what codes of 8 bits in the cache have added to them, modulo 256.
    """

    chunk: int
    context: int
    vocabulary: int
    levels: int
    arena_bytes: int
    cache_bytes: int
    weights_bytes: int
    kernels: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    parameters: tuple[tuple[str, ...], ...]
    functions: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    state: tuple[Argument, ...] = ()
    pruned: tuple[int, ...] = ()
    candidates: int | None = None
    cache_offset: int = 0

    def __post_init__(self) -> None:
        _check_plan(self)

    def counts(self, function: str, tokens: int) -> tuple[int, ...]:
        """The tokens of each stage in a call of `tokens` tokens; prefill alone drops some."""
        if function == "prefill":
            return stage_counts(tokens, self.pruned)
        return (tokens,) * (1 + len(self.pruned))

    def to_json(self) -> str:
        """The text of plan.json; from_json gives the same plan again."""
        fields = {name: getattr(self, name) for name in _NUMBERS}
        state = {"state": [argument_to_json(arg) for arg in self.state]} if self.state else {}
        data = {
            "version": VERSION,
            **fields,
            **state,
            **({"pruned": list(self.pruned)} if self.pruned else {}),
            **({} if self.candidates is None else {"candidates": self.candidates}),
            **({"cache_offset": self.cache_offset} if self.cache_offset else {}),
            "kernels": list(self.kernels),
            "parameters": [list(names) for names in self.parameters],
            "tensors": [
                [t.space, t.offset, t.dtype, list(map(argument_to_json, t.dims))]
                for t in self.tensors
            ],
            "functions": {
                name: [
                    {
                        "kernel": step.kernel,
                        "args": [argument_to_json(arg) for arg in step.args],
                        "note": step.note,
                        "reads": list(step.reads),
                        "weights": step.weights,
                    }
                    for step in steps
                ]
                for name, steps in self.functions.items()
            },
        }
        return json.dumps(data, separators=(",", ":"))

    @staticmethod
    def from_json(text: str | bytes) -> Plan:
        """Read and check the text of plan.json; ArtifactError in one line if it is not a plan."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"not JSON: {error}", where="plan.json") from None
        _require(isinstance(data, dict), "a plan is a JSON object", "plan.json")
        version = data.get("version")
        _require(
            version == VERSION,
            f"this is a plan of another version (got {version!r}, need {VERSION})",
            "plan.json",
        )
        try:
            return _plan_from_data(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"malformed plan ({type(error).__name__}: {error})"
            raise ArtifactError(message, where="plan.json") from None


def row_caches(plan: Plan) -> list[int]:
    """The caches of values, tensors [heads, context, width], layer after layer; a cache of codes
    has no rows that can be read by themselves.
    """
    found = {
        arg: None
        for step in plan.functions["decode"]
        for name, arg in zip(plan.parameters[step.kernel], step.args, strict=True)
        if name == "v_cache" and isinstance(arg, int)
    }
    return [i for i in found if plan.tensors[i].dtype in ("float32", "float16")]


# The least and the most that each number may be, the same as in runtime/c/plan.c.
_NUMBERS = {
    "chunk": (1, 1 << 20),
    "context": (1, 2**31 - 1),
    "vocabulary": (1, 1 << 24),
    "levels": (1, 2**31 - 1),
    "arena_bytes": (0, 2**63 - 1),
    "cache_bytes": (0, 2**63 - 1),
    "weights_bytes": (0, 2**63 - 1),
}


def _require(condition: bool, message: str, where: str) -> None:
    if not condition:
        raise ArtifactError(message, where=where)


def _is_count(value: object, most: int = 2**63 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _plan_from_data(data: dict[str, Any]) -> Plan:
    tensors = []
    for space, offset, dtype, dims in data["tensors"]:
        tensors.append(Tensor(space, offset, dtype, tuple(map(argument_from_json, dims))))
    functions = {}
    for name, steps in data["functions"].items():
        functions[name] = tuple(
            Step(
                step["kernel"],
                tuple(map(argument_from_json, step["args"])),
                step["note"],
                tuple(step["reads"]),
                step["weights"],
            )
            for step in steps
        )
    numbers = {name: data[name] for name in _NUMBERS}
    return Plan(
        **numbers,
        kernels=tuple(data["kernels"]),
        parameters=tuple(map(tuple, data["parameters"])),
        tensors=tuple(tensors),
        functions=functions,
        state=tuple(map(argument_from_json, data.get("state", []))),
        pruned=tuple(data.get("pruned", [])),
        candidates=data.get("candidates"),
        cache_offset=data.get("cache_offset", 0),
    )


def _check_plan(plan: Plan) -> None:
    for name, (least, most) in _NUMBERS.items():
        value = getattr(plan, name)
        good = _is_count(value) and least <= value <= most
        _require(good, f"{name} must be {least} to {most} (got {value!r})", "plan.json")
    good = len(plan.pruned) <= MOST_STAGES
    good = good and all(_is_count(dropped, MOST_DROPPED) for dropped in plan.pruned)
    most = f"at most {MOST_STAGES} numbers up to {MOST_DROPPED}"
    _require(good, f"pruned must be {most} (got {plan.pruned!r})", "plan.json")
    good = _is_count(plan.cache_offset, 255)
    _require(good, f"cache_offset must be 0 to 255 (got {plan.cache_offset!r})", "plan.json")
    for index, name in enumerate(plan.kernels):
        good = isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is not None
        _require(good, f"a kernel's name must be a C identifier (got {name!r})", f"kernel {index}")
    good = len(plan.parameters) == len(plan.kernels)
    good = good and all(isinstance(name, str) for names in plan.parameters for name in names)
    _require(good, "every kernel has a list of parameters' names", "plan.json")
    for index, arg in enumerate(plan.state):
        good = not _is_count(arg) and not isinstance(arg, LevelTensor)
        good = good and _is_good_argument(plan, arg)
        _require(good, f"bad state {arg!r}", f"state {index}")
    for index, tensor in enumerate(plan.tensors):
        _check_tensor(plan, tensor, f"tensor {index}")
    if plan.candidates is not None:
        good = _is_count(plan.candidates) and plan.candidates < len(plan.tensors)
        need = ("arena", "int64", (1, CANDIDATES + 1))
        found = plan.tensors[plan.candidates] if good else None
        good = found is not None and (found.space, found.dtype, found.dims) == need
        _require(good, f"candidates must be a tensor {need} (got {found})", "plan.json")
    got = sorted(plan.functions)
    _require(got == sorted(FUNCTIONS), f"functions must be {FUNCTIONS} (got {got})", "plan.json")
    for name, steps in plan.functions.items():
        for index, step in enumerate(steps):
            where = f"{name} step {index}" + (f" ({step.note})" if step.note else "")
            _check_step(plan, step, where)


def _check_tensor(plan: Plan, tensor: Tensor, where: str) -> None:
    _require(tensor.space in SPACES, f"unknown space {tensor.space!r}", where)
    _require(tensor.dtype in ITEM_BYTES, f"unknown dtype {tensor.dtype!r}", where)
    good = len(tensor.dims) <= MAX_DIMS and all(
        d == "tokens" or _is_later(plan, d, StageTokens) or _is_count(d, 2**31 - 1)
        for d in tensor.dims
    )
    good = good and len({d for d in tensor.dims if not isinstance(d, int)}) <= 1
    _require(good, f"bad dims {tensor.dims!r}", where)
    aligned = _is_count(tensor.offset) and tensor.offset % ALIGNMENT_BYTES == 0
    _require(
        aligned,
        f"offset must be a multiple of {ALIGNMENT_BYTES} bytes (got {tensor.offset!r})",
        where,
    )
    if tensor.space == "state":
        space_bytes = SLOT_BYTES * len(plan.state)
    elif tensor.space in ("ids", "logits"):
        need = "int32" if tensor.space == "ids" else "float32"
        good = tensor.offset == 0 and tensor.dtype == need
        _require(good, f"{tensor.space} must be {need} at offset 0", where)
        space_bytes = 4 * plan.chunk * (plan.vocabulary if tensor.space == "logits" else 1)
    else:
        space_bytes = getattr(plan, f"{tensor.space}_bytes")
    end = tensor.offset + tensor.byte_size(plan.counts("prefill", plan.chunk))
    _require(
        end <= space_bytes,
        f"ends outside its {tensor.space} (got {end}, size {space_bytes})",
        where,
    )


def _check_step(plan: Plan, step: Step, where: str) -> None:
    good = _is_count(step.kernel) and step.kernel < len(plan.kernels)
    _require(good, f"kernel index out of range (got {step.kernel!r})", where)
    _require(isinstance(step.note, str), "note must be text", where)
    names = plan.parameters[step.kernel]
    counts = f"got {len(step.args)}, need {len(names)}"
    _require(len(step.args) == len(names), f"wrong number of arguments ({counts})", where)
    for arg in step.args:
        _require(_is_good_argument(plan, arg), f"bad argument {arg!r}", where)
    good = len(step.reads) == plan.levels and all(map(_is_count, step.reads))
    _require(good, f"reads must be {plan.levels} numbers of bytes (got {step.reads!r})", where)
    _require(_is_count(step.weights), f"weights must be a count (got {step.weights!r})", where)


def _is_good_argument(plan: Plan, arg: Argument) -> bool:
    if isinstance(arg, Level):
        return len(arg.values) == plan.levels and all(_is_int32(v) for v in arg.values)
    if isinstance(arg, LevelTensor):
        return len(arg.indexes) == plan.levels and _are_alike(plan, arg.indexes)
    if isinstance(arg, Const):
        return _is_int32(arg.value)
    if isinstance(arg, str):
        return arg in ("tokens", "position", "sharpness")
    if isinstance(arg, StageTokens | StagePosition):
        return _is_later(plan, arg, type(arg))
    return _is_count(arg) and arg < len(plan.tensors)


def _are_alike(plan: Plan, indexes: tuple[int, ...]) -> bool:
    """Whether these are tensors that differ in nothing but their offsets."""
    if not all(_is_count(index) and index < len(plan.tensors) for index in indexes):
        return False
    return len({replace(plan.tensors[index], offset=0) for index in indexes}) == 1


def _is_later(plan: Plan, value: object, kind: type[StageTokens | StagePosition]) -> bool:
    """Whether this is a number of that kind of a later stage that the plan has."""
    stages = range(1, 1 + len(plan.pruned))
    return isinstance(value, kind) and _is_count(value.stage) and value.stage in stages


def _is_int32(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**31
