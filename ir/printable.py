"""Text of files as a terminal may show it: control characters are spelled out, not obeyed."""

from __future__ import annotations

import re

# Control characters of ASCII and Latin-1, what turns the direction of writing, line separators,
# and halves of surrogate pairs, which no terminal's encoding has.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""`text` on one line, each control character as its escape: "\x1b[31m" is \x1b[31m."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """`text`, printable, with one space for each run of white space."""
    return printable(" ".join(text.split()))
