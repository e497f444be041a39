"""The target: what is refused, how images are chosen, and what the compiler made of the kernels."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from morendo.codegen.build_cache import BuildCache
from morendo.codegen.cpu.kernels.attention_tile import Scores
from morendo.codegen.cpu.kernels.kv_cache import KVCache
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.errors import CompileError, InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.layout import TileLayout
from morendo.targets import find_target
from morendo.targets.cuda import device_code, nvrtc, report
from morendo.targets.cuda import target as cuda
from morendo.targets.cuda.artifact import write_tables
from morendo.targets.cuda.device_code import Halves, Launch, machine_code, split_kernel
from morendo.targets.cuda.intrinsics import INTRINSICS
from morendo.targets.cuda.kernels.attention import cached_attention
from morendo.targets.cuda.kernels.quantized_linear import build_quantized_linear
from morendo.targets.cuda.nvrtc import Image, compile_source

ISA = cuda.GPU("cuda", "sm_80")
HOST = cuda.HOSTS["x86_64"].llvm


@pytest.fixture
def compiler() -> None:
    try:
        nvrtc.find_compiler()
    except CompileError as error:
        pytest.skip(str(error))


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown target \(got 'cuda:sm_70'\); .*cuda:sm_80"):
        find_target("cuda:sm_70")


def test_tiles_of_another_size_are_refused() -> None:
    with pytest.raises(CompileError, match=r"have tiles of 16 rows \(got 32\) at target cuda"):
        replace(find_target("cuda"), layout=TileLayout(row_tile=32, key_tile=32))


def test_a_machine_without_nvidia_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(CompileError, match=r"no GPU is driven from this .* \(got riscv64, need"):
        find_target("cuda")


def test_without_the_compiler_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_package_folder", lambda: None)
    nvrtc.find_compiler.cache_clear()
    with pytest.raises(CompileError, match=r"not installed at .*; pip install morendo\[cuda\]"):
        find_target("cuda").prepared()


def test_a_compiler_that_cannot_be_loaded(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "cuda_nvrtc" / "lib").mkdir(parents=True)
    (tmp_path / "cuda_nvrtc" / "lib" / "libnvrtc.so.12").write_bytes(b"nothing")
    monkeypatch.setattr(nvrtc, "_package_folder", lambda: tmp_path)
    nvrtc.find_compiler.cache_clear()
    with pytest.raises(CompileError, match=r"cannot be loaded .*force-reinstall morendo\[cuda\]"):
        nvrtc.find_compiler()


def test_a_kernel_that_does_not_compile_is_said(compiler: None) -> None:
    with pytest.raises(CompileError, match='identifier "nobody" is undefined.*architecture sm_80'):
        compile_source('extern "C" __global__ void k(int* x) { *x = nobody; }', "sm_80")


def test_a_kernel_that_cannot_be_split_is_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_code, "_split", lambda *_: 1 / 0)
    spec = LinearSpec(16, 32, WeightFormat("q8", 32), 1)
    with pytest.raises(CompileError, match=r"division by zero\) at kernel qlinear_f32_i8_q8g32_16"):
        split_kernel(build_quantized_linear(spec, ISA), "sm_80", HOST, BuildCache(tmp_path))


def test_translations_are_kept(compiler: None, monkeypatch, tmp_path: Path) -> None:
    function = build_quantized_linear(LinearSpec(16, 32, WeightFormat("q8", 32), 1), ISA)
    first = split_kernel(function, "sm_80", HOST, BuildCache(tmp_path))
    image = machine_code(first.source, "sm_80", BuildCache(tmp_path))
    monkeypatch.setattr(device_code, "_split", None)
    monkeypatch.setattr(device_code, "compile_source", None)
    assert split_kernel(function, "sm_80", HOST, BuildCache(tmp_path)) == first
    assert machine_code(first.source, "sm_80", BuildCache(tmp_path)) == image


def test_columns_are_told_by_architecture_where_they_differ(monkeypatch) -> None:
    spills = "8 bytes stack frame, {0} bytes spill stores, {0} bytes spill loads"
    used = "Used {} registers, used 1 barriers, 256 bytes smem"
    logs = {"sm_80": (0, 40), "sm_90": (4, 40)}
    images = {
        arch: Image(b"", b"", f"{spills.format(bytes_)}\n{used.format(count)}")
        for arch, (bytes_, count) in logs.items()
    }
    own = {"registers": 40, "shared bytes": 256, "spilled bytes": "sm_80 0, sm_90 8"}
    monkeypatch.setattr(report, "find_disassembler", lambda: None)
    function = build_quantized_linear(LinearSpec(16, 32, WeightFormat("q8", 32), 1), ISA)
    code = report.device_code(function, images)
    assert (code.own, code.grid, code.threads, code.ahead) == (own, (1, 1), 32, 1)


@pytest.mark.parametrize("fmt", ["q4g32c", "q4g64", "q8g32", "q6g32"])
def test_decode_kernels_keep_all_in_registers(compiler: None, fmt: str) -> None:
    spec = LinearSpec(4096, 4096, WeightFormat.parse(fmt), 1, residual=True)
    halves = split_kernel(build_quantized_linear(spec, ISA), "sm_80", HOST, BuildCache())
    for arch in ("sm_80", "sm_86", "sm_89", "sm_90"):
        image = machine_code(halves.source, arch, BuildCache())
        assert image.spilled_bytes == 0
        assert image.registers <= 72  # 896 threads of a multiprocessor
        assert b".target sm_80" in image.ptx or arch != "sm_80"
    assert image.ptx.count(b"ld.global.nc.L1::no_allocate.v4.u32") >= 2


def test_blocks_that_share_keys(compiler: None) -> None:
    """Of a token with a long context: two launches, none of which spills, and as many blocks as
    a GPU has room for.
    """
    cache = KVCache(4, 64, 4096, "float16")
    function = cached_attention(ISA, max_tokens=1, heads=32, cache=cache, scores=Scores(0.125))
    halves = split_kernel(function, "sm_80", HOST, BuildCache())
    assert len(halves.launches) == 2
    assert report.launch_sizes(function) == ((32, 8), 256)
    image = machine_code(halves.source, "sm_80", BuildCache())
    assert image.spilled_bytes == 0 and image.registers <= 128  # two blocks of a multiprocessor


def test_intrinsics_are_complete() -> None:
    for name, intrinsic in INTRINSICS.items():
        assert name in intrinsic.signature and intrinsic.device and intrinsic.meaning


def test_the_tables_of_an_artifact(tmp_path: Path) -> None:
    """As C: functions with their parameters, code of each architecture, PTX of the first."""
    halves = Halves(b"", "", (Launch("k_kernel", "pi", "xX"), Launch("k_kernel_1", "f", "xyX")))
    images = {"sm_80": Image(b"\x7fELF1", b"ptx80", ""), "sm_90": Image(b"\x7fELF2", b"ptx90", "")}
    path = write_tables([halves], [images], tmp_path)
    text = path.read_text()
    assert '{"k_kernel_1", "f", "xyX", 0},' in text
    rows = re.findall(r"\{(\d+), (\d+), (\d), device_image_(\d)\}", text)
    assert rows == [("0", "80", "0", "0"), ("0", "90", "0", "1"), ("0", "80", "1", "2")]
    assert (tmp_path / "device_image_2.bin").read_bytes() == b"ptx80\0"
    own = write_tables([halves], [{"sm_90a": images["sm_90"]}], tmp_path).read_text()
    assert re.findall(r"\{(\d+), (\d+), (\d), device_image_", own) == [("0", "90", "0")], "no PTX"
    if shutil.which("gcc"):
        command = [
            "gcc",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-c",
            str(path),
            "-o",
            str(tmp_path / "t.o"),
        ]
        subprocess.run(command, check=True)
