"""`morendo debug`: the first op of an artifact that computes something else than it should."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.ir.printable import printable
from morendo.terminal import paint, table

from .parser import add_threads

if TYPE_CHECKING:
    from morendo.debug import OpCheck, Report
    from morendo.debug.bisect import Stage

_DESCRIPTION = """\
Run an artifact and the model that it was made of on the same text, compare the result of every op,
and name the first one that is wrong: where its error is larger than its formats explain.

Two things are checked of each op, both from the operands that it had, so that an error is named
where it arises. `graph`: given torch's values, does the op in the IR compute what torch does? That
finds mistakes of the import and of passes, and --bisect names the pass. `prefill` and `decode`:
given what the plan computed, does the kernel compute what the op means? That finds mistakes of
packing, of lowering and of kernels.

The exit code is 0 when all ops are right and 1 when one is not."""

_EPILOG = """\
examples:
  morendo debug my-model --against path/to/model "The capital of France is"
  morendo debug my-model --against path/to/model 1,5,9 --ids --all   every op, not the worst alone
  morendo debug my-model --against path/to/model "Hello" --bisect    and which pass did it
  morendo debug my-model --against path/to/model "Hello" --json      for scripts"""

_SHOWN = 8


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `debug`."""
    parser = commands.add_parser(
        "debug",
        parents=[common],
        help="name the op where an artifact goes wrong",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("artifact", type=Path, metavar="DIR", help="an artifact directory")
    add("prompt", metavar="TEXT", help="what both read")
    add(
        "--against",
        required=True,
        metavar="MODEL",
        help="the model that was compiled: directory, hub id, .gguf or .onnx file",
    )
    add("--ids", action="store_true", help="TEXT is token ids, with commas between them")
    add("--bisect", action="store_true", help="also run the graph after each pass, and name one")
    add("--all", action="store_true", help=f"show every op, not the {_SHOWN} worst ones")
    add("--json", action="store_true", help="a line of JSON for each op")
    add_threads(parser)
    add("--quiet", "-q", action="store_true", help="no progress")
    parser.set_defaults(run=_debug)


def _debug(arguments: argparse.Namespace) -> int:
    from morendo.progress import make_progress

    with make_progress(quiet=arguments.quiet) as progress:
        with progress.task("start"):
            from morendo.debug import debug
        ids = _token_ids(arguments.artifact, arguments.prompt, arguments.ids)
        report = debug(arguments.artifact, arguments.against, ids, arguments.threads, progress)
        stages: list[Stage] = []
        if arguments.bisect:
            with progress.task("bisect"):
                stages = _bisect(arguments, ids)
    if arguments.json:
        for check in report.checks:
            print(json.dumps({"event": "op", **asdict(check), "good": check.good}))
        for stage in stages:
            print(json.dumps({"event": "stage", **asdict(stage), "good": stage.good}))
    else:
        _show(report, arguments.all)
        _show_stages(stages)
    good = report.first_wrong is None and all(stage.good for stage in stages)
    return 0 if good else 1


def _token_ids(artifact: Path, text: str, numbers: bool) -> list[int]:
    from morendo.ir.errors import InputError
    from morendo.runtime.artifact import read_manifest
    from morendo.runtime.tokenizer import Tokenizer

    if numbers:
        try:
            return [int(part) for part in text.split(",")]
        except ValueError:
            message = f"token ids are numbers with commas between them (got {text!r})"
            raise InputError(message) from None
    return Tokenizer(artifact, read_manifest(artifact)["tokenizer"]).encode(text)


def _bisect(arguments: argparse.Namespace, ids: list[int]) -> list[Stage]:
    from morendo.debug.bisect import bisect
    from morendo.debug.compare import original_of, values_of
    from morendo.frontend import load_model
    from morendo.runtime.artifact import read_manifest

    manifest = read_manifest(arguments.artifact)
    original = original_of(manifest, arguments.against)
    want = None if original is None else values_of(original, ids).logits
    loaded = load_model(arguments.against, manifest["model"].get("context"))
    specs = [record["spec"] for record in manifest.get("passes", [])]
    return bisect(loaded, specs, ids, want)


_HEADER = ("", "op", "weight", "kernel", "lost", "expected", "excess", "allowed", "drift")


def _show(report: Report, everything: bool) -> None:
    checks = report.checks
    shown = checks if everything else _worst(checks)
    print(table([_row(check) for check in shown], _HEADER))
    print(
        "\nlost: relative error of the op against itself without rounding; expected: what its\n"
        "formats lose; excess: its error against what it should be, and what is allowed; drift:\n"
        "error against torch, with all ops before it."
    )
    wrong = report.first_wrong
    counts = f"{len(checks)} checks of {report.tokens} tokens"
    if wrong is None:
        print(f"\n{paint('all ops are right', 'green', sys.stdout)}: {counts}")
        return
    print(f"\n{paint('first wrong op', 'red', sys.stdout)}: {describe(wrong)}")
    others = sum(not check.good for check in checks) - 1
    print(f"{others} more are wrong, of {counts}")


def describe(check: OpCheck) -> str:
    """One op in words: which one it is, and how wrong."""
    what = f"{check.op} {check.var}"
    for fact in (check.weight, check.note if check.note != check.weight else ""):
        what += f", {fact}" if fact else ""
    where = "in the graph, before any kernel" if check.function == "graph" else (
        f"in {check.function} at position {check.start}, kernel {check.kernel}"
    )  # fmt: skip
    return printable(f"{what}: {where}; error {check.excess:.1e}, allowed {check.allowed:.1e}")


def _worst(checks: list[OpCheck]) -> list[OpCheck]:
    """The first wrong ones, else those nearest to what is allowed, in the order of the plan."""
    wrong = [check for check in checks if not check.good][:_SHOWN]
    if wrong:
        return wrong
    nearest = sorted(checks, key=lambda c: -c.excess / c.allowed)[:_SHOWN]
    return [check for check in checks if check in nearest]


def _row(check: OpCheck) -> tuple[str, ...]:
    figures = (check.lost, check.expected, check.excess, check.allowed)
    drift = "-" if check.drift is None else f"{check.drift:.1e}"
    mark = "" if check.good else paint("wrong", "red", sys.stdout)
    place = f"{check.function}@{check.start}" if check.function != "graph" else "graph"
    weight = check.weight.removesuffix(".weight") or check.note
    names = (f"{place} {mark}".rstrip(), check.op, printable(weight), check.kernel)
    return (*names, *(f"{figure:.1e}" for figure in figures), drift)


def _show_stages(stages: list[Stage]) -> None:
    if not stages:
        return
    print("\nthe graph after each pass, nothing rounded, against the model's logits:")
    rows = [(s.name, f"{s.error:.1e}", "" if s.good else f"wrong {s.problem}") for s in stages]
    print(table(rows))
    if not stages[-1].good:
        print(f"{paint('it went wrong in', 'red', sys.stdout)}: {stages[-1].name}")
    else:
        print("no pass changes the function: look at the kernel that is named above")
