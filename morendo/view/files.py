"""Reading the files that a page is made of, with errors that say which one is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from morendo.ir.errors import InputError


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"cannot read {path} ({reason})", hint="write it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        InputError: when the file is something else.
    """
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})", hint="write it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is no object of JSON", hint="write it again")
    return value
