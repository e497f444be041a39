"""Plans as readable text: one line for each kernel call."""

from __future__ import annotations

from morendo.ir.plan import Plan, Step, Tensor
from morendo.ir.plan_arguments import Argument, Const, Dim, Level, LevelTensor
from morendo.ir.printable import printable
from morendo.ir.pruning import StagePosition, StageTokens


def print_plan(plan: Plan, functions: tuple[str, ...] = ("prefill", "score", "decode")) -> str:
    """The plan as a table: sizes, kernels with their call counts, then each function's calls."""
    sizes = {name: getattr(plan, name) for name in ("context", "chunk", "vocabulary", "levels")}
    memory = {name: getattr(plan, f"{name}_bytes") for name in ("weights", "cache", "arena")}
    lines = [
        "plan: " + ", ".join(f"{name} {value}" for name, value in sizes.items()),
        "memory: " + ", ".join(f"{name} {_bytes(value)}" for name, value in memory.items()),
    ]
    if plan.pruned:
        counts = ", ".join(map(str, plan.counts("prefill", plan.chunk)[1:]))
        lines.append(f"later stages of a prefill of {plan.chunk} tokens: {counts}")
    for name in functions:
        steps = plan.functions[name]
        lines += ["", f"{name}: {len(steps)} calls"]
        names = [plan.kernels[step.kernel] for step in steps]
        width = max(map(len, names), default=0)
        for index, (kernel, step) in enumerate(zip(names, steps, strict=True)):
            lines.append(f"{index:5}  {kernel:<{width}}  {_call(plan, step)}".rstrip())
    return "\n".join(lines) + "\n"


def _call(plan: Plan, step: Step) -> str:
    names = plan.parameters[step.kernel]
    named = zip(names, step.args, strict=True)
    text = ", ".join(f"{name}={_argument(plan, arg)}" for name, arg in named)
    return f"({text})" + (f"  # {printable(step.note)}" if step.note else "")


def _argument(plan: Plan, arg: Argument) -> str:
    if isinstance(arg, Level):
        return "level" + str(list(arg.values))
    if isinstance(arg, LevelTensor):
        return "level[" + ", ".join(_tensor(plan.tensors[i]) for i in arg.indexes) + "]"
    if isinstance(arg, Const):
        return str(arg.value)
    if isinstance(arg, StageTokens | StagePosition):
        return _stage(arg)
    return arg if isinstance(arg, str) else _tensor(plan.tensors[arg])


def _stage(arg: StageTokens | StagePosition) -> str:
    return f"{'tokens' if isinstance(arg, StageTokens) else 'position'} of stage {arg.stage}"


def _tensor(tensor: Tensor) -> str:
    short = tensor.dtype.replace("uint", "u").replace("int", "i").replace("float", "f")
    place = tensor.space
    if place not in ("ids", "logits"):
        place += f"+{tensor.offset:#x}"
    return f"{place}:{short}[{','.join(map(_dim, tensor.dims))}]"


def _dim(dim: Dim) -> str:
    return _stage(dim) if isinstance(dim, StageTokens) else str(dim)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
