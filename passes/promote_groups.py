"""promote-groups: 4 bits for the most sensitive column groups, 3 for some, 2 for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.errors import CompileError, InputError
from morendo.ir.input_analysis import InputAnalysis

from .base import Context, Pass, needed_calibration
from .promotion.bit_choices import Choice, GroupBits, HeadBits, promote
from .promotion.limits import Heads, bytes_of_others, check_budget
from .rewrite import map_functions
from .split_outliers import LARGEST_FRACTION


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
    step reads them that reads all bits, or `size_mb` megabytes for all weights. With `heads` it is
    for the output head and the table of tokens too: each as a whole gets 4 bits to as many as
    quantize-weights gave it, by the same ranking. `outliers` reserves that part of the 2-bit
    weights for split-outliers. With `ranked=False` every matrix gets the same part of each plane,
    to see what the ranking is worth. Does not fire on matrices that are not nested 4-bit codes.

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
        "analyzed",
    )
    gives: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "results-kept",
    )

    average_bits: float = 0.0
    size_mb: float = 0.0
    outliers: float = 0.0
    ranked: bool = True
    heads: bool = False

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        self.foresee(module)
        _, weights = needed_calibration(self.name, context)
        inputs = self._inputs(module, context, weights.analyses)
        count = sum(i.weights for i in inputs)
        budget = self.average_bits * count / 8
        if self.size_mb:
            promoted = {name for each in inputs for name in each.names}
            budget = self.size_mb * 1e6 - bytes_of_others(module, promoted)
        promote(inputs, budget, self.ranked)
        for each in inputs:
            each.count(context.report)
            if each.order:
                weights.put(each.order, each.channels)
        spent = sum(i.nbytes(*i.planes) for i in inputs)
        context.report.figures["all matrices"] = {"bits": 8 * spent / count, "bytes": spent}
        return _rewrite(module, inputs)

    def _inputs(
        self, module: tvm.IRModule, context: Context, analyses: Sequence[InputAnalysis]
    ) -> list[Choice]:
        """What there is to choose bits for.

        Raises:
            CompileError: when it is not analyzed.
        """
        heads, found, with_head = Heads.of(module), [], not self.heads
        for analysis in _unique(analyses, context):
            if heads is None or heads.linear not in analysis.names:
                found.append(GroupBits(analysis, self.outliers, self.size_mb > 0, module))
            elif self.heads:
                found.append(HeadBits(analysis, heads))
                with_head = True
        if not found or not with_head:
            what, option = ("the head", "{heads=True}") if found else ("any matrix", "")
            raise CompileError(
                f"{self.name}: it is not known what {what} would lose",
                hint=f"run analyze-group-ranges{option} before it",
            )
        return found

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
        heads = Heads.of(module) if self.heads else None
        if self.heads and heads is None:
            raise CompileError(
                f"{self.name}: the output head has no nested codes",
                hint="give quantize-weights head_bits=6, or leave heads out",
            )
        check_budget(module, self.average_bits, self.size_mb, self.outliers, heads)


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


def _rewrite(module: tvm.IRModule, inputs: Sequence[Choice]) -> tvm.IRModule:
    chosen = {name: each for each in inputs for name in each.names}

    def visit(_: Any, var: relax.Var, value: Any) -> Any:
        name = op_name(value)
        if name not in ("linear", "embedding") or attrs_of(value)["weight"] not in chosen:
            return value
        attrs = attrs_of(value)
        each = chosen[attrs["weight"]]
        changed = {"format": each.format.name}
        if name == "linear":
            changed["order"] = each.order
        return call(name, *value.args, **{**attrs, **changed})

    return map_functions(module, visit)
