"""The `morendo` command: its sub-commands, and what happens when one fails.

Each command lives in a file of its own, which imports what it needs when it runs, so that
`morendo run` starts without the compiler and `morendo --help` without anything.

Exit codes: 0 done, 1 something about the input is wrong (one line says what), 2 the command line
is wrong, 3 a mistake of ours, 130 interrupted with Ctrl-C, 141 the reader of the output went away,
128 + N stopped by signal N.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType

from morendo import __version__
from morendo.terminal import OutputError, accept_all_text, checked_output, print_error

from . import (
    compile_command,
    debug_command,
    eval_command,
    inspect_command,
    opt_command,
    run_command,
    simulate_command,
    tune_command,
    verify_command,
    view_command,
)
from .parser import Parser

OK, USER_ERROR, INTERNAL_ERROR, INTERRUPTED, NO_READER = 0, 1, 3, 130, 141

_EPILOG = """\
start here:
  morendo compile path/to/model --bits 4 --out my-model
  morendo run my-model "The capital of France is" --max-tokens 64
  morendo inspect my-model
  morendo view my-model
  morendo tune my-model --prompts my-prompts.txt
  morendo eval my-model --text my-text.txt --reference path/to/model
  morendo debug my-model --against path/to/model "The capital of France is"
  morendo simulate my-npu-model
  morendo verify my-model

exit codes: 0 done, 1 wrong input, 2 wrong command line, 3 internal error, 130 interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="morendo",
        description="Compile a large language model for one device, and run it there.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"morendo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", help="show stack traces and the libraries' warnings"
    )
    modules = (
        compile_command,
        run_command,
        tune_command,
        eval_command,
        opt_command,
        inspect_command,
        view_command,
        debug_command,
        simulate_command,
        verify_command,
    )
    for module in modules:
        module.add_commands(commands, common)
    return parser


_stopped: list[int] = []  # the signal that `Stopped` was raised for


class Stopped(BaseException):
    """SIGTERM or SIGHUP, as an exception: temporary files are removed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and turn whatever goes wrong into one line and an exit code."""
    if not _open_streams():
        print_error("standard output is closed; send it somewhere, such as to /dev/null")
        return USER_ERROR
    accept_all_text()
    arguments = make_parser().parse_args(argv)
    if not arguments.debug:
        _quiet_libraries()
    try:
        with _signals_raise(), checked_output():
            code = arguments.run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except Stopped as stopped:
        _stopped.clear()
        print_error(f"stopped by {signal.Signals(stopped.number).name}")
        return 128 + stopped.number
    except BrokenPipeError:
        _drop_output()
        return NO_READER
    except OutputError as error:
        _drop_output()
        print_error(str(error))
        return USER_ERROR
    except Exception as error:
        if _stopped:  # TVM's calls rename exceptions
            print_error(f"stopped by {signal.Signals(_stopped[-1]).name}")
            return 128 + _stopped.pop()
        if arguments.debug:
            raise
        return _report(error)
    return code or OK


def _open_streams() -> bool:
    """False when there is no stdout; a closed stdin is empty, and a closed stderr unread."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    return sys.stdout is not None


@contextmanager
def _signals_raise() -> Generator[None]:
    """SIGTERM and SIGHUP raise `Stopped`, once and in this process only; nohup stays in force."""
    owner = os.getpid()

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker dies as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for each in replaced:
            signal.signal(each, signal.SIG_IGN)  # do not disturb the cleaning up
        _stopped.append(number)
        raise Stopped(number)

    replaced: list[int] = []
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)
                replaced.append(number)
    except ValueError:
        pass  # signals belong to the main thread
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _drop_output() -> None:
    """Python would complain once more when it flushes stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: Exception) -> int:
    from morendo.ir.errors import MorendoError

    if isinstance(error, MorendoError):
        print_error(str(error))
        return USER_ERROR
    if isinstance(error, OSError):
        place = f": {error.filename}" if error.filename else ""
        print_error(f"{error.strerror or error}{place}")
        return USER_ERROR
    if isinstance(error, MemoryError):
        print_error("out of memory; a smaller --context or --chunk needs less")
        return USER_ERROR
    lines = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    print_error(f"{what}; this is a mistake in morendo, rerun with --debug", kind="internal error")
    return INTERNAL_ERROR


def _quiet_libraries() -> None:
    """Warnings of libraries mean nothing to who compiles a model; errors still come through."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
