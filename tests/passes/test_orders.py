"""Passes in wrong orders: each is refused in one line, or what comes out is right."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import tvm

from morendo.codegen.packed_matrix import Matrix
from morendo.codegen.weight_file import WeightFile
from morendo.frontend import load_model
from morendo.frontend.weights import WeightStore
from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import NORMS, attrs_of
from morendo.ir.errors import CompileError, MorendoError
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import TUNED, calls, check_invariant
from morendo.ir.reference import quantize
from morendo.ir.weight_overlay import WeightOverlay, untuned_name
from morendo.passes.base import Calibration, Context, Pass, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.quantizer.tuner import Tuned
from tests.frontend.families import VOCABULARY, save_model

ORDER = (
    "normalize,quantize-weights{compact=True},analyze-group-ranges,promote-groups{average_bits=3.3},"
    "split-outliers,calibrate-weights,tune-scales{steps=2,learning_rate=0.0001},fuse-attention,"
    "fuse-linears,specialize-phases,quantize-activations,choose-levels"
)
State = tuple[tvm.IRModule, Context]


class Chain:
    """The states that passes leave, and new ones from any of them."""

    def __init__(self, folder: Path) -> None:
        save_model("llama", folder)
        self.folder, self.made = folder, 0
        loaded = load_model(folder)
        windows = np.random.default_rng(0).integers(0, VOCABULARY, (6, 24))
        (folder / "codes").mkdir()
        weights = WeightOverlay(loaded.weights, CodeStore(folder / "codes"))
        context = Context(weights, calibration=Calibration(windows, folder))
        self.steps = parse_spec(ORDER, known_passes())
        self.states: list[State] = [(loaded.module, context)]
        for step in self.steps:
            self.states.append(self.after(self.states[-1], step))

    def after(self, state: State, step: Pass) -> State:
        """The state after one more pass; the given one stays as it is."""
        module, old = state
        assert old.weights is not None
        self.made += 1
        codes = copytree(old.weights.code_store.folder, self.folder / f"codes{self.made}")
        weights = copy(old.weights)
        weights._vectors, weights.codes = dict(weights._vectors), CodeStore(codes)
        context = Context(weights, calibration=old.calibration)
        return run_passes(module, [step], context)[0], context


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuned, "better", True)  # two steps on random weights may not help
        yield Chain(tmp_path_factory.mktemp("chain"))


def check_right(state: State) -> None:
    """All codes that were made are used, all that are wanted exist, and scales belong together."""
    module, context = state
    assert context.weights is not None
    store = context.weights.code_store
    for name in ("well-formed", "formats-known"):
        check_invariant(name, module, "here")
    used, tuned = set(), set()
    for _, value in calls(module):
        attrs = attrs_of(value)
        if attrs.get("codes"):
            names, fmt = attrs.get("weights") or [attrs["weight"]], attrs["format"]
            used |= {(name, WeightFormat.parse(fmt)) for name in names}
            tuned.add(attrs["codes"] == TUNED)
    assert used == store.keys()
    assert len(tuned) < 2
    for name, value in calls(module):
        if name.removesuffix("_quantize") in NORMS:
            assert (untuned_name(attrs_of(value)["weight"]) is not None) == (tuned == {True})


def test_the_right_order(chain: Chain) -> None:
    for state in chain.states:
        check_right(state)
    formats = {attrs_of(v)["format"] for n, v in calls(chain.states[6][0]) if n == "linear"}
    assert any("p" in fmt and "o" in fmt for fmt in formats)


def test_all_pairs_in_wrong_order(chain: Chain) -> None:
    """From every state each other pass, and then each of those that it came before."""
    refused, right = 0, 0
    for done, state in enumerate(chain.states):
        for index, step in enumerate(chain.steps):
            after = attempt(chain, state, step)
            skipped = chain.steps[done:index] if after else []
            outcomes = [after, *(attempt(chain, after, late) for late in skipped if after)]
            refused += outcomes.count(None)
            right += len(outcomes) - outcomes.count(None)
    assert refused > 60 and right > 60


def attempt(chain: Chain, state: State, step: Pass) -> State | None:
    """The state after a pass, which has to be right; None when the pass refuses in one line."""
    try:
        after = chain.after(state, step)
    except MorendoError as error:
        line = str(error)
    else:
        check_right(after)
        return after
    assert "\n" not in line and "; " in line  # what is wrong, and what to do
    return None


@pytest.mark.parametrize(
    ("last", "wrong", "message"),
    [
        ("calibrate-weights", "split-outliers", "q_proj.weight has calibrated codes, which fit q4"),
        ("calibrate-weights", "promote-groups{average_bits=3.3}", "before calibrate-weights"),
        ("calibrate-weights", "quantize-weights", "choose formats before calibrate-weights"),
        ("calibrate-weights", "analyze-group-ranges", "not formats-open before analyze"),
        ("calibrate-weights", "calibrate-weights", "not formats-open before calibrate"),
        ("tune-scales", "calibrate-weights", "has tuned codes"),
        ("tune-scales", "tune-scales", r"the scales of .* are tuned.*more steps"),
        (
            "split-outliers",
            "tune-scales",
            "no matrix has codes that a text.*; run calibrate-weights before",
        ),
        ("split-outliers", "quantize-weights", r"has q4g32cp.* already.*the order is quantize"),
        ("promote-groups", "promote-groups{average_bits=3.3}", "not formats-whole before promote"),
        ("promote-groups", "analyze-group-ranges", "not formats-whole before analyze"),
        ("normalize", "calibrate-weights", "no linear has a format of 8 bits.*quantize-weights"),
        ("fuse-attention", "calibrate-weights", "not linears-apart.*before fuse-attention"),
        ("fuse-linears", "quantize-weights", "not linears-apart before quantize-weights"),
        ("fuse-linears", "tune-scales", "not linears-apart before tune-scales"),
    ],
)
def test_wrong_orders_are_refused(chain: Chain, last: str, wrong: str, message: str) -> None:
    names = [step.name for step in chain.steps]
    state = chain.states[names.index(last) + 1]
    with pytest.raises(CompileError, match=message):
        chain.after(state, parse_spec(wrong, known_passes())[0])


def test_phases_come_before_activations(chain: Chain) -> None:
    fused = chain.states[9]
    codes = chain.after(fused, parse_spec("quantize-activations", known_passes())[0])
    with pytest.raises(CompileError, match="not activations-float before specialize-phases"):
        chain.after(codes, parse_spec("specialize-phases", known_passes())[0])


def test_an_analysis_of_other_formats_is_refused(chain: Chain) -> None:
    steps = parse_spec(
        "quantize-weights{group_size=64},promote-groups{average_bits=5.2}", known_passes()
    )
    other = chain.after(chain.states[3], steps[0])
    with pytest.raises(CompileError, match="was in the format q4g32c, and has q4g64.*run analyze-"):
        chain.after(other, steps[1])


def test_packing_raises_when_codes_are_missing_or_left(tmp_path: Path) -> None:
    fmt, store = WeightFormat("q4", 32), CodeStore(tmp_path)
    floats = WeightStore.of({"w": np.ones((16, 32), np.float32)})
    matrix = Matrix(("w",), (16,), 32, fmt, calibrated=True)
    for codes in (None, store):
        with pytest.raises(CompileError, match=r"weights made are missing \(need q4g32\) at w;"):
            matrix.pack(WeightOverlay(floats, codes))
    store.put(
        "w", replace(fmt, compact=True), quantize(floats.get("w"), replace(fmt, compact=True))
    )
    layout = WeightFile()
    layout.matrix(replace(matrix, calibrated=False))
    with pytest.raises(CompileError, match=r"no matrix wants codes .* this one has q4g32c\) at w"):
        with (tmp_path / "weights.bin").open("wb") as file:
            layout.write(file, WeightOverlay(floats, store), lambda: None)


def test_results_that_nothing_keeps_are_refused(chain: Chain) -> None:
    """The IR names an order and codes, and they are with the weights or it goes no further."""
    module, context = chain.states[-1]
    assert context.weights is not None
    check_invariant("results-kept", module, "here", context.weights)
    for weights in (copy(context.weights), copy(context.weights)):
        weights.codes = None
        with pytest.raises(CompileError, match=r"not results-kept here \(nothing is kept of model"):
            check_invariant("results-kept", module, "here", weights)
