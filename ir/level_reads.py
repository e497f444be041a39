"""What a linear reads at each precision level, as the attribute `levels` of the IR spells it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True)
class LevelRead:
    """What is read of a nested matrix at one level.

    Attributes:
        bounds: loop bounds (n3, n4, ...): how many groups of each plane.
        reading: of the format's readings; its scales are read.
    """

    bounds: tuple[int, ...]
    reading: int = 0

    def __str__(self) -> str:
        """Such as "18,9" or, at the second reading, "18,0@1"."""
        suffix = f"@{self.reading}" if self.reading else ""
        return ",".join(map(str, self.bounds)) + suffix

    @classmethod
    def parse(cls, text: str) -> LevelRead:
        """Read what `str` writes.

        Raises:
            InputError: when the text is no such thing.
        """
        match = re.fullmatch(r"(\d+(?:,\d+)*)(?:@(\d+))?", text)
        if not match:
            raise InputError(f"no bounds of a level (got {text!r}, need such as 18,9 or 18,0@1)")
        return cls(tuple(map(int, match.group(1).split(","))), int(match.group(2) or 0))


def parse_levels(texts: Sequence[str]) -> list[LevelRead]:
    """The attribute `levels` of a linear, the most precise level first."""
    return [LevelRead.parse(text) for text in texts]
