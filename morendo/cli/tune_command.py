"""`morendo tune`: schedules of an artifact, found by letting it answer prompts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.terminal import paint, size, table

from .parser import add_threads, part, whole_number

if TYPE_CHECKING:
    from morendo.tuning import Tuned
    from morendo.tuning.trials import Figures

_DESCRIPTION = """\
Find how far the precision of an answer may fall while it grows, and write that into the artifact
as schedules for `morendo run --schedule`: a static one, one that is precise again where the model
is in doubt (entropy) and, with --learned, a small network that chooses by the prompt.

FILE has one prompt a line. The first, the third and so on find the schedules, the others check
them. Every schedule that is tried is measured by letting the model answer with it, greedily, and
comparing with its own answers at the most precise level. What was measured is kept in the user's
cache, so that a search that was interrupted goes on."""

_EPILOG = """\
metrics, each 1 where nothing differs; --quality is the least mean over prompts, and a schedule
has to keep it with a margin that makes it likely (--confidence) to keep it for others, too:
  rouge-l   the longest common subsequence of both answers' tokens, as an F1 score
  top1      how often a step finds the precise answer's next token likeliest, given those before
  kl        exp(-KL) of the mean divergence of the steps' predictions along the precise answer

examples:
  morendo tune my-model --prompts prompts.txt --quality 0.99
  morendo tune my-model --prompts prompts.txt --quality 0.95 --metric top1 --learned
  morendo run my-model "Tell me a story." --schedule static --stats"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `tune`."""
    parser = commands.add_parser(
        "tune",
        parents=[common],
        help="find schedules: how far precision may fall within an answer",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("artifact", type=Path, metavar="DIR", help="an artifact directory")
    add("--prompts", type=Path, required=True, metavar="FILE", help="UTF-8 text, a prompt a line")
    add(
        "--quality",
        type=part,
        default=0.99,
        metavar="Q",
        help="what a schedule has to keep, in parts of the top level's quality (default: 0.99)",
    )
    add(
        "--confidence",
        type=part,
        default=0.8,
        metavar="P",
        help="that prompts which were not tried keep it; 0.5 leaves no margin (default: 0.8)",
    )
    add(
        "--metric",
        choices=("rouge-l", "top1", "kl"),
        default="rouge-l",
        help="how quality is measured (default: rouge-l)",
    )
    add("--learned", action="store_true", help="train a schedule that looks at the prompt, too")
    add(
        "--max-tokens",
        type=whole_number(2),
        default=128,
        metavar="N",
        help="of each answer (default: 128)",
    )
    add_threads(parser)
    add("--no-cache", action="store_true", help="measure all again, and keep nothing on disk")
    add("--quiet", "-q", action="store_true", help="no progress")
    parser.set_defaults(run=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    from morendo.progress import make_progress
    from morendo.tuning import read_prompts, tune

    prompts = read_prompts(arguments.prompts)
    with make_progress(quiet=arguments.quiet) as progress:
        tuned = tune(
            arguments.artifact,
            prompts,
            quality=arguments.quality,
            confidence=arguments.confidence,
            metric=arguments.metric,
            learned=arguments.learned,
            max_tokens=arguments.max_tokens,
            threads=arguments.threads,
            cached=not arguments.no_cache,
            progress=progress,
        )
    for note in tuned.notes:
        print(paint(f"note: {note}", "yellow", sys.stderr), file=sys.stderr)
    print(_show(tuned, arguments.metric))
    return 0


def _show(tuned: Tuned, metric: str) -> str:
    """What each schedule is, then the table."""
    lines = [f"{kind}: {schedule}" for kind, schedule in tuned.schedules.items()]
    if "learned" in tuned.evidence:
        accuracy = tuned.evidence["learned"]["accuracy"]
        lines.append(
            f"the network chooses as measured for {accuracy['held_out']:.0%} of the held-out "
            f"prompts (always the commonest: {accuracy['majority']:.0%})"
        )
    header = ["", metric, "held out", "reads", "held out", "bits"]
    rows = [
        [
            kind,
            *(f"{each.quality:.4f} ± {each.error:.4f}" for each in _halves(figures)),
            *(size(each.bytes) for each in _halves(figures)),
            f"{figures['held_out'].bits:.2f}" if figures["held_out"].bits else "",
        ]
        for kind, figures in tuned.figures.items()
    ]
    return "\n".join([*lines, table(rows, header)])


def _halves(figures: dict[str, Figures]) -> list[Figures]:
    return [figures["tuning"], figures["held_out"]]
