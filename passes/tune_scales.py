"""tune-scales: move scales of rounded matrices and norms until the model's output is closer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import NORMS, attrs_of, call, op_name
from morendo.ir.errors import InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import TUNED, calls, readings_of, tuned_mark
from morendo.ir.text import bindings_of
from morendo.ir.weight_overlay import WeightOverlay, tuned_name

from .base import Context, Pass, needed_calibration
from .promotion.limits import promotable_in
from .rewrite import map_functions


@dataclass(frozen=True)
class TuneScales(Pass):
    """Tune scales of all matrices and weights of norms together, by the output of the float model.

        n = M.rms_norm(x, weight="n", ...)
        y = M.linear(n, weight="w", ..., format="q4g32c", codes="calibrated")
        ->  n = M.rms_norm(x, weight="n.tuned", ...)
            y with codes="tuned": the kept "w" has other scales

    Of compact formats row scales are tuned, of others the scales and zeros of groups. Codes stay
    what calibrate-weights made them. Each of `steps` runs one window of text through the float and
    the quantized model and follows the gradient of KL(float || quantized) with Adam, one cycle up
    to `learning_rate`, which is in units of a group's spacing of codes. More steps are better, the
    more so the fewer the bits, as long as no window comes twice. Windows held back tell whether the
    stored result is better; if not, all stays as it was. Products are in bfloat16 where the
    processor is faster with it. Does not fire on a model whose float weights take more than
    `memory_mb` megabytes (in all it needs twice as much, and one to two gigabytes for activations),
    whose nested codes have `below_bits` or more on average, with scales and all, or with ops that
    have no gradient here; matrices without codes are used as they will be packed. Codes made for
    several readings are tuned at each that has less than `below_bits`: its scales, and norms of
    its own.

    Source: end-to-end training of quantization parameters of EfficientQAT, arXiv 2407.11062.
    """

    name: ClassVar[str] = "tune-scales"
    task: ClassVar[str] = "tune scales"
    needs: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "linears-apart",
        "calibrated",
        "scales-open",
    )
    gives: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "results-kept",
    )

    steps: int = 30
    learning_rate: float = 2e-3
    memory_mb: int = 2048
    below_bits: float = 16.0

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        if self.steps < 1 or self.learning_rate <= 0 or self.memory_mb < 0:
            raise InputError(
                f"{self.name}: bad option (got {self.spec})",
                hint="steps and learning_rate are positive",
            )
        _, weights = needed_calibration(self.name, context)
        count = max(len(readings_of(module)), 1)
        wanted = [r for r in range(count) if self._has_room(module, r, context)]
        linears = [attrs_of(value) for name, value in calls(module) if name == "linear"]
        for reading in wanted:
            mark = tuned_mark(reading)
            before = sum(mark in _figures(attrs, weights.code_store) for attrs in linears)
            if before:  # by an earlier try: all of one reading are kept, or none
                context.report.count("matrices tuned before", before)
            elif not self._tune(module, reading, context):
                break
        return _with_tuned(module, weights, count)

    def task_at(self, readings: tuple[int, ...], reading: int) -> str:
        """The title of the progress of one reading, of those that the module has."""
        return f"{self.task}, {readings[reading]} bits read" if readings else self.task

    def _has_room(self, module: tvm.IRModule, reading: int, context: Context) -> bool:
        """Whether a reading has few enough bits."""
        bits = _nested_bits(module, reading)
        if bits >= self.below_bits:
            why = f"nested codes have {bits:.2f} bits, below_bits is {self.below_bits:g}"
            context.report.missed(_place(module, reading), why)
        return bits < self.below_bits

    def _tune(self, module: tvm.IRModule, reading: int, context: Context) -> bool:
        """Tune one reading; false where the model cannot be tuned at all."""
        # torch takes seconds to import: not before it is needed
        from .quantizer.tuner import Tuner
        from .streaming.torch_ops import TorchFunction

        calibration, weights = needed_calibration(self.name, context)
        function = TorchFunction(module["main"])
        windows = calibration.windows if calibration.tuning is None else calibration.tuning
        why = self._obstacle(module["main"], function.unknown, len(windows))
        if why:
            context.report.missed("main", why)
            return False
        tuner = Tuner(function, weights, weights.code_store, self.learning_rate, reading)
        place = _place(module, reading)
        with context.track(self.task_at(readings_of(module), reading), self.steps) as advance:
            tuned = tuner.run(windows, calibration.windows, self.steps, advance)
        context.report.figures["all matrices" if place == "main" else place] = {
            "kl_before": tuned.before,
            "kl_after": tuned.after,
            "steps": self.steps,
        }
        if tuned.better:
            context.report.count("matrices tuned", tuned.matrices)
        else:
            worse = f"{tuned.after:.4g} instead of {tuned.before:.4g} nats a token"
            context.report.missed(place, f"no better on windows held back: {worse}")
        return True

    def _obstacle(self, function: relax.Function, unknown: list[str], windows: int) -> str:
        """Why the function is left alone; "" when it is not."""
        megabytes = float_bytes(function) / 2**20
        if megabytes > self.memory_mb:
            return f"float weights take {megabytes:.0f} MB, memory_mb is {self.memory_mb}"
        if unknown:
            return f"no gradients of {', '.join(unknown)}"
        if windows < 2:
            return "one window of text: none can be held back"
        return ""


def _place(module: tvm.IRModule, reading: int) -> str:
    """What is tuned, for messages."""
    readings = readings_of(module)
    return f"the reading of {readings[reading]} bits" if readings else "main"


def _with_tuned(module: tvm.IRModule, weights: WeightOverlay, readings: int) -> tvm.IRModule:
    """Linears marked, and norms with the weights that were tuned for each reading."""
    codes = weights.code_store
    marks = {tuned_mark(reading) for reading in range(readings)}

    def tuned(name: str, reading: int) -> str:
        values = codes.vector(tuned_name(name, reading)) if name else None
        if values is None:
            return name
        weights.put(tuned_name(name, reading), values)
        return tuned_name(name, reading)

    def visit(_: Any, var: relax.Var, value: Any) -> Any:
        name, attrs = op_name(value), attrs_of(value) if op_name(value) else {}
        if name == "linear" and not marks.isdisjoint(_figures(attrs, codes)):
            return call(name, *value.args, **{**attrs, "codes": TUNED})
        if name not in NORMS:
            return value
        first, *lower = (tuned(attrs["weight"], reading) for reading in range(readings))
        if {first, *lower} == {attrs["weight"]}:
            return value
        return call(name, *value.args, **{**attrs, "weight": first, "lower_weights": lower})

    return map_functions(module, visit)


def _nested_bits(module: tvm.IRModule, reading: int) -> float:
    """Bits of a weight in nested codes that a reading reads, with scales and all but orders; 0
    without any.
    """
    nbytes, weights, wanted = 0, 0, promotable_in(module)
    for attrs in (attrs_of(value) for name, value in calls(module) if name == "linear"):
        rows, columns = attrs["out_features"], attrs["in_features"]
        if wanted(attrs):
            fmt = WeightFormat.parse(attrs["format"])
            bounds = fmt.bounds(columns, min(reading, fmt.reading_count - 1))
            nbytes += fmt.bytes_read(rows, columns, bounds)
            weights += rows * columns
    return 8 * nbytes / weights if weights else 0.0


def float_bytes(function: relax.Function) -> int:
    """Bytes of a function's matrices in float32."""
    sizes: dict[str, int] = {}
    for binding in bindings_of(function):
        name = op_name(binding.value)
        if name in ("linear", "embedding"):
            attrs = attrs_of(binding.value)
            shape = ("out_features", "in_features") if name == "linear" else ("rows", "features")
            sizes[attrs["weight"]] = 4 * attrs[shape[0]] * attrs[shape[1]]
    return sum(sizes.values())


def _figures(attrs: dict[str, Any], codes: CodeStore) -> dict[str, float]:
    """What was measured of a linear's matrix; nothing when it has no codes."""
    return codes.figures(attrs["weight"], WeightFormat.parse(attrs["format"])) or {}
