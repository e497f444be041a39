"""calibrate-weights: choose the codes of linears by what arrives at them on real text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import tvm

from morendo.ir.errors import CompileError, InputError
from morendo.ir.invariants import CALIBRATED, readings_of

from .base import Context, Pass, needed_calibration
from .rewrite import mark_codes

if TYPE_CHECKING:
    from .quantizer.module_rounder import Rounded

ORDERS = ("natural", "groups", "channels")


@dataclass(frozen=True)
class CalibrateWeights(Pass):
    """Round the linears' matrices with error feedback, layer after layer.

        y = M.linear(x, weight="w", ..., format="q4g32")
        ->  y = M.linear(x, weight="w", ..., format="q4g32", codes="calibrated"); the codes are in
            the calibration's code store, where packing finds them

    The calibration's windows stream through the module; before each set of linears that share an
    input its second moments are summed, the matrices are rounded, and what follows runs with the
    rounded ones. The float model runs beside it, and each set of matrices moves before it is
    rounded to make up for a part of what those before it lost. Options: `damping` of the second
    moments, their `shrinkage` towards their diagonal, `order` of columns (natural, groups,
    channels), `feedback=False` and `compensation=0` to see what these are worth, megabytes of
    activations kept in memory.
    A format with several readings (r43) gets codes made for all of them, each for what arrives at
    it: every window streams through once for each. `reading_weights`, such as 0.85/0.15, says how
    much their errors count.
    An embedding table of 4 bits is rounded before all else, if it is the head as well, by the
    second moments of the head's input in the float model. Does not fire on float formats, and on
    tables of 8 bits and heads tied to them: those are rounded to nearest when packed.

    Source: GPTQ, arXiv 2210.17323; two-level scales of arXiv 2311.16442; propagated errors of QEP,
    arXiv 2504.09629.
    """

    name: ClassVar[str] = "calibrate-weights"
    task: ClassVar[str] = "round with error feedback"
    needs: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "linears-apart",
        "formats-open",
    )
    gives: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "results-kept",
    )

    damping: float = 0.01
    shrinkage: float = 0.0
    order: str = "groups"
    feedback: bool = True
    compensation: float = 0.5
    memory_mb: int = 256
    reading_weights: str = ""

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        known = self.order in ORDERS and 0 <= self.compensation <= 1 and 0 <= self.shrinkage <= 1
        if not known or self.damping <= 0 or self.memory_mb < 0:
            raise InputError(
                f"{self.name}: bad option (got {self.spec})",
                hint=f"order is one of {', '.join(ORDERS)}, damping is positive, "
                "compensation and shrinkage are from 0 to 1",
            )
        parts = self._reading_weights(readings_of(module))
        calibration, weights = needed_calibration(self.name, context)
        # torch takes seconds to import: not before it is needed
        from .quantizer.error_feedback import Feedback
        from .quantizer.module_rounder import ModuleRounder
        from .streaming.activation_store import ActivationStore

        options = Feedback(
            self.damping, self.shrinkage, self.order, feedback=self.feedback, weights=parts
        )
        rounder = ModuleRounder(
            module["main"],
            weights,
            weights.code_store,
            ActivationStore(calibration.scratch, self.memory_mb << 20),
            options,
            self.compensation,
        )
        context.report.count("windows of text", len(calibration.windows))
        if not rounder.stages and not rounder.tables:
            raise CompileError(
                f"{self.name}: no linear has a format of 8 bits or less",
                hint="run quantize-weights before it",
            )
        if rounder.tables:
            with context.track("round tables", len(rounder.tables)) as advance:
                for table in rounder.round_tables(calibration.windows):
                    _report(context, [table])
                    advance()
        with context.track(self.task, len(rounder.stages)) as advance:
            for results in rounder.run(calibration.windows):
                _report(context, results)
                advance()
        return mark_codes(module, weights.code_store, CALIBRATED)

    def _reading_weights(self, readings: tuple[int, ...]) -> tuple[float, ...]:
        """How much errors of each reading count; () is as it is by default.

        Args:
            readings: of the module's formats.
        """
        if readings and self.order == "channels":
            raise InputError(
                f"{self.name}: several readings are rounded group by group (got {self.spec})",
                hint="order is groups or natural",
            )
        try:
            parts = tuple(map(float, filter(None, self.reading_weights.split("/"))))
        except ValueError:
            parts = (0.0,)
        if parts and (len(parts) != len(readings) or not all(0 < p < math.inf for p in parts)):
            raise InputError(
                f"{self.name}: reading_weights are positive, one for each reading "
                f"(got {self.reading_weights}, {len(readings)} readings)"
            )
        return parts


def _report(context: Context, results: Sequence[Rounded]) -> None:
    for rounded in results:
        context.report.count("matrices rounded with error feedback")
        context.report.figures[rounded.name] = {
            "error": rounded.feedback,
            "error_to_nearest": rounded.promoted,
            "error_to_nearest_all_bits": rounded.nearest,
            **({"error_of_lower_readings": list(rounded.lower)} if rounded.lower else {}),
        }
        if rounded.dead:
            why = f"{rounded.dead:.0f} input channels are always 0: rounded to nearest"
            context.report.missed(rounded.name, why)
