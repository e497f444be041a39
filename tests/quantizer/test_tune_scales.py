"""Tuning scales: torch computes what numpy computes, the codes stay, the output comes closer."""

from __future__ import annotations

from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from morendo.frontend import load_model
from morendo.ir.code_store import CodeStore
from morendo.ir.errors import CompileError, InputError
from morendo.ir.evaluate import evaluate
from morendo.ir.evaluate_dialect import DIALECT, State
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import TUNED
from morendo.ir.outliers import Outliers
from morendo.ir.reference import Quantized, dequantize, quantize
from morendo.ir.weight_overlay import WeightOverlay, tuned_name
from morendo.passes.base import Calibration, Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.quantizer.group_scales import TunedGroupScales
from morendo.passes.quantizer.row_scales import TunedRowScales
from morendo.passes.quantizer.tuner import (
    FloatWeights,
    TunedWeights,
    _in_random_order,
    hold_back,
    norm_weights,
    part_of_rate,
)
from morendo.passes.streaming.stream import stored_order
from morendo.passes.streaming.torch_ops import TORCH_RULES, TorchFunction
from tests.frontend.families import VOCABULARY, save_model

FORMATS = "normalize,quantize-weights{group_size=32,compact=True},"
FINE_FORMATS = "normalize,quantize-weights{group_size=64},"
PLANES = "analyze-group-ranges{windows=2},promote-groups{average_bits=3.0},"


@pytest.fixture(scope="module")
def windows(prose_windows) -> np.ndarray:
    return prose_windows(28)


def passes(spec: str, module, context: Context):
    module, records = run_passes(module, parse_spec(spec, known_passes()), context)
    return module, records[-1].report


@pytest.fixture(scope="module")
def calibrated(loaded, windows, tmp_path_factory: pytest.TempPathFactory):
    """The module with formats of 2 to 4 bits and orders, and a context with its codes.

    Without compensation, which leaves tuning little to do in a model of four layers.
    """
    folder = tmp_path_factory.mktemp("calibrated")
    return calibrate(FORMATS + PLANES, loaded, windows, folder, "{compensation=0}")


def calibrate(formats: str, loaded, windows: np.ndarray, folder: Path, options: str = ""):
    weights = WeightOverlay(loaded.weights, CodeStore(folder))
    context = Context(weights, calibration=Calibration(windows, folder))
    return passes(f"{formats}calibrate-weights{options}", loaded.module, context)[0], context


def with_codes(context: Context, folder: Path, **changed) -> Context:
    """A context with a copy of the codes."""
    folder.mkdir(exist_ok=True)
    for path in context.weights.codes.folder.glob("*.npz"):
        (folder / path.name).write_bytes(path.read_bytes())
    weights = copy(context.weights)
    weights.codes = CodeStore(folder)
    return Context(weights, calibration=replace(context.calibration, **changed))


class Codes(State):
    """What numpy evaluates with codes that are in a store."""

    codes: CodeStore

    def matrix(self, attrs, name: str) -> np.ndarray:
        fmt = WeightFormat.parse(attrs["format"])
        made = self.codes.get(name, fmt)
        if made is None:
            return super().matrix(attrs, name)
        natural = dequantize(made, fmt, attrs["in_features"])
        return natural[:, np.argsort(stored_order(self.weights, attrs))]


def numpy_logits(module, weights, ids: np.ndarray) -> np.ndarray:
    return evaluate(module["main"], [ids[None], np.arange(len(ids))[None]], weights)[0]


def torch_logits(module, weights, ids: np.ndarray) -> np.ndarray:
    function = TorchFunction(module["main"])
    assert not function.unknown
    with torch.no_grad():
        return function(weights, ids).numpy()


