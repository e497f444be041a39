"""Sparse 16-bit values on top of the 2-bit reading of a matrix, in tiles of rows.

Source: the outliers of arXiv 2311.16442; here they only count in groups that are read at 2 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CompileError
from .formats import WeightFormat


@dataclass(frozen=True)
class Outliers:
    """E entries of a matrix in any order.

    Attributes:
        row: int32 [E].
        channel: int32 [E], as channels are stored.
        value: float16 [E], added to the dense 2-bit reading.
    """

    row: NDArray[np.int32]
    channel: NDArray[np.int32]
    value: NDArray[np.float16]

    @classmethod
    def none(cls) -> Outliers:
        """No entries."""
        return cls(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float16))

    @classmethod
    def joined(cls, parts: list[Outliers]) -> Outliers:
        """The entries of all parts."""
        fields = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*map(np.concatenate, fields))

    def below(self, rows: int) -> Outliers:
        """The same entries under so many other rows."""
        return Outliers(self.row + np.int32(rows), self.channel, self.value)

    def take(self, wanted: NDArray[Any]) -> Outliers:
        """The entries at which a mask [E] is true, or those at indices in their order."""
        return Outliers(self.row[wanted], self.channel[wanted], self.value[wanted])

    def rows(self, start: int, stop: int) -> Outliers:
        """The entries of rows start..stop, numbered from 0."""
        found = self.take((self.row >= start) & (self.row < stop))
        return Outliers(found.row - np.int32(start), found.channel, found.value)

    def add_to(self, values: NDArray[np.float32], first_channel: int) -> None:
        """Add to float32 [N, Kp] in place what belongs to channels from `first_channel` on."""
        found = self.take(self.channel >= first_channel)
        np.add.at(values, (found.row, found.channel), found.value.astype(np.float32))


def pack_outliers(
    outliers: Outliers | None, fmt: WeightFormat, rows: int, groups: int
) -> dict[str, NDArray]:
    """Lay entries out as `fmt.arrays` names them: sorted by channel, unused slots 0 at the end.

    Raises:
        CompileError: when a tile has more entries than slots.
    """
    entries = outliers or Outliers.none()
    tiles, slots = fmt.tiles(rows), fmt.slots
    tile = entries.row // fmt.row_tile
    order = np.lexsort((entries.row, entries.channel, tile))
    tile, entries = tile[order], entries.take(order)
    counts = np.bincount(tile, minlength=tiles)
    if counts.max(initial=0) > slots:
        first = int(counts.argmax()) * fmt.row_tile
        last = first + fmt.row_tile - 1
        raise CompileError(
            f"too many outliers for format {fmt.name} "
            f"(got {counts.max()} in rows {first} to {last}, need at most {slots})",
            hint="parts that are stacked need whole tiles of rows, or slots for what meets in one",
        )
    if not slots:
        return {}
    at = tile, np.arange(len(tile)) - (np.cumsum(counts) - counts)[tile]
    value = np.zeros((tiles, slots), np.float16)
    channel, row = np.zeros_like(value, np.uint16), np.zeros_like(value, np.uint8)
    value[at], channel[at], row[at] = entries.value, entries.channel, entries.row % fmt.row_tile
    cell = tile * groups + entries.channel // fmt.group_size
    in_group = np.bincount(cell, minlength=tiles * groups).reshape(tiles, groups)
    start = (np.cumsum(in_group, axis=1) - in_group).astype(np.uint16)
    arrays = {"value": value, "channel": channel, "row": row, "start": start}
    return {f"outlier_{name}": array for name, array in arrays.items()}


def unpack_outliers(arrays: dict[str, NDArray], fmt: WeightFormat) -> Outliers:
    """The entries that are not 0."""
    tile, slot = np.nonzero(arrays["outlier_value"])
    row = tile * fmt.row_tile + arrays["outlier_row"][tile, slot]
    channel = arrays["outlier_channel"][tile, slot].astype(np.int32)
    return Outliers(row.astype(np.int32), channel, arrays["outlier_value"][tile, slot])
