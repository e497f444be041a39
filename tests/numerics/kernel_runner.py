"""Compile a PrimFunc for a vector unit and call it on numpy arrays: here, or under an emulator."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import tvm
from numpy.typing import NDArray

from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear
from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.target import Builder
from morendo.targets.arm import isa as arm
from morendo.targets.arm import target as arm_targets
from morendo.targets.cuda.target import BUILDERS, GPU
from morendo.targets.hexagon import target as hexagon_targets
from morendo.targets.hexagon.isa import HVX
from morendo.targets.x86 import isa as x86
from morendo.targets.x86 import target as x86_targets
from morendo.targets.x86.tiles import build_tile_linear
from tests.cuda.emulated import EmulatedKernel as LaunchedKernel
from tests.numerics.emulated_kernel import EmulatedKernel, can_emulate

Kernel = Callable[..., None]

_EMULATED = {
    arm.NEON: (arm_targets.make("arm-v8.0"), "cortex-a53"),
    arm.NEON_DOT: (arm_targets.make("arm"), "cortex-a76"),
    arm.NEON_I8MM: (arm_targets.make("arm-i8mm"), "max"),
    HVX: (hexagon_targets.make("hexagon:v67"), "v67"),
}
"""Per vector unit: the target that has it, and a processor that has nothing beyond (or all)."""


def _host() -> tvm.target.Target | None:
    if platform.machine() != "x86_64":
        return None
    return _x86_cpu(tvm.target.codegen.llvm_get_system_cpu())


def _x86_cpu(cpu: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": cpu})


def host_has(feature: str) -> bool:
    """Whether this machine's CPU has a feature, as LLVM spells it."""
    host = _host()
    return bool(host and tvm.target.codegen.llvm_cpu_has_features(feature, host))


_CPUS = {
    x86.AMX: ("sapphirerapids", ("amx-tile", "amx-int8")),
    x86.AVX512_VNNI_GFNI: ("icelake-client", ("avx512vnni", "gfni")),
    x86.AVX512_VNNI: ("cascadelake", ("avx512vnni",)),
    x86.AVX512: ("x86-64-v4", ("avx512bw",)),
    # Its instructions have an encoding of AVX-512 too, so that more machines can test it.
    x86.AVX_VNNI: ("alderlake", ("avxvnni", "gfni"))
    if host_has("avxvnni")
    else ("icelake-client", ("avx512vl", "avx512vnni", "gfni")),
    x86.AVX2: ("x86-64-v3", ("avx2",)),
}
"""Per vector unit: a processor that has it, and the features that it takes to run it here."""


def native_isas() -> list[VectorISA]:
    """The vector units that this machine can run."""
    return [isa for isa in _CPUS if isa != x86.AMX and _runs_here(isa)]


def tile_isas() -> list[VectorISA]:
    """The one with tile registers if this machine has them: the best of `native_isas` but for
    integer matrices and many tokens.
    """
    return [isa for isa in (x86.AMX,) if _runs_here(isa) and x86_targets.tiles_allowed()]


def _runs_here(isa: VectorISA) -> bool:
    return all(map(host_has, _CPUS[isa][1]))


def emulated_isas() -> list[VectorISA]:
    """Those of other machines, where their emulator is installed; test_hexagon.py has one more,
    whose code takes longer to make.
    """
    return [isa for isa, (target, _) in _EMULATED.items() if can_emulate(target) and isa != HVX]


def runnable_widths() -> list[VectorISA]:
    """One vector unit for each width and kind of machine: for kernels without dot products."""
    return [isa for isa in (x86.AVX512, x86.AVX2) if isa in native_isas()] + emulated_isas()[:1]


def target_of(isa: VectorISA) -> tvm.target.Target:
    """The processor of a vector unit, for TVM's code generator."""
    return _EMULATED[isa][0].llvm if isa in _EMULATED else _x86_cpu(_CPUS[isa][0])


def build(builder: Builder, isa: VectorISA | GPU, **options: Any) -> tvm.tirx.PrimFunc:
    """The kernel of a shared builder, or of the one that stands in its place."""
    if isinstance(isa, GPU):
        return BUILDERS[builder](isa=isa, **options)
    own = _EMULATED[isa][0].builders if isa in _EMULATED else {}
    own = {build_quantized_linear: build_tile_linear} if isa == x86.AMX else own
    return own.get(builder, builder)(isa=isa, **options)


def compile_function(function: tvm.tirx.PrimFunc, isa: VectorISA | GPU) -> Kernel:
    """A kernel as a function of numpy arrays and ints; writable arrays are updated in place."""
    if isinstance(isa, GPU):
        return LaunchedKernel(function)
    if isa in _EMULATED:
        return EmulatedKernel(function, *_EMULATED[isa])
    name = str(function.attrs["global_symbol"])
    entry = tvm.compile(tvm.IRModule({name: function}), target=target_of(isa))[name]

    def run(*arguments: NDArray | int) -> None:
        tensors = [
            tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else int(a) for a in arguments
        ]
        entry(*tensors)
        for argument, tensor in zip(arguments, tensors, strict=True):
            if isinstance(argument, np.ndarray) and argument.flags.writeable:
                argument[...] = cast(Any, tensor).numpy()

    return run


def frozen(array: NDArray) -> NDArray:
    """The array, marked as an input that the runner does not copy back."""
    array.flags.writeable = False
    return array


def poisoned(shape: tuple[int, ...], dtype: type = np.float32) -> NDArray:
    """An output buffer full of NaN (99 for integers), so that an element left out shows."""
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 99, dtype)
