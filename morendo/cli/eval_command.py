"""`morendo eval`: how good an artifact is on a text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.terminal import size, table

from . import eval_schedules, eval_tasks
from .figures import give
from .parser import add_threads, whole_number

if TYPE_CHECKING:
    from morendo.quality import Report, Row

_DESCRIPTION = """\
Measure an artifact on a text, at every precision level: its perplexity and, with --reference, how
far its predictions are from those of the float model that it was compiled from.

The text is tokenized once and cut into windows that do not overlap; every level and the float
model see the same windows, each with nothing before it. A window's first token is not scored.

With --schedules the artifact answers prompts instead, those that `morendo tune` holds out: at every
level and with every schedule that it has, compared with its own answers at level 0.

With --tasks it chooses between endings: how often the right one is the likeliest, at every level,
and how often that is the float model's choice."""

_EPILOG = """\
what the columns say:
  perplexity      exp of the mean loss: among how many tokens the model hesitates (lower is better);
                  depends on the text and the tokenizer, so compare only what has both in common
  vs float        how much higher than the float model's
  KL mean, p99    Kullback-Leibler divergence of the artifact from the float model in nats, averaged
                  over tokens, and what the worst 1 % exceed (0 is the same predictions); the finest
                  measure; +- is its standard error, two levels closer than that may be equal
  same top        how often both find the same next token likeliest
  reads           bytes of weights that a decode step reads

what the rows say with --dequantized:
  level 0           the artifact
  .. weights only   its weights in torch, computed in float: the error of quantization
  .. kernels only   the artifact against those: the error of kernels, 8-bit activations mostly

what the columns say with --tasks:
  accuracy, by length   of the questions whose answer has the largest sum of its tokens' logarithms
                        of probabilities, or the largest mean over its characters; +- is the
                        standard error of the first
  as float              of the questions where that is the float model's choice: finer, as both see
                        the same questions

examples:
  morendo eval my-model --text book.txt                        perplexity of every level
  morendo eval my-model --text book.txt --reference ./Llama-3.2-1B
  morendo eval my-model --text book.txt --reference model.gguf --windows 8 --level 0 --dequantized
  morendo eval my-model --text book.txt --reference ./model --json figures.json
  morendo eval my-model --tasks questions.jsonl --reference ./model
  morendo eval my-model --schedules --prompts prompts.txt --picture schedules.svg

The float model's logits are kept in $XDG_CACHE_HOME/morendo (default: ~/.cache/morendo), at most
4 GB, so that the next artifact is measured faster; --no-cache keeps none."""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `eval`."""
    parser = commands.add_parser(
        "eval",
        parents=[common],
        help="measure an artifact's quality on a text",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("artifact", type=Path, metavar="DIR", help="an artifact directory")
    add("--text", type=Path, metavar="FILE", help="UTF-8 text; - is standard input")
    add("--reference", metavar="MODEL", help="the float model: directory, hub id or .gguf file")
    add(
        "--any-reference",
        action="store_true",
        help="accept another model than the one that was compiled, such as the original of a "
        "quantized .gguf file",
    )
    add("--window", type=whole_number(2), default=512, metavar="TOKENS", help="default: 512")
    add(
        "--windows",
        type=whole_number(1),
        metavar="N",
        help="only the first N (default: all)",
    )
    add(
        "--prompt",
        type=whole_number(),
        default=0,
        metavar="TOKENS",
        help="compute the first TOKENS of each window as a prompt is, and score those behind it: "
        "what dropping tokens costs (morendo compile --prune-tokens)",
    )
    add("--level", type=_level, metavar="L", help="one precision level (default: all)")
    add("--dequantized", action="store_true", help="tell errors of weights and kernels apart")
    add("--json", type=Path, metavar="FILE", help="write all figures there; - prints them instead")
    add_threads(parser)
    add("--no-cache", action="store_true", help="do not keep the float model's logits on disk")
    add("--quiet", "-q", action="store_true", help="no progress")
    eval_schedules.add_options(parser)
    eval_tasks.add_options(parser)
    parser.set_defaults(run=_eval, refuse=parser.error)


def _level(text: str) -> list[int] | None:
    return None if text == "all" else [whole_number()(text)]


def _eval(arguments: argparse.Namespace) -> int:
    if arguments.schedules and not arguments.prompts:
        arguments.refuse("--schedules needs --prompts")
    kinds = [arguments.text, arguments.tasks, arguments.schedules]
    if not any(kinds):
        arguments.refuse("the following arguments are required: --text")
    if sum(map(bool, kinds)) > 1:
        arguments.refuse("give one of --text, --tasks and --schedules")
    if arguments.tasks and (arguments.dequantized or arguments.prompt or arguments.windows):
        arguments.refuse("--dequantized, --prompt and --windows go with --text, not with --tasks")
    _check_writable(arguments.json)
    if arguments.tasks:
        return eval_tasks.eval_tasks(arguments)
    if arguments.schedules:
        _check_writable(arguments.picture)
        return eval_schedules.eval_schedules(arguments)
    from morendo.progress import make_progress

    text = _read(arguments.text)
    with make_progress(quiet=arguments.quiet) as progress:
        from morendo.quality import evaluate

        report = evaluate(
            arguments.artifact,
            text,
            window=arguments.window,
            windows=arguments.windows,
            prompt=arguments.prompt,
            dequantized=arguments.dequantized,
            progress=progress,
            **eval_tasks.measuring_options(arguments),
        )
    give(report.to_dict(), lambda: _show(report), arguments.json, report.notes)
    return 0


def _check_writable(path: Path | None) -> None:
    """Refuse a place for the figures before they are measured."""
    from morendo.ir.errors import InputError

    if path and not path.absolute().parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")


def _read(path: Path) -> str:
    from morendo.ir.errors import InputError

    try:
        data = sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
        if not data.strip():
            raise InputError("the text is empty", where=str(path))
        return data.decode("utf-8")
    except FileNotFoundError:
        raise InputError("there is no such text", where=str(path)) from None
    except IsADirectoryError:
        raise InputError("the text is a directory", where=str(path), hint="give a file") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"the text is not UTF-8 (byte {error.start})", where=str(path), hint="convert it first"
        ) from None


def _show(report: Report) -> str:
    """One line about the text, then the table."""
    scored = report.rows[0].score.tokens
    head = (
        f"{scored} scored tokens in {report.windows} windows of {report.window}, "
        f"{f'behind prompts of {report.prompt}, ' if report.prompt else ''}"
        f"text of {report.text_tokens} tokens"
    )
    float_loss = next((r.score.loss for r in report.rows if r.kind == "float"), None)
    header = ["", "perplexity"]
    if report.reference:
        header += ["vs float", "KL mean", "+-", "KL p99", "same top"]
    lines = [[*header, "reads"], *(_cells(row, float_loss) for row in report.rows)]
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    # Figures are aligned right, empty cells included, which `table` cannot know.
    shown = [[line[0], *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return f"{head}\n{table(shown)}"


def _cells(row: Row, float_loss: float | None) -> list[str]:
    from math import expm1

    score = row.score
    perplexity = "" if row.kind == "kernels" else f"{score.perplexity:.3f}"
    cells = [_name(row), perplexity]
    if float_loss is not None:
        compared = row.kind not in ("float", "kernels")
        against = f"{100 * expm1(score.loss - float_loss):+.2f} %" if compared else ""
        top = "" if score.top1 is None else f"{100 * score.top1:.2f} %"
        cells += [against, _nats(score.kl_mean), _nats(score.kl_error), _nats(score.kl_p99), top]
    return [*cells, "" if row.bytes_per_token is None else size(row.bytes_per_token)]


def _name(row: Row) -> str:
    if row.kind == "float":
        return "float"
    return f"level {row.level}" if row.kind == "artifact" else f"  .. {row.kind} only"


def _nats(value: float | None) -> str:
    """Four digits behind the point, or an exponent where that would show zeros."""
    if value is None:
        return ""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"
