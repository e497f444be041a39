"""analyze-group-ranges: what each column group would lose with fewer bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tvm

from morendo.ir.errors import InputError
from morendo.ir.input_analysis import InputAnalysis

from .base import Context, Pass, needed_calibration
from .promotion.limits import Heads, promotable_in


@dataclass(frozen=True)
class AnalyzeGroupRanges(Pass):
    """Measure the column groups of every 4-bit matrix on text, with float weights.

        y = M.linear(x, weight="w", ..., format="q4g32")  ->  the same; what was found is kept with
            the weights

    For each set of linears that share an input: an order of the input's channels, and for each
    group of them the value range, the part of the residual stream lost at 2, 3 and 4 bit, and the
    share of outliers. The report has the figures; promote-groups decides by them. Options: how
    many of the text's windows are used, whether channels are sorted (`sort=False` keeps them in
    place, and then no kernel has to gather), damping of the second moments, megabytes of
    activations kept in memory; with `heads` an output head of nested codes is measured as well, a
    table of tokens or not.

    Source: group range analysis of arXiv 2311.16442, section 3.1; losses are weighted by the
    second moments of the inputs as in arXiv 2210.17323.
    """

    name: ClassVar[str] = "analyze-group-ranges"
    task: ClassVar[str] = "analyze groups"
    needs: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "linears-apart",
        "formats-open",
        "formats-whole",
    )
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "normalized", "formats-known", "analyzed")

    windows: int = 16
    sort: bool = True
    damping: float = 0.01
    memory_mb: int = 256
    heads: bool = False

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        if self.windows < 1 or self.memory_mb < 0 or self.damping <= 0:
            raise InputError(f"{self.name}: bad option (got {self.spec})")
        calibration, weights = needed_calibration(self.name, context)
        # torch takes seconds to import: not before it is needed
        from .quantizer.analysis import Analyzer, weigh_by_influence
        from .streaming.activation_store import ActivationStore
        from .streaming.stream import Stream

        activations = ActivationStore(calibration.scratch, self.memory_mb << 20)
        heads, body = Heads.of(module) if self.heads else None, promotable_in(module)
        head = heads and heads.linear
        stream = Stream(
            module["main"],
            weights,
            None,
            activations,
            lambda attrs: attrs["weight"] == head or body(attrs),
            tables=head is not None,
        )
        analyzer = Analyzer(stream.weights, self.sort, self.damping, head)
        count = len(calibration.windows)
        chosen = np.linspace(0, count - 1, min(self.windows, count)).astype(int)
        analyses: list[InputAnalysis] = []
        with context.track(self.task, len(stream.stages)) as advance:
            for analysis in stream.run(calibration.windows[chosen], analyzer.visit):
                analyses.append(analysis)
                advance()
        weights.analyses = weigh_by_influence(analyses)
        for analysis in weights.analyses:
            _report(context, analysis)
        return module


def _report(context: Context, analysis: InputAnalysis) -> None:
    context.report.count("inputs analyzed")
    context.report.count("groups analyzed", len(analysis.ranges))
    figures: dict[str, Any] = {
        f"loss_{bits}bit": losses.tolist() for bits, losses in enumerate(analysis.losses, start=2)
    }
    figures["range"] = analysis.ranges.tolist()
    figures["outliers"] = analysis.outliers.tolist()
    context.report.figures[" + ".join(analysis.names)] = figures
