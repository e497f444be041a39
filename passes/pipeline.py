"""Running passes in order: check, apply, check, report, dump."""

from __future__ import annotations

import importlib
import json
import pkgutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm

import morendo.passes
from morendo.ir.invariants import check_invariant
from morendo.ir.text import print_module

from .base import Context, Pass, Report


@dataclass(frozen=True)
class PassRecord:
    """What one pass of a run did: its spec, its report and the seconds it took."""

    spec: str
    report: Report
    seconds: float


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
    dump: Path | None = None,
    done: Callable[[Pass], None] = lambda _: None,
) -> tuple[tvm.IRModule, list[PassRecord]]:
    """Apply passes in order, checking what each needs and gives.

    Args:
        dump: folder for one numbered IR text file a pass, and a JSON of the reports.
        done: called after each pass, for progress.

    Raises:
        CompileError: when an invariant does not hold or a pass refuses.
    """
    records: list[PassRecord] = []
    _dump(dump, 0, "input", module, None)
    for number, step in enumerate(passes, 1):
        context.report = Report()
        for name in step.needs:
            check_invariant(name, module, f"before {step.name}")
        begin = time.perf_counter()
        module = step.apply(module, context)
        seconds = time.perf_counter() - begin
        for name in step.gives:
            check_invariant(name, module, f"after {step.name}")
        records.append(PassRecord(step.spec, context.report, seconds))
        _dump(dump, number, step.name, module, records[-1])
        done(step)
    return module, records


def _dump(
    folder: Path | None, number: int, name: str, module: tvm.IRModule, record: PassRecord | None
) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{number:02d}_{name.replace('-', '_')}"
    (folder / f"{stem}.py").write_text(print_module(module), encoding="utf-8")
    if record:
        facts = {
            "pass": record.spec,
            "seconds": round(record.seconds, 3),
            "counts": record.report.counts,
            "missed": [{"where": where, "why": why} for where, why in record.report.misses],
        }
        if record.report.figures:
            facts["figures"] = record.report.figures
        (folder / f"{stem}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
