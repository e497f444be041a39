"""The classes of x86 instructions, in AT&T's syntax as LLVM prints it."""

from __future__ import annotations

import re

from morendo.codegen.cpu.listing import Syntax

_INTEGER = "vpdpbusd|vpmaddubsw"  # vpmaddwd adds up what vpmaddubsw multiplied
_FLOAT = r"vfn?m(?:add|sub)\d+ps"


def _products(mnemonics: str, per_512: int) -> list[tuple[re.Pattern[str], int]]:
    """What an instruction multiplies, by the width of its last register."""
    widths = {"z": per_512, "y": per_512 // 2, "x": per_512 // 4}
    return [
        (re.compile(rf"(?:{mnemonics})\b.*%{name}mm\d+(?:\s*\{{%k\d\}})?$"), count)
        for name, count in widths.items()
    ]


# A multiplication of tiles counts as one product here: `tiles.products_of` knows their sizes.
SYNTAX = Syntax(
    jump=re.compile(r"j\w+\s+(\.L\w+)"),
    classes=(
        ("tile", re.compile(r"t(?:ile|dp)\w+")),
        ("dot", re.compile(rf"(?:{_INTEGER}|vpmaddwd)\b")),
        ("multiply-add", re.compile(_FLOAT)),
        ("prefetch", re.compile("prefetch")),
        ("load", re.compile(r"v?p?mov\w*\s+[^,]*\(.*\).*,\s*%")),
        ("store", re.compile(r"v?p?mov\w*\s+.*\)(?:\s*\{%k\d\})?$")),
        ("jump", re.compile(r"j\w+\s")),
        ("vector", re.compile(r".*%[xyz]mm")),
    ),
    products=(((re.compile("tdp"), 1),), _products(_INTEGER, 64), _products(_FLOAT, 16)),
)
