"""A kernel for a machine of another kind, called under qemu's user mode on numpy arrays.

The kernel, the C runtime and `call_kernel.c` are one static executable. Its input is the number of
arguments, then for each 12 int64 (kind, code or value, bits, rank, up to 8 extents) and the bytes
of a tensor; its output is the bytes of all tensors.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import tvm
from numpy.typing import NDArray

from morendo.codegen.cpu.machine_code import compile_kernels
from morendo.codegen.cpu.target import CPUTarget
from morendo.codegen.link import link_program
from morendo.codegen.model_tables import ModelTables

_CALLER = Path(__file__).parent / "call_kernel.c"
_INT, _TENSOR = 1, 7
_CODES = {"i": 0, "u": 1, "f": 2}


def can_emulate(target: CPUTarget) -> bool:
    """Whether the emulator of a target is installed."""
    return shutil.which(target.device.emulator) is not None


class EmulatedKernel:
    """A function of numpy arrays and ints; arrays are updated in place.

    Args:
        cpu: the processor that qemu plays.
    """

    def __init__(self, function: tvm.tirx.PrimFunc, target: CPUTarget, cpu: str) -> None:
        name = str(function.attrs["global_symbol"])
        self._folder = tempfile.TemporaryDirectory(prefix="morendo-kernel-")
        folder = Path(self._folder.name)
        objects = compile_kernels({name: target.machine_form(function)}, target.llvm, folder)
        program = folder / "call"
        link_program([_CALLER, *objects], ModelTables([name]), program, target.toolchain)
        self._command = [target.device.emulator, "-cpu", cpu, str(program)]

    def __call__(self, *arguments: NDArray | int) -> None:
        parts = [np.int64(len(arguments)).tobytes()]
        for argument in arguments:
            head = np.zeros(12, np.int64)
            if isinstance(argument, np.ndarray):
                dtype, rank = argument.dtype, argument.ndim
                head[:4] = _TENSOR, _CODES[dtype.kind], 8 * dtype.itemsize, rank
                head[4 : 4 + rank] = argument.shape
                parts += [head.tobytes(), argument.tobytes()]
            else:
                head[:2] = _INT, argument
                parts.append(head.tobytes())
        done = subprocess.run(
            self._command, input=b"".join(parts), capture_output=True, check=False, env=_ENVIRONMENT
        )
        assert done.returncode == 0, done.stderr.decode()
        start = 0
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                result = np.frombuffer(done.stdout, argument.dtype, argument.size, start)
                start += argument.nbytes
                if argument.flags.writeable:
                    argument[...] = result.reshape(argument.shape)
        assert start == len(done.stdout)


_ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "QEMU_CPU"}
