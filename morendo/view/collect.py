"""What the page shows, as plain data: stages, kernels, weights, curves.

title, facts        of the whole
stages              number, name, kind, seconds, and of passes spec, counts, missed, size, figures;
                    functions: text numbers by function; files: text numbers by file name
steps, calls        which calls compute a variable of the last IR, and what is called
kernels             what `KernelFacts` and `KernelCode` have; tir, before, assembly: text numbers
weights             matrices as the dump's stage `weights` has them
decode_bytes        by kernel, at every level
quality             rows of `morendo eval --json`: bits and KL of every level
texts               compressed (see `texts.py`)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from morendo.ir.dump import INDEX, read_index
from morendo.ir.errors import InputError

from .texts import Texts, functions_of


def collect(folder: Path, quality: Path | None = None) -> dict[str, Any]:
    """The data of a page.

    Args:
        folder: a dump, or an artifact.
        quality: figures of `morendo eval --json`, for the curve of bits against KL.

    Raises:
        InputError: when the folder is neither, or a file of it is damaged.
        ArtifactError: when an artifact is damaged.
    """
    texts = Texts()
    if (folder / INDEX).exists():
        data = _from_dump(folder, texts)
    else:
        from .from_artifact import from_artifact

        data = from_artifact(folder, texts)
    data["quality"] = _quality(quality) if quality else []
    return {**data, "texts": texts.compressed()}


def _from_dump(folder: Path, texts: Texts) -> dict[str, Any]:
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
        for name, text in functions_of(_read(folder / stage["files"][0])):
            found["functions"][name] = texts.add(text)
    else:
        for path in stage["files"]:
            found["files"][Path(path).name] = texts.add(_read(folder / path))
    if stage["kind"] == "pass" and stage["report"]:
        report = _read_json(folder / stage["report"])
        names = {"pass": "spec", "counts": "counts", "missed": "missed", "size": "size"}
        found |= {new: report[old] for old, new in names.items() if old in report}
        found["figures"] = report.get("figures", {})
    return found


def _report(folder: Path, index: dict[str, Any], kind: str) -> dict[str, Any]:
    """The report of the stage of a kind, {} when there is none."""
    for stage in index["stages"]:
        if stage["kind"] == kind and stage["report"]:
            return _read_json(folder / stage["report"])
    return {}


def _kernels(folder: Path, index: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    tir = _report(folder, index, "kernels").get("kernels", {})
    counts = _report(folder, index, "assembly").get("kernels", {})
    files = {name: number for stage in stages for name, number in stage["files"].items()}
    return {
        name: {
            **facts,
            **counts.get(name, {}),
            "tir": files.get(f"{name}.py"),
            "before": files.get(f"{name}.unscheduled.py"),
            "assembly": files.get(f"{name}.s"),
        }
        for name, facts in tir.items()
    }


def _quality(path: Path) -> list[dict[str, Any]]:
    rows = _read_json(path).get("rows")
    if not isinstance(rows, list):
        raise InputError(f"{path} has no rows", hint="write it with `morendo eval --json FILE`")
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"cannot read {path} ({reason})", hint="write the dump again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})", hint="write it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is no object of JSON", hint="write it again")
    return value
