"""Link kernels and the C runtime into one shared library, with the toolchain that pip installed."""

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

from .scratch import scratch_folder, write_scratch

RUNTIME_SOURCES = Path(__file__).resolve().parent.parent / "runtime" / "c"
_FLAGS = (
    "-std=c11",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wl,--version-script=exports.map",
    "-Wl,--strip-debug",  # it has paths of this compilation: artifacts would differ by them
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
    """

    triple: str
    flags: tuple[str, ...] = ()


def link_model(
    objects: Sequence[Path],
    kernels: Sequence[str],
    out: Path,
    toolchain: Toolchain,
    plan: str = "",
    sources: Sequence[Path] = (),
) -> None:
    """Write the shared library `out`: kernel objects, more C sources and the C runtime.

    Args:
        objects: the kernels.
        kernels: the names of the plan's kernels, in its order.
        out: the library.
        toolchain: what the C compiler must know of the target.
        plan: the text of plan.json, which the library executes.
        sources: further C files.

    Raises:
        CompileError: when the compiler or linker fails.
    """
    with scratch_folder() as folder:
        tables = kernel_table(kernels) + plan_text(plan)
        write_scratch(folder / "kernel_table.c", tables.encode())
        write_scratch(folder / "exports.map", _EXPORTS.encode())
        inputs = [*RUNTIME_SOURCES.glob("*.c"), *sources, *objects]
        command = [sys.executable, "-m", "ziglang", "cc", "-target", toolchain.triple]
        command += [*_FLAGS, *toolchain.flags, f"-I{RUNTIME_SOURCES}", "kernel_table.c"]
        command += [*(str(path.resolve()) for path in inputs), "-lm", "-lpthread"]
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


def kernel_table(kernels: Sequence[str]) -> str:
    """C text of the table through which the runtime finds kernel i of the plan."""
    lines = ['#include "internal.h"']
    lines += [f"int __tvm_ffi_{name}(void *, const Any *, int32_t, Any *);" for name in kernels]
    entries = [f'    {{"{name}", __tvm_ffi_{name}}},' for name in kernels]
    lines += ["const KernelEntry kernel_table[] = {", *entries, "    {0, 0},", "};"]
    lines += [f"const int kernel_count = {len(kernels)};"]
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
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "morendo" / "zig"
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache):
                pass
        except OSError:
            cache = Path(tempfile.gettempdir()) / f"morendo-zig-{os.getuid()}"
        environment["ZIG_GLOBAL_CACHE_DIR"] = str(cache)
    environment.setdefault("ZIG_LOCAL_CACHE_DIR", environment["ZIG_GLOBAL_CACHE_DIR"])
    return environment
