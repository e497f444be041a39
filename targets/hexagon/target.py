"""The Hexagon processors (DSP, NPU) of Qualcomm's systems on a chip that morendo compiles for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tvm import tirx

from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear
from morendo.codegen.cpu.target import CPUTarget
from morendo.codegen.kernel_code import KernelCode
from morendo.codegen.link import Toolchain
from morendo.codegen.target import Capabilities, Device
from morendo.ir.errors import CompileError
from morendo.ir.layout import TileLayout
from morendo.ir.plan import Plan
from morendo.passes.specialize_phases import SpecializePhases

from .alignment import with_aligned_buffers
from .assembly import SYNTAX, with_figures
from .integer_floats import without_float_vectors
from .isa import HVX
from .linear import build_integer_linear, dots_of

_MACHINE = "hexagon"
_DESCRIPTIONS = {
    "hexagon:v67": "Hexagon NPUs from v67 on, with vectors of 128 bytes (qemu-hexagon runs it)",
    "hexagon:v68": "Hexagon NPUs from v68 on (Snapdragon 888)",
    "hexagon:v69": "Hexagon NPUs from v69 on (Snapdragon 8 Gen 1)",
    "hexagon:v73": "Hexagon NPUs from v73 on (Snapdragon 8 Gen 2)",
}
_TOOLCHAIN = Toolchain(
    "hexagon-linux-musl",
    # One C runtime and one C library for all versions: nothing in them is worth a newer one.
    ("-mcpu=hexagonv67+hvxv67+hvx_length128b",),
    static_triple="hexagon-linux-musl",
    sources=(Path(__file__).parent / "on_chip.c",),
)
_ON_CHIP_BYTES = {"v67": 2 << 20, "v68": 4 << 20, "v69": 8 << 20, "v73": 8 << 20}
"""VTCM of phones with each version, as ExecuTorch's table of chips has it (qc_schema.py). Code for
v67 runs on all later ones, of which the least has 2 MiB."""
_NO_FLOATS = ("-hvx-qfloat", "-hvx-ieee-fp")
"""From v68 on HVX has floats, but they are not IEEE's, and no emulator here has them."""

_ADDRESSES = (1 << 32) - (1 << 28)
"""Bytes that a model may take: addresses have 32 bits, and program, stacks and libraries some."""


@dataclass(frozen=True)
class HexagonTarget(CPUTarget):
    """A processor whose addresses have 32 bits, and whose vector unit has no floats."""

    def recipe(self, passes: Sequence[Any]) -> Sequence[Any]:
        """Keys and values are codes, so that attention multiplies integers."""
        return [
            replace(step, cache_bits=8) if isinstance(step, SpecializePhases) else step
            for step in passes
        ]

    def machine_form(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        return without_float_vectors(with_aligned_buffers(function))

    def _count(
        self, listings: Mapping[str, str], kernels: Mapping[str, tirx.PrimFunc]
    ) -> Mapping[str, KernelCode]:
        codes = super()._count(listings, kernels)
        return {name: with_figures(code, dots_of(kernels[name])) for name, code in codes.items()}

    def check_room(self, plan: Plan) -> None:
        logits = plan.chunk * plan.vocabulary * 4
        size = plan.weights_bytes + plan.cache_bytes + plan.arena_bytes + logits
        if size > _ADDRESSES:
            raise CompileError(
                f"the model does not fit 32-bit addresses (got {size / 1e9:.1f} GB of weights, "
                f"cache and activations, need at most {_ADDRESSES / 1e9:.1f})",
                where=f"target {self.name}",
                hint="fewer --bits, or a shorter --context or --chunk",
            )


def descriptions() -> dict[str, str]:
    """The names of this target's variants, each with one line for people."""
    return _DESCRIPTIONS


def make(name: str) -> HexagonTarget:
    """The target of a name in `descriptions()`."""
    version = name.partition(":")[2]
    return HexagonTarget(
        name=name,
        description=_DESCRIPTIONS[name],
        device=Device(
            _MACHINE,
            needs=f"Hexagon {version} or later with HVX of 128 bytes",
            emulator=f"qemu-{_MACHINE}",
            emulated_cpu=version,
        ),
        triple="hexagon-unknown-linux-musl",
        cpu=f"hexagon{version}",
        features=(f"hvx{version}", "hvx-length128b"),
        tuning=_NO_FLOATS,
        isa=replace(HVX, on_chip_bytes=_ON_CHIP_BYTES[version]),
        toolchain=_TOOLCHAIN,
        assembly=SYNTAX,
        capabilities=Capabilities(half_conversion=False),
        layout=TileLayout(32, 32, 128),
        described=Path(__file__).parent / "npu.toml",
        builders={build_quantized_linear: build_integer_linear},
    )


def native() -> None:
    """No compiler runs on this processor."""
    return
