"""NVIDIA's run-time compiler from pip: CUDA C++ to machine code, without a GPU or nvcc."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morendo.ir.errors import CompileError

_LIBRARY, _HEADERS = "cuda_nvrtc/lib/libnvrtc.so.12", "cuda_runtime/include"
OWN = "a"
"""Ends an architecture's name: with instructions that only its own GPUs have, no later ones."""
_OPTIONS = ("-std=c++17", "--ptxas-options=-v")


@dataclass(frozen=True)
class Image:
    """What a kernel became.

    Attributes:
        cubin: machine code for one architecture.
        ptx: text that a driver translates for later architectures.
        log: what ptxas says about registers and memory.
    """

    cubin: bytes
    ptx: bytes
    log: str

    @property
    def spilled_bytes(self) -> int:
        """Bytes that registers did not suffice for, stored and loaded."""
        found = re.findall(r"(\d+) bytes spill (?:stores|loads)", self.log)
        return sum(map(int, found))

    @property
    def shared_bytes(self) -> int:
        """Bytes of a block's shared memory, the most of all kernels."""
        return max(map(int, re.findall(r"(\d+) bytes smem", self.log)), default=0)

    @property
    def registers(self) -> int:
        """Registers of a thread, the most of all kernels."""
        return max(map(int, re.findall(r"Used (\d+) registers", self.log)), default=0)


def _package_folder() -> Path | None:
    """Where NVIDIA's pip packages lie."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    for place in map(Path, places):
        if (place / _LIBRARY).exists() and (place / _HEADERS).is_dir():
            return place
    return None


@functools.cache
def find_compiler() -> tuple[Any, str]:
    """The library, and the folder of CUDA's headers.

    Raises:
        CompileError: when it is not installed, or cannot be loaded.
    """
    folder = _package_folder()
    if folder is None:
        raise CompileError(
            "NVIDIA's run-time compiler is not installed",
            where="kernels for GPUs",
            hint="pip install morendo[cuda]",
        )
    try:
        return ctypes.CDLL(str(folder / _LIBRARY)), str(folder / _HEADERS)
    except OSError as error:
        raise CompileError(
            f"NVIDIA's run-time compiler cannot be loaded ({error})",
            where="kernels for GPUs",
            hint="pip install --force-reinstall morendo[cuda]",
        ) from None


def version() -> str:
    """Of the compiler, as "12.9"."""
    library, _ = find_compiler()
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_source(source: str, arch: str) -> Image:
    """Machine code and PTX of a CUDA C++ text for an architecture such as "sm_80".

    Raises:
        CompileError: with the compiler's first error.
    """
    library, headers = find_compiler()
    program = ctypes.c_void_p()
    handle = ctypes.byref(program)
    library.nvrtcCreateProgram(handle, source.encode(), b"kernel.cu", 0, None, None)
    try:
        flags = [flag.encode() for flag in (f"-arch={arch}", f"-I{headers}", "-w", *_OPTIONS)]
        array = (ctypes.c_char_p * len(flags))(*flags)
        failed = library.nvrtcCompileProgram(program, len(flags), array)
        log = _read(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if failed:
            errors = [line.strip() for line in log.splitlines() if "error" in line]
            raise CompileError(
                f"code generation failed ({(errors or [log.strip() or 'no message'])[0]})",
                where=f"architecture {arch}",
                hint="this is a defect of morendo; rerun with --debug and report it",
            )
        ptx = _read(library, program, "PTX").rstrip(b"\0")
        return Image(_read(library, program, "CUBIN"), ptx, log)
    finally:
        library.nvrtcDestroyProgram(handle)


def _read(library: Any, program: ctypes.c_void_p, what: str) -> bytes:
    """One of the results of a compilation."""
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.raw[: size.value]
