"""Rounding every matrix of a module by what arrives at it on real text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from tvm import relax

from morendo.ir.code_store import CodeStore
from morendo.ir.formats import WeightFormat
from morendo.ir.reference import ROWS, Quantized, dequantize, quantize

from .activations import ActivationStore
from .compensation import sum_moments
from .error_feedback import Feedback, round_with_feedback
from .stages import Attrs, Stage
from .stream import Arrived, Stream, Weights, float_matrix, stored_order


@dataclass(frozen=True)
class Rounded:
    """What rounding one matrix did.

    Attributes:
        name: of the weight.
        nearest, promoted, feedback: |(W - Q) X|^2 / |W X|^2 on the calibration text, W as it was
            moved, for rounding to nearest with all bits of the format's kind, for the same with
            the bits that its groups have, and for what was kept.
        dead: input channels that were always 0.
    """

    name: str
    nearest: float
    promoted: float
    feedback: float
    dead: float


class Calibrator:
    """Makes the codes of a function's linears.

    Args:
        function: main of a normalized module whose formats are chosen.
        weights: of the model.
        codes: where the results go; what is there already is kept.
        activations: for values between stages.
        options: of the rounding.
        compensation: how far matrices move to make up for what earlier ones lost, 0 to 1.
    """

    def __init__(
        self,
        function: relax.Function,
        weights: Weights,
        codes: CodeStore,
        activations: ActivationStore,
        options: Feedback,
        compensation: float = 0.0,
    ) -> None:
        self.weights, self.codes, self.options = weights, codes, options
        self.compensation = compensation
        beside = compensation > 0
        self.stream = Stream(function, weights, codes, activations, _is_quantized, beside)
        self.stages = self.stream.stages

    def run(self, windows: np.ndarray) -> Iterator[list[Rounded]]:
        """Round everything by windows of token ids int64 [W, n], stage by stage."""
        known = [self._known(stage) for stage in self.stages]
        if all(known):  # by an earlier run that was interrupted later
            return iter(known)
        return self.stream.run(windows, self._round_stage)

    def _round_stage(self, stage: Stage, inputs: Iterator[Arrived]) -> list[Rounded]:
        known = self._known(stage)
        if known:
            return known
        moments, matrices = self._compensated(stage, inputs)
        results = []
        for spec in dict.fromkeys(attrs["format"] for attrs in stage.linears):
            pairs = zip(stage.linears, matrices, strict=True)
            results += self._round([pair for pair in pairs if pair[0]["format"] == spec], moments)
        return results

    def _compensated(
        self, stage: Stage, inputs: Iterator[Arrived]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Moments [K, K] of a stage's inputs, and its matrices [N, K] after they moved."""
        stacked = np.concatenate([float_matrix(self.weights, attrs) for attrs in stage.linears])
        matrix = torch.from_numpy(stacked)
        moments = sum_moments(inputs, matrix)
        moments.move(matrix, self.compensation, stage.linears[0]["weight"])
        return moments.inputs, matrix.split([attrs["out_features"] for attrs in stage.linears])

    def _known(self, stage: Stage) -> list[Rounded]:
        """What an earlier run found; empty when it did not come so far."""
        results = []
        for attrs in stage.linears:
            figures = self.codes.figures(attrs["weight"], WeightFormat.parse(attrs["format"]))
            if not figures:
                return []
            found = {field.name: figures[field.name] for field in fields(Rounded)[1:]}
            results.append(Rounded(attrs["weight"], **found))
        return results

    def _round(
        self, linears: list[tuple[Attrs, torch.Tensor]], moments: torch.Tensor
    ) -> list[Rounded]:
        """Round linears of one input, order and format together.

        Args:
            linears: with their matrices [N, K], which may be overwritten.
            moments: of their input, float32 [K, K].
        """
        first = linears[0][0]
        fmt = WeightFormat.parse(first["format"])
        order = stored_order(self.weights, first)
        moved = torch.cat([matrix for _, matrix in linears]) if linears[1:] else linears[0][1]
        for rows in moved.split(ROWS):
            rows.copy_(rows[:, order])
        stored = moments[order][:, order]
        rounded = round_with_feedback(moved, stored, fmt, self.options, first["weight"])
        results, start = [], 0
        for attrs, _ in linears:
            stop = start + attrs["out_features"]
            part = rounded.rows(start, stop)
            figures = _measure(moved[start:stop], part, fmt, stored)
            self.codes.put(attrs["weight"], fmt, part, figures)
            results.append(Rounded(attrs["weight"], **figures))
            start = stop
        return results


def _is_quantized(attrs: Attrs) -> bool:
    return WeightFormat.parse(attrs["format"]).quantized


def _measure(
    matrix: torch.Tensor, kept: Quantized, fmt: WeightFormat, hessian: torch.Tensor
) -> dict[str, float]:
    """The figures of `Rounded`, to four digits: later ones depend on how threads share a sum."""

    def energy(rows: np.ndarray) -> float:
        weight = torch.from_numpy(np.ascontiguousarray(rows))
        return float(((weight @ hessian) * weight).sum(dtype=torch.float64))

    total, nearest, promoted, feedback = 0.0, 0.0, 0.0, 0.0
    with_planes = replace(fmt, slots=0)
    for start in range(0, len(matrix), ROWS):
        rows = matrix[start : start + ROWS].numpy()
        columns, part = rows.shape[1], kept.rows(start, start + len(rows))
        total += energy(rows)
        for_all = quantize(rows, fmt.without_counts)
        nearest += energy(rows - dequantize(for_all, fmt.without_counts, columns))
        if fmt.planes:
            cut = quantize(rows, with_planes)
            promoted += energy(rows - dequantize(cut, with_planes, columns))
        feedback += energy(rows - dequantize(part, fmt, columns))
    total = max(total, 1e-30)
    parts = {
        "nearest": nearest,
        "promoted": promoted if fmt.planes else nearest,
        "feedback": feedback,
    }
    dead = float((hessian.diagonal() == 0).sum())
    return {**{name: float(f"{part / total:.4g}") for name, part in parts.items()}, "dead": dead}
