"""`morendo compile`: a model in, an artifact directory out."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from morendo.budget import ACTIVATIONS, EMBEDDING_BITS
from morendo.compile_stats import json_lines, print_times
from morendo.ir.layout import CACHE_DTYPES
from morendo.ir.printable import printable
from morendo.terminal import paint, peak_memory_bytes, size

from .inspect_command import bits_of
from .parser import above_zero, number, whole_number

_BITS: dict[str, int | str] = {"f32": "f32", "f16": "f16", **{str(n): n for n in (8, 6, 5, 4)}}

_DESCRIPTION = """\
Compile a model for a target and write an artifact: a directory with the weights, the machine code,
the tokenizer and a plan of kernel calls, which `morendo run` and the C runtime execute.

MODEL is a Hugging Face directory, a hub id (found in the local cache or downloaded), a .gguf file,
or an .onnx file or a folder that holds one.

Without a text the scales of 4 bits are searched, half a minute for 135 million weights. With a
budget (--average-bits, --size) or --calibrate, weights are rounded by a text: about six minutes on
two cores, growing with weights and windows. How long it takes here is said before it starts."""

_EPILOG = """\
examples:
  morendo compile ./Llama-3.2-1B --out llama               4-bit weights for this CPU
  morendo compile model.gguf --bits 8 --context 4096       8-bit weights, room for 4096 tokens
  morendo compile ./model --calibrate book.txt             round by what the text needs
  morendo compile ./model --average-bits 2.9               2, 3 or 4 bits where they matter
  morendo compile ./model --size 90MB                      as good as fits into 90 MB
  morendo compile ./model --readings 4,3 --calibrate self  good with 4 bits and with 3, by --level
  morendo compile ./model --readings 4                     4 bits at one level, less to unpack
  morendo compile ./model --target x86-64-v3               for every CPU of that level
  morendo compile ./model --check                          first see that it is the same model
  morendo compile ./model --dump-ir ir                     ir/ shows what every pass did
  morendo compile ./model --passes "normalize,quantize-weights{head_bits=4},..."

see also: morendo targets, morendo passes (the default --passes), morendo inspect"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `compile`."""
    parser = commands.add_parser(
        "compile",
        parents=[common],
        help="compile a model into an artifact",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="Hugging Face directory, hub id, .gguf or .onnx file")
    add("--target", default="native", help="what to compile for (default: native, this machine)")
    rounding, running = (_add_quantization, _add_rounding), (_add_activations, _add_pruning)
    for add_some in (*rounding, *running, _add_pipeline):
        add_some(parser)
    add(
        "--context",
        type=whole_number(1),
        metavar="TOKENS",
        help="longest text, prompt included (default: the model's, at most 4096)",
    )
    add(
        "--chunk",
        type=whole_number(1),
        metavar="TOKENS",
        help="tokens computed at once in prefill (default: 256)",
    )
    add(
        "--cache-bits",
        type=int,
        choices=list(CACHE_DTYPES),
        help="of the keys and values that the model remembers: 8 take half of the memory of 16, "
        "and attention computes with integers, faster for long texts; 4 take less than a third and "
        "lose more (default: 16, or 32 with --bits f32 and on CPUs that are slow with 16)",
    )
    _add_places(parser)
    add(
        "--check",
        action="store_true",
        help="first compare the imported graph with transformers' own model, on random tokens and "
        "in float32: takes 4 bytes of memory for each weight (5 GB for 1.2 billion), and refuses "
        "what differs",
    )
    add("--time", action="store_true", help="print where the time went")
    add(
        "--stats",
        type=Path,
        metavar="FILE",
        help="write times, passes and sizes as lines of JSON, for scripts",
    )
    add("--quiet", "-q", action="store_true", help="no progress and no summary")
    parser.set_defaults(run=_compile)


