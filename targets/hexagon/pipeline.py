"""The dequantization pipeline of this target's linears: fetch, copy, unpack, multiply.

    fetch     the second-level cache is asked for the codes of a block of tiles (l2fetch)
    copy      they are copied into the memory beside the vector units (VTCM)
    unpack    codes become bytes
    multiply  vrmpy

A kernel of one token has the first two in the background of the others, which it does back to back
in registers; one of many unpacks a block of rows once, into a workspace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from morendo.codegen.cpu.pipeline import Pipeline

_DEEPEST = 4
"""Blocks ahead at most; the processor remembers few requests."""


@dataclass(frozen=True)
class TilePipeline(Pipeline):
    """How deep the stages are.

    Attributes:
        fetch: blocks of tiles ahead that a kernel of one token asks the cache for.
        copy: blocks of tiles ahead that it copies; 0: it reads codes where they lie.
        unpack: tokens that codes, unpacked once, are multiplied with, a multiple of 16; 0: all.
    """

    steps: ClassVar[dict[str, int]] = {"fetch": 1, "copy": 1, "unpack": 16}
    most: ClassVar[dict[str, int]] = {**Pipeline.most, "fetch": _DEEPEST, "copy": _DEEPEST}

    fetch: int = 1
    copy: int = 0

    def attribute(self, tokens: int) -> dict[str, int]:
        """What a kernel of so many tokens at most carries of it: blocks, blocks, then tokens."""
        return {**super().attribute(tokens), "copy": self.copy if tokens == 1 else 0}


DEFAULT_PIPELINE = TilePipeline()
