"""`morendo eval --tasks`: multiple choice at every level, beside the float model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.terminal import table

from .figures import give

if TYPE_CHECKING:
    from morendo.quality.tasks import TaskReport


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that go with `eval --tasks`."""
    group = parser.add_argument_group("tasks")
    group.add_argument(
        "--tasks",
        type=Path,
        metavar="FILE.jsonl",
        help="ask multiple choice questions instead, one a line: "
        '{"context": "The sky is", "choices": [" blue", " square"], "answer": 0}',
    )


def measuring_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `evaluate` and `evaluate_tasks` both take from the command line."""
    return {
        "reference": arguments.reference,
        "levels": arguments.level,
        "threads": arguments.threads,
        "cached": not arguments.no_cache,
        "any_reference": arguments.any_reference,
    }


def eval_tasks(arguments: argparse.Namespace) -> int:
    """Ask, print a table, write the figures that are asked for."""
    from morendo.progress import make_progress
    from morendo.quality.tasks import evaluate_tasks, read_questions

    questions = read_questions(arguments.tasks)
    with make_progress(quiet=arguments.quiet) as progress:
        report = evaluate_tasks(
            arguments.artifact,
            questions,
            progress=progress,
            **measuring_options(arguments),
        )
    give(report.to_dict(), lambda: _show(report), arguments.json, report.notes)
    return 0


def _show(report: TaskReport) -> str:
    header = ["", "accuracy", "+-", "by length", "as float"]
    lines = [
        [
            "float" if row.level is None else f"level {row.level}",
            f"{100 * row.accuracy:.1f} %",
            f"{100 * row.error:.1f} %",
            f"{100 * row.by_length:.1f} %",
            "" if row.same is None else f"{100 * row.same:.1f} %",
        ]
        for row in report.rows
    ]
    return f"{report.questions} questions\n{table([header, *lines])}"
