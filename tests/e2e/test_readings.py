"""Codes made for several readings through the whole pipeline: every level is good at its bits."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import morendo
from morendo.cli import main
from morendo.ir.plan_arguments import LevelTensor
from morendo.progress import Progress
from morendo.quality.dequantized import DequantizedWeights, read_matrices
from morendo.quality.reference import Reference
from morendo.runtime.artifact import read_plan
from morendo.runtime.interpreter import PythonExecutor
from morendo.runtime.step_cost import StepCost
from morendo.targets import find_target, known_targets
from tests.e2e.conftest import SAME_KERNELS, TINY, target_cases
from tests.e2e.quality import kl_divergence, torch_logits
from tests.quantizer.test_streaming import prose

READING_OF_LEVEL = (0, 0, 1, 1, 2)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One made for reading 4, 3 and 2 bits and tuned a little, one for 4 and 3 bits of which only
    the lower reading is tuned, as it is by default, one made for 4 bits, and two under
    budgets, whose groups have 2 bits and more: 4 of 3.3 bits, 3 of 2.8 bits.
    """
    folder = tmp_path_factory.mktemp("readings")
    text = folder / "text.txt"
    text.write_text(prose(0, 0.05))
    options: dict[str, Any] = {"calibrate": text, "calibration_windows": 4, "chunk": 32}
    few: dict[str, Any] = {"tuning_steps": 0, **options, "calibration_windows": 2}
    wanted: dict[str, dict[str, Any]] = {
        "three": {"readings": "4,3,2", "tuning_steps": 2, **options},
        "two": {"readings": "4,3", **options, "calibration_windows": 2},
        "one": options,
        "budget of four": {"readings": "4,3,2", "average_bits": 3.3, **few},
        "budget of three": {"readings": (3, 2), "average_bits": 2.8, **few},
    }
    return {k: morendo.compile(TINY, out=folder / k, **each) for k, each in wanted.items()}


@pytest.mark.parametrize(
    ("name", "levels"), [("three", 5), ("two", 3), ("budget of four", 5), ("budget of three", 3)]
)
def test_every_level_computes_what_its_weights_say(
    name: str, levels: int, artifacts: dict[str, Path]
) -> None:
    ids = np.random.default_rng(0).integers(2, 512, size=45)
    artifact = artifacts[name]
    weights, model = DequantizedWeights(artifact), Reference(TINY, False, Progress())
    with morendo.load(artifact) as session:
        assert session.plan.levels == levels
        for level in range(session.plan.levels):
            session.set_level(level)
            want = torch_logits(model.with_weights_of(weights, level), ids)
            got = session.logits(ids)
            assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)
            executor = session.executor
            executor.set_position(0)
            executor.prefill(ids[:-1])
            last = executor.decode(int(ids[-1]))
            assert np.linalg.norm(last - got[-1]) < 1e-4 * np.abs(got).sum()


def test_both_executors_agree_at_every_level(artifacts: dict[str, Path]) -> None:
    ids = np.random.default_rng(1).integers(2, 512, size=40)
    with morendo.load(artifacts["three"]) as session:
        executor = PythonExecutor(artifacts["three"], poison=True)
        for level in range(session.plan.levels):
            session.set_level(level)
            executor.set_position(0)
            executor.set_level(level)
            assert np.array_equal(session.logits(ids), executor.score(ids))
        executor.close()


def test_matrices_and_norms_are_read_at_the_reading_of_the_level(
    artifacts: dict[str, Path],
) -> None:
    plan = read_plan(artifacts["three"])
    matrices = [m for m in read_matrices(artifacts["three"]) if m.matrix.format.readings]
    assert matrices
    for stored in matrices:
        readings = [read.reading for read in stored.linear]
        assert [readings[level] for level in (0, 2, 4)] == [0, 1, 2]
        assert readings == sorted(readings)
        groups = stored.matrix.format.groups(stored.matrix.columns)
        caps = [[groups * (bits >= 3), groups * (bits >= 4)] for bits in (4, 3, 2)]
        assert [list(read.bounds or ()) for read in stored.linear] == [caps[r] for r in readings]
    norms = [step for step in plan.functions["decode"] if "norm" in plan.kernels[step.kernel]]
    for step in norms:
        (weight,) = (arg for arg in step.args if isinstance(arg, LevelTensor))
        assert [weight.indexes.index(i) for i in weight.indexes] == [0, 0, 2, 2, 4]


@pytest.mark.parametrize(
    ("name", "readings"), [("budget of four", (4, 3, 2)), ("budget of three", (3, 2))]
)
def test_groups_under_a_budget_are_read_with_the_bits_that_they_have(
    name: str, readings: tuple[int, ...], artifacts: dict[str, Path]
) -> None:
    stored = [m for m in read_matrices(artifacts[name]) if m.matrix.format.readings]
    formats = [m.matrix.format for m in stored]
    counts = [fmt.plane_groups(m.matrix.columns) for fmt, m in zip(formats, stored, strict=True)]
    assert any(
        n3 < fmt.groups(m.matrix.columns)
        for (n3, _), fmt, m in zip(counts, formats, stored, strict=True)
    )
    assert any(n4 for _, n4 in counts) == (readings[0] == 4)
    for m, (n3, n4) in zip(stored, counts, strict=True):
        want = [(n3 * (bits >= 3), n4 * (bits >= 4)) for bits in readings]
        assert [tuple(read.bounds or ()) for read in m.linear][::2] == want


