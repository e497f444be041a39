"""`morendo run`: text in, text out, from an artifact."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.terminal import paint, read_by_a_token, read_standard_input, shown, size, table

from .parser import add_threads, sampling_value, whole_number

if TYPE_CHECKING:
    from morendo.runtime.sampling import SamplingSettings
    from morendo.runtime.session import Session, Stats

_DESCRIPTION = """\
Answer as a chat model does, or continue a text. Where the model has a chat template, PROMPT is what
the user says; --raw gives the model PROMPT as it is. The answer goes to standard output as it is
made, everything else to standard error.

How tokens are drawn is the model's own choice (its generation_config.json) unless options say
otherwise: the likeliest token each time where it makes none. The repetition penalty comes first,
then temperature, top-k, top-p and min-p, as in transformers; --stats tells what was in effect.

Lower precision levels of a 4-bit artifact (--level 1 to 4) read fewer bits of the same weights:
they are faster and lose quality, the most where the weights were rounded without a text. A schedule
reads the prompt at the most precise level and lets the level fall as the answer goes on, no lower
than the bound that `morendo tune` was given; fixed:L is level L for the whole answer. `morendo
eval` measures levels and schedules."""

_EPILOG = """\
examples:
  morendo run my-model "What is a monad?" --system "Answer in one sentence."
  morendo run my-model "The capital of France is" --raw --stop "." --temperature 0
  morendo run my-model "Tell me a story." --temperature 0.8 --min-p 0.1 --seed 7
  cat question.txt | morendo run my-model --stats
  morendo run my-model "Tell me a story." --schedule static --stats"""

# Options that are those of Session.generate, which takes the model's own where they are left out.
_SAMPLING = {
    "temperature": (float, "T", "divides the logits; 0 takes the likeliest token"),
    "top_k": (int, "K", "draw from the K likeliest tokens; 0 is all"),
    "top_p": (float, "P", "draw from the likeliest tokens that have P of the probability"),
    "min_p": (float, "P", "draw from tokens with P times the likeliest one's probability"),
    "repetition_penalty": (float, "R", "above 1, what the text has becomes less likely"),
}


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
    add(
        "--max-tokens",
        type=whole_number(0, 2**31 - 1),
        default=256,
        metavar="N",
        help="stop after N (default: 256)",
    )
    _add_form(parser)
    add("--system", metavar="TEXT", help="system message, before what the user says")
    add(
        "--stop",
        type=_stop_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be repeated",
    )
    add("--ignore-eos", action="store_true", help="go on after the model's end of text")
    group = parser.add_argument_group("how tokens are drawn")
    for name, (kind, letter, text) in _SAMPLING.items():
        group.add_argument(
            _option(name), type=sampling_value(name, kind), metavar=letter, help=text
        )
    group.add_argument("--seed", type=whole_number(), default=0, help="of the draws (default: 0)")
    add_threads(parser)
    add(
        "--prefill-on",
        metavar="DIR2",
        help="an artifact that reads the prompt, of another machine: DIR was compiled with its "
        "weights (`morendo compile --weights-of`), or it with DIR's",
    )
    _add_precision(parser)
    add("--stats", action="store_true", help="print speed, levels, bandwidth and memory at the end")
    parser.when_too_many = "put the prompt into quotes"
    parser.set_defaults(run=_run, refuse=parser.error)


def _add_precision(parser: argparse.ArgumentParser) -> None:
    """One level for all, or a schedule that chooses."""
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--level",
        type=whole_number(),
        metavar="L",
        help="precision level of all, 0 is the most precise",
    )
    precision.add_argument(
        "--schedule",
        metavar="NAME",
        help="static, entropy, learned, fixed:L or off (the default): the level of each token "
        "behind the prompt",
    )


def _add_form(parser: argparse.ArgumentParser) -> None:
    """Whether PROMPT is what the user says, or the text itself."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--raw",
        "--no-chat",
        dest="chat",
        action="store_false",
        default=None,
        help="give the model PROMPT as it is, without its chat template",
    )
    form.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help="use the chat template (the default where the model has one)",
    )


