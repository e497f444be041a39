"""How long a calibration will take: said before it starts, and again when a part of it is done.

The first time by counting multiplications and timing a few; then by what the first layers took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tvm import relax

from morendo.calibration_text import SELF, WINDOW
from morendo.frontend import LoadedModel
from morendo.ir.dialect import attrs_of, op_name
from morendo.ir.text import bindings_of
from morendo.ir.weight_overlay import WeightOverlay
from morendo.passes.analyze_group_ranges import AnalyzeGroupRanges
from morendo.passes.base import Context, Pass
from morendo.passes.calibrate_weights import CalibrateWeights
from morendo.passes.choose_activations import ChooseActivations
from morendo.passes.normalize import Normalize
from morendo.passes.pipeline import run_passes
from morendo.passes.quantize_weights import QuantizeWeights
from morendo.passes.streaming import WRITING
from morendo.passes.tune_scales import TuneScales
from morendo.progress import Advance, Progress

_FIRST = 0.03
"""The part of a task after which the time left is estimated anew: the first of some layers."""
_SHORT = 20.0  # seconds that nobody needs to be told of
_TRIALS = 12
# Time of a multiplication of each kind, in those of a large float32 product: measured with a model
# of 135 M weights on a processor with bfloat16 products.
_WRITE, _ANALYZE, _ROUND, _TUNE = 1.4, 1.25, 0.62, 0.8
_MEASURE = 6.0  # the outputs of floats and of two ways to round
_ROUND_WEIGHT = 27e3
"""The same for choosing the code of one weight,"""
_ROUND_TOGETHER = 1.4
"""so many times as much for each reading where codes are made for several."""


def foresee_time(
    loaded: LoadedModel,
    recipe: Sequence[Pass],
    windows: int,
    sources: Sequence[str | Path],
    progress: Progress,
) -> Forecast:
    """A progress that says how long calibrating takes, now and later.

    Args:
        recipe: the passes that will run.
        windows: of text.
        sources: of it.
        progress: shows everything.
    """
    module, _ = run_passes(loaded.module, [Normalize()], Context(WeightOverlay(loaded.weights)))
    writes, length = SELF in map(str, sources), min(WINDOW, loaded.context)
    found, rate = works(recipe, module["main"], windows, length, writes), speed()
    forecast = Forecast(progress, {title: count / rate for title, count in found.items()})
    text = f"{windows} windows that the model writes" if writes else f"{windows} windows of text"
    forecast.announce(f"calibrating by {text}")
    return forecast


def works(
    recipe: Sequence[Pass], main: relax.Function, windows: int, length: int, writes: bool
) -> dict[str, float]:
    """Multiplications that each task of a calibration takes, by its title.

    Args:
        recipe: the passes that will run.
        main: normalized.
        windows: of text.
        length: tokens of a window.
        writes: whether the model writes them.
    """
    linears = [b.value for b in bindings_of(main) if op_name(b.value) == "linear"]
    sizes = [attrs_of(c)["out_features"] * attrs_of(c)["in_features"] for c in linears]
    head = sizes[-1] if sizes else 0
    body = sum(sizes) - head
    inputs = {call.args[0]: attrs_of(call)["in_features"] for call in linears}
    moments = sum(features**2 for features in inputs.values())
    readings = _readings(recipe)
    found: dict[str, float] = {}
    if writes:
        found[WRITING] = _WRITE * windows * length * (body + head)
    for step in recipe:
        if isinstance(step, AnalyzeGroupRanges):
            tokens = min(step.windows, windows) * length
            found[step.task] = _ANALYZE * tokens * (body + moments)
        if isinstance(step, ChooseActivations):
            found[step.task] = _MEASURE * min(step.windows, windows) * length * body
        if isinstance(step, CalibrateWeights):
            models = 1 + max(len(readings), 1)  # the float model, and one of every reading
            products = models * windows * length * (body + moments)
            together = _ROUND_TOGETHER * len(readings) if readings else 1.0
            found[step.task] = _ROUND * products + _ROUND_WEIGHT * together * body
        if isinstance(step, TuneScales):
            for reading, bits in enumerate(readings or (0,)):
                if bits < step.below_bits:
                    title = step.task_at(readings, reading)
                    found[title] = _TUNE * 3 * step.steps * length * (body + head)
    return found


def _readings(recipe: Sequence[Pass]) -> tuple[int, ...]:
    """What codes are made for, () for all their bits."""
    steps = [step for step in recipe if isinstance(step, QuantizeWeights)]
    return steps[-1].readings_of_codes if steps else ()


def speed() -> float:
    """Multiplications in a second here."""
    import torch  # takes seconds: not before it is needed

    x, matrix, best = torch.ones(512, 1024), torch.ones(1024, 1024), float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        torch.nn.functional.linear(x, matrix)
        best = min(best, time.perf_counter() - start)
    return 512 * 1024 * 1024 / best


class Forecast(Progress):
    """A progress that knows what is to come.

    Args:
        inner: shows it.
        seconds: that tasks are expected to take, by title.
        clock: seconds, increasing.
    """

    def __init__(
        self,
        inner: Progress,
        seconds: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._inner, self._clock = inner, clock
        self._left = dict(seconds)

    def announce(self, what: str) -> None:
        """Say how long all will take."""
        total = sum(self._left.values())
        if total >= _SHORT:
            again = "if it is stopped, the same command goes on from what was done"
            self.note(f"{what}: about {duration(total)}; {again}")

    def note(self, text: str) -> None:
        self._inner.note(text)

    @contextmanager
    def _task(self, title: str, total: int | None) -> Generator[Advance]:
        with self._inner.task(title, total) as advance:
            if title in self._left and total:
                yield self._watched(title, total, advance)
            else:
                yield advance
        self._left.pop(title, None)

    def _watched(self, title: str, total: int, advance: Advance) -> Advance:
        done, first, said = 0, (0, self._clock()), False

        def count(*steps: Any) -> None:
            nonlocal done, first, said
            advance(*steps)
            done += steps[0] if steps else 1
            if not first[0]:
                first = done, self._clock()  # what was read for the first step counts once
            elif not said and done >= _FIRST * total:
                said = True
                rate = (self._clock() - first[1]) / (done - first[0])
                self._correct(title, rate * total, rate * (total - done))

        return count

    def _correct(self, title: str, whole: float, rest: float) -> None:
        """Measure what is to come by how long a task takes in all, and what is left of it.

        Writing says nothing of the others: in a small model it takes what a step costs besides
        multiplications, many times as long as these.
        """
        ratio = whole / max(self._left[title], 1e-9)
        others = 1.0 if title == WRITING else ratio
        self._left = {each: seconds * others for each, seconds in self._left.items()}
        self._left[title] = whole
        left = sum(self._left.values()) - whole + rest
        if left >= _SHORT:
            self.note(f"{title}: about {duration(left)} of calibration left")


def duration(seconds: float) -> str:
    """A rough time for people: 40 s, 6 min, 2.5 h."""
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
