"""Link kernels and the C runtime, with the toolchain that pip installed.

The result is a shared library, or an executable that needs no other file of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from morendo.ir.errors import CompileError

from .build_cache import user_cache
from .model_tables import ModelTables
from .scratch import scratch_folder, write_scratch

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
        sources: further C sources, of functions that kernels call.
    """

    triple: str
    flags: tuple[str, ...] = ()
    static_triple: str = ""
    cpu_check: Path | None = None
    device: Path = HOST_DEVICE
    sources: tuple[Path, ...] = ()


def link_model(
    objects: Sequence[Path],
    tables: ModelTables,
    out: Path,
    toolchain: Toolchain,
    sources: Sequence[Path] = (),
) -> None:
    """Write the shared library `out`: kernel objects, more C sources and the C runtime.

    Args:
        objects: the kernels.
        tables: what is generated for the model.
        out: the library.
        toolchain: what the C compiler must know of the target.
        sources: further C files.

    Raises:
        CompileError: when the compiler or linker fails.
    """
    flags = [*_SHARED, *toolchain.flags]
    _compile(toolchain.triple, flags, tables, [*sources, *objects], out, toolchain)


def link_executable(
    objects: Sequence[Path], tables: ModelTables, out: Path, toolchain: Toolchain
) -> None:
    """Write a static executable: what `link_model` links, and `runtime/c/run`; arguments as there.

    Raises:
        CompileError: when the compiler or linker fails.
    """
    link_program([*sorted(RUNNER_SOURCES.glob("*.c")), *objects], tables, out, toolchain)


def link_program(
    inputs: Sequence[Path], tables: ModelTables, out: Path, toolchain: Toolchain
) -> None:
    """Write an executable of objects and C sources, one with a main function.

    It is static where the toolchain has a triple for that.

    Args:
        inputs: they are linked with the C runtime.
        out: the executable.
        tables, toolchain: as for `link_model`.

    Raises:
        CompileError: when the compiler or linker fails.
    """
    static = ["-static"] if toolchain.static_triple else []
    triple = toolchain.static_triple or toolchain.triple
    _compile(triple, [*static, *toolchain.flags], tables, inputs, out, toolchain)


def _compile(
    triple: str,
    flags: Sequence[str],
    tables: ModelTables,
    inputs: Sequence[Path],
    out: Path,
    toolchain: Toolchain,
) -> None:
    # The device, and what says whether the CPU has the flags, where there are any.
    check = [toolchain.cpu_check] if tables.cpu_flags and toolchain.cpu_check else []
    sources = [*RUNTIME_SOURCES.glob("*.c"), toolchain.device, *toolchain.sources]
    sources += [*check, *inputs]
    with scratch_folder() as folder:
        write_scratch(folder / "model_tables.c", tables.c_source().encode())
        write_scratch(folder / "exports.map", _EXPORTS.encode())
        command = [sys.executable, "-m", "ziglang", "cc", "-target", triple]
        command += [*_FLAGS, *flags, f"-I{RUNTIME_SOURCES}", "model_tables.c"]
        command += [*(str(path.resolve()) for path in sources), "-lm", "-lpthread"]
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
