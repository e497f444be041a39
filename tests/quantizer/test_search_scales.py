"""search-scales: codes without any text, by the gains of norms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import morendo
from morendo.cli import entry as cli
from morendo.frontend.weights import WeightStore
from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import attrs_of
from morendo.ir.errors import CompileError, InputError
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import calls
from morendo.ir.reference import dequantize, pack_quantized, unpack
from morendo.ir.weight_overlay import WeightOverlay
from morendo.passes.base import Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from morendo.passes.quantizer.search import lost, search_codes
from morendo.passes.search_scales import mean_squares
from morendo.runtime.artifact import read_manifest
from morendo.runtime.session import Session
from tests.frontend.families import save_model

from .test_streaming import TINY

SPEC = "normalize,quantize-weights{compact=True},search-scales"


def run(loaded, folder: Path, spec: str = SPEC):
    weights = WeightOverlay(loaded.weights, CodeStore(folder))
    module, records = run_passes(loaded.module, parse_spec(spec, known_passes()), Context(weights))
    linears = {attrs_of(c)["weight"]: attrs_of(c) for n, c in calls(module) if n == "linear"}
    return linears, weights, records[-1].report


@pytest.mark.parametrize("spec", ["q4g32", "q4g32c", "q4g64", "q4g128", "q5g32", "q6g32c"])
@pytest.mark.parametrize("columns", [128, 80])  # 80: the last group is padded
def test_a_search_beats_rounding_to_nearest(spec: str, columns: int) -> None:
    fmt, rng = WeightFormat.parse(spec), np.random.default_rng()
    weight = rng.normal(size=(37, columns)).astype(np.float32)
    weight[3] = 0
    squares = rng.lognormal(size=columns).astype(np.float32)
    codes = search_codes(torch.from_numpy(weight), torch.from_numpy(squares), fmt)
    figures = lost(weight, squares, fmt, codes)
    assert 0 < figures["searched"] < 0.97 * figures["nearest"]
    values = dequantize(codes, fmt, columns)
    error = ((weight - values) ** 2 @ squares).sum() / (weight**2 @ squares).sum()
    assert figures["searched"] == pytest.approx(error, rel=1e-3)
    np.testing.assert_array_equal(unpack(pack_quantized(codes, fmt), fmt, 37, columns), values)


def test_channels_count_by_their_mean_squares() -> None:
    """What no input reaches may be lost for what many reach."""
    fmt, rng = WeightFormat("q4", 32), np.random.default_rng()
    weight = rng.normal(size=(64, 32)).astype(np.float32)
    squares = np.where(np.arange(32) < 4, 1.0, 1e-4).astype(np.float32)
    alike = search_codes(torch.from_numpy(weight), torch.ones(32), fmt)
    codes = search_codes(torch.from_numpy(weight), torch.from_numpy(squares), fmt)

    def error(q) -> float:
        return float(((weight - dequantize(q, fmt, 32)) ** 2 @ squares).sum())

    assert error(codes) < 0.8 * error(alike)


def test_mean_squares_are_those_of_a_norm() -> None:
    """Of numbers with a mean square of 1, by the norm's own meaning."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=16).astype(np.float32) for name in ("gain", "bias")}
    overlay = WeightOverlay(WeightStore.of(weights))
    x = rng.normal(size=(100_000, 16)).astype(np.float32)
    norm = {"weight": "gain", "offset": 1.0, "bias": "bias"}
    want = ((x * (weights["gain"] + 1) + weights["bias"]) ** 2).mean(0)
    np.testing.assert_allclose(mean_squares(norm, 16, overlay), want, rtol=0.05)
    assert np.array_equal(mean_squares({}, 4, overlay), np.ones(4))


