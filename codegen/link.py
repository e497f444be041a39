"""Link kernels and the C runtime, with the toolchain that pip installed.

The result is a shared library, or an executable that needs no other file of the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from morendo.ir.errors import CompileError

from .build_cache import user_cache
from .scratch import scratch_folder, write_scratch
from .text_facts import TextFacts

RUNTIME_SOURCES = Path(__file__).resolve().parent.parent / "runtime" / "c"
RUNNER_SOURCES = RUNTIME_SOURCES / "run"
HOST_DEVICE = RUNTIME_SOURCES / "device" / "host.c"
_FLAGS = (
    "-std=c11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Wl,--strip-debug",  # it has paths of this compilation: artifacts would differ by them
)
_SHARED = (
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wl,--version-script=exports.map",
    "-Wl,-z,defs",  # what is missing should be missed here, not on the device
)
_SPACE_NEEDED = 64 << 20  # with less left than this, a failure is likely for want of space
# Kernel objects bring symbols of their own (half-float helpers) that must not meet the process's.
_EXPORTS = "{ global: mr_*; __tvm_ffi_*; local: *; };\n"


@dataclass(frozen=True)
class Toolchain:
    """What the C compiler must know of the target.

    Args:
        triple: as zig spells it; "...-linux-gnu.2.17" names the oldest glibc to run on.
        flags: further compiler flags, such as -mcpu.
        static_triple: the same machine with a C library that is linked into executables; "" where
            they load libraries when they run.
        cpu_check: C source of `cpu_has`, which says whether the CPU has a flag; None asks nothing.
        device: C source of what `runtime/c/device.h` declares: where kernels and their memory are.
    """

    triple: str
    flags: tuple[str, ...] = ()
    static_triple: str = ""
    cpu_check: Path | None = None
    device: Path = HOST_DEVICE


def link_model(
    objects: Sequence[Path],
    kernels: Sequence[str],
    out: Path,
    toolchain: Toolchain,
    plan: str = "",
    cpu_flags: Sequence[str] = (),
    sources: Sequence[Path] = (),
) -> None:
    """Write the shared library `out`: kernel objects, more C sources and the C runtime.

    Args:
        objects: the kernels.
        kernels: the names of the plan's kernels, in its order.
        out: the library.
        toolchain: what the C compiler must know of the target.
        plan: the text of plan.json, which the library executes.
        cpu_flags: what the CPU must have, as the toolchain's `cpu_check` knows them.
        sources: further C files.

    Raises:
        CompileError: when the compiler or linker fails.
    """
    inputs = [*_own_sources(toolchain, cpu_flags), *sources, *objects]
    flags = [*_SHARED, *toolchain.flags]
    tables = kernel_table(kernels, cpu_flags) + plan_text(plan)
    _compile(toolchain.triple, flags, tables, inputs, out)


def link_executable(
    objects: Sequence[Path],
    kernels: Sequence[str],
    out: Path,
    text: TextFacts,
    toolchain: Toolchain,
    plan: str = "",
    cpu_flags: Sequence[str] = (),
) -> None:
    """Write a static executable: what `link_model` links, and `runtime/c/run`.

    Args:
        text: what it has to know of the model's text.
        objects, kernels, out, toolchain, plan, cpu_flags: as for `link_model`.
    """
    tables = kernel_table(kernels, cpu_flags) + plan_text(plan) + text.c_source()
    sources = sorted(RUNNER_SOURCES.glob("*.c"))
    link_program([*sources, *objects], out, toolchain, tables, cpu_flags)


def link_program(
    inputs: Sequence[Path],
    out: Path,
    toolchain: Toolchain,
    tables: str,
    cpu_flags: Sequence[str] = (),
) -> None:
    """Write an executable of objects and C sources, one with a main function.

    It is static where the toolchain has a triple for that.

    Args:
        inputs: they are linked with the C runtime.
        out: the executable.
        toolchain, cpu_flags: as for `link_model`.
        tables: C text, that of `kernel_table` among it.
    """
    inputs = [*_own_sources(toolchain, cpu_flags), *inputs]
    static = ["-static"] if toolchain.static_triple else []
    triple = toolchain.static_triple or toolchain.triple
    _compile(triple, [*static, *toolchain.flags], tables, inputs, out)


def _own_sources(toolchain: Toolchain, cpu_flags: Sequence[str]) -> list[Path]:
    """The device, and what says whether the CPU has the flags, where there are any."""
    check = [toolchain.cpu_check] if cpu_flags and toolchain.cpu_check else []
    return [toolchain.device, *check]


def _compile(
    triple: str, flags: Sequence[str], tables: str, inputs: Sequence[Path], out: Path
) -> None:
    runtime = RUNTIME_SOURCES.glob("*.c")
    with scratch_folder() as folder:
        write_scratch(folder / "kernel_table.c", tables.encode())
        write_scratch(folder / "exports.map", _EXPORTS.encode())
        command = [sys.executable, "-m", "ziglang", "cc", "-target", triple]
        command += [*_FLAGS, *flags, f"-I{RUNTIME_SOURCES}", "kernel_table.c"]
        command += [*(str(path.resolve()) for path in [*runtime, *inputs]), "-lm", "-lpthread"]
        command += ["-o", str(out.resolve())]
        done = subprocess.run(
            command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        hint = _hint(done.stderr) or _space_hint(
            [out.resolve().parent, Path(tempfile.gettempdir())]
        )
        message = _failure(done.stderr, done.returncode)
        raise CompileError(message, where=str(out), hint=hint)


def kernel_table(kernels: Sequence[str], cpu_flags: Sequence[str] = ()) -> str:
    """C text of the tables of what was compiled: kernel i of the plan, needed CPU flags."""
    lines = ['#include "internal.h"']
    lines += [f"int __tvm_ffi_{name}(void *, const Any *, int32_t, Any *);" for name in kernels]
    entries = [f'    {{"{name}", __tvm_ffi_{name}}},' for name in kernels]
    lines += ["const KernelEntry kernel_table[] = {", *entries, "    {0, 0},", "};"]
    lines += [f"const int kernel_count = {len(kernels)};"]
    flags = "".join(f'"{flag}", ' for flag in cpu_flags)
    lines += [f"const char *const needed_cpu_flags[] = {{{flags}0}};"]
    if not cpu_flags:
        lines += ["int cpu_has(const char *flag) { return !!flag; }"]
    return "\n".join(lines) + "\n"


def plan_text(plan: str) -> str:
    """C text of the plan, ASCII: part of the program, as what it lets kernels read and write is."""
    escaped = re.sub(r'[\\"?]', r"\\\g<0>", plan)  # two question marks may be a trigraph
    pieces = re.findall(r"(?:\\.|[^\\]){1,1000}", escaped)
    lines = [f'    "{piece}"' for piece in pieces or [""]]
    return "\n".join(["const char plan_text[] =", *lines]) + ";\n"


def _failure(stderr: str, code: int) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    said = (errors or lines or [f"the linker ended with code {code} and no message"])[0]
    return f"linking failed: {said}"


def _hint(stderr: str) -> str:
    if "No module named" in stderr:
        return "install the C toolchain with: pip install ziglang"
    return "free some space" if "NoSpaceLeft" in stderr or "No space left" in stderr else ""


def _space_hint(directories: Sequence[Path]) -> str:
    """The linker says little or nothing when a disk is full."""
    for directory in directories:
        free = shutil.disk_usage(directory).free
        if free < _SPACE_NEEDED:
            return f"free some space ({free / 1e6:.0f} MB are left in {directory})"
    return ""


def _environment() -> dict[str, str]:
    """The caller's environment, with a compiler cache that can be written."""
    environment = dict(os.environ)
    if "ZIG_GLOBAL_CACHE_DIR" not in environment:
        cache = user_cache() / "zig"
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache):
                pass
        except OSError:
            cache = Path(tempfile.gettempdir()) / f"morendo-zig-{os.getuid()}"
        environment["ZIG_GLOBAL_CACHE_DIR"] = str(cache)
    environment.setdefault("ZIG_LOCAL_CACHE_DIR", environment["ZIG_GLOBAL_CACHE_DIR"])
    return environment
