"""Attention of a single token whose keys several blocks share (Flash-Decoding, Dao et al. 2023).

A block leaves the weighted sum of its values, the sum of the weights and the largest score; a
second launch puts them together. How many blocks have keys follows from the position. Where it is
one, that one has the result, and the second launch has nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.ir.formats import ceil_div
from morendo.targets.cuda.blocks import (
    WARP,
    across_warp,
    add,
    from_lane,
    function,
    launch,
    local,
    when,
)

MOST_PARTS = WARP
_BLOCKS = 2  # of a multiprocessor, whose warps hide each other's waiting


def part_count(isa: Any, heads: int, context: int, keys: int) -> int:
    """Blocks that share the keys of a head.

    Args:
        keys: that a block takes in a turn of all its warps.
    """
    fill = _BLOCKS * isa.few_blocks // heads
    return max(min(fill, ceil_div(context, keys), MOST_PARTS), 1)


def turns(length: int, keys: int, warps: int, parts: int) -> int:
    """Turns of the warp with most keys, of a token that sees `length` of them.

    Args:
        keys: that a warp takes in a turn.
        parts: blocks that share them.
    """
    return ceil_div(ceil_div(length, keys), warps * parts)


@dataclass(frozen=True)
class Parts:
    """What blocks leave of each head, f32[H, parts, D + 2]: sums of values, largest, total."""

    buffer: Any
    heads: int
    count: int
    dim: int

    def keep(self, head: Any, part: Any, d: Any, value: Any) -> None:
        """Store the sum of element d."""
        T.buffer_store(self.buffer, value, [head, part, d])

    def keep_weights(self, head: Any, part: Any, largest: Any, total: Any) -> None:
        """Store the largest score and the sum of the weights."""
        T.buffer_store(self.buffer, largest, [head, part, self.dim])
        T.buffer_store(self.buffer, total, [head, part, self.dim + 1])

    def put_together(self, used: Any, out: Any) -> None:
        """Launch what makes f32[1, H * D] of the parts.

        Args:
            used: gives the number of parts that hold something, inside of the launch.
        """
        with launch([self.heads], ceil_div(self.dim, WARP) * WARP) as (head, thread):
            last = T.bind(used() - 1)
            with when(last > 0):
                self._sum(head, thread, last, out)

    def _sum(self, head: Any, thread: Any, last: Any, out: Any) -> None:
        lane = T.bind(thread % WARP)
        mine = T.bind(T.min(lane, last))
        score, weight = (T.bind(self.buffer[head, mine, self.dim + i]) for i in (0, 1))
        largest = across_warp(score, T.max)
        bent = function("expf", T.bind(score - largest))
        factor = T.bind(tirx.Select(lane <= last, bent, T.float32(0.0)))
        total = across_warp(factor * weight, add)
        d, value = T.bind(T.min(thread, T.int32(self.dim - 1))), local(1, T.float32(0.0))
        for part in range(self.count):  # all loads at once; parts without keys have the factor 0
            sums = self.buffer[head, T.min(T.int32(part), last), d]
            T.buffer_store(value, value[0] + from_lane(factor, part) * sums, [0])
        with when(thread < self.dim):
            T.buffer_store(out, value[0] / total, [0, head * self.dim + thread])
