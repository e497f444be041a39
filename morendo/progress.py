"""Progress of long work, for terminals and for logs.

Code that may take longer than a second takes a `Progress` and says

    with progress.task("quantize weights", total=211) as advance:
        for matrix in matrices:
            ...
            advance()

`Progress` itself is silent, the default everywhere. `total=None` is work of unknown length.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from morendo.ir.printable import printable

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichBars

Advance = Callable[..., None]


@dataclass
class Spent:
    """The seconds that a piece of work took; depth 1 is part of the one of depth 0 after it."""

    title: str
    depth: int
    seconds: float


class Progress:
    """Shows nothing; the interface of the other two. Use as a context manager, tasks may nest.

    Attributes:
        spent: what is done so far, in the order in which it ended.
    """

    def __init__(self) -> None:
        self.spent: list[Spent] = []
        self._depth = 0

    @contextmanager
    def task(self, title: str, total: int | None = None) -> Generator[Advance]:
        """Show one piece of work; the result counts steps: `advance()` or `advance(steps)`."""
        begin, depth = time.monotonic(), self._depth
        self._depth += 1
        try:
            with self._task(title, total) as advance:
                yield advance
        finally:
            self._depth = depth
        self.took(title, time.monotonic() - begin)

    def took(self, title: str, seconds: float) -> None:
        """Note how long a piece of work took that is not shown, within the task that runs."""
        self.spent.append(Spent(title, self._depth, seconds))

    @contextmanager
    def _task(self, title: str, total: int | None) -> Generator[Advance]:
        def advance(steps: int = 1) -> None:
            pass

        yield advance

    def note(self, text: str) -> None:
        """Say something that the person should know."""

    def notes(self, texts: Iterable[str]) -> None:
        """Say what was noticed and does not stop the work."""
        for text in texts:
            self.note(f"note: {text}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class PlainProgress(Progress):
    """Lines for logs: one for each task that took longer than a second, and one every ten seconds.

    Args:
        stream: where the lines go.
        clock: seconds, increasing.
    """

    min_seconds = 1.0
    every_seconds = 10.0

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._stream = stream
        self._clock = clock

    @contextmanager
    def _task(self, title: str, total: int | None) -> Generator[Advance]:
        start = shown = self._clock()
        done = 0

        def advance(steps: int = 1) -> None:
            nonlocal done, shown
            done += steps
            now = self._clock()
            if now - shown >= self.every_seconds:
                shown = now
                left = (now - start) / done * (total - done) if total and done else 0
                rest = f", {left:.0f} s left" if left else ""
                self._line(f"{title}: {_count(done, total)}, {now - start:.0f} s{rest}")

        yield advance
        seconds = self._clock() - start
        if seconds >= self.min_seconds:
            self._line(f"{title}: done in {seconds:.1f} s")

    def note(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)


class BarProgress(Progress):
    """Bars with elapsed and remaining time, for a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichBars

        super().__init__()
        self._bars: RichBars = RichBars(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(file=stream),
        )

    @contextmanager
    def _task(self, title: str, total: int | None) -> Generator[Advance]:
        task = self._bars.add_task(title, total=total)

        def advance(steps: int = 1) -> None:
            self._bars.advance(task, steps)

        yield advance
        # Work of unknown length has one step: the whole.
        self._bars.update(task, total=total or 1, completed=total or 1)

    def note(self, text: str) -> None:
        self._bars.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()


def _count(done: int, total: int | None) -> str:
    return f"{done} of {total}" if total else f"{done} steps"


def make_progress(stream: TextIO | None = None, quiet: bool = False) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing where `quiet`; `stream` is stderr by default."""
    target = sys.stderr if stream is None else stream
    if quiet:
        return Progress()
    return BarProgress(target) if target.isatty() else PlainProgress(target)