def _add_places(parser: argparse.ArgumentParser) -> None:
    """What is read and written besides the model, and which passes run."""
    add = parser.add_argument
    add("--out", "-o", type=Path, metavar="DIR", help="artifact (default: MODEL-TARGET-BITS)")
    add(
        "--dump-ir",
        type=Path,
        metavar="DIR",
        help="write the IR after every pass there, then kernels, plan, memory and assembly",
    )
    add(
        "--weights-of",
        metavar="DIR",
        help="an artifact of the same model for another machine, whose weights this one reads too: "
        "one file, and one machine can read prompts for the other (`morendo run --prefill-on`)",
    )
    add("--passes", metavar="SPEC", help="run these passes instead of the default ones")


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    """How many bits weights get, and how they are rounded."""
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--bits", choices=list(_BITS), help="weight format (default: 4)")
    precision.add_argument(
        "--average-bits",
        type=above_zero,
        metavar="BITS",
        help="2, 3 or 4 bits for each group of channels, this many on average with scales and "
        "all, about 2.3 to 4.6; of embeddings and the output head only with --embedding-bits auto",
    )
    precision.add_argument(
        "--size",
        type=_size,
        metavar="SIZE",
        help="the same by the bytes of all weights, such as 90MB, 1.5GB or 800kB; 90 is 90MB",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=[32, 64, 128],
        help="input channels that share one scale (default: 32)",
    )
    parser.add_argument(
        "--embedding-bits",
        type=_bits_or_word,
        choices=EMBEDDING_BITS,
        help="of the table of tokens and the output head, most of a small model with a large "
        "vocabulary; `auto`: 4 to 6 as a budget gives them, which then counts them (default: 8, "
        "under --size auto); below 8 lower levels read less of them, 4 want a text",
    )
    parser.add_argument(
        "--readings",
        metavar="BITS,...",
        help="make the codes for several levels (morendo run --level): 4,3 can be read with 4 bits "
        "and with 3, 4,3,2 with 2 as well, 3,2 has no fourth bit; every reading comes close to "
        "codes made for it alone; each but the first takes 0.25 bits more in the file, and half as "
        "long again to calibrate; 4: whole codes at the only level, less to unpack for CPUs "
        "(default: one reading; lower levels are then much worse)",
    )


def _add_rounding(parser: argparse.ArgumentParser) -> None:
    """By what weights are rounded."""
    parser.add_argument(
        "--search-scales",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="without any text: search the scales and zeros of 6, 5 or 4 bits that leave the least "
        "error, a fifth less than rounding to nearest, and 4 bits get smaller; takes half a minute "
        "for a hundred million weights (default: on; --no-search-scales rounds to nearest)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="TEXT",
        action="append",
        help="round weights with error feedback on this text file; `self`: on text that the model "
        "writes, the default under a budget; `pydoc`: on Python's help; may be given several times",
    )
    parser.add_argument(
        "--calibration-windows",
        type=whole_number(1),
        metavar="N",
        help="windows of 512 tokens of that text to use: more are better and take longer "
        "(default: 48)",
    )
    parser.add_argument(
        "--tuning-steps",
        type=whole_number(),
        metavar="N",
        help="windows of text by which scales are tuned after rounding: more is better and takes "
        "longer; 0: none (default: 30 under a budget below 4 bits, else 0)",
    )


def _add_activations(parser: argparse.ArgumentParser) -> None:
    """How many bits the inputs of linears get."""
    parser.add_argument(
        "--activations",
        type=_bits_or_word,
        choices=ACTIVATIONS,
        help="bits of what is multiplied with the weights: with 4 codes lose more and, living in "
        "bytes, are no faster: for measuring; `mixed`: 4 where that loses little; 16: halves, "
        "where the target multiplies them, as GPUs do (default: 8)",
    )


def _add_pruning(parser: argparse.ArgumentParser) -> None:
    """How much of a prompt later layers see."""
    parser.add_argument(
        "--prune-tokens",
        type=_share,
        metavar="SHARE",
        help="drop this share of a prompt's tokens on the way, 0 to 0.5, in a few layers, the "
        "least important: long prompts are computed faster and lose something (`morendo eval "
        "--prompt` says what) (default: 0)",
    )
    parser.add_argument(
        "--prune-importance",
        type=_importance,
        metavar="WHICH",
        help="what makes a token important: `first`, the attention that it pays to the first "
        "token, or `received`, what it gets from those behind it (default: first)",
    )


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    """How deep the stages of kernels are."""
    parser.add_argument(
        "--pipeline",
        type=_stages,
        metavar="STAGE=N",
        help="for comparing: how deep the stages of the linears' pipeline are; fetch=0: nothing is "
        "fetched ahead in decode (on CPUs bytes; the default follows the target); unpack=16: in "
        "prefill weights are unpacked again for every 16 tokens (default: for all); copy=1, where "
        "there is memory beside the vector units: codes of so many blocks of tiles ahead are "
        "copied there in decode, up to 4 (default: none)",
    )


