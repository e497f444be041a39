"""The dequantization pipeline's first stages: fetch packed codes, unpack them to bytes.

A block is 32 input channels of one tile of R rows, that is 8 steps of 4 channels. `fetch` loads
what a block needs into registers once; `unpack` gives one step as words (see `isa.py`) by shifting
each plane to the bit position where it belongs, masking, and combining with or.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import (
    load_words,
    prefetch,
    shift_left,
    splat,
)
from morendo.ir.formats import SCALE_STEPS, WeightFormat

from .scales import GroupScales, group_scales

BLOCK = 32
"""Input channels that are fetched together: one byte of a one-bit plane holds 8 steps of 4."""
STEPS = BLOCK // 4

_BASE_MASK, _LOWER_MASK, _PLANE3_MASK = 0x60, 0x18, 0x10
_ODD_BITS = 0xAAAAAAAA
_ZERO_OF_MISSING_BITS = {4: 0, 3: 4, 2: 12}  # eighths of a step: the middle of what is cut off


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
class PlaneReader:
    """Nested codes read at 4, 3 or 2 bits; bytes are 8 times the code."""

    isa: VectorISA
    bits: int
    base: Any  # uint8 [T, G, g/16, 4R]
    plane3: Any  # uint8 [T, P3, g/32, 4R], P3 and P4 known at run time
    plane4: Any  # uint8 [T, P4, g/32, 4R]
    scales: GroupScales
    unsigned: bool = True

    def prefetch(self, tile, group, block) -> None:
        ahead = self.isa.prefetch_bytes
        if not ahead:
            return
        for chunk in range(2):
            prefetch(self.base, (tile, group, 2 * block + chunk, ahead))
        if self.bits >= 3:
            prefetch(self.plane3, (tile, group, block, ahead // 2))
        if self.bits >= 4:
            prefetch(self.plane4, (tile, group, block, ahead // 2))

    def fetch(self, tile, group, block, half) -> list[Expr]:
        """Two chunks of the base plane, then the lower planes.

        With both lower planes, their bits are first paired up for even steps and for odd steps:
        two shifts and two selections here save one shift and one mask in each of the 8 steps.
        """
        lanes = self.isa.lanes
        byte = half * lanes * 4
        chunks = [
            load_words(self.base, (tile, group, 2 * block + i, byte), lanes) for i in range(2)
        ]
        lower = [self.plane3, self.plane4][: self.bits - 2]
        lower = [T.bind(load_words(plane, (tile, group, block, byte), lanes)) for plane in lower]
        if self.bits == 4:
            plane3, plane4 = lower
            even = self._pair(shift_left(plane3, 1, lanes), plane4)  # step s: bits s+1, s
            odd = self._pair(plane3, shift_left(plane4, -1, lanes))  # step s: bits s, s-1
            lower = [even, odd]
        return [T.bind(chunk) for chunk in chunks + lower]

    def unpack(self, fetched, step) -> Expr:
        """8 * code: base bits to 6..5, plane 3 to bit 4, plane 4 to bit 3."""
        words = self.isa.extract(fetched[step // 4], 5 - 2 * (step % 4), _BASE_MASK)
        if self.bits == 4:
            pair_at = step - step % 2
            words = words | self._field(fetched[2 + step % 2], 3 - pair_at, _LOWER_MASK)
        elif self.bits == 3:
            words = words | self._field(fetched[2], 4 - step, _PLANE3_MASK)
        return words

    def _pair(self, high: Expr, low: Expr) -> Expr:
        """Odd bits of `high` and even bits of `low`."""
        odd = splat(T.uint32(_ODD_BITS), self.isa.lanes)
        return (high & odd) | (low & ~odd)

    def _field(self, words: Expr, left: int, mask: int) -> Expr:
        """Like `extract`, always with a shift: other execution units than a combined instruction
        has, and the mask merges with the or.
        """
        lanes = self.isa.lanes
        return shift_left(words, left, lanes) & splat(T.uint32(mask * 0x01010101), lanes)

    def minus_zero(self, tile, group, half) -> Expr:
        """The negated zero points: int32 x lanes in the units of the bytes."""
        missing = T.int32(_ZERO_OF_MISSING_BITS[self.bits])
        lanes = self.isa.lanes
        return splat(missing, lanes) - self.scales.zero(tile, group, half * lanes, lanes)


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
        return SCALE_STEPS * (8 if self.format.kind == "q4" else 1)

    def ranges(self, level: tuple[Expr, Expr] | None) -> Iterator[tuple[CodeReader, Any, Any]]:
        """(reader, first group, end) for each precision of the level (n3, n4)."""
        if level is None:
            yield ByteReader(self.isa, self.buffers["codes"]), 0, self.groups
            return
        n3, n4 = level
        planes = [self.buffers[name] for name in ("base", "plane3", "plane4")]
        for bits, first, end in ((4, 0, n4), (3, n4, n3), (2, n3, self.groups)):
            yield PlaneReader(self.isa, bits, *planes, scales=self.scales), first, end

    def scale(self, tile: Expr, group: Expr, half: int) -> Expr:
        """The scale codes of a tile's rows as float32 x lanes."""
        lanes = self.isa.lanes
        return self.scales.scale(tile, group, half * lanes, lanes)

    def minus_zero(self, tile: Expr, group: Expr, half: int, level: tuple[Expr, Expr]) -> Expr:
        """The negated zero points at a level: int32 x lanes, in the units of the bytes."""
        n3, n4 = level
        of = _ZERO_OF_MISSING_BITS
        lower = T.Select(group < n3, T.int32(of[3]), T.int32(of[2]))
        missing = T.Select(group < n4, T.int32(of[4]), lower)
        lanes = self.isa.lanes
        return splat(missing, lanes) - self.scales.zero(tile, group, half * lanes, lanes)

    def row_scale(self, tile: Expr, half: int) -> Expr:
        """row_scale / scale_unit of a tile's rows."""
        lanes = self.isa.lanes
        rows = self.scales.row_scale(tile * self.format.row_tile + half * lanes, lanes)
        return rows * splat(T.float32(1 / self.scale_unit), lanes)
