"""Scales, zeros and codes of packed weights, read for one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.ir.formats import WeightFormat
from morendo.ir.ladders import SCALE_STEPS


@dataclass(frozen=True)
class Weights:
    """A packed matrix.

    Attributes:
        format: its format, one reading.
        arrays: its buffers, by the names of `format.arrays`.
    """

    format: WeightFormat
    arrays: dict[str, Any]

    def scale_code(self, tile: Expr, group: Expr, row: Expr) -> Expr:
        """How many 255ths of the row's scale a step of the group is: float32."""
        if not self.format.compact:
            return T.cast(self.arrays["scale"][tile, group, row], "float32")
        ladder = self.format.scales
        nibble = T.cast(self.arrays["scale_zero"][tile, group, row], "int32") & 15
        return T.cast(nibble * ladder.step + ladder.first, "float32")

    def zero(self, tile: Expr, group: Expr, row: Expr) -> Expr:
        """The zero point in parts of a step (`format.unit`): int32."""
        if not self.format.compact:
            return T.cast(self.arrays["zero"][tile, group, row], "int32")
        ladder = self.format.zeros
        nibble = T.cast(self.arrays["scale_zero"][tile, group, row], "int32") >> 4
        return nibble * ladder.step + ladder.first

    def row_scale(self, row: Expr) -> Expr:
        """The scale of a row of the whole matrix: float32."""
        stored = self.arrays["row_scale"][row]
        if not self.format.compact:
            return stored
        return T.reinterpret("float32", T.cast(stored, "uint32") << T.uint32(16))

    @property
    def scale_unit(self) -> int:
        """Weights are row_scale * scale_code * (byte - zero) / scale_unit."""
        return SCALE_STEPS * self.format.unit

    def step(self, tile: Expr, group: Expr, row: Expr) -> Expr:
        """The step of a row's group divided by its unit, as `reference.group_scale` rounds it."""
        part = self.scale_code(tile, group, row) / T.float32(SCALE_STEPS)
        whole = self.row_scale(tile * self.format.row_tile + row) * part
        return whole / T.float32(self.format.unit)

    def value(self, tile: Expr, row: Expr, channel: Expr) -> Expr:
        """The float32 weight of a channel, all planes read."""
        if not self.format.quantized:
            return T.cast(self.arrays["data"][tile, channel, row], "float32")
        size = self.format.group_size
        group, c = T.bind(channel // size), T.bind(channel % size)
        if not self.format.nested:
            code = self.arrays["codes"][tile, group, c // 4, row, c % 4]
            return T.cast(code, "float32") * self.step(tile, group, row)
        code = self._code(tile, group, row, c) * self.format.unit - self.zero(tile, group, row)
        return T.cast(code, "float32") * self.step(tile, group, row)

    def _code(self, tile: Expr, group: Expr, row: Expr, c: Expr) -> Expr:
        byte, step = row * 4 + c % 4, c // 4
        base = T.cast(self.arrays["base"][tile, group, step // 4, byte], "int32")
        code = ((base >> (step % 4 * 2)) & 3) << (self.format.bits - 2)
        for shift, plane in enumerate(reversed(self.format.plane_names)):
            bits = T.cast(self.arrays[plane][tile, group, step // 8, byte], "int32")
            code = code | (((bits >> (step % 8)) & 1) << shift)
        return code
