"""How commands that measure give their figures: as a table, as JSON, or both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from morendo.terminal import paint


def give(
    figures: Any, show: Callable[[], str], path: Path | None, notes: Sequence[str] = ()
) -> None:
    """Print notes and what `show` says, and write the figures to a file if one is given; `-` prints
    the figures alone.
    """
    for note in notes:
        print(paint(f"note: {note}", "yellow", sys.stderr), file=sys.stderr)
    if path == Path("-"):
        print(json.dumps(figures, indent=1))
        return
    print(show())
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
