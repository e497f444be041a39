"""What `--dump-ir` writes after the passes: TIR of the kernels, the plan, the memory, assembly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from morendo.ir.dump import Dump
from morendo.ir.plan import FUNCTIONS, Plan
from morendo.ir.plan_text import print_plan

from .kernel_code import KernelCode
from .kernel_facts import kernel_facts
from .lowering import FunctionLowering, Program
from .memory import Storage


def dump_program(dump: Dump, program: Program, plan: Plan, seconds: float | None) -> None:
    """Write the stages kernels, plan and memory.

    Args:
        seconds: that lowering took, where that was measured.
    """
    files = {f"{name}.py": function.script() for name, function in program.kernels.items()}
    for name, function in program.unscheduled.items():
        if name in program.kernels:
            files[f"{name}.unscheduled.py"] = function.script()
    facts = {one.kernel: one.to_json() for one in kernel_facts(plan, program.kernels)}
    dump.text("kernels", files, {"kernels": facts}, seconds)
    dump.text("plan", {".txt": print_plan(plan)}, _plan_facts(plan, program))
    buffers = {name: buffers_of(program.functions[name]) for name in FUNCTIONS}
    table = print_memory(buffers, plan)
    dump.text("memory", {".txt": table}, {n: [asdict(b) for b in bs] for n, bs in buffers.items()})


def dump_assembly(
    dump: Dump,
    listings: Mapping[str, str],
    codes: Mapping[str, KernelCode],
    seconds: float | None,
) -> None:
    """Write the stage assembly: its texts, and what `KernelCode` says of each kernel.

    Args:
        listings: texts by the names of their files, such as NAME.s.
        codes: what is known of kernels, by their names.
        seconds: that code generation took, where that was measured.
    """
    facts = {name: code.to_json() for name, code in codes.items()}
    dump.text("assembly", listings, {"kernels": facts}, seconds)


def _plan_facts(plan: Plan, program: Program) -> dict[str, Any]:
    """Sizes, the calls of each function, and the numbers of those that compute each variable."""
    sizes = ("chunk", "context", "levels", "arena_bytes", "cache_bytes", "weights_bytes")
    steps = {name: _steps_of(program.functions[name]) for name in plan.functions}
    facts = {size: getattr(plan, size) for size in sizes}
    return {**facts, "calls": calls_of(plan), "steps": steps}


def calls_of(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Of each function: what is called, where in the model, and the weights that it reads."""
    return {
        name: [
            {"kernel": plan.kernels[step.kernel], "note": step.note, "reads": list(step.reads)}
            for step in steps
        ]
        for name, steps in plan.functions.items()
    }


def _steps_of(lowering: FunctionLowering) -> dict[str, list[int]]:
    """[first, end] of the calls of each variable that calls of its own compute."""
    found, before = {}, 0
    for var, after in lowering.steps.items():
        if after > before:
            found[var.name] = [before, after]
        before = after
    return found


@dataclass(frozen=True)
class Buffer:
    """A piece of the arena while it holds one value.

    Attributes:
        offset, nbytes: where it lies, at the most tokens.
        first, last: the steps between which it holds the value.
        value: the variables of the IR that it is, and the note of the call that writes it.
    """

    offset: int
    nbytes: int
    first: int
    last: int
    value: str


def buffers_of(lowering: FunctionLowering) -> list[Buffer]:
    """The used buffers of a function's arena, in the order in which they are written."""
    names: dict[int, list[str]] = {}
    for var, value in lowering.values.items():
        for storage in value if isinstance(value, list) else [value]:
            names.setdefault(id(storage), []).append(var.name)
    found = []
    for storage in lowering.arena:
        if storage.space == "arena" and storage.first >= 0:
            found.append(_buffer(lowering, storage, names.get(id(storage), [])))
    return sorted(found, key=lambda b: (b.first, b.offset))


def _buffer(lowering: FunctionLowering, storage: Storage, names: Sequence[str]) -> Buffer:
    note = lowering.calls[storage.first].note
    value = f"{', '.join(names)}: {note}" if names else note
    return Buffer(storage.offset, storage.nbytes, storage.first, storage.last, value)


def print_memory(buffers: Mapping[str, Sequence[Buffer]], plan: Plan) -> str:
    """A table of each function: where a buffer lies, how large it is, in which steps it lives."""
    lines = [f"arena {plan.arena_bytes} bytes, reused by all functions; sizes are those of a chunk"]
    for name, found in buffers.items():
        peak, step = _peak(found)
        lines += ["", f"{name}: {len(found)} buffers, at most {peak} bytes alive, in step {step}"]
        lines.append(f"{'offset':>10} {'bytes':>10} {'steps':>11}  value")
        for b in found:
            lines.append(f"{b.offset:#10x} {b.nbytes:>10} {f'{b.first}-{b.last}':>11}  {b.value}")
    return "\n".join(lines) + "\n"


def _peak(buffers: Sequence[Buffer]) -> tuple[int, int]:
    """The most bytes that are alive in one step, and the first such step."""
    steps = {b.first for b in buffers}
    alive = {s: sum(b.nbytes for b in buffers if b.first <= s <= b.last) for s in steps}
    step = min(alive, key=lambda s: (-alive[s], s), default=0)
    return alive.get(step, 0), step