def _stop_text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.system is not None and arguments.chat is False:
        arguments.refuse("--system needs the chat template: leave --raw out")

    import morendo

    prompt = _prompt(arguments.prompt)
    with morendo.load(arguments.artifact, arguments.threads, arguments.prefill_on) as session:
        if session.emulation:
            _note(session.emulation)
        if session.prefill_emulation:
            _note(f"prompts: {session.prefill_emulation}")
        if arguments.level is not None:
            if arguments.level >= session.levels:
                most = session.levels - 1
                need = (
                    f"must be 0 to {most} here" if most else "must be 0: the artifact has one level"
                )
                arguments.refuse(f"--level {need} (got {arguments.level})")
            session.set_level(arguments.level)
        chat = _uses_template(session, arguments)
        pieces = session.stream(
            session.encode_chat(prompt, arguments.system) if chat else session.encode(prompt),
            max_tokens=arguments.max_tokens,
            **{name: getattr(arguments, name) for name in _SAMPLING},
            seed=arguments.seed,
            ignore_eos=arguments.ignore_eos,
            stop=arguments.stop,
            schedule=arguments.schedule,
        )
        said = False
        try:
            for piece in pieces:
                said = said or not piece.isspace()
                sys.stdout.write(shown(piece, sys.stdout))
                sys.stdout.flush()
        finally:
            # Whatever follows, an error or the shell's prompt, starts on a line of its own.
            print(flush=True)
        _tell_about_sampling(session.stats.sampling, arguments)
        _tell_about_the_end(session, said, chat)
        if arguments.stats:
            print(_stats(session.stats), file=sys.stderr)
            if session.emulation:
                _tell_about_the_machine(arguments.artifact, session.stats)
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


def _uses_template(session: Session, arguments: argparse.Namespace) -> bool:
    asked = [name for name in ("system", "chat") if getattr(arguments, name) not in (None, False)]
    if asked and not session.has_chat_template:
        from morendo.ir.errors import InputError

        hint = f"leave --{' and --'.join(asked)} out"
        raise InputError("this model has no chat template", hint=hint)
    return bool(asked) or (arguments.chat is None and session.has_chat_template)


def _tell_about_sampling(used: SamplingSettings, arguments: argparse.Namespace) -> None:
    """Options without an effect should not look as if they had one."""
    idle = [name for name in ("top_k", "top_p", "min_p") if getattr(arguments, name) is not None]
    if used.is_greedy and idle:
        names = ", ".join(map(_option, idle))
        change = "change" if len(idle) > 1 else "changes"
        _note(f"{names} {change} nothing at temperature 0; add --temperature, such as 0.8")


def _tell_about_the_end(session: Session, said: bool, chat: bool) -> None:
    """A text that ends because there is no room left, or at once, should not look finished."""
    finish = session.stats.finish
    if finish == "context":
        _note(f"the context of {session.context} tokens is full; compile with a larger --context")
    elif finish == "stop" and not said:
        if chat:
            hint = "--raw continues PROMPT instead of answering it"
        elif session.has_chat_template:
            hint = "without --raw, PROMPT is what the user says"
        else:
            hint = "--ignore-eos goes on after the model's end of text"
        _note(f"the text ended at once; {hint}")


def _note(text: str) -> None:
    print(paint(f"note: {text}", "yellow", sys.stderr), file=sys.stderr)


def _tell_about_the_machine(artifact: Path, stats: Stats) -> None:
    """What was measured is the emulator; what the described machine would do is a model of it."""
    from morendo.simulate import predict_run

    predicted = predict_run(artifact, stats)
    if predicted is None:
        return
    device, one = predicted
    print(
        f"predicted for {device.name}: {one.tokens_per_second:.1f} tokens/s, "
        f"{one.packets / one.steps / 1e6:.2f} M packets a token, prefill {one.prefill:.3f} s "
        "(a model, not a measurement; the times above are the emulator's)",
        file=sys.stderr,
    )


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
            read_by_a_token(stats.bytes_per_token, stats.bits_per_weight),
        ),
        *([("levels", "", str(stats.levels))] if stats.decode_tokens else []),
        ("sampling", str(stats.sampling), ""),
        ("memory", size(stats.peak_memory_bytes), "peak, mapped weights included"),
    ]
    return table(rows)
