"""split-outliers: room for a few 16-bit values in the 2-bit part of each matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.errors import InputError
from morendo.ir.formats import ROW_TILE, WeightFormat

from .base import Context, Pass
from .rewrite import map_functions

LARGEST_FRACTION = 0.005


@dataclass(frozen=True)
class SplitOutliers(Pass):
    """Give matrices with 2-bit groups sparse 16-bit entries for a `fraction` of their weights.

        y = M.linear(x, weight="w", ..., format="q4g32p12,5")
        ->  y = M.linear(x, weight="w", ..., format="q4g32p12,5o28")

    Every tile of 16 rows has the same number of entries, so that threads have equal work.
    calibrate-weights chooses them, those where rounding would cost most, and takes them out before
    the scales are fitted. Does not fire where no group is read at 2 bits, and not on matrices
    whose rows are no multiple of 16.

    Source: outliers of arXiv 2311.16442, section 3.1.
    """

    name: ClassVar[str] = "split-outliers"
    needs: ClassVar[tuple[str, ...]] = ("well-formed", "normalized", "formats-known")
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
            slots = outlier_slots(fmt, attrs["in_features"], self.fraction)
            if not slots:
                return value
            if attrs["out_features"] % ROW_TILE:
                rows = attrs["out_features"]
                context.report.missed(attrs["weight"], f"{rows} rows are no multiple of {ROW_TILE}")
                return value
            context.report.count("matrices with outliers")
            context.report.count("outliers", slots * attrs["out_features"] // ROW_TILE)
            return call(
                "linear", *value.args, **{**attrs, "format": replace(fmt, slots=slots).name}
            )

        return map_functions(module, visit)


def outlier_slots(fmt: WeightFormat, in_features: int, fraction: float) -> int:
    """Entries of a tile for a fraction of the weights that are read at 2 bits, 0 for none."""
    if fmt.kind != "q4" or not fraction:
        return 0
    at_2_bits = in_features - fmt.plane_groups(in_features)[0] * fmt.group_size
    return max(round(fraction * ROW_TILE * at_2_bits), 1) if at_2_bits > 0 else 0
