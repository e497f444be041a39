"""A page's data from a dump (`--dump-ir`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from morendo.ir.dump import read_index

from .files import read_json, read_text
from .texts import Texts, functions_of


def from_dump(folder: Path, texts: Texts) -> dict[str, Any]:
    """The data (see `collect.py`).

    Raises:
        InputError: when a file is missing or damaged.
    """
    index = read_index(folder)
    stages = [_stage(folder, stage, texts) for stage in index["stages"]]
    plan = _report(folder, index, "plan")
    return {
        "title": index["facts"].get("model", folder.name),
        "facts": {k: v for k, v in index["facts"].items() if isinstance(v, str)},
        "stages": stages,
        "steps": plan.get("steps", {}),
        "calls": plan.get("calls", {}),
        "kernels": _kernels(folder, index, stages),
        "weights": _report(folder, index, "weights").get("matrices", []),
        "decode_bytes": index["facts"].get("decode_bytes", {}),
    }


def _stage(folder: Path, stage: dict[str, Any], texts: Texts) -> dict[str, Any]:
    found = {key: stage[key] for key in ("number", "name", "kind", "seconds")}
    found |= {"functions": {}, "files": {}}
    if stage["kind"] in ("input", "pass"):
        for name, text in functions_of(read_text(folder / stage["files"][0])):
            found["functions"][name] = texts.add(text)
    else:
        for path in stage["files"]:
            found["files"][Path(path).name] = texts.add(read_text(folder / path))
    if stage["kind"] == "pass" and stage["report"]:
        report = read_json(folder / stage["report"])
        names = {"pass": "spec", "counts": "counts", "missed": "missed", "size": "size"}
        found |= {new: report[old] for old, new in names.items() if old in report}
        found["figures"] = report.get("figures", {})
    return found


def _report(folder: Path, index: dict[str, Any], kind: str) -> dict[str, Any]:
    """The report of the stage of a kind, {} when there is none."""
    for stage in index["stages"]:
        if stage["kind"] == kind and stage["report"]:
            return read_json(folder / stage["report"])
    return {}


def _kernels(folder: Path, index: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    tir = _report(folder, index, "kernels").get("kernels", {})
    counts = _report(folder, index, "assembly").get("kernels", {})
    files = {kind: _files(stages, kind) for kind in ("kernels", "assembly")}
    found = {}
    for name, facts in tir.items():
        texts = {"TIR": f"{name}.py", "before scheduling": f"{name}.unscheduled.py"}
        texts = {label: file for label, file in texts.items() if file in files["kernels"]}
        code = [file for file in files["assembly"] if Path(file).stem == name]
        texts |= {"assembly" if len(code) == 1 else Path(file).suffix: file for file in code}
        found[name] = {**facts, **counts.get(name, {}), "files": texts}
    return found


def _files(stages: list[dict[str, Any]], kind: str) -> list[str]:
    return [file for stage in stages if stage["kind"] == kind for file in stage["files"]]
