"""Activations of 4 bits: how torch rounds them, which inputs get them, what calibration sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import morendo
from morendo.ir.activation_formats import FACTORS, ActivationFormat
from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import attrs_of
from morendo.ir.errors import CompileError, InputError
from morendo.ir.evaluate import evaluate
from morendo.ir.invariants import calls
from morendo.ir.reference_activation import dequantize_activation, quantize_activation
from morendo.ir.weight_overlay import WeightOverlay
from morendo.passes.base import Calibration, Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.quantizer.activation_choice import best_factors
from morendo.passes.streaming.activation_rounding import round_activation, round_input
from morendo.passes.streaming.activation_store import ActivationStore
from morendo.passes.streaming.stream import StageWeights, Stream
from tests.e2e.quality import kl_divergence

from .test_streaming import TINY

FORMATS = "normalize,quantize-weights{bits=8},"
FUSED = ",fuse-attention,fuse-linears,quantize-activations"


def passes(spec: str, loaded, windows: np.ndarray, folder: Path):
    """The module after some passes, their context and the report of each by its name."""
    weights = WeightOverlay(loaded.weights, CodeStore(folder))
    context = Context(weights, calibration=Calibration(windows, folder))
    module, records = run_passes(loaded.module, parse_spec(spec, known_passes()), context)
    return module, context, {record.name: record.report for record in records}


def linears(module) -> dict[str, dict]:
    return {attrs_of(c)["weight"]: attrs_of(c) for name, c in calls(module) if name == "linear"}


@pytest.mark.parametrize("spec", ["a8", "a4", "a4f"])
@pytest.mark.parametrize("features", [128, 77])
def test_torch_rounds_as_the_reference_does(spec: str, features: int) -> None:
    rng, fmt = np.random.default_rng(0), ActivationFormat.parse(spec)
    x = rng.standard_normal((40, features), np.float32)
    x[0], x[1, :32] = 0, np.abs(x[1, :32])
    factors = rng.choice(FACTORS, features).astype(np.float32) if fmt.factored else None
    codes, scales, _ = quantize_activation(x, 32, fmt, factors)
    given = None if factors is None else torch.from_numpy(factors)
    got = round_activation(torch.from_numpy(x), 32, fmt, given).numpy()
    np.testing.assert_allclose(got, dequantize_activation(codes, scales)[:, :features], rtol=1e-6)


def test_rounded_inputs_are_in_the_models_order() -> None:
    rng = np.random.default_rng(0)
    x, order = rng.standard_normal((5, 64), np.float32), rng.permutation(64).astype(np.uint16)
    factors = rng.choice(FACTORS, 64).astype(np.float32)
    weights = {"order": order, "factors": factors}
    attrs = {"activations": "a4f", "factors": "factors", "order": "order", "format": "q4g32"}
    codes, scales, _ = quantize_activation(x[:, order], 32, ActivationFormat(4, True), factors)
    got = round_input(weights, attrs, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got[:, order], dequantize_activation(codes, scales), rtol=1e-6)


def test_large_channels_get_factors() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 70, generator=generator)
    x[:, [3, 40]] *= 20
    matrix, shares = torch.randn(50, 70, generator=generator), torch.ones(300)
    factors = best_factors(x, matrix, shares, 32)
    assert set(factors.tolist()) <= set(FACTORS)
    assert factors[3] == factors[40] == 8
    assert factors.median() == 1

    def error(rounded: torch.Tensor) -> float:
        return float(((rounded - x) @ matrix.T).square().sum())

    plain = error(round_activation(x, 32, ActivationFormat(4)))
    assert error(round_activation(x, 32, ActivationFormat(4, True), factors)) < plain / 3


def test_all_inputs_but_the_heads_get_4_bits(loaded, prose_windows, tmp_path) -> None:
    windows = prose_windows(4)
    spec = FORMATS + "choose-activations{bits=4}"
    module, _, reports = passes(spec, loaded, windows, tmp_path)
    found = linears(module)
    assert {attrs["activations"][:2] for name, attrs in found.items() if ".layers." in name} == {
        "a4"
    }
    assert found["model.embed_tokens.weight"]["activations"] == "a8"
    report = reports["choose-activations"]
    assert report.counts == {
        "inputs of feed forward with 4 bits": 8,
        "inputs of projections with 4 bits": 8,
    }
    figures = report.figures["model.layers.0.mlp.down_proj.weight"]
    assert 0 < figures["loss_4bit_factors"] <= figures["loss_4bit"] < 0.1
    divergences, ids = [], windows[-1][:64]
    given = [ids[None], np.arange(64)[None]]
    floats, _, _ = passes("normalize", loaded, windows, tmp_path)
    want = evaluate(floats["main"], given, loaded.weights)[0]
    for chosen in ("", ",choose-activations{bits=4,factors=false}", ",choose-activations{bits=4}"):
        module, context, _ = passes(
            FORMATS.removesuffix(",") + chosen + FUSED, loaded, windows, tmp_path
        )
        got = evaluate(module["main"], given, context.weights)[0]
        divergences.append(kl_divergence(want, got))
    eight, plain, factored = divergences
    assert 5 * eight < factored < 1.1 * plain < 0.1


def test_mixed_takes_the_feed_forward_part_first(loaded, prose_windows, tmp_path) -> None:
    windows, counted = prose_windows(2), []
    for most in ("0.0", "0.002", "0.013", "1.0"):
        spec = FORMATS + f"choose-activations{{most_loss={most},windows=2}}"
        module, _, reports = passes(spec, loaded, windows, tmp_path)
        report = reports["choose-activations"]
        four = [n for n, attrs in linears(module).items() if attrs["activations"] != "a8"]
        feed = sum("mlp.down" in name or "mlp.up" in name for name in four)
        attention = sum("v_proj" in name or "o_proj" in name for name in four)
        assert report.counts.get("inputs of feed forward with 4 bits", 0) == feed
        assert report.counts.get("inputs of projections with 4 bits", 0) == attention
        assert report.figures["all inputs"]["loss"] <= float(most)
        counted.append((feed, attention))
    assert counted[0] == (0, 0)
    assert counted[-1] == (8, 8)
    assert 0 < counted[1][0] < 8
    assert counted[2][0] >= counted[1][0]


def test_calibration_sees_rounded_inputs(loaded, prose_windows, tmp_path) -> None:
    windows = prose_windows(2)
    spec = FORMATS + "choose-activations{bits=4,windows=1}"
    module, context, _ = passes(spec, loaded, windows, tmp_path)
    parts = module["main"], context.weights, context.weights.codes
    store = ActivationStore(tmp_path, 1 << 30)
    stream = Stream(*parts, store, lambda attrs: "layers.0" in attrs["weight"], beside_float=True)
    weights = StageWeights(context.weights, None)

    def visit(stage, inputs) -> None:
        for each in inputs:
            again = round_input(weights, stage.linears[0], each.x)
            torch.testing.assert_close(each.x, again)  # it is rounded already
            again = round_input(weights, stage.linears[0], each.float.x)
            assert float((again - each.float.x).abs().max()) > 0.01

    assert len(list(stream.run(windows, visit))) == 4


def test_matrices_are_made_for_rounded_inputs(loaded, prose_windows, tmp_path) -> None:
    spec = "normalize,quantize-weights,choose-activations{bits=4,windows=1},calibrate-weights"
    module, _, reports = passes(spec + ",tune-scales{steps=1}", loaded, prose_windows(4), tmp_path)
    assert reports["calibrate-weights"].counts["matrices rounded with error feedback"] == 28
    assert {attrs["codes"] for attrs in linears(module).values()} <= {"calibrated", "tuned", ""}


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        (FORMATS + "choose-activations{bits=5}", InputError, "bits is 4 or mixed"),
        (FORMATS + "choose-activations{windows=0}", InputError, "bad option .got choose-act"),
        (FORMATS + "choose-activations{most_loss=-1.0}", InputError, "most_loss 0 or more"),
        ("normalize,choose-activations", CompileError, "no linear but the head has weights of 8"),
        (
            FORMATS + "choose-activations{bits=4,windows=1},calibrate-weights,choose-activations",
            CompileError,
            "calibrated codes, which fit",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    spec, error, match, loaded, prose_windows, tmp_path
) -> None:
    with pytest.raises(error, match=match):
        passes(spec, loaded, prose_windows(1), tmp_path)


def test_without_a_text_there_is_nothing_to_measure(loaded) -> None:
    with pytest.raises(CompileError, match="choose-activations: there is no text to calibrate on"):
        spec = parse_spec(FORMATS + "choose-activations", known_passes())
        run_passes(loaded.module, spec, Context(weights=loaded.weights))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"activations": 5}, "activations are 8, 4, mixed, 16 .got 5."),
        ({"activations": 4, "bits": "f16"}, "activations stay floats where weights are floats"),
        ({"activations": 4, "passes": "normalize"}, "write choose-activations{bits=4} in --passes"),
        ({"passes": "normalize,choose-activations"}, "choose-activations needs text"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, match, tmp_path) -> None:
    with pytest.raises(InputError, match=match):
        morendo.compile(TINY, out=tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("name", "match"),
    [("b4", "unknown activation format"), ("a3", "no 3 bits"), ("a8f", "only activations of 4")],
)
def test_a_wrong_format_is_refused(name, match) -> None:
    with pytest.raises(InputError, match=match):
        ActivationFormat.parse(name)


def test_formats_are_spelled_as_they_are_read() -> None:
    for name in ("a8", "a4", "a4f"):
        assert ActivationFormat.parse(name).name == name
