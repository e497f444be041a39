"""A page's data from an artifact: its last IR, kernels, plan, weights, and what passes counted."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from morendo.codegen.dump_program import calls_of, dump_assembly, dump_program
from morendo.debug.captured import Opened, open_kernels
from morendo.ir.dump import Dump
from morendo.ir.errors import ArtifactError, MorendoError
from morendo.ir.formats import WeightFormat
from morendo.ir.plan import Plan
from morendo.ir.plan_reads import decode_bytes_by_kernel, matrix_reads
from morendo.ir.plan_text import print_plan
from morendo.runtime.artifact import GRAPH, read_manifest, read_plan, read_weight_list

from .from_dump import from_dump
from .texts import Texts, functions_of


def from_artifact(folder: Path, texts: Texts) -> dict[str, Any]:
    """The data (see `collect.py`); passes have neither IR nor times, but for the last one.

    Kernels are made again from the graph. Where this version makes others, or cannot make them,
    they have no text, and `facts` say why.

    Raises:
        ArtifactError: when it is none, or damaged.
    """
    manifest, plan = read_manifest(folder), read_plan(folder)
    passes = [_pass(number, record) for number, record in enumerate(manifest.get("passes", []), 1)]
    try:
        graph = (folder / GRAPH).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        message = f"cannot read {GRAPH}"
        raise ArtifactError(message, where=str(folder), hint="compile it again") from None
    if passes:
        passes[-1]["functions"] = {n: texts.add(text) for n, text in functions_of(graph)}
    facts = {"target": manifest["target"]["name"], "artifact": folder.name}
    with TemporaryDirectory() as scratch:
        problem = _dump_kernels(Dump(Path(scratch)), folder, manifest, plan)
        data = from_dump(Path(scratch), texts)
    for stage in data["stages"]:
        stage["number"] += len(passes) + 1
    return {
        **data,
        "title": manifest["model"]["name"],
        "facts": facts | ({"not shown": problem} if problem else {}),
        "stages": [*passes, *data["stages"]],
        "kernels": data["kernels"] or _kernels(plan),
        "weights": [_matrix(entry, plan) for entry in read_weight_list(folder)["matrices"]],
        "decode_bytes": decode_bytes_by_kernel(plan),
    }


def _dump_kernels(dump: Dump, folder: Path, manifest: dict[str, Any], plan: Plan) -> str:
    """Write the stages after the passes, as a compilation does; what could not be made, or ""."""
    try:
        opened = open_kernels(folder, manifest)
    except MorendoError as error:
        dump.text("plan", {".txt": print_plan(plan)}, {"calls": calls_of(plan)})
        return f"kernels: {error}"
    dump_program(dump, opened.program, opened.plan, None)
    try:
        _dump_code(dump, opened)
    except MorendoError as error:
        return f"machine code: {error}"
    return ""


def _dump_code(dump: Dump, opened: Opened) -> None:
    listings: dict[str, str] = {}
    codes = opened.program.target.prepared().kernel_code(opened.program.kernels, listings)
    dump_assembly(dump, listings, codes, None)


def _pass(number: int, record: dict[str, Any]) -> dict[str, Any]:
    missed = [{"where": f"{count} times", "why": why} for why, count in record["missed"].items()]
    return {
        "number": number,
        "name": record["spec"].partition("{")[0],
        "kind": "pass",
        "seconds": None,
        "functions": {},
        "files": {},
        "spec": record["spec"],
        "counts": record["counts"],
        "missed": missed,
        "figures": {},
    }


def _kernels(plan: Plan) -> dict[str, Any]:
    """What the plan alone knows of its kernels."""
    found: dict[str, Any] = {
        name: {"calls": {}, "weight_bytes": [0], "files": {}} for name in plan.kernels
    }
    for function, steps in plan.functions.items():
        for step in steps:
            facts = found[plan.kernels[step.kernel]]
            facts["calls"][function] = facts["calls"].get(function, 0) + 1
            facts["weight_bytes"] = max(facts["weight_bytes"], list(step.reads))
    return found


def _matrix(entry: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """As a dump has it, but for the histograms, which need the model's own weights."""
    fmt = WeightFormat.parse(entry["format"])
    bits = fmt.group_bits(entry["columns"]) if fmt.nested else []
    levels = matrix_reads(plan, entry["offsets"][0]) or [entry["nbytes"]]
    return {**entry, "bits": bits, "level_bytes": levels, "samples": []}
