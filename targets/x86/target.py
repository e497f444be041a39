"""The x86-64 processors that morendo compiles for."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tvm import tirx

from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear
from morendo.codegen.cpu.target import CPUTarget
from morendo.codegen.kernel_code import KernelCode
from morendo.codegen.link import Toolchain
from morendo.codegen.target import Device
from morendo.ir.errors import CompileError
from morendo.ir.layout import TileLayout
from morendo.targets.host import cpu_flags

from .assembly import SYNTAX
from .isa import AMX, isa_for
from .tiles import build_tile_linear, products_of

# Features of the x86-64 psABI micro-architecture levels, as LLVM spells them.
_V3 = ("avx2", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_DESCRIPTIONS = {
    "x86": "this machine's CPU (AVX2 at least; AVX-512 and VNNI where it has them)",
    "x86-64-v3": "any x86-64 CPU with AVX2 and FMA (Intel since 2013, AMD since 2015)",
    "x86-64-v4": "any x86-64 CPU with AVX-512 F, BW, CD, DQ and VL",
    "x86-64-v4-vnni": "x86-64-v4 with AVX-512 VNNI (Intel since 2019, AMD since 2022)",
}
_FLAGS = {
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
}  # those that the kernel spells its way
_TOOLCHAIN = Toolchain(
    "x86_64-linux-gnu.2.17",  # the oldest C library that an artifact runs on
    flags=('-DVECTORS=__attribute__((target("avx2")))',),  # all our kernels need it
    static_triple="x86_64-linux-musl",
    cpu_check=Path(__file__).parent / "cpu.c",
)


@dataclass(frozen=True)
class X86Target(CPUTarget):
    """An x86-64 processor."""

    def _count(
        self, listings: Mapping[str, str], kernels: Mapping[str, tirx.PrimFunc]
    ) -> Mapping[str, KernelCode]:
        codes = super()._count(listings, kernels)
        return {
            name: replace(code, products=code.products * products_of(kernels[name]))
            for name, code in codes.items()
        }


def descriptions() -> dict[str, str]:
    """The names of this target's variants, each with one line for people."""
    return _DESCRIPTIONS


def make(name: str) -> X86Target:
    """The target of a name in `descriptions()`.

    Raises:
        CompileError: for this machine's CPU when it is no x86-64 or too old.
    """
    if name == "x86":
        return _host()
    features = {
        "x86-64-v3": _V3,
        "x86-64-v4": _V4,
        "x86-64-v4-vnni": (*_V4, "avx512vnni"),
    }[name]
    return _target(name, features)


def native() -> X86Target | None:
    """The target of this machine, None when it is no x86-64."""
    return _host() if platform.machine() == "x86_64" else None


def _target(name: str, features: tuple[str, ...]) -> X86Target:
    isa = isa_for(features)
    if isa is None:
        raise CompileError(
            f"the CPU has no vector unit for kernels (got {', '.join(features)}, need AVX2)",
            where=name,
        )
    return X86Target(
        name=name,
        description=_DESCRIPTIONS[name],
        device=Device("x86_64", tuple(_FLAGS.get(f, f) for f in features), "qemu-x86_64"),
        triple="x86_64-linux-gnu",
        cpu="x86-64-v4" if "avx512vl" in features else "x86-64-v3",
        features=features,
        tuning=("-prefer-256-bit",) if isa.lanes == 16 else (),
        isa=isa,
        toolchain=_TOOLCHAIN,
        assembly=SYNTAX,
        builders={build_quantized_linear: build_tile_linear} if isa is AMX else {},
        layout=TileLayout(nibbles=True),
    )


def _host() -> X86Target:
    """The best of our variants for the CPU that runs this."""
    if platform.machine() != "x86_64":
        raise CompileError(
            f"this machine is no x86-64 (got {platform.machine()})",
            where="target x86",
            hint="name the CPU to compile for, such as --target x86-64-v3; native is this machine",
        )
    flags = cpu_flags()
    wanted = (*_V4, "avx512vnni") if set(_V4) <= flags else (*_V3, "avxvnni")
    wanted = (*wanted, "gfni", *(("amx-tile", "amx-int8") if tiles_allowed() else ()))
    features = tuple(f for f in wanted if _FLAGS.get(f, f) in flags)
    return _target("x86", features)


def tiles_allowed() -> bool:
    """Whether the system lets this process use tile registers: each process has to ask for them.

    Artifacts ask by themselves (`cpu.c`).
    """
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18  # as Linux numbers them
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0
