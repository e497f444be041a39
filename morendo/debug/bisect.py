"""The pass after which a model's graph computes something else, found by running every stage.

Every stage is run in numpy with weights as they are, so that a pass that only rounds changes
nothing. What is compared with are torch's logits, or those of the graph as imported where torch
cannot run the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

from morendo.frontend import LoadedModel
from morendo.ir.errors import CompileError, MorendoError
from morendo.ir.evaluate import Interpreter
from morendo.ir.evaluate_dialect import State
from morendo.ir.invariants import relax_functions
from morendo.ir.text import bindings_of
from morendo.ir.weight_overlay import WeightOverlay
from morendo.ir.weights import NamedWeights
from morendo.passes.base import Context, Pass, parse_spec
from morendo.passes.pipeline import PassRecord, known_passes, run_passes

from .rules import FLOAT_RULES

TOLERANCE = 1e-3
"""Of the largest logit."""
NEED_TEXT = (
    "analyze-group-ranges",
    "promote-groups",
    "choose-activations",
    "calibrate-weights",
    "tune-scales",
)
"""Passes that need a calibration; they choose formats and codes, and leave the function alone."""


@dataclass(frozen=True)
class Stage:
    """How far the logits are from the right ones after a pass.

    Attributes:
        name: the pass, "import" for the graph before all of them.
        error: the largest difference of two logits, as a part of the largest logit.
        problem: why the graph could not be run, "" mostly.
    """

    name: str
    error: float
    problem: str = ""

    @property
    def good(self) -> bool:
        """Whether it computes the same function; NaN is never good."""
        return self.error <= TOLERANCE


def bisect(
    loaded: LoadedModel,
    specs: Sequence[str],
    ids: Sequence[int],
    want: NDArray[np.float32] | None,
) -> list[Stage]:
    """Run the graph as imported and after each pass.

    Args:
        loaded: the model.
        specs: of the passes, as the manifest has them; those in `NEED_TEXT` are left out.
        ids: tokens, two or more.
        want: the right logits [tokens, vocabulary]; None: those of the graph as imported.

    Returns:
        All stages up to the first that is wrong.
    """
    weights = WeightOverlay(loaded.weights)
    imported = logits_of(loaded.module, ids, weights)
    want = imported if want is None else want
    stages = [Stage("import", _error(imported, want))]

    def after(record: PassRecord, module: tvm.IRModule) -> None:
        if stages[-1].good:
            stages.append(_stage(record.name, module, ids, weights, want))

    try:
        run_passes(loaded.module, _passes(specs), Context(weights), done=after)
    except MorendoError as error:
        if stages[-1].good:
            raise CompileError(str(error), hint="the passes cannot be run again") from error
    return stages


def _passes(specs: Sequence[str]) -> list[Pass]:
    passes = parse_spec(",".join(specs), known_passes())
    return [step for step in passes if step.name not in NEED_TEXT]


def _stage(
    name: str, module: tvm.IRModule, ids: Sequence[int], weights: NamedWeights, want: NDArray
) -> Stage:
    try:
        return Stage(name, _error(logits_of(module, ids, weights), want))
    except (ArithmeticError, LookupError, ValueError, NotImplementedError) as error:
        return Stage(name, float("inf"), f"{type(error).__name__}: {error}")


def _error(got: NDArray, want: NDArray) -> float:
    if got.shape != want.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - want).max() / max(float(np.abs(want).max()), 1e-30))


def logits_of(
    module: tvm.IRModule, ids: Sequence[int], weights: NamedWeights
) -> NDArray[np.float32]:
    """Logits [tokens, vocabulary] of a graph, nothing rounded.

    A module with a cache runs all tokens but the last through score, and the last through decode.
    """
    functions, state = relax_functions(module), State(weights)
    if "main" in functions:
        return _run(functions["main"], ids, 0, len(ids), state)
    last = len(ids) - 1
    first = _run(functions["score"], ids, 0, last, state)
    return np.concatenate([first, _run(functions["decode"], ids, last, len(ids), state)])


def _run(
    function: Any, ids: Sequence[int], start: int, stop: int, state: State
) -> NDArray[np.float32]:
    interpreter = Interpreter(state, FLOAT_RULES)
    names = [str(n) for n in (function.attrs or {}).get("weight_names", [])]
    tokens = np.asarray(ids[start:stop], np.int64)[None], np.arange(start, stop)[None]
    values = [*tokens, *map(state.weights.get, names)]
    for param, value in zip(function.params, values, strict=False):
        interpreter.bind(param, value)
    for binding in bindings_of(function):
        interpreter.bind(binding.var, interpreter.value(binding.value))
    return interpreter.value(function.body.body)[0]
