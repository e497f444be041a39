"""Running passes in order: check, apply, check, report, dump."""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm

import morendo.passes
from morendo.ir.dump import Dump
from morendo.ir.invariants import check_invariant
from morendo.ir.stored_size import stored_size

from .base import Context, Pass, Report


@dataclass(frozen=True)
class PassRecord:
    """What one pass of a run did: its report and the seconds it took."""

    step: Pass
    report: Report
    seconds: float

    @property
    def name(self) -> str:
        """Of the pass."""
        return self.step.name

    @property
    def spec(self) -> str:
        """The pass with its options, as people write it."""
        return self.step.spec


def known_passes() -> dict[str, type[Pass]]:
    """All passes by name: every module of `passes/` may define one."""
    package = morendo.passes.__name__
    for module in pkgutil.iter_modules(morendo.passes.__path__):
        importlib.import_module(f"{package}.{module.name}")
    ours = [kind for kind in Pass.__subclasses__() if kind.__module__.startswith(package)]
    return {kind.name: kind for kind in ours}


def run_passes(
    module: tvm.IRModule,
    passes: Sequence[Pass],
    context: Context,
    dump: Dump | None = None,
    done: Callable[[PassRecord, tvm.IRModule], None] = lambda record, module: None,
) -> tuple[tvm.IRModule, list[PassRecord]]:
    """Apply passes in order, checking what each needs and gives.

    Args:
        dump: is given the IR and the report of every pass.
        done: called after each pass with what it did and made.

    Raises:
        CompileError: when an invariant does not hold or a pass refuses.
    """
    records: list[PassRecord] = []
    if dump:
        dump.module("input", module)
    for step in passes:
        context.report = Report()
        for name in step.needs:
            check_invariant(name, module, f"before {step.name}", context.weights)
        begin = time.perf_counter()
        module = step.apply(module, context)
        seconds = time.perf_counter() - begin
        for name in step.gives:
            check_invariant(name, module, f"after {step.name}", context.weights)
        records.append(PassRecord(step, context.report, seconds))
        if dump:
            dump.module(step.name, module, _facts(records[-1], module), seconds)
        done(records[-1], module)
    return module, records


def _facts(record: PassRecord, module: tvm.IRModule) -> dict[str, Any]:
    """The report of a pass as JSON holds it."""
    facts = {
        "pass": record.spec,
        "seconds": round(record.seconds, 3),
        "counts": record.report.counts,
        "missed": [{"where": where, "why": why} for where, why in record.report.misses],
        "size": stored_size(module),
    }
    if record.report.figures:
        facts["figures"] = record.report.figures
    return facts
