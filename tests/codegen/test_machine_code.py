"""Kernels become machine code on several threads: the same bytes, and errors name their kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from tvm import tirx

from morendo.codegen.cpu.kernels.quantize_activation import quantize_activation
from morendo.codegen.cpu.machine_code import compile_kernels
from morendo.ir.errors import CompileError
from morendo.targets import find_target


@pytest.fixture
def kernels() -> dict[str, tirx.PrimFunc]:
    isa = find_target("x86").isa
    return {
        f"k{size}": quantize_activation(isa, max_tokens=4, features=size, group_size=32)
        for size in (32, 64, 96, 128, 160, 192)
    }


@pytest.mark.parametrize("cpus", [1, 8])
def test_threads_change_no_byte(kernels, cpus: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cpus)))
    llvm, steps, codes = find_target("x86").llvm, [], []
    for turn, chosen in enumerate((kernels, *({name: f} for name, f in kernels.items()))):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{turn}"))
        listings: dict[str, str] = {}
        paths = compile_kernels(chosen, llvm, tmp_path, lambda: steps.append(1), listings)
        assert [path.stem for path in paths] == list(chosen) == list(listings)
        codes += [path.read_bytes() for path in paths]
    assert codes[: len(kernels)] == codes[len(kernels) :]
    assert len(steps) == 2 * len(kernels)


def test_the_first_kernel_that_fails_is_named(kernels, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def refuse(module, target):
        raise RuntimeError(f"no code\n{module.get_global_vars()[0].name_hint} is refused")

    monkeypatch.setattr("tvm.tirx.build", refuse)
    with pytest.raises(
        CompileError, match=r"code generation failed .k32 is refused. at kernel k32"
    ):
        compile_kernels(kernels, find_target("x86").llvm, tmp_path)
