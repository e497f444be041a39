"""`morendo run`: text in, text out, from an artifact."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.terminal import paint, read_standard_input, shown, size, table

if TYPE_CHECKING:
    from morendo.runtime.session import Session, Stats

_DESCRIPTION = """\
Continue a text, or answer as a chat model does. The text goes to standard output as it is made,
everything else to standard error.

Lower precision levels of a 4-bit artifact (--level 1 to 4) read fewer bits of the same weights:
they are faster and lose much quality, the most where the weights were rounded to nearest, as
`morendo compile` does without a text. Until a schedule chooses levels, those below the first are
for measuring speed. `morendo eval` measures every level."""

_EPILOG = """\
examples:
  morendo run my-model "The capital of France is" --temperature 0
  morendo run my-model "What is a monad?" --chat --system "Answer in one sentence."
  morendo run my-model "Once upon a time" --temperature 0.8 --top-p 0.9 --seed 7
  cat question.txt | morendo run my-model --chat --stats"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `run`."""
    parser = commands.add_parser(
        "run",
        parents=[common],
        help="generate text with an artifact",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("artifact", type=Path, metavar="DIR", help="an artifact directory")
    add("prompt", metavar="PROMPT", nargs="?", help="the text; standard input if left out or -")
    add("--max-tokens", type=int, default=256, metavar="N", help="stop after N (default: 256)")
    add("--chat", action=argparse.BooleanOptionalAction, help="apply the model's chat template")
    add("--system", metavar="TEXT", help="system message; implies --chat")
    add("--stop", action="append", default=[], metavar="TEXT", help="stop before this text")
    add("--ignore-eos", action="store_true", help="go on after the model's end of text")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    add("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest")
    add("--top-p", type=float, default=1.0, metavar="P", help="sample from this much probability")
    add("--seed", type=int, default=0, help="of the sampling (default: 0)")
    add("--threads", type=int, default=0, metavar="N", help="default: one for each CPU")
    add("--level", type=int, metavar="L", help="precision level, 0 is the most precise")
    add("--stats", action="store_true", help="print speed, bandwidth and memory at the end")
    parser.set_defaults(run=_run, refuse=parser.error)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.system is not None and arguments.chat is False:
        arguments.refuse("--system needs the chat template: leave --no-chat out")

    import morendo

    prompt = _prompt(arguments.prompt)
    with morendo.load(arguments.artifact, threads=arguments.threads) as session:
        if arguments.level is not None:
            session.set_level(arguments.level)
        pieces = session.stream(
            _encode(session, prompt, arguments),
            max_tokens=arguments.max_tokens,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            ignore_eos=arguments.ignore_eos,
            stop=arguments.stop,
        )
        try:
            for piece in pieces:
                sys.stdout.write(shown(piece, sys.stdout))
                sys.stdout.flush()
        finally:
            # Whatever follows, an error or the shell's prompt, starts on a line of its own.
            print(flush=True)
        _tell_about_the_end(session.stats.finish, session.context)
        if arguments.stats:
            print(_stats(session.stats), file=sys.stderr)
    return 0


def _prompt(given: str | None) -> str:
    from morendo.ir.errors import InputError

    if given is not None and given != "-":
        return given
    if sys.stdin.isatty():
        raise InputError("there is no prompt", hint='give one: morendo run DIR "Once upon a time"')
    try:
        return read_standard_input().rstrip("\n")
    except UnicodeDecodeError:
        raise InputError("the prompt on standard input is not UTF-8 text") from None


def _encode(session: Session, prompt: str, arguments: argparse.Namespace) -> list[int]:
    if arguments.chat or (arguments.system and arguments.chat is not False):
        return session.encode_chat(prompt, system=arguments.system)
    return session.encode(prompt)


def _tell_about_the_end(finish: str, context: int) -> None:
    """A text that ends because there is no room left should not look finished."""
    if finish == "context":
        note = f"the context of {context} tokens is full; compile with a larger --context"
        print(paint(note, "yellow", sys.stderr), file=sys.stderr)


def _stats(stats: Stats) -> str:
    first = stats.load_seconds + stats.prompt_seconds
    prefill, decode = stats.prompt_tokens_per_second, stats.decode_tokens_per_second
    rows = [
        ("start", f"{stats.load_seconds:.2f} s", f"first token after {first:.2f} s"),
        ("prefill", f"{prefill:.1f} tokens/s", f"{stats.prompt_tokens} tokens"),
        ("decode", f"{decode:.1f} tokens/s", f"{stats.decode_tokens} tokens"),
        (
            "weights",
            f"{stats.gigabytes_per_second:.1f} GB/s",
            f"{size(stats.bytes_per_token)} a token",
        ),
        ("memory", size(stats.peak_memory_bytes), "peak, mapped weights included"),
    ]
    return table(rows)
