"""The dequantization pipeline of a CPU's linears as a description: fetch, unpack, multiply.

Packed codes are fetched from memory, unpacked to bytes, and multiplied. One token runs the stages
back to back in registers, so that only the first has a depth; more tokens unpack a row block once
into a workspace. Other depths are for comparing; a kernel carries those that it was built with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
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
            depth = getattr(self, stage)
            if not 0 <= depth <= self.most[stage] or depth % step:
                raise self._wrong_depth(stage, depth)

    def with_depths(self, text: str) -> Self:
        """The same with what a text such as fetch=0,unpack=16 says.

        Raises:
            InputError: when it says anything else, or something twice.
        """
        depths: dict[str, int] = {}
        for part in text.split(","):
            stage, _, depth = part.partition("=")
            if stage not in self.steps:
                known = ", ".join(self.steps)
                raise InputError(
                    f"this target's pipeline has no such stage (got {part!r}, it has {known})"
                )
            if stage in depths:
                raise InputError(f"a stage of the pipeline has one depth (got {text!r})")
            if not re.fullmatch("[0-9]{1,6}", depth):
                raise self._wrong_depth(stage, depth)
            depths[stage] = int(depth)
        return replace(self, **depths)

    def _wrong_depth(self, stage: str, depth: int | str) -> InputError:
        step, most = self.steps[stage], self.most[stage]
        need = f"a multiple of {step} from 0 to {most}" if step > 1 else f"0 to {most}"
        return InputError(f"the pipeline's {stage} must be {need} (got {depth})")

    def attribute(self, tokens: int) -> dict[str, int]:
        """What a kernel of so many tokens at most carries of it: bytes, then tokens."""
        if tokens == 1:
            return {"fetch": self.fetch, "unpack": 1, "multiply": 1}
        return {"fetch": 0, "unpack": self.unpack or tokens, "multiply": tokens}


DEFAULT_PIPELINE = Pipeline()
