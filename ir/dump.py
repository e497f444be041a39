"""The folder that `--dump-ir` writes: numbered stages of a compilation, a report of each, an index.

    00_input.py                     IR text
    01_normalize.py, .json          after a pass, and the pass's report
    07_kernels/NAME.py, .json       a stage of many files, and its report
    index.json                      {"version": 2, "facts": {...}, "stages": [...]}

A stage of the index has number, name, kind, files, report (the name of its JSON file, or null) and
seconds. `morendo view` reads it; docs/inspecting.md tells people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm

from .errors import InputError
from .schema import mismatch
from .text import print_module

VERSION = 2
INDEX = "index.json"
_INDEX = {
    "version": int,
    "facts": {str: object},
    "stages": [
        {
            "number": int,
            "name": str,
            "kind": str,
            "files": [str],
            "report": (str, None),
            "seconds": (float, int, None),
        }
    ],
}


class Dump:
    """Writes stages into a folder, in the order in which they are given.

    What an earlier dump of the same folder left there goes first.

    Args:
        folder: made when it is missing.

    Attributes:
        facts: of the whole, such as the model's name, for the index.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"the IR cannot be dumped there ({error.strerror})"
            raise InputError(message, where=str(folder), hint="give a folder") from None
        _forget(folder)
        self.folder = folder
        self.facts: dict[str, Any] = {}
        self._stages: list[dict[str, Any]] = []

    def module(
        self,
        name: str,
        module: tvm.IRModule,
        report: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> None:
        """A stage that is one module: the input, or what a pass made of it."""
        kind = "input" if report is None else "pass"
        self._write(name, kind, {f"{self._stem(name)}.py": print_module(module)}, report, seconds)

    def text(
        self,
        name: str,
        files: Mapping[str, str],
        report: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> None:
        """A stage after the passes.

        Args:
            files: texts by the ends of their names (".txt": one file beside the others, numbered
                as the stage) or, in a folder of the stage, by their names.
        """
        stem = self._stem(name)
        named = {stem + key if key[0] == "." else f"{stem}/{key}": t for key, t in files.items()}
        self._write(name, name, named, report, seconds)

    def _stem(self, name: str) -> str:
        return f"{len(self._stages):02d}_{name.replace('-', '_')}"

    def _write(
        self,
        name: str,
        kind: str,
        files: Mapping[str, str],
        report: Mapping[str, Any] | None,
        seconds: float | None,
    ) -> None:
        report_file = f"{self._stem(name)}.json" if report is not None else None
        for path, text in files.items():
            (self.folder / path).parent.mkdir(exist_ok=True)
            (self.folder / path).write_text(text, encoding="utf-8")
        if report_file:
            self._write_json(report_file, report)
        stage = {"number": len(self._stages), "name": name, "kind": kind, "files": list(files)}
        rounded = None if seconds is None else round(seconds, 3)
        self._stages.append({**stage, "report": report_file, "seconds": rounded})
        index = {"version": VERSION, "facts": self.facts, "stages": self._stages}
        self._write_json(INDEX, index)

    def _write_json(self, name: str, value: Any) -> None:
        text = json.dumps(value, indent=1) + "\n"
        (self.folder / name).write_text(text, encoding="utf-8")


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a dump.

    Raises:
        InputError: when there is none, or one that this version does not read.
    """
    hint = "write a dump with `morendo compile MODEL --dump-ir DIR`"
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{folder} is no dump, it has no {INDEX}", hint=hint) from None
    except ValueError as error:
        raise InputError(f"{INDEX} is not JSON ({error})", where=str(folder), hint=hint) from None
    wrong = mismatch(index, _INDEX)
    if wrong:
        raise InputError(f"{INDEX}: {wrong}", where=str(folder), hint=hint)
    if index["version"] != VERSION:
        message = f"a dump of another version (got {index['version']}, need {VERSION})"
        raise InputError(message, where=str(folder), hint=hint)
    for stage in index["stages"]:
        for name in [*stage["files"], *filter(None, [stage["report"]])]:
            _check_inside(folder, name)
    return index


def _check_inside(folder: Path, name: str) -> None:
    """An index from elsewhere must not name files of other folders."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{INDEX} names a file outside the dump ({name})", where=str(folder))


def _forget(folder: Path) -> None:
    """Remove the files of an earlier dump, as its index lists them."""
    try:
        index = read_index(folder)
    except InputError:
        return
    for stage in index["stages"]:
        for name in [*stage["files"], *filter(None, [stage["report"]])]:
            (folder / name).unlink(missing_ok=True)
            if (folder / name).parent != folder:
                _remove_empty((folder / name).parent)
    (folder / INDEX).unlink()


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
