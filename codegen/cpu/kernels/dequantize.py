"""The dequantization pipeline's first stages: fetch packed codes, unpack them to bytes.

A block is 32 input channels of one tile of R rows, that is 8 steps of 4 channels. `fetch` loads
what a block needs into registers once; `unpack` gives one step as words (see `isa.py`) by shifting
each plane to the bit position where it belongs, masking, and combining with or.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import (
    load_words,
    prefetch,
    settled,
    shift_left,
    splat,
    vector_type,
)
from morendo.ir.formats import BYTE_BITS, WeightFormat
from morendo.ir.ladders import SCALE_STEPS

from .scales import GroupScales, group_scales

BLOCK = 32
"""Input channels that are fetched together: one byte of a one-bit plane holds 8 steps of 4."""
STEPS = BLOCK // 4
UNIT_SHIFT = 3
"""Codes of 4 bits are bytes of 8 times the code, and zeros count eighths of a step."""

_ODD_BITS = 0xAAAAAAAA
_ONE_STREAM = (
    4  # times as far ahead where all bits are in one array (measured, docs/performance.md)
)

Level = Sequence[Expr]
"""(n3, n4, ...): how many groups are read with the third, fourth, ... bit at least."""


class CodeReader(Protocol):
    """Reads the codes of one matrix in one precision."""

    @property
    def unsigned(self) -> bool: ...  # with zero points per row; else codes are signed, without

    def prefetch(self, tile: Expr, group: Expr, block: Expr | int) -> None: ...

    def fetch(self, tile: Expr, group: Expr, block: Expr | int, half: int) -> list[Expr]: ...

    def unpack(self, fetched: list[Expr], step: int) -> Expr: ...

    def minus_zero(self, tile: Expr, group: Expr, half: int) -> Expr: ...


@dataclass(frozen=True)
class ByteReader:
    """Signed 8-bit codes, one byte each."""

    isa: VectorISA
    codes: Any  # int8 [T, G, g/4, R, 4]
    unsigned: bool = False

    def prefetch(self, tile, group, block) -> None:
        """Leave it to the hardware: it follows a single stream better without help (measured)."""

    def fetch(self, tile, group, block, half) -> list[Expr]:
        """The words of 8 steps."""
        lanes = self.isa.lanes
        rows = half * lanes
        return [
            load_words(self.codes, (tile, group, block * STEPS + step, rows, 0), lanes)
            for step in range(STEPS)
        ]

    def unpack(self, fetched, step) -> Expr:
        """Codes plus the offset that the dot instruction wants; adding 128 flips the top bit."""
        offset = self.isa.signed_offset
        return fetched[step] ^ splat(T.uint32(offset * 0x01010101), self.isa.lanes)

    def minus_zero(self, tile, group, half) -> Expr:
        """Signed codes have no zero point."""
        return splat(T.int32(0), self.isa.lanes)


@dataclass(frozen=True)
class Nibbles:
    """Two codes of 4 bits in each byte.

    Attributes:
        both: uint8 x 4 lanes.
        lower, upper: the steps of a block whose codes they are.
    """

    both: Expr
    lower: int
    upper: int


@dataclass(frozen=True)
class PlaneReader:
    """Nested codes read with some of their bits; bytes are `format.unit` times the code.

    Attributes:
        planes: those that are read, from plane 3 on.
    """

    isa: VectorISA
    format: WeightFormat
    base: Any  # uint8 [T, G, g/16, 4R], of nibbles [T, G, g/8, 4R]
    planes: Sequence[Any]  # uint8 [T, P, g/32, 4R] each, P known at run time
    scales: GroupScales
    unsigned: bool = True

    def prefetch(self, tile, group, block) -> None:
        ahead = self.isa.pipeline.fetch * (_ONE_STREAM if self.format.nibbles else 1)
        if not ahead:
            return
        for chunk in range(self.chunks):
            prefetch(self.base, (tile, group, self.chunks * block + chunk, ahead))
        for plane in self.planes:
            prefetch(plane, (tile, group, block, ahead // 2))

    @property
    def chunks(self) -> int:
        """Words of a block in the base."""
        return STEPS * self.format.base_bits // 8

    def fetch(self, tile, group, block, half) -> list[Expr]:
        """The chunks of the base, then the lower planes.

        Two lower planes have their bits paired up first, for even steps and for odd steps:
        two shifts and two selections here save one shift and one mask in each of the 8 steps.
        """
        lanes = self.isa.lanes
        byte = half * lanes * 4
        chunks = [
            load_words(self.base, (tile, group, self.chunks * block + i, byte), lanes)
            for i in range(self.chunks)
        ]
        lower = [
            T.bind(load_words(plane, (tile, group, block, byte), lanes)) for plane in self.planes
        ]
        for i in range(0, len(lower) - 1, 2):
            high, low = lower[i : i + 2]
            even = self._pair(shift_left(high, 1, lanes), low)  # step s: bits s+1, s
            odd = self._pair(high, shift_left(low, -1, lanes))  # step s: bits s, s-1
            lower[i : i + 2] = [even, odd]
        return [T.bind(chunk) for chunk in chunks + lower]

    def unpack(self, fetched, step) -> Expr:
        """The byte of a code: base bits to 6 and below, plane 3 to bit 4, plane 4 to bit 3, ..."""
        width = self.format.base_bits
        chunk, field = divmod(step, 8 // width)
        place = BYTE_BITS - width
        mask = (1 << width) - 1 << place
        words = self.isa.extract(fetched[chunk], place - width * field, mask)
        for i in range(0, len(self.planes) - 1, 2):
            low_bit, pair_at = 3 - i, step - step % 2
            pair = fetched[self.chunks + i + step % 2]
            words = words | self.isa.extract_lower(pair, low_bit - pair_at, 3 << low_bit)
        if len(self.planes) % 2:
            bit = 5 - len(self.planes)
            words = words | self.isa.extract_lower(fetched[-1], bit - step, 1 << bit)
        return words

    @property
    def gives_nibbles(self) -> bool:
        """Whether `nibbles` is the way to unpack them for one token."""
        return self.format.nibbles or (self.isa.planes_to_nibbles and self.format.kind == "q4")

    def nibbles(self, fetched: list[Expr]) -> list[Nibbles]:
        """The codes of 4 bits of a block, two in a byte; bits that are not read are 0.

        Two bits of eight steps become a byte of two codes by selecting bits of two vectors.
        """
        wide = 4 * self.isa.lanes
        found = [T.reinterpret(vector_type("uint8", wide), words) for words in fetched]
        if self.format.nibbles:
            return [Nibbles(T.bind(both), 2 * i, 2 * i + 1) for i, both in enumerate(found)]

        def moved(values: Expr, left: int) -> Expr:
            count = splat(T.uint8(abs(left)), wide)
            if not left:
                return values
            return values << count if left > 0 else values >> count

        def masked(values: Expr, mask: int) -> Expr:
            return values & splat(T.uint8(mask), wide)

        first, second = found[:2]
        if not self.planes:  # LLVM merges these masks with those of either nibble
            return [
                Nibbles(masked(moved(base, 2 - 2 * odd), 0xCC), at + odd, at + odd + 2)
                for at, base in ((0, first), (4, second))
                for odd in range(2)
            ]
        upper = [  # steps 0, 1, 4, 5 and 2, 3, 6, 7, from the lowest bits on
            T.bind(masked(first, 0x0F) | moved(second, 4)),
            T.bind(moved(first, -4) | masked(second, 0xF0)),
        ]
        lower = found[2:]  # even steps and odd ones
        if len(lower) == 1:
            alone = [masked(moved(lower[0], 1), 0xAA), masked(lower[0], 0xAA)]
            lower = [T.bind(settled(bits, wide)) for bits in alone]
        pairs = []
        for step in range(4):
            base = upper[step // 2]
            rest = moved(lower[step % 2], -2 * (step // 2))
            both = masked(moved(base, 2 - step % 2 * 2), 0xCC) | masked(rest, 0x33)
            pairs.append(Nibbles(T.bind(settled(both, wide)), step, step + 4))
        return pairs

    def _pair(self, high: Expr, low: Expr) -> Expr:
        """Odd bits of `high` and even bits of `low`."""
        odd = splat(T.uint32(_ODD_BITS), self.isa.lanes)
        return (high & odd) | (low & ~odd)

    @property
    def middle(self) -> int:
        """What zero points are lowered by, since lower bits are not read."""
        return self.format.middle(self.format.base_bits + len(self.planes))

    def minus_zero(self, tile, group, half) -> Expr:
        """The negated zero points: int32 x lanes in the units of the bytes."""
        lanes = self.isa.lanes
        zero = self.scales.zero(tile, group, half * lanes, lanes)
        return splat(T.int32(self.middle), lanes) - zero


@dataclass(frozen=True)
class QuantizedWeights:
    """The weight buffers of a kernel and how to go through their groups."""

    isa: VectorISA
    format: WeightFormat
    groups: int
    buffers: dict[str, Any]

    @property
    def blocks(self) -> int:
        """Blocks of 32 channels in a group."""
        return self.format.group_size // BLOCK

    @cached_property
    def scales(self) -> GroupScales:
        """What reads scales and zeros."""
        return group_scales(self.format, self.buffers)

    @property
    def scale_unit(self) -> int:
        """Weights are row_scale * scale * code / scale_unit, codes as the readers give them."""
        return SCALE_STEPS * self.format.unit

    def ranges(self, level: Level | None) -> Iterator[tuple[CodeReader, Any, Any]]:
        """(reader, first group, end) for each precision of the level, the most bits first."""
        if level is None:
            yield ByteReader(self.isa, self.buffers["codes"]), 0, self.groups
            return
        base, planes = self.buffers["base"], [self.buffers[n] for n in self.format.plane_names]
        bounds = itertools.pairwise([0, *reversed(level), self.groups])
        for count, (first, end) in zip(range(len(planes), -1, -1), bounds, strict=True):
            reader = PlaneReader(self.isa, self.format, base, planes[:count], self.scales)
            yield reader, first, end

    def scale(self, tile: Expr, group: Expr, half: int) -> Expr:
        """The scale codes of a tile's rows as float32 x lanes."""
        lanes = self.isa.lanes
        return self.scales.scale(tile, group, half * lanes, lanes)

    def minus_zero(self, tile: Expr, group: Expr, half: int, level: Level) -> Expr:
        """The negated zero points at a level: int32 x lanes, in the units of the bytes."""
        lowest = self.format.base_bits
        middle = T.int32(self.format.middle(lowest))
        for bits, end in enumerate(level, start=lowest + 1):
            middle = T.Select(group < end, T.int32(self.format.middle(bits)), middle)
        lanes = self.isa.lanes
        return splat(middle, lanes) - self.scales.zero(tile, group, half * lanes, lanes)

    def row_scale(self, tile: Expr, half: int, parts: int = 1) -> Expr:
        """row_scale / scale_unit of a tile's rows, for codes in that many parts of the unit."""
        lanes = self.isa.lanes
        rows = self.scales.row_scale(tile * self.format.row_tile + half * lanes, lanes)
        return rows * splat(T.float32(1 / (self.scale_unit * parts)), lanes)
