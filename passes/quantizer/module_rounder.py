"""Rounding every matrix of a module by what arrives at it on real text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from tvm import relax

from morendo.ir.code_store import CodeStore
from morendo.ir.formats import WeightFormat
from morendo.ir.reference import ROWS
from morendo.ir.weights import Weights

from ..streaming.activation_store import ActivationStore
from ..streaming.stages import Attrs, Stage, split_stages
from ..streaming.stream import Arrived, Stream, float_matrix, stored_order
from .compensation import sum_moments
from .error_feedback import Feedback, round_with_feedback
from .figures import LOWER, measure
from .joint_rounding import round_for_readings
from .tables import head_moments, nested_tables, round_table


@dataclass(frozen=True)
class Rounded:
    """What rounding one matrix did.

    Attributes:
        name: of the weight.
        nearest, promoted, feedback: |(W - Q) X|^2 / |W X|^2 on the calibration text, W as it was
            moved, for rounding to nearest with all bits of the format's kind, for the same with
            the bits that its groups have, and for what was kept.
        dead: input channels that were always 0.
        lower: the same as `feedback` for the further readings, each on what arrives there at it.
    """

    name: str
    nearest: float
    promoted: float
    feedback: float
    dead: float
    lower: tuple[float, ...] = ()


class ModuleRounder:
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
        stages = split_stages(function, _is_quantized)
        formats = {WeightFormat.parse(a["format"]) for stage in stages for a in stage.linears}
        self.readings = max((fmt.reading_count for fmt in formats), default=1)
        self.stream = Stream(
            function,
            weights,
            codes,
            activations,
            _is_quantized,
            beside_float=compensation > 0,
            readings=self.readings,
        )
        self.stages = self.stream.stages
        self.tables = nested_tables(function)

    def round_tables(self, windows: np.ndarray) -> Iterator[Rounded]:
        """Round the embedding tables that have 4 bits, before anything runs with them."""
        for attrs in self.tables:
            name, fmt = attrs["weight"], WeightFormat.parse(attrs["format"])
            figures = self.codes.figures(name, fmt)
            if figures is None:
                parts = self.stream.function, self.weights, self.stream.activations
                moments = head_moments(*parts, windows, name)
                figures = round_table(attrs, moments, self.weights, self.codes, self.options)
            yield _rounded(name, figures)

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
    ) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """Moments [K, K] of a stage's inputs at each reading, and for each of its matrices [N, K]
        what it is after it moved, at each reading.
        """
        stacked = np.concatenate([float_matrix(self.weights, attrs) for attrs in stage.linears])
        matrix = torch.from_numpy(stacked)
        sums, where = sum_moments(inputs, matrix, self.readings), stage.linears[0]["weight"]
        formats = [WeightFormat.parse(attrs["format"]) for attrs in stage.linears]
        count = max(fmt.reading_count for fmt in formats)
        copies = [matrix.clone() for _ in range(1, count)] + [matrix]
        for moments, copy in zip(sums, copies, strict=False):
            moments.move(copy, self.compensation, where)
        rows = [attrs["out_features"] for attrs in stage.linears]
        parts = [list(each) for each in zip(*(copy.split(rows) for copy in copies), strict=True)]
        return [moments.inputs for moments in sums], parts

    def _known(self, stage: Stage) -> list[Rounded]:
        """What an earlier run found; empty when it did not come so far."""
        results = []
        for attrs in stage.linears:
            figures = self.codes.figures(attrs["weight"], WeightFormat.parse(attrs["format"]))
            if not figures:
                return []
            results.append(_rounded(attrs["weight"], figures))
        return results

    def _round(
        self, linears: list[tuple[Attrs, list[torch.Tensor]]], moments: list[torch.Tensor]
    ) -> list[Rounded]:
        """Round linears of one input, order and format together.

        Args:
            linears: with their matrices [N, K] at each reading, which may be overwritten.
            moments: of their input at each reading, float32 [K, K].
        """
        first = linears[0][0]
        fmt = WeightFormat.parse(first["format"])
        order, count = stored_order(self.weights, first), fmt.reading_count
        moved = [_stacked([copies[r] for _, copies in linears], order) for r in range(count)]
        stored = [each[order][:, order] for each in moments[:count]]
        if count > 1:
            rounded = round_for_readings(moved, stored, fmt, self.options, first["weight"])
        else:
            rounded = round_with_feedback(moved[0], stored[0], fmt, self.options, first["weight"])
        results, start = [], 0
        for attrs, _ in linears:
            stop = start + attrs["out_features"]
            part = rounded.rows(start, stop)
            figures = measure(fmt, stored, [each[start:stop].numpy() for each in moved], part)
            self.codes.put(attrs["weight"], fmt, part, figures)
            results.append(_rounded(attrs["weight"], figures))
            start = stop
        return results


def _stacked(matrices: list[torch.Tensor], order: np.ndarray) -> torch.Tensor:
    """Matrices one below the other, columns as they are stored; a single one is overwritten."""
    moved = torch.cat(matrices) if matrices[1:] else matrices[0]
    for rows in moved.split(ROWS):
        rows.copy_(rows[:, order])
    return moved


def _rounded(name: str, figures: Mapping[str, float]) -> Rounded:
    single = {field.name: figures[field.name] for field in fields(Rounded)[1:-1]}
    lower = tuple(value for key, value in figures.items() if key.startswith(LOWER))
    return Rounded(name, **single, lower=lower)


def _is_quantized(attrs: Attrs) -> bool:
    return WeightFormat.parse(attrs["format"]).quantized
