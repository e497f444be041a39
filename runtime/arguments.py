"""What a caller gives the runtime, checked before C would misread it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from morendo.ir.errors import InputError


def as_integer(name: str, value: Any) -> int:
    """`value` as an int; InputError naming it if it is none (a bool is none)."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number (got {value!r})")
    return int(value)


def as_int32(name: str, value: Any) -> int:
    """The same for what C takes as an int32, of which ctypes would drop the upper bits."""
    number = as_integer(name, value)
    if not -(2**31) <= number < 2**31:
        raise InputError(f"{name} must fit 32 bits (got {number})")
    return number


def as_path(value: Any) -> Path:
    """The directory of an artifact; InputError if `value` is no path."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InputError(f"an artifact is given by its path (got {value!r})")
    return Path(value)
