"""What a compilation took and made: a table of times for people, lines of JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.terminal import table

if TYPE_CHECKING:
    from morendo.progress import Spent


def print_times(spent: Sequence[Spent], seconds: float) -> str:
    """A table of the pieces of work, those within another one below it and indented.

    Args:
        spent: in the order in which they ended.
        seconds: all of them together, and what lay between.
    """
    tasks = _in_order(spent)
    rows = [("  " * each.depth + each.title, *_cells(each.seconds, seconds)) for each in tasks]
    rest = seconds - sum(each.seconds for each in tasks if each.depth == 0)
    rows += [("the rest", *_cells(rest, seconds)), ("all", *_cells(seconds, seconds))]
    return table(rows, ("work", "seconds", "share"))


def _in_order(spent: Sequence[Spent]) -> list[Spent]:
    """Each piece before those within it, which ended before it."""
    done: list[list[Spent]] = []  # trees: the work, then what was within it
    for each in spent:
        inner: list[Spent] = []
        while done and done[-1][0].depth > each.depth:
            inner = [*done.pop(), *inner]
        done.append([each, *inner])
    return [each for tree in done for each in tree]


def _cells(part: float, whole: float) -> tuple[str, str]:
    return f"{part:.2f}", f"{100 * part / whole if whole else 0:.0f} %"


def json_lines(artifact: Path, spent: Sequence[Spent], seconds: float) -> str:
    """One JSON object a line, each with its kind under "event".

    time: task, depth, seconds. pass: spec, counts, missed. weights: part, format, weights, bytes.
    artifact: path, seconds, bytes, files, model, target.
    """
    from morendo.runtime.artifact import read_manifest

    manifest = read_manifest(artifact)
    lines: list[dict[str, Any]] = [
        {"event": "time", "task": s.title, "depth": s.depth, "seconds": round(s.seconds, 4)}
        for s in _in_order(spent)
    ]
    lines += [{"event": "pass", **record} for record in manifest.get("passes", [])]
    lines += [{"event": "weights", **part} for part in manifest.get("weights", [])]
    files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    whole = {"path": str(artifact), "seconds": round(seconds, 3), "bytes": sum(files.values())}
    named = {"model": manifest["model"]["name"], "target": manifest["target"]["name"]}
    lines.append({"event": "artifact", **whole, "files": files, **named})
    return "".join(json.dumps(line) + "\n" for line in lines)
