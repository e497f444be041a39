"""Streaming windows of text through a module, stage by stage.

One stage's matrices and one window's activations are in memory; what a visitor makes of a stage's
inputs is done before the next stage runs, so that it runs with what has been rounded by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from tvm import relax

from morendo.ir.code_store import CodeStore
from morendo.ir.errors import CompileError
from morendo.ir.evaluate import Interpreter, Prepared
from morendo.ir.evaluate_dialect import State, formatted
from morendo.ir.formats import WeightFormat
from morendo.ir.reference import Quantized, check_finite, dequantize
from morendo.ir.weights import NamedWeights, Weights

from .activation_rounding import is_rounded, round_input
from .activation_store import ActivationStore, give_back_memory
from .fast_ops import FAST_RULES, fastest_dtype
from .stages import Attrs, Stage, split_stages

T = TypeVar("T")


@dataclass(frozen=True)
class Arrived:
    """What arrives at a stage's linears in one window.

    Attributes:
        x: their input, float32 [n, K], rounded if it has less than 8 bits.
        residual: what their output is added to, float32 [n, N]; None where it is not known.
        float: what arrives there in the float model; None where the stream does not run it.
        lower: what arrives there where all matrices before are read at each further reading.
    """

    x: torch.Tensor
    residual: torch.Tensor | None
    float: Arrived | None = None
    lower: tuple[Arrived, ...] = ()


SINKS = 4
"""First tokens of a window. All later ones attend to them (attention sinks, arXiv 2309.17453),"""
SINK_WEIGHT = 10.0
"""so an error in one of them counts as much as in this many others."""


class StageWeights:
    """The weights that a stage reads, kept until the next one.

    Args:
        weights: of the model.
        codes: matrices that are rounded already; others run as floats, and tables as their rows
            will be. None for the model as it came.
        reading: at which matrices that have several are read.
    """

    def __init__(self, weights: Weights, codes: CodeStore | None, reading: int = 0) -> None:
        self.weights, self.codes, self.reading = weights, codes, reading
        self.dtype = fastest_dtype()
        self._kept: dict[str, np.ndarray] = {}
        self._matrices: dict[str, torch.Tensor] = {}
        self._tables: dict[str, Quantized] = {}

    def forget(self) -> None:
        """A new stage begins."""
        self._kept.clear()
        self._matrices.clear()
        self._tables.clear()

    def table_rows(self, attrs: Attrs, ids: np.ndarray) -> np.ndarray:
        """Rows of an embedding's table by ids [n]: float32 [n, C].

        Raises:
            CompileError: when one is not finite.
        """
        name, fmt = attrs["weight"], WeightFormat.parse(attrs["format"])
        if name not in self._tables and self.codes is not None:
            made = self.codes.get(name, fmt)
            if made is not None:
                self._tables[name] = made
        if name in self._tables:
            return dequantize(self._tables[name].dense_rows(ids), fmt, attrs["features"])
        rows = self.weights.rows(name, ids)
        check_finite(rows, name)
        return rows if self.codes is None else formatted(rows, attrs["format"])

    def get(self, name: str) -> np.ndarray:
        """A weight as the checkpoint has it.

        Raises:
            CompileError: when it is not finite.
        """
        if name not in self._kept:
            self._kept[name] = self.weights.get(name)
            check_finite(self._kept[name], name)
        return self._kept[name]

    def input(self, attrs: Attrs, x: torch.Tensor) -> torch.Tensor:
        """What a linear reads where x [..., K] arrives: rounded, but in the model as it came."""
        rounded = self.codes is not None and is_rounded(attrs)
        return round_input(self, attrs, x) if rounded else x

    def matrix(self, attrs: Attrs) -> torch.Tensor:
        """A linear's matrix [N, K] as it will be stored, if that is known already, in `dtype`."""
        name = attrs["weight"]
        if name not in self._matrices:
            fmt = WeightFormat.parse(attrs["format"])
            codes = None if self.codes is None else self.codes.get(name, fmt)
            if codes is None:
                matrix = float_matrix(self.weights, attrs)
            else:
                at = min(self.reading, fmt.reading_count - 1)
                matrix = dequantize(codes, fmt, attrs["in_features"], at=at)
                matrix = matrix[:, np.argsort(stored_order(self.weights, attrs))]
            self._matrices[name] = torch.from_numpy(np.ascontiguousarray(matrix)).to(self.dtype)
        return self._matrices[name]


def float_matrix(weights: NamedWeights, attrs: Attrs) -> np.ndarray:
    """A linear's matrix float32 [N, K] as the checkpoint has it.

    Raises:
        CompileError: when it is not finite.
    """
    weight = weights.get(attrs["weight"])
    weight = weight.T if attrs["transposed"] else weight
    check_finite(weight, attrs["weight"])
    return weight


