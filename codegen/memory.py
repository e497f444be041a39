"""The static memory plan: offsets for buffers that live from one step to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from morendo.ir.layout import DEFAULT_LAYOUT, TileLayout


@dataclass
class Storage:
    """A piece of one of the plan's spaces.

    Attributes:
        space: "arena" until it is placed elsewhere ("weights", "cache", "ids", "logits").
        nbytes: size at the most tokens.
        offset: in its space; for the arena set by `plan_arena`.
        first, last: the steps between which an arena buffer holds a value.
    """

    space: str
    nbytes: int
    offset: int = 0
    first: int = -1
    last: int = -1

    def used_at(self, step: int) -> None:
        """Extend the buffer's life to a step."""
        if self.first < 0:
            self.first = step
        self.last = max(self.last, step)


def plan_arena(buffers: Sequence[Storage], layout: TileLayout = DEFAULT_LAYOUT) -> int:
    """Give every arena buffer an offset so that no two that live at once overlap.

    Largest first, each at the lowest offset that fits between those already placed.

    Returns:
        The size of the arena in bytes.
    """
    placed: list[Storage] = []
    for buffer in sorted(buffers, key=lambda b: (-b.nbytes, b.first)):
        alive = [b for b in placed if b.first <= buffer.last and buffer.first <= b.last]
        buffer.offset = 0
        for other in sorted(alive, key=lambda b: b.offset):
            if buffer.offset + buffer.nbytes <= other.offset:
                break
            buffer.offset = max(buffer.offset, other.offset + layout.aligned(other.nbytes))
        placed.append(buffer)
    return max((b.offset + layout.aligned(b.nbytes) for b in placed), default=0)
