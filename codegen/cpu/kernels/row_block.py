"""A block of row tiles as a product with many tokens goes through it: unpacked, in its order.

The codes lie as the multiply instruction takes them (`MatrixBlock`), the scales as floats in the
lanes of its sums; what is multiplied together (`RegisterBlock`) lies side by side. So a block is
unpacked once, and its products load whole vectors one after the other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.register_block import RegisterBlock
from morendo.codegen.cpu.vectors.vector import load, shift_left, splat, store, vector_type

from .dequantize import STEPS, UNIT_SHIFT, CodeReader
from .quantized_kernel import QuantizedKernel


@dataclass(frozen=True)
class RowBlock:
    """The unpacked codes and the scales of some tiles, P parts that are multiplied at a time.

    Attributes:
        kernel: whose parameters they are read from.
        tiles: T, tiles side by side.
        registers: what is multiplied at a time: C = T * halves * parts vectors of a step.
        codes: uint32 [P, S, C, lanes], S steps of the multiply instruction.
        scales: float32 [P, G, C, lanes] in units of the row scales; None where nobody asks.
    """

    kernel: QuantizedKernel
    tiles: int
    registers: RegisterBlock
    codes: Any
    scales: Any

    @classmethod
    def allocate(
        cls, kernel: QuantizedKernel, tiles: int, registers: RegisterBlock, scaled: bool
    ) -> RowBlock:
        """The memory of a row block.

        Args:
            scaled: whether products ask for scales.
        """
        parts, groups, lanes = kernel.isa.block.parts, kernel.spec.groups, kernel.isa.lanes
        passes, vectors = kernel.halves // registers.halves, tiles * registers.halves * parts
        steps = groups * kernel.weights.blocks * STEPS // parts
        codes = T.alloc_buffer((passes, steps, vectors, lanes), "uint32", layout=None)
        scales = None
        if scaled:
            scales = T.alloc_buffer((passes, groups, vectors, lanes), "float32", layout=None)
        return cls(kernel, tiles, registers, codes, scales)

    def unpack(self, first_tile: Expr) -> None:
        """Read the tiles from `first_tile` on at the kernel's level."""
        for reader, first, end in self.kernel.weights.ranges(self.kernel.level):
            with T.serial(first, end) as group:
                self._unpack_group(reader, first_tile, group)

    def tile(self, tile: Expr) -> Expr:
        """`tile`, or the last one where the row block hangs over the matrix."""
        return last_tile(self.kernel, tile, self.tiles)

    def code(self, half: int, group: Expr, block: Expr, step: int, vector: int) -> Expr:
        """What a multiply instruction takes: vector number `vector` of those multiplied with
        `half`, at a step of four channels of a block of 32.
        """
        at = self._step(group, block, step)
        return load(self.codes, (self._pass(half), at, vector, 0), self.kernel.isa.lanes)

    def scale(self, half: int, group: Expr, vector: int) -> Expr:
        """The scales of that vector's rows: float32 x lanes, as its sums lie."""
        return load(self.scales, (self._pass(half), group, vector, 0), self.kernel.isa.lanes)

    def _pass(self, half: int) -> int:
        return half // self.registers.halves

    def _step(self, group: Expr, block: Expr, step: int) -> Expr:
        parts = self.kernel.isa.block.parts
        return (group * self.kernel.weights.blocks + block) * (STEPS // parts) + step // parts

    def _unpack_group(self, reader: CodeReader, first_tile: Expr, group: Expr) -> None:
        """Write one group: codes (in units of the format's bytes, or as they are), or code - zero +
        signed_offset, and scales.
        """
        kernel, lanes = self.kernel, self.kernel.isa.lanes
        weights, unit, halves = kernel.weights, kernel.isa.block, self.registers.halves
        for i, half in itertools.product(range(self.tiles), range(kernel.halves)):
            tile, at = self.tile(first_tile + i), self._pass(half)
            vector = (i * halves + half % halves) * unit.parts
            if self.scales is not None:
                scales = T.bind(weights.scale(tile, group, half))
                for part in range(unit.parts):
                    spread = unit.spread_rows(scales, part)
                    store(self.scales, (at, group, vector + part, 0), spread, lanes)
            fold = _zero_bytes(kernel, reader, tile, group, half)
            with T.serial(0, weights.blocks) as block:
                fetched = reader.fetch(tile, group, block, half)
                for step in range(0, STEPS, unit.parts):
                    words = [reader.unpack(fetched, step + part) for part in range(unit.parts)]
                    if kernel.short:
                        words = [shift_left(word, -UNIT_SHIFT, lanes) for word in words]
                    if fold is not None:
                        words = [_add_bytes(word, fold, lanes) for word in words]
                    where = at, self._step(group, block, step)
                    for part, codes in enumerate(unit.pack(words)):
                        store(self.codes, (*where, vector + part, 0), codes, lanes)


def last_tile(kernel: QuantizedKernel, tile: Expr, tiles: int) -> Expr:
    """`tile`, or the last one where a block of `tiles` hangs over the matrix."""
    return T.min(tile, kernel.spec.tiles - 1) if kernel.spec.tiles % tiles else tile


def _zero_bytes(kernel: QuantizedKernel, reader: CodeReader, tile, group, half) -> Expr | None:
    """What turns unsigned codes into signed ones: signed_offset - zero in all bytes of a row."""
    if not (reader.unsigned and kernel.signed):
        return None
    lanes = kernel.isa.lanes
    offset = splat(T.int32(kernel.isa.signed_offset), lanes)
    fold = T.cast(offset + reader.minus_zero(tile, group, half), vector_type("uint32", lanes))
    low_byte = fold & splat(T.uint32(0xFF), lanes)
    return T.bind(low_byte * splat(T.uint32(0x01010101), lanes))


def _add_bytes(a: Expr, b: Expr, lanes: int) -> Expr:
    """Bytewise a + b of words, modulo 256."""
    byte_type = vector_type("uint8", 4 * lanes)
    total = T.reinterpret(byte_type, a) + T.reinterpret(byte_type, b)
    return T.reinterpret(vector_type("uint32", lanes), total)
