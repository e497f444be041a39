"""What was measured of the ops of the last IR: errors (`morendo debug --json`) and times."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from morendo.ir.errors import InputError
from morendo.ir.schema import mismatch

from .files import read_json, read_text

Measured = dict[str, dict[str, dict[str, float]]]
"""By kind, function and variable."""

_TIMES = {"function": str, "steps": [{"kernel": str, "seconds": (float, int)}]}


def read_errors(path: Path, calls: Mapping[str, Any], steps: Mapping[str, Any]) -> Measured:
    """`lost` and `drift` of ops, from the lines that `morendo debug --json` prints.

    An op that was checked at several positions has the largest. Errors of the graph alone are those
    of no kernel and not among them.

    Args:
        path: of the lines.
        calls, steps: of the page's data, which say what computes an op.

    Raises:
        InputError: when the lines are something else, or of another artifact.
    """
    found: Measured = {"lost": {}, "drift": {}}
    for line in _lines(path):
        if line.get("event") != "op" or line.get("function") == "graph":
            continue
        _check_kernel(path, line, calls, steps)
        for kind, functions in found.items():
            figures = functions.setdefault(str(line.get("function")), {})
            value = line.get(kind)
            if isinstance(value, (int, float)) and math.isfinite(value):
                var = str(line.get("var"))
                figures[var] = max(figures.get(var, 0.0), float(value))
    if not any(found["lost"].values()):
        hint = "write it with `morendo debug ... --json > FILE`"
        raise InputError(f"{path} has no errors of kernels", hint=hint)
    return found


def _check_kernel(
    path: Path, line: Mapping[str, Any], calls: Mapping[str, Any], steps: Mapping[str, Any]
) -> None:
    """The kernel of a line must be one of those that compute its variable."""
    function, var = str(line.get("function")), str(line.get("var"))
    if not steps:
        return  # of an artifact whose kernels are not known
    first, end = steps.get(function, {}).get(var, (0, 0))
    kernels = [call["kernel"] for call in calls.get(function, [])[first:end]]
    if line.get("kernel") not in kernels:
        message = f"{path} has errors of other kernels (got {line.get('kernel')} for {var})"
        hint = "debug the artifact that was compiled with this dump"
        raise InputError(message, where=function, hint=hint)


class Times(NamedTuple):
    """What the calls of a function take, in their order: (kernel, microseconds)."""

    function: str
    calls: list[tuple[str, float]]

    def of_ops(self, steps: Mapping[str, Any]) -> Measured:
        """`microseconds` of ops.

        Args:
            steps: of the page's data, which say whose the calls are.
        """
        took = [microseconds for _, microseconds in self.calls]
        ops = steps.get(self.function, {})
        figures = {var: round(math.fsum(took[a:b]), 3) for var, (a, b) in ops.items()}
        return {"microseconds": {self.function: figures}}

    def of_kernels(self) -> dict[str, float]:
        """The same of kernels, all their calls together."""
        found: dict[str, float] = {}
        for kernel, microseconds in self.calls:
            found[kernel] = found.get(kernel, 0.0) + microseconds
        return found


def read_times(path: Path, calls: Mapping[str, Any]) -> Times:
    """The file that `benchmarks/steps.py --json` writes.

    Args:
        path: of the file: {"function": ..., "steps": [{"kernel": ..., "seconds": ...}]}.
        calls: of the page's data.

    Raises:
        InputError: when it is another file, or of another artifact.
    """
    content = read_json(path)
    wrong = mismatch(content, _TIMES)
    if wrong:
        hint = "write it with benchmarks/steps.py --json FILE"
        raise InputError(f"{path} has no times of steps: {wrong}", hint=hint)
    function, rows = content["function"], content["steps"]
    kernels = [row["kernel"] for row in rows]
    if kernels != [call["kernel"] for call in calls.get(function, [])]:
        hint = "measure the artifact that was compiled with this dump"
        raise InputError(f"{path} has the times of other kernels than {function} calls", hint=hint)
    return Times(function, [(row["kernel"], 1e6 * row["seconds"]) for row in rows])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(read_text(path).splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            message = f"line {number} of {path} is not JSON ({error})"
            raise InputError(message, hint="write it with `morendo debug ... --json`") from None
        if isinstance(line, dict):
            yield line
