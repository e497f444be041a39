"""`morendo eval --tasks`: multiple choice at every level, beside the float model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from morendo.terminal import paint, table

if TYPE_CHECKING:
    from morendo.quality.tasks import TaskRow


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


def eval_tasks(arguments: argparse.Namespace) -> int:
    """Ask, print a table, write the figures that are asked for."""
    from morendo.progress import make_progress
    from morendo.quality.tasks import evaluate_tasks, read_questions

    questions = read_questions(arguments.tasks)
    with make_progress(quiet=arguments.quiet) as progress:
        report = evaluate_tasks(
            arguments.artifact,
            questions,
            reference=arguments.reference,
            levels=arguments.level,
            threads=arguments.threads,
            cached=not arguments.no_cache,
            any_reference=arguments.any_reference,
            progress=progress,
        )
    for note in report.notes:
        print(paint(f"note: {note}", "yellow", sys.stderr), file=sys.stderr)
    figures = json.dumps(report.to_dict(), indent=1)
    if arguments.json == Path("-"):
        print(figures)
        return 0
    print(f"{report.questions} questions\n{_show(report.rows)}")
    if arguments.json:
        arguments.json.write_text(figures + "\n", encoding="utf-8")
    return 0


def _show(rows: list[TaskRow]) -> str:
    header = ["", "accuracy", "+-", "by length", "as float"]
    lines = [
        [
            "float" if row.level is None else f"level {row.level}",
            f"{100 * row.accuracy:.1f} %",
            f"{100 * row.error:.1f} %",
            f"{100 * row.by_length:.1f} %",
            "" if row.same is None else f"{100 * row.same:.1f} %",
        ]
        for row in rows
    ]
    return table([header, *lines])
