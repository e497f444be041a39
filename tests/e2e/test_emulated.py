"""Artifacts for another kind of machine, run by an emulator: the same text as here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

import morendo
from morendo.cli import main
from morendo.ir.errors import ArtifactError, InputError
from morendo.ir.plan import row_caches
from morendo.runtime.emulated import EmulatedExecutor
from morendo.runtime.session import Session

needs_emulator = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None, reason="the system package qemu-user is not installed"
)
CPUS = {"arm-v8.0": "cortex-a53", "arm": "cortex-a76", "arm-i8mm": "max"}
BUDGET = {"average_bits": 3.0, "calibration_windows": 4, "tuning_steps": 0}
CASES = [
    *((target, {"bits": 8}) for target in ("arm-v8.0", "arm")),
    *((target, {"bits": 4, "readings": "4"}) for target in ("arm-v8.0", "arm-i8mm")),
    ("arm", {"bits": 4}),
    ("arm-v8.0", {"bits": "f32"}),
    ("arm", BUDGET),
]
PROMPT = [1, 5, 9, 300, 77, 42]


def greedy(artifact: Path, count: int = 24) -> list[int]:
    with morendo.load(artifact) as session:
        return list(session.generate(PROMPT, max_tokens=count, ignore_eos=True))


@needs_emulator
@pytest.mark.parametrize(
    ("target", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(x)
)
def test_the_same_greedy_tokens(
    target: str, options: dict, compile_tiny: Callable[..., Path], monkeypatch
) -> None:
    monkeypatch.setenv("QEMU_CPU", CPUS[target])
    assert greedy(compile_tiny(target=target, **options)) == greedy(compile_tiny(**options))


@pytest.fixture
def artifact(compile_tiny: Callable[..., Path]) -> Path:
    return compile_tiny(bits=4, target="arm")


@needs_emulator
def test_a_session_is_like_any_other(artifact: Path, compile_tiny: Callable[..., Path]) -> None:
    with morendo.load(artifact, threads=2) as far, morendo.load(compile_tiny(bits=4)) as near:
        assert (far.vocabulary, far.context) == (near.vocabulary, near.context)
        for level in (0, 4):
            far.set_level(level)
            near.set_level(level)
            got, want = far.logits(PROMPT), near.logits(PROMPT)
            assert got.shape == want.shape
            np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())
        assert far.executor.position == len(PROMPT)
        assert far.executor.levels == near.executor.levels
        cache = max(row_caches(near.plan))
        got, want = (session.executor.cache_means(cache, 4) for session in (far, near))
        np.testing.assert_allclose(got, want, atol=1e-2 * np.abs(want).max())
        with pytest.raises(InputError, match="tensor 0 is no cache of one row for each token"):
            far.executor.cache_means(0, 4)
        with pytest.raises(InputError, match="precision level out of range .got 5"):
            far.set_level(5)
        with pytest.raises(InputError, match="is not in the vocabulary .got id 9999"):
            far.logits([9999])
    with pytest.raises(InputError, match="this session is closed"):
        far.logits(PROMPT)


@needs_emulator
def test_ctrl_c_ends_the_call_and_not_the_session(artifact: Path, monkeypatch) -> None:
    monkeypatch.setenv("QEMU_CPU", CPUS["arm"])
    long = [id % 90 + 5 for id in range(120)]
    with morendo.load(artifact, threads=1) as session:
        want = session.logits(PROMPT)
        for delay in (0.001, 0.01, 0.02, 0.05):
            session.executor.set_position(0)  # the signal may come before the next line that does
            with pytest.raises(KeyboardInterrupt):
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
                for _ in range(1000):
                    session.executor.set_position(0)
                    session.executor.prefill(long)
            assert session.executor.position in (0, len(long))
            session.executor.set_position(0)
            np.testing.assert_array_equal(session.logits(PROMPT), want)


@needs_emulator
def test_the_second_ctrl_c_ends_the_model(artifact: Path, monkeypatch) -> None:
    monkeypatch.setenv("QEMU_CPU", CPUS["arm"])
    with morendo.load(artifact, threads=1) as session:
        executor = cast(EmulatedExecutor, session.executor)
        monkeypatch.setattr(executor, "cancel", lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            for _ in range(1000):
                executor.prefill([5] * 60)
                executor.set_position(0)
        monkeypatch.undo()
        with pytest.raises(morendo.MorendoError, match="the emulated model ended"):
            executor.decode(5)


@needs_emulator
def test_a_cpu_without_the_instructions_is_named(artifact: Path, monkeypatch) -> None:
    monkeypatch.setenv("QEMU_CPU", "cortex-a53")
    with pytest.raises(ArtifactError, match="needs a CPU with asimddp, which this one has not"):
        morendo.load(artifact)


@needs_emulator
def test_run_says_who_runs_it(artifact: Path, capsys) -> None:
    assert main(["run", str(artifact), "Once", "--max-tokens", "3"]) == 0
    assert (
        "the artifact is for aarch64, qemu-aarch64 runs it here, slowly" in capsys.readouterr().err
    )


def test_the_reference_executor_needs_this_machine(artifact: Path, monkeypatch) -> None:
    monkeypatch.setattr("morendo.runtime.emulated.shutil.which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(InputError, match="the reference executor needs an artifact for this kind"):
        Session(artifact, executor="python")


def test_without_an_emulator_one_line_says_what_to_install(artifact: Path, monkeypatch) -> None:
    monkeypatch.setattr("morendo.runtime.emulated.shutil.which", lambda name: None)
    with pytest.raises(ArtifactError, match="qemu-aarch64, which could run it here, is not inst"):
        morendo.load(artifact)


def test_an_artifact_without_an_executable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no executable for qemu-aarch64 to run"):
        EmulatedExecutor(tmp_path, "/usr/bin/qemu-aarch64")


def test_a_model_that_ends_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(morendo.MorendoError, match="the emulated model ended .exit status 1"):
        EmulatedExecutor(tmp_path, "/bin/false")


@needs_emulator
def test_the_executable_says_the_same(artifact: Path, compile_tiny: Callable[..., Path]) -> None:
    with morendo.load(compile_tiny(bits=4)) as session:
        wanted = "".join(session.stream("Once upon a time", max_tokens=16))
    command = ["qemu-aarch64", "-cpu", "cortex-a76", artifact / "run", "Once upon a time"]
    done = subprocess.run([*command, "--max-tokens", "16"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == wanted + "\n"


@needs_emulator
def test_a_cpu_that_lacks_instructions_is_named(artifact: Path) -> None:
    command = ["qemu-aarch64", "-cpu", "cortex-a53", artifact / "run", "Once"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"needs a CPU with asimddp" in done.stderr and done.stderr.count(b"\n") == 1
