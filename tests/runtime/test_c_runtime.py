"""The C runtime by itself: warnings, sanitizers, stress, damaged plans, other machines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from morendo.codegen.link import RUNTIME_SOURCES, _environment, link_model
from morendo.ir.errors import CompileError

HERE = Path(__file__).resolve().parent
ZIG = [sys.executable, "-m", "ziglang", "cc"]
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{RUNTIME_SOURCES}"]


def build(compiler: list[str], main: str, out: Path, *flags: str) -> Path:
    sources = [str(HERE / main), *map(str, sorted(RUNTIME_SOURCES.glob("*.c")))]
    command = [*compiler, *WARNINGS, *flags, *sources, "-lpthread", "-o", str(out)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def check_output(command: list[str | Path], **options) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def system_compiler() -> list[str]:
    """A compiler that has its sanitizers ready; zig builds them for minutes or lacks them."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no gcc or clang here")
    return [compiler]


@pytest.fixture
def plan_file(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(toy.toy_plan().to_json())
    return path


@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_pool_under_stress(tmp_path, threads):
    program = build(ZIG, "stress_pool.c", tmp_path / "stress", "-O2")
    assert check_output([program, threads]) == "ok\n"


def test_pool_on_one_cpu(tmp_path):
    program = build(ZIG, "stress_pool.c", tmp_path / "stress", "-O2")
    cpu = min(os.sched_getaffinity(0))
    output = check_output([program, "2"], preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))
    assert output == "ok\n"


def test_pool_has_no_data_races(tmp_path):
    flags = ["-O1", "-g", "-fsanitize=thread"]
    program = build(system_compiler(), "stress_pool.c", tmp_path / "stress", *flags)
    assert check_output([program, "4"]) == "ok\n"


def test_pool_with_address_sanitizer(tmp_path):
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = build(system_compiler(), "stress_pool.c", tmp_path / "stress", *flags)
    assert check_output([program, "3"]) == "ok\n"


def test_damaged_plans_with_address_sanitizer(tmp_path, plan_file):
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = build(system_compiler(), "fuzz_plan.c", tmp_path / "fuzz", *flags)
    assert check_output([program, plan_file]).startswith("ok")


@pytest.mark.parametrize("target", ["aarch64-linux-musl", "hexagon-linux-musl"])
def test_other_machines_compile_it(tmp_path, target):
    sources = [HERE / "toy_kernels.c", *sorted(RUNTIME_SOURCES.glob("*.c"))]
    for source in sources:
        command = [*ZIG, "-target", target, *WARNINGS, "-O2", "-c", str(source), "-o", "out.o"]
        check_output(command, cwd=tmp_path, env=_environment())


def test_link_errors_are_one_line(tmp_path):
    with pytest.raises(CompileError, match="linking failed: .*__tvm_ffi_lost.*") as caught:
        link_model([], ["lost"], tmp_path / "model.so", toy.TOOLCHAIN)
    assert "\n" not in str(caught.value)


def test_only_our_symbols_are_visible(toy_library):
    if not shutil.which("nm"):
        pytest.skip("no nm here")
    lines = check_output(["nm", "-D", "--defined-only", toy_library]).splitlines()
    names = {line.split()[-1] for line in lines}
    assert names >= {"mr_open", "mr_decode", "__tvm_ffi_mix"}
    assert all(name.startswith(("mr_", "__tvm_ffi_")) for name in names)


@pytest.mark.parametrize("home", ["writable", "missing"])
def test_compiler_cache_is_writable(tmp_path, monkeypatch, home):
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path) if home == "writable" else "/proc/nobody")
    cache = Path(_environment()["ZIG_GLOBAL_CACHE_DIR"])
    assert cache.is_relative_to(tmp_path) == (home == "writable")
