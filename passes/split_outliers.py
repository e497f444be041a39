"""split-outliers: room for a few 16-bit values in the 2-bit part of each matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.errors import InputError
from morendo.ir.formats import OUTLIER_CHANNELS, WeightFormat

from .base import Context, Pass
from .rewrite import map_functions

LARGEST_FRACTION = 0.005


@dataclass(frozen=True)
class SplitOutliers(Pass):
    """Give matrices with 2-bit groups sparse 16-bit entries for a `fraction` of their weights.

        y = M.linear(x, weight="w", ..., format="q4g32p12,5")
        ->  y = M.linear(x, weight="w", ..., format="q4g32p12,5o28")

    Every tile of rows has the same number of entries, so that threads have equal work.
    calibrate-weights chooses them, those where rounding would cost most, and takes them out before
    the scales are fitted. Does not fire where no group is read at 2 bits, and not on matrices
    whose rows are no multiple of the tile or that have more than 65536 input channels.

    Source: outliers of arXiv 2311.16442, section 3.1.
    """

    name: ClassVar[str] = "split-outliers"
    needs: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "linears-apart",
        "formats-open",
    )
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "normalized", "formats-known")

    fraction: float = 0.003

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        if not 0 < self.fraction <= LARGEST_FRACTION:
            raise InputError(
                f"{self.name}: bad fraction (got {self.fraction:g}, "
                f"need more than 0 and at most {LARGEST_FRACTION})"
            )

        def visit(_: Any, var: relax.Var, value: Any) -> Any:
            if op_name(value) != "linear":
                return value
            attrs = attrs_of(value)
            fmt = WeightFormat.parse(attrs["format"])
            rows, columns = attrs["out_features"], attrs["in_features"]
            slots = outlier_slots(fmt, rows, columns, self.fraction)
            if not slots:
                if _channels_at_2_bits(fmt, columns):
                    context.report.missed(attrs["weight"], _obstacle(fmt, rows, columns))
                return value
            context.report.count("matrices with outliers")
            context.report.count("outliers", slots * fmt.tiles(rows))
            return call(
                "linear", *value.args, **{**attrs, "format": replace(fmt, slots=slots).name}
            )

        return map_functions(module, visit)


def _obstacle(fmt: WeightFormat, rows: int, columns: int) -> str:
    """Why a matrix with nested codes has no room for outliers; "" when it has."""
    if rows % fmt.row_tile:
        return f"{rows} rows are no multiple of {fmt.row_tile}"
    if fmt.padded_features(columns) > OUTLIER_CHANNELS:
        return f"{columns} input channels, outliers can number {OUTLIER_CHANNELS}"
    return ""


def outlier_slots(fmt: WeightFormat, rows: int, columns: int, fraction: float) -> int:
    """Entries of a tile for a fraction of the weights that are read at 2 bits, 0 for none."""
    at_2_bits = _channels_at_2_bits(fmt, columns)
    if not at_2_bits or not fraction or _obstacle(fmt, rows, columns):
        return 0
    return max(round(fraction * fmt.row_tile * at_2_bits), 1)


def _channels_at_2_bits(fmt: WeightFormat, columns: int) -> int:
    if not fmt.plane_names:
        return 0
    return max(columns - fmt.plane_groups(columns)[0] * fmt.group_size, 0)
