"""The dequantization pipeline of a CPU's linears as a description: fetch, unpack, multiply.

Packed codes are fetched from memory, unpacked to bytes, and multiplied. One token runs the stages
back to back in registers, so that only the first has a depth; more tokens unpack a row block once
into a workspace. Other depths are for comparing; a kernel carries those that it was built with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

from morendo.ir.errors import InputError


@dataclass(frozen=True)
class Pipeline:
    """How deep the stages are; a target may have a subclass with stages of its own.

    Attributes:
        steps: what a stage's depth is a multiple of.
        most: the largest depth of a stage.
        fetch: bytes ahead of its reads that a kernel of one token asks memory for the base of codes
            in planes, four times as many where they lie in nibbles; 0: it leaves that to the
            processor.
        unpack: tokens that codes, unpacked once, are multiplied with, a multiple of 16; 0: all of
            them, unless more threads need work.
    """

    # Bytes of a cache line; tokens of all register blocks.
    steps: ClassVar[dict[str, int]] = {"fetch": 64, "unpack": 16}
    most: ClassVar[dict[str, int]] = {"fetch": 1 << 16, "unpack": 1 << 16}

    fetch: int = 0
    unpack: int = 0

    def __post_init__(self) -> None:
        for stage, step in self.steps.items():
            depth, most = getattr(self, stage), self.most[stage]
            if not 0 <= depth <= most or depth % step:
                raise InputError(
                    f"bad pipeline: {stage} is no multiple of {step} up to {most} (got {depth})"
                )

    def with_depths(self, text: str) -> Self:
        """The same with what a text such as fetch=0,unpack=16 says.

        Raises:
            InputError: when it says anything else.
        """
        depths = {each.name: getattr(self, each.name) for each in fields(self)}
        for part in text.split(","):
            match = re.fullmatch(r"(\w+)=(\d{1,6})", part)
            if not match or match[1] not in depths:
                known = " or ".join(f"{name}=N" for name in depths)
                raise InputError(f"no stage of the pipeline (got {part!r}, need {known})")
            depths[match[1]] = int(match[2])
        return replace(self, **depths)

    def attribute(self, tokens: int) -> dict[str, int]:
        """What a kernel of so many tokens at most carries of it: bytes, then tokens."""
        if tokens == 1:
            return {"fetch": self.fetch, "unpack": 1, "multiply": 1}
        return {"fetch": 0, "unpack": self.unpack or tokens, "multiply": tokens}


DEFAULT_PIPELINE = Pipeline()
