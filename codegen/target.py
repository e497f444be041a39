"""What a target supplies: facts, a vector unit, an LLVM target and a C toolchain."""

from __future__ import annotations

from dataclasses import dataclass

import tvm

from morendo.ir.capabilities import Capabilities
from morendo.ir.layout import DEFAULT_LAYOUT, TileLayout

from .cpu.vectors.isa import VectorISA
from .link import Toolchain


@dataclass(frozen=True)
class Target:
    """A machine to compile for.

    Attributes:
        name: as the user writes it.
        description: one line for people.
        triple: LLVM's name of architecture, system and ABI.
        cpu: LLVM's name of the processor, for instruction timing.
        features: CPU features (LLVM's names) that the code uses; a loader checks them.
        tuning: LLVM attributes that change speed only, with their sign.
        isa: the vector unit that kernels are built for.
        capabilities: what passes may ask.
        toolchain: what links an artifact.
        layout: how data lies in tiles.
    """

    name: str
    description: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    tuning: tuple[str, ...]
    isa: VectorISA
    capabilities: Capabilities
    toolchain: Toolchain
    layout: TileLayout = DEFAULT_LAYOUT

    @property
    def llvm(self) -> tvm.target.Target:
        """The target of TVM's code generator."""
        return tvm.target.Target(
            {
                "kind": "llvm",
                "mtriple": self.triple,
                "mcpu": self.cpu,
                "mattr": [*(f"+{feature}" for feature in self.features), *self.tuning],
            }
        )
