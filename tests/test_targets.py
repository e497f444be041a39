"""What every target promises, whichever it is."""

from __future__ import annotations

import dataclasses
import platform
import re
import shutil
from pathlib import Path
from typing import cast

import pytest

import morendo
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear
from morendo.codegen.cpu.machine_code import compile_kernels
from morendo.codegen.cpu.pipeline import Pipeline
from morendo.codegen.cpu.target import CPUTarget
from morendo.codegen.lowering import Options, Program
from morendo.ir.errors import CompileError, InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.layout import TileLayout
from morendo.targets import find_target, known_targets

TARGETS = Path(__file__).parent.parent / "targets"
NAMES = [target.name for target in known_targets()]


@pytest.mark.parametrize("name", NAMES)
def test_target_is_complete(name: str) -> None:
    target = find_target(name)
    assert target.name == name
    assert target.device.machine and target.toolkit
    assert target.device.cpu_flags or target.device.needs, "what an artifact asks of a machine"
    assert re.fullmatch(r"(qemu-\w+)?", target.device.emulator)
    if isinstance(target, CPUTarget):
        assert target.llvm.kind.name == "llvm"
        flags, check = target.device.cpu_flags, target.toolchain.cpu_check
        assert not flags or (check and all(f'"{flag}"' in check.read_text() for flag in flags))


def test_native_is_a_target_of_this_machine() -> None:
    assert find_target("native").device.machine == platform.machine()


def test_an_unknown_machine_has_no_native_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(CompileError, match=r"no target is for this kind of machine \(got vax\)"):
        find_target("native")


@pytest.mark.parametrize("layout", [TileLayout(row_tile=4), TileLayout(key_tile=4)])
def test_a_vector_unit_that_kernels_cannot_use_is_refused(layout: TileLayout) -> None:
    with pytest.raises(
        CompileError, match=r"cannot use vector unit avx2 \(got 8 lanes, need a div"
    ):
        dataclasses.replace(find_target("x86-64-v3"), layout=layout)
    with pytest.raises(CompileError, match=r"got 32 lanes, need a divisor of the 16"):
        target = find_target("x86-64-v4")
        dataclasses.replace(target, isa=dataclasses.replace(target.isa, lanes=32))


def test_a_bad_layout_is_refused() -> None:
    with pytest.raises(InputError, match=r"row_tile is no power of two from 4 to 128 \(got 24\)"):
        TileLayout(row_tile=24)
    with pytest.raises(InputError, match="alignment_bytes is no power of two from 64"):
        TileLayout(alignment_bytes=16)


def test_a_target_is_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder under another name, with names of its own, is found and builds kernels."""
    shutil.copytree(TARGETS / "arm", tmp_path / "toy")
    source = (tmp_path / "toy" / "target.py").read_text(encoding="utf-8")
    source = source.replace('"arm', '"toy')
    (tmp_path / "toy" / "target.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(morendo.targets, "__path__", [*morendo.targets.__path__, str(tmp_path)])
    assert {"toy", "toy-v8.0"} <= {target.name for target in known_targets()}
    target = find_target("toy")
    assert isinstance(target, CPUTarget)
    spec = LinearSpec(48, 64, WeightFormat("q4", 32), max_tokens=1)
    kernel = build_quantized_linear(spec, target.isa)
    name = str(kernel.attrs["global_symbol"])
    (built,) = compile_kernels({name: kernel}, target.llvm, tmp_path)
    assert built.stat().st_size


def test_a_target_may_have_kernels_and_lowerings_of_its_own() -> None:
    def own(isa, *, width):
        return f"{width} wide"

    def shared(isa, *, width):
        raise AssertionError("replaced")

    target = dataclasses.replace(find_target("x86-64-v3"), builders={shared: own})
    assert Program(target, Options(8, 64, False)).build(shared, width=3) == "3 wide"


def test_a_target_may_change_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Reluctant(CPUTarget):
        def recipe(self, passes):
            raise InputError(f"asked about {passes[0].name}")

    target = find_target("x86-64-v3")
    fields = {f.name: getattr(target, f.name) for f in dataclasses.fields(target)}
    monkeypatch.setattr("morendo.compiler.find_target", lambda name: Reluctant(**fields))
    with pytest.raises(InputError, match="asked about normalize"):
        morendo.compile(tmp_path, out=tmp_path / "out")


def test_every_package_has_a_readme() -> None:
    for package in TARGETS.iterdir():
        if (package / "target.py").exists():
            assert (package / "README.md").read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_kernels_carry_the_vector_unit_in_their_names(name: str) -> None:
    target = find_target(name)
    fmt = WeightFormat("q4", 32, row_tile=target.layout.row_tile)
    spec = LinearSpec(64, 64, fmt, max_tokens=1)
    program = Program(target, Options(chunk=8, context=64, half_cache=True))
    function = program.build(build_quantized_linear, spec=spec)
    assert str(function.attrs["global_symbol"]).endswith(target.isa.name)


def test_the_pipeline_of_a_target_has_the_depths_that_its_name_says() -> None:
    target = cast(CPUTarget, find_target("x86-64-v4:fetch=0,unpack=32"))
    assert target.isa.pipeline == Pipeline(fetch=0, unpack=32)
    assert find_target(target.name) == target
    kernels = []
    for tokens in (1, 64):
        spec = LinearSpec(64, 64, WeightFormat("q4", 32, nibbles=True), max_tokens=tokens)
        kernels.append(build_quantized_linear(spec, target.isa).script())
    assert "prefetch" not in kernels[0]
    assert '"morendo.pipeline": {"fetch": 0, "multiply": 64, "unpack": 32}' in kernels[1]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("x86-64-v4:fetch=63", r"fetch must be a multiple of 64 from 0 to 65536 \(got 63\)"),
        ("x86-64-v4:unpack=8", r"unpack must be a multiple of 16 from 0 to 65536 \(got 8\)"),
        ("x86-64-v4:copy=1", r"no such stage \(got 'copy=1', it has fetch, unpack\)"),
        ("x86-64-v4:fetch=-1", r"fetch must be a multiple of 64 .* \(got -1\)"),
        ("hexagon:v67:copy=5", r"the pipeline's copy must be 0 to 4 \(got 5\)"),
        ("hexagon:v67:copy=x", r"the pipeline's copy must be 0 to 4 \(got x\)"),
        ("hexagon:v67:copy=1,copy=2", r"a stage of .* has one depth \(got 'copy=1,copy=2'\)"),
        ("cuda:fetch=1", r"no depth of its kernels' pipeline can be chosen .* at target cuda"),
    ],
)
def test_depths_that_no_pipeline_has_are_refused(name: str, match: str) -> None:
    with pytest.raises((InputError, CompileError), match=match):
        find_target(name)


def test_unknown_targets_are_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"unknown target \(got 'toaster'\); known targets: native, arm"
    ):
        find_target("toaster")
