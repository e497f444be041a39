"""Device halves of kernels, compiled with the emulator and launched on numpy arrays.

A launch runs in a fork, on memory that ends where a page begins that nobody may touch: a kernel
that reads or writes past an array, or that the emulator stops, fails the test, not the process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import mmap
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import tirx

from morendo.codegen.build_cache import BuildCache
from morendo.codegen.touched import SCRATCH
from morendo.targets.cuda.device_code import split_kernel
from morendo.targets.cuda.intrinsics import prelude
from morendo.targets.cuda.target import HOSTS

HERE = Path(__file__).parent / "emulator"
ORDERS = ((0, 1), (1, 0), (12345, 1))
"""(order of threads, whether asynchronous copies arrive late): a right kernel gives the same."""
_PAGE = mmap.PAGESIZE
_KINDS = ("blockIdx", "threadIdx")
_SHARED = re.compile(r"__shared__ (alignas\(\d+\)) (\w[\w ]*) (\w+)\[(\d+)\];")
_KERNEL = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\([\d, ]+\) )?(\w+)\((.*?)\) \{'
)

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="the emulator needs a C++ compiler (g++)"
)


def emulate(sources: Sequence[str], out: Path, level: str = "-O1") -> Path:
    """Compile CUDA C++ for the CPU: a library with NAME_launch and NAME_sizes_of of each kernel."""
    body = "\n".join(sources)
    names = sorted({match[1] for match in _KERNEL.finditer(body)})
    own = r"static \2 (&\3)[\4] = *(\2(*)[\4])mr::guarded(sizeof(\2[\4])); "
    body = _SHARED.sub(own + r"mr::poison(\3, sizeof \3);", body)
    source = out.with_suffix(".cpp")
    source.write_text(body + "".join(f"\nMR_KERNEL({name})" for name in names) + "\n")
    _compile(level, "-shared", "-include", _language(level), str(source), "-o", str(out))
    return out


_headers = tempfile.TemporaryDirectory(prefix="morendo-emulator-")


@functools.cache
def _language(level: str) -> str:
    """What stands before all kernels, compiled once: reading it takes as long as a kernel."""
    path = Path(_headers.name) / f"language{level}.h"
    path.write_text(f'#define MR_EMULATE\n#include "language.h"\n{prelude()}')
    _compile(level, "-x", "c++-header", str(path), "-o", f"{path}.gch")
    return str(path)


def _compile(*words: str) -> None:
    command = ["g++", "-std=c++17", "-fPIC", "-w", f"-I{HERE}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


class Guarded:
    """Arrays in memory that a fork shares, each with a forbidden page behind it."""

    def __init__(self, array: NDArray) -> None:
        pages = -(-max(array.nbytes, 1) // _PAGE) * _PAGE
        self._memory = mmap.mmap(-1, pages + _PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None, use_errno=True)
        assert not libc.mprotect(ctypes.c_void_p(start + pages), _PAGE, 0)
        offset = pages - -(-array.nbytes // 64) * 64  # kernels load 16 bytes at a time
        self.address = start + offset
        self.array = np.ndarray(array.shape, array.dtype, self._memory, offset)
        self.array[...] = array


class EmulatedKernel:
    """A function of numpy arrays and ints, as the kernel's parameters are.

    Writable arrays are updated in place. The first launch is repeated in other orders of threads,
    which must not make a difference.
    """

    def __init__(self, function: tirx.PrimFunc) -> None:
        scratch = set(map(str, (function.attrs or {}).get(SCRATCH, ())))
        self._names = [p.name for p in function.params if p.name not in scratch]
        self._scratch = {p.name: _poisoned(p.ty) for p in function.params if p.name in scratch}
        sizes = _launch_sizes(function)
        self._first = True
        halves = split_kernel(function, "sm_80", HOSTS["x86_64"].llvm, BuildCache())
        self.source = halves.source
        self._folder = tempfile.TemporaryDirectory(prefix="morendo-emulated-")
        library = emulate([self.source], Path(self._folder.name) / "kernel.so")
        loaded = ctypes.CDLL(str(library))
        names = sorted(launch.name for launch in halves.launches)  # in order: they are numbered
        self.name = names[0]
        parameters = {match[1]: match[2] for match in _KERNEL.finditer(self.source)}
        self._launches = [
            (getattr(loaded, f"{name}_launch"), _names(parameters[name]), *size)
            for name, size in zip(names, sizes, strict=True)
        ]

    def __call__(self, *arguments: NDArray | int) -> None:
        given = dict(zip(self._names, arguments, strict=True)) | self._scratch
        orders = ORDERS if self._first else ORDERS[:1]  # a fork for each takes a while
        self._first = False
        results = [self._run(given, order, late) for order, late in orders]
        for name, array in results[0].items():
            for other in results[1:]:
                np.testing.assert_array_equal(array, other[name], err_msg="depends on the order")
            target = given[name]
            if isinstance(target, np.ndarray) and target.flags.writeable:
                target[...] = array

    def _run(self, given: Mapping[str, NDArray | int], order: int, late: int) -> dict[str, NDArray]:
        memory = {name: Guarded(_as_array(value)) for name, value in given.items()}
        for launch, names, grid, block in self._launches:
            cells = [self._cell(name, given[name], memory[name]) for name in names]
            pointers = (ctypes.c_void_p * len(cells))(*[ctypes.addressof(cell) for cell in cells])
            sizes = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)
            start = functools.partial(launch, *sizes, 0, pointers, order, late)
            in_fork(self.name, start)
        return {name: guarded.array.copy() for name, guarded in memory.items()}

    def _cell(self, name: str, value: NDArray | int, memory: Guarded) -> ctypes._SimpleCData:
        by_value = f"int {name}" in self.source and f"{name}_ptr" not in self.source
        if isinstance(value, int) and by_value:
            return ctypes.c_int(value)
        return ctypes.c_void_p(memory.address)


def in_fork(name: str, launch: Callable[[], object]) -> None:
    """Launch a kernel in a process of its own.

    Raises:
        AssertionError: with what the emulator said, or the signal that ended it.
    """
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            faulthandler.disable()  # what ends here shall, and the emulator says why
            os.dup2(errors.fileno(), 2)
            launch()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()
    if status:
        raise AssertionError(f"{said}\n{name} ended with signal {os.WTERMSIG(status)}")


def _as_array(value: NDArray | int) -> NDArray:
    return value if isinstance(value, np.ndarray) else np.array([value], np.int32)


def _names(parameters: str) -> list[str]:
    """What the parameters of a device function are in the kernel that it is of."""
    return [part.split()[-1].removesuffix("_ptr") for part in parameters.split(", ")]


def _poisoned(type_: Any) -> NDArray:
    array = np.empty(tuple(map(int, type_.shape)), str(type_.dtype))
    array.view(np.uint8)[...] = 0xFF
    array.flags.writeable = False  # so that it stays poisoned
    return array


def _launch_sizes(function: tirx.PrimFunc) -> list[tuple[list[int], list[int]]]:
    """Blocks and threads of each launch, which are constants in kernels of ours."""
    launches, sizes = [], {}
    for name, size in re.findall(r'launch_thread\("([\w.]+)", (\d+)\)', function.script()):
        sizes[name] = int(size)
        if name == "threadIdx.x":  # the last of a launch
            launches.append(tuple([sizes.get(f"{k}.{a}", 1) for a in "xyz"] for k in _KINDS))
            sizes = {}
    return launches
