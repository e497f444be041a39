"""How a block of a kernel for many tokens is shaped: tiles, tokens, and its shared memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.formats import Array, ceil_div
from morendo.targets.cuda.blocks import WARP

from .fragments import BLOCK, CODE_STRIDE
from .pipeline import Pipeline

TILE = 16
WARPS = 4
PER_WARP = 2  # tiles
BLOCK_TILES = WARPS * PER_WARP
THREADS = WARPS * WARP
COLUMNS = 8  # tokens of an instruction
COPY = 16  # bytes of an asynchronous copy
_SHARED_BYTES = 48 << 10  # of a block without asking the driver for more


@dataclass(frozen=True)
class Shape:
    """How a block's work lies in shared memory.

    Attributes:
        tokens: of a block, a power of two from 8 on.
        pipeline: what fits.
        item_bytes: of an activation, 1 or 2.
    """

    spec: LinearSpec
    tokens: int
    pipeline: Pipeline
    item_bytes: int = 1

    MOST_TOKENS: ClassVar[int] = 64

    @classmethod
    def of(cls, spec: LinearSpec, wanted: Pipeline, few_blocks: int, item_bytes: int = 1) -> Self:
        """The most tokens and the deepest pipeline that shared memory has room for.

        Args:
            few_blocks: of the grid, up to which codes are unpacked ahead.
        """
        tokens = COLUMNS
        while tokens < min(spec.max_tokens, cls.MOST_TOKENS):
            tokens *= 2
        shape = cls(spec, tokens, wanted, item_bytes)
        if shape.grid[0] * shape.grid[1] > few_blocks:
            wanted = replace(wanted, dequantize=1)
            shape = replace(shape, pipeline=wanted)
        while shape.shared_bytes > _SHARED_BYTES:
            if shape.pipeline.fetch > 2:
                shape = replace(shape, pipeline=shape.pipeline.shallower())
            else:
                shape = replace(shape, tokens=shape.tokens // 2, pipeline=wanted)
        return shape

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks, along rows and along tokens."""
        spec = self.spec
        return ceil_div(spec.tiles, BLOCK_TILES), ceil_div(spec.max_tokens, self.tokens)

    @property
    def activation_words(self) -> tuple[int, int]:
        """Of 32 bits, in a slot: of each token an odd number of what lanes load of 32 channels, so
        that the tokens that are loaded at a time meet all banks.
        """
        blocks = self.spec.format.group_size // BLOCK
        return self.tokens, BLOCK * self.item_bytes * (blocks + (blocks % 2 == 0)) // 4

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Of the weights those that have a part for each group."""
        kept = (a for a in self.spec.weight_arrays() if not a.name.startswith("outlier"))
        return tuple(a for a in kept if a.name != "row_scale")

    @property
    def slot_bytes(self) -> int:
        weights = sum(tile_bytes(array) for array in self.arrays) * BLOCK_TILES
        scales = 4 * self.tokens if self.item_bytes == 1 else 0
        return 4 * math.prod(self.activation_words) + scales + weights

    @property
    def shared_bytes(self) -> int:
        sparse = WARPS * TILE * self.tokens * 4 if self.spec.outliers else 0
        return self.slot_bytes * self.pipeline.fetch + sparse


def copies(array: Array) -> int:
    """Of 16 bytes, that a tile's group takes."""
    bytes_ = 1
    for extent in array.shape[2:]:
        bytes_ *= extent
    return bytes_ // COPY


def place_in_slot(array: Array, copy: Any) -> Any:
    """Where a copy goes to, in a tile's part of a slot: 8-bit codes have a gap every 128 bytes."""
    gap = (CODE_STRIDE - 32) * 4
    return copy * COPY + (copy // 8 * gap if array.name == "codes" else 0)


def tile_bytes(array: Array) -> int:
    """What a tile takes of a slot."""
    return int(place_in_slot(array, copies(array)))


def unravel(array: Array, offset: Any) -> list[Any]:
    """The index, behind tile and group, of a byte of an array's group."""
    index = []
    for extent in reversed(array.shape[2:]):
        index.append(offset % extent)
        offset = offset // extent
    return index[::-1]
