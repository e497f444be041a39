"""The page with its data, as one HTML file that asks for nothing from a network."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from morendo.ir.errors import MorendoError

PAGE = Path(__file__).parent / "page.html"
_DATA, _TITLE = "/*DATA*/null", "TITLE"


def write_page(data: dict[str, Any]) -> str:
    """The text of the page.

    Args:
        data: as `collect` gives them.

    Raises:
        MorendoError: when the page was not built.
    """
    try:
        page = PAGE.read_text(encoding="utf-8")
    except OSError:
        raise MorendoError("the page was not built", hint="run `make page`") from None
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":  # no text of a model ends the script that it stands in
        text = text.replace(character, f"\\u{ord(character):04x}")
    head, _, tail = page.partition(_DATA)
    title = html.escape(f"{data['title']} - morendo")
    return head.replace(f"<title>{_TITLE}</title>", f"<title>{title}</title>", 1) + text + tail
