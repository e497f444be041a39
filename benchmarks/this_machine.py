"""Kernels compiled for the processor that measures them."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """A processor that this machine is, or can play, and its vector unit."""

    target: Any  # CPUTarget

    @classmethod
    def of(cls, name: str) -> Machine:
        """The processor that `--target NAME` means.

        Raises:
            SystemExit: with one line, for an unknown target and one whose code cannot run here.
        """
        from morendo.codegen.cpu.target import CPUTarget
        from morendo.ir.errors import MorendoError
        from morendo.targets import find_target
        from morendo.targets.host import cpu_flags

        try:
            target = find_target(name)
        except MorendoError as error:
            raise SystemExit(f"error: {error}") from None
        device = target.device
        runs = device.machine == platform.machine() and set(device.cpu_flags) <= cpu_flags()
        if not isinstance(target, CPUTarget) or not runs:
            needed = ", ".join([device.machine, *device.cpu_flags])
            raise SystemExit(
                f"error: kernels of target {name} cannot be measured here (got a CPU that is "
                f"{platform.machine()}, need kernels for CPUs and one with {needed}); "
                "--target native is this machine"
            )
        return cls(target)

    @property
    def isa(self) -> Any:
        """The vector unit that kernels are built for."""
        return self.target.isa

    def compile(self, name: str, function: Any) -> Callable[..., Any]:
        """A kernel in this process, its loops on TVM's threads."""
        import tvm

        function = self.target.machine_form(function)
        return tvm.compile(tvm.IRModule({name: function}), target=self.target.llvm)[name]
