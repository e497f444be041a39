"""promote-groups: 4 bits for the most sensitive column groups, 3 for some, 2 for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.errors import CompileError, InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import calls

from .base import Context, Pass, needed_calibration
from .promotable import bytes_of_others, check_budget, counted_bytes
from .rewrite import map_functions
from .split_outliers import LARGEST_FRACTION

if TYPE_CHECKING:
    from .calibration.analysis import InputAnalysis


@dataclass(frozen=True)
class PromoteGroups(Pass):
    """Give column groups 2, 3 or 4 bits under a budget for the whole model.

        y = M.linear(x, weight="w", ..., format="q4g32")
        ->  y = M.linear(x, weight="w", ..., format="q4g32p12,5", order="w.order")

    One ranking of the steps 2 -> 3 -> 4 bit of all groups of all matrices by loss removed per byte,
    as analyze-group-ranges found it. Groups of a matrix are promoted in storage order, which is the
    order of the analysis; linears that share an input share order and counts. Channels of one
    precision keep the model's order: groups of sorted channels are worse.
    A group of 32 channels of 16 rows is one whole vector of 64 bytes in each plane, so any count is
    aligned.
    The budget is `average_bits` of these matrices with scales, zeros, row scales and orders, as a
    step reads them that reads all bits, or `size_mb` megabytes for all weights. `outliers` reserves
    that part of the 2-bit weights for split-outliers. With `ranked=False` every matrix gets the
    same part of each plane, to see what the ranking is worth. Does not fire on matrices that are
    not nested 4-bit codes.

    Source: 4-bit group promotion of arXiv 2311.16442, with 3 bits between.
    """

    name: ClassVar[str] = "promote-groups"
    needs: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "linears-apart",
        "formats-open",
        "formats-whole",
    )
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "normalized", "formats-known")

    average_bits: float = 0.0
    size_mb: float = 0.0
    outliers: float = 0.0
    ranked: bool = True

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        self.foresee(module)
        calibration, weights = needed_calibration(self.name, context)
        analyses, stored = _unique(calibration.analyses, context), self.size_mb > 0
        inputs = [_Input(each, self.outliers, stored, module) for each in analyses]
        if not inputs:
            raise CompileError(
                f"{self.name}: no matrix is analyzed", hint="run analyze-group-ranges before it"
            )
        _check_formats(module, calibration.analyses)
        count = sum(i.weights for i in inputs)
        budget = self.average_bits * count / 8
        if self.size_mb:
            promoted = {name for each in inputs for name in each.analysis.names}
            budget = self.size_mb * 1e6 - bytes_of_others(module, promoted)
        promote(inputs, budget, self.ranked)
        for each in inputs:
            if each.order:
                weights.put(each.order, each.channels)
        spent = sum(i.nbytes(*i.planes) for i in inputs)
        context.report.figures["all matrices"] = {"bits": 8 * spent / count, "bytes": spent}
        return _rewrite(module, inputs, context)

    def foresee(self, module: tvm.IRModule) -> None:
        """Refuse what `apply` would refuse, without an analysis.

        Args:
            module: normalized, formats known.

        Raises:
            InputError: for a bad option.
            CompileError: for a budget that cannot be met.
        """
        one_budget = (self.average_bits > 0) != (self.size_mb > 0)
        if not one_budget or not 0 <= self.outliers <= LARGEST_FRACTION:
            raise InputError(
                f"{self.name}: give average_bits or size_mb, "
                f"and outliers from 0 to {LARGEST_FRACTION} (got {self.spec})"
            )
        check_budget(module, self.average_bits, self.size_mb, self.outliers)


class _Input:
    """The planes of the matrices that read one input, as far as they are promoted.

    Args:
        outliers, stored: as of `counted_bytes`.
    """

    def __init__(
        self, analysis: InputAnalysis, outliers: float, stored: bool, module: tvm.IRModule
    ) -> None:
        self.analysis, self.outliers, self.stored = analysis, outliers, stored
        self.kinds = analysis.format.most_bits - 2  # of steps: 2 -> 3, and 3 -> 4 where it is read
        self.groups = analysis.losses.shape[1]
        self.planes = [0, 0]
        self.sorted = not np.array_equal(analysis.order, np.arange(analysis.columns))
        self.rows = [
            attrs_of(c)["out_features"]
            for name, c in calls(module)
            if name == "linear" and attrs_of(c)["weight"] in analysis.names
        ]

    @property
    def weights(self) -> int:
        return self.analysis.rows * self.analysis.columns

    @property
    def format(self) -> WeightFormat:
        """The format with as many planes as were promoted."""
        return self._format(*self.planes)

    @property
    def order(self) -> str:
        """The name of the channels' order; "" when they stay in their places."""
        return f"{self.analysis.names[0]}.order" if self._ordered(*self.planes) else ""

    @property
    def channels(self) -> np.ndarray:
        """The order: uint16 [K]; among those of one precision, channels keep the model's order."""
        size, order = self.analysis.format.group_size, self.analysis.order
        parts = np.split(order, [plane * size for plane in reversed(self.planes)])
        return np.concatenate([np.sort(part) for part in parts]).astype(np.uint16)

    def _ordered(self, *planes: int) -> bool:
        """Whether there are several precisions, so that channels have to move."""
        return self.sorted and any(0 < count < self.groups for count in planes)

    def _format(self, plane3: int, plane4: int) -> WeightFormat:
        fmt = self.analysis.format
        whole = (plane3, plane4) == fmt.plane_groups(self.analysis.columns)
        return replace(fmt, planes=None if whole else (plane3, plane4))

    def nbytes(self, plane3: int, plane4: int) -> int:
        """Bytes of the matrices with so many planes, of their order and of outliers to come."""
        columns = self.analysis.columns
        fmt = self._format(plane3, plane4)
        total = sum(counted_bytes(fmt, n, columns, self.outliers, self.stored) for n in self.rows)
        return total + (2 * columns if self._ordered(plane3, plane4) else 0)

    def steps(self) -> list[tuple[float, int]]:
        """(loss removed per byte, which plane) of the groups in storage order, for both planes.

        A group stands for those behind it as well: gains never rise along the storage order, so
        that a ranking takes a prefix.
        """
        steps = []
        cost = self.nbytes(1, 1) - self.nbytes(1, 0)
        for plane in range(self.kinds):
            gains = self.analysis.losses[plane] - self.analysis.losses[plane + 1]
            steps += [(gain / cost, plane) for gain in np.maximum.accumulate(gains[::-1])[::-1]]
        return steps

    def even_steps(self) -> list[tuple[float, int]]:
        """Steps whose rank is the part of the groups that they complete: plane 3, then plane 4."""
        parts = [(g + 1) / self.groups for g in range(self.groups)]
        return [(-plane - part, plane) for plane in range(self.kinds) for part in parts]


