"""Reading the scales and zeros of packed weights, side by side or two in a byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import load, shift_left, splat, splat_float, vector_type
from morendo.ir.formats import WeightFormat
from morendo.ir.ladders import Ladder


class GroupScales(Protocol):
    """Scales and zeros of `lanes` rows from `row` on in a tile, for one group."""

    def scale(self, tile: Any, group: Any, row: Any, lanes: int) -> Expr:
        """Scale codes, 255ths of the row scale: float32 x lanes."""
        ...

    def scale_bytes(self, tile: Any, group: Any, row: Any, lanes: int) -> Expr:
        """Scale codes as bytes: uint8 x lanes."""
        ...

    def zero_bytes(self, tile: Any, group: Any, row: Any, lanes: int) -> Expr:
        """Zero points as bytes: int8 x lanes."""
        ...

    def zero(self, tile: Any, group: Any, row: Any, lanes: int) -> Expr:
        """Zero points in eighths of a step: int32 x lanes."""
        ...

    def row_scale(self, row: Any, lanes: int) -> Expr:
        """Scales of rows of the whole matrix: float32 x lanes."""
        ...


@dataclass(frozen=True)
class SeparateScales:
    """8 bits for each scale and zero; 8-bit codes have no zero."""

    scales: Any  # uint8 [T, G, R], R rows of a tile
    row_scales: Any  # float32 [T*R]
    zeros: Any = None  # int8 [T, G, R]

    def scale(self, tile, group, row, lanes) -> Expr:
        return _float(_int(load(self.scales, (tile, group, row), lanes), lanes), lanes)

    def scale_bytes(self, tile, group, row, lanes) -> Expr:
        return load(self.scales, (tile, group, row), lanes)

    def zero_bytes(self, tile, group, row, lanes) -> Expr:
        return load(self.zeros, (tile, group, row), lanes)

    def zero(self, tile, group, row, lanes) -> Expr:
        return _int(load(self.zeros, (tile, group, row), lanes), lanes)

    def row_scale(self, row, lanes) -> Expr:
        return load(self.row_scales, (row,), lanes)


@dataclass(frozen=True)
class CompactScales:
    """4 bits each for scale and zero, the upper half of float32 for row scales."""

    format: WeightFormat
    both: Any  # uint8 [T, G, R], R rows of a tile
    row_scales: Any  # uint16 [T*R]

    def scale(self, tile, group, row, lanes) -> Expr:
        nibble = self._both(tile, group, row, lanes) & splat(T.int32(15), lanes)
        ladder = self.format.scales  # in floats: vector multiplications of int32 are slow
        step, first = (splat_float(value, lanes) for value in (ladder.step, ladder.first))
        return _float(nibble, lanes) * step + first

    def scale_bytes(self, tile, group, row, lanes) -> Expr:
        nibble = load(self.both, (tile, group, row), lanes) & splat(T.uint8(15), lanes)
        return _rung_byte(nibble, self.format.scales, lanes)

    def zero_bytes(self, tile, group, row, lanes) -> Expr:
        nibble = load(self.both, (tile, group, row), lanes) >> splat(T.uint8(4), lanes)
        zero = _rung_byte(nibble, self.format.zeros, lanes)
        return T.reinterpret(vector_type("int8", lanes), zero)

    def zero(self, tile, group, row, lanes) -> Expr:
        nibble = self._both(tile, group, row, lanes) >> splat(T.int32(4), lanes)
        ladder = self.format.zeros
        step, first = (splat(T.int32(value), lanes) for value in (ladder.step, ladder.first))
        return nibble * step + first

    def _both(self, tile, group, row, lanes) -> Expr:
        return _int(load(self.both, (tile, group, row), lanes), lanes)

    def row_scale(self, row, lanes) -> Expr:
        upper = T.cast(load(self.row_scales, (row,), lanes), vector_type("uint32", lanes))
        return T.reinterpret(vector_type("float32", lanes), shift_left(upper, 16, lanes))


def _rung_byte(steps: Expr, ladder: Ladder, lanes: int) -> Expr:
    """The numbers of a ladder, which end below 256: uint8 x lanes."""
    step, first = (splat(T.uint8(value), lanes) for value in (ladder.step, ladder.first))
    return steps * step + first


def _int(values: Expr, lanes: int) -> Expr:
    return T.cast(values, vector_type("int32", lanes))


def _float(values: Expr, lanes: int) -> Expr:
    return T.cast(values, vector_type("float32", lanes))


def group_scales(fmt: WeightFormat, buffers: dict[str, Any]) -> GroupScales:
    """What reads the scales of a matrix.

    Args:
        buffers: by the names of `fmt.arrays`.
    """
    if fmt.compact:
        return CompactScales(fmt, buffers["scale_zero"], buffers["row_scale"])
    return SeparateScales(buffers["scale"], buffers["row_scale"], buffers.get("zero"))
