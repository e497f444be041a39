"""Everything that only one kind of machine knows, one package each; found by their `target.py`.

A package's `target.py` has three functions: `descriptions()`, the names that it knows with one
line for people; `make(name)`, the target of a name; `native()`, the target of the machine that
runs this, None when it is of another kind.
"""

from __future__ import annotations

import importlib
import pkgutil
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morendo.ir.errors import CompileError, InputError

if TYPE_CHECKING:
    from morendo.codegen.target import Target

NATIVE = "native"


@dataclass(frozen=True)
class KnownTarget:
    """A name that `--target` takes, with one line for people."""

    name: str
    description: str


def _packages() -> list[Any]:
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    return [importlib.import_module(f"{__name__}.{name}.target") for name in sorted(names)]


def known_targets() -> list[KnownTarget]:
    """All targets of all packages."""
    return [
        KnownTarget(name, text)
        for package in _packages()
        for name, text in package.descriptions().items()
    ]


def find_target(name: str) -> Target:
    """The target that `--target NAME` means; "native" is that of this machine.

    NAME:fetch=0 is NAME with another depth of a stage of its kernels' pipeline.

    Raises:
        InputError: for an unknown name, listing the known ones.
        CompileError: when the target cannot be used here.
    """
    if name == NATIVE:
        return _native()
    for package in _packages():
        if name in package.descriptions():
            return package.make(name)
    base, _, depths = name.rpartition(":")
    if base and "=" in depths:
        return find_target(base).with_stages(depths)
    known = ", ".join([NATIVE, *(target.name for target in known_targets())])
    raise InputError(f"unknown target (got {name!r})", hint=f"known targets: {known}")


def _native() -> Target:
    for package in _packages():
        target = package.native()
        if target is not None:
            return target
    raise CompileError(
        f"no target is for this kind of machine (got {platform.machine()})",
        where=f"target {NATIVE}",
        hint="name the machine to compile for; `morendo targets` lists those that are known",
    )
