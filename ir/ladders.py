"""The whole numbers that scales and zeros of packed weights are stored as."""

from __future__ import annotations

from dataclasses import dataclass

SCALE_STEPS = 255
"""Scales are `row_scale * code / 255` with a code of 8 bits for each row and group."""


@dataclass(frozen=True)
class Ladder:
    """The evenly spaced whole numbers that a stored code can mean: first + step * code.

    Attributes:
        first: what code 0 means.
        step: between two codes.
        count: of codes.
    """

    first: int
    step: int
    count: int

    @property
    def last(self) -> int:
        """The largest number."""
        return self.first + self.step * (self.count - 1)


SCALES = Ladder(1, 1, SCALE_STEPS)
ZEROS = Ladder(0, 1, 128)
COMPACT_SCALES = Ladder(60, 13, 16)
"""Scale codes that 4 bits number: from a quarter of the row's largest step to all of it."""
COMPACT_ZEROS = Ladder(38, 3, 16)
"""Zeros that 4 bits number: less than 24 units, three steps of 4-bit codes, from the middle 60."""
