"""Everything that only one target knows, one package each; found by their `target.py`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morendo.ir.errors import InputError

if TYPE_CHECKING:
    from morendo.codegen.target import Target


@dataclass(frozen=True)
class KnownTarget:
    """A name that `--target` takes, with one line for people."""

    name: str
    description: str


def _packages() -> list[Any]:
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    return [importlib.import_module(f"{__name__}.{name}.target") for name in names]


def known_targets() -> list[KnownTarget]:
    """All targets of all packages."""
    return [
        KnownTarget(name, text)
        for package in _packages()
        for name, text in package.descriptions().items()
    ]


def find_target(name: str) -> Target:
    """The target that `--target NAME` means.

    Raises:
        InputError: for an unknown name, listing the known ones.
        CompileError: when the target cannot be used here.
    """
    for package in _packages():
        if name in package.descriptions():
            return package.make(name)
    known = ", ".join(target.name for target in known_targets())
    raise InputError(f"unknown target (got {name!r})", hint=f"known targets: {known}")