def promote(inputs: Sequence[_Input], budget: float, ranked: bool = True) -> None:
    """Take steps of all inputs, the most useful for their bytes first, while bytes last."""
    spent = sum(each.nbytes(0, 0) for each in inputs)
    steps = [
        (-gain, index, plane)
        for index, each in enumerate(inputs)
        for gain, plane in (each.steps() if ranked else each.even_steps())
    ]
    for _, index, plane in sorted(steps):
        each = inputs[index]
        wanted = list(each.planes)
        wanted[plane] += 1
        wanted[0] = max(wanted)
        cost = each.nbytes(*wanted) - each.nbytes(*each.planes)
        if spent + cost <= budget and wanted[0] <= each.groups:
            each.planes = wanted
            spent += cost


def _unique(analyses: Sequence[InputAnalysis], context: Context) -> list[InputAnalysis]:
    """Those whose matrices are read from one input only: another would want another order."""
    readers = [name for analysis in analyses for name in analysis.names]
    kept = []
    for analysis in analyses:
        if any(readers.count(name) > 1 for name in analysis.names):
            context.report.missed(" + ".join(analysis.names), "has several inputs, stays at 4 bit")
        else:
            kept.append(analysis)
    return kept


def _check_formats(module: tvm.IRModule, analyses: Sequence[InputAnalysis]) -> None:
    """Refuse what was found out about other formats than the module's."""
    analyzed = {name: analysis.format.name for analysis in analyses for name in analysis.names}
    for attrs in (attrs_of(value) for name, value in calls(module) if name == "linear"):
        was = analyzed.get(attrs["weight"], attrs["format"])
        if was != attrs["format"]:
            raise CompileError(
                f"promote-groups: the matrix was analyzed in another format (got {was}, need "
                f"{attrs['format']})",
                where=attrs["weight"],
                hint="run analyze-group-ranges again",
            )


def _rewrite(module: tvm.IRModule, inputs: Sequence[_Input], context: Context) -> tvm.IRModule:
    chosen = {name: each for each in inputs for name in each.analysis.names}

    def visit(_: Any, var: relax.Var, value: Any) -> Any:
        if op_name(value) != "linear" or attrs_of(value)["weight"] not in chosen:
            return value
        attrs = attrs_of(value)
        each = chosen[attrs["weight"]]
        context.report.count("groups", each.groups)
        context.report.count("groups promoted to 4 bit", each.planes[1])
        context.report.count("groups promoted to 3 bit", each.planes[0] - each.planes[1])
        return call(
            "linear", *value.args, **{**attrs, "format": each.format.name, "order": each.order}
        )

    return map_functions(module, visit)
