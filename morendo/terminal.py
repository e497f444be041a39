"""What the commands read and print: one-line errors, tables, sizes, safe text. Small, so that
commands start fast.

Text that comes from files goes through `printable` (paint, table and print_error do it), and what a
model writes through `shown`: neither moves the cursor, retitles the window or hides what is there.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from morendo.ir.printable import one_line, printable

_OFF = "\x1b[0m"
_STYLES = {"red": "\x1b[1;31m", "yellow": "\x1b[33m", "green": "\x1b[32m", "bold": "\x1b[1m"}


def has_color(stream: TextIO) -> bool:
    """Color only on a terminal, and not where NO_COLOR or TERM=dumb asks for none."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: TextIO) -> str:
    """`text`, printable, in one of `_STYLES` where the stream shows colors."""
    code = _STYLES[style]
    text = printable(text)
    return f"{code}{text}{_OFF}" if has_color(stream) else text


def print_error(text: str, kind: str = "error") -> None:
    """One line on stderr: `error: what is wrong; what to do`."""
    print(f"{paint(kind + ':', 'red', sys.stderr)} {one_line(text)}", file=sys.stderr, flush=True)


_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(text: str, stream: TextIO) -> str:
    """What a model wrote: without control characters but tab and newline where `stream` is a
    terminal, which would obey them; as it is in files and pipes.
    """
    return _OBEYED.sub("", text) if stream.isatty() else text


def accept_all_text() -> None:
    """Characters that the streams' encoding lacks are written as escapes, not as errors."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def read_standard_input() -> str:
    """All of standard input, UTF-8 whatever the terminal's encoding is.

    Raises:
        UnicodeDecodeError: when it is not.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    return sys.stdin.read()


class OutputError(Exception):
    """What was printed cannot be written, as on a full disk."""


class _CheckedOutput:
    """A stream whose failures can be told from those of other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _as_output_error():
            return self._stream.write(text)

    def flush(self) -> None:
        with _as_output_error():
            self._stream.flush()


@contextmanager
def _as_output_error() -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the output ({error.strerror or error})") from error


@contextmanager
def checked_output() -> Generator[None]:
    """Failures of stdout are OutputErrors, except that of a reader who went away."""
    stream = sys.stdout
    sys.stdout = _CheckedOutput(stream)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        sys.stdout = stream


def table(rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """Rows as aligned columns; numbers and what ends in a unit are aligned right by the caller."""
    given = ([header] if header else []) + list(rows)
    lines = [[printable(str(cell)) for cell in row] for row in given]
    if not lines:
        return ""
    columns = max(len(line) for line in lines)
    numeric = [_is_numeric([row[i] for row in rows if i < len(row)]) for i in range(columns)]
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(columns)]

    def show(line: list[str]) -> str:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=False)
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(show(line) for line in lines)


def _is_numeric(cells: Sequence[object]) -> bool:
    return bool(cells) and all(isinstance(cell, int | float) or is_quantity(cell) for cell in cells)


def is_quantity(cell: object) -> bool:
    """True for text that starts with a digit, such as "12.3 MB"."""
    return isinstance(cell, str) and cell[:1].isdigit()


def size(count: float) -> str:
    """Bytes for people: 92.4 MB (decimal, as disks and bandwidths are given)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def read_by_a_token(count: float, bits: float) -> str:
    """What a decode step reads: 66.1 MB a token, 3.91 bits a weight (0 where that is not known)."""
    return f"{size(count)} a token" + (f", {bits:.2f} bits a weight" if bits else "")


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
