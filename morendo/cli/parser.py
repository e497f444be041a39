"""The command line's parser and its types of values: a mistake in it is one line, exit code 2."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from morendo.terminal import print_error

USAGE_ERROR = 2
MOST_THREADS = 256  # as MAX_THREADS in runtime/c/internal.h


class Parser(argparse.ArgumentParser):
    """An argument parser that names a mistake and leaves the usage to --help.

    Attributes:
        when_too_many: what to do about words that no argument takes.
    """

    when_too_many = ""

    def error(self, message: str) -> NoReturn:
        self._fail(f"{message}; see {self.prog} --help")

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """As argparse's, but words that are left over are refused by the command they follow."""
        parsed, left = super().parse_known_args(*given, **named)
        if left:
            message = f"unrecognized arguments: {' '.join(left)}"
            if not self.when_too_many or any(word.startswith("-") for word in left):
                self.error(message)
            self._fail(f"{message}; {self.when_too_many}")
        return parsed, left

    def _fail(self, line: str) -> NoReturn:
        print_error(line)
        self.exit(USAGE_ERROR)


def whole_number(least: int = 0, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that takes an integer from `least` to `most`."""
    need = f"{least} or more" if most is None else f"{least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be a whole number, {need} (got {text})")
        return value

    return parse


def number(accepts: Callable[[float], bool], need: str) -> Callable[[str], float]:
    """The type of an option that takes the numbers that `accepts` does, `need` in words."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # which no comparison accepts
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"must be {need} (got {text})")
        return value

    return parse


part = number(lambda value: 0 < value <= 1, "above 0 and at most 1")
above_zero = number(lambda value: 0 < value < math.inf, "a finite number above 0")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads."""
    parser.add_argument(
        "--threads",
        type=whole_number(0, MOST_THREADS),
        default=0,
        metavar="N",
        help="0, the default, is one for each CPU",
    )


def sampling_value(name: str, kind: type[int] | type[float]) -> Callable[[str], float]:
    """The type of an option that is a field of SamplingSettings, which knows its range."""

    def parse(text: str) -> float:
        from morendo.ir.errors import InputError
        from morendo.runtime.sampling import SamplingSettings

        try:
            value: Any = kind(text)
        except ValueError:
            value = text  # which the settings refuse
        try:
            SamplingSettings(**{name: value})
        except InputError as error:
            need, _, _ = error.message.removeprefix(f"{name} ").partition(" (got ")
            raise argparse.ArgumentTypeError(f"{need} (got {text})") from None
        return value

    return parse