@pytest.mark.parametrize(
    "family", ["bloom", "gemma3", "gpt2", "gpt_neox", "mistral", "olmo2", "opt", "phi3", "stablelm"]
)
def test_torch_computes_what_numpy_computes(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path)
    loaded = load_model(tmp_path)
    module, _ = passes("normalize", loaded.module, Context(weights=loaded.weights))
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 12)
    want = numpy_logits(module, loaded.weights, ids)
    got = torch_logits(module, FloatWeights(loaded.weights), ids)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_softcap_and_interleaved_rope() -> None:
    """No family of the tests has them."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 9, heads, 8), np.float32) for heads in (4, 2, 2))
    weights = {"f": rng.random(3, np.float32), "": None}
    rope = {"inv_freq": "f", "scaling": 1.5, "interleaved": True}
    attention = {"scale": 0.5, "window": 0, "softcap": 2.0, "alibi": ""}
    positions = np.arange(9)[None]
    want = DIALECT["attention"](State(weights), attention, q, k, v)
    turned = DIALECT["rope"](State(weights), rope, q, positions)
    state = State(FloatWeights(weights))
    q, k, v = map(torch.from_numpy, (q, k, v))
    np.testing.assert_allclose(
        TORCH_RULES["rope"](state, rope, q, torch.from_numpy(positions)), turned, atol=1e-6
    )
    np.testing.assert_allclose(TORCH_RULES["attention"](state, attention, q, k, v), want, atol=1e-6)


def test_torch_with_codes_computes_what_numpy_computes(calibrated, windows, monkeypatch) -> None:
    """Codes of 2, 3 and 4 bits in another order; the head, which has none, is rounded."""
    module, context = calibrated
    assert any(fmt.planes and fmt.planes[0] > 0 for _, fmt in formats(module))
    Codes.codes = context.weights.codes
    monkeypatch.setattr("morendo.ir.evaluate.State", Codes)
    ids = windows[0, :40]
    want = numpy_logits(module, context.weights, ids)
    student = TunedWeights(FloatWeights(context.weights), Codes.codes, norm_weights(module["main"]))
    got = torch_logits(module, student, ids)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    assert len(student.tuned) == 28


def formats(module) -> list[tuple[str, WeightFormat]]:
    """Names and formats of the matrices with codes."""
    from morendo.ir.dialect import attrs_of
    from morendo.ir.invariants import calls

    found = [attrs_of(c) for name, c in calls(module) if name == "linear"]
    return [
        (a["weight"], WeightFormat.parse(a["format"])) for a in found if "layers" in a["weight"]
    ]


def example(spec: str, features: int) -> tuple[Quantized, WeightFormat, np.ndarray]:
    """Codes of a random matrix, with outliers if the format has them, and an order."""
    rng = np.random.default_rng(3)
    torch.manual_seed(3)
    fmt = WeightFormat.parse(spec)
    codes = quantize(rng.standard_normal((20, features), np.float32), fmt)
    if fmt.slots:
        row, channel = np.array([3, 17, 17], np.int32), np.array([2, 40, 90], np.int32)
        codes = replace(codes, outliers=Outliers(row, channel, np.array([1, -2, 0.5], np.float16)))
    return codes, fmt, rng.permutation(features).astype(np.int32)


def moved(matrix):
    """The matrix with other scales and zeros."""
    for parameter in matrix.parameters:
        parameter.data = 0.1 * torch.randn_like(parameter)
    return matrix


SPECS = [("q4g32", 100), ("q4g32p2,1", 100), ("q4g32p1,0o4", 96), ("q8g32", 96)]


@pytest.mark.parametrize(("spec", "features"), SPECS)
def test_a_matrix_is_what_its_codes_stand_for(spec: str, features: int) -> None:
    codes, fmt, order = example(spec, features)
    matrix = TunedGroupScales(codes, fmt, order)
    want = dequantize(codes, fmt, features)
    assert np.array_equal(matrix.values()[:, :features].numpy(), want)
    x = torch.randn(1, 5, features)
    natural = torch.from_numpy(want[:, np.argsort(order)].copy())
    torch.testing.assert_close(matrix(x).detach(), x @ natural.T)


@pytest.mark.parametrize(("spec", "features"), SPECS)
def test_gradients(spec: str, features: int) -> None:
    """Against autograd through the plain formula."""
    codes, fmt, order = example(spec, features)
    matrix = moved(TunedGroupScales(codes, fmt, order))
    x = torch.randn(1, 5, features, requires_grad=True)
    target = torch.randn(1, 5, 20)
    inputs = [x, *matrix.parameters]
    got = torch.autograd.grad((matrix(x) * target).sum(), inputs)
    growth, shift = matrix.growth * matrix.relative, matrix.shift * matrix.spacing
    weight = (matrix.dense() * (1 + growth)[..., None] + shift[..., None]).reshape(20, -1)
    sparse = matrix.values() - weight.detach()
    assert (sparse.abs() > 1e-3).sum() == (0 if codes.outliers is None else 2)
    weight = (weight + sparse)[:, :features]
    plain = (x[..., torch.from_numpy(order).long()] @ weight.T * target).sum()
    for mine, want in zip(got, torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("spec", "features"), SPECS)
def test_what_is_stored_is_near_and_exact(spec: str, features: int) -> None:
    codes, fmt, _ = example(spec, features)
    matrix = moved(TunedGroupScales(codes, fmt, None))
    wanted, before = matrix.values(), dequantize(codes, fmt, features)
    matrix.settle()
    stored = matrix.settled(codes)
    assert stored.codes is codes.codes
    assert stored.scale.max(1).tolist() == [255] * 20
    got = dequantize(stored, fmt, features)
    assert np.array_equal(got, matrix.values()[:, :features].numpy())
    rounded = np.linalg.norm(got - wanted[:, :features].numpy())
    assert rounded < 0.5 * np.linalg.norm(got - before)


@pytest.mark.parametrize(
    ("spec", "features"), [("q4g32c", 96), ("q4g32cp2,1", 100), ("q4g32cp1,0o4", 96)]
)
def test_rows_of_compact_formats(spec: str, features: int) -> None:
    """Against autograd through the plain formula, then what is stored."""
    codes, fmt, order = example(spec, features)
    matrix = TunedRowScales(codes, fmt, order)
    natural, plain = (
        torch.from_numpy(dequantize(each, fmt, features)[:, np.argsort(order)].copy())
        for each in (codes, replace(codes, outliers=None))
    )
    sparse = natural - plain  # outliers have no row scale
    x, target = torch.randn(1, 5, features, requires_grad=True), torch.randn(1, 5, 20)
    torch.testing.assert_close(matrix(x).detach(), (x @ natural.T).detach())
    moved(matrix)
    inputs = [x, *matrix.parameters]
    got = torch.autograd.grad((matrix(x) * target).sum(), inputs)
    weight = plain * (1 + matrix.growth * matrix.relative)[:, None] + sparse
    for mine, want in zip(
        got, torch.autograd.grad((x @ weight.T * target).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-4)
    matrix.settle()
    stored = matrix.settled(codes)
    assert not (stored.row_scale.view(np.uint32) & 0xFFFF).any()
    got = dequantize(stored, fmt, features)[:, np.argsort(order)]
    np.testing.assert_allclose(got, (matrix.values + sparse).numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got, weight.detach().numpy(), rtol=1.01 * 2**-8, atol=1e-7)


def test_tuning_brings_the_output_closer(calibrated, tmp_path: Path) -> None:
    tuning = "tune-scales{steps=24,learning_rate=2e-3}"
    module, context = calibrated
    context = with_codes(context, tmp_path)
    after, report = passes(tuning, module, context)
    figures = report.figures["all matrices"]
    assert report.counts == {"matrices tuned": 28}
    assert figures["steps"] == 24
    assert figures["kl_after"] < 0.92 * figures["kl_before"]
    old = calibrated[1].weights.codes
    for name, fmt in formats(module):
        mine, other = context.weights.codes.get(name, fmt), old.get(name, fmt)
        assert np.array_equal(mine.codes, other.codes)
        assert np.array_equal(mine.scale, other.scale)
        assert not np.array_equal(mine.row_scale, other.row_scale)
        marked = {**old.figures(name, fmt), TUNED: 1.0}
        assert context.weights.codes.figures(name, fmt) == marked
    again = with_codes(calibrated[1], tmp_path / "again")
    assert passes(tuning, module, again)[1].figures == report.figures
    norms = norm_weights(module["main"])
    assert norm_weights(after["main"]) == [tuned_name(name) for name in norms]
    for name in norms:
        ratio = context.weights.get(tuned_name(name)) / context.weights.get(name)
        assert 0 < np.abs(ratio - 1).max() < 0.1
    resumed, report = passes(tuning, module, context)
    assert report.counts == {"matrices tuned before": 28}
    assert norm_weights(resumed["main"]) == norm_weights(after["main"])


def test_fine_scales_and_zeros_are_tuned(loaded, windows, tmp_path: Path) -> None:
    module, context = calibrate(FINE_FORMATS, loaded, windows[:8], tmp_path)
    context.calibration.tuning = windows
    before = {key: context.weights.codes.get(*key) for key in formats(module)}
    _, report = passes("tune-scales{steps=12}", module, context)
    figures = report.figures["all matrices"]
    assert figures["kl_after"] < 0.97 * figures["kl_before"]
    for key, old in before.items():
        mine = context.weights.codes.get(*key)
        assert np.array_equal(mine.codes, old.codes)
        assert not np.array_equal(mine.scale, old.scale)


def unchanged(context: Context, other: Context) -> bool:
    folders = context.weights.codes.folder, other.weights.codes.folder
    mine, others = ({p.name: p.read_bytes() for p in folder.glob("*.npz")} for folder in folders)
    return mine == others


@pytest.mark.parametrize(
    ("options", "count", "why"),
    [
        ("memory_mb=1", 8, r"float weights take 3 MB, memory_mb is 1"),
        ("steps=2,learning_rate=9.0", 8, "no better on windows held back"),
        ("steps=2", 1, "one window of text"),
        ("below_bits=2.0", 8, "nested codes have 2.99 bits, below_bits is 2"),
    ],
)
def test_what_is_left_alone(options, count: int, why: str, calibrated, tmp_path: Path) -> None:
    module, context = calibrated
    few = with_codes(context, tmp_path, windows=context.calibration.windows[:count])
    _, report = passes(f"tune-scales{{{options}}}", module, few)
    assert [(where, why in text) for where, text in report.misses] == [("main", True)]
    assert not report.counts
    assert unchanged(few, context)


def test_an_interrupted_run_leaves_the_codes(calibrated, tmp_path: Path) -> None:
    module, context = calibrated

    @contextmanager
    def track(title: str, steps: int):
        assert (title, steps) == ("tune scales", 3)
        done = iter(range(2))
        yield lambda: next(done)

    stopped = with_codes(context, tmp_path)
    stopped.track = track
    with pytest.raises(StopIteration):
        passes("tune-scales{steps=3}", module, stopped)
    assert unchanged(stopped, context)


def test_an_op_without_gradients(calibrated, tmp_path: Path, monkeypatch) -> None:
    module, context = calibrated
    monkeypatch.delitem(TORCH_RULES, "gated")
    monkeypatch.delitem(TORCH_RULES, "reshape")
    _, report = passes("tune-scales", module, with_codes(context, tmp_path))
    assert report.misses == [("main", "no gradients of morendo.gated, relax.reshape")]


@pytest.mark.parametrize("option", ["steps=0", "learning_rate=0", "memory_mb=-1"])
def test_bad_options_are_refused(option: str, calibrated) -> None:
    with pytest.raises(InputError, match="tune-scales: bad option"):
        passes(f"tune-scales{{{option}}}", *calibrated)


def test_the_pass_needs_codes(loaded, windows, tmp_path: Path) -> None:
    weights = WeightOverlay(loaded.weights, CodeStore(tmp_path))
    context = Context(weights, calibration=Calibration(windows, tmp_path))
    with pytest.raises(CompileError, match="no matrix has codes that a text made"):
        passes(FORMATS + "tune-scales", loaded.module, context)


def test_windows_and_rates() -> None:
    windows = np.arange(10)[:, None]
    seen, held = hold_back(windows, windows)
    assert len(held) == 2
    assert set(hold_back(windows, windows[2:])[1][:, 0]) == {0, 1}  # what codes do not know
    assert sorted([*seen[:, 0], *held[:, 0]]) == list(range(10))
    order = _in_random_order(seen, 20)[:, 0]
    assert sorted(order[:8]) == sorted(seen[:, 0])
    assert np.array_equal(order, _in_random_order(seen, 20)[:, 0])
    rates = [part_of_rate(i / 100) for i in range(101)]
    assert max(rates) == pytest.approx(1) and rates.index(max(rates)) == 15
    assert rates[0] == 0 and rates[-1] == pytest.approx(0)
