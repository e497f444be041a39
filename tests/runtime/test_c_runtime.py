"""The C runtime by itself: warnings, sanitizers, stress, damaged plans, other machines."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import toy

from morendo.codegen.link import HOST_DEVICE, RUNTIME_SOURCES, _environment, link_model
from morendo.codegen.model_tables import ModelTables
from morendo.ir.errors import CompileError
from morendo.runtime.artifact import SCHEDULE
from morendo.runtime.schedule import Entropy, Fall, Layer, Learned, describe_schedules, entropy
from morendo.targets.host import cpu_flags

HERE = Path(__file__).resolve().parent
ZIG = [sys.executable, "-m", "ziglang", "cc"]
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{RUNTIME_SOURCES}"]


def build(compiler: list[str], main: str, out: Path, *flags: str) -> Path:
    """Link a test with the runtime; `flags` may name further sources."""
    runtime = [*sorted(RUNTIME_SOURCES.glob("*.c")), HOST_DEVICE]
    sources = [str(HERE / main), *map(str, runtime)]
    command = [*compiler, *WARNINGS, *flags, *sources, "-lm", "-lpthread", "-o", str(out)]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def check_output(command: list[str | Path], **options) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def sanitizing_compiler(flags: str) -> str:
    """The first of gcc and clang that links and runs a program with `flags`; "" if none does."""
    program = "int main(void) { return 0; }"
    for name in ("gcc", "clang"):
        with tempfile.TemporaryDirectory() as folder:
            command = [name, *flags.split(), "-x", "c", "-", "-o", f"{folder}/a"]
            try:
                subprocess.run(command, input=program, text=True, capture_output=True, check=True)
                subprocess.run([f"{folder}/a"], capture_output=True, check=True)
            except (OSError, subprocess.CalledProcessError):
                continue
            return name
    return ""


def build_sanitized(main: str, out: Path, flags: str, *sources: Path) -> Path:
    """Zig would build the sanitizers' libraries for minutes, or lacks them."""
    compiler = sanitizing_compiler(flags)
    if not compiler:
        pytest.skip(f"neither gcc nor clang has {flags} here")
    return build([compiler], main, out, "-O1", "-g", *flags.split(), *map(str, sources))


MEMORY = "-fsanitize=address,undefined -fno-sanitize-recover=all"


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
    program = build_sanitized("stress_pool.c", tmp_path / "stress", "-fsanitize=thread")
    assert check_output([program, "4"]) == "ok\n"


def test_pool_with_address_sanitizer(tmp_path):
    program = build_sanitized("stress_pool.c", tmp_path / "stress", MEMORY)
    assert check_output([program, "3"]) == "ok\n"


def test_damaged_plans_with_address_sanitizer(tmp_path, plan_file):
    plan = json.loads(plan_file.read_text())
    plan["arena_bytes"] = 64
    # 2^61 bytes each: in 64 bits the number of bits, and the sum of the sizes, are 0
    plan["tensors"][2:3] = [["arena", 0, "float32", [1 << 30, 1 << 29]]] * 2
    (tmp_path / "overflow.json").write_text(json.dumps(plan))
    program = build_sanitized("fuzz_plan.c", tmp_path / "fuzz", MEMORY)
    output = check_output([program, plan_file, tmp_path / "overflow.json"])
    assert output.startswith("ok") and "the plan is damaged: bad tensor 2" in output
    staged = json.loads(toy.staged_plan().to_json())
    for pruned, said in (
        ([5001], "the plan is damaged: bad pruning 0"),
        ([1] * 9, "the plan is damaged: no list of prunings 0"),
        ([], "the plan is damaged: bad tensor 2"),  # of a stage that there is not
    ):
        (tmp_path / "staged.json").write_text(json.dumps(staged))
        (tmp_path / "wrong.json").write_text(json.dumps({**staged, "pruned": pruned}))
        output = check_output([program, tmp_path / "staged.json", tmp_path / "wrong.json"])
        assert output.startswith("ok") and said in output


def toy_sources(folder: Path) -> tuple[Path, Path]:
    tables = folder / "tables.c"
    tables.write_text(toy.toy_tables().c_source())
    return tables, HERE / "toy_kernels.c"


@pytest.mark.parametrize("main", ["stress_session.c", "stress_sessions.c"])
@pytest.mark.parametrize("flags", [MEMORY, "-fsanitize=thread"])
def test_sessions_in_many_threads(tmp_path, toy_artifact, main, flags):
    program = build_sanitized(main, tmp_path / "stress", flags, *toy_sources(tmp_path))
    # The thread sanitizer ends a fork that has threads; the address sanitizer leaves its own
    # allocator locked in one that begins while threads allocate.
    forks = "0" if "thread" in flags or main == "stress_sessions.c" else "1"
    assert check_output([program, toy_artifact, forks]) == "ok\n"


def test_forks_amid_sessions_that_open_and_close(tmp_path, toy_artifact):
    sources = map(str, toy_sources(tmp_path))
    program = build(ZIG, "stress_sessions.c", tmp_path / "stress", "-O2", *sources)
    assert check_output([program, toy_artifact, "30"]) == "ok\n"


