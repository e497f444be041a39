"""choose-activations: 4-bit inputs for the linears that tolerate them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from morendo.ir.activation_formats import ActivationFormat
from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.errors import CompileError, InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.text import bindings_of
from morendo.ir.weight_overlay import WeightOverlay, factors_name

from .base import Context, Pass, needed_calibration
from .quantize_weights import head_weights
from .rewrite import map_functions, operands

if TYPE_CHECKING:
    from .quantizer.activation_choice import InputError4

MIXED = "mixed"
FEED_FORWARD, PROJECTIONS = "feed forward", "projections"


@dataclass(frozen=True)
class ChooseActivations(Pass):
    """Measure on text what 4-bit inputs lose, and say which linears have them.

        y = M.linear(x, weight="w", ..., format="q4g32")
        ->  y = M.linear(x, weight="w", ..., format="q4g32", activations="a4f", factors="w.factors")

    `bits=4` takes all quantized linears but the output head, which is read for one token of a
    prompt alone and loses most. `bits=mixed` takes first those of the feed-forward part, then the
    projections of attention, each kind in the order of what they lose, while all losses together,
    as parts of the residual stream, are at most `most_loss`. With `factors` channels are divided
    by powers of two before they are rounded, as loses least. calibrate-weights then rounds
    matrices for what they will read. The report has the losses of every input.

    Does not fire on linears with float weights, and where linears of one input store its channels
    in different ways.

    Source: Agile-Quant, arXiv 2312.05693: FC1 and FC2 before the projections, and TRIP's factors.
    """

    name: ClassVar[str] = "choose-activations"
    task: ClassVar[str] = "measure activations"
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

    bits: str = MIXED
    most_loss: float = 0.012
    factors: bool = True
    windows: int = 4
    memory_mb: int = 256

    def __post_init__(self) -> None:
        if self.bits not in ("4", MIXED) or self.windows < 1 or not self.most_loss >= 0:
            raise InputError(
                f"{self.name}: bad option (got {self.spec})",
                hint=f"bits is 4 or {MIXED}, most_loss 0 or more, windows 1 or more",
            )

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        calibration, weights = needed_calibration(self.name, context)
        # torch takes seconds to import: not before it is needed
        from .quantizer.activation_choice import ActivationAnalyzer, weigh
        from .streaming.activation_store import ActivationStore
        from .streaming.stream import Stream

        heads, main = head_weights(module), module["main"]
        stream = Stream(
            main,
            weights,
            None,
            ActivationStore(calibration.scratch, self.memory_mb << 20),
            lambda attrs: (
                WeightFormat.parse(attrs["format"]).quantized and attrs["weight"] not in heads
            ),
        )
        if not stream.stages:
            raise CompileError(
                f"{self.name}: no linear but the head has weights of 8 bits or less",
                hint="run quantize-weights before it, or leave --activations out",
            )
        analyzer, found = ActivationAnalyzer(stream.weights, self.factors), {}
        chosen = np.linspace(0, len(calibration.windows) - 1, self.windows).astype(int)
        windows = calibration.windows[np.unique(chosen)]
        with context.track(self.task, len(stream.stages)) as advance:
            for stage, error in zip(
                stream.stages, stream.run(windows, analyzer.visit), strict=True
            ):
                found[stage.source] = error
                advance()
        weigh(list(found.values()))
        for stage in stream.stages:
            if len({_storage(attrs) for attrs in stage.linears}) > 1:
                del found[stage.source]
                names = " + ".join(attrs["weight"] for attrs in stage.linears)
                context.report.missed(names, "its linears store channels in different ways")
        projections = attention_inputs(main, found)
        taken = self._take(found, projections, context)
        return _rewrite(module, {var: found[var] for var in taken}, weights)

    def _take(
        self,
        found: dict[relax.Var, InputError4],
        projections: set[relax.Var],
        context: Context,
    ) -> list[relax.Var]:
        """The inputs that get 4 bits, in the order of their choice; the report has all."""
        order = sorted(found, key=lambda var: (var in projections, found[var].loss[1]))
        taken: list[relax.Var] = []
        total = 0.0
        for var in order:
            error, kind = found[var], PROJECTIONS if var in projections else FEED_FORWARD
            fits = self.bits == "4" or total + error.loss[1] <= self.most_loss
            if fits:
                taken.append(var)
                total += error.loss[1]
            what = "4 bits" if fits else "8 bits"
            context.report.count(f"inputs of {kind} with {what}")
            for name in error.names:
                context.report.figures[name] = {
                    "activation_bits": 4 if fits else 8,
                    "loss_4bit": error.loss[0],
                    "loss_4bit_factors": error.loss[1],
                    "factors": [int((error.factors == f).sum()) for f in (1, 2, 4, 8)],
                }
        context.report.figures["all inputs"] = {"loss": total}
        context.report.summary = (
            f"activations: 4 bits for {len(taken)} of {len(found)} inputs of linears, which lose "
            f"{100 * total:.2g} % of the residual stream"
        )
        return taken


def _storage(attrs: dict[str, Any]) -> tuple[str, int]:
    """What linears that share codes of activations agree on."""
    return attrs["order"], WeightFormat.parse(attrs["format"]).group_size


def attention_inputs(function: relax.Function, sources: Iterable[relax.Var]) -> set[relax.Var]:
    """The inputs of linears that make queries, keys and values, or that read what attention gives.

    Args:
        function: normalized, in the order of computation.
        sources: inputs of linears.
    """
    made_of: dict[relax.Var, set[relax.Var]] = {}  # inputs whose linears' outputs are in a value
    attended: set[relax.Var] = set()  # values that attention gives, with no linear after it
    found: set[relax.Var] = set()
    wanted = set(sources)
    for binding in bindings_of(function):
        var, value = binding.var, binding.value
        name, args = op_name(value), operands(value)
        if name == "linear":
            made_of[var] = {args[0]}
            if args[0] in attended:
                found.add(args[0])
            continue
        if name == "attention":
            found |= set().union(*(made_of.get(arg, set()) for arg in args))
            attended.add(var)
            continue
        if len(args) == 1 or name == "rope":  # reshapes, norms of heads
            made_of[var] = made_of.get(args[0], set())
        if args and all(arg in attended for arg in args):
            attended.add(var)
    return found & wanted


def _rewrite(
    module: tvm.IRModule, taken: dict[relax.Var, InputError4], weights: WeightOverlay
) -> tvm.IRModule:
    def visit(rebuilder: Any, var: relax.Var, value: Any) -> Any:
        if op_name(value) != "linear":
            return value
        error, attrs = taken.get(rebuilder.values[var].args[0]), attrs_of(value)
        if error is None or attrs["weight"] not in error.names:
            return value
        factored = bool((error.factors != 1).any())
        name = factors_name(error.names[0]) if factored else ""
        if factored:
            weights.put(name, error.factors)
        fmt = ActivationFormat(4, factored)
        return call("linear", *value.args, **{**attrs, "activations": fmt.name, "factors": name})

    return map_functions(module, visit)
