"""`morendo opt`, `morendo passes`, `morendo targets`: the compiler's parts, one at a time."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.ir.printable import printable
from morendo.terminal import paint, read_standard_input, table

if TYPE_CHECKING:
    import tvm

    from morendo.passes.base import Pass
    from morendo.passes.pipeline import PassRecord

_OPT = """\
Read IR text, run passes, print the IR text that comes out. Without passes it is only read, checked
and printed. The IR is what `morendo compile --dump-ir` writes.

Standard output has the result alone; counts, misses and what --print-after and --time show go to
standard error."""

_OPT_EXAMPLES = """\
examples:
  morendo compile ./model --dump-ir ir
  morendo opt ir/01_normalize.py                        is it well-formed?
  morendo opt ir/00_input.py -p normalize
  morendo opt ir/00_input.py -p "normalize,quantize-weights{bits=4,group_size=64}" -o after.py
  morendo opt ir/00_input.py -p normalize,fuse-linears --print-after normalize --time >/dev/null
  cat ir/00_input.py | morendo opt - -p normalize | less"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `opt`, `passes` and `targets`."""
    opt = commands.add_parser(
        "opt",
        parents=[common],
        help="IR text in, passes, IR text out",
        description=_OPT,
        epilog=_OPT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    opt.add_argument("ir", metavar="IR.py", help="IR text; - reads standard input")
    opt.add_argument(
        "--passes",
        "-p",
        metavar="SPEC",
        help="name{option=value},...; none: check the IR and print it",
    )
    opt.add_argument("--target", metavar="NAME", help="whose layout of tiles passes use")
    opt.add_argument("--out", "-o", type=Path, metavar="FILE", help="instead of standard output")
    opt.add_argument("--dump-ir", type=Path, metavar="DIR", help="write the IR after every pass")
    opt.add_argument(
        "--print-after",
        metavar="PASS",
        action="append",
        default=[],
        help="print the IR after every run of this pass too; may be given several times",
    )
    opt.add_argument("--print-after-all", action="store_true", help="the same for all passes")
    opt.add_argument(
        "--verify-each",
        action="store_true",
        help="after every pass, check that the IR is well-formed and that its text parses back",
    )
    opt.add_argument("--time", action="store_true", help="print the seconds that passes took")
    opt.set_defaults(run=_opt)
    for name, run, text in (
        ("passes", _passes, "list the passes and their options"),
        ("targets", _targets, "list the targets"),
    ):
        parser = commands.add_parser(name, parents=[common], help=text, description=text)
        parser.set_defaults(run=run)


def _opt(arguments: argparse.Namespace) -> int:
    source = _read(arguments.ir)  # what is missing is said at once, the imports take seconds
    _check_out(arguments.out)

    from morendo.ir.dump import Dump
    from morendo.ir.layout import DEFAULT_LAYOUT
    from morendo.ir.text import parse_module, print_module
    from morendo.passes.base import Context, parse_spec
    from morendo.passes.pipeline import known_passes, run_passes

    known = known_passes()
    steps = parse_spec(arguments.passes, known) if arguments.passes is not None else []
    _check_printed(arguments.print_after, [step.name for step in steps])
    layout = DEFAULT_LAYOUT
    if arguments.target:
        from morendo.targets import find_target

        layout = find_target(arguments.target).layout
    module = parse_module(source, "standard input" if arguments.ir == "-" else arguments.ir)
    _check_ir(module, "as it was read")

    def after(record: PassRecord, made: tvm.IRModule) -> None:
        _print_record(record)
        if arguments.verify_each:
            _check_ir(made, f"after {record.name}")
            _check_text(made, f"after {record.name}")
        if arguments.print_after_all or record.name in arguments.print_after:
            print(f"# after {record.spec}\n{print_module(made)}", file=sys.stderr)

    context = Context(layout=layout)
    dump = Dump(arguments.dump_ir) if arguments.dump_ir else None
    module, records = run_passes(module, steps, context, dump, done=after)
    if arguments.time:
        _print_times(records)
    text = print_module(module)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def _read(source: str) -> str:
    from morendo.ir.errors import InputError

    try:
        if source == "-":
            return read_standard_input()
        return Path(source).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"there is no file {source}", hint="write IR with `morendo compile MODEL --dump-ir DIR`"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{source} is a directory", hint="name one file in it") from None
    except UnicodeDecodeError:
        name = "standard input" if source == "-" else source
        raise InputError(f"{name} is not text", hint="opt reads IR text") from None


def _check_out(out: Path | None) -> None:
    from morendo.ir.errors import InputError

    if out and out.is_dir():
        raise InputError(f"cannot write {out}, it is a directory", hint="name a file with --out")
    if out and not out.parent.is_dir():
        raise InputError(f"there is no directory {out.parent} for --out", hint="make it first")


def _check_printed(wanted: list[str], names: list[str]) -> None:
    from morendo.ir.errors import InputError

    for name in wanted:
        if name not in names:
            raise InputError(
                f"--print-after {name}: no such pass runs",
                hint=f"passes that run: {', '.join(names) or 'none, give --passes'}",
            )


def _check_ir(module: tvm.IRModule, where: str) -> None:
    """What is true of IR after every pass."""
    from morendo.ir.invariants import check_invariant

    for name in ("well-formed", "formats-known"):
        check_invariant(name, module, where)


def _check_text(module: tvm.IRModule, where: str) -> None:
    """What is printed means the same module."""
    from tvm_ffi import structural_equal

    from morendo.ir.errors import CompileError
    from morendo.ir.text import parse_module, print_module

    if not structural_equal(parse_module(print_module(module), where), module):
        raise CompileError("the IR's text parses to another module", where=where)


def _print_times(records: list[PassRecord]) -> None:
    total = sum(record.seconds for record in records)
    rows = [(r.spec, f"{r.seconds:.3f}", f"{_share(r.seconds, total)} %") for r in records]
    print(table([*rows, ("all", f"{total:.3f}", "")], ("pass", "seconds", "")), file=sys.stderr)


def _share(part: float, whole: float) -> int:
    return round(100 * part / whole) if whole else 0


def _print_record(record: PassRecord) -> None:
    counts = ", ".join(f"{what}: {count}" for what, count in record.report.counts.items())
    name = paint(record.spec, "bold", sys.stderr)
    print(f"{name}: {printable(counts) or 'nothing to do'}", file=sys.stderr)
    for where, why in record.report.misses:
        print(printable(f"  left {where}: {why}"), file=sys.stderr)


def _passes(arguments: argparse.Namespace) -> int:
    from morendo.budget import Budget
    from morendo.passes.pipeline import known_passes

    for name, kind in sorted(known_passes().items()):
        print(f"{paint(name, 'bold', sys.stdout)}{_options(kind)}")
        print(f"  {_first_sentence(kind.__doc__)}")
    plain, limited = Budget.of(4, None, None, None), Budget.of(4, 2.9, None, None)
    print(f"\ncompile runs: {plain.passes(calibrated=False)}")
    print(f"\nwith --average-bits 2.9: {limited.passes(calibrated=True)}")
    return 0


def _options(kind: type[Pass]) -> str:
    options = ",".join(f"{field.name}={field.default}" for field in fields(kind))
    return f"{{{options}}}" if options else ""


def _first_sentence(text: str | None) -> str:
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    return paragraph


def _targets(arguments: argparse.Namespace) -> int:
    from morendo.ir.errors import CompileError
    from morendo.targets import NATIVE, find_target, known_targets

    try:
        native = f"this machine, the default: {find_target(NATIVE).name}"
    except CompileError as error:
        native = f"this machine: {error.message}"
    rows = [(NATIVE, native), *((target.name, target.description) for target in known_targets())]
    print(table(rows))
    return 0
