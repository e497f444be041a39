"""Compile a PrimFunc for vector units that this machine has and call it on numpy arrays."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm.target.codegen import llvm_cpu_has_features, llvm_get_system_cpu

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.targets.x86 import isa as x86

CPUS = {"avx512": "x86-64-v4", "avx2": "x86-64-v3"}
"""Per vector width: an architecture level that has it and nothing beyond."""


def _target(cpu: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": cpu})


def runnable_isas() -> list[VectorISA]:
    """The vector widths to test: 16 lanes where the machine has them, and 8."""
    wide = llvm_cpu_has_features("avx512bw", _target(llvm_get_system_cpu()))
    return [x86.AVX512, x86.AVX2] if wide else [x86.AVX2]


class CompiledKernel:
    """A kernel as a function of numpy arrays and ints; writable arrays are updated in place."""

    def __init__(self, function: tvm.tirx.PrimFunc, isa: VectorISA) -> None:
        self.name = function.attrs["global_symbol"]
        library = tvm.compile(tvm.IRModule({self.name: function}), target=_target(CPUS[isa.name]))
        self.library = library
        self.entry = library[self.name]

    def __call__(self, *arguments: NDArray | int) -> None:
        tensors = [
            tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else int(a) for a in arguments
        ]
        self.entry(*tensors)
        for argument, tensor in zip(arguments, tensors, strict=True):
            if isinstance(argument, np.ndarray) and argument.flags.writeable:
                argument[...] = cast(Any, tensor).numpy()


def frozen(array: NDArray) -> NDArray:
    """The array, marked as an input that the runner does not copy back."""
    array.flags.writeable = False
    return array


def poisoned(shape: tuple[int, ...], dtype: type = np.float32) -> NDArray:
    """An output buffer full of NaN (99 for integers), so that an element left out shows."""
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 99, dtype)
