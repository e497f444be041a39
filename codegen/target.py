"""The target protocol: all that the compiler asks of a machine that it compiles for.

A target says what it can do, how data lies in memory and which passes run; it may put kernels of
its own in the place of shared ones; and it turns kernels into the files of an artifact. What one
kind of machine shares lies in a folder beside this file (`codegen/cpu/`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morendo.ir.errors import CompileError
from morendo.ir.layout import DEFAULT_LAYOUT, TileLayout

if TYPE_CHECKING:
    from tvm import tirx

    from morendo.ir.dump import Dump
    from morendo.ir.plan import Plan

    from .kernel_code import KernelCode
    from .kernel_facts import KernelFacts
    from .lowering import FunctionLowering, Program
    from .memory import Storage
    from .text_facts import TextFacts

Builder = Callable[..., Any]
"""A function that gives the PrimFunc of a kernel; keywords are its shape and options."""

Lowering = Callable[..., Any]
"""`lower(lowering, call, attrs)` appends the kernel calls of a dialect op, gives its storage."""

Track = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Shows the progress of a number of steps under a title; its result is called after each."""


@dataclass(frozen=True)
class Capabilities:
    """What the machine can do, as far as anyone asks.

    Attributes:
        half_conversion: whether float16 is read and written as fast as float32, converted on the
            way; the cache of keys and values is float16 then.
        half_activations: whether there are kernels that multiply float16 with integer weights.
    """

    half_conversion: bool = True
    half_activations: bool = False


@dataclass(frozen=True)
class Device:
    """Where artifacts of a target run.

    Attributes:
        machine: as the device's `uname -m` says it.
        cpu_flags: what its CPU must have, as its kernel spells it.
        emulator: the program of qemu-user that runs its executables on a machine of another
            kind; "" when there is none.
        emulated_cpu: the CPU that it plays unless the user chooses another, as qemu names it.
        needs: what it must have besides, in words.
    """

    machine: str
    cpu_flags: tuple[str, ...] = ()
    emulator: str = ""
    emulated_cpu: str = "max"
    needs: str = ""


@dataclass(frozen=True)
class Target(ABC):
    """A machine to compile for.

    Attributes:
        name: as the user writes it.
        description: one line for people.
        device: where artifacts run.
        isa: what kernel builders are given as `isa`; for CPUs a `VectorISA`.
        capabilities: what the compiler may ask.
        layout: how data lies in tiles.
        builders: kernel builders in the place of shared ones, which take the same arguments; a
            kernel may read any int32 argument from memory, as a buffer of one element.
        lowerings: how dialect ops become kernel calls, by the op's name, where it is another way
            than `lower_ops.py` has.
        described: the description of a machine that it is for, which `morendo simulate` reads.
    """

    name: str
    description: str
    device: Device
    isa: Any
    capabilities: Capabilities = field(default=Capabilities(), kw_only=True)
    layout: TileLayout = field(default=DEFAULT_LAYOUT, kw_only=True)
    builders: Mapping[Builder, Builder] = field(default_factory=dict, kw_only=True)
    lowerings: Mapping[str, Lowering] = field(default_factory=dict, kw_only=True)
    described: Path | None = field(default=None, kw_only=True)

    def recipe(self, passes: Sequence[Any]) -> Sequence[Any]:
        """The passes that run by default, made from the shared ones that the user's options mean.

        They may have other options, others may stand between them, and passes of the target's own
        among them.
        """
        return passes

    def prepared(self) -> Target:
        """This target, once all that `build` needs is found: asked before anything takes time.

        Raises:
            CompileError: saying what to install.
        """
        return self

    def with_stages(self, depths: str) -> Target:
        """This target with other depths of its kernels' pipeline, which its name then says.

        Args:
            depths: such as fetch=0.

        Raises:
            InputError: when there are no such stages.
            CompileError: when no depth can be chosen.
        """
        raise CompileError(
            f"no depth of its kernels' pipeline can be chosen (got {depths})",
            where=f"target {self.name}",
            hint="leave --pipeline out",
        )

    def find_candidates(self, lowering: FunctionLowering, logits: Storage) -> Storage | None:
        """End the decode function with kernels that find the likeliest tokens, as `candidates` of
        the plan says it; where they are. A target does so where logits lie in memory of a device:
        the host had to read all of them to draw a token.
        """
        return None

    @abstractmethod
    def build(
        self,
        program: Program,
        plan: Plan,
        text: TextFacts,
        directory: Path,
        track: Track,
        dump: Dump | None = None,
    ) -> None:
        """Write what runs the plan on the device into an artifact's directory.

        Args:
            program: its kernels.
            plan: what calls them.
            text: what an executable has to know of the model's text.
            directory: the artifact in the making, where the tokenizer's tables lie.
            track: shows progress.
            dump: is given what people can read of the code, such as its assembly.

        Raises:
            CompileError: when a kernel cannot be compiled, naming it.
        """

    def kernel_code(
        self, kernels: Mapping[str, tirx.PrimFunc], listings: dict[str, str] | None = None
    ) -> Mapping[str, KernelCode]:
        """What people want to know of kernels' machine code, by the kernels' names.

        Asked for by `morendo inspect --kernels` and `morendo view`; {} where nothing is known.

        Args:
            kernels: by their names.
            listings: is filled with their machine code as text, by the names of the files that
                `--dump-ir` writes, such as NAME.s.

        Raises:
            CompileError: when a kernel cannot be compiled, naming it.
        """
        return {}

    def predicted(self, one: KernelFacts) -> Mapping[str, str]:
        """How long a call of a kernel should take, by the names of columns for devices; {} where
        there is no model of the target's devices.
        """
        return {}

    @property
    @abstractmethod
    def toolkit(self) -> str:
        """What code is generated for, in one word for people, such as LLVM's triple."""
