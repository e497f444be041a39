"""The `morendo` command: its sub-commands, and what happens when one fails.

Each command lives in a `cli_*.py` file that imports what it needs when it runs, so that
`morendo run` starts without the compiler and `morendo --help` without anything.

Exit codes: 0 done, 1 something about the input is wrong (one line says what), 2 the command line
is wrong, 3 a mistake of ours, 130 interrupted with Ctrl-C, 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from morendo import __version__, cli_compile, cli_eval, cli_inspect, cli_opt, cli_run
from morendo.terminal import print_error

OK, USER_ERROR, USAGE_ERROR, INTERNAL_ERROR, INTERRUPTED, NO_READER = 0, 1, 2, 3, 130, 141

_EPILOG = """\
start here:
  morendo compile path/to/model --target x86 --bits 4 --out my-model
  morendo run my-model "The capital of France is" --max-tokens 64
  morendo inspect my-model
  morendo eval my-model --text my-text.txt --reference path/to/model

exit codes: 0 done, 1 wrong input, 2 wrong command line, 3 internal error, 130 interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
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
    for module in (cli_compile, cli_run, cli_eval, cli_opt, cli_inspect):
        module.add_commands(commands, common)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and turn whatever goes wrong into one line and an exit code."""
    arguments = make_parser().parse_args(argv)
    if not arguments.debug:
        _quiet_libraries()
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except Exception as error:
        if arguments.debug:
            raise
        return _report(error)
    return code or OK


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
