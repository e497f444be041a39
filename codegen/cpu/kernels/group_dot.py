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
from .dequantize import STEPS, UNIT_SHIFT, CodeReader, PlaneReader


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

    @property
    def parts(self) -> int:
        """Of the unit of the format's bytes, one of which `products` counts."""
        return 1

    def start(self, tile: Any, group: Any) -> None:
        """Begin a group."""
        for half, offset in enumerate(self.offsets(tile, group, -self.parts)):
            self.sums[half] = offset

    def offsets(self, tile: Any, group: Any, times: int) -> list[Expr]:
        """What zero points and the offset of signed codes add to the products of codes, for each
        vector of rows: a multiple of the sum of the token's codes. So many times.
        """
        lanes, total = self.isa.lanes, self.x.sum(0, group)
        if not isinstance(self.reader, PlaneReader):
            return [total * splat(T.int32(times * self.isa.signed_offset), lanes)] * self.halves
        if not self.isa.integer_scales:
            factor = splat(T.int32(-times), lanes)
            return [
                total * (self.reader.minus_zero(tile, group, half) * factor)
                for half in range(self.halves)
            ]
        rows = self.halves * lanes
        zeros = self.reader.scales.zero_bytes(tile, group, 0, rows)
        middle = splat(T.int8(self.reader.middle), rows)
        total = total * splat(T.int32(times), lanes)  # twice a group's sum of codes fits 16 bits
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
    """Products of codes that lie two in a byte, or are put there.

    A lower nibble is a mask away from its code. An upper one is 16 times its code where the dot
    takes bytes of up to 240 (`upper_in_place`), with sums of its own; else a shift away.
    """

    reader: PlaneReader

    @cached_property
    def sums(self) -> Registers:
        """Of lower nibbles or of all; then of upper ones; then what zero points take off."""
        return Registers(3 * self.halves, "int32", self.isa.lanes)

    def start(self, tile: Any, group: Any) -> None:
        for half, offset in enumerate(self.offsets(tile, group, 1)):
            self.sums[2 * self.halves + half] = offset
            self.sums[half] = splat(T.int32(0), self.isa.lanes)
            self.sums[self.halves + half] = splat(T.int32(0), self.isa.lanes)

    def add_block(self, tile: Any, group: Any, block: Any) -> None:
        self.reader.prefetch(tile, group, block)
        x = [self.x.words(0, group, block, step) for step in range(STEPS)]
        for half in range(self.halves):
            pairs = self.reader.nibbles(self.reader.fetch(tile, group, block, half))
            lower = [self._lower(each.both) for each in pairs]
            upper = [self._upper(each.both) for each in pairs]
            of_lower = [x[each.lower] for each in pairs]
            of_upper = [x[each.upper] for each in pairs]
            self._add(half, lower, of_lower, upper, of_upper)

    def _add(self, half: int, lower, of_lower, upper, of_upper) -> None:
        """Add the products of the nibbles of a vector of rows with their channels."""
        isa, up = self.isa, self.halves + half
        if isa.upper_in_place:
            self.sums[half] = isa.dot_small(self.sums[half], lower, of_lower)
            self.sums[up] = isa.dot_small(self.sums[up], upper, of_upper)
        else:
            codes, x = [*lower, *upper], [*of_lower, *of_upper]
            self.sums[half] = isa.dot_small(self.sums[half], codes, x)

    def products(self) -> list[Expr]:
        isa, found = self.isa, []
        for half in range(self.halves):
            total = self.sums[half] << splat(T.int32(UNIT_SHIFT), isa.lanes)
            if isa.upper_in_place:  # 16 times the code, needed 8 times
                total = total + (self.sums[self.halves + half] >> splat(T.int32(1), isa.lanes))
            found.append(total - self.sums[2 * self.halves + half])
        return found

    def _lower(self, pair: Expr) -> Expr:
        return _words(pair & splat(T.uint8(0x0F), 4 * self.isa.lanes), self.isa.lanes)

    def _upper(self, pair: Expr) -> Expr:
        wide = 4 * self.isa.lanes
        if self.isa.upper_in_place:
            return _words(pair & splat(T.uint8(0xF0), wide), self.isa.lanes)
        return _words(pair >> splat(T.uint8(4), wide), self.isa.lanes)


@dataclass(frozen=True)
class RaisedNibbleDot(NibbleDot):
    """The same where one instruction shifts every byte: either nibble becomes 16 times its code,
    so that the sums begin with what zero points take off and are products as they are.
    """

    @cached_property
    def sums(self) -> Registers:
        return Registers(self.halves, "int32", self.isa.lanes)

    @property
    def parts(self) -> int:
        return 2  # of the unit of 8 times the code

    def start(self, tile: Any, group: Any) -> None:
        GroupDot.start(self, tile, group)

    def _add(self, half: int, lower, of_lower, upper, of_upper) -> None:
        codes, x = [*lower, *upper], [*of_lower, *of_upper]
        self.sums[half] = self.isa.dot_small(self.sums[half], codes, x)

    def products(self) -> list[Expr]:
        return GroupDot.products(self)

    def _lower(self, pair: Expr) -> Expr:
        return _words(pair << splat(T.uint8(4), 4 * self.isa.lanes), self.isa.lanes)


def _words(pairs: Expr, lanes: int) -> Expr:
    return T.reinterpret(vector_type("uint32", lanes), pairs)


def group_dot(isa: VectorISA, x: Activations, reader: CodeReader, halves: int) -> GroupDot:
    """What multiplies groups of a reader's codes."""
    if not isinstance(reader, PlaneReader) or not reader.gives_nibbles:
        return GroupDot(isa, x, reader, halves)
    if isa.shifts_bytes and isa.upper_in_place:
        return RaisedNibbleDot(isa, x, reader, halves)
    return NibbleDot(isa, x, reader, halves)
