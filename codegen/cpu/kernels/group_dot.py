"""The exact integer product of one group of a tile's rows with one token, in registers.

The unpack and multiply-accumulate stages of a kernel for one token: all vectors of a tile's rows go
through a group together, so that activations are loaded and scales are widened once for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import Registers, splat, vector_type

from .activations import Activations
from .dequantize import STEPS, CodeReader, PlaneReader

_UNIT_SHIFT = 3  # codes of 4 bits are multiplied as they are, zeros count eighths of a step


@dataclass(frozen=True)
class GroupDot:
    """Products of codes that a reader unpacks to the bytes of the format, step by step.

    Attributes:
        halves: vectors of a tile's rows.
    """

    isa: VectorISA
    x: Activations
    reader: CodeReader
    halves: int

    @cached_property
    def sums(self) -> Registers:
        """One vector of int32 for each vector of rows."""
        return Registers(self.halves, "int32", self.isa.lanes)

    def start(self, tile: Any, group: Any) -> None:
        """Begin a group."""
        less = self.subtracted(tile, group)
        for half in range(self.halves):
            self.sums[half] = splat(T.int32(0), self.isa.lanes) - less[half]

    def subtracted(self, tile: Any, group: Any) -> list[Expr]:
        """What zero points and the offset of signed codes add to the products of codes, for each
        vector of rows: a multiple of the sum of the token's codes.
        """
        lanes, total = self.isa.lanes, self.x.sum(0, group)
        if not isinstance(self.reader, PlaneReader):
            return [total * splat(T.int32(self.isa.signed_offset), lanes)] * self.halves
        if not self.isa.integer_scales:
            return [
                total * (splat(T.int32(0), lanes) - self.reader.minus_zero(tile, group, half))
                for half in range(self.halves)
            ]
        rows = self.halves * lanes
        zeros = self.reader.scales.zero_bytes(tile, group, 0, rows)
        middle = splat(T.int8(self.reader.middle), rows)  # a group's sum of codes fits 16 bits
        total = T.cast(T.cast(total, vector_type("int16", lanes)), vector_type("int32", lanes))
        return [total * zero for zero in self.isa.widen(T.bind(zeros - middle), rows)]

    def add_block(self, tile: Any, group: Any, block: Any) -> None:
        """Add the products of 32 channels."""
        self.reader.prefetch(tile, group, block)
        dot = self.isa.dot if self.reader.unsigned else self.isa.dot_signed
        for half in range(self.halves):
            fetched = self.reader.fetch(tile, group, block, half)
            for step in range(STEPS):
                codes = self.reader.unpack(fetched, step)
                x = self.x.words(0, group, block, step)
                self.sums[half] = dot(self.sums[half], codes, x)

    def products(self) -> list[Expr]:
        """The sums of the group for each vector of rows, in units of the format's bytes."""
        return [self.sums[half] for half in range(self.halves)]


@dataclass(frozen=True)
class NibbleDot(GroupDot):
    """Products of whole codes in nibbles, which no shift has to put side by side.

    A lower nibble is a mask away from its code. An upper one is 16 times its code where the dot
    takes bytes of up to 240 (`upper_in_place`), with sums of its own; else a shift away.
    """

    reader: PlaneReader

    @cached_property
    def sums(self) -> Registers:
        """Of lower nibbles or of all; then of upper ones; then what zero points take off."""
        return Registers(3 * self.halves, "int32", self.isa.lanes)

    def start(self, tile: Any, group: Any) -> None:
        less = self.subtracted(tile, group)
        for half in range(self.halves):
            self.sums[2 * self.halves + half] = less[half]
            self.sums[half] = splat(T.int32(0), self.isa.lanes)
            self.sums[self.halves + half] = splat(T.int32(0), self.isa.lanes)

    def add_block(self, tile: Any, group: Any, block: Any) -> None:
        self.reader.prefetch(tile, group, block)
        isa, in_place = self.isa, self.isa.upper_in_place
        x = [self.x.words(0, group, block, step) for step in range(STEPS)]
        for half in range(self.halves):
            pairs = [
                T.bind(T.reinterpret(vector_type("uint8", 4 * isa.lanes), words))
                for words in self.reader.fetch(tile, group, block, half)
            ]
            lower = [self._masked(pair, 0x0F) for pair in pairs]
            upper = [self._upper(pair) for pair in pairs]
            up = self.halves + half
            if in_place:
                self.sums[half] = isa.dot_small(self.sums[half], lower, x[::2])
                self.sums[up] = isa.dot_small(self.sums[up], upper, x[1::2])
            else:
                self.sums[half] = isa.dot_small(self.sums[half], [*lower, *upper], x[::2] + x[1::2])

    def products(self) -> list[Expr]:
        isa, found = self.isa, []
        for half in range(self.halves):
            total = self.sums[half] << splat(T.int32(_UNIT_SHIFT), isa.lanes)
            if isa.upper_in_place:  # 16 times the code, needed 8 times
                total = total + (self.sums[self.halves + half] >> splat(T.int32(1), isa.lanes))
            found.append(total - self.sums[2 * self.halves + half])
        return found

    def _upper(self, pair: Expr) -> Expr:
        if self.isa.upper_in_place:
            return self._masked(pair, 0xF0)
        wide = 4 * self.isa.lanes
        shifted = pair >> splat(T.uint8(4), wide)
        return T.reinterpret(vector_type("uint32", self.isa.lanes), shifted)

    def _masked(self, pair: Expr, mask: int) -> Expr:
        masked = pair & splat(T.uint8(mask), 4 * self.isa.lanes)
        return T.reinterpret(vector_type("uint32", self.isa.lanes), masked)


def group_dot(isa: VectorISA, x: Activations, reader: CodeReader, halves: int) -> GroupDot:
    """What multiplies groups of a reader's codes."""
    if isinstance(reader, PlaneReader) and reader.format.nibbles:
        return NibbleDot(isa, x, reader, halves)
    return GroupDot(isa, x, reader, halves)