def test_damaged_schedules_with_address_sanitizer(tmp_path, toy_artifact):
    (tmp_path / "tables.c").write_text(toy.toy_tables().c_source())
    falls = [Fall(((1, 1), (3, 2))), Fall(), Fall(((2, 2),))]
    layers = (Layer(((3, -5, 7, 11, 2),) * 4, (1, 2, 3, 4)), Layer(((5, 1, -3, 2),) * 3, (0, 0, 1)))
    schedules = {
        "static": falls[0],
        "entropy": Entropy(falls[2], 1500),
        "learned": Learned(3, 4, layers, tuple(falls)),
    }
    text = json.dumps(describe_schedules(schedules, toy.LEVELS, {}))
    (tmp_path / SCHEDULE).write_text(text)
    sources = tmp_path / "tables.c", HERE / "toy_kernels.c"
    program = build_sanitized("fuzz_schedule.c", tmp_path / "fuzz", MEMORY, *sources)
    assert check_output([program, toy_artifact, tmp_path]).startswith("ok, ")


@pytest.mark.parametrize("needed", ["", "avx2"])
def test_entropy_is_what_python_computes(tmp_path, needed):
    if needed and needed not in cpu_flags():
        pytest.skip(f"this CPU has no {needed}")
    define = [f'-DVECTORS=__attribute__((target("{needed}")))'] if needed else []
    program = build_sanitized("print_entropy.c", tmp_path / "entropy", MEMORY, *define)
    rng = np.random.default_rng(0)
    for count in (1, 2, 15, 16, 17, 1023, 1024, 1025, 5000):
        for scale in (0, 0.1, 3, 40):
            logits = (rng.normal(7, 1, count) * scale).astype(np.float32)
            done = subprocess.run(
                [program], input=logits.tobytes(), capture_output=True, check=True
            )
            assert float(done.stdout) == pytest.approx(entropy(logits), abs=2e-6)


V2, V1 = "0::{}\n", "5:memory:/m\n4:cpu,cpuacct:{}\n1:name=systemd:/s\n0::/\n"
BASE = "sys/fs/cgroup/"
QUOTAS = [
    ("", {}, 8),
    (V2.format("/"), {}, 8),
    (V2.format("/"), {"cpu.max": "max 100000"}, 8),
    (V2.format("/"), {"cpu.max": "50000 100000"}, 1),
    (V2.format("/"), {"cpu.max": "390000 100000"}, 3),
    (V2.format("/"), {"cpu.max": "1600000 100000"}, 8),
    (V2.format("/a/b"), {"a/b/cpu.max": "500000 100000", "a/cpu.max": "200000 100000"}, 2),
    (V2.format("/a/b"), {"a/b/cpu.max": "max 100000", "cpu.max": "400000 100000"}, 4),
    (V2.format("/lost/b"), {"cpu.max": "300000 100000"}, 3),
    (V2.format("/../x"), {"cpu.max": "300000 100000"}, 3),
    (V2.format("/"), {"unified/cpu.max": "300000 100000"}, 3),
    (V2.format("/"), {"cpu.max": "many"}, 8),
    (V2.format("/"), {"cpu.max": "0 0"}, 8),
    (V2.format("/"), {"cpu.max": "-5 100000"}, 8),
    (V2.format("/"), {"cpu.max": "99999999999999999999 1"}, 8),
    (V1.format("/"), {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    (V1.format("/d"), {"cpu/d/cpu.cfs_quota_us": "250000", "cpu/d/cpu.cfs_period_us": "100000"}, 2),
    (
        V1.format("/docker/seen-from-outside"),
        {
            "cpu,cpuacct/cpu.cfs_quota_us": "600000",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        6,
    ),
    ("no colon\n4:cpu\n" + V2.format("/" + "a" * 4000), {"cpu.max": "100000 100000"}, 1),
    (V2.format("/" + "a" * 5000), {"cpu.max": "100000 100000"}, 8),
]


def test_quotas_of_control_groups(tmp_path):
    program = build(ZIG, "count_cpus.c", tmp_path / "count", "-O2")
    for number, (groups, files, want) in enumerate(QUOTAS):
        root = tmp_path / str(number)
        (root / "proc" / "self").mkdir(parents=True)
        (root / "proc" / "self" / "cgroup").write_text(groups)
        for name, text in files.items():
            path = root / BASE / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        assert check_output([program, root, "8"]) == f"{want}\n", (groups, files)


@pytest.mark.parametrize("target", ["aarch64-linux-musl", "hexagon-linux-musl"])
def test_other_machines_compile_it(tmp_path, target):
    sources = [HERE / "toy_kernels.c", *sorted(RUNTIME_SOURCES.glob("*.c")), HOST_DEVICE]
    for source in sources:
        command = [*ZIG, "-target", target, *WARNINGS, "-O2", "-c", str(source), "-o", "out.o"]
        check_output(command, cwd=tmp_path, env=_environment())


def test_link_errors_are_one_line(tmp_path):
    with pytest.raises(CompileError, match="linking failed: .*__tvm_ffi_lost.*") as caught:
        link_model([], ModelTables(["lost"]), tmp_path / "model.so", toy.TOOLCHAIN)
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
