"""Where a group of a one-bit plane lies: in the first or in the second half of the plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.tirx.script.builder import ir as T

from morendo.ir.formats import first_half


@dataclass(frozen=True)
class Plane:
    """Plane 3 or 4 of a packed matrix.

    Attributes:
        bits: uint8 [T, P, g/32, 64]; the halves follow one another (`formats.first_half`).
    """

    bits: Any

    def at(self, tile: Any, group: Any) -> tuple[Any, Any]:
        """The first two indices of a group's bytes; past them lie those of the next group of the
        same half, in this tile or in the next.

        The second index alone counts, from the plane's beginning: the offset that a half adds is
        the same for all groups of a tile.
        """
        tiles, stored = self.bits.shape[:2]
        half = first_half(stored)
        in_second = (tiles - 1) * half + tile * (stored - half)
        return T.int32(0), group + T.Select(group < half, tile * half, in_second)
