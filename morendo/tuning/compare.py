"""An artifact's schedules side by side: quality against bytes and speed, on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morendo.progress import Progress
from morendo.quality.scores import compare
from morendo.runtime.schedule import Fall, Schedule, parse_schedules, read_schedule_file
from morendo.runtime.session import Session, load

from .answers import TOP, Answer, Counts, Model
from .candidates import useful_levels
from .metrics import answer_rouge
from .prompts import encode_prompts


@dataclass(frozen=True)
class ScheduleRow:
    """One schedule.

    Attributes:
        name: as `morendo run --schedule` takes it.
        rouge_l: of its answers against those at level 0, mean over prompts.
        top1: how often its steps find the next token of the precise answer likeliest.
        kl: mean divergence in nats of its steps' predictions from level 0's.
        bytes, bits: that a decode step of its answers read; bits for each weight, 0 if not known.
        tokens_per_second: of its answers, prefill left out.
    """

    name: str
    rouge_l: float
    top1: float
    kl: float
    bytes: float
    bits: float
    tokens_per_second: float


def compare_schedules(
    directory: str | Path,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    threads: int = 0,
    progress: Progress | None = None,
) -> list[ScheduleRow]:
    """Measure level 0, every fixed level that reads less, and the artifact's own schedules.

    They answer each prompt in turn, so that all see the machine's quiet and busy moments.

    Args:
        directory: the artifact.
        prompts: the second, fourth and so on are used: `tune` has not seen them.
        max_tokens: of an answer.
        threads: 0 means one for each CPU.
        progress: a step for each answer.

    Raises:
        InputError: for prompts that do not fit, or an artifact with one level.
        ArtifactError: for a damaged artifact.
    """
    progress = progress or Progress()
    with load(directory, threads) as session:
        schedules = _schedules(session)
        held_out = encode_prompts(session, prompts, max_tokens).held_out
        rows = {name: _Sums() for name in schedules}
        with progress.task("answer", len(held_out) * len(schedules)) as advance:
            for prompt in held_out:
                model = Model(session, max_tokens)
                top = model.answer(prompt, TOP)
                reference = model.score(prompt, top.tokens)[1:]
                for name, schedule in schedules.items():
                    rows[name].add(model, prompt, top, reference, schedule)
                    advance()
        return [rows[name].row(name, session) for name in schedules]


def _schedules(session: Session) -> dict[str, Schedule]:
    levels = useful_levels(session.step_cost)
    found: dict[str, Schedule] = {"off": TOP}
    found |= {f"fixed:{level}": Fall(((1, level),)) for level in levels[1:]}
    data = read_schedule_file(session.directory)
    return found | (parse_schedules(data, session.executor.levels) if data else {})


class _Sums:
    """What was measured of one schedule so far."""

    def __init__(self) -> None:
        self.figures: list[tuple[float, float, float]] = []
        self.counts: Counts = {}
        self.seconds = 0.0

    def add(
        self,
        model: Model,
        prompt: Sequence[int],
        top: Answer,
        reference: np.ndarray,
        schedule: Schedule,
    ) -> None:
        """One prompt; `reference` are level 0's logits behind each token of `top` but the last."""
        before = model.decode_seconds
        answer = model.answer(prompt, schedule)
        self.seconds += model.decode_seconds - before
        for level, steps in answer.counts.items():
            self.counts[level] = self.counts.get(level, 0) + steps
        same, divergence = 1.0, 0.0
        if len(reference):
            rows, _ = model.follow(prompt, top.tokens, schedule)
            targets = np.asarray(top.tokens[1:])
            same = float((rows.argmax(axis=1) == targets).mean())
            divergence = float(compare(rows, targets, reference).divergence.mean())
        self.figures.append((answer_rouge(model, answer, top), same, divergence))

    def row(self, name: str, session: Session) -> ScheduleRow:
        """The means."""
        rouge, same, divergence = np.mean(self.figures, axis=0)
        steps, counts = sum(self.counts.values()), self.counts or {0: 1}
        return ScheduleRow(
            name,
            float(rouge),
            float(same),
            float(divergence),
            session.step_cost.mean_bytes(counts),
            session.step_cost.mean_bits(counts),
            steps / self.seconds if self.seconds else 0.0,
        )
