"""Scales and zeros of a tile's groups as the words of rows: four groups' bytes in each.

Stored are bytes [G, 32 rows]. Four groups are one vector, which two shuffles turn into 32 words of
four groups; `WeightScales` reads a group as a shift and a mask. Compact scales are looked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.quantized_kernel import QuantizedKernel
from morendo.codegen.cpu.vectors.vector import load, load_words, splat, store
from morendo.ir.formats import WeightFormat, ceil_div
from morendo.ir.ladders import Ladder

from . import intrinsics as hvx
from .isa import look_up, tables_of

LANES = 32
_QUAD = 4
"""Groups whose bytes are in a word."""


@dataclass(frozen=True)
class WeightScales:
    """The scales and zeros of some tiles.

    Attributes:
        groups: G.
        words: int32 [tiles, scales and zeros, quads of groups, 32 rows]; no zeros where codes have
            none. One buffer, since each asks the C runtime for memory.
    """

    groups: int
    words: Any

    @classmethod
    def allocate(cls, kernel: QuantizedKernel, tiles: int) -> WeightScales:
        """Room for the scales of `tiles` tiles."""
        groups, kinds = kernel.spec.groups, 1 + kernel.spec.format.nested
        shape = (tiles, kinds, ceil_div(groups, _QUAD), LANES)
        return cls(groups, T.alloc_buffer(shape, "int32", layout=None))

    def read(self, kernel: QuantizedKernel, i: int, tile: Expr) -> None:
        """Fill in tile i, which is `tile` of the matrix."""
        buffers, fmt = kernel.weights.buffers, kernel.spec.format
        with T.serial(0, ceil_div(self.groups, _QUAD)) as quad:
            if fmt.compact:
                both = T.bind(self._rows(buffers["scale_zero"], tile, quad))
                upper = hvx.RIGHT(both, T.int32(4))
                found = [look_up(both, _ladders(fmt), 0), look_up(upper, _ladders(fmt), 1)]
            else:
                names = ("scale", "zero") if fmt.nested else ("scale",)
                found = [self._rows(buffers[name], tile, quad) for name in names]
            for kind, words in enumerate(found):
                store(self.words, (i, kind, quad, 0), words, LANES)

    def scale(self, i: int, group: Expr) -> Expr:
        """The scale codes of the rows of tile i, words of 8 bits."""
        return self._bytes(i, 0, group)

    def zero(self, i: int, group: Expr) -> Expr:
        """The zeros of the rows of tile i, words of 7 bits."""
        return self._bytes(i, 1, group)

    def _bytes(self, i: int, kind: int, group: Expr) -> Expr:
        place = T.bind((group - self._first(T.floordiv(group, _QUAD))) * 8)
        words = load(self.words, (i, kind, T.floordiv(group, _QUAD), 0), LANES)
        return T.bind(hvx.AND(hvx.RIGHT(words, place), splat(T.int32(255), LANES)))

    def _first(self, quad: Expr) -> Expr:
        """The first group of a quad: the last one overlaps the one before it, if it must."""
        first = quad * _QUAD
        return T.min(first, self.groups - _QUAD) if self.groups % _QUAD else first

    def _rows(self, stored: Any, tile: Expr, quad: Expr) -> Expr:
        """The bytes of four groups by rows: bit 6 of a byte's place becomes bit 0, then bit 5."""
        if self.groups < _QUAD:
            return self._few(stored, tile)
        words = load_words(stored, (tile, self._first(quad), 0), LANES)
        return hvx.SHUFFLE_BYTES(hvx.SHUFFLE_BYTES(words))

    def _few(self, stored: Any, tile: Expr) -> Expr:
        """The same of a matrix of less than four groups, of which there is no whole vector."""
        kept = T.alloc_buffer((LANES,), "int32", layout=None)
        with T.serial(0, LANES) as row:
            word = T.int32(0)
            for group in range(self.groups):
                byte = T.cast(T.cast(stored[tile, group, row], "uint8"), "int32")
                word = word | (byte << (8 * (group + _QUAD - self.groups)))
            T.buffer_store(kept, word, [row])
        return kept[T.ramp(0, 1, LANES)]


def _ladders(fmt: WeightFormat) -> tuple[int, ...]:
    """The numbers of compact scales and zeros, by the lower four of five bits."""

    def rungs(ladder: Ladder) -> list[int]:
        return [ladder.first + ladder.step * (i % 16) for i in range(32)]

    return tables_of([rungs(fmt.scales), rungs(fmt.zeros), [0] * 32, [0] * 32])
