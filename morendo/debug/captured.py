"""Running an artifact's plan with an eye on every op: the value of each variable of the IR."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from morendo.codegen.build import lower_module
from morendo.codegen.lowering import FunctionLowering, Options, Program
from morendo.codegen.memory import Storage
from morendo.ir.errors import ArtifactError
from morendo.ir.plan import Plan, Step
from morendo.ir.plan_arguments import tensor_index
from morendo.ir.text import bindings_of, parse_module
from morendo.runtime.artifact import GRAPH, read_plan
from morendo.runtime.emulated import EmulatedExecutor, find_emulator
from morendo.runtime.executor import CExecutor, Executor, load_library, works_on_host
from morendo.runtime.interpreter import PythonExecutor
from morendo.runtime.verify import runs_here
from morendo.targets import find_target


@dataclass(frozen=True)
class Run:
    """One call of one function.

    Attributes:
        function: "prefill" or "decode".
        start, stop: the positions of its tokens.
        values: of each variable that kernels computed, an array or a tuple of arrays, shaped as
            the plan's tensors are.
    """

    function: str
    start: int
    stop: int
    values: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """An artifact with the graph that its plan was made of."""

    directory: Path
    manifest: dict[str, Any]
    module: tvm.IRModule
    program: Program
    plan: Plan


def open_graph(directory: Path, manifest: dict[str, Any]) -> Opened:
    """Read an artifact's graph and find out which step of the plan computes which variable.

    Raises:
        ArtifactError: when it has no graph, or one that this version lowers to another plan.
    """
    try:
        text = (directory / GRAPH).read_text(encoding="utf-8")
    except OSError as error:
        message = f"cannot read {GRAPH} ({error.strerror})"
        raise ArtifactError(message, where=str(directory), hint="compile it again") from None
    module, plan = parse_module(text, str(directory / GRAPH)), read_plan(directory)
    given = manifest["options"]
    half = "float16" in given["cache_dtype"]
    options = Options(chunk=given["chunk"], context=given["context"], half_cache=half)
    program, made = lower_module(module, find_target(manifest["target"]["name"]), options)
    if not _alike(plan, made):
        raise foreign_plan(str(directory))
    return Opened(directory, manifest, module, program, plan)


def open_kernels(directory: Path, manifest: dict[str, Any]) -> Opened:
    """`open_graph` of an artifact whose kernels this version makes, too.

    Raises:
        ArtifactError: when it makes others.
    """
    opened = open_graph(directory, manifest)
    if tuple(opened.program.kernels) != opened.plan.kernels:
        raise foreign_plan(str(directory))
    return opened


def foreign_plan(where: str) -> ArtifactError:
    """What to say when a graph and a plan do not belong together."""
    message = "its plan is not what this version of morendo makes of its graph"
    return ArtifactError(message, where=where, hint="compile it again")


def _alike(plan: Plan, made: Plan) -> bool:
    """Whether two plans put the same values into the same places; kernels may have other names."""
    return all(
        [_written(plan, step) for step in plan.functions[name]]
        == [_written(made, step) for step in made.functions[name]]
        for name in plan.functions
    )


def _written(plan: Plan, step: Step) -> list[tuple[str, int]]:
    indexes = [tensor_index(arg, 0) for arg in step.args]
    tensors = [plan.tensors[index] for index in indexes if index is not None]
    return [(t.space, t.offset) for t in tensors]


def kernel_of(opened: Opened, function: str, var: Any) -> tuple[str, str]:
    """The kernel that completes a variable's value, and the note of its call."""
    index = opened.program.functions[function].steps[var] - 1
    step = opened.plan.functions[function][index]
    return opened.plan.kernels[step.kernel], step.note


def capture(opened: Opened, ids: Sequence[int], threads: int = 0) -> list[Run]:
    """Run all tokens but the last through prefill, and the last one through decode.

    Args:
        ids: two tokens or more.
    """
    last = len(ids) - 1
    cuts = [*range(0, last, opened.plan.chunk), last]
    runs = [Run("prefill", start, stop) for start, stop in pairwise(cuts)]
    runs.append(Run("decode", last, len(ids)))
    watcher = _Watcher(opened)
    executor = _executor(opened, threads, watcher)
    try:
        for run in runs:
            watcher.run = run
            if run.function == "decode":
                executor.decode(ids[run.start])
            else:
                executor.prefill(ids[run.start : run.stop])
            watcher.finish_step()
    finally:
        executor.close()
    return runs


def _executor(opened: Opened, threads: int, watcher: _Watcher) -> Executor:
    """What runs the plan and shows all steps: the reference where kernels work on the memory of
    this process, else the C runtime on its device or emulator.

    Raises:
        ArtifactError: when the artifact cannot run here.
    """
    directory, target = opened.directory, opened.manifest["target"]
    if not runs_here(opened.manifest):
        emulator = find_emulator(target["emulator"], target["machine"])
        cpu = target.get("emulated_cpu", "max")
        executor = EmulatedExecutor(directory, emulator, threads, cpu)
    elif works_on_host(load_library(directory)):
        return PythonExecutor(directory, threads, trace=watcher.see, poison=True)
    else:
        executor = CExecutor(directory, threads)
    executor.set_trace(watcher.see_argument)
    return executor


class _Watcher:
    """Copies the values of variables when the step that completes them has run."""

    def __init__(self, opened: Opened) -> None:
        self._plan = opened.plan
        self._completed = {
            name: _completed_by(lowering) for name, lowering in opened.program.functions.items()
        }
        self.run = Run("prefill", 0, 0)
        self._step, self._places = -1, {}

    def see(self, index: int, step: Step, arrays: list[np.ndarray]) -> None:
        """A trace of the executor."""
        indexes = [tensor_index(arg, 0) for arg in step.args]
        tensors = [self._plan.tensors[i] for i in indexes if i is not None]
        self._step = index
        self._places = {(t.space, t.offset): a for t, a in zip(tensors, arrays, strict=True)}
        self.finish_step()

    def see_argument(self, index: int, argument: int, data: bytes) -> None:
        """A trace of the C runtime: arguments one after another, step by step."""
        if index != self._step:
            self.finish_step()
        step = self._plan.functions[self.run.function][index]
        number = tensor_index(step.args[argument], 0)
        assert number is not None
        tensor = self._plan.tensors[number]
        array = np.frombuffer(data, tensor.dtype)
        self._step = index
        counts = self._plan.counts(self.run.function, self.run.stop - self.run.start)
        self._places[tensor.space, tensor.offset] = array.reshape(tensor.shape(counts))

    def finish_step(self) -> None:
        """Keep what is complete after the step that was seen last."""
        places, self._places = self._places, {}
        for var, storages in self._completed[self.run.function].get(self._step, []):
            found = [places.get((s.space, s.offset)) for s in storages]
            copies = [a.copy() for a in found if a is not None]
            if len(copies) == len(storages):
                self.run.values[var] = tuple(copies) if len(copies) > 1 else copies[0]


def _completed_by(lowering: FunctionLowering) -> dict[int, list[tuple[Any, list[Storage]]]]:
    """The variables whose value is complete after each step, with the places of its parts."""
    found, before = defaultdict(list), 0
    for binding in bindings_of(lowering.function):
        var = binding.var
        steps, value = lowering.steps[var], lowering.values[var]
        if steps > before:  # others are names for what is there already
            storages = value if isinstance(value, list) else [value]
            found[steps - 1].append((var, storages))
        before = steps
    return found
