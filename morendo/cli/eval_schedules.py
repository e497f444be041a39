"""`morendo eval --schedules`: levels and schedules side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from morendo.terminal import size, table

from .figures import give
from .parser import whole_number

if TYPE_CHECKING:
    from morendo.tuning import ScheduleRow


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that go with `eval --schedules`."""
    group = parser.add_argument_group("schedules")
    add = group.add_argument
    add("--schedules", action="store_true", help="measure levels and schedules on prompts instead")
    add("--prompts", type=Path, metavar="FILE", help="a prompt a line, as for `morendo tune`")
    add(
        "--max-tokens",
        type=whole_number(2),
        default=128,
        metavar="N",
        help="of each answer (default: 128)",
    )
    add("--picture", type=Path, metavar="FILE.svg", help="draw quality against bytes, too")


def eval_schedules(arguments: argparse.Namespace) -> int:
    """Measure, print a table, write the files that are asked for."""
    from morendo.progress import make_progress
    from morendo.tuning import compare_schedules, draw, read_prompts

    prompts = read_prompts(arguments.prompts)
    with make_progress(quiet=arguments.quiet) as progress:
        rows = compare_schedules(
            arguments.artifact,
            prompts,
            max_tokens=arguments.max_tokens,
            threads=arguments.threads,
            progress=progress,
        )
    if arguments.picture:
        title = f"quality against bytes of the schedules of {arguments.artifact.name}"
        arguments.picture.write_text(draw(rows, title), encoding="utf-8")
    figures = [vars(row) for row in rows]
    give(figures, lambda: _show(rows, len(prompts) // 2), arguments.json)
    return 0


def _show(rows: list[ScheduleRow], prompts: int) -> str:
    header = ["", "rouge-l", "same top", "KL", "reads", "bits", "tokens/s"]
    lines = [
        [
            row.name,
            f"{row.rouge_l:.4f}",
            f"{100 * row.top1:.2f} %",
            f"{row.kl:.4f}",
            size(row.bytes),
            f"{row.bits:.2f}" if row.bits else "",
            f"{row.tokens_per_second:.1f}",
        ]
        for row in rows
    ]
    return f"{prompts} held-out prompts, against level 0's answers\n{table(lines, header)}"
