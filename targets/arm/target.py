"""The 64-bit ARM processors that morendo compiles for."""

from __future__ import annotations

import platform
from pathlib import Path

from morendo.codegen.cpu.target import CPUTarget
from morendo.codegen.link import Toolchain
from morendo.codegen.target import Device
from morendo.ir.errors import CompileError
from morendo.ir.layout import TileLayout
from morendo.targets.host import cpu_flags

from .assembly import SYNTAX
from .isa import isa_for

_MACHINE = "aarch64"
_FLAGS = {"neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm"}  # as the kernel spells features
_FEATURES = {
    "arm": ("neon", "dotprod"),
    "arm-v8.0": ("neon",),
    "arm-i8mm": ("neon", "dotprod", "i8mm"),
}
_DESCRIPTIONS = {
    "arm": "64-bit ARM CPUs with dot products (Cortex-A55, A76 and later, Graviton 2, Apple M1)",
    "arm-v8.0": "any 64-bit ARM CPU (Cortex-A53, A72, Raspberry Pi 3 and 4)",
    "arm-i8mm": "ARM CPUs with 8-bit matrix products (Cortex-A510, A710, Graviton 3, Apple M2)",
}
_TOOLCHAIN = Toolchain(
    "aarch64-linux-gnu.2.17",  # the oldest C library that an artifact runs on
    static_triple="aarch64-linux-musl",
    cpu_check=Path(__file__).parent / "cpu.c",
)


def descriptions() -> dict[str, str]:
    """The names of this target's variants, each with one line for people."""
    return _DESCRIPTIONS


def make(name: str) -> CPUTarget:
    """The target of a name in `descriptions()`.

    LLVM's CPU is the generic one: any other would bring in instructions that the name does not say.
    """
    features = _FEATURES[name]
    isa = isa_for(features)
    assert isa is not None
    return CPUTarget(
        name=name,
        description=_DESCRIPTIONS[name],
        device=Device(_MACHINE, tuple(_FLAGS[f] for f in features), f"qemu-{_MACHINE}"),
        triple="aarch64-linux-gnu",
        cpu="generic",
        features=features,
        tuning=(),
        isa=isa,
        toolchain=_TOOLCHAIN,
        assembly=SYNTAX,
        layout=TileLayout(nibbles=True),
    )


def native() -> CPUTarget | None:
    """The best of our variants for this machine, None when it is no 64-bit ARM.

    Raises:
        CompileError: when its CPU lacks what all variants need.
    """
    if platform.machine() != _MACHINE:
        return None
    flags = cpu_flags()
    for name in sorted(_FEATURES, key=lambda name: -len(_FEATURES[name])):
        if {_FLAGS[feature] for feature in _FEATURES[name]} <= flags:
            return make(name)
    raise CompileError(
        "this CPU has no vector unit for kernels (need asimd)", where="target native"
    )
