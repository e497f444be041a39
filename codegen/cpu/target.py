"""A target that is a processor with vector units: LLVM makes the code, a C compiler links it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import tvm
from tvm import tirx

from morendo.codegen.dump_program import dump_assembly
from morendo.codegen.kernel_code import KernelCode
from morendo.codegen.link import Toolchain, link_executable, link_model
from morendo.codegen.lowering import Program
from morendo.codegen.model_tables import ModelTables
from morendo.codegen.scratch import scratch_folder
from morendo.codegen.target import Target, Track
from morendo.codegen.text_facts import TextFacts
from morendo.ir.dump import Dump
from morendo.ir.errors import CompileError
from morendo.ir.plan import EXECUTABLE, LIBRARY, Plan

from .listing import Syntax, kernel_code
from .machine_code import compile_kernels
from .vectors.isa import VectorISA


@dataclass(frozen=True)
class CPUTarget(Target):
    """A processor.

    Attributes:
        isa: the vector unit that kernels are built for.
        triple: LLVM's name of architecture, system and ABI.
        cpu: LLVM's name of the processor: what instructions it has, and how long they take.
        features: LLVM's names of further instructions that the code uses.
        tuning: LLVM attributes that change speed only, with their sign.
        toolchain: what links an artifact.
        assembly: how instructions are told apart; None where nobody counts them.
    """

    isa: VectorISA
    triple: str
    cpu: str
    features: tuple[str, ...]
    tuning: tuple[str, ...]
    toolchain: Toolchain
    assembly: Syntax | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for tile in ("row_tile", "key_tile"):
            size = getattr(self.layout, tile)
            if size % self.isa.lanes:
                raise CompileError(
                    f"kernels cannot use vector unit {self.isa.name} (got {self.isa.lanes} lanes, "
                    f"need a divisor of the {size} of the layout's {tile})",
                    where=f"target {self.name}",
                    hint="give the target a layout with larger tiles",
                )

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

    @property
    def toolkit(self) -> str:
        return self.triple

    def with_stages(self, depths: str) -> Target:
        isa = replace(self.isa, pipeline=self.isa.pipeline.with_depths(depths))
        return replace(self, name=f"{self.name}:{depths}", isa=isa)

    def machine_form(self, function: tirx.PrimFunc) -> tirx.PrimFunc:
        """A kernel as this processor computes it best, where LLVM does not see that itself."""
        return function

    def check_room(self, plan: Plan) -> None:
        """Refuse a model that the machine has no room for.

        Raises:
            CompileError: in one line.
        """

    def build(
        self,
        program: Program,
        plan: Plan,
        text: TextFacts,
        directory: Path,
        track: Track,
        dump: Dump | None = None,
    ) -> None:
        """A library for programs that link it, and an executable that needs nothing else."""
        self.check_room(plan)
        kernels = {name: self.machine_form(f) for name, f in program.kernels.items()}
        tables = ModelTables(plan.kernels, plan.to_json(), text, self.device.cpu_flags)
        with scratch_folder() as scratch:
            with track("generate machine code", len(kernels)) as advance:
                listings = {} if dump else None
                begin = time.perf_counter()
                objects = compile_kernels(kernels, self.llvm, scratch, advance, listings)
            if dump and listings is not None:
                codes = self._count(listings, kernels)
                dump_assembly(dump, _files(listings), codes, time.perf_counter() - begin)
            with track("link", 2) as advance:
                link_model(objects, tables, directory / LIBRARY, self.toolchain)
                advance()
                link_executable(objects, tables, directory / EXECUTABLE, self.toolchain)
                advance()

    def kernel_code(
        self, kernels: Mapping[str, tirx.PrimFunc], listings: dict[str, str] | None = None
    ) -> Mapping[str, KernelCode]:
        found: dict[str, str] = {}
        forms = {name: self.machine_form(function) for name, function in kernels.items()}
        with scratch_folder() as scratch:
            compile_kernels(forms, self.llvm, scratch, listings=found)
        if listings is not None:
            listings |= _files(found)
        return self._count(found, kernels)

    def _count(
        self, listings: Mapping[str, str], kernels: Mapping[str, tirx.PrimFunc]
    ) -> Mapping[str, KernelCode]:
        """What the listings of kernels say, by their names."""
        if self.assembly is None:
            return {}
        return {name: kernel_code(text, self.assembly) for name, text in listings.items()}


def _files(listings: Mapping[str, str]) -> dict[str, str]:
    """Assembly of kernels by the names of files."""
    return {f"{name}.s": text for name, text in listings.items()}
