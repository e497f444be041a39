"""How long a calibration takes is said before it starts, and when a part of it is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from morendo import forecast
from morendo.budget import Budget
from morendo.forecast import Forecast, duration, foresee_time, works
from morendo.frontend import load_model
from morendo.passes.base import Context, parse_spec
from morendo.passes.normalize import Normalize
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.streaming import WRITING
from morendo.progress import Progress

TINY = Path(__file__).parent / "models" / "tiny_llama"


class Notes(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_time_is_said_before_and_after_the_first_layers() -> None:
    now, notes = 0.0, Notes()
    progress = Forecast(notes, {"round": 100.0, "tune": 50.0}, lambda: now)
    progress.announce("calibrating")
    again = "if it is stopped, the same command goes on from what was done"
    assert notes.said == [f"calibrating: about 2 min; {again}"]
    with progress.task("something else", 10) as advance:
        advance()
    with progress.task("round", 100) as advance:
        for step in range(100):
            now += 4.0 if step else 40.0  # four times as long as foreseen, but for the first
            advance()
    assert notes.said[1:] == ["round: about 10 min of calibration left"]  # 588 s
    with progress.task("tune", 10) as advance:
        for _ in range(2):
            now += 5.0  # a tenth
            advance()
    assert notes.said[2:] == ["tune: about 40 s of calibration left"]


def test_writing_says_nothing_of_the_rest() -> None:
    """A small model writes many times as long as its multiplications take."""
    now, notes = 0.0, Notes()
    progress = Forecast(notes, {WRITING: 1.0, "round": 10.0}, lambda: now)
    with progress.task(WRITING, 100) as advance:
        for _ in range(100):
            now += 1.0
            advance()
    assert notes.said == [f"{WRITING}: about 2 min of calibration left"]  # 97 s and 10 s


def test_what_is_over_soon_is_not_talked_about() -> None:
    notes = Notes()
    progress = Forecast(notes, {"round": 5.0}, lambda: 0.0)
    progress.announce("calibrating")
    with progress.task("round", 10) as advance:
        advance(5)
        advance(2)
    assert not notes.said


def test_durations() -> None:
    found = [duration(seconds) for seconds in (3, 44, 91, 350, 5500)]
    assert found == ["10 s", "40 s", "2 min", "6 min", "1.5 h"]


def test_work_is_counted_for_what_will_run(monkeypatch) -> None:
    loaded = load_model(TINY)
    module, _ = run_passes(loaded.module, [Normalize()], Context(None))
    recipe = parse_spec(Budget.of(4, 2.9, None, None).passes(True), known_passes())
    found = works(recipe, module["main"], 48, 512, True)
    assert set(found) == {"let the model write"} | {step.task for step in recipe if step.task}
    assert all(found.values())
    twice = works(recipe, module["main"], 96, 512, False)
    assert "let the model write" not in twice
    assert twice["tune scales"] == found["tune scales"]
    assert twice["round with error feedback"] > 1.2 * found["round with error feedback"]
    monkeypatch.setattr(forecast, "speed", lambda: sum(found.values()) / 600)
    notes = Notes()
    foresee_time(loaded, recipe, 48, ["self"], notes)
    length = min(512, loaded.context)
    expected = duration(
        600 * sum(works(recipe, module["main"], 48, length, True).values()) / sum(found.values())
    )
    (said,) = notes.said
    assert said.startswith(f"calibrating by 48 windows that the model writes: about {expected};")


def test_every_reading_runs_a_model_and_is_tuned_where_it_has_few_bits() -> None:
    loaded = load_model(TINY)
    module, _ = run_passes(loaded.module, [Normalize()], Context(None))

    def count(readings: str | None) -> dict[str, float]:
        budget = Budget.of(4, None, None, None, readings=readings)
        recipe = parse_spec(budget.passes(True), known_passes())
        return works(recipe, module["main"], 48, 512, False)

    one, three = count(None), count("4,3,2")
    task = "round with error feedback"
    assert set(one) == {task}
    assert set(three) == {task, "tune scales, 3 bits read", "tune scales, 2 bits read"}
    assert 1.5 * one[task] < three[task] < 5 * one[task]


@pytest.mark.parametrize("trials", [1])
def test_speed_is_measured(trials: int, monkeypatch) -> None:
    monkeypatch.setattr(forecast, "_TRIALS", trials)
    assert 1e8 < forecast.speed() < 1e14
