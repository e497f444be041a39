"""Which matrices promote-groups has a choice for, and which budgets it can meet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import tvm

from morendo.ir.dialect import NORMS, attrs_of
from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import calls

from ..quantize_weights import head_weights
from ..split_outliers import outlier_slots
from ..streaming.stages import split_stages

SLACK = 1.1
"""A budget may be so much more than 4 bits everywhere take; one beyond that is a mistake."""

_SHAPE = {"linear": ("out_features", "in_features"), "embedding": ("rows", "features")}
"""Attributes of the ops that read a matrix: its rows and columns."""


def promotable_in(module: tvm.IRModule) -> Callable[[dict[str, Any]], bool]:
    """Which linears, by their attributes, have groups of 2, 3 or 4 bits under a budget.

    Those with codes of 4 bits, but not the head (the last linear) and no embedding table.
    """
    others = head_weights(module)
    return lambda attrs: (
        WeightFormat.parse(attrs["format"]).kind == "q4" and attrs["weight"] not in others
    )


@dataclass(frozen=True)
class Heads:
    """The output head and the tables of tokens with nested codes; all get as many bits.

    Attributes:
        linear: the weight that the last linear reads.
        format: the one that quantize-weights gave them, of as many bits as they may get.
        shapes: (rows, columns) of each matrix, by its name.
    """

    linear: str
    format: WeightFormat
    shapes: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, module: tvm.IRModule) -> Heads | None:
        """Those of a module, normalized and with formats; None where they are not nested."""
        names, shapes, linears = head_weights(module), {}, []
        for name, value in calls(module):
            attrs = attrs_of(value)
            if name == "linear":
                linears.append(attrs)
            if attrs.get("weight") in names and WeightFormat.parse(attrs["format"]).nested:
                rows, columns = _SHAPE[name]
                shapes[attrs["weight"]] = attrs[rows], attrs[columns]
        if not linears or linears[-1]["weight"] not in shapes:
            return None
        return cls(linears[-1]["weight"], WeightFormat.parse(linears[-1]["format"]), shapes)

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    def with_bits(self, bits: int) -> WeightFormat:
        """The format of so many bits, 4 to those of `format`."""
        return replace(self.format, kind=f"q{bits}")

    def nbytes(self, bits: int) -> int:
        """Bytes of all matrices with so many bits."""
        return sum(self.with_bits(bits).nbytes(*shape) for shape in self.shapes.values())


def check_budget(
    module: tvm.IRModule,
    average_bits: float,
    size_mb: float,
    outliers: float,
    heads: Heads | None = None,
) -> None:
    """Refuse a budget that cannot be met.

    Args:
        module: normalized, formats known.
        average_bits: of the matrices with nested codes, or 0.
        size_mb: megabytes of all weights, or 0.
        outliers: the part of 2-bit weights that is kept in 16 bits beside.
        heads: those that the budget is for as well.

    Raises:
        CompileError: with the nearest budget that can be met.
    """
    linears = _promotable(module)
    weights = sum(a["out_features"] * a["in_features"] for a in linears)
    stored = bool(size_mb)
    least = sum(_nbytes(attrs, (0, 0), outliers, stored) for attrs in linears)
    most = sum(_nbytes(attrs, None, 0.0, stored) for attrs in linears)
    counted = {a["weight"] for a in linears}
    if heads is not None:
        least, most = least + heads.nbytes(4), most + heads.nbytes(heads.format.bits)
        weights, counted = weights + heads.weights, counted | set(heads.shapes)
    others = bytes_of_others(module, counted) if size_mb else 0
    budget = size_mb * 1e6 - others if size_mb else average_bits * weights / 8
    if not linears or (least <= budget and (budget <= SLACK * most or size_mb)):
        return
    low = budget < least
    nearest = least if low else most
    if size_mb:
        unit, asked, value = "MB for all weights", size_mb, (nearest + others) / 1e6
    else:
        unit, asked, value = "bits", average_bits, 8 * nearest / weights
    rounded = (math.ceil if low else math.floor)(100 * value) / 100  # one that is accepted
    raise CompileError(
        f"promote-groups: the budget cannot be met "
        f"(got {asked:.12g} {unit}, the nearest is {rounded:.2f})",
        hint="everything counts: codes, scales, zeros, outliers and orders; "
        + ("another --group-size may take less" if low else "for more there is --bits 8"),
    )


def _promotable(module: tvm.IRModule) -> list[dict[str, Any]]:
    """Linears whose groups can be promoted: no matrix of their input is read anywhere else."""
    stages = split_stages(module["main"], promotable_in(module))
    readers = Counter(attrs["weight"] for stage in stages for attrs in stage.linears)
    single = [s for s in stages if all(readers[a["weight"]] == 1 for a in s.linears)]
    return [attrs for stage in single for attrs in stage.linears]


def counted_bytes(fmt: WeightFormat, rows: int, columns: int, outliers: float, stored: bool) -> int:
    """Bytes of a matrix [rows, columns] once split-outliers has given it its slots.

    Args:
        fmt: without slots.
        outliers: the part of 2-bit weights that will be kept in 16 bits beside.
        stored: all that lies in the file; else without the scales of further readings, which no
            step reads beside those of the first.
    """
    fmt = replace(fmt, slots=outlier_slots(fmt, rows, columns, outliers))
    return fmt.nbytes(rows, columns) if stored else fmt.first_reading_bytes(rows, columns)


def _nbytes(
    attrs: dict[str, Any], planes: tuple[int, int] | None, outliers: float, stored: bool
) -> int:
    """Bytes of a linear's matrix with so many groups in the planes."""
    fmt = replace(WeightFormat.parse(attrs["format"]), planes=planes)
    return counted_bytes(fmt, attrs["out_features"], attrs["in_features"], outliers, stored)


def bytes_of_others(module: tvm.IRModule, promoted: Collection[str]) -> int:
    """Bytes of the weights that are not promoted: tables, heads, norms, biases."""
    sizes: dict[str, int] = {}
    for name, value in calls(module):
        attrs = attrs_of(value)
        if name in _SHAPE and attrs["weight"] not in promoted:
            rows, columns = (attrs[key] for key in _SHAPE[name])
            sizes[attrs["weight"]] = WeightFormat.parse(attrs["format"]).nbytes(rows, columns)
        if name == "rope":
            sizes[attrs["inv_freq"]] = 2 * attrs["rotary_dim"]
        vectors = ("bias",) if name == "linear" else ("weight", "bias")
        if name in ("linear", *NORMS):
            width = attrs.get("out_features") or int(value.args[0].ty.shape.values[-1])
            sizes.update({attrs[key]: 4 * width for key in vectors if attrs.get(key)})
    return sum(sizes.values())
