"""The classes of 64-bit ARM instructions, as LLVM prints them."""

from __future__ import annotations

import re

from morendo.codegen.cpu.listing import Syntax

_INTEGER = (
    (re.compile(r"u?sdot\s"), 16),
    (re.compile(r"smmla\s"), 32),
    (re.compile(r"sm(?:ull|lal)2?\s+v\d+\.8h"), 8),
)
_FLOAT = ((re.compile(r"fml[as]\s+v\d+\.4s"), 4),)

SYNTAX = Syntax(
    jump=re.compile(r"(?:b(?:\.\w+)?|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.L\w+)$"),
    classes=(
        ("dot", re.compile(r"u?sdot\s|smmla\s|sm(?:ull|lal)2?\s+v")),
        ("multiply-add", re.compile(r"fml[as]\s+v")),
        ("prefetch", re.compile("prfm")),
        ("load", re.compile(r"ld\w+\s")),
        ("store", re.compile(r"st\w+\s")),
        ("jump", re.compile(r"(?:b(?:\.\w+)?|cbn?z|tbn?z)\s")),
        ("vector", re.compile(r".*\b[vq]\d+\b")),
    ),
    products=(_INTEGER, _FLOAT),
)
