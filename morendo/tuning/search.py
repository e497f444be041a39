"""The schedule that reads least and keeps the quality, among candidates in order of their bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from morendo.ir.errors import InputError
from morendo.progress import Progress
from morendo.runtime.schedule import Schedule
from morendo.terminal import size

from .bound import Bound
from .candidates import Candidate
from .trials import Figures, Trials

_FURTHER = 3  # candidates tried below the boundary: quality does not rise evenly


@dataclass(frozen=True)
class Found:
    """A schedule that keeps the bound, and its figures on the tuning prompts."""

    schedule: Schedule
    figures: Figures


def search(
    trials: Trials,
    candidates: Sequence[Candidate],
    bound: Bound,
    name: str,
    progress: Progress,
) -> Found:
    """Measure candidates by bisection, as if quality rose with what they read, and then a few that
    read less than the one found.

    Args:
        trials: measures.
        candidates: fewest bytes first.
        bound: what a schedule has to keep on the tuning prompts.
        name: what is looked for, in messages.
        progress: a step for each answer.

    Raises:
        InputError: when no candidate keeps the bound; it names the best one.
    """
    found: Found | None = None
    with progress.task(f"find the {name} schedule") as advance:

        def keeps(index: int) -> bool:
            nonlocal found
            candidate = candidates[index]
            figures = trials.figures(lambda _: candidate.schedule, "tuning", bound.quality, advance)
            if figures is None or not bound.kept(figures.mean):
                return False
            if found is None or figures.bytes < found.figures.bytes:
                found = Found(candidate.schedule, figures)
            return True

        least = bisect(len(candidates), keeps)
        if found is None:
            raise _none_keeps(trials, candidates[-1], bound, name, advance)
        for index in range(least - 2, max(-1, least - 2 - _FURTHER), -1):
            keeps(index)
    return found


def bisect(count: int, keeps: Callable[[int], bool]) -> int:
    """The least index from which on candidates keep the bound, if they do so evenly; `count` if the
    last one does not.
    """
    low, high = 0, count
    while low < high:
        # The last one first: whether any does.
        middle = count - 1 if high == count else (low + high) // 2
        if keeps(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _none_keeps(
    trials: Trials,
    candidate: Candidate,
    bound: Bound,
    name: str,
    advance: Callable[[], None],
) -> InputError:
    figures = trials.figures(lambda _: candidate.schedule, "tuning", advance=advance)
    assert figures is not None  # without a bound it measures all
    top = trials.cost.level_bytes[0]
    return InputError(
        f"no {name} schedule keeps a quality of {bound.quality:g} with a confidence of "
        f"{bound.confidence:g} (the best found keeps {bound.least(figures.mean):.4f}, on average "
        f"{figures.quality:.4f}, at {size(figures.bytes)} a token instead of {size(top)})",
        hint="give a lower --quality, or compile with --readings and --calibrate",
    )
