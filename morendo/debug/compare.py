"""Every op of an artifact's plan against what it should compute, and the first that is wrong.

Two questions are asked of each op, both about this op alone, so that an error is named where it
arises and not where it has grown:

    graph   from torch's own values of its operands, does the op of the IR give torch's result?
            Nothing is rounded here; a mistake of the import or of a pass shows.
    kernel  from the operands that the plan computed, did the kernel give what the op means in its
            formats (`ir/evaluate_dialect.py`)? A mistake of packing, lowering or a kernel shows.

Codes that were made by a text are not known here. Their loss is compared with what rounding to
nearest in the same format would lose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from morendo.ir.dialect import attrs_of, op_name
from morendo.ir.errors import CompileError, InputError
from morendo.ir.evaluate import Interpreter
from morendo.ir.evaluate_dialect import State
from morendo.ir.formats import WeightFormat
from morendo.ir.text import bindings_of
from morendo.ir.weights import NamedWeights, Weights
from morendo.progress import Progress
from morendo.runtime.artifact import GRAPH, read_manifest
from morendo.runtime.executor import as_ids, require_known

from .captured import Opened, Run, capture, foreign_plan, kernel_of, open_graph
from .model_weights import ModelWeights
from .rules import FLOAT_RULES, as_array

if TYPE_CHECKING:
    from morendo.frontend.float_model import FloatModel

    from .torch_values import TorchValues

GRAPH_TOLERANCE = 1e-3
FLIPPED = 0.35
"""Of what rounding activations loses. A number in the middle of two codes may get either, and one
code further off is the square root of 12 times what rounding loses on average: this is one code
in a hundred."""
_ROUND_ACTIVATIONS = ("quantize_activation", "rms_norm_quantize", "layer_norm_quantize")
"""Relative error that another order of float additions may have."""
KERNEL_TOLERANCE = 4e-3
"""The same where keys and values are float16 and activations sit on the edge of a code."""
CODES_TOLERANCE, READINGS_TOLERANCE = 2.0, 3.5
"""Times what rounding to nearest loses, for codes that a text made, for one reading or several."""


@dataclass(frozen=True)
class OpCheck:
    """What was found about one op.

    Attributes:
        function: "graph" for the graph alone, else the function whose kernel ran.
        start: the position of the first token.
        index: of the op in the function's IR.
        op: its name in the IR.
        weight: the first weight that it reads, "" for none.
        var: the variable that it defines.
        kernel, note: what computed it.
        lost: relative error against the same op without rounding.
        expected: what its formats lose.
        excess: relative error against what it should be, and `allowed` of it.
        drift: relative error against torch, earlier ops included; None where torch has no such
            value.
    """

    function: str
    start: int
    index: int
    op: str
    weight: str
    var: str
    kernel: str
    note: str
    lost: float
    expected: float
    excess: float
    allowed: float
    drift: float | None

    @property
    def good(self) -> bool:
        """Whether the error is one that the formats explain; NaN is never good."""
        return self.excess <= self.allowed


@dataclass(frozen=True)
class Report:
    """All ops in the order in which they were checked; the graph's first."""

    tokens: int
    checks: list[OpCheck] = field(default_factory=list)

    @property
    def first_wrong(self) -> OpCheck | None:
        """Where to look."""
        return next((check for check in self.checks if not check.good), None)