def float_rows(weights: Weights, attrs: Attrs, rows: slice) -> np.ndarray:
    """Some rows of a linear's matrix, float32 [n, K]: heads have a hundred thousand.

    Raises:
        CompileError: when one is not finite.
    """
    if attrs["transposed"]:
        return float_matrix(weights, attrs)[rows]
    found = weights.rows(attrs["weight"], rows)
    check_finite(found, attrs["weight"])
    return found


def stored_order(weights: NamedWeights, attrs: Attrs) -> np.ndarray:
    """Which input channel is stored at each place: int [K]."""
    order = attrs.get("order", "")
    return weights.get(order) if order else np.arange(attrs["in_features"])


def token_weights(tokens: int) -> torch.Tensor:
    """How much each token of a window counts: float32 [n]."""
    weights = torch.ones(tokens)
    weights[:SINKS] = SINK_WEIGHT
    return weights


class Stream:
    """Runs windows through a function and stops at its quantized linears.

    Args:
        function: main of a normalized module whose formats are chosen.
        weights: of the model.
        codes: matrices that are rounded already; others run as floats. None for the float model.
        activations: for values between stages.
        wanted: whether to stop at a linear with these attributes.
        beside_float: run the float model beside it.
        readings: at how many readings the matrices are run, one beside the other.
        tables: stop at wanted linears whose matrices are embedding tables, too.
    """

    def __init__(
        self,
        function: relax.Function,
        weights: Weights,
        codes: CodeStore | None,
        activations: ActivationStore,
        wanted: Callable[[Attrs], bool],
        beside_float: bool = False,
        tables: bool = False,
        readings: int = 1,
    ) -> None:
        self.function, self.activations = function, activations
        self.weights = StageWeights(weights, codes)
        self.lower_weights = [StageWeights(weights, codes, r) for r in range(1, readings)]
        self.float_weights = StageWeights(weights, None) if beside_float else None
        self.stages = split_stages(function, wanted, tables)
        self.prepared = Prepared()

    def run(
        self, windows: np.ndarray, visit: Callable[[Stage, Iterator[Arrived]], T]
    ) -> Iterator[T]:
        """What `visit` makes of every stage.

        Args:
            windows: token ids int64 [W, n].
            visit: is given a stage and what arrives there in each window.

        Raises:
            CompileError: naming the linear whose input is not finite.
        """
        previous: list[relax.Var] = []
        for stage in self.stages:
            inputs = self._arrivals(stage, windows, previous)
            result = visit(stage, inputs)
            for _ in inputs:
                pass  # a visitor that needs no inputs still moves the windows on
            yield result
            previous = stage.live
            give_back_memory()

    def _arrivals(
        self, stage: Stage, windows: np.ndarray, previous: list[relax.Var]
    ) -> Iterator[Arrived]:
        """Run window after window up to the stage's linears."""
        beside = [*self.lower_weights, *([self.float_weights] if self.float_weights else [])]
        for weights in (self.weights, *beside):
            weights.forget()
        for index, ids in enumerate(windows):
            first, *others = [
                self._run_window(stage, ids[None], number * len(windows) + index, previous, weights)
                for number, weights in enumerate((self.weights, *beside))
            ]
            aim = others.pop() if self.float_weights else None
            yield replace(first, float=aim, lower=tuple(others))

    def _run_window(
        self,
        stage: Stage,
        ids: np.ndarray,
        place: int,
        previous: list[relax.Var],
        weights: StageWeights,
    ) -> Arrived:
        """Run one window, whose values are kept at a place of `activations`."""
        interpreter = Interpreter(State(weights), FAST_RULES, self.prepared)
        positions = np.arange(ids.shape[1], dtype=np.int64)[None]
        for param, value in zip(self.function.params, (ids, positions), strict=True):
            interpreter.bind(param, value)
        if previous:
            for var, value in zip(previous, self.activations.load(place), strict=True):
                interpreter.bind(var, value)
        for binding in stage.bindings:
            interpreter.bind(binding.var, interpreter.value(binding.value))
        self.activations.save(place, [interpreter.env[var] for var in stage.live])
        residual = interpreter.env[stage.residual] if stage.residual is not None else None
        x = _rows(interpreter.env[stage.source])
        if not torch.isfinite(x).all():
            raise CompileError(
                "activations overflow on the text, the input of a linear is not finite",
                where=stage.linears[0]["weight"],
                hint="the model overflows in float32, or an earlier weight is damaged",
            )
        x = weights.input(stage.linears[0], x)
        return Arrived(x, None if residual is None else _rows(residual))


def _rows(values: np.ndarray) -> torch.Tensor:
    """(1, n, C) as [n, C]."""
    return torch.from_numpy(values).reshape(-1, values.shape[-1])
