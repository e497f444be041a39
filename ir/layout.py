"""How data lies in tiles, as a target wants it."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError

CACHE_DTYPES = {32: "float32", 16: "float16", 8: "int8", 4: "int4"}
"""What keys and values are stored as, by bits; codes have a scale for each of a head, those of 4
bits a middle as well."""


@dataclass(frozen=True)
class TileLayout:
    """Sizes that passes, packed weights, caches and kernels agree on.

    Attributes:
        row_tile: output rows of a matrix that lie side by side; every 32-bit lane of a vector
            has one, so it is a multiple of a vector's lanes. Two powers, 4 to 128.
        key_tile: neighbouring positions that lie side by side in the key cache, likewise.
        nibbles: whether linears unpack whole 4-bit codes faster where they lie two in a byte than
            from planes; those that are read with all of their bits lie so then.
        alignment_bytes: what every buffer starts at a multiple of: a cache line or the widest
            vector, 64 at least.
    """

    row_tile: int = 16
    key_tile: int = 16
    alignment_bytes: int = 64
    nibbles: bool = False

    def __post_init__(self) -> None:
        bounds = {"row_tile": (4, 128), "key_tile": (4, 64), "alignment_bytes": (64, 4096)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high or value & (value - 1):
                raise InputError(
                    f"bad layout: {name} is no power of two from {low} to {high} (got {value})"
                )

    def aligned(self, nbytes: int) -> int:
        """`nbytes` rounded up to the alignment."""
        return -(-nbytes // self.alignment_bytes) * self.alignment_bytes


DEFAULT_LAYOUT = TileLayout()
"""The layout of targets that say nothing else, and of IR without a target."""
