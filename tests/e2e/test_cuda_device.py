"""All of it on a real GPU, where there is one: kernels, and whole models."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import morendo
from tests.e2e.conftest import TINY


def missing() -> str:
    """Why nothing can run here; "" where there is a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver here"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "there is no NVIDIA GPU here"
    return ""


pytestmark = [pytest.mark.device, pytest.mark.skipif(bool(missing()), reason=missing())]
PROMPT = "The assignment statement"
READINGS = {
    "readings": "4,3,2", "calibrate": "pydoc", "calibration_windows": 1, "tuning_steps": 0,
}  # fmt: skip


@pytest.mark.parametrize("chunk", [3, 32], ids=["dot products", "matrix units"])
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4},
        {"bits": 4, "cache_bits": 8},
        {"bits": 4, "cache_bits": 4},
        {"bits": 8},
        READINGS,
    ],
    ids=str,
)
def test_a_gpu_computes_what_the_cpu_computes(
    options: dict, chunk: int, compile_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """At all levels, by chunks and by steps that are one launch."""
    given = dict(options)
    bits = given.pop("bits", 4)
    morendo.compile(TINY, "cuda", bits, tmp_path / "gpu", chunk=chunk, **given)
    ids = [int(i) for i in np.random.default_rng(0).integers(2, 512, size=70)]
    with morendo.load(tmp_path / "gpu") as gpu, morendo.load(compile_tiny(**options)) as cpu:
        assert gpu.plan.levels == cpu.plan.levels
        for level in range(gpu.plan.levels):
            for session in (gpu, cpu):
                session.set_level(level)
            got, want = gpu.logits(ids), cpu.logits(ids)
            assert error(got, want) < 0.02, f"level {level}"
            # A sum in another order may round an activation to the next code.
            assert error(steps(gpu, ids), got[-9:]) < 0.02, f"level {level}"
        tokens = [list(session.generate(PROMPT, max_tokens=16)) for session in (gpu, cpu)]
        assert tokens[0] == tokens[1]


def error(got: np.ndarray, want: np.ndarray) -> float:
    """The length of the difference, as a part of what it should be."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def steps(session: morendo.Session, ids: Sequence[int]) -> np.ndarray:
    """The logits of the last 9 tokens: the first of a prompt, the others of steps."""
    executor = session.executor
    executor.set_position(0)
    rows = []
    for start in range(0, len(ids) - 8, session.plan.chunk):
        rows = [executor.prefill(ids[start : min(start + session.plan.chunk, len(ids) - 8)]).copy()]
    return np.stack([*rows, *(executor.decode(token).copy() for token in ids[-8:])])
