"""morendo compiles large language models for one device and runs them there.

    import morendo
    morendo.compile("path/or/hub-id", bits=4, out="dir")
    session = morendo.load("dir")
    print(session.decode(list(session.generate("The capital of France is", max_tokens=16))))

The names are imported on first use: `load` needs neither TVM nor torch, `compile` needs both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morendo.compiler import compile as compile
    from morendo.ir.errors import MorendoError as MorendoError
    from morendo.runtime.session import load as load

__version__ = "0.1.0"
__all__ = ["MorendoError", "__version__", "compile", "load"]

_HOMES = {
    "compile": "morendo.compiler",
    "load": "morendo.runtime.session",
    "MorendoError": "morendo.ir.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'morendo' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
