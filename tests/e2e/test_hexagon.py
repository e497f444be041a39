"""Artifacts for Hexagon: what is refused, and by whom. That they compute what others do is the
contract of all targets (test_tiny.py).
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from morendo.codegen.lowering import Options, Program
from morendo.ir.errors import ArtifactError, CompileError, InputError
from morendo.ir.plan import Plan
from morendo.runtime.emulated import EmulatedExecutor, check_cpu
from morendo.targets import find_target
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
