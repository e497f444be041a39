"""Calibration of whole modules: stages, sequential rounding, spilling, packing, bad input."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import morendo
from morendo.calibration_text import calibration_text
from morendo.codegen.packed_matrix import Matrix
from morendo.ir.code_store import CodeStore
from morendo.ir.errors import CompileError, InputError
from morendo.ir.evaluate import evaluate
from morendo.ir.formats import WeightFormat
from morendo.ir.reference import dequantize, quantize, unpack
from morendo.ir.weight_overlay import WeightOverlay
from morendo.passes.base import Calibration, Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.streaming.stages import split_stages
from morendo.passes.streaming.stream import token_weights
from morendo.progress import Progress
from tests.e2e.quality import kl_divergence, torch_logits

TINY = Path(__file__).parent.parent / "models" / "tiny_llama"
FORMATS = "normalize,quantize-weights,"


def prose(start: float, stop: float) -> str:
    """A part of the English text that every Python installation carries."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))
    return text[int(start * len(text)) : int(stop * len(text))]


@pytest.fixture(scope="module")
def windows(prose_windows) -> np.ndarray:
    return prose_windows(12)


def calibrate(loaded, windows: np.ndarray, folder: Path, spec: str, weights=None):
    """The module with formats, and the store with the codes."""
    (folder / "codes").mkdir()
    overlay = WeightOverlay(weights or loaded.weights, CodeStore(folder / "codes"))
    context = Context(overlay, calibration=Calibration(windows, folder))
    module, records = run_passes(loaded.module, parse_spec(spec, known_passes()), context)
    return module, overlay.code_store, records[-1].report


