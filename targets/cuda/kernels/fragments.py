"""Packed codes to operands of the matrix unit: a warp's registers for 16 rows and 32 channels.

Lane l has rows l / 4 and l / 4 + 8, and of both the channels 8 (l % 4) to 8 (l % 4) + 7, in two
registers of four signed bytes: code minus zero, in the units of `WeightFormat.unit`. The matrix
unit's own order of channels is another one; as activations are read in the same order as codes, the
sums are the same, and a lane's codes lie in one word of each plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.ir.formats import WeightFormat
from morendo.targets.cuda.blocks import WARP
from morendo.targets.cuda.intrinsics import ROTATE

BLOCK = 32
"""Channels of an instruction."""

PAIR_BIAS = 0x64006400
"""The halves 1024 and 1024: the ends of their bits are numbers."""


def place_of_channel(channel: Any) -> Any:
    """Where a channel lies when a warpgroup reads it, which takes the matrix unit's own order."""
    inner = channel % BLOCK
    quarter, half, pair = inner // 8, inner // 4 % 2, inner // 2 % 2
    return channel - inner + half * 16 + pair * 8 + quarter * 2 + inner % 2


def channel_of_place(place: Any) -> Any:
    """The channel that lies there: the inverse."""
    inner = place % BLOCK
    half, pair, quarter = inner // 16, inner // 8 % 2, inner // 2 % 4
    return place - inner + quarter * 8 + half * 4 + pair * 2 + inner % 2


QUAD = 4
"""Lanes that share a row."""

_BYTES = 0x01010101
SIGNS = 0x80 * _BYTES
"""Of the four bytes of a word: with them turned, signed codes are 128 more and unsigned."""
_TWICE = 0x10001
_BASE_BIT = 5  # lower one of the two bits of a code's byte that the base plane has


@dataclass(frozen=True)
class Lane:
    """A lane of a warp.

    Attributes:
        row: its first row in a tile; the other one is 8 below.
        quarter: which of four parts of 32 channels it has.
    """

    row: Expr
    quarter: Expr

    @classmethod
    def of(cls, thread: Any) -> Lane:
        """The lane of a thread of the block."""
        lane = T.bind(thread % WARP)
        return cls(T.bind(lane // QUAD), T.bind(lane % QUAD))


@dataclass(frozen=True)
class Packed:
    """A tile's part of shared memory.

    Attributes:
        words: uint32 [slot, tile, word] of planes, or of 8-bit codes ("codes").
        bytes: uint8 [slot, tile, row] of scales and zeros.
        slot, tile: where.
    """

    format: WeightFormat
    words: dict[str, Any]
    bytes: dict[str, Any]
    slot: Any
    tile: Any

    def word(self, name: str, index: Any) -> Expr:
        return T.bind(self.words[name][self.slot, self.tile, index])

    def byte(self, name: str, row: Any) -> Expr:
        return T.cast(self.bytes[name][self.slot, self.tile, row], "uint32")

    def registers(self, lane: Lane, block: int, half: int, bits: int) -> tuple[Expr, Expr]:
        """The codes of the lane's row `half` (0 or 1) in 32 channels, read with `bits` bits."""
        row = lane.row + 8 * half
        if not self.format.nested:
            first = lane.quarter * CODE_STRIDE + block * QUAD * CODE_STRIDE + row
            return self.word("codes", first), self.word("codes", first + 16)
        base = self.word("base", (2 * block + lane.quarter // 2) * 16 + row)
        left = [_BASE_BIT - 2 * i - lane.quarter % 2 * 4 for i in range(2)]
        codes = [_field(base, by, 3 << _BASE_BIT) for by in left]
        for place, name in enumerate(self.format.plane_names[: bits - 2], start=1):
            bit = _BASE_BIT - place
            plane = self.word(name, block * 16 + row)
            for i in range(2):
                left_by = bit - i - lane.quarter * 2
                codes[i] = codes[i] | _field(plane, left_by, 1 << bit)
        # As 128 more no byte is negative, so that none borrows from the next one.
        shift = self._shift(row, bits)
        first, second = (T.bind((code + shift) ^ T.uint32(SIGNS)) for code in codes)
        return first, second

    def _shift(self, row: Expr, bits: int) -> Expr:
        """128 minus the zero of a row, in each byte of a word: its stored code times a number, and
        another one.
        """
        fmt = self.format
        stored, step, first = self.byte("scale_zero" if fmt.compact else "zero", row), 1, 0
        if fmt.compact:
            stored, step, first = stored >> T.uint32(4), fmt.zeros.step, fmt.zeros.first
        start = SIGNS - (first - fmt.middle(bits)) * _BYTES
        return T.bind(stored * T.uint32(-step * _BYTES % (1 << 32)) + T.uint32(start))

    def scale_code(self, row: Expr) -> Expr:
        """How many 255ths of the row's scale a step is: float32."""
        stored, step, first = self._stored_scale(row)
        return T.cast(stored * T.uint32(step) + T.uint32(first), "float32")

    def scale_pair(self, row: Expr) -> Expr:
        """The same twice, as `HALF_PAIR` wants it: one multiply-add from the stored number."""
        stored, step, first = self._stored_scale(row)
        return stored * T.uint32(step * _TWICE) + T.uint32(first * _TWICE + PAIR_BIAS)

    def _stored_scale(self, row: Expr) -> tuple[Expr, int, int]:
        """A number, and what it is multiplied with and has added."""
        fmt = self.format
        if not fmt.compact:
            return self.byte("scale", row), 1, 0
        return self.byte("scale_zero", row) & T.uint32(15), fmt.scales.step, fmt.scales.first


CODE_STRIDE = 40
"""Words of two steps of 8-bit codes: 32, and 8 so that the lanes of a quad meet other banks."""


def _field(word: Expr, left: Any, mask: int) -> Expr:
    """Bits of every byte of a word, moved to the left."""
    moved = T.call_pure_extern("uint32", ROTATE, word, left)
    return moved & T.uint32(mask * _BYTES)
