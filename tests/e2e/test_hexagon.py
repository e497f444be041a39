"""Artifacts for Hexagon: what is refused, and by whom. That they compute what others do is the
contract of all targets (test_tiny.py).
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import morendo
from morendo.codegen.cpu.kernels.norms import rms_norm_quantize
from morendo.codegen.cpu.machine_code import compile_kernels
from morendo.codegen.lowering import Options, Program
from morendo.ir.errors import ArtifactError, CompileError, InputError
from morendo.ir.plan import Plan
from morendo.runtime.emulated import EmulatedExecutor, check_cpu
from morendo.targets import find_target
from morendo.targets.hexagon.isa import HVX
from morendo.targets.hexagon.target import make
from tests.runtime.toy import toy_plan

EMULATOR = shutil.which("qemu-hexagon")
needs_emulator = pytest.mark.skipif(
    EMULATOR is None, reason="the system package qemu-user is not installed"
)


def test_an_unsupported_version_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"got 'hexagon:v60'.*; known .* hexagon:v67, hexagon:v68"):
        find_target("hexagon:v60")


@pytest.mark.parametrize("space", ["weights_bytes", "cache_bytes"])
def test_a_model_beyond_32_bit_addresses_is_refused(space: str, tmp_path: Path) -> None:
    target = find_target("hexagon:v67")
    plan: Plan = dataclasses.replace(toy_plan(), **{space: 1 << 32})
    with pytest.raises(CompileError, match=r"does not fit 32-bit addresses \(got 4.3 GB of"):
        target.build(Program(target, Options(8, 32, False)), plan, None, tmp_path, None)  # type: ignore[arg-type]


@needs_emulator
def test_an_artifact_newer_than_the_emulator_is_refused(tmp_path: Path) -> None:
    assert EMULATOR
    check_cpu(EMULATOR, "v67")
    (tmp_path / "run").write_text("")
    with pytest.raises(
        ArtifactError, match=r"qemu-hexagon does not know the CPU to play .got v99.*newer"
    ):
        EmulatedExecutor(tmp_path, EMULATOR, cpu="v99")


@pytest.mark.parametrize("version", ["v67", "v68", "v69", "v73"])
def test_no_version_uses_floats_of_the_vector_unit(version: str, tmp_path: Path) -> None:
    """They are not IEEE's, and no emulator here would show what they do."""
    target = make(f"hexagon:{version}")
    kernel = rms_norm_quantize(HVX, max_tokens=1, features=64, group_size=32, eps=1e-5)
    listings: dict[str, str] = {}
    kernels = {"norm": target.machine_form(kernel)}
    compile_kernels(kernels, target.llvm, tmp_path, listings=listings)
    assert "vmem" in listings["norm"]
    assert not re.search(r"\bv\d+(:\d+)?\.(qf|sf|hf)", listings["norm"])
    library = r"call (__hexagon_\w*[sd]f|\w*(sqrt|exp|rint|nearbyint))"
    assert not re.search(library, listings["norm"])


@needs_emulator
@pytest.mark.slow
def test_64_greedy_tokens_of_a_trained_model_are_this_machines(
    compile_tiny: Callable[..., Path],
) -> None:
    """By a prompt without a near tie: its smallest margin of logits is 0.008 here."""
    said = []
    for target in ("hexagon:v67", "native"):
        with morendo.load(compile_tiny(target=target, bits=4, cache_bits=8)) as session:
            prompt = session.encode("import os")
            said.append(
                list(session.generate(prompt, max_tokens=64, temperature=0, ignore_eos=True))
            )
    assert len(said[0]) == 64
    assert said[0] == said[1]


@needs_emulator
@pytest.mark.slow
def test_a_model_whose_tiles_are_copied_computes_the_same(
    compile_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMU_CPU", "v67")
    logits = []
    for stages in ("", ":fetch=0,copy=2"):
        artifact = compile_tiny(target=f"hexagon:v67{stages}", bits=4, cache_bits=8)
        with closing(EmulatedExecutor(artifact, EMULATOR or "", 1)) as executor:
            executor.prefill([5, 6, 7])
            logits.append(executor.decode(8))
    np.testing.assert_array_equal(*logits)
