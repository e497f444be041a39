"""What an emulated run would take on the machine that the artifact's target describes."""

from __future__ import annotations

import itertools
from pathlib import Path

from morendo.runtime.artifact import read_manifest, read_plan
from morendo.runtime.stats import Stats
from morendo.targets import find_target

from .device import DeviceDescription, read_device
from .predict import Answer, Prediction, predict
from .work import plan_work


def described_machine(artifact: Path) -> Path | None:
    """The description of a machine that the artifact's target comes with, if it does."""
    return find_target(read_manifest(artifact)["target"]["name"]).described


def predict_run(artifact: Path, stats: Stats) -> tuple[DeviceDescription, Prediction] | None:
    """The machine, and how long a run with the same tokens and levels would take on it.

    Nothing where no machine is described, or where there was no decode step.
    """
    described = described_machine(artifact)
    if described is None or not stats.decode_tokens:
        return None
    plan, device = read_plan(artifact), read_device(described)
    works = [plan_work(plan, level) for level in range(plan.levels)]
    runs = (itertools.repeat(level, steps) for level, steps in stats.levels.runs)
    levels = [0, *itertools.chain(*runs)]  # the first token is the prompt's
    answer = Answer(stats.prompt_tokens, len(levels), plan.chunk)
    return device, predict(device, lambda token: works[levels[token]], answer)
