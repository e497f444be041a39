"""Outliers in linear kernels: sparse weights times activations, added to the rows' float sums.

The entries of a tile are sorted by channel, so those of the groups that are read at 2 bits are one
range at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import Registers, load, splat, splat_float, store
from morendo.ir.formats import WeightFormat

from .activations import Activations


@dataclass(frozen=True)
class Entry:
    """One outlier: row of the tile, stored channel, float32 value."""

    row: Expr
    channel: Expr
    value: Expr


@dataclass(frozen=True)
class OutlierReader:
    """The outliers of a matrix with `groups` groups, `slots` entries for each tile; those of groups
    from n3 on are read.
    """

    format: WeightFormat
    groups: int
    value: Any  # float16 [T, S]
    channel: Any  # uint16 [T, S]
    row: Any  # uint8 [T, S]
    start: Any  # uint16 [T, G]
    slots: Any
    n3: Any

    def entries(self, tile: Expr) -> Any:
        """A loop over the entries of the groups n3..G."""
        last = T.min(self.n3, T.int32(self.groups - 1))
        first = T.cast(self.start[tile, last], "int32")
        return T.serial(T.bind(T.Select(self.n3 < self.groups, first, self.slots)), self.slots)

    def entry(self, tile: Expr, index: Expr) -> Entry:
        """The entry `index` of a tile. What a damaged file says stays in the tile and in x."""
        last_row, last_channel = self.format.row_tile - 1, self.groups * self.format.group_size - 1
        return Entry(
            T.bind(T.min(T.cast(self.row[tile, index], "int32"), T.int32(last_row))),
            T.bind(T.min(T.cast(self.channel[tile, index], "int32"), T.int32(last_channel))),
            T.bind(T.cast(self.value[tile, index], "float32")),
        )


def add_to_vector(
    reader: OutlierReader, x: Activations, tile: Expr, sums: Registers, first: int
) -> None:
    """Add a tile's outliers times the only token to the registers from `first` on.

    A product is added in the lane of its row and 0 in the others: sums in a buffer, indexed by the
    row, would make every load wait for the store before it.
    """
    lanes = sums.lanes
    with reader.entries(tile) as index:
        entry = reader.entry(tile, index)
        row = splat(entry.row, lanes)
        product = splat(T.bind(entry.value * x.value(0, entry.channel)), lanes)
        for half in range(reader.format.row_tile // lanes):
            here = T.ramp(T.int32(half * lanes), 1, lanes) == row
            part = T.Select(here, product, splat_float(0.0, lanes))
            sums[first + half] = sums[first + half] + part


@dataclass(frozen=True)
class MatrixSums:
    """Outliers of `tiles` tiles times a block of tokens.

    The tokens of a row lie together, so that an entry's products are one vector.

    Attributes:
        sums: float32 [tiles * rows of a tile * tokens].
    """

    reader: OutlierReader
    x: Activations
    tokens: int
    sums: Any

    @classmethod
    def allocate(cls, reader: OutlierReader, x: Activations, tiles: int, tokens: int) -> MatrixSums:
        """The sums of a task, for one block of tokens after the other."""
        shape = (tiles * reader.format.row_tile * tokens,)
        return cls(reader, x, tokens, T.alloc_buffer(shape, "float32", layout=None))

    def multiply(self, tiles: Sequence[Expr], first_token: Expr) -> None:
        """Set the sums to those of a token block."""
        lanes = math.gcd(self.tokens, self.x.isa.lanes)
        wide, rows = self.x.isa.lanes, self.reader.format.row_tile
        with T.serial(0, len(tiles) * rows * self.tokens // wide) as i:
            store(self.sums, (i * wide,), splat_float(0.0, wide), wide)
        for i, tile in enumerate(tiles):
            with self.reader.entries(tile) as index:
                entry = self.reader.entry(tile, index)
                for m in range(0, self.tokens, lanes):
                    at = (i * rows + entry.row) * self.tokens + m
                    x = self._values(first_token + m, entry.channel, lanes)
                    products = splat(entry.value, lanes) * x
                    store(self.sums, (at,), load(self.sums, (at,), lanes) + products, lanes)

    def _values(self, token: Expr, channel: Expr, lanes: int) -> Expr:
        """A channel of `lanes` tokens, float32."""
        values = [self.x.value(token + m, channel) for m in range(lanes)]
        return tirx.Shuffle(values, list(range(lanes))) if lanes > 1 else values[0]

    def rows(self, i: int, first_row: int, token: int) -> Expr:
        """A vector of rows of tile i from `first_row` on, of the block's token."""
        first = (i * self.reader.format.row_tile + first_row) * self.tokens + token
        return self.sums[T.ramp(first, self.tokens, self.x.isa.lanes)]