def debug(
    artifact: Path,
    model: str,
    ids: Sequence[int],
    threads: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Run an artifact and the model that it was made of on the same tokens, and compare.

    Args:
        artifact: compiled for this machine.
        model: Hugging Face directory, hub id, .gguf or .onnx file. Without torch's own values (an
            .onnx file has none) only kernels are checked.
        ids: two tokens or more.

    Raises:
        ArtifactError: when the artifact cannot run here, or has no graph.
        InputError: for a model or tokens that do not fit the artifact.
    """
    progress, manifest = progress or Progress(), read_manifest(artifact)
    if len(ids) < 2:
        raise InputError(f"too few tokens to compare (got {len(ids)}, need 2 or more)")
    with progress.task("read the graph"):
        opened = open_graph(artifact, manifest)
    require_known(as_ids(ids), opened.plan.vocabulary)  # the parts of a run count places anew
    with progress.task("run the plan"):
        runs = capture(opened, ids, threads)
    with progress.task("run the model"):
        original = original_of(manifest, model)
        store = original.weights if original else _onnx_weights(manifest, model)
        weights = ModelWeights.of(opened, store)
        found = None if original is None else values_of(original, ids)
    report = Report(len(ids))
    with progress.task("compare", len(runs) + 1) as advance:
        if found is not None:
            report.checks.extend(check_graph(opened, ids, weights, found))
        advance()
        for checks in check_kernels(opened, runs, ids, weights, found):
            report.checks.extend(checks)
            advance()
    return report


def original_of(manifest: dict[str, Any], model: str) -> FloatModel | None:
    """The model as torch computes it; None for an .onnx file, which torch cannot run."""
    from morendo.frontend.float_model import open_float_model
    from morendo.frontend.locate import ONNX, locate

    if locate(model, []).suffix == ONNX:
        return None
    return open_float_model(model, manifest["model"].get("context"))


def values_of(original: FloatModel, ids: Sequence[int]) -> TorchValues:
    """What torch computes from these tokens."""
    from .torch_values import torch_values

    return torch_values(original, ids)


def _onnx_weights(manifest: dict[str, Any], model: str) -> Weights:
    from morendo.frontend import load_model

    return load_model(model, manifest["model"].get("context")).weights


def check_graph(
    opened: Opened, ids: Sequence[int], weights: NamedWeights, found: TorchValues
) -> Iterator[OpCheck]:
    """Every op of the IR from torch's values of its operands, nothing rounded.

    Ops whose result torch does not show pass theirs on to the next one that it does.
    """
    from .torch_values import counterparts

    function = opened.module["score"]
    known = counterparts(function, found)
    interpreter = Interpreter(State(weights), FLOAT_RULES)
    _bind_inputs(interpreter, function, ids, 0, len(ids))
    for index, binding in enumerate(bindings_of(function)):
        value = _value(interpreter, binding)
        got, want = as_array(value), known.get(binding.var)
        if got is not None and want is not None and got.size == want.size:
            error = relative_error(got, want)
            where = _where(opened, "graph", 0, index, binding)
            yield OpCheck(*where, error, 0.0, error, GRAPH_TOLERANCE, error)
            shaped = want.reshape(got.shape)
            value = (shaped, None, None) if isinstance(value, tuple) else shaped
        interpreter.bind(binding.var, value)


def check_kernels(
    opened: Opened,
    runs: Sequence[Run],
    ids: Sequence[int],
    weights: NamedWeights,
    found: TorchValues | None,
) -> Iterator[list[OpCheck]]:
    """Every op of the plan from the operands that the plan computed, one list a run."""
    rounded, unrounded = State(weights), State(weights)
    for run in runs:
        function = opened.module[run.function]
        pair = Interpreter(rounded), Interpreter(unrounded, FLOAT_RULES)
        known: dict[Any, Any] = {}
        if found is not None:
            from .torch_values import counterparts

            known = counterparts(function, found)
        for interpreter in pair:
            _bind_inputs(interpreter, function, ids, run.start, run.stop)
        yield list(_check_run(opened, run, pair, known))


def _check_run(
    opened: Opened, run: Run, pair: tuple[Interpreter, Interpreter], known: dict[Any, Any]
) -> Iterator[OpCheck]:
    rounded, unrounded = pair
    for index, binding in enumerate(bindings_of(opened.module[run.function])):
        var = binding.var
        meant = _value(rounded, binding)
        got = _shaped(run.values[var], meant) if var in run.values else meant
        arrays = as_array(got), as_array(meant)
        if var in run.values and arrays[0] is not None and arrays[1] is not None:
            name = op_name(binding.value)
            attrs = attrs_of(binding.value) if name else {}
            known_rule = name in FLOAT_RULES
            exact = as_array(_value(unrounded, binding)) if known_rule else arrays[1]
            where = _where(opened, run.function, run.start, index, binding)
            drift = _drift(arrays[0], known.get(var), run)
            errors = rounding_errors(name, attrs, arrays[0], arrays[1], exact)
            yield OpCheck(*where, *errors, drift)
        for interpreter in pair:
            interpreter.bind(var, got)


def rounding_errors(
    name: str, attrs: Mapping[str, Any], got: NDArray, meant: NDArray, exact: NDArray | None
) -> tuple[float, float, float, float]:
    """How far an op's value is off, and how far it may be.

    Args:
        name: of the dialect's op, "" for others.
        attrs: of the op.
        got, meant: what the kernel and the reference computed.
        exact: what an op gives that rounds nothing; None where it is `meant`.

    Returns:
        (lost, expected, excess, allowed), as of `OpCheck`.
    """
    if exact is None:
        exact = meant
    got, meant = (x[..., : exact.shape[-1]] for x in (got, meant))  # the last group is padded
    lost, expected = relative_error(got, exact), relative_error(meant, exact)
    if attrs.get("codes"):
        several = WeightFormat.parse(attrs["format"]).reading_count > 1
        times = READINGS_TOLERANCE if several else CODES_TOLERANCE
        return lost, expected, lost, times * expected + KERNEL_TOLERANCE
    flips = FLIPPED * expected if name in _ROUND_ACTIVATIONS else 0.0
    return lost, expected, relative_error(got, meant), KERNEL_TOLERANCE + flips


def relative_error(got: NDArray, want: NDArray) -> float:
    """|got - want| / |want|; infinite where `got` is not finite."""
    if not np.isfinite(got).all():
        return float("inf")
    size = float(np.linalg.norm(want.astype(np.float64)))
    difference = np.linalg.norm(got.reshape(want.shape).astype(np.float64) - want)
    return float(difference) / max(size, 1e-30)


def _drift(got: NDArray, whole: NDArray | None, run: Run) -> float | None:
    """Error against torch's rows of the same tokens, or of the last one where there is but one."""
    if whole is None:
        return None
    width = whole.size // whole.shape[1]
    rows = got.size // width
    if rows * width != got.size or rows not in (1, run.stop - run.start):
        return None  # torch has the tokens that were dropped, too
    return relative_error(got, whole[:, run.stop - rows : run.stop])


