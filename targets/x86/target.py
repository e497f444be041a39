"""The x86-64 processors that morendo compiles for."""

from __future__ import annotations

import platform
from pathlib import Path

from morendo.codegen.link import Toolchain
from morendo.codegen.target import Target
from morendo.ir.capabilities import Capabilities
from morendo.ir.errors import CompileError

from .isa import isa_for

# Features of the x86-64 psABI micro-architecture levels, as LLVM and the kernel spell them.
_V3 = ("avx2", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_DESCRIPTIONS = {
    "x86": "this machine's CPU (AVX2 at least; AVX-512 and VNNI where it has them)",
    "x86-64-v3": "any x86-64 CPU with AVX2 and FMA (Intel since 2013, AMD since 2015)",
    "x86-64-v4": "any x86-64 CPU with AVX-512 F, BW, CD, DQ and VL",
    "x86-64-v4-vnni": "x86-64-v4 with AVX-512 VNNI (Intel since 2019, AMD since 2022)",
}
# Oldest C library that the artifact runs on.
_TOOLCHAIN = Toolchain("x86_64-linux-gnu.2.17")


def descriptions() -> dict[str, str]:
    """The names of this target's variants, each with one line for people."""
    return _DESCRIPTIONS


def make(name: str) -> Target:
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


def _target(name: str, features: tuple[str, ...]) -> Target:
    isa = isa_for(features)
    if isa is None:
        raise CompileError(
            f"the CPU has no vector unit for kernels (got {', '.join(features)}, need AVX2)",
            where=name,
        )
    return Target(
        name=name,
        description=_DESCRIPTIONS[name],
        triple="x86_64-linux-gnu",
        cpu="x86-64-v4" if "avx512vl" in features else "x86-64-v3",
        features=features,
        tuning=("-prefer-256-bit",) if isa.lanes == 16 else (),
        isa=isa,
        capabilities=Capabilities(
            vector_bytes=4 * isa.lanes,
            integer_dot=any("vnni" in feature for feature in features),
            half_load=True,
        ),
        toolchain=_TOOLCHAIN,
    )


def _host() -> Target:
    """The best of our variants for the CPU that runs this."""
    if platform.machine() not in ("x86_64", "AMD64"):
        raise CompileError(
            f"this machine is no x86-64 (got {platform.machine()})",
            where="target x86",
            hint="name the CPU to compile for, such as --target x86-64-v3",
        )
    flags = _cpu_flags()
    spelled = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni"}
    wanted = (*_V4, "avx512vnni") if set(_V4) <= flags else (*_V3, "avxvnni")
    wanted = (*wanted, "gfni")
    features = tuple(f for f in wanted if spelled.get(f, f) in flags)
    return _target("x86", features)


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()
