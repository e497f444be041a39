"""Streaming windows through a module, stage by stage, rounding the matrices on the way.

One stage's matrices, one window's activations and one matrix of second moments are in memory;
a stage's linears run with their rounded weights, so later ones see what will really arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from tvm import relax

from morendo.ir.code_store import CodeStore
from morendo.ir.errors import CompileError
from morendo.ir.evaluate import Interpreter
from morendo.ir.evaluate_dialect import State
from morendo.ir.formats import WeightFormat
from morendo.ir.reference import Quantized, check_finite, dequantize, quantize

from .activations import ActivationStore
from .error_feedback import Feedback, round_with_feedback
from .fast_ops import FAST_RULES
from .stages import Attrs, Stage, split_stages


class Weights(Protocol):
    """A WeightStore, as far as calibration needs it."""

    def get(self, name: str) -> np.ndarray: ...


class StageWeights:
    """The weights that a stage reads, kept until the next one; rounded where codes exist."""

    def __init__(self, weights: Weights, codes: CodeStore) -> None:
        self.weights, self.codes = weights, codes
        self._kept: dict[str, np.ndarray] = {}
        self._matrices: dict[str, torch.Tensor] = {}

    def forget(self) -> None:
        """A new stage begins."""
        self._kept.clear()
        self._matrices.clear()

    def get(self, name: str) -> np.ndarray:
        """A weight as the checkpoint has it."""
        if name not in self._kept:
            self._kept[name] = self.weights.get(name)
        return self._kept[name]

    def matrix(self, attrs: Attrs) -> torch.Tensor:
        """A linear's matrix float32 [N, K] as it will be stored, if that is known already."""
        name = attrs["weight"]
        if name not in self._matrices:
            fmt = WeightFormat.parse(attrs["format"])
            codes = self.codes.get(name, fmt)
            matrix = (
                float_matrix(self.weights, attrs)
                if codes is None
                else dequantize(codes, fmt, attrs["in_features"])
            )
            self._matrices[name] = torch.from_numpy(np.ascontiguousarray(matrix))
        return self._matrices[name]


def float_matrix(weights: Weights, attrs: Attrs) -> np.ndarray:
    """A linear's matrix float32 [N, K] as the checkpoint has it.

    Raises:
        CompileError: when it is not finite.
    """
    weight = weights.get(attrs["weight"])
    weight = weight.T if attrs["transposed"] else weight
    check_finite(weight, attrs["weight"])
    return weight


@dataclass(frozen=True)
class Rounded:
    """What rounding one matrix did.

    Attributes:
        name: of the weight.
        nearest, feedback: |(W - Q) X|^2 / |W X|^2 on the calibration text, for rounding to
            nearest and for what was kept.
        dead: input channels that were always 0.
    """

    name: str
    nearest: float
    feedback: float
    dead: int


class Calibrator:
    """Makes the codes of a function's linears.

    Args:
        function: main of a normalized module whose formats are chosen.
        weights: of the model.
        codes: where the results go.
        activations: for values between stages.
        options: of the rounding.
    """

    def __init__(
        self,
        function: relax.Function,
        weights: Weights,
        codes: CodeStore,
        activations: ActivationStore,
        options: Feedback,
    ) -> None:
        self.function, self.weights, self.codes = function, weights, codes
        self.activations, self.options = activations, options
        self.stage_weights = StageWeights(weights, codes)
        self.stages = split_stages(function, _is_quantized)

    def run(self, windows: np.ndarray) -> Iterator[list[Rounded]]:
        """Round everything by windows of token ids int64 [W, n], stage by stage."""
        previous: list[relax.Var] = []
        for stage in self.stages:
            self.stage_weights.forget()
            hessian = torch.zeros(2 * (stage.linears[0]["in_features"],))
            for index in range(len(windows)):
                x = self._run_window(stage, windows[index : index + 1], index, previous)
                hessian.addmm_(x.T, x)
            yield self._round(stage, hessian)
            previous = stage.live

    def _run_window(
        self, stage: Stage, ids: np.ndarray, index: int, previous: list[relax.Var]
    ) -> torch.Tensor:
        """The input of the stage's linears for one window: float32 [n, K]."""
        interpreter = Interpreter(State(self.stage_weights), FAST_RULES)
        positions = np.arange(ids.shape[1], dtype=np.int64)[None]
        for param, value in zip(self.function.params, (ids, positions), strict=True):
            interpreter.bind(param, value)
        if previous:
            for var, value in zip(previous, self.activations.load(index), strict=True):
                interpreter.bind(var, value)
        for binding in stage.bindings:
            interpreter.bind(binding.var, interpreter.value(binding.value))
        self.activations.save(index, [interpreter.env[var] for var in stage.live])
        x = interpreter.env[stage.source]
        return torch.from_numpy(x).reshape(-1, x.shape[-1])

    def _round(self, stage: Stage, hessian: torch.Tensor) -> list[Rounded]:
        """Round linears of one input together, format by format."""
        where = stage.linears[0]["weight"]
        if not torch.isfinite(hessian).all():
            raise CompileError(
                "the input of a linear is not finite on the calibration text",
                where=where,
                hint="the model overflows in float32, or an earlier weight is damaged",
            )
        results = []
        for spec in dict.fromkeys(attrs["format"] for attrs in stage.linears):
            fmt = WeightFormat.parse(spec)
            linears = [attrs for attrs in stage.linears if attrs["format"] == spec]
            matrices = [float_matrix(self.weights, attrs) for attrs in linears]
            stacked = torch.from_numpy(np.concatenate(matrices))
            rounded = round_with_feedback(stacked, hessian, fmt, self.options, where)
            start = 0
            for attrs, matrix in zip(linears, matrices, strict=True):
                stop = start + len(matrix)
                part = rounded.rows(start, stop)
                self.codes.put(attrs["weight"], fmt, part)
                results.append(_measure(attrs["weight"], matrix, part, fmt, hessian))
                start = stop
        return results


def _is_quantized(attrs: Attrs) -> bool:
    return WeightFormat.parse(attrs["format"]).quantized


def _measure(
    name: str, matrix: np.ndarray, kept: Quantized, fmt: WeightFormat, hessian: torch.Tensor
) -> Rounded:
    def energy(rows: np.ndarray) -> float:
        weight = torch.from_numpy(np.ascontiguousarray(rows))
        return float(((weight @ hessian) * weight).sum(dtype=torch.float64))

    def error(codes: Quantized) -> float:
        return energy(matrix - dequantize(codes, fmt, matrix.shape[1])) / max(total, 1e-30)

    total = energy(matrix)
    dead = int((hessian.diagonal() == 0).sum())
    return Rounded(name, error(quantize(matrix, fmt)), error(kept), dead)