def _share(text: str) -> float:
    from morendo.ir.pruning import MOST_DROPPED, UNIT

    most = MOST_DROPPED / UNIT
    return number(lambda value: 0 <= value <= most, f"a share of tokens, 0 to {most:g}")(text)


def _stages(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(
            f"must be stages with depths, such as fetch=0 (got {text})"
        )
    return text


def _bits_or_word(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _importance(text: str) -> str:
    from morendo.ir.pruning import IMPORTANCES

    if text not in IMPORTANCES:
        raise argparse.ArgumentTypeError(f"must be {' or '.join(IMPORTANCES)} (got {text})")
    return text


def _size(text: str) -> float:
    from morendo.budget import parse_size

    try:
        value = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0 (got {text})")
    return value


def _compile(arguments: argparse.Namespace) -> int:
    from morendo.progress import make_progress

    options: dict[str, Any] = {
        key: value
        for key in (
            "out", "average_bits", "group_size", "embedding_bits", "readings", "cache_bits",
            "activations", "prune_tokens", "prune_importance", "search_scales", "calibrate",
            "calibration_windows", "tuning_steps", "context", "chunk", "dump_ir", "passes",
            "weights_of",
        )
        if (value := getattr(arguments, key)) is not None
    }  # fmt: skip
    if arguments.size is not None:
        options["size_mb"] = arguments.size
    _check_stats(arguments.stats)
    start = time.monotonic()
    with make_progress(quiet=arguments.quiet) as progress:
        with progress.task("start the compiler"):
            from morendo import compile
        out = compile(
            arguments.model,
            target=":".join(filter(None, (arguments.target, arguments.pipeline))),
            bits=_BITS[arguments.bits or "4"],
            check=arguments.check,
            progress=progress,
            **options,
        )
    seconds = time.monotonic() - start
    if arguments.time:
        print(print_times(progress.spent, seconds), file=sys.stderr)
    if arguments.stats:
        arguments.stats.write_text(json_lines(out, progress.spent, seconds), encoding="utf-8")
    if not arguments.quiet:
        _summarize(out, seconds, arguments.weights_of)
        _tell_about_changes(out, arguments)
    return 0


def _check_stats(path: Path | None) -> None:
    """Before the minutes of a compilation, not after them."""
    from morendo.ir.errors import InputError

    if path and (path.is_dir() or not path.parent.is_dir()):
        what = "it is a directory" if path.is_dir() else f"there is no directory {path.parent}"
        raise InputError(f"cannot write {path}, {what}", hint="name a file with --stats")


def _summarize(out: Path, seconds: float, weights_of: str | None) -> None:
    from morendo.runtime.artifact import MANIFEST, TOKENIZER

    total = sum(file.stat().st_size for file in out.iterdir())
    memory = size(peak_memory_bytes())
    print(f"wrote {printable(str(out))}: {size(total)} in {seconds:.0f} s, peak memory {memory}")
    manifest = json.loads((out / MANIFEST).read_bytes())
    print(f"bits: {bits_of(manifest['weights'])}")
    for each in manifest["passes"]:
        if "summary" in each:
            print(printable(each["summary"]))
    if (out / TOKENIZER).exists():
        reader = f" [--prefill-on {shlex.quote(weights_of)}]" if weights_of else ""
        print(f'run it: morendo run {shlex.quote(str(out))} "Once upon a time"{reader}')
    else:
        print("the model has no tokenizer: use token ids from Python")


def _tell_about_changes(out: Path, arguments: argparse.Namespace) -> None:
    """What was asked for and could not be had exactly."""
    from morendo.runtime.artifact import MANIFEST

    used = json.loads((out / MANIFEST).read_bytes())["options"]
    notes: list[str] = []
    if arguments.context and used["context"] != arguments.context:
        notes.append(f"--context was rounded up from {arguments.context} to {used['context']}")
    if arguments.chunk and used["chunk"] != arguments.chunk:
        notes.append(f"--chunk was cut from {arguments.chunk} to {used['chunk']}, no more fits")
    if notes:
        print(paint(f"note: {'; '.join(notes)}", "yellow", sys.stderr), file=sys.stderr)