def test_linears_get_codes_and_their_head_does_not(loaded, tmp_path: Path) -> None:
    linears, weights, report = run(loaded, tmp_path)
    by_codes = {
        codes: [n for n, a in linears.items() if a["codes"] == codes] for codes in ("", "searched")
    }
    assert len(by_codes["searched"]) == report.counts["matrices searched"] == 28
    assert report.counts["of these by the gain of a norm"] == 20  # q, k, v, gate and up
    assert all(WeightFormat.parse(linears[n]["format"]).kind == "q8" for n in by_codes[""])
    for name in by_codes["searched"]:
        figures = report.figures[name]
        assert figures["searched"] < 0.95 * figures["nearest"]
        assert weights.codes_of(name, WeightFormat.parse(linears[name]["format"])) is not None


def test_what_needs_a_text_or_no_search_is_left_alone(loaded, tmp_path: Path) -> None:
    for options in ("bits=8", "bits=f16", "readings=43"):
        spec = SPEC.replace("compact=True", options)
        linears, weights, report = run(loaded, tmp_path, spec)
        assert {attrs["codes"] for attrs in linears.values()} == {""}
        assert not report.counts
        assert not weights.code_store.keys()


def test_codes_of_a_search_are_not_those_of_a_text(loaded, tmp_path: Path) -> None:
    for late, why in (
        ("tune-scales", "no matrix has codes that a text made"),
        ("quantize-weights", "has searched codes, which fit q4g32c alone"),
    ):
        with pytest.raises(CompileError, match=why):
            run(loaded, tmp_path, f"{SPEC},{late}")
    with pytest.raises(CompileError, match="search-scales: there are no weights to search"):
        run_passes(loaded.module, parse_spec(SPEC, known_passes()), Context())


def test_an_artifact_of_searched_scales_is_closer_to_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Smaller than rounding to nearest, and closer to the float artifact's logits."""
    ids = np.random.default_rng(0).integers(2, 512, size=96)

    def logits(name: str, **options) -> tuple[np.ndarray, int]:
        out = morendo.compile(TINY, out=tmp_path / name, chunk=96, **options)
        with Session(out) as session:
            return session.logits(ids), (out / "weights.bin").stat().st_size

    want, _ = logits("float", bits="f32")
    nearest, size = logits("nearest", search_scales=False)
    searched, smaller = logits("searched")
    assert smaller < size
    assert np.square(searched - want).mean() < 0.9 * np.square(nearest - want).mean()
    manifest = json.loads((tmp_path / "searched" / "manifest.json").read_text("utf-8"))
    assert "search-scales" in json.dumps(manifest)
    assert cli.main(["inspect", str(tmp_path / "searched"), "--weights"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "0.mlp.up_proj" in line)
    lost, promoted, kept = row.split()[-3:]
    assert 0 < float(kept) < float(lost) and promoted == "-"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate": "pydoc"}, "searched with a text anyway.*leave --search-scales out"),
        ({"average_bits": 3.0}, "searched with a text anyway.*leave --search-scales out"),
        ({"bits": 8}, r"of 6, 5 or 4 bits \(got bits 8\).*leave --search-scales out"),
        ({"bits": "f32"}, r"of 6, 5 or 4 bits \(got bits 'f32'\)"),
        ({"passes": "normalize"}, "searched scales.*write search-scales in --passes"),
    ],
)
def test_a_search_that_finds_nothing_to_do_is_refused(options, message: str, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        morendo.compile(TINY, out=tmp_path / "out", search_scales=True, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"calibrate": "pydoc"}, {"average_bits": 3.0}])
def test_a_text_searches_whatever_is_said(options, tmp_path) -> None:
    with pytest.raises(InputError, match="with a text anyway.*leave --no-search-scales out"):
        morendo.compile(TINY, out=tmp_path / "out", search_scales=False, **options)


@pytest.mark.parametrize("family", ["olmo", "nanochat"])
def test_norms_may_have_no_weight(family: str, tmp_path) -> None:
    save_model(family, tmp_path / "model")
    out = morendo.compile(tmp_path / "model", out=tmp_path / "out", context=48, chunk=16)
    assert any("search-scales" in record.values() for record in read_manifest(out)["passes"])
