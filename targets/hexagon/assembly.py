"""Hexagon's assembly: what is counted are packets, instructions that are executed together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from morendo.codegen.cpu.listing import Syntax
from morendo.codegen.kernel_code import KernelCode

PRODUCTS_OF_A_DOT = 128
"""Products of bytes that one vrmpy of a vector makes."""

_LABEL = re.compile(r"([\w.$]+):")
_LOOP = re.compile(r"\bloop[01]\(#*(\.L\w+)")
_END = re.compile(r"\s*\}\s*((?::\w+\s*)*)")
_JUMP = r"(?:jump(?::n?t)?|:endloop[01])\s+(\.L\w+)"


def packets(listing: str) -> str:
    """The listing with a line for each packet; the end of a hardware loop names its label."""
    heads = {found[1] for found in _LOOP.finditer(listing)}
    lines, packet, head = [], None, ""
    for line in listing.splitlines():
        text = line.partition("//")[0].rstrip()
        label, end = _LABEL.match(text), _END.match(text)
        if label and label[1] in heads:
            head = label[1]
        if text.strip() == "{":
            packet = []
        elif packet is not None and end:
            ends = [f"{each} {head}" for each in end[1].split()]
            lines.append("\t" + " | ".join([*packet, *ends]))
            packet = None
        elif packet is not None:
            packet.append(text.strip().replace("#", ""))
        else:
            lines.append(text)
    return "\n".join(lines) + "\n"


_DOT = re.compile(r".*\bvrmpy\(")
_TWO_DOTS = re.compile(r".*\bvrmpy\(.*\bvrmpy\(")

SYNTAX = Syntax(
    jump=re.compile(".*" + _JUMP),
    classes=(
        ("dot", _DOT),
        ("vector", re.compile(r".*\bv\d+\b")),
        ("scalar", re.compile("")),
    ),
    products=(((_DOT, PRODUCTS_OF_A_DOT), (_TWO_DOTS, PRODUCTS_OF_A_DOT)),),
    lines=packets,
)


@dataclass(frozen=True)
class HexagonCode(KernelCode):
    """A kernel for an NPU; an instruction is a packet of up to four."""

    NOTES: ClassVar[str] = """\
Instructions here are packets of up to four. products: of a weight and an activation, for a packet
of the hot loop; HVX: part of its packets that the vector units have something to do in."""


def with_figures(code: KernelCode, dots: int) -> KernelCode:
    """The code with products that are made in parts counted once, and what people ask for.

    Args:
        dots: instructions that it takes for the products of a vector.
    """
    size = sum(code.loop.values())
    if not size:
        return code
    products = code.products // dots
    share = 1 - code.loop.get("scalar", 0) / size
    figures = {"products": f"{products / size:.1f}", "HVX": f"{share:.0%}"}
    own = figures if products else {"HVX": figures["HVX"]}
    return HexagonCode(code.instructions, code.loop, products, own)
