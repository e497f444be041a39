"""`morendo tune`: finds schedules that keep a quality and writes them into the artifact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from morendo.ir.errors import InputError
from morendo.ir.plan import row_caches
from morendo.progress import Progress
from morendo.runtime.amend import amend_artifact
from morendo.runtime.artifact import SCHEDULE
from morendo.runtime.schedule import (
    Fall,
    Schedule,
    describe_schedules,
    parse_schedules,
    read_schedule_file,
)
from morendo.runtime.session import load

from .answers import TOP, Model
from .bound import Bound
from .candidates import Forecast, best_for_their_bytes, useful_levels
from .learned import learn
from .metrics import METRICS
from .prompts import encode_prompts
from .search import Found, search
from .store import Store, store_path
from .trials import Figures, Half, Trials

MAX_TOKENS = 128
CONFIDENCE = 0.8


@dataclass
class Tuned:
    """What was found.

    Attributes:
        schedules: by kind.
        figures: by kind, "top" among them, on both halves of the prompts.
        evidence: as the artifact has it, by kind.
        notes: what a reader should know.
    """

    schedules: dict[str, Schedule] = field(default_factory=dict)
    figures: dict[str, dict[Half, Figures]] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def tune(
    directory: str | Path,
    prompts: Sequence[str],
    *,
    quality: float = 0.99,
    confidence: float = CONFIDENCE,
    metric: str = "rouge-l",
    learned: bool = False,
    max_tokens: int = MAX_TOKENS,
    threads: int = 0,
    cached: bool = True,
    progress: Progress | None = None,
) -> Tuned:
    """Find the schedules that read least and keep a quality, and write them into the artifact.

    Args:
        directory: the artifact; it is written anew when all is found.
        prompts: the first, third and so on find schedules, the others check them.
        quality: least mean over prompts, in parts of the top level's.
        confidence: that prompts which were not tried keep the quality, 0.5 to below 1: how much
            better than the bound a schedule has to be on the tuning prompts.
        metric: of `METRICS`.
        learned: train the network, too.
        max_tokens: of an answer.
        threads: 0 means one for each CPU.
        cached: keep what is measured in the user's cache, and go on from there.
        progress: shows what is going on; silent by default.

    Raises:
        InputError: for wrong options, prompts that do not fit, an artifact with one level, a
            quality that no static schedule keeps. The artifact stays as it was.
        ArtifactError: for a damaged artifact.
    """
    progress = progress or Progress()
    if metric not in METRICS:
        raise InputError(f"unknown metric (got {metric}, need {', '.join(METRICS)})")
    if not 0 < quality <= 1:
        raise InputError(f"a quality is above 0 and at most 1 (got {quality})")
    if not 0.5 <= confidence < 1:
        raise InputError(f"a confidence is 0.5 or more and below 1 (got {confidence})")
    if max_tokens < 2:
        raise InputError(f"an answer has 2 tokens or more (got max_tokens {max_tokens})")
    with load(directory, threads) as session:
        levels = useful_levels(session.step_cost)
        if learned and not row_caches(session.plan):
            raise InputError(
                "a learned schedule looks at a cache of floats, which this artifact does not have",
                hint="leave --learned out, or compile with --cache-bits 16",
            )
        encoded = encode_prompts(session, prompts, max_tokens)
        halves = {"tuning": encoded.tuning, "held_out": encoded.held_out}
        facts = {"prompts": [encoded.tuning, encoded.held_out], "max_tokens": max_tokens}
        store = Store(store_path(session.manifest, facts) if cached else None)
        trials = Trials(Model(session, max_tokens), halves, metric, store)
        task = _Task(trials, levels, Bound(quality, confidence), learned, progress)
        tuned = task.run()
        about = {
            "metric": metric, "quality": quality, "confidence": confidence,
            "max_tokens": max_tokens,
            "prompts_sha256": encoded.sha256,
            **{f"{half}_prompts": len(ids) for half, ids in halves.items()},
        }  # fmt: skip
        _write(Path(directory), tuned, about, session.executor.levels)
        if store.problem:
            tuned.notes.append(f"what was measured was not kept on disk: {store.problem}")
    return tuned


class _Task:
    """One run over an open artifact."""

    def __init__(
        self,
        trials: Trials,
        levels: Sequence[int],
        bound: Bound,
        learned: bool,
        progress: Progress,
    ) -> None:
        self.trials, self.levels, self.bound = trials, levels, bound
        self.learned, self.progress = learned, progress
        self.tuned = Tuned()

    def run(self) -> Tuned:
        forecast = self._forecast()
        falls = best_for_their_bytes(forecast.falls())
        found = search(self.trials, falls, self.bound, "static", self.progress)
        assert isinstance(found.schedule, Fall)
        self._check("top", Found(TOP, self._measure(TOP, "tuning")))
        self._check("static", found)
        try:
            doubting = best_for_their_bytes(forecast.entropies())
            self._check(
                "entropy", search(self.trials, doubting, self.bound, "entropy", self.progress)
            )
        except InputError as error:
            self.tuned.notes.append(f"there is no entropy schedule: {error.message}")
        if self.learned:
            network = learn(self.trials, falls, found.schedule, self.bound, self.progress)
            schedule, figures, accuracy = network
            self._keep("learned", schedule, figures, {"accuracy": asdict(accuracy)})
        return self.tuned

    def _forecast(self) -> Forecast:
        prompts = self.trials.prompts["tuning"]
        with self.progress.task("profile the levels", len(prompts)) as advance:
            profiles = []
            for number in range(len(prompts)):
                profiles.append(self.trials.profile(number, self.levels[1:]))
                advance()
        return Forecast(profiles, self.trials.cost, self.levels)

    def _check(self, kind: str, found: Found) -> None:
        """Measure on the held-out prompts, too, and keep the figures."""
        held_out = self._measure(found.schedule, "held_out")
        figures = {"tuning": found.figures, "held_out": held_out}
        if kind == "top":
            self.tuned.figures[kind] = figures
        else:
            self._keep(kind, found.schedule, figures, {})

    def _keep(
        self, kind: str, schedule: Schedule, figures: dict[Half, Figures], more: dict[str, Any]
    ) -> None:
        self.tuned.schedules[kind] = schedule
        self.tuned.figures[kind] = figures
        self.tuned.evidence[kind] = {half: asdict(f) for half, f in figures.items()} | more

    def _measure(self, schedule: Schedule, half: Half) -> Figures:
        count = len(self.trials.prompts[half])
        with self.progress.task(f"check on the {half.replace('_', '-')} prompts", count) as advance:
            figures = self.trials.figures(lambda _: schedule, half, advance=advance)
        assert figures is not None  # without a bound it measures all
        return figures


def _write(directory: Path, tuned: Tuned, about: dict[str, Any], levels: int) -> None:
    """Put the schedules into the artifact, beside those of other kinds that it has."""
    before = read_schedule_file(directory)
    schedules = parse_schedules(before, levels) if before else {}
    evidence = before.get("evidence", {}) if before else {}
    for kind in tuned.schedules:
        tuned.evidence[kind] = {**about, **tuned.evidence[kind]}
    data = describe_schedules(
        {**schedules, **tuned.schedules}, levels, {**evidence, **tuned.evidence}
    )
    amend_artifact(directory, {SCHEDULE: (json.dumps(data) + "\n").encode()})