def _value(interpreter: Interpreter, binding: Any) -> Any:
    try:
        return interpreter.value(binding.value)
    except NotImplementedError as error:
        raise CompileError(str(error), where=binding.var.name) from None


def _shaped(got: Any, meant: Any) -> Any:
    """The plan's arrays in the shapes of the IR; theirs may have rows for a whole chunk."""
    if isinstance(meant, tuple):
        return tuple(_shaped(a, b) for a, b in zip(got, meant, strict=True))
    shape = np.shape(meant)
    if got.size < math.prod(shape):
        raise foreign_plan(GRAPH)
    return got.reshape(-1)[: math.prod(shape)].reshape(shape)


def _bind_inputs(
    interpreter: Interpreter, function: Any, ids: Sequence[int], start: int, stop: int
) -> None:
    inputs = np.asarray(ids[start:stop], np.int64)[None], np.arange(start, stop)[None]
    for param, value in zip(function.params, inputs, strict=True):
        interpreter.bind(param, value)


def _where(
    opened: Opened, function: str, start: int, index: int, binding: Any
) -> tuple[str, int, int, str, str, str, str, str]:
    call = binding.value
    name = op_name(call)
    attrs = attrs_of(call) if name else {}
    weight = attrs["weights"][0] if attrs.get("weights") else attrs.get("weight", "")
    op = name or getattr(getattr(call, "op", None), "name", "").removeprefix("relax.")
    kernel, note = "", f"layer {attrs['layer']}" if "layer" in attrs else ""
    if function != "graph":
        kernel, note = kernel_of(opened, function, binding.var)
    return function, start, index, op, weight, binding.var.name, kernel, note