@pytest.fixture(scope="module")
def calibrated(loaded, windows, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("calibrated")
    return calibrate(loaded, windows, folder, FORMATS + "calibrate-weights")


def torch_with(model, codes: CodeStore):
    """A torch model that holds what codes stand for, and tables rounded to nearest."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            fmt = WeightFormat("q8" if "embed" in name else "q4", 32)
            weight = parameter.detach().numpy()
            made = codes.get(name, fmt) or quantize(weight, fmt)
            parameter.data = torch.from_numpy(dequantize(made, fmt, weight.shape[1]))
    return model


def test_stages_end_before_linears_of_one_input(loaded) -> None:
    module, _ = run_passes(loaded.module, parse_spec("normalize", known_passes()), Context())
    stages = split_stages(module["main"], lambda attrs: "layers.3" not in attrs["weight"])
    names = [[a["weight"].split(".")[-2] for a in stage.linears] for stage in stages]
    layer = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert names == 3 * layer
    # the input and the residual stream
    assert [len(stage.live) for stage in stages] == [2] * 11 + [0]


def test_later_layers_see_rounded_earlier_ones(loaded, windows, tmp_path) -> None:
    """The last error reported is the one that the numpy evaluator finds, and far below nearest."""
    spec = FORMATS + "calibrate-weights{compensation=0}"
    _, codes, report = calibrate(loaded, windows, tmp_path, spec)
    assert len(codes) == 7 * 4
    ratios = [figures["error"] / figures["error_to_nearest"] for figures in report.figures.values()]
    assert np.exp(np.mean(np.log(ratios))) < 0.6
    name = "model.layers.3.mlp.down_proj.weight"

    class Rounded:
        def get(self, name: str) -> np.ndarray:
            made = codes.get(name, WeightFormat("q4", 32))
            weight = loaded.weights.get(name)
            return (
                weight if made is None else dequantize(made, WeightFormat("q4", 32), len(weight.T))
            )

    plain, _ = run_passes(loaded.module, parse_spec("normalize", known_passes()), Context())
    inputs = []

    def watch(var, value) -> None:
        if np.shape(value)[-1:] == (384,):
            inputs.append(value[0])

    positions = np.arange(128)[None]
    moments = np.zeros((384, 384))
    for window in windows:
        inputs.clear()
        evaluate(plain["main"], [window[None], positions], Rounded(), watch)
        counts = token_weights(128).double().numpy()[:, None]
        moments += (inputs[-1] * counts).T @ inputs[-1]
    weight = loaded.weights.get(name)
    difference = weight - Rounded().get(name)
    error = np.sum(difference @ moments * difference) / np.sum(weight @ moments * weight)
    assert report.figures[name]["error"] == pytest.approx(error, rel=0.02)


def test_activations_on_disk_give_the_same_codes(loaded, windows, calibrated, tmp_path) -> None:
    spec = FORMATS + "calibrate-weights{memory_mb=0}"
    _, spilled, _ = calibrate(loaded, windows, tmp_path, spec)
    assert list(tmp_path.glob("window*.npz"))
    fmt = WeightFormat("q4", 32)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.3.mlp.down_proj.weight"):
        pairs = zip(
            vars(spilled.get(name, fmt)).values(),
            vars(calibrated[1].get(name, fmt)).values(),
            strict=True,
        )
        assert all(np.array_equal(mine, other) for mine, other in pairs)


@pytest.mark.parametrize("interleaved", [False, True])
def test_packing_takes_codes_first(loaded, calibrated, interleaved: bool) -> None:
    """Stacked or interleaved, packed arrays hold exactly what the codes stand for."""
    fmt, codes = WeightFormat("q4", 32), calibrated[1]
    names = tuple(f"model.layers.1.mlp.{kind}_proj.weight" for kind in ("gate", "up"))
    matrix = Matrix(names, (384, 384), 128, fmt, interleaved=interleaved, calibrated=True)
    weights = WeightOverlay(loaded.weights, codes)
    whole = unpack(matrix.pack(weights), fmt, 768, 128)
    parts = [dequantize(codes.get(name, fmt), fmt, 128) for name in names]
    if interleaved:
        tiles = whole.reshape(24, 2, 16, 128)
        assert np.array_equal(tiles[:, 0].reshape(384, 128), parts[0])
        assert np.array_equal(tiles[:, 1].reshape(384, 128), parts[1])
    else:
        assert np.array_equal(whole, np.concatenate(parts))
    uncalibrated = replace(matrix, calibrated=False)
    nearest = unpack(uncalibrated.pack(weights), fmt, 768, 128)
    assert not np.array_equal(whole, nearest)


def test_a_calibrated_artifact_is_closer_to_float(loaded, tmp_path: Path) -> None:
    """On text that was not calibrated on; the artifact computes with the calibrated weights."""
    from transformers import AutoModelForCausalLM

    text = tmp_path / "text.txt"
    text.write_text(prose(0, 0.05), encoding="utf-8")
    ids = loaded.tokenizer.library.encode(prose(0.6, 0.605)).ids[:400]
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    want = torch_logits(model, ids)
    found = []
    for options in ({}, {"calibrate": text}):
        out = morendo.compile(TINY, out=tmp_path / f"out{len(found)}", chunk=32, **options)
        with morendo.load(out) as session:
            found.append(kl_divergence(want, session.logits(ids)))
    assert found[1] < 0.6 * found[0]


def test_torch_with_the_codes_is_closer_to_float(loaded, windows, calibrated) -> None:
    """The same without kernels: what the codes stand for is better than what is nearest."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    rounded = torch_logits(torch_with(model, calibrated[1]), windows[0])
    nearest = torch_logits(torch_with(model, CodeStore(Path())), windows[0])
    want = torch_logits(model, windows[0])
    assert kl_divergence(want, rounded) < kl_divergence(want, nearest)


class Damaged:
    """A weight store with one bad weight."""

    def __init__(self, weights, name: str) -> None:
        self.weights, self.name = weights, name

    def get(self, name: str) -> np.ndarray:
        weight = self.weights.get(name)
        if name == self.name:
            weight = weight.copy()
            weight.flat[5] = np.nan
        return weight

    def rows(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        return self.get(name)[rows]


@pytest.mark.parametrize("step", ["calibrate-weights", "analyze-group-ranges"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.mlp.up_proj.weight", r"not finite .* at model.layers.0.mlp.up_proj"),
        ("model.layers.1.input_layernorm.weight", r"in place \(\d+,\)\) at .*layers.1.input"),
    ],
)
def test_values_that_are_not_finite_are_named(
    name: str, message: str, step: str, loaded, windows, tmp_path: Path
) -> None:
    with pytest.raises(CompileError, match=message):
        weights = Damaged(loaded.weights, name)
        calibrate(loaded, windows[:2], tmp_path, FORMATS + step, weights)


class Overflowing(Damaged):
    """Weights of which one matrix is as large as float32 can be, and finite."""

    def get(self, name: str) -> np.ndarray:
        weight = self.weights.get(name)
        return np.sign(weight) * np.float32(3e38) if name == self.name else weight


@pytest.mark.parametrize("step", ["choose-activations{windows=1}", "calibrate-weights"])
def test_a_layer_whose_activations_overflow_is_named(
    step: str, loaded, windows, tmp_path: Path
) -> None:
    weights = Overflowing(loaded.weights, "model.layers.1.mlp.up_proj.weight")
    match = "activations overflow on the text, .* at model.layers.1.mlp.down_proj.weight"
    with pytest.raises(CompileError, match=match):
        calibrate(loaded, windows[:2], tmp_path, FORMATS + step, weights)


def test_the_pass_needs_text(loaded) -> None:
    with pytest.raises(CompileError, match="no text to calibrate on"):
        spec = parse_spec(FORMATS + "calibrate-weights", known_passes())
        run_passes(loaded.module, spec, Context(weights=loaded.weights))


@pytest.mark.parametrize(
    "option", ["order=random", "damping=0", "memory_mb=-1", "compensation=2", "shrinkage=2"]
)
def test_bad_options_are_refused(option: str, loaded, windows, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="calibrate-weights: bad option"):
        calibrate(loaded, windows, tmp_path, f"{FORMATS}calibrate-weights{{{option}}}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate": "short.txt"}, r"shorter than one window \(got \d+ tokens, need 512\)"),
        ({"calibrate": "missing.txt"}, "cannot be read"),
        ({"calibrate": "short.txt", "bits": "f16"}, "nothing to calibrate in float weights"),
        ({"calibrate": "short.txt", "passes": "normalize"}, "no pass uses it"),
        ({"passes": FORMATS + "calibrate-weights"}, "calibrate-weights needs text"),
        ({"passes": "normalize", "tuning_steps": 4}, r"not both.* tune-scales\{steps=N\}"),
        ({"passes": "normalize", "average_bits": 3.0}, r"promote-groups\{average_bits=N\}"),
        ({"passes": "normalize", "size_mb": 3.0, "group_size": 64}, r"size_mb=N.*group_size=N"),
        ({"tuning_steps": 4}, "tuning needs text"),
        ({"calibration_windows": 4}, "no text to take 4 calibration windows from"),
        ({"calibrate": "short.txt", "calibration_windows": 0}, "a window of text or more"),
    ],
)
def test_bad_calibration_is_refused(options, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("Too short.", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        morendo.compile(TINY, out=tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_texts_share_the_windows(loaded, tmp_path: Path) -> None:
    """Rounding takes an even part of what there is to tune by; each text has its share."""
    (tmp_path / "long.txt").write_text(prose(0, 1), encoding="utf-8")
    (tmp_path / "short.txt").write_text(prose(0.9, 0.91), encoding="utf-8")
    sources = [tmp_path / "long.txt", tmp_path / "short.txt"]
    alone = calibration_text(loaded, sources[:1], lambda _: tmp_path, Progress())
    assert (len(alone.rounding), len(alone.tuning)) == (48, 192)
    both = calibration_text(loaded, sources, lambda _: tmp_path, Progress())
    short = len(both.tuning) - 96
    assert 0 < short < 24 and len(both.rounding) == 24 + short
    known = {row.tobytes() for row in both.tuning}
    assert all(row.tobytes() in known for row in both.rounding)


def test_the_model_writes_its_own_text(tmp_path: Path) -> None:
    options = {"calibrate": "self", "calibration_windows": 2, "dump_ir": tmp_path / "ir"}
    out = morendo.compile(TINY, out=tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ir", "out"]
    figures = json.loads((tmp_path / "ir" / "03_calibrate_weights.json").read_text())["figures"]
    assert len(figures) == 28
    with morendo.load(out) as session:
        assert len(list(session.generate("The", max_tokens=4))) == 4
