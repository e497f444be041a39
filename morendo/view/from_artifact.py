"""A page's data from an artifact: its last IR, plan and weights, and what its passes counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from morendo.ir.errors import ArtifactError
from morendo.ir.formats import WeightFormat
from morendo.ir.plan import Plan
from morendo.ir.plan_reads import decode_bytes_by_kernel, matrix_reads
from morendo.ir.plan_text import print_plan
from morendo.runtime.artifact import GRAPH, read_manifest, read_plan, read_weight_list

from .texts import Texts, functions_of


def from_artifact(folder: Path, texts: Texts) -> dict[str, Any]:
    """The data (see `collect.py`); kernels have no text, and passes neither IR nor times.

    Raises:
        ArtifactError: when it is none, or damaged.
    """
    manifest, plan = read_manifest(folder), read_plan(folder)
    stages = [_pass(number, record) for number, record in enumerate(manifest.get("passes", []), 1)]
    try:
        graph = (folder / GRAPH).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        message = f"cannot read {GRAPH}"
        raise ArtifactError(message, where=str(folder), hint="compile it again") from None
    if stages:
        stages[-1]["functions"] = {n: texts.add(text) for n, text in functions_of(graph)}
    text = texts.add(print_plan(plan))
    files = {"plan.txt": text}
    stages.append({**_empty(len(stages) + 1, "plan", "plan"), "files": files})
    calls = {
        name: [
            {"kernel": plan.kernels[s.kernel], "note": s.note, "reads": list(s.reads)}
            for s in steps
        ]
        for name, steps in plan.functions.items()
    }
    return {
        "title": manifest["model"]["name"],
        "facts": {"target": manifest["target"]["name"], "artifact": folder.name},
        "stages": stages,
        "steps": {},
        "calls": calls,
        "kernels": _kernels(plan),
        "weights": [_matrix(entry, plan) for entry in read_weight_list(folder)["matrices"]],
        "decode_bytes": decode_bytes_by_kernel(plan),
    }


def _empty(number: int, name: str, kind: str) -> dict[str, Any]:
    nothing = {"seconds": None, "functions": {}, "files": {}}
    return {"number": number, "name": name, "kind": kind, **nothing}


def _pass(number: int, record: dict[str, Any]) -> dict[str, Any]:
    missed = [{"where": f"{count} times", "why": why} for why, count in record["missed"].items()]
    facts = {"spec": record["spec"], "counts": record["counts"], "missed": missed, "figures": {}}
    return {**_empty(number, record["spec"].partition("{")[0], "pass"), **facts}


def _kernels(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: {"calls": {}, "weight_bytes": [0], "tir": None, "before": None, "assembly": None}
        for name in plan.kernels
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