def test_inspect_shows_what_every_reading_lost(
    artifacts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(artifacts["three"]), "--weights"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "1.mlp.up_proj" in line)
    lost = [float(each) for each in row.split()[-3:]]
    assert 0 < lost[0] < lost[1] < lost[2]


def test_a_level_reads_no_more_than_without_readings(artifacts: dict[str, Path]) -> None:
    three, one = (StepCost.of(read_plan(artifacts[name])) for name in ("three", "one"))
    for level in (0, 2, 4):
        assert three.level_bytes[level] == one.level_bytes[level]


def test_lower_levels_are_much_closer_to_float_than_codes_made_for_all_bits(
    artifacts: dict[str, Path],
) -> None:
    reference = Reference(TINY, False, Progress())
    with morendo.load(artifacts["one"]) as session:
        ids = session.tokenizer.encode(prose(0.5, 0.51))[:256]
    want = torch_logits(reference.model.build(), ids)
    lost: dict[str, list[float]] = {}
    for name in ("three", "one"):
        with morendo.load(artifacts[name]) as session:
            for level in (0, 2, 4):
                session.set_level(level)
                lost.setdefault(name, []).append(kl_divergence(want, session.logits(ids)))
    assert lost["three"][0] < 1.8 * lost["one"][0]
    assert lost["three"][1] < 0.8 * lost["one"][1]
    assert lost["three"][2] < 0.8 * lost["one"][2]


HERE = [
    target.name
    for target in known_targets()
    if not target.name.startswith("cuda") and target.name not in SAME_KERNELS
]
"""Targets whose artifacts this process can run; test_cuda.py has those of GPUs."""


@pytest.mark.parametrize("name", target_cases(HERE))
def test_every_target_reads_the_same_at_every_level(
    name: str, compile_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where vectors have no floats, caches are codes and floats come from other sums: a last bit
    moves codes of activations by a step. One part in 10**7 of this machine's norms does as much:
    logits move by 1 % of the largest then (measured), so this is the bound there.
    """
    target = find_target(name)
    device, alike = target.device, target.capabilities.half_conversion
    options: dict[str, Any] = {"readings": "4,3,2", "calibrate": "pydoc", "calibration_windows": 1}
    options["cache_bits"] = 16 if alike else 8
    if device.machine != platform.machine():
        if shutil.which(device.emulator or "none") is None:
            pytest.skip(f"there is no emulator of {name} here")
        monkeypatch.setenv("QEMU_CPU", device.emulated_cpu)
    ids = np.random.default_rng(2).integers(2, 512, size=9).tolist()
    with (
        morendo.load(compile_tiny(tuning_steps=0, **options)) as near,
        morendo.load(compile_tiny(tuning_steps=0, target=name, **options)) as far,
    ):
        seen, missed = [], []
        for level in range(len(READING_OF_LEVEL)):
            near.set_level(level)
            far.set_level(level)
            seen.append(near.logits(ids))
            missed.append(np.linalg.norm(far.logits(ids) - seen[-1]))
            bound = (1e-3 if alike else 1e-2) * np.abs(seen).max()
            np.testing.assert_allclose(far.logits(ids), seen[-1], atol=bound)
        apart = [np.linalg.norm(a - b) for a, b in pairwise(seen)]
        assert 10 * max(missed) < min(apart)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"readings": "3,4", "calibrate": "pydoc"}, r"two or three falling .*got 3,4\)"),
        ({"readings": "4,4", "calibrate": "pydoc"}, r"two or three falling .*got 4,4\)"),
        ({"readings": "3", "calibrate": "pydoc"}, r"two or three falling .*got 3\).*or 4 alone"),
        ({"readings": "4", "average_bits": 3}, "the one reading 4 needs all of them"),
        ({"readings": (5, 4), "calibrate": "pydoc"}, r"falling numbers of bits from 4 to 2 .*5,4"),
        ({"readings": "4,3,2,1", "calibrate": "pydoc"}, r"from 4 to 2 \(got 4,3,2,1\)"),
        ({"readings": "4;3", "calibrate": "pydoc"}, r"readings are numbers of bits \(got '4;3'\)"),
        ({"readings": 43, "calibrate": "pydoc"}, r"readings are numbers of bits \(got 43\)"),
        ({"readings": "4,3"}, "made for several readings by a text, rounding to nearest has one"),
        (
            {"readings": "4,3", "bits": 8, "calibrate": "pydoc"},
            r"only 4-bit codes have readings \(got bits 8\)",
        ),
        (
            {"readings": "4,3", "passes": "normalize", "calibrate": "pydoc"},
            r"quantize-weights\{readings=43\} in --pass",
        ),
        (
            {"readings": "3,2", "average_bits": 4.2, "calibrate": "pydoc"},
            r"budget cannot be met \(got 4\.2 bits, the nearest is 3\.",
        ),
    ],
)
def test_readings_that_cannot_be_are_refused(tmp_path: Path, options: dict, match: str) -> None:
    with pytest.raises(morendo.MorendoError, match=match):
        morendo.compile(TINY, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
